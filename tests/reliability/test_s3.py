"""Shards and run folder in an S3 bucket, over a real connection to a local server.

Keys and address stand in ~/.aws, as on a real cluster: no process carries them in its arguments or its environment.
"""

import json
import os
from pathlib import Path

import fsspec
import pytest
from datasets import SMALL, cadence_shards
from harness import RESULTS
from moto.server import ThreadedMotoServer
from standin import StandIn

from setibl_ray import cv
from setibl_ray.core.run.folder import STATES_KEPT
from setibl_ray.core.task import Step
from setibl_ray.seti.formats.shards import read_index

SECRET = "secret-that-must-not-be-written"


@pytest.fixture(scope="module")
def bucket():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    folder = Path(os.environ["HOME"]) / ".aws"
    folder.mkdir(mode=0o700)
    (folder / "config").write_text(f"[default]\nregion = us-east-1\nendpoint_url = http://{host}:{port}\n")
    (folder / "credentials").write_text(
        f"[default]\naws_access_key_id = test\naws_secret_access_key = {SECRET}\n"
    )
    s3 = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)
    s3.mkdir("bucket")
    yield s3
    server.stop()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def names(bucket, folder):
    """Files below a folder of the bucket."""
    return {path.removeprefix(f"{folder}/") for path in bucket.find(folder)}


@pytest.mark.usefixtures("own_ray")
def test_a_run_from_bucket_to_bucket(bucket, tmp_path, capsys):
    recipe = SMALL.model_copy(update={"train": 24, "test": 4, "shards": 4})
    local = cadence_shards(tmp_path / "cadences", recipe)
    bucket.put(f"{local}/", "bucket/shards/", recursive=True)
    assert read_index("s3://bucket/shards").fingerprint == read_index(str(local)).fingerprint

    flags = "--folds 2 --epochs 1 --tta 1 --batch-size 8 --model efficientnet-nano --weights none --image-size 40x36"
    flags += " --device cpu --cpus-per-fold 1 --workers 1"  # one process: TensorFlow is loaded once
    for data, out in (("s3://bucket/shards", "s3://bucket/run"), (str(local), str(tmp_path / "run"))):
        assert cv.entry([*flags.split(), "--data", data, "--out", out]) == 0, capsys.readouterr().err
    for name in ("oof.csv", "submission.csv", "config.yaml", "fold-1/test.csv", "fold-1/weights.h5"):
        assert bucket.cat_file(f"bucket/run/{name}") == (tmp_path / "run" / name).read_bytes(), name
    local_names = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*.*")}
    assert names(bucket, "bucket/run") == local_names
    manifest = json.loads(bucket.cat_file("bucket/run/manifest.json"))
    assert manifest["data"]["root"] == "s3://bucket/shards"
    assert not [path for path in bucket.find("bucket/run") if SECRET.encode() in bucket.cat_file(path)]
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err


def test_a_run_in_a_bucket_is_locked_keeps_two_states_a_fold_and_resumes(
    bucket, local_cv, undisturbed, capsys
):
    kept, done = [], []

    def breaks(work, steps):
        for number, step in enumerate(steps, work.step):
            if work.fold == 2 and number == 3:
                assert ".lock" in names(bucket, "bucket/broken")
                kept.append({name for name in names(bucket, "bucket/broken") if "state-" in name})
                raise ZeroDivisionError("broken on purpose")
            yield step

    def notes(work, steps):
        for number, step in enumerate(steps, work.step):
            done.append((work.fold, number)) if isinstance(step, Step) else None
            yield step

    assert local_cv("s3://bucket/broken", task=StandIn(around=breaks)) == 1
    capsys.readouterr()
    assert [sorted(name[: len("fold-2/state-000")] for name in names_) for names_ in kept] == [
        ["fold-2/state-001", "fold-2/state-002"]
    ]
    assert len(kept[0]) == STATES_KEPT
    assert ".lock" not in names(bucket, "bucket/broken")

    assert local_cv("s3://bucket/broken", "--resume", task=StandIn(around=notes), run=()) == 0, (
        capsys.readouterr().err
    )
    assert done == [(2, 3)]
    for name in RESULTS:
        assert bucket.cat_file(f"bucket/broken/{name}") == (undisturbed / name).read_bytes(), name
    assert not [name for name in names(bucket, "bucket/broken") if "state-" in name or ".lock" in name]
