"""Resizing, encoding, and the one store that all folds of a node share."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import numpy as np
import pytest
import tensorflow as tf
from fakes import FakeIndex, fake_index, read_fake
from hypothesis import given, settings
from hypothesis import strategies as st

from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.seti.feeding import panels

ON = (0, 2, 4)
SIDE = st.integers(1, 40)


@pytest.fixture(autouse=True)
def own_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(panels, "SHARED_MEMORY", folder)
    return folder


def open_store(index: FakeIndex, tmp_path: Path, **changes: object) -> panels.PanelStore:
    arguments = {
        "split": "train",
        "panels": ON,
        "image_size": (12, 9),
        "standardize": True,
        "policy": "disk",
        "folder": tmp_path / "disk",
        "threads": 2,
        "read": read_fake,
    } | changes
    return panels.open_store(index, **arguments)  # type: ignore[arg-type]


@settings(max_examples=40)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(1, 6), st.booleans())
def test_resize_is_tensorflows_area_method(
    height: int, width: int, new_height: int, new_width: int, count: int, as_float: bool
) -> None:
    image = np.random.default_rng(height * width).integers(0, 256, (2, height, width, count), dtype=np.uint8)
    if as_float:
        image = image.astype(np.float32)
    expected = tf.image.resize(image, (new_height, new_width), method="area").numpy()
    np.testing.assert_allclose(panels.area_resize(image, (new_height, new_width)), expected, atol=2e-3)


def test_the_right_size_is_left_alone() -> None:
    image = np.zeros((1, 8, 9, 3), np.uint8)
    assert panels.area_resize(image, (8, 9)) is image


def test_encoding_keeps_a_fortieth_of_a_sigma_inside_the_range_and_clips_outside() -> None:
    z = np.linspace(-4, 8, 1001, dtype=np.float32)
    assert np.abs(panels.decode(panels.encode(z)) - z).max() <= 12 / 255 / 2 + 1e-6
    assert panels.encode(np.float32([-9, 0, 30])).tolist() == [0, 85, 255]
    assert panels.decode(np.uint8([85])) == 0


def test_standardise_is_per_panel_and_a_constant_panel_becomes_zero() -> None:
    raw = np.random.default_rng(1).normal(7, 3, (2, 30, 40, 3)).astype(np.float32)
    raw[1, :, :, 2] = 123.456
    result = panels.standardise(raw)
    assert (result[1, :, :, 2] == 0).all()
    np.testing.assert_allclose(result[0].mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(result[0].std((0, 1)), 1, atol=1e-5)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("policy", ["memory", "disk", "off", "auto"])
def test_every_policy_takes_the_same_bytes(tmp_path: Path, policy: str, standardize: bool) -> None:
    index = fake_index(7)
    store = open_store(index, tmp_path, policy=policy, standardize=standardize)
    rows = np.array([6, 0, 0, 3])
    expected = panels.prepare(index.panels[rows][..., list(ON)], (12, 9), standardize)
    assert np.array_equal(store.take(rows), expected)
    assert store.shape == (7, 12, 9, 3)
    assert (store.images is None) == (policy == "off")
    assert store.scale == ((-4, 8) if standardize else (0, 1))
    if policy == "auto":
        assert store.path is not None
        assert store.path.is_relative_to(panels.SHARED_MEMORY)


def test_chunks_and_threads_do_not_change_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = fake_index(9)
    whole = np.array(open_store(index, tmp_path / "a", threads=1).images)
    monkeypatch.setattr(panels, "_CHUNK_BYTES", 2 * 3 * 24 * 20 * 3)
    assert np.array_equal(whole, open_store(index, tmp_path / "b", threads=3).images)


def test_a_store_is_built_once_and_named_by_what_it_holds(tmp_path: Path) -> None:
    index = fake_index(5)
    first = open_store(index, tmp_path)
    again = open_store(index, tmp_path)
    assert first.path == again.path
    assert sorted(index.rows_read) == list(range(5))
    others = [
        open_store(index, tmp_path, split="test"),
        open_store(index, tmp_path, panels=(0, 1, 2)),
        open_store(index, tmp_path, image_size=(24, 20)),
        open_store(index, tmp_path, standardize=False),
        open_store(fake_index(5, seed=1), tmp_path),
    ]
    assert len({store.path for store in (first, *others)}) == 6


def _open_in_process(folder: Path, queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    index = fake_index(30)
    store = open_store(index, folder)
    queue.put((len(index.rows_read), store.take(np.arange(30)).tobytes()))


def test_processes_that_come_together_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_open_in_process, args=(tmp_path, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(read for read, _ in results) == [0, 0, 30]
    assert len({images for _, images in results}) == 1


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(*_: object) -> np.ndarray:
        raise DataError("record 3 of train00-5.tfrec: broken")

    with pytest.raises(DataError, match="record 3"):
        open_store(fake_index(5), tmp_path, read=fail)
    assert not [path for path in (tmp_path / "disk").iterdir() if path.suffix != ".lock"]


def test_no_room_names_the_bytes_and_the_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "_available", lambda home: 1000)
    with pytest.raises(ConfigError, match=r"cache: disk needs 0\.00 GB in .* lower image_size"):
        open_store(fake_index(5), tmp_path)
    assert open_store(fake_index(5), tmp_path, policy="auto").images is None


def test_no_room_while_reserving_is_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match="cache: memory needs"):
        open_store(fake_index(5), tmp_path, policy="memory")


def test_auto_leaves_half_of_the_memory_and_goes_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 5 * 12 * 9 * 3 + 128
    monkeypatch.setattr(panels, "_available", lambda home: size + 10)
    store = open_store(fake_index(5), tmp_path, policy="auto")
    assert store.path is not None
    assert store.path.parent == tmp_path / "disk"


def test_memory_without_shared_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(ConfigError, match="cache: memory needs"):
        open_store(fake_index(5), tmp_path, policy="memory")
    assert open_store(fake_index(5), tmp_path, policy="auto").path is not None


def test_only_unused_stores_are_removed(tmp_path: Path) -> None:
    used = open_store(fake_index(5), tmp_path)
    unused = open_store(fake_index(5, seed=1), tmp_path)
    assert used.path is not None
    assert unused.path is not None
    foreign = used.path.with_name("mine.npy")
    foreign.write_bytes(b"")
    abandoned = used.path.with_name(f"train-{'0' * 24}.part")
    abandoned.write_bytes(b"")
    unused._file.close()  # type: ignore[union-attr]
    panels.remove_unused(tmp_path / "disk")
    assert used.path.exists()
    assert foreign.exists()
    assert not unused.path.exists()
    assert not abandoned.exists()


def test_a_folder_that_another_run_removes_while_we_wait_for_its_lock_is_made_again(tmp_path: Path) -> None:
    store = open_store(fake_index(5), tmp_path)
    assert store.path is not None
    with ThreadPoolExecutor(1) as pool, filelock.FileLock(f"{store.path}.lock"):
        again = pool.submit(open_store, fake_index(5), tmp_path)
        time.sleep(0.3)  # it waits now, or else there is nothing to see
        shutil.rmtree(tmp_path / "disk")
    assert again.result().images is not None
    with filelock.FileLock(f"{store.path}.lock", timeout=0):  # which is free again
        pass


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train split has no rows"):
        open_store(fake_index(0), tmp_path)


def test_a_closed_store_and_all_about_it_is_removed(tmp_path: Path) -> None:
    store = open_store(fake_index(4), tmp_path)
    assert store.path is not None
    panels.remove_unused(store.path.parent)
    assert store.path.exists()
    taken = store.take(np.arange(3))
    store.close()
    panels.remove_unused(store.path.parent)
    assert not store.path.parent.exists()
    np.testing.assert_array_equal(store.take(np.arange(3)), taken)


@pytest.mark.parametrize("damage", ["content", "checksum"])
def test_a_damaged_store_is_built_again(tmp_path: Path, damage: str) -> None:
    first = open_store(fake_index(4), tmp_path)
    assert first.path is not None
    expected = first.take(np.arange(3)).copy()
    first.close()
    if damage == "content":
        content = bytearray(first.path.read_bytes())
        content[200] ^= 1
        first.path.write_bytes(content)
    else:
        first.path.with_suffix(".crc32c").unlink()
    again = open_store(fake_index(4), tmp_path)
    np.testing.assert_array_equal(again.take(np.arange(3)), expected)
    again.close()


def test_read_only_shared_memory_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "SHARED_MEMORY", Path("/proc"))  # where nobody can make a file
    store = open_store(fake_index(3), tmp_path, policy="auto")
    assert store.path is not None
    assert store.path.is_relative_to(tmp_path / "disk")
    assert panels.free_bytes()["memory"] == 0
    with pytest.raises(ConfigError, match="cache: memory needs /proc, which is read-only on this node"):
        open_store(fake_index(3), tmp_path, policy="memory")


def test_a_file_system_without_flock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"has no locks \(Function not implemented\).* Set TMPDIR"):
        open_store(fake_index(3), tmp_path)
    panels.remove_unused(tmp_path / "disk")  # it cannot tell, so it leaves them
    assert list((tmp_path / "disk").glob("*.npy"))
