"""`cv --postprocess --calibrate`: declared in the config, the same as `blend` does afterwards."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from setibl_ray import blend
from setibl_ray.seti.evaluation.finished import load_run

ASKED = ("--postprocess", "group-mean", "--calibrate", "platt")


@pytest.fixture
def plain(local_cv, tmp_path):
    assert local_cv(tmp_path / "plain") == 0
    return tmp_path / "plain"


def test_a_run_does_what_blend_does_afterwards(plain, local_cv, tmp_path, capsys):
    done = tmp_path / "done"
    assert local_cv(done, *ASKED) == 0
    said = capsys.readouterr().out
    assert "group-mean" in said
    assert "platt calibration" in said
    assert blend.entry([str(plain), "--out", str(tmp_path / "after"), *ASKED]) == 0
    for name, column in (("oof.csv", "pred"), ("submission.csv", "target")):
        own, other, raw = (pd.read_csv(tmp_path / run / name) for run in ("done", "after", "plain"))
        assert own[column].to_numpy() == pytest.approx(other[column].to_numpy(), abs=1e-6)
        assert not np.allclose(own[column], raw[column], atol=1e-3)
        assert own.drop(columns=column).equals(raw.drop(columns=column))
    for fold in range(5):  # the models' own scores stay
        for name in (f"fold-{fold}/oof.csv", f"fold-{fold}/test.csv"):
            assert (done / name).read_bytes() == (plain / name).read_bytes()

    metrics, before = (json.loads((run / "metrics.json").read_text()) for run in (done, plain))
    oof = pd.read_csv(done / "oof.csv")
    assert metrics["oof_auc"] == pytest.approx(roc_auc_score(oof["target"], oof["pred"]))
    assert metrics["postprocess"]["auc_before"] == pytest.approx(before["oof_auc"])
    assert len(metrics["postprocess"]["effect"]["interval"]) == 2
    assert metrics["calibration"]["method"] == "platt"
    for name in ("tta_gain", "oof_auc_no_tta"):  # of the models, as before
        assert metrics[name] == before[name]
    assert "postprocess" not in before
    run = load_run(str(done))
    assert (run.oof["pred_model"] == load_run(str(plain)).oof["pred"]).all()


def test_it_is_part_of_the_run(plain, local_cv, capsys):
    assert local_cv(plain, "--resume") == 0
    assert local_cv(plain, "--resume", "--postprocess", "group-max") == 2
    assert "postprocess was none, now group-max" in capsys.readouterr().err
