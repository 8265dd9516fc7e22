"""Shards and run folder in an S3 bucket, over a real connection to a local server."""

import os
import socket
import subprocess
import sys

import fsspec
import pandas as pd
import pytest
from datasets import SMALL, cadence_shards
from moto.server import ThreadedMotoServer

from setibl_ray.data.shards import read_index


@pytest.fixture(scope="module")
def bucket():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret-that-must-not-be-written",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3 = fsspec.filesystem("s3", skip_instance_cache=True)
        s3.mkdir("bucket")
        yield s3
    server.stop()


def test_a_run_from_bucket_to_bucket(bucket, tmp_path):
    recipe = SMALL.model_copy(update={"train": 24, "test": 4, "shards": 4})
    local = cadence_shards(tmp_path / "cadences", recipe)
    bucket.put(f"{local}/", "bucket/shards/", recursive=True)
    index = read_index("s3://bucket/shards")
    assert index.fingerprint == read_index(str(local)).fingerprint

    flags = "--folds 2 --epochs 1 --tta 1 --batch-size 8 --model efficientnet-nano --weights none --image-size 40x36"
    command = [
        sys.executable,
        "-m",
        "setibl_ray.cv",
        *flags.split(),
        "--cpus-per-fold",
        "1",
        "--device",
        "cpu",
    ]
    done = {}
    for name, data, out in (
        ("s3", "s3://bucket/shards", "s3://bucket/run"),
        ("local", str(local), str(tmp_path / "run")),
    ):
        runner = ["--runner", "local"] if name == "local" else []
        done[name] = subprocess.run(
            [*command, "--data", data, "--out", out, *runner], capture_output=True, text=True, timeout=280
        )
        assert done[name].returncode == 0, done[name].stderr[-3000:]
    for name in ("oof.csv", "submission.csv", "config.yaml"):
        assert bucket.cat_file(f"bucket/run/{name}") == (tmp_path / "run" / name).read_bytes()
    with bucket.open("bucket/run/oof.csv") as stream:
        assert len(pd.read_csv(stream)) == 24
    written = bucket.find("bucket/run")
    assert not [path for path in written if "state-" in path or ".tmp-" in path]
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert not [path for path in written if secret in bucket.cat_file(path)]
    assert secret.decode() not in done["s3"].stdout + done["s3"].stderr
