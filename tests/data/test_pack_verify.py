"""Packing a Kaggle-like folder, and verifying sets that are sound and sets that are not."""

import os

import numpy as np
import pandas as pd
import pytest

from setibl_ray.core.errors import DataError
from setibl_ray.seti.formats.records import quantise
from setibl_ray.seti.formats.shards import iter_records, read_index, read_panels
from setibl_ray.seti.making.pack import pack, widen
from setibl_ray.seti.making.verify import verify
from setibl_ray.seti.observations import conditioning

N_TRAIN, N_TEST = 30, 8


@pytest.fixture
def kaggle(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "kaggle"
    ids = {"train": [], "test": []}
    for split, n in (("train", N_TRAIN), ("test", N_TEST)):
        for i in range(n):
            name = f"{i % 4:x}{split[1]}{i:03x}"
            path = root / split / name[0] / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, rng.normal(size=(6, 20, 16)).astype(np.float16))
            ids[split].append(name)
    targets = np.arange(N_TRAIN) % 5 == 0
    pd.DataFrame({"id": ids["train"], "target": targets.astype(int)}).to_csv(
        root / "train_labels.csv", index=False
    )
    pd.DataFrame({"id": ids["test"], "target": 0.5}).to_csv(root / "sample_submission.csv", index=False)
    return root


def test_pack_stratifies_and_keeps_every_cadence(kaggle, tmp_path):
    out = pack(kaggle, tmp_path / "out", n_shards=3, n_test_shards=2, n_processes=1)
    index = read_index(out)
    labels = pd.read_csv(kaggle / "train_labels.csv", dtype={"id": str}).set_index("id")["target"]
    packed = index.train.set_index("image_id")["target"]
    pd.testing.assert_series_equal(
        packed.sort_index(), labels.sort_index(), check_names=False, check_dtype=False, check_index_type=False
    )
    assert (
        list(index.train.groupby("shard")["target"].agg(["size", "sum"]).itertuples(index=False, name=None))
        == [(10, 2)] * 3
    )
    assert index.train["group"].isna().all()  # a folder is but the beginning of its ids
    record = next(iter_records(index.shards[0]))
    source = np.load(kaggle / "train" / record.image_id[0] / f"{record.image_id}.npy")
    np.testing.assert_array_equal(record.panels, quantise(source.astype(np.float32)))
    assert verify(str(out)).problems == ()


def test_pack_is_the_same_over_processes(kaggle, tmp_path):
    a = pack(kaggle, tmp_path / "a", n_shards=3, n_test_shards=2, n_processes=1)
    b = pack(kaggle, tmp_path / "b", n_shards=3, n_test_shards=2, n_processes=2)
    for path in a.iterdir():
        assert path.read_bytes() == (b / path.name).read_bytes()


def test_every_half_float_is_widened_as_numpy_does():
    half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = np.isfinite(half)
    np.testing.assert_array_equal(widen(half[finite]), half[finite].astype(np.float32))
    assert np.array_equal(np.signbit(widen(half[finite])), np.signbit(half[finite]))  # -0 too
    assert np.isposinf(widen(half)[~finite]).all()


def refused(kaggle, tmp_path, message):
    with pytest.raises(DataError, match=message):
        pack(kaggle, tmp_path / "out", n_shards=2, n_test_shards=2, n_processes=1)
    assert not (tmp_path / "out").exists()


def test_pack_refusals_name_the_file(kaggle, tmp_path):
    """Those that docs/bad-input.md does not list."""
    (kaggle / "sample_submission.csv").write_text("id,target\nnope,0.5\n")
    files = r"sample_submission.csv: 1 ids have no file .* and 8 files under .*test are not listed"
    refused(kaggle, tmp_path, files)
    (kaggle / "train_labels.csv").unlink()
    (kaggle / "train_labels.csv").mkdir()
    refused(kaggle, tmp_path, "train_labels.csv could not be read: Is a directory")


def packed_groups(kaggle, out, **options):
    index = read_index(pack(kaggle, out, n_shards=2, n_test_shards=2, n_processes=1, **options))
    return [dict(zip(table["image_id"], table["group"])) for table in (index.train, index.test)]


def test_folders_that_sort_by_more_than_ids_are_groups(kaggle, tmp_path):
    (kaggle / "train" / "1").rename(kaggle / "train" / "HIP99427")
    train, test = packed_groups(kaggle, tmp_path / "out")
    assert (train["1r001"], train["0r000"], test["0e000"]) == ("HIP99427", "0", "0")


def test_a_column_brings_groups(kaggle, tmp_path):
    table = pd.read_csv(kaggle / "train_labels.csv", dtype=str)
    table.assign(
        target=table["target"] + ".0", star=["", *(f"star, {i % 3}" for i in range(N_TRAIN - 1))]
    ).to_csv(kaggle / "train_labels.csv", index=False)
    train, test = packed_groups(kaggle, tmp_path / "out", group_column="star")
    assert train["0r000"] is None
    assert train["1r001"] == "star, 0"
    assert set(test.values()) == {None}
    with pytest.raises(DataError, match="expected columns id, target, night, found id, target, star"):
        packed_groups(kaggle, tmp_path / "other", group_column="night")


