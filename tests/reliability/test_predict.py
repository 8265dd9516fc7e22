"""A run applied to cadences: its own test set gives its own bytes, and a new one needs no training shards."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from datasets import SMALL, cadence_shards
from standin import StandIn

from setibl_ray import predict


@pytest.fixture
def folded(local_cv, tmp_path):
    """A finished run of stand-in folds."""
    assert local_cv(tmp_path / "run") == 0
    return tmp_path / "run"


def entry(*arguments):
    return predict.entry([str(part) for part in (*arguments, "--runner", "local")])


def test_the_runs_own_test_set_gives_the_runs_own_bytes(folded, shards, tmp_path):
    assert entry(folded, "--data", shards, "--out", tmp_path / "again") == 0
    for name in ("submission.csv", *(f"fold-{fold}/test.csv" for fold in range(5))):
        assert (tmp_path / "again" / name).read_bytes() == (folded / name).read_bytes(), name
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["run"]["root"] == str(folded)


def test_other_cadences_need_no_training_shards(folded, tmp_path, capsys):
    new = cadence_shards(tmp_path / "new", SMALL.model_copy(update={"seed": 9, "test": 20}))
    for path in [*new.glob("train*"), new / "dataset.json", new / "index.csv.gz"]:
        path.unlink()
    assert entry(folded, "--data", new, "--out", tmp_path / "out") == 0
    submission = pd.read_csv(tmp_path / "out" / "submission.csv", dtype={"id": str})
    parts = [pd.read_csv(tmp_path / "out" / f"fold-{fold}" / "test.csv") for fold in range(5)]
    assert len(submission) == 20
    assert sorted(submission["id"]) == submission["id"].tolist()
    mean = pd.Series(np.mean([part["pred"] for part in parts], axis=0), parts[0]["image_id"].astype(str))
    assert submission["target"].to_numpy() == pytest.approx(mean.loc[submission["id"]].to_numpy(), abs=1e-6)
    for path in new.glob("test*"):
        path.unlink()
    assert entry(folded, "--data", new, "--out", tmp_path / "none") == 2
    assert "has no test shards" in capsys.readouterr().err


def test_what_is_refused(folded, shards, tmp_path, capsys):
    out = tmp_path / "out"
    assert entry(folded, "--data", shards, "--out", out, "--resume") == 2
    assert "holds no run" in capsys.readouterr().err
    assert entry(folded, "--data", shards, "--out", folded) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert entry(folded, "--data", shards, "--out", folded, "--resume") == 2
    assert "holds no predictions of" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(shards, other)
    metadata = json.loads((other / "dataset.json").read_text())
    (other / "dataset.json").write_text(json.dumps(metadata | {"conditioning": "median 2"}))
    assert entry(folded, "--data", other, "--out", out) == 2
    assert (
        "conditioning: the run was trained on panels as they come, but these are median 2"
        in capsys.readouterr().err
    )
    (other / "dataset.json").unlink()  # then nothing is known of them
    assert entry(folded, "--data", other, "--out", tmp_path / "unknown") == 0
    weights = folded / "fold-2" / "weights.h5"
    weights.write_bytes(weights.read_bytes() + b"?")
    assert entry(folded, "--data", shards, "--out", out) == 2
    assert "fold-2/weights.h5 is missing or has changed" in capsys.readouterr().err
    assert not out.exists()


def test_predictions_of_a_fold_that_was_given_up_go_on_as_they_were_begun(
    folded, shards, tmp_path, monkeypatch, capsys
):
    broken = [True]

    def fails(work, steps):
        assert work.artifact, "it is fitted already"
        assert (work.config.tta, work.config.cpus_per_fold) == (0, 2)
        if work.fold == 2 and broken[0]:
            raise ValueError("no")
        return ()

    monkeypatch.setattr("setibl_ray.seti.task.NAME", StandIn(around=fails))
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert entry(folded, "--data", shards, "--out", out, "--tta", 0, "--cpus-per-fold", 2) == 1
    assert "fold 2: ValueError: no" in capsys.readouterr().err
    broken.clear()
    broken.append(False)
    assert entry(folded, "--data", shards, "--out", out, "--resume") == 0
    assert entry(folded, "--data", shards, "--out", whole, "--tta", 0, "--cpus-per-fold", 2) == 0
    assert (out / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()
    assert entry(folded, "--data", shards, "--out", out, "--resume", "--tta", 3) == 2
    assert "tta was 0, now 3" in capsys.readouterr().err


def test_predictions_that_were_interrupted_go_on(folded, shards, tmp_path, monkeypatch, capsys):
    seen = []

    def interrupts(work, steps):
        assert work.artifact
        seen.append(work.fold)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return ()

    monkeypatch.setattr("setibl_ray.seti.task.NAME", StandIn(around=interrupts))
    out = tmp_path / "out"
    assert entry(folded, "--data", shards, "--out", out) == 130
    said = f"Resume with: python -m setibl_ray.predict {folded} --data {shards} --out {out} --runner local --resume"
    assert said in capsys.readouterr().err
    assert entry(folded, "--data", shards, "--out", out, "--resume") == 0
    assert sorted(seen) == [0, 1, 2, 2, 3, 4]
    assert (out / "submission.csv").read_bytes() == (folded / "submission.csv").read_bytes()
