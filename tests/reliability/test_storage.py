"""A run folder that is full, read-only or somebody else's; locks on a disk and in an object store."""

import errno
import fcntl
import json
import os
import subprocess
import time
from contextlib import suppress

import fsspec
import pytest
from botocore.exceptions import EndpointConnectionError
from datasets import TINY, copied
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from harness import leftovers, manifest, same_results
from standin import StandIn
from waiting import wait_for

from setibl_ray.core.errors import RunFolderError, StorageError
from setibl_ray.core.run import locks
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.seti.formats.shards import read_index, read_panels
from setibl_ray.seti.task import TASK


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
    """Returns (folder, fill): after `fill()` nothing more can be written below the folder, until `fill(False)`.

    As root a tmpfs of its own; else writes that fail as on a full disk.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
        ).returncode
    )

    def fill(full=True):
        ballast = folder / "ballast"
        if not full:
            ballast.unlink(missing_ok=True)
            monkeypatch.undo()
        elif mounted:
            with suppress(OSError), ballast.open("wb", buffering=0) as stream:
                while True:
                    stream.write(bytes(4096))
        else:

            def no_space(_):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(os, "fsync", no_space)

    yield folder, fill
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_stops_the_run_and_resume_goes_on(full_disk, local_cv, undisturbed, capsys):
    folder, fill = full_disk
    out = folder / "run"

    def fills(work, steps):
        for number, step in enumerate(steps):
            if work.fold == 1 and number == 2:
                fill()
            yield step

    assert local_cv(out, task=StandIn(around=fills)) == 1
    said = capsys.readouterr().err
    assert "could not be written: No space left on device" in said
    assert "Everything before is kept. Resume with: python -m setibl_ray.cv --resume" in said
    fill(False)
    # manifest.json had no room either.
    left = {name for name in leftovers(out) if not name.endswith("fold.json")}
    assert left == {name for name in left if name.startswith("fold-1/state-")} != set()
    assert local_cv(out, "--resume") == 0
    same_results(undisturbed, out)
    assert leftovers(out) == []


def test_a_full_disk_is_found_before_training(full_disk, local_cv, capsys):
    folder, fill = full_disk
    fill()
    assert local_cv(folder / "run") == 2
    assert "could not be written: No space left on device" in capsys.readouterr().err


def test_a_read_only_place_is_found_before_training(local_cv, capsys):
    assert local_cv("/proc/run") == 2
    assert "/proc/run could not be written: " in capsys.readouterr().err


def test_two_drivers_on_one_object_store_folder(local_cv, capsys):
    fs = fsspec.filesystem("memory")
    with RunFolder("memory://bucket/run").locked():
        assert local_cv("memory://bucket/run") == 2
        said = capsys.readouterr().err
        assert f"memory://bucket/run is in use by process {os.getpid()} on " in said
        assert "two drivers on one run folder" in said
    assert not fs.exists("/bucket/run/.lock")


def test_an_abandoned_lock_object_is_taken_over(monkeypatch):
    fs = fsspec.filesystem("memory")
    lock = "/bucket/abandoned/.lock"
    gone = subprocess.Popen(["true"])
    gone.wait()
    for owner in (
        {"pid": gone.pid, "host": locks._owner()["host"], "time_s": time.time()},
        {"pid": 1, "host": "elsewhere", "time_s": time.time() - locks.ABANDONED_S - 1},
    ):
        fs.pipe_file(lock, str(owner).replace("'", '"').encode())
        with RunFolder("memory://bucket/abandoned").locked():
            pass
    for live in ({"pid": 1, "host": "elsewhere", "time_s": time.time()}, {"what": "is this"}):
        fs.pipe_file(lock, str(live).replace("'", '"').encode())
        with pytest.raises(RunFolderError, match="in use"), RunFolder("memory://bucket/abandoned").locked():
            pass


def test_a_store_that_ignores_create_does_not_overwrite_a_living_lock(monkeypatch):
    fs = fsspec.filesystem("memory")
    write = type(fs).pipe_file
    monkeypatch.setattr(type(fs), "pipe_file", lambda fs, path, value, **mode: write(fs, path, value))
    with RunFolder("memory://bucket/ignores").locked():
        mine = fs.cat_file("/bucket/ignores/.lock")
        with pytest.raises(RunFolderError, match="in use"), RunFolder("memory://bucket/ignores").locked():
            pass
        assert fs.cat_file("/bucket/ignores/.lock") == mine


@pytest.mark.parametrize("number", locks.NO_FLOCK)
def test_a_folder_on_a_file_system_without_flock_has_a_lock_object(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    out = tmp_path / "run"
    with RunFolder(str(out)).locked():
        assert (out / ".lock").exists()
        with (
            pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}"),
            RunFolder(str(out)).locked(),
        ):
            pass
    assert not out.exists()  # as it was made for the lock, and nothing else is in it
    out.mkdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    (out / ".lock").write_text(json.dumps(locks._owner() | {"pid": gone.pid}))
    with RunFolder(str(out)).locked():
        pass
    assert list(out.iterdir()) == []


def test_a_held_lock_object_is_kept_fresh(monkeypatch):
    monkeypatch.setattr(locks, "REFRESH_S", 0.01)
    fs = fsspec.filesystem("memory")
    with RunFolder("memory://bucket/fresh").locked():
        first = fs.cat_file("/bucket/fresh/.lock")
        wait_for(lambda: fs.cat_file("/bucket/fresh/.lock") != first)


@pytest.fixture
def outage(monkeypatch):
    """Returns a function after whose call no object store answers, until it is called with False."""
    real = MemoryFileSystem.pipe_file, MemoryFileSystem.cat_file

    def refuse(*_, **__):
        # No OSError, as most of what clients raise.
        raise EndpointConnectionError(endpoint_url="https://store")

    def begin(down=True):
        write, read = (refuse, refuse) if down else real
        monkeypatch.setattr(MemoryFileSystem, "pipe_file", write)
        monkeypatch.setattr(MemoryFileSystem, "cat_file", read)

    return begin


def test_an_object_store_that_is_out_of_reach_stops_the_run_and_resume_goes_on(
    local_cv, undisturbed, tmp_path, capsys, outage
):
    def breaks(work, steps):
        for number, step in enumerate(steps):
            if work.fold == 1 and number == 2:
                outage()
            yield step

    out = "memory://bucket/outage"
    assert local_cv(out, task=StandIn(around=breaks)) == 1
    said = capsys.readouterr().err
    assert "could not be written: Could not connect to the endpoint URL" in said
    assert "Everything before is kept. Resume with: python -m setibl_ray.cv --resume" in said
    assert local_cv(out, "--resume") == 2
    assert "could not be written: Could not connect to the endpoint URL" in capsys.readouterr().err
    outage(False)
    assert local_cv(out, "--resume") == 0
    fsspec.filesystem("memory").get("/bucket/outage", str(tmp_path / "run"), recursive=True)
    same_results(undisturbed, tmp_path / "run")
    assert leftovers(tmp_path / "run") == []


def test_a_lock_object_outlives_an_outage(monkeypatch, outage):
    monkeypatch.setattr(locks, "REFRESH_S", 0.01)
    fs = fsspec.filesystem("memory")
    with RunFolder("memory://bucket/outlives").locked():
        outage()
        time.sleep(0.1)  # some refreshes fail
        outage(False)
        before = fs.cat_file("/bucket/outlives/.lock")
        wait_for(lambda: fs.cat_file("/bucket/outlives/.lock") != before)


def test_shards_out_of_reach_are_tried_again_elsewhere(shards, monkeypatch):
    index = read_index(str(shards))
    monkeypatch.setattr(LocalFileSystem, "_open", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # what is no word of the storage's is nobody's to explain
        read_panels(index, "train", [0], [0])

    def refuse(*_, **__):
        raise EndpointConnectionError(endpoint_url="https://store")

    monkeypatch.setattr(LocalFileSystem, "_open", refuse)
    with pytest.raises(StorageError, match=r"tfrec could not be read: Could not connect") as caught:
        read_panels(index, "train", [0], [0])
    assert TASK.cause_of(caught.value) == "storage"


def test_a_whole_run_in_an_object_store(local_cv, undisturbed, tmp_path):
    fsspec.filesystem("memory").pipe_file("/bucket/keep", b"")
    assert local_cv("memory://bucket/whole") == 0
    fsspec.filesystem("memory").get("/bucket/whole", str(tmp_path / "run"), recursive=True)
    same_results(undisturbed, tmp_path / "run")
    assert leftovers(tmp_path / "run") == []


def test_bad_records_are_left_out_and_listed(local_cv, shards, tmp_path, capsys):
    data = copied(shards, tmp_path)
    damaged = sorted(data.glob("train02-*"))[0]
    row = read_index(str(shards)).train.query("shard == 2 and record == 4").iloc[0]
    content = bytearray(damaged.read_bytes())
    content[row["offset"] + row["length"] // 2] ^= 1
    damaged.write_bytes(content)
    run = (*TINY, "--folds", "5", "--epochs", "1", "--cpus-per-fold", "1", "--data", str(data))
    assert local_cv(tmp_path / "run", run=run) == 2
    assert damaged.name in capsys.readouterr().err
    code = local_cv(tmp_path / "run", "--on-bad-record", "skip", run=run)
    assert code == 0, capsys.readouterr().err
    data_then = manifest(tmp_path / "run")["data"]
    assert (data_then["options"]["on_bad_record"], data_then["n_bad_records"], data_then["n_train"]) == (
        "skip",
        1,
        59,
    )
    (bad,) = data_then["bad_records"]
    assert (bad["file"], bad["record"]) == (damaged.name, 4)
    assert "checksum" in bad["reason"].lower()
    assert "left out as unusable: 1 records" in capsys.readouterr().out
    assert local_cv(tmp_path / "run", "--resume", run=()) == 0  # the run knows that it skips