def test_links_to_folders_are_followed_and_hidden_files_left_out(kaggle, tmp_path):
    (kaggle / "train" / "2").rename(tmp_path / "elsewhere")
    (kaggle / "train" / "2").symlink_to(tmp_path / "elsewhere")
    (kaggle / "train" / "3" / "up").symlink_to(kaggle / "train")  # a loop
    (kaggle / "train" / "1" / "._1r001.npy").write_bytes(b"\0\5\x16\7 of macOS")
    (kaggle / "test" / "__MACOSX").mkdir()
    (kaggle / "test" / "__MACOSX" / "0e000.npy").write_bytes(b"")
    said = []
    train, test = packed_groups(kaggle, tmp_path / "out", say=said.append)
    assert (len(train), len(test)) == (N_TRAIN, N_TEST)
    assert [line.split(": ")[1].split(" (")[0] for line in said] == ["1 hidden .npy files are left out"] * 2


def test_what_is_called_npy_and_is_none(kaggle, tmp_path):
    path = kaggle / "train" / "1" / "1r001.npy"
    for shape in ((6, 2**40, 2**40), (6, 10**30, 2)):  # more bytes than 64 bits can say
        with path.open("wb") as stream:
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.write(bytes(1000))
        refused(kaggle, tmp_path, r"1r001.npy: its header promises more than its \d+ bytes hold")
    path.unlink()
    odd = os.fsencode(path).replace(b"1r001", b"1r\xff")
    with open(odd, "wb"):
        pass
    refused(kaggle, tmp_path, "is no UTF-8 text. Rename it")


def test_pack_test_files_only_and_robustly(kaggle, tmp_path):
    for path in kaggle.rglob("train_labels.csv"):
        path.unlink()
    for path in (kaggle / "train").rglob("*.npy"):
        path.unlink()
    out = tmp_path / "out"
    pack(kaggle, out, n_test_shards=1, n_processes=1, test_only=True, robust=True, df_hz=1.4, dt_s=2.0)
    index = read_index(out, needs="test")
    assert (len(index.train), len(index.shards)) == (0, 1)
    assert index.metadata["conditioning"] == conditioning.definition()
    assert (index.metadata["df_hz"], index.metadata["dt_s"]) == (1.4, 2.0)
    cadence = np.load(next((kaggle / "test").rglob(f"{index.test['image_id'][0]}.npy"))).astype(np.float32)
    expected = conditioning.to_bytes(conditioning.condition(cadence).z)
    np.testing.assert_array_equal(read_panels(index, "test", [0], range(6))[0].transpose(2, 0, 1), expected)
    assert verify(str(out)).problems == ()
    with pytest.raises(DataError, match=r"holds no .npy file"):
        pack(kaggle, tmp_path / "other", n_processes=1)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_any_float_is_packed_robustly(tmp_path, dtype):
    (tmp_path / "test").mkdir()
    power = np.random.default_rng(0).gamma(20, size=(6, 32, 64)).astype(dtype)
    np.save(tmp_path / "test" / "a.npy", power)
    pack(tmp_path, tmp_path / "out", n_test_shards=1, n_processes=1, test_only=True, robust=True)
    index = read_index(tmp_path / "out", needs="test")
    expected = conditioning.to_bytes(conditioning.condition(power.astype(np.float32)).z)
    np.testing.assert_array_equal(read_panels(index, "test", [0], range(6))[0].transpose(2, 0, 1), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "test" / "a.npy"), power)


def test_too_many_shards(kaggle, tmp_path):
    with pytest.raises(DataError, match="8 test files do not fill 10 shards"):
        pack(kaggle, tmp_path / "out", n_shards=2)


def test_verify_finds_a_sound_set_sound(small_set, png_set):
    report = verify(str(small_set))
    assert report.problems == ()
    assert report.fingerprint == read_index(small_set).fingerprint
    assert verify(str(png_set)).problems == ()


def test_verify_lists_every_problem(small_set, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for path in small_set.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    first = folder / "train00-12.tfrec"
    content = bytearray(first.read_bytes())
    content[200] ^= 4
    content[-200] ^= 4
    first.write_bytes(content)
    cut = folder / "test01-6.tfrec"
    cut.write_bytes(cut.read_bytes()[:-10])
    (folder / "train03-12.tfrec").rename(folder / "train03-13.tfrec")
    problems = "\n".join(verify(str(folder)).problems)
    for expected in (
        "train00-12.tfrec record 0: bad checksum of the payload",
        "train00-12.tfrec record 11: bad checksum of the payload",
        "train00-12.tfrec: dataset.json says CRC32C",
        "test01-6.tfrec record 5: truncated payload",
        "train03-13.tfrec: its name says 13 records, it holds 12",
        "train03-12.tfrec is listed in dataset.json but missing",
        "train03-13.tfrec is not listed",
    ):
        assert expected in problems


def test_verify_notices_a_lost_index(small_set, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for path in small_set.iterdir():
        if path.name != "index.csv.gz":
            (folder / path.name).write_bytes(path.read_bytes())
    assert verify(str(folder)).problems == (
        "index.csv.gz is missing or damaged; readers scan the shards instead",
    )
