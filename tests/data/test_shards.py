"""The index of a folder of shards: what it holds, what it refuses, and random access."""

import gzip
import json
import pickle
import shutil
import zlib

import fsspec
import numpy as np
import pandas as pd
import pytest
from data_sets import SMALL, png_features, write_frames

from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.seti.formats import shards
from setibl_ray.seti.formats.records import Record, encode_record
from setibl_ray.seti.formats.shards import iter_records, list_shards, read_index, read_panels
from setibl_ray.seti.formats.tfrecord import encode_example, frame
from setibl_ray.seti.making.verify import verify


def equal(a, b):
    pd.testing.assert_frame_equal(a.train, b.train)
    pd.testing.assert_frame_equal(a.test, b.test)
    assert a.fingerprint == b.fingerprint


def test_index_is_the_same_stored_or_scanned(small_set, tmp_path):
    stored = read_index(small_set)
    shutil.copytree(small_set, tmp_path / "bare", ignore=shutil.ignore_patterns("index*", "*.json"))
    scanned = read_index(tmp_path / "bare")
    equal(stored, scanned)
    assert stored.metadata["dt_s"] == SMALL.dt_s
    assert scanned.metadata == {}
    assert (stored.storage, stored.panel_shape) == ("cadence", (32, 24))
    assert len(stored.train) == 48
    assert stored.train["target"].dtype == np.int8
    assert "target" not in stored.test
    assert stored.train["snr"].notna().equals(stored.train["kind"] != "haystack")


def test_stored_index_spares_reading_shards_and_is_dropped_when_it_does_not_fit(small_set, tmp_path):
    folder = shutil.copytree(small_set, tmp_path / "set")
    shard = folder / "train00-12.tfrec"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)  # same size: the index is believed, reading pixels is not
    index = read_index(folder)
    with pytest.raises(DataError, match=r"train00-12.tfrec record 0 has changed"):
        read_panels(index, "train", [0], (0,))
    (folder / "index.csv.gz").write_bytes(b"other")
    with pytest.raises(DataError, match=r"train00-12.tfrec record 0: bad checksum of the payload"):
        read_index(folder)


def test_index_pickles(small_set):
    index = read_index(small_set)
    back = pickle.loads(pickle.dumps(index))
    equal(index, back)
    assert back.shards == index.shards


def test_ids_and_groups_that_look_like_numbers_stay_text(tmp_path):
    from setibl_ray.seti.formats.writer import ShardWriter, write_dataset

    panels = np.zeros((6, 4, 5), np.uint8)
    with ShardWriter(tmp_path, "train", 0) as writer:
        for name, group in (("000123", "NA"), ("1e5", "nan"), ("NA", None), ('a,"b', "0012")):
            writer.write(Record(name, 0, group, float("nan"), None, panels))
    write_dataset(tmp_path, [writer.written], (4, 5), {})
    index = read_index(tmp_path)
    assert list(index.train["image_id"]) == ["000123", "1e5", "NA", 'a,"b']
    assert list(index.train["group"]) == ["NA", "nan", None, "0012"]
    (tmp_path / "index.csv.gz").unlink()
    equal(index, read_index(tmp_path))


@pytest.mark.parametrize(("gap", "block"), [(1 << 20, 32 << 20), (-1, 32 << 20), (1 << 20, 10_000)])
def test_random_access_equals_reading_in_order(small_set, monkeypatch, gap, block):
    # With -1 and 10,000 not all rows of a shard come with one read.
    monkeypatch.setattr(shards, "_GAP_BYTES", gap)
    monkeypatch.setattr(shards, "_BLOCK_BYTES", block)
    index = read_index(small_set)
    panels = np.stack([record.panels for shard in index.shards_of("train") for record in iter_records(shard)])
    rows = np.random.default_rng(0).integers(0, 48, 60)
    np.testing.assert_array_equal(
        read_panels(index, "train", rows, (4, 0, 1)), panels[rows][:, [4, 0, 1]].transpose(0, 2, 3, 1)
    )
    assert read_panels(index, "test", [], range(6)).shape == (0, 32, 24, 6)


def test_png_shards(png_set):
    index = read_index(png_set)
    assert (index.storage, index.panel_shape) == ("png", (20, 16))
    assert list(index.train["image_id"]) == ["train00", "train01", "train02", "train10", "train11", "train12"]
    assert list(index.train["target"]) == [0, 1, 0, 1, 0, 1]
    assert index.train["group"].isna().all()
    record = next(iter_records(index.shards[1]))
    np.testing.assert_array_equal(
        read_panels(index, "train", [3], (4, 0))[0], record.panels[[2, 0]].transpose(1, 2, 0)
    )
    with pytest.raises(ConfigError, match="PNG shards hold the ON panels only"):
        read_panels(index, "train", [0], range(6))


def test_remote_folder_gives_the_same_index_and_pixels(small_set):
    fs = fsspec.filesystem("memory")
    try:
        for path in small_set.iterdir():
            fs.pipe(f"/bucket/set/{path.name}", path.read_bytes())
        local, remote = read_index(small_set), read_index("memory://bucket/set")
        equal(local, remote)
        assert remote.shards[0].path.startswith("memory://")
        np.testing.assert_array_equal(
            read_panels(remote, "test", [3, 0], (0, 5)), read_panels(local, "test", [3, 0], (0, 5))
        )
        fs.rm("/bucket/set/index.csv.gz")
        equal(local, read_index("memory://bucket/set"))
    finally:
        fs.rm("/bucket", recursive=True)


def test_no_test_shards_give_an_empty_table(png_set):
    (png_set / "test00-2.tfrec").unlink()
    index = read_index(png_set)
    assert len(index.test) == 0
    assert list(index.test) == [name for name in index.train if name != "target"]


