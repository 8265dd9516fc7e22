"""Every bad input that was thought of: one line, exit code 2, nothing written. The table is docs/bad-input.md.

WRITE_DOCS=1 pytest tests/reliability/test_bad_inputs.py      # after a message has changed
"""

import gzip
import io
import json
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import s3fs
from datasets import TINY, copied, put, record
from standin import StandIn

from setibl_ray import cv, predict
from setibl_ray import data as data_command
from setibl_ray.core.run.folder import FORMAT
from setibl_ray.seti.formats.shards import read_index
from setibl_ray.seti.formats.tfrecord import encode_example, frame

PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"
CASES = {}
COMMANDS = {
    "cv": cv.entry,
    "data pack": data_command.entry,
    "data verify": data_command.entry,
    "predict": predict.entry,
}


def case(group, what):
    """A case of a group, which is a command's name or something about `cv`: (data, folder) -> its arguments."""

    def add(build):
        assert (group, what) not in CASES
        CASES[group, what] = build
        return build

    return add


def flags(what, *more):
    case("flags", what)(lambda data, folder: ["--data", data, *more])


def config(what, text):
    def build(data, folder):
        (folder / "config.yaml").write_text(text)
        return ["--data", data, "--config", folder / "config.yaml"]

    case("config file", what)(build)


flags("a flag that does not exist", "--fold", 3)
flags("a misspelt section field", "--augment.strenght", 1)
flags("a flag that is like several", "--workers-per-fold", 2)
flags("a flag that is like none", "--nothing-like-it", 1)
flags("fewer than two folds", "--folds", 1)
flags("more folds than shards", "--folds", 7)
flags("text for a number", "--epochs", "many")
flags("a negative magnitude", "--augment.shear", -1)
flags("a probability above 1", "--augment.flip", 1.5)
flags("an image size without a height", "--image-size", "256")
flags("an image size too small to convolve", "--image-size", "16x16")
flags("an unknown model", "--model", "resnet5000")
flags("two values for three folds", "--folds", 3, "--epochs", "1,2")
flags("fold weights that sum to nothing", "--folds", 3, "--fold-weights", "0,0,0")
flags("a batch larger than a fold's training set", "--batch-size", 512)
flags("a weights file that is not there", "--weights", "absent.h5")
flags("pretrained weights that nobody trained", "--weights", "imagenet")
flags("no backbone and the plain head", "--model", "none", "--head", "plain")
flags("ImageNet weights of no backbone", "--model", "none", "--weights", "imagenet")
flags("the on-off head and three panels", "--head", "on-off", "--layout", "on3")
flags("the package's weights and three panels", "--weights", "cadences", "--layout", "on3")
flags("a weight that is no number", "--folds", 3, "--fold-weights", "1,nan,1")
flags("a flag without its value", "--epochs")
flags("a value for a switch", "--resume", "yes")
flags("nothing for a folder", "--out", "")
flags("more folds than groups", "--split", "group", "--folds", 30)
flags("a label without a value", "--label", "zone")
flags("a time limit of nothing", "--fold-timeout-s", 0)
flags("what to do about bad records, misspelt", "--on-bad-record", "ignore")

flags("an epoch less than one", "--epochs", 0)
flags("a batch of nothing", "--batch-size", 0)
flags("a negative seed", "--seed", -1)
flags("a negative number of views", "--tta", -1)
flags("more folds than anybody needs", "--folds", 1001)
flags("smoothing that leaves nothing of a label", "--label-smoothing", 1)
flags("a momentum that never follows", "--bn-momentum", 1)
flags("an unknown device", "--device", "cuda")
flags("an unknown layout", "--layout", "rgb")
flags("an unknown loss", "--loss", "hinge")
flags("an unknown cache", "--cache", "ram")
flags("an unknown split", "--split", "random")
flags("an unknown runner", "--runner", "spark")
flags("an unknown calibration", "--calibrate", "beta")
flags("unknown post-processing", "--postprocess", "best")
flags("post-processing in a module that is not there", "--postprocess", "absent_module:function")
flags("post-processing by what is no function", "--postprocess", "math:pi")
flags("a learning rate of nothing", "--schedule.lr-max", 0)
flags("a learning rate that grows for ever", "--schedule.decay", 2)
flags("a learning rate that is no number", "--schedule.lr-min", "nan")
flags("more squares than an image has room for", "--augment.dropout-count", 999)
flags("an image size of three numbers", "--image-size", "91x85x3")
flags("three image sizes for two folds", "--folds", 2, "--image-size", "40x36,48x48,64x64")
flags("no workers", "--workers", 0)
flags("a negative number of retries", "--max-retries", -1)
flags("no time to connect", "--connect-timeout-s", 0)
flags("a word that belongs to no flag", "shards")
flags("an assumption without --plan", "--assume.rows", "1000+100")
flags("a URL with a password", "--out", "s3://KEY:SECRET@bucket/run")

