"""A Keras model of the user's own, by name: trained, killed, resumed, swept, predicted with, and not mixed up."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from datasets import TINY
from waiting import wait_for

from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import Manifest

PROJECT = Path(__file__).parents[1]
OWN = ["--model", "examples.own_model:shallow", *TINY[2:]]
QUICK = [*OWN, "--folds", "2", "--epochs", "2", "--tta", "1", "--cpus-per-fold", "1", "--device", "cpu"]


def command(name, *arguments):
    """A command in a process of its own, as a user in the project's folder types it."""
    return [sys.executable, "-m", f"setibl_ray.{name}", *map(str, arguments)]


def run(name, *arguments, code=0):
    done = subprocess.run(command(name, *arguments), cwd=PROJECT, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def plain(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    run("cv", *QUICK, "--data", shards, "--out", out, "--runner", "local")
    return out


def test_its_name_a_checksum_and_its_own_size_are_recorded(plain):
    manifest = Manifest.load(RunFolder(str(plain)))
    assert "model: examples.own_model:shallow" in (plain / "config.yaml").read_text()
    assert len(manifest.code["examples.own_model:shallow"]) == 64
    # Far from the largest of this package's models.
    assert 1e9 < manifest.folds[0].memory_estimate_bytes < 2e9


def test_a_killed_worker_and_driver_on_ray_end_with_the_bytes_of_the_plain_loop(plain, shards, tmp_path):
    out = tmp_path / "run"
    driver = subprocess.Popen(
        command("cv", *QUICK, "--data", shards, "--out", out, "--workers", 1),
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: list(out.glob("fold-*/state-*")) or driver.poll() is not None, 200)
    entries = [json.loads(path.read_text()) for path in out.glob("fold-*/fold.json")]
    (pid,) = {one["pid"] for entry in entries for one in entry["attempts"] if one["outcome"] == "running"}
    os.kill(pid, signal.SIGKILL)
    driver.kill()
    driver.wait()
    run("cv", "--resume", "--out", out, "--workers", 1)
    for name in ("oof.csv", "submission.csv"):
        assert (out / name).read_bytes() == (plain / name).read_bytes(), name
    refused = run("cv", "--resume", "--out", out, "--model", "efficientnet-nano", code=2)
    assert "model was examples.own_model:shallow, now efficientnet-nano" in refused.stderr


def test_it_is_planned_by_its_own_sizes(plain, shards):
    assumed = run("cv", *QUICK, "--data", shards, "--plan").stdout
    assert re.search(r"GFLOP an\s+image", assumed)
    measured = run("cv", *QUICK, "--data", shards, "--plan", "--rates", plain).stdout
    assert "measured in" in measured


def test_it_predicts_and_is_swept(plain, shards, tmp_path):
    run("predict", plain, "--data", shards, "--out", tmp_path / "again", "--runner", "local")
    assert (tmp_path / "again" / "submission.csv").read_bytes() == (plain / "submission.csv").read_bytes()
    arguments = [*QUICK, "--trials", "2", "--stopping", "none", "--data", shards]
    run("sweep", *arguments, "--out", tmp_path / "sweep")
    trials = pd.read_csv(tmp_path / "sweep" / "trials.csv")
    assert trials["state"].tolist() == ["done", "done"]
    assert "model: examples.own_model:shallow" in (tmp_path / "sweep" / "best.yaml").read_text()


def test_what_is_no_model_is_refused_before_anything_is_decoded(shards, tmp_path):
    missing = ["examples.own_model:deep", *QUICK[2:], "--data", shards, "--out", tmp_path / "run"]
    done = run("cv", "--model", *missing, "--runner", "local", code=2)
    assert "could not build a model" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


WORKER = """
import pickle, sys
task = pickle.loads(sys.stdin.buffer.read())
print(*task.code["first:build"]())
"""


def test_a_worker_prepares_tensorflow_before_a_module_of_the_users_imports_it(tmp_path, monkeypatch):
    (tmp_path / "first.py").write_text(
        "from tensorflow import keras\n"
        "import sys\n"
        "prepared = 'setibl_ray.seti.train' in sys.modules\n"
        "def build(): return prepared, issubclass(keras.Model, sys.modules['tensorflow'].keras.Model)\n"
    )
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    )
    make = "import first, pickle, sys; from setibl_ray.seti.task import CadenceTask; "
    make += "sys.stdout.buffer.write(pickle.dumps(CadenceTask({'first:build': first.build})))"
    task = subprocess.run([sys.executable, "-c", make], capture_output=True, check=True).stdout
    worker = subprocess.run([sys.executable, "-c", WORKER], input=task, capture_output=True, check=True)
    assert worker.stdout.split() == [b"True", b"True"]