def test_skipped_records_are_listed(png_set):
    shard = png_set / "train01-3.tfrec"
    content = bytearray(shard.read_bytes())
    content[50] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train01-3.tfrec record 0: bad checksum"):
        read_index(png_set)
    write_frames(png_set / "train00-3.tfrec", [png_features("a", 1), png_features("b"), png_features("c", 0)])
    index = read_index(png_set, on_bad_record="skip")
    assert [bad[:2] for bad in index.bad_records] == [("train00-3.tfrec", 1), ("train01-3.tfrec", 0)]
    assert "expected target 0 or 1 in a train record" in index.bad_records[0].reason
    assert list(index.train["image_id"]) == ["a", "c", "train11", "train12"]
    assert list(index.train["record"]) == [0, 2, 1, 2]
    shard.write_bytes(content[:-3])
    assert [bad.record for bad in read_index(png_set, on_bad_record="skip").bad_records] == [1, 0, 2]


def test_a_target_in_test_shards_is_passed_over_with_a_note(png_set):
    write_frames(png_set / "test00-2.tfrec", [png_features("t0", -1), png_features("t1", 0)])
    index = read_index(png_set)
    assert index.notes == (
        "1 test records have a target that is neither 0 nor 1, such as -1; it is not used",
    )
    assert verify(str(png_set)).notes == index.notes


@pytest.mark.parametrize(("name", "compress"), [("GZIP", gzip.compress), ("ZLIB", zlib.compress)])
def test_a_compressed_shard_is_named_as_one(png_set, name, compress):
    shard = png_set / "train01-3.tfrec"
    shard.write_bytes(compress(shard.read_bytes()))
    for read in (
        read_index,
        lambda root: verify(str(root)),
        lambda root: read_index(root, on_bad_record="skip"),
    ):
        with pytest.raises(DataError, match=f"train01-3.tfrec is compressed with {name}"):
            read(png_set)


def test_images_are_decoded_before_they_are_needed(png_set):
    """Labels and shape can be read of an image without pixels, so nothing else would notice it."""
    last = {**png_features("z", 0)}
    last["image"] = last["image"][:60] + bytes(len(last["image"]) - 60)
    shard = png_set / "train01-39.tfrec"
    (png_set / "train01-3.tfrec").unlink()
    write_frames(shard, [*(png_features(f"id{i}", 1) for i in range(38)), last])
    read_index(png_set)
    read_index(png_set, decode="some")  # every other image; the last is not among them
    with pytest.raises(DataError, match=r"train01-39.tfrec record 38: undecodable image"):
        read_index(png_set, decode="all")
    write_frames(shard, [png_features("first", 0), last, *(png_features(f"id{i}", 1) for i in range(37))])
    with pytest.raises(DataError, match=r"train01-39.tfrec record 1: undecodable image"):
        read_index(png_set, decode="some")
    (problem,) = verify(str(png_set)).problems
    assert problem.startswith("train01-39.tfrec record 1: undecodable image")


def test_refusals(png_set, tmp_path):
    def refused(message, folder=png_set):
        with pytest.raises(DataError, match=message):
            read_index(folder)

    refused("nowhere is not a folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("empty has no train shards", tmp_path / "empty")
    third = write_frames(png_set / "train02-2.tfrec", [png_features("x", 0)])
    refused("train02-2.tfrec: its name says 2 records, it holds 1")
    third.rename(png_set / "train03-1.tfrec")
    refused("train02 is missing among 3 train shards")
    third = (png_set / "train03-1.tfrec").rename(png_set / "train01-1.tfrec")
    refused("train shard 01 appears twice")
    third = third.rename(png_set / "train2-1.tfrec")
    refused("train2-1.tfrec: expected a name like train00-50.tfrec")
    third = third.rename(png_set / "train02-1.tfrec")
    write_frames(third, [png_features("train11", 0)])
    refused("image_id train11 belongs to 2 records: train01-3.tfrec record 1, train02-1.tfrec record 0")
    write_frames(third, [png_features("test1", 0)])
    refused("image_id test1 .* train02-1.tfrec record 0, test00-2.tfrec record 1")
    write_frames(third, [png_features("x")])
    refused(r"train02-1.tfrec record 0 \(x\): expected target 0 or 1 in a train record")
    write_frames(third, [png_features("x", 0, shape=(20, 17))])
    refused("one storage and panel shape, found png 20x16 in .* png 20x17 in train02-1.tfrec")
    third.write_bytes(frame(encode_record(Record("x", 0, None, 0.0, None, np.zeros((6, 20, 16), np.uint8)))))
    refused("found cadence 20x16 in train02-1.tfrec, png 20x16 in test00-2.tfrec")
    third.write_bytes(frame(encode_example({"image_id": "x", "target": 0})))
    refused(r"train02-1.tfrec record 0 \(x\): expected a field cadence")
    third.unlink()
    (png_set / "dataset.json").write_text("{")
    refused("dataset.json is not JSON")
    (png_set / "dataset.json").write_text(json.dumps({"format_version": 99}))
    refused("expected format_version 1, found 99")


def test_unknown_protocol_is_a_config_error():
    with pytest.raises(ConfigError, match="nonsense://x"):
        list_shards("nonsense://x")


def test_fingerprint_depends_on_content_and_order(png_set):
    before = read_index(png_set).fingerprint
    first, second = png_set / "train00-3.tfrec", png_set / "train01-3.tfrec"
    first.rename(png_set / "tmp")
    second.rename(first)
    (png_set / "tmp").rename(second)
    assert read_index(png_set).fingerprint != before