config("not YAML", "folds: [3\n")
config("a Python object", "seed: !!python/object/apply:os.getcwd []\n")
config("a tab for indentation", "augment:\n\tshear: 1\n")
config("no number", "seed: .nan\n")
config("a list for one value", "seed: [1, 2]\n")
config("a section for one value", "seed: {a: 1}\n")
config("a field with and without its section", "augment.shear: 1\naugment: {shear: 2}\n")
config("a date for a number", "epochs: 2021-07-29\n")
config("two documents", "folds: 3\n---\nfolds: 5\n")
config("a name with a terminal escape", '"\\e[31mfolds": 3\n')
config("YAML, but a list", "- folds\n")
config("an unknown field", "augment: {strenght: 1}\n")
config("infinity", "schedule: {lr_max: .inf}\n")
config("a field twice", "folds: 3\nseed: 1\nfolds: 5\n")
config("a field in both its spellings", "batch-size: 8\nbatch_size: 16\n")
config("a field that YAML takes for a number", "3: 5\n")
config("a section that is not one", "augment: 3\n")
config("an option of the command", "workers: 3\n")


@case("flags", "a weights file that is not one")
def _(data, folder):
    (folder / "weights.h5").write_text("weights")
    return ["--data", data, "--weights", folder / "weights.h5"]


@case("config file", "bytes that are no text")
def _(data, folder):
    (folder / "config.yaml").write_bytes(b"folds: \xff")
    return ["--data", data, "--config", folder / "config.yaml"]


@case("config file", "no such file")
def _(data, folder):
    return ["--data", data, "--config", folder / "absent.yaml"]


@case("config file", "a folder")
def _(data, folder):
    return ["--data", data, "--config", folder]


@case("cluster", "an address that refuses")
def _(data, folder):
    return ["--data", data, "--runner", "ray", "--address", "127.0.0.1:1"]


@case("cluster", "an address without a port")
def _(data, folder):
    return ["--data", data, "--runner", "ray", "--address", "head"]


@case("data folder", "a URL with a password")
def _(data, folder):
    return ["--data", "s3://KEY:SECRET@bucket/shards"]


@case("data folder", "no such folder")
def _(data, folder):
    return ["--data", folder / "absent"]


@case("data folder", "an unknown protocol")
def _(data, folder):
    return ["--data", "gopher://shards"]


@case("data folder", "a file in its place")
def _(data, folder):
    return ["--data", shard(data)]


@case("data folder", "a bucket, and no keys for it")
def _(data, folder):
    return ["--data", "s3://bucket/shards"]


@case("data folder", "an empty folder")
def _(data, folder):
    return ["--data", folder]


def data_case(what, group="shards"):
    """A case that changes a copy of good shards, which has no dataset.json."""

    def add(change):
        def build(data, folder):
            shards = copied(data, folder)
            change(shards)
            return ["--data", shards]

        case(group, what)(build)
        return change

    return add


def shard(data, name="train02"):
    return sorted(data.glob(f"{name}-*"))[0]


@data_case("a shard whose name has no count")
def _(data):
    shard(data).rename(data / "train02.tfrec")


@data_case("a shard that is missing among others")
def _(data):
    shard(data).unlink()


@data_case("two shards of one number")
def _(data):
    (data / "train02-3.tfrec").write_bytes(shard(data).read_bytes())


@data_case("a count in the name that is not the file's")
def _(data):
    shard(data).rename(data / "train02-12.tfrec")


@data_case("a truncated shard")
def _(data):
    shard(data).write_bytes(shard(data).read_bytes()[:-100])


@data_case("a link to a shard that is not there")
def _(data):
    path = shard(data)
    path.unlink()
    path.symlink_to("elsewhere.tfrec")


@data_case("a folder that is called like a shard")
def _(data):
    path = shard(data)
    path.unlink()
    path.mkdir()


@data_case("an empty shard")
def _(data):
    shard(data).write_bytes(b"")


@data_case("a shard that is no TFRecord")
def _(data):
    shard(data).write_bytes(b"PK\x03\x04" + bytes(4000))


