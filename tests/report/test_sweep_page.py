"""A sweep's page holds what was tried, whatever became of it, and a browser draws it."""

import json
import re

import browser
import pandas as pd
import pytest

from setibl_ray.core.reporting import sweep_page
from setibl_ray.core.reporting.sweep_page import Sweep
from setibl_ray.core.tuning.space import Field, Space

FIELDS = (
    Field("schedule.lr-max", "loguniform", (1e-4, 0.1)),
    Field("augment.strength", "uniform", (0, 2)),
    Field("model", "choice", (["efficientnet-b0"], ["efficientnet-b1"])),
)
LR, STRENGTH = [None, 0.01, 0.002, 0.0004, 0.03], [None, 0.2, 1.1, 0.7, 1.9]
MODEL = [None, ["efficientnet-b1"], ["efficientnet-b0"], ["efficientnet-b1"], ["efficientnet-b0"]]
AUC = [0.80, 0.86, 0.55, None, 0.83]
MESSAGE = "fold 0: <b>ValueError</b>: this model cannot be built"


def sweep(states=("done", "done", "stopped", "failed", "done"), **changes) -> Sweep:
    n = len(states)
    table = pd.DataFrame({"trial": range(n), "state": states, "score": pd.Series(AUC[:n], dtype=float)})
    is_done = table["state"] == "done"
    table["low"], table["high"] = (table["score"].where(is_done) + away for away in (-0.03, 0.03))
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
    content = {
        "name": "night-3", "table": table, "space": Space(FIELDS), "reports": reports, "best": 1, "default": 0,
        "base": {"schedule.lr-max": 1e-3, "augment.strength": 1.0},
        "importance": {"schedule.lr-max": 0.7, "augment.strength": 0.3}, "rungs": [2, 6], "full": 45,
        "verdict": "Trial 1 beats the base config beyond noise.",
        "gain": ("+0.0600", "best against base config", "[+0.0200 – +0.1000]"),
        "confirmed": "", "seeds": None, "texts": {"Base config": "folds: 3\n"},
    }  # fmt: skip
    return Sweep(**{**content, **changes})


def figures(page: str) -> dict:
    return json.loads(
        re.search(r'<script id="figures" type="application/json">(.*?)</script>', page, re.S)[1]
    )


def test_the_page_holds_every_trial_and_fetches_nothing():
    page = sweep_page.draw(sweep())
    assert not re.search(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', page.split('<script id="figures"')[0])
    assert "Trial 1 beats the base config beyond noise." in page
    assert MESSAGE not in page
    assert "&lt;b&gt;ValueError" in page
    assert "<td>1 · best</td>" in page
    assert "<td>0 · base config</td>" in page
    drawn = figures(page)
    assert set(drawn) == {
        "objective", "field-0", "field-1", "field-2", "parallel", "importance", "curves", "timeline"
    }  # fmt: skip
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
    page = sweep_page.draw(sweep(states, best=best, gain=None, importance={}, full=18 * len(states)))
    assert ("No trial is finished yet." in page) == (best is None)
    assert page.count("<tr>") == 1 + len(states)


def test_a_score_of_which_less_is_better():
    table = sweep().table.assign(score=[2.5, 1.25, 9.0, None, 1234.5])
    page = sweep_page.draw(sweep(table=table, score="RMSE", direction="minimize"))
    assert "AUC" not in page.split('<script id="figures"')[0]
    best_so_far, _ = figures(page)["objective"]["data"]
    assert best_so_far["y"] == [2.5, 1.25, 1.25]
    assert re.findall(r"<td>(\d)(?: · [a-z ]+)?</td>\s*<td>done</td>", page) == ["1", "0", "4"]
    assert "<td>1,234.5</td>" in page


def test_repetitions_with_other_seeds_are_a_table():
    seeds = pd.DataFrame({"seed": [7, 8], "best": [0.85, 0.86], "base": [0.81, 0.8]})
    seeds["difference"] = seeds["best"] - seeds["base"]
    page = sweep_page.draw(sweep(seeds=seeds, confirmed="Repeated with other seeds: within noise."))
    assert "Repeated with other seeds: within noise." in page
    assert "<td>+0.0600</td>" in page


@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "chromium is there")
def test_a_real_browser_draws_every_figure(tmp_path):
    page = tmp_path / "sweep.html"
    page.write_text(sweep_page.draw(sweep()), encoding="utf-8")
    with browser.browser() as chromium:
        for width, dark in [(1400, True), (390, False)]:
            chromium.open(page, width=width, dark=dark)
            # Parallel coordinates are WebGL, which a headless browser has to compute, and says so.
            assert [
                text for text in chromium.errors() if "swiftshader" not in text and "GL Driver" not in text
            ] == []
            for name in figures(page.read_text(encoding="utf-8")):
                shown = chromium.run(
                    f"const box = document.getElementById('figure-{name}').querySelector('.main-svg')"
                    ".getBoundingClientRect(); return [box.width, box.right]"
                )
                assert shown[0] > 200, name
                assert shown[1] <= width, name
            assert chromium.run("return document.scrollingElement.scrollWidth") <= width
