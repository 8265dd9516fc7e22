"""`Run`: a folder opened from Python."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import runs as fake

from setibl_ray import Run
from setibl_ray.core.errors import ConfigError, RunFolderError
from setibl_ray.seti.evaluation.finished import load_run
from setibl_ray.seti.evaluation.metrics import summarise


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = fake.write_run(tmp_path_factory.mktemp("opened") / "run")
    metrics = summarise(load_run(str(path)).oof, seed=0)
    score = {"name": "auc", "direction": "maximize", "interval": metrics["intervals"]["oof_auc"]}
    (path / "metrics.json").write_text(json.dumps(metrics | {"score": {**score, "oof": metrics["oof_auc"]}}))
    return path


def test_tables_are_those_of_the_files(folder):
    run = Run(folder)
    pd.testing.assert_frame_equal(
        run.oof, pd.read_csv(folder / "oof.csv", dtype={"image_id": str}), check_exact=False
    )
    assert run.submission["id"].is_monotonic_increasing
    assert run.config["folds"] == 5
    assert run.folds["state"].tolist() == ["done"] * 5
    assert run.folds["attempts"].tolist() == [1, 2, 1, 1, 1]
    np.testing.assert_allclose(run.folds["auc"], [fold["auc"] for fold in run.metrics["folds"]])
    one = run.history[run.history["fold"] == 3].drop(columns="fold").reset_index(drop=True)
    pd.testing.assert_frame_equal(one, pd.read_csv(folder / "fold-3/history.csv"), check_exact=False)
    assert repr(run).startswith(f"Run('{folder}'): out-of-fold auc {run.metrics['oof_auc']:.4g} [")


def test_every_plot_is_a_plotly_figure_with_colours(folder):
    run = Run(folder)
    names = [name for name in dir(run) if name.startswith("plot_")]
    assert len(names) == 8
    for name in names:
        figure = getattr(run, name)()
        assert len(figure.data), name
        assert '"@' not in figure.to_json(), name
    assert len(run.plot_history("loss").data) == 10
    with pytest.raises(ConfigError, match="column: expected one of lr, loss, auc, images_per_s"):
        run.plot_history("los")


def test_a_run_under_way_opens_and_says_what_it_lacks(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    for name in ("metrics.json", "oof.csv", "submission.csv"):
        (tmp_path / "run" / name).unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["folds"]["3"]["state"] = "running"
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    run = Run(str(tmp_path / "run"))
    assert repr(run).endswith("not finished; of 5 folds 4 done, 1 running")
    for name in ("oof", "submission", "metrics"):
        with pytest.raises(RunFolderError, match=rf"has no {name}.*fold 3 of 5 is not done"):
            getattr(run, name)
    assert "not finished" in run._repr_html_()
    assert len(run.plot_history().data) == 10


@pytest.mark.parametrize(
    ("given", "error"), [(3, ConfigError), ("", ConfigError), ("nowhere", RunFolderError)]
)
def test_what_is_no_run(given, error):
    with pytest.raises(error):
        Run(given)


def test_text_of_a_run_is_shown_never_obeyed(folder, tmp_path):
    place = tmp_path / "<script>alert(1)</script>"
    shutil.copytree(folder, place)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["folds"]["3"]["state"] = "<b>done</b>\x1b[2J"
    (place / "manifest.json").write_text(json.dumps(manifest))
    page = Run(place)._repr_html_()
    assert "<script" not in page
    assert "<b>done" not in page
    assert "\x1b" not in page


def test_the_report_is_written_into_the_folder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    path = Run(tmp_path / "run").report()
    assert path == str(tmp_path / "run/report.html")
    assert (tmp_path / "run/report.html").exists()