@data_case("a shard compressed with GZIP")
def _(data):
    shard(data).write_bytes(gzip.compress(shard(data).read_bytes()))


@data_case("a shard compressed with ZLIB")
def _(data):
    shard(data).write_bytes(zlib.compress(shard(data).read_bytes()))


@data_case("a shard that nobody may read")
def _(data):
    path = shard(data)
    path.unlink()
    path.symlink_to("/proc/self/mem")  # permissions do not stop root


@data_case("a bit that flipped in a record")
def _(data):
    row = read_index(str(data)).train.query("shard == 2 and record == 4").iloc[0]
    content = bytearray(shard(data).read_bytes())
    content[row["offset"] + 1000] ^= 4
    shard(data).write_bytes(content)


@data_case("a length of exabytes in a record's header")
def _(data):
    length = struct.pack("<Q", 2**60)
    shard(data).write_bytes(length + shard(data).read_bytes()[8:])


@data_case("shards of two shapes")
def _(data):
    put(data, "train", 2, record("one", panels=np.zeros((6, 42, 36), np.uint8)))


def record_case(what, *records):
    @data_case(what, "records")
    def _(data):
        shard(data).unlink()
        put(data, "train", 2, *records)


def example_case(what, **features):
    @data_case(what, "records")
    def _(data):
        shard(data).unlink()
        (data / "train02-1.tfrec").write_bytes(frame(encode_example(features)))


def png(pixels, depth=8, size=(36, 40)):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, 2, 0, 0, 0))
    data = chunk(b"IDAT", pixels) if pixels else b""
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


IDAT = zlib.compress(bytes(40 * (1 + 36 * 3)))
PIXELS = bytes(6 * 40 * 36)


def image_case(what, image=None, *more):
    """A case about PNG shards, or about one image in them."""

    @case("images", what)
    def _(data, folder):
        shards = folder / "data"
        shards.mkdir()
        for number in range(6):
            images = [image if image and (number, i) == (2, 0) else png(IDAT) for i in range(12)]
            records = [
                {"image_id": f"{number}-{i}", "target": i % 2, "image": png} for i, png in enumerate(images)
            ]
            (shards / f"train{number:02d}-12.tfrec").write_bytes(
                b"".join(frame(encode_example(r)) for r in records)
            )
        return ["--data", shards, *more]


GOOD = {"image_id": "x", "target": 1, "cadence": PIXELS, "shape": [6, 40, 36]}
record_case("a training record without a target", record("a", None))
record_case("one image_id twice", record("a", 0), record("a", 1))
example_case("a target of 2", **{**GOOD, "target": 2})
example_case("a target that is not a number", **{**GOOD, "target": float("nan")})
example_case("no image_id", **{k: v for k, v in GOOD.items() if k != "image_id"})
example_case("fewer pixels than the shape says", **{**GOOD, "cadence": PIXELS[:-1]})
example_case("three panels that say six", **{**GOOD, "shape": [3, 40, 36]})
example_case("neither cadence nor image", image_id="x", target=1, picture=b"")
example_case("an image that is not a PNG", image_id="x", target=1, image=b"GIF89a" + bytes(50))
image_case("an image with a header and no pixels", png(b""))
image_case("an image with half of its pixels", png(zlib.compress(bytes(2000))))
image_case("an image with a wrong checksum", png(IDAT)[:-13] + b"x" + png(IDAT)[-12:])
image_case("an image without an end", png(IDAT)[:-12])
image_case("an image of 16 bits", png(IDAT, depth=16))
image_case("an image of a billion pixels", png(IDAT, size=(32000, 32000)))
image_case("a JPEG that is cut off", b"\xff\xd8\xff\xe0" + bytes(50))
image_case("a layout of all six panels", None, "--layout", "all6")
image_case("post-processing by groups, which they have none of", None, "--postprocess", "group-mean")
example_case("an image_id with a NUL", **{**GOOD, "image_id": "x\0y"})
example_case("an image_id of nothing", **{**GOOD, "image_id": ""})
example_case("a target that is text", **{**GOOD, "target": "yes"})
example_case("two targets", **{**GOOD, "target": [0, 1]})
example_case("a shape of negative sides", **{**GOOD, "shape": [6, -40, -36]})
example_case("a group that is a number", **{**GOOD, "group": 7})
example_case("an S/N that is text", **{**GOOD, "snr": "bright"})
example_case("an image_id that is no text", **{**GOOD, "image_id": b"\xff\xfe"})


