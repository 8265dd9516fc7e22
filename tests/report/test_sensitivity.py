"""The sensitivity study: curves against what they were drawn from, and a whole study of small networks."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import runs as fake
import yaml

from setibl_ray import evaluate, report
from setibl_ray.core.errors import ConfigError
from setibl_ray.core.run.folder import sha256
from setibl_ray.seti.evaluation import sensitivity
from setibl_ray.seti.evaluation.finished import load_run
from setibl_ray.seti.making import synth
from setibl_ray.seti.making.recipe import NEEDLE_KINDS
from setibl_ray.seti.reporting.sensitivity import drawings

HALF = 10.0


def drawn(n: int = 4000) -> pd.DataFrame:
    """Needles whose score rises with S/N and passes the highest haystacks' at HALF; drift and kind do not matter."""
    rng = np.random.default_rng(0)
    snr = np.exp(rng.uniform(*np.log(sensitivity.SNR), n))
    needles = pd.DataFrame(
        {
            "target": 1,
            "kind": rng.choice(NEEDLE_KINDS, n),
            "snr": snr,
            "drift_hz_s": rng.uniform(-0.4, 0.4, n),
            "pred": 1 / (1 + np.exp(-4 * np.log(snr / HALF) - rng.logistic(size=n))),
            "line": rng.uniform(size=n),
        }
    )
    haystacks = {"target": 0, "kind": "haystack", "pred": rng.uniform(0, 0.5, 10_000)}
    return pd.concat(
        [needles, pd.DataFrame(haystacks | {"line": rng.uniform(size=10_000)})], ignore_index=True
    )


@pytest.fixture(scope="module")
def study():
    return sensitivity.examine(drawn())


def test_the_snr_found_is_the_one_that_the_scores_were_drawn_around(study):
    run, baseline = study["methods"]
    level = run["levels"][1]
    half, most = level["snr_at"]
    assert half["snr"] == pytest.approx(HALF, rel=0.1)
    assert half["interval"][0] < HALF < half["interval"][1]
    assert most["snr"] == pytest.approx(HALF * np.exp(np.log(9) / 4), rel=0.15)
    shares = [row["share"] for row in level["by_snr"]]
    assert shares == sorted(shares)
    for by in ("by_snr", "by_drift", "by_kind"):
        assert sum(row["n"] for row in level[by]) == 4000
        assert sum(row["n_hits"] for row in level[by]) == level["n_hits"]
    assert {row["kind"] for row in level["by_kind"]} == set(NEEDLE_KINDS)
    assert baseline["auc"] == pytest.approx(0.5, abs=0.02)
    assert baseline["levels"][0]["snr_at"][0] == {"recall": 0.5, "snr": None, "interval": None}
    assert any("50 % from 9." in line or "50 % from 10." in line for line in sensitivity.lines(study))


def test_no_more_haystacks_pass_than_the_rate_allows():
    table = drawn()
    table.loc[table["target"] == 0, "pred"] = np.repeat(np.linspace(0, 0.5, 100), 100)  # ties, a hundred each
    for level in sensitivity.examine(table)["methods"][0]["levels"]:
        assert level["n_false"] == (100 if level["fpr"] == 0.01 else 0)
    table.loc[table["target"] == 0, "pred"] = 1.0  # nothing can be told: nothing is found
    assert [level["n_hits"] for level in sensitivity.examine(table)["methods"][0]["levels"]] == [0, 0, 0]


def test_figures_show_every_method_rate_and_kind(study):
    shown = drawings(study)
    assert len(shown["sensitivity-snr"]["data"]) == 2 * len(sensitivity.FPR_LEVELS)
    assert len(shown["sensitivity-drift"]["data"]) == 2
    assert [bars["x"] for bars in shown["sensitivity-kinds"]["data"]] == 2 * [sorted(NEEDLE_KINDS)]


