"""A sweep's page holds what was tried, whatever became of it, and a browser draws it."""

import json
import re

import pandas as pd
import pytest

from setibl_ray.core.reporting import sweep_page
from setibl_ray.core.reporting.sweep_page import Sweep
from setibl_ray.core.task import Score
from setibl_ray.core.tuning.compare import Comparison
from setibl_ray.core.tuning.ledger import Trial
from setibl_ray.core.tuning.results import Results
from setibl_ray.core.tuning.space import Field, Space
from setibl_ray.seti.task import CadenceTask

FIELDS = (
    Field("schedule.lr-max", "loguniform", (1e-4, 0.1)),
    Field("augment.strength", "uniform", (0, 2)),
    Field("model", "choice", (["efficientnet-b0"], ["efficientnet-b1"])),
)
LR, STRENGTH = [None, 0.01, 0.002, 0.0004, 0.03], [None, 0.2, 1.1, 0.7, 1.9]
MODEL = [None, ["efficientnet-b1"], ["efficientnet-b0"], ["efficientnet-b1"], ["efficientnet-b0"]]
AUC = [0.80, 0.86, 0.55, None, 0.83]
FIGURES = {"objective", "field-0", "field-1", "field-2", "parallel", "importance", "curves", "timeline"}
MESSAGE = "fold 0: <b>ValueError</b>: this model cannot be built"


def sweep(
    states=("done", "done", "stopped", "failed", "done"), scores=AUC, score=CadenceTask.score, best=1, gain=0.06,
    confirmed=None, **changes,
) -> Sweep:  # fmt: skip
    n, name = len(states), score.name
    table = pd.DataFrame({"trial": range(n), "state": states, name: pd.Series(scores[:n], dtype=float)})
    is_done = table["state"] == "done"
    table[f"{name}_low"], table[f"{name}_high"] = (
        table[name].where(is_done) + away for away in (-0.03, 0.03)
    )
    table = table.assign(
        **{"schedule.lr-max": LR[:n], "augment.strength": STRENGTH[:n], "model": MODEL[:n]},
        folds_done=[3 * done for done in is_done], fold_epochs=[9 if done else 2 for done in is_done],
        started_s=[1e9 + 60 * number for number in range(n)], ended_s=[1e9 + 60 * number + 90 for number in range(n)],
        message=["" if state != "failed" else MESSAGE for state in states],
    )  # fmt: skip
    reports = {
        number: pd.DataFrame({"fold_epochs": [1, 2], "score": [0.5, auc or 0.5]})
        for number, auc in enumerate(AUC)
    }
    results = Results(
        "sweeps/night-3", table, None if best is None else Trial(best, {}, "done", scores[best]), None, {}, score,
        9 * n, gain and Comparison(score, gain, gain - 0.04, gain + 0.04, 1), confirmed,
    )  # fmt: skip
    content = {
        "reports": reports, "base": {"schedule.lr-max": 1e-3, "augment.strength": 1.0},
        "importance": {"schedule.lr-max": 0.7, "augment.strength": 0.3}, "rungs": [2, 6], "seeds": None,
        "texts": {"Base config": "folds: 3\n"},
    }  # fmt: skip
    return Sweep(results, Space(FIELDS), **{**content, **changes})


def figures(page: str) -> dict:
    return json.loads(
        re.search(r'<script id="figures" type="application/json">(.*?)</script>', page, re.S)[1]
    )


def test_the_page_holds_every_trial_and_fetches_nothing():
    page = sweep_page.draw(sweep())
    assert not re.search(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', page.split('<script id="figures"')[0])
    assert "Trial 1 beats the base config beyond noise: +0.0600 AUC [+0.0200 – +0.1000]." in page
    assert MESSAGE not in page
    assert "&lt;b&gt;ValueError" in page
    assert "<td>1 · best</td>" in page
    assert "<td>0 · base config</td>" in page
    drawn = figures(page)
    assert set(drawn) == FIGURES
    best_so_far, points = drawn["objective"]["data"]
    assert best_so_far["y"] == [0.8, 0.86, 0.86]
    assert points["marker"]["symbol"] == ["diamond", "circle", "circle"]
    assert len(drawn["curves"]["data"]) == len(drawn["timeline"]["data"][0]["y"]) == 5
    stopped = drawn["curves"]["data"][2]
    assert stopped["marker"]["symbol"] == ["circle", "x"]
    # The base config's model is not among the searched ones: it has no place on that axis.
    assert drawn["parallel"]["data"][0]["dimensions"][2]["values"] == [None, 1, 0]


@pytest.mark.parametrize("states", [(), ("unfinished",), ("failed", "failed"), ("done", "stopped")])
def test_a_sweep_that_came_to_little_has_a_page_too(states):
    best = 0 if "done" in states else None
    page = sweep_page.draw(sweep(states, best=best, gain=None, importance={}))
    assert ("No trial is finished yet." in page) == (best is None)
    assert page.count("<tr>") == 1 + len(states)


def test_a_score_of_which_less_is_better():
    score = Score("rmse", lambda target, pred: 0.0, "minimize")
    page = sweep_page.draw(sweep(scores=[2.5, 1.25, 9.0, None, 1234.5], score=score, gain=-1.25))
    assert "AUC" not in page.split('<script id="figures"')[0]
    best_so_far, _ = figures(page)["objective"]["data"]
    assert best_so_far["y"] == [2.5, 1.25, 1.25]
    assert re.findall(r"<td>(\d)(?: · [a-z ]+)?</td>\s*<td>done</td>", page) == ["1", "0", "4"]
    assert "<td>1,234.5</td>" in page


def test_repetitions_with_other_seeds_are_a_table():
    seeds = pd.DataFrame({"seed": [7, 8], "auc_best": [0.85, 0.86], "auc_base": [0.81, 0.8]})
    seeds["difference"] = seeds["auc_best"] - seeds["auc_base"]
    confirmed = Comparison(CadenceTask.score, 0.05, -0.01, 0.11, 1, 2)
    page = sweep_page.draw(sweep(seeds=seeds, confirmed=confirmed))
    assert (
        "Repeated with other seeds: +0.0500 AUC [-0.0100 – +0.1100], over 2 other seeds: within noise" in page
    )
    assert "<td>+0.0600</td>" in page


@pytest.mark.parametrize(("width", "dark"), [(1400, True), (390, False)])
def test_a_real_browser_draws_every_figure(chromium, tmp_path, width, dark):
    page = tmp_path / "sweep.html"
    page.write_text(sweep_page.draw(sweep()), encoding="utf-8")
    drawn = chromium.check(page, width=width, dark=dark, webgl="parallel")
    assert set(drawn) == FIGURES