@data_case("a training record that is a test record too", "records")
def _(data):
    put(data, "train", 2, record("a"))
    put(data, "test", 0, record("a", None))


@data_case("a fold whose held-out rows are of one class", "records")
def _(data):
    for path in data.glob("*.tfrec"):
        path.unlink()
    for number in range(3):
        put(data, "train", number, *(record(f"{number}-{i}", int(number > 0)) for i in range(12)))


@case("records", "folds of groups, and records without a group")
def _(data, folder):
    shards = copied(data, folder)
    for number in range(6):
        put(shards, "train", number, *(record(f"{number}-{i}", i % 2) for i in range(12)))
    return ["--data", shards, "--split", "group"]


@data_case("a dataset.json that is cut off", "shards")
def _(data):
    (data / "dataset.json").write_text('{"format_')


@data_case("a dataset.json of a later version", "shards")
def _(data):
    (data / "dataset.json").write_text(json.dumps({"format_version": 99}))


MANIFEST = {"format": FORMAT, "command": "cv", "data": {}, "started_s": 0}


def run_case(what, change=lambda out: None, *more):
    """A case about a run folder, which a small one with a plausible manifest stands for."""

    @case("run folder", what)
    def _(data, folder):
        out = folder / "run"
        out.mkdir()
        (out / "manifest.json").write_text(json.dumps(MANIFEST))
        change(out)
        return ["--data", data, *more]


def holding(name, text):
    return lambda out: (out / name).write_text(text)


run_case("it holds a run already")
run_case("--resume of another format", holding("manifest.json", '{"format": 99}'), "--resume")
run_case("--resume of a damaged manifest", holding("manifest.json", '{"form'), "--resume")
run_case("--resume without its config", lambda out: None, "--resume")
run_case("--resume of a field that is no longer known", holding("config.yaml", "warp: 9"), "--resume")
run_case("--resume of a manifest that is a list", holding("manifest.json", "[]"), "--resume")
run_case("--resume of a config that is no YAML", holding("config.yaml", "folds: ["), "--resume")
run_case("--resume where there is no run", lambda out: (out / "manifest.json").unlink(), "--resume")


@case("run folder", "a place that cannot be written")
def _(data, folder):
    return ["--data", data, "--out", "/proc/run"]


@case("run folder", "an unknown protocol")
def _(data, folder):
    return ["--data", data, "--out", "gopher://run"]


@case("run folder", "a bucket, and no keys for it")
def _(data, folder):
    return ["--data", data, "--out", "s3://bucket/run"]


@case("run folder", "a file in its place")
def _(data, folder):
    (folder / "file").write_text("")
    return ["--data", data, "--out", folder / "file"]


KAGGLE = {"0/0a": np.zeros((6, 4, 4), np.float16), "1/1b": np.zeros((6, 4, 4), np.float16)}


def pack_case(what, *more, arrays=KAGGLE, labels="id,target\n0a,0\n1b,1\n"):
    """A case about Kaggle's folder."""

    @case("data pack", what)
    def _(data, folder):
        for name, array in arrays.items():
            path = folder / f"train/{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array)
        if labels is not None:
            (folder / "train_labels.csv").write_bytes(labels.encode("latin-1"))
        shards = [] if "--shards" in more else ["--shards", "2"]
        return ["--kaggle", folder, "--out", folder / "out", "--processes", 1, *shards, *more]