def test_a_drift_is_that_of_the_track_and_the_cadence_is_as_without_it():
    recipe = sensitivity.recipe_for(60, 40, seed=1, data={"panel_shape": [64, 64], "df_hz": 2.8, "dt_s": 1.1})
    made = [(synth.synthesise_with_drift(recipe, one), one) for one in synth.plan(recipe, "train", 0)]
    most = 1.01 * 64 * recipe.df_hz / (6 * 64 * recipe.dt_s)  # a band in a cadence without slews
    for (record, drift), planned in made:
        assert math.isnan(drift) == (planned.kind in ("haystack", "hard-one-on"))
        if planned.kind == "needle-constant":
            assert 0 < abs(drift) < most
        np.testing.assert_array_equal(record.panels, synth.synthesise(recipe, planned).panels)


def test_a_conditioned_run_is_refused():
    with pytest.raises(ConfigError, match=r"conditioned observations; `search --recover`"):
        sensitivity.recipe_for(1000, 100, seed=0, data={"panel_shape": [64, 64], "conditioning": {"z": 1}})


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A run with two untrained networks of unlike image sizes, its study and its report; and the networks."""
    from setibl_ray.seti.train import keras2
    from setibl_ray.seti.train.models import build_model

    path = fake.write_run(tmp_path_factory.mktemp("studied") / "run", n_train=60, n_test=20, folds=2)
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"image_size": ["48x32", "32x40"]}))
    run, manifest, models = load_run(str(path)), json.loads((path / "manifest.json").read_text()), []
    manifest["data"]["panel_shape"] = [64, 64]
    for fold in range(2):
        own = run.config.for_fold(fold)
        models.append(build_model((*own.image_size, 6), run.config, own))
        content = keras2.weights_file(models[-1])
        (path / f"fold-{fold}" / "weights.h5").write_bytes(content)
        manifest["folds"][str(fold)]["files"] = {f"fold-{fold}/weights.h5": sha256(content)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    command = ["setibl_ray.evaluate", str(path), "--sensitivity", "--haystacks", "100", "--needles", "100"]
    # A process of its own: in this one, TensorFlow may already run with another number of threads.
    subprocess.run([sys.executable, "-m", *command, "--bootstrap", "10"], check=True)
    assert report.entry([str(path)]) == 0
    return path, models


def test_scores_are_the_mean_over_folds_of_each_network_s_own(studied):
    from setibl_ray.seti.feeding import augment, panels

    path, models = studied
    run, table = load_run(str(path)), pd.read_csv(path / "sensitivity.csv")
    recipe = sensitivity.recipe_for(100, 100, seed=run.config.seed, data=run.manifest["data"])
    raw, rows = sensitivity.make(recipe, 1)
    scores = []
    for fold, model in enumerate(models):
        size = run.config.for_fold(fold).image_size
        images = panels.prepare(raw.transpose(0, 2, 3, 1), size, run.config.standardize)
        plain = augment.plain(images, np.arange(len(images)), panels.Z_RANGE)
        scores.append(model.predict_on_batch(plain)[:, 0])
    own = table.iloc[100:].reset_index(drop=True)
    np.testing.assert_allclose(own["pred"], np.mean(scores, axis=0), atol=1e-5)
    assert own[["target", "kind"]].equals(rows[["target", "kind"]])
    for column in ("snr", "drift_hz_s", "line"):
        np.testing.assert_allclose(own[column], rows[column], rtol=1e-5)


def test_the_command_writes_what_it_found_and_the_report_shows_it(studied, capsys):
    path, _ = studied
    written = json.loads((path / "metrics.json").read_text())["sensitivity"]
    assert (written["n_haystacks"], written["n_needles"]) == (100, 100)
    assert [method["name"] for method in written["methods"]] == list(sensitivity.METHODS)
    assert len(pd.read_csv(path / "sensitivity.csv")) == 200
    text = (path / "report.html").read_text()
    for name in ("snr", "drift", "kinds"):
        assert f'id="figure-sensitivity-{name}"' in text
    assert evaluate.entry([str(path), "--bootstrap", "10"]) == 0  # keeps the study, and prints it
    assert json.loads((path / "metrics.json").read_text())["sensitivity"] == written
    assert "100 haystacks, half of them look-alikes" in capsys.readouterr().out


def test_a_run_without_weights_is_refused_before_anything_is_made(tmp_path, capsys):
    path = fake.write_run(tmp_path / "run", n_train=60)
    assert evaluate.entry([str(path), "--sensitivity"]) == 2
    assert "keeps no weights.h5" in capsys.readouterr().err
