"""Whole cross-validations, small but real: real shards, real TensorFlow, real Ray."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import SMALL, TINY, cadence_shards, png_shards
from sklearn.metrics import roc_auc_score

from setibl_ray import cv
from setibl_ray.seti.formats.shards import read_index
from setibl_ray.seti.reporting.figures import PHASES

QUICK = [*TINY, "--folds", "3", "--epochs", "2", "--tta", "2", "--cpus-per-fold", "1", "--device", "cpu"]
RESULTS = ("oof.csv", "submission.csv", "folds.csv", "records.csv", "config.yaml")


def run(*arguments):
    """`python -m setibl_ray.cv` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "setibl_ray.cv", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="session")
def plain_run(shards, tmp_path_factory):
    """The plain loop's run folder: the reference for every other way to run."""
    out = tmp_path_factory.mktemp("runs") / "local"
    done = run(*QUICK, "--data", shards, "--out", out, "--runner", "local")
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def same_results(one: Path, other: Path) -> None:
    for name in RESULTS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_run_folder_is_whole(shards, plain_run):
    index = read_index(str(shards))
    oof = pd.read_csv(plain_run / "oof.csv", dtype={"image_id": str})
    assert list(oof.columns) == ["image_id", "target", "pred", "fold"]
    truth = index.train.set_index("image_id")["target"]
    assert sorted(oof["image_id"]) == sorted(truth.index)
    assert (oof["target"].to_numpy() == truth.loc[oof["image_id"]].to_numpy()).all()
    submission = pd.read_csv(plain_run / "submission.csv", dtype={"id": str})
    assert list(submission["id"]) == sorted(index.test["image_id"])
    assert submission["target"].between(0, 1).all()

    metrics = json.loads((plain_run / "metrics.json").read_text())
    assert metrics["oof_auc"] == pytest.approx(roc_auc_score(oof["target"], oof["pred"]))
    for entry in metrics["folds"]:
        rows = oof[oof["fold"] == entry["fold"]]
        assert entry["auc"] == pytest.approx(roc_auc_score(rows["target"], rows["pred"]))
    tests = [
        pd.read_csv(plain_run / f"fold-{fold}" / "test.csv", dtype={"image_id": str}) for fold in range(3)
    ]
    mean = np.mean([test["pred"] for test in tests], axis=0)
    by_id = pd.Series(mean, tests[0]["image_id"]).loc[submission["id"]]
    assert submission["target"].to_numpy() == pytest.approx(by_id.to_numpy(), abs=1e-6)

    manifest = json.loads((plain_run / "manifest.json").read_text())
    assert manifest["data"]["fingerprint"] == index.fingerprint
    for fold in range(3):
        folder = plain_run / f"fold-{fold}"
        files = {"weights.h5", "history.csv", "oof.csv", "test.csv", "training.png"}
        assert {path.name for path in folder.iterdir()} == files
        assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
        history = pd.read_csv(folder / "history.csv")
        held_out = pd.read_csv(folder / "oof.csv")
        best = manifest["folds"][str(fold)]["best_epoch"]
        # The last epoch, and from the saved weights, not the maximum over epochs of something that was thrown away.
        assert best == len(history) - 1
        assert history["val_auc"][best] == pytest.approx(
            roc_auc_score(held_out["target"], held_out["pred_no_tta"])
        )


def test_the_report_of_a_real_run_is_drawn_by_a_real_browser(chromium, plain_run):
    for width in (1400, 390):
        assert len(chromium.check(plain_run / "report.html", width=width)) >= 14


def test_every_phase_of_a_fold_is_on_the_timeline(plain_run):
    manifest = json.loads((plain_run / "manifest.json").read_text())
    assert manifest["folds"]["0"]["timings"].keys() <= {key for key, *_ in PHASES}


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("workers", [1, 2])
def test_ray_gives_the_bytes_of_the_plain_loop(shards, plain_run, tmp_path, workers):
    arguments = [*QUICK, "--data", shards, "--out", tmp_path / "run", "--workers", workers]
    assert cv.entry([str(argument) for argument in arguments]) == 0
    same_results(plain_run, tmp_path / "run")


@pytest.mark.usefixtures("own_ray")
def test_a_killed_fold_goes_on_and_ends_with_the_same_bytes(shards, plain_run, tmp_path, monkeypatch):
    from setibl_ray.core.jobs import Stepped
    from setibl_ray.core.run.progress import Progress

    killed = []
    on = Progress.on

    def kill_once(self, event, answer):
        on(self, event, answer)
        if isinstance(event, Stepped) and event.fold == 1 and event.step == 0 and not killed:
            entry = json.loads((tmp_path / "run" / "fold-1" / "fold.json").read_text())
            killed.append(entry["attempts"][0]["pid"])
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Progress, "on", kill_once)
    arguments = [*QUICK, "--data", shards, "--out", tmp_path / "run", "--workers", 1]
    assert cv.entry([str(argument) for argument in arguments]) == 0
    same_results(plain_run, tmp_path / "run")
    attempts = json.loads((tmp_path / "run" / "manifest.json").read_text())["folds"]["1"]["attempts"]
    assert [(a["outcome"], a.get("cause"), a.get("decision")) for a in attempts] == [
        ("failed", "worker-died", "retry"),
        ("done", None, None),
    ]


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize(("height", "width"), [(91, 85), (273, 256)])
def test_png_shards(tmp_path, height, width):
    recipe = SMALL.model_copy(update={"train": 24, "test": 4, "shards": 4, "shape": (height, width)})
    cadences = cadence_shards(tmp_path / "cadences", recipe)
    data = png_shards(tmp_path / "png", cadences)
    arguments = [*TINY, "--folds", "2", "--epochs", "1", "--tta", "1", "--image-size", f"{height}x{width}"]
    arguments += ["--cpus-per-fold", "1", "--workers", "1"]  # one process compiles one model
    assert cv.entry([*arguments, "--data", str(data), "--out", str(tmp_path / "run")]) == 0
    oof = pd.read_csv(tmp_path / "run" / "oof.csv", dtype={"image_id": str})
    truth = read_index(str(cadences)).train.set_index("image_id")["target"]
    assert sorted(oof["image_id"]) == sorted(truth.index)
    assert (oof["target"].to_numpy() == truth.loc[oof["image_id"]].to_numpy()).all()
    assert "layout: on3" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.usefixtures("own_ray")
def test_how_a_run_is_computed_may_change_when_it_goes_on(shards, plain_run, tmp_path):
    out = tmp_path / "run"
    arguments = [*map(str, QUICK), "--data", str(shards), "--out", str(out), "--workers", "1"]
    assert cv.entry([*arguments, "--cache", "memory"]) == 0
    (out / "fold-2" / "oof.csv").unlink()  # trained again, from panels on disk
    assert cv.entry(["--resume", "--out", str(out), "--cache", "disk", "--workers", "1"]) == 0
    for name in ("oof.csv", "submission.csv"):
        assert (plain_run / name).read_bytes() == (out / name).read_bytes(), name
    assert "cache: disk" in (out / "config.yaml").read_text()
