"""Bad configs and bad data end with exit code 2 before any training, in one line that names what is wrong."""

import shutil

import numpy as np
import pytest
from datasets import cadence_shards, png_shards

from setibl_ray import cv
from setibl_ray.seti.formats.records import Record, encode_record
from setibl_ray.seti.formats.shards import shard_name
from setibl_ray.seti.formats.tfrecord import frame


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return cadence_shards(tmp_path_factory.mktemp("good") / "cadences")


def refused(capsys, *arguments):
    """The one line on stderr with which `cv` refuses; never a traceback."""
    assert cv.entry([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    return captured.err


def copied(good, tmp_path):
    """A copy without dataset.json, so that every shard is read."""
    data = tmp_path / "data"
    data.mkdir()
    for path in good.glob("*.tfrec"):
        shutil.copy(path, data)
    return data


def record(image_id="one", target=1, panels=None):
    return Record(
        image_id,
        target,
        None,
        float("nan"),
        None,
        np.zeros((6, 40, 36), np.uint8) if panels is None else panels,
    )


def put(data, split, index, *records):
    """Replace a shard by one with these records."""
    for path in data.glob(f"{split}{index:02d}-*"):
        path.unlink()
    path = data / shard_name(split, index, len(records))
    path.write_bytes(b"".join(frame(encode_record(r)) for r in records))


BASE = ("--model", "efficientnet-nano", "--weights", "none", "--image-size", "40x36", "--batch-size", "8")


def test_fields(capsys, good, tmp_path):
    base = (*BASE, "--data", good, "--out", tmp_path / "run", "--runner", "local")
    assert "--fold 3" in refused(capsys, *base, "--fold", "3")
    assert "did you mean --cpus-per-fold or --devices" in refused(capsys, *base, "--workers-per-fold", 2)
    assert "did you mean --schedule.lr-max or" in refused(capsys, *base, "--schedule.lr-mx", 1)
    assert "(see --help)" in refused(capsys, *base, "--nothing-like-it", 1)
    assert "folds: 7 folds need at least 7 training shards" in refused(capsys, *base, "--folds", 7)
    (tmp_path / "size.yaml").write_text("image-size: large\nbatch-size: 512\n")
    assert "image-size: expected HEIGHTxWIDTH" in refused(
        capsys, *base[:4], *base[8:], "--config", tmp_path / "size.yaml"
    )
    (tmp_path / "batch.yaml").write_text("batch-size: 512\n")
    assert "batch-size: fold 0 trains on" in refused(
        capsys, *base[:6], *base[8:], "--config", tmp_path / "batch.yaml"
    )
    assert "not a file" in refused(capsys, *base, "--weights", tmp_path / "absent.h5")
    assert "no ImageNet weights for --model efficientnet-nano" in refused(
        capsys, *base, "--weights", "imagenet"
    )
    assert "--resume needs --out" in refused(capsys, *BASE, "--data", good, "--resume")
    assert "holds no run" in refused(capsys, *base, "--resume")
    (tmp_path / "typo.yaml").write_text("augment: {strenght: 1}\n")
    assert "augment.strenght" in refused(capsys, *base, "--config", tmp_path / "typo.yaml")
    assert "key=value" in refused(capsys, *base, "--label", "zone")
    assert not (tmp_path / "run").exists()


def test_a_head_and_weights_for_six_panels_are_refused_for_three(capsys, tmp_path):
    data = cadence_shards(tmp_path / "six")
    arguments = [*BASE, "--data", data, "--out", tmp_path / "run", "--layout", "on3", "--folds", 3]
    said = refused(capsys, *arguments, "--head", "on-off")
    assert "head: on-off compares six panels, those of --layout all6; got on3" in said
    said = refused(capsys, *arguments, "--weights", "cadences")
    assert "weights: cadences are for the model, layout and head efficientnet-nano, all6, on-off; got" in said


def test_layout_that_the_shards_cannot_give(capsys, good, tmp_path):
    data = png_shards(tmp_path / "png", good)
    said = refused(capsys, *BASE, "--data", data, "--out", tmp_path / "run", "--layout", "all6", "--folds", 3)
    assert "layout: all6 needs all six panels" in said


def test_data(capsys, good, tmp_path):
    def cv_on(data):
        return refused(
            capsys, *BASE, "--data", data, "--out", tmp_path / "run", "--runner", "local", "--folds", 3
        )

    assert str(tmp_path / "absent") in cv_on(tmp_path / "absent")
    data = copied(good, tmp_path)

    truncated = sorted(data.glob("train02-*"))[0]
    truncated.write_bytes(truncated.read_bytes()[:-100])
    said = cv_on(data)
    assert truncated.name in said
    assert "record 9" in said

    put(data, "train", 2, record("a", 0), record("b", 1), record("c", None))
    said = cv_on(data)
    assert "train02-3.tfrec" in said
    assert "record 2" in said
    assert "target" in said

    put(data, "train", 2, record("a", 0), record("b", 1), record("a", 0))
    assert "image_id a belongs to 2 records: train02-3.tfrec record 0, train02-3.tfrec record 2" in cv_on(
        data
    )

    put(data, "train", 2, record("a", 0), record("b", 1))
    put(data, "test", 0, record("a", None))
    said = cv_on(data)
    assert "a" in said
    assert "test" in said
    assert not (tmp_path / "run").exists()


def test_one_class_in_a_fold(capsys, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for shard in range(3):
        put(data, "train", shard, *(record(f"{shard}-{i}", int(shard > 0)) for i in range(12)))
    said = refused(
        capsys, *BASE, "--data", data, "--out", tmp_path / "run", "--runner", "local", "--folds", 3
    )
    assert "the held-out part has only target" in said