def header(shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(100)


def archive():
    stream = io.BytesIO()
    np.savez(stream, a=KAGGLE["0/0a"])
    return stream.getvalue()


pack_case("a folder without arrays", arrays={})
pack_case("no labels", labels=None)
pack_case("labels that are no table", labels="")
pack_case("labels that are no text", labels="id,target\n\xff,1\n")
pack_case("labels without a column", labels="id\n0a\n1b\n")
pack_case("a label that is neither 0 nor 1", labels="id,target\n0a,0\n1b,maybe\n")
pack_case("a label twice", labels="id,target\n0a,0\n0a,1\n1b,1\n")
pack_case("a label without a file", labels="id,target\n0a,0\n1b,1\n2c,0\n")
pack_case("a file without a label", labels="id,target\n0a,0\n")
pack_case("an id in two folders", arrays={**KAGGLE, "2/0a": KAGGLE["0/0a"]})
pack_case("groups of a column that is not there", "--group-column", "night")
pack_case("more shards than files", "--shards", "3")
pack_case("a file that is no array", arrays={**KAGGLE, "1/1b": b"cadence"})
pack_case("a .npz under the name of a .npy", arrays={**KAGGLE, "1/1b": archive()})
pack_case("a header that claims 1.6 TB", arrays={**KAGGLE, "1/1b": header((6, 2**19, 2**18))})
pack_case("an array of Python objects", arrays={**KAGGLE, "1/1b": np.array([{}], object)})
pack_case("an array of three panels", arrays={**KAGGLE, "1/1b": KAGGLE["1/1b"][:3]})
pack_case("an array of another shape", arrays={**KAGGLE, "1/1b": KAGGLE["1/1b"][:, :3]})
pack_case("an array of integers", arrays={**KAGGLE, "1/1b": KAGGLE["1/1b"].astype(int)})
pack_case("a value that is no number", arrays={**KAGGLE, "1/1b": np.full((6, 4, 4), np.nan, np.float16)})


@case("data pack", "a place that holds something")
def _(data, folder):
    arguments = CASES["data pack", "an array of another shape"](data, folder)
    np.save(folder / "train/1/1b.npy", KAGGLE["1/1b"])
    arguments[arguments.index("--out") + 1] = folder
    return arguments


@case("data verify", "no such folder")
def _(data, folder):
    return [folder / "absent"]


@case("data verify", "a shard compressed with GZIP")
def _(data, folder):
    shards = copied(data, folder)
    shard(shards).write_bytes(gzip.compress(shard(shards).read_bytes()))
    return [shards]


@case("predict", "a folder that is no run")
def _(data, folder):
    return [folder, "--data", data]


@case("predict", "a run whose manifest is damaged")
def _(data, folder):
    (folder / "manifest.json").write_text('{"folds": ')
    return [folder, "--data", data]


@case("predict", "a run that is not finished")
def _(data, folder):
    (folder / "manifest.json").write_text(json.dumps({**MANIFEST, "folds": {"0": {"state": "waiting"}}}))
    return [folder, "--data", data]


def message_of(group, build, data, folder, capsys):
    command = group if group in COMMANDS else "cv"
    arguments = [str(part) for part in build(data, folder)]
    before = sorted(folder.rglob("*"))
    if command == "cv":
        arguments = [*base_of(arguments, folder), *arguments]
    elif command == "predict":
        arguments += ["--out", str(folder / "out"), "--runner", "local"]
    else:
        arguments.insert(0, command.removeprefix("data "))
    code = COMMANDS[command](arguments)
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1, said
    assert sorted(folder.rglob("*")) == before, "something was written"
    said = said.replace(str(data), "DATA").replace(str(folder), "DIR")
    return code, re.sub(r"^python -m setibl_ray\.\w+: ", "", said)


def base_of(arguments, folder):
    base = [*TINY, "--folds", "3", "--runner", "local"]
    for flag in [part for part in arguments if part.startswith("--")]:
        if flag in base:
            del base[base.index(flag) : base.index(flag) + 2]
    if "--out" not in arguments:
        base += ["--out", str(folder / "run")]
    return base


@pytest.fixture
def no_keys(monkeypatch):
    """A machine that has no keys for S3, and does not ask the cloud around it for some."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()  # fsspec keeps file systems, and these their keys
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("no_keys")
def test_the_table_in_the_docs_is_what_happens(shards, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("setibl_ray.seti.task.NAME", StandIn())  # for the one that is not refused
    # An earlier test's Ray is not this user's.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    rows, groups = [], {}
    for number, ((group, what), build) in enumerate(CASES.items()):
        folder = tmp_path / f"case-{number}"
        folder.mkdir()
        code, said = message_of(group, build, shards, folder, capsys)
        assert code == 2, (what, said)
        groups.setdefault(group, []).append((what, code, said.replace("|", "\\|")))
    for group, found in groups.items():
        rows += [f"## {group[0].upper()}{group[1:]}", "", "| input | exit code | message |", "|---|---|---|"]
        rows += [f"| {what} | {code} | {said} |" for what, code, said in found] + [""]
    assert len(CASES) >= 120
    text = "\n".join(
        [
            "# Bad input",
            "",
            f"{len(CASES)} bad inputs, to `cv` unless the heading says otherwise, each refused before any training, in",
            "one line and with nothing written.",
            "`DATA` is the folder of shards, `DIR` the case's own. `tests/reliability/test_bad_inputs.py` writes it",
            "(`WRITE_DOCS=1`) and compares it with what happens. What goes wrong later: [reliability](reliability.md).",
            "",
            *rows,
        ]
    )
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "messages have changed: see the head of this file"
