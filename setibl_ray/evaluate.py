"""`python -m setibl_ray.evaluate RUN`: score a run, check whether the score can be trusted, and measure sensitivity."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from setibl_ray import cli
from setibl_ray.core.storage import Location
from setibl_ray.core.terminal import say
from setibl_ray.core.text import number, percent, spread
from setibl_ray.seti.evaluation import metrics, selection
from setibl_ray.seti.evaluation.finished import Run, load_run
from setibl_ray.seti.evaluation.summary import summary_lines


class Evaluate(cli.Command):
    """Recompute RUN/metrics.json and print it; `python -m setibl_ray.report RUN` draws it."""

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.evaluate")

    run: CliPositionalArg[Location]
    """Run folder or URL."""
    baselines: bool = False
    """Score simple methods on the same folds, and check for leaks (reads the shards)."""
    rows: Annotated[int, Field(ge=100)] = 5000
    """How many training cadences, and how many test cadences, --baselines reads at most, drawn at random."""
    sensitivity: bool = False
    """Measure recall on new simulated cadences, by S/N, drift and kind of needle, at three rates of false positives."""
    haystacks: Annotated[int, Field(ge=100)] = 10_000
    """Haystacks that --sensitivity makes; its lowest rate of false positives, 0.01 %, is one in 10,000."""
    needles: Annotated[int, Field(ge=100)] = 4000
    """Needles that --sensitivity makes."""
    data: Location | None = None
    """Where the shards are now [where the run read them]."""
    bootstrap: Annotated[int, Field(ge=10)] = 500
    """Resamples behind each interval."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of the resamples and of the rows drawn [the run's own, which gives the same intervals as the run]."""


def evaluate(run: Run, *, n_bootstrap: int = 500, seed: int = 0) -> dict[str, Any]:
    """The content of metrics.json; keeps entries that only `cv` and `--baselines` can compute."""
    fresh = metrics.summarise(run.oof, n_bootstrap=n_bootstrap, seed=seed)
    for fold in fresh["folds"]:
        past = run.histories[fold["fold"]]
        fold |= {
            "best_epoch": run.best_epochs[fold["fold"]],
            "val_auc": metrics.plain(past["val_auc"].to_numpy()),
        }
    fresh["selection"] = selection.check(run.config.select, run.histories)
    return {**(run.metrics or {}), **fresh}


def trust_lines(summary: dict[str, Any]) -> list[str]:
    """Baselines and checks as text."""
    lines = [
        f"{row['name']:34}AUC {number(row['auc'])} {spread(row['interval'])}, "
        f"recall {percent(row['recall_at_fpr'][0]['recall'])} at 1 % FPR"
        for row in summary.get("baselines", [])
    ]
    marks = {"ok": "✓", "look": "?", "problem": "✗"}
    return [
        *lines,
        *(f"{marks[check['state']]} {check['name']}: {check['says']}" for check in summary.get("trust", [])),
    ]


def study(run: Run, n_haystacks: int, n_needles: int, seed: int) -> dict[str, Any]:
    """Score new cadences and return what `sensitivity.examine` does; RUN/sensitivity.csv gets labels and scores."""
    from setibl_ray.seti.evaluation import sensitivity
    from setibl_ray.seti.formats.writer import n_cores

    recipe = sensitivity.recipe_for(n_haystacks, n_needles, seed=seed, data=run.manifest["data"])
    say(f"making and scoring {recipe.train:,} cadences …")
    weights = [run.weights(fold) for fold in range(run.config.folds)]
    table = sensitivity.score(run.config, weights, recipe, n_processes=n_cores())
    run.folder.write_csv("sensitivity.csv", table)
    return sensitivity.examine(table, seed=seed)


def sensitivity_lines(summary: dict[str, Any]) -> list[str]:
    from setibl_ray.seti.evaluation.sensitivity import lines

    return lines(summary["sensitivity"]) if "sensitivity" in summary else []


def main(options: Evaluate) -> int:
    run = load_run(options.run)
    seed = run.config.seed if options.seed is None else options.seed
    summary = evaluate(run, n_bootstrap=options.bootstrap, seed=seed)
    if options.baselines:
        from setibl_ray.seti.evaluation import probes
        from setibl_ray.seti.evaluation.pixels import open_pixels

        summary |= probes.examine(run, open_pixels(run, options.data), max_rows=options.rows, seed=seed)
    if options.sensitivity:
        summary["sensitivity"] = study(run, options.haystacks, options.needles, seed)
    run.folder.write_json("metrics.json", summary)
    say("\n".join([*summary_lines(summary), *trust_lines(summary), *sensitivity_lines(summary)]))
    return 0


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Evaluate, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
