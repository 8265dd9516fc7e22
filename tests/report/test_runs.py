"""Run folders: read whole, or refused with the file and column that is wrong."""

import json

import numpy as np
import pandas as pd
import pytest
import runs as fake
from hypothesis import given
from hypothesis import strategies as st

from setibl_ray import evaluate
from setibl_ray.core.errors import RunFolderError
from setibl_ray.seti.evaluation import metrics, postprocess
from setibl_ray.seti.evaluation.finished import load_run
from setibl_ray.seti.evaluation.summary import MAX_LINES, curve, sparkline, summary_lines
from setibl_ray.seti.reporting import training_plot


@pytest.fixture
def folder(tmp_path):
    return fake.write_run(tmp_path / "run", n_train=200, epochs=3)


def test_a_run_is_read_in_table_order(folder):
    run = load_run(str(folder))
    assert run.oof["image_id"].tolist() == pd.read_csv(folder / "records.csv", dtype=str)["image_id"].tolist()
    fold = pd.read_csv(folder / "fold-2/oof.csv", dtype={"image_id": str}).set_index("image_id")
    held = run.oof[run.oof["fold"] == 2].set_index("image_id")
    assert (held["pred_no_tta"] == fold["pred_no_tta"]).all()
    assert run.name == "run"
    assert set(run.histories) == set(range(5))


def test_ids_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    rows = fake.records(20, 2, np.random.default_rng(0))
    rows["image_id"] = ["NA", "1e5", "007", "null", *rows["image_id"][4:]]
    run = load_run(str(fake.write_run(tmp_path / "run", rows=rows, folds=2, epochs=2)))
    assert run.oof["image_id"].tolist()[:4] == ["NA", "1e5", "007", "null"]


def test_a_run_at_a_url(folder):
    import fsspec

    remote = fsspec.filesystem("memory")
    remote.put(str(folder), "/bucket/run", recursive=True)
    here, there = load_run(str(folder)), load_run("memory://bucket/run")
    pd.testing.assert_frame_equal(here.oof, there.oof)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("oof.csv", lambda table: table.drop(columns="pred"), "oof.csv: no column 'pred', only image_id"),
        ("oof.csv", lambda table: table.assign(pred=1.5), r"expected pred in \[0, 1\], got 1.5"),
        ("oof.csv", lambda table: table.assign(pred=np.nan), "got nan"),
        ("oof.csv", lambda table: table.iloc[::-1], "not that of records.csv"),
        ("oof.csv", lambda table: table.assign(target=3), "expected targets 0 and 1"),
        ("fold-1/oof.csv", lambda table: table.iloc[1:], "do not hold each row of oof.csv once"),
        ("fold-1/history.csv", lambda table: table.drop(columns="lr"), "history.csv: no column 'lr'"),
        ("submission.csv", lambda table: table.assign(id="same"), "image_id same appears twice"),
    ],
)
def test_what_is_wrong_is_named(folder, name, change, message):
    change(pd.read_csv(folder / name, dtype={"image_id": str, "id": str})).to_csv(folder / name, index=False)
    with pytest.raises(RunFolderError, match=message):
        load_run(str(folder))


def test_missing_files_and_unfinished_runs(folder, tmp_path):
    with pytest.raises(RunFolderError, match=r"is missing: is .* a run folder"):
        load_run(str(tmp_path / "nowhere"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["folds"]["3"]["state"] = "failed"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="fold 3 of 5 is not done"):
        load_run(str(folder))


def test_a_run_without_a_test_set(folder):
    (folder / "submission.csv").unlink()
    assert len(load_run(str(folder)).submission) == 0


def test_evaluate_writes_metrics_and_keeps_what_it_does_not_know(folder, capsys):
    (folder / "metrics.json").write_text(json.dumps({"fold_weights": [0.2] * 5}))
    assert evaluate.entry([str(folder), "--bootstrap", "20"]) == 0
    written = json.loads((folder / "metrics.json").read_text())
    assert written["fold_weights"] == [0.2] * 5
    past = pd.read_csv(folder / "fold-0/history.csv")["val_auc"]
    assert written["folds"][0]["best_epoch"] == past.idxmax()
    assert written["folds"][0]["val_auc"] == pytest.approx(past.tolist())
    assert "ROC AUC" in capsys.readouterr().out
    # The intervals that `cv` would have written: same draws.
    seed = load_run(str(folder)).config.seed
    assert (
        metrics.summarise(load_run(str(folder)).oof, n_bootstrap=20, seed=seed)["intervals"]
        == written["intervals"]
    )


def test_evaluate_says_on_one_line_what_is_wrong(tmp_path, capsys):
    assert evaluate.entry([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "manifest.json is missing" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("folds", [2, 8, 40])
@pytest.mark.parametrize("kinds", [True, False])
def test_the_summary_fits_25_lines(folds, kinds):
    rng = np.random.default_rng(0)
    rows = fake.records(800, folds, rng, kinds=kinds)
    pred = fake.scores(rows, rng)
    rows = rows.assign(pred=pred, pred_no_tta=pred)
    hook = "group-mean" if kinds else "none"
    done = postprocess.finish(rows, rows.iloc[:0], postprocess=hook, calibrate="isotonic")
    summary = metrics.summarise(rows, n_bootstrap=20) | done.report
    for fold in summary["folds"]:
        fold |= {"best_epoch": 99, "val_auc": [0.9] * 100}
    lines = summary_lines(summary)
    assert any(line.startswith("isotonic calibration") for line in lines)
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= 110
    assert ("recall against S/N" in "\n".join(lines)) == kinds


def test_the_summary_of_one_class():
    rows = fake.records(40, 2, np.random.default_rng(0)).assign(target=0, pred=0.5, pred_no_tta=0.5)
    assert "only one class" in summary_lines(metrics.summarise(rows, n_bootstrap=5))[0]


@given(st.lists(st.none() | st.floats(0, 1), max_size=30))
def test_sparklines_have_a_character_per_value(values):
    assert len(sparkline(values)) == len(sparkline(values, 0, 1)) == len(values)


def test_a_curve_of_many_epochs_keeps_its_end():
    assert curve([0.5, 0.75, 1.0]).rstrip() == "▁▅█"
    rising = curve([0.5 + 0.005 * i for i in range(100)])
    assert len(rising) == 24
    assert rising.rstrip()[-1] == "█"
    assert curve([]).strip() == ""


def test_training_plot_is_a_png_and_the_same_for_the_same_history():
    history = fake.history(6, np.random.default_rng(0))
    image = training_plot.draw(history, "FOLD 0", 1)
    assert image.startswith(b"\x89PNG")
    assert image == training_plot.draw(history, "FOLD 0", 1)
    assert image != training_plot.draw(history, "FOLD 0", 0)
    history[["val_auc", "val_loss"]] = np.nan  # diverged from the start
    assert training_plot.draw(history.head(1), "FOLD 0", 0).startswith(b"\x89PNG")
