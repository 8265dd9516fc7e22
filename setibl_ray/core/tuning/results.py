"""What a sweep found: trials.csv, best.yaml, sweep.html, confirm.csv, and the same in a few lines of text."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import yaml

from setibl_ray.core.config import Config
from setibl_ray.core.randomness import stream_key
from setibl_ray.core.task import Rows, Score, Task
from setibl_ray.core.tuning.compare import Comparison, against_base, confirmed
from setibl_ray.core.tuning.ledger import DEFAULT, Ledger, Trial
from setibl_ray.core.tuning.search import study_of
from setibl_ray.core.tuning.space import Space, apply

SHOWN = 8


@dataclass(frozen=True)
class Results:
    """A sweep's outcome, complete or so far.

    Attributes:
      root: the sweep's folder.
      table: trials.csv.
      best: the best finished trial; None before one is finished.
      config: its config.
      labels: searched field -> its short name.
      score: how trials are judged.
      full: fold-epochs of all trials, had each run to its end.
      against_base: the best against the base config on the same rows; None where the base is the best or is missing.
      confirmed: the same with other seeds, where that was asked for.
      command, flags: what a user types to sweep, and its flags that say where; empty if called from Python.
      data: where the rows came from.
    """

    root: str
    table: pd.DataFrame
    best: Trial | None
    config: Config | None
    labels: dict[str, str]
    score: Score
    full: int
    against_base: Comparison | None
    confirmed: Comparison | None
    command: str = ""
    flags: Sequence[str] = ()
    data: str = ""

    @property
    def again(self) -> str:
        """How to go on with the sweep."""
        if not self.command:
            return "the same call with resume=True"
        return f"{self.command} {shlex.join(['--out', self.root, '--resume', *self.flags])}"

    def verdict(self) -> str:
        """Whether the best trial differs from the base config, in a sentence."""
        if self.best is None:
            return "No trial is finished."
        if self.best.number == DEFAULT:
            best = f"out-of-fold {self.score.label} {self.best.score:.4f}"
            return f"No finished trial is better than the base config: {best}."
        trial = f"Trial {self.best.number}"
        if self.against_base is None:
            diverged = (self.table["state"][self.table["trial"] == DEFAULT] == "done").any()
            why = "predicts no numbers, so there is nothing" if diverged else "is not finished"
            return f"{trial} is the best; the base config {why} to compare with."
        found = self.against_base
        if found.is_better:
            return f"{trial} beats the base config beyond noise: {found.figures}."
        return f"{trial} ranks first, but these rows cannot tell it from the base config: {found.figures}."

    def __repr__(self) -> str:
        return f"{self.root}: {self.verdict()}"

    @property
    def _best_first(self) -> pd.DataFrame:
        return self.table.sort_values(self.score.name, ascending=self.score.sign < 0, kind="stable")

    def _repr_html_(self) -> str:
        shown = self._best_first[["trial", "state", self.score.name, *self.labels]].head(SHOWN)
        return f"<div><p>{escape(repr(self))}</p>{shown.to_html(escape=True, border=0, index=False)}</div>"

    def lines(self) -> list[str]:
        """The outcome in at most 20 lines."""
        if self.best is None:
            return [f"no trial is finished; {self.root}/trials.csv says how far each came"]
        width = {name: max(len(label), 8) for name, label in self.labels.items()}
        heads = [label.rjust(width[name]) for name, label in self.labels.items()]
        lines = ["  ".join([f"trial  OOF {self.score.label:4} 95 % interval", *heads])]
        done = self._best_first[self._best_first["state"] == "done"]
        place = np.arange(len(done))
        for row in done[(place < SHOWN) | (done["trial"] == DEFAULT)].to_dict("records"):
            values = [_shown(row[name]).rjust(width[name]) for name in self.labels]
            if row["trial"] == DEFAULT:
                values = ["(the base config)"]
            name = self.score.name
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            spread = f"[{low:.3f}, {high:.3f}]" if low is not None and np.isfinite(low) else "–"
            known = f"{row['trial']:5d}   {row[name]:.4f}  {spread:14}"
            lines.append("  ".join([known, *values]))
        counts = self.table["state"].value_counts()
        spent = int(self.table["fold_epochs"].sum())
        lines.append(
            ", ".join(f"{count} {state}" for state, count in counts.items())
            + f"; {spent} of {self.full} fold-epochs trained"
        )
        lines.append(self.verdict())
        if self.confirmed is not None:
            lines.append(f"With other seeds: {self.confirmed}.")
        elif self.against_base is not None:
            confirm = " --confirm" if self.command else " and options={'confirm_seeds': 2}"
            lines.append(f"Other seeds may say otherwise: {self.again}{confirm}")
        best = f"{self.root}/best.yaml"
        cv = f"{self.command.rpartition('sweep')[0]}cv {shlex.join(['--config', best, '--data', self.data])}"
        lines.append(f"train it: {cv}" if self.command else f"best config: {best}")
        lines.append(f"page: {self.root}/sweep.html")
        return lines


def confirm_root(root: str, best: Trial) -> str:
    """The folder of the confirmation of `best`; each best trial has its own."""
    return f"{root}/confirm/trial-{best.name}"


def confirm_seeds(base: Config, n_seeds: int) -> list[int]:
    """Seeds other than the sweep's own, the same at each call."""
    return [stream_key(base.seed, "confirm", i) % 2**32 for i in range(n_seeds)]


def write_results(
    ledger: Ledger,
    space: Space,
    base: Any,
    task: Task,
    rows: Rows,
    rungs: Sequence[int],
    command: str,
    flags: Sequence[str],
) -> Results:
    """Compare what is finished and write the sweep's tables and page.

    Args:
      ledger, space, base, task, rows: of the sweep.
      rungs: fold-epochs at which trials are stopped.
      command, flags: as in `Results`.
    """
    table = ledger.table(space.names)
    ledger.folder.write_csv("trials.csv", table)
    best, config, against, again = ledger.best, None, None, None
    if best is not None:
        config = apply(base, best.values)
        ledger.folder.write("best.yaml", config.to_yaml())
        group = rows.group
        if best.number != DEFAULT and ledger.is_scored(DEFAULT):
            default = ledger.trials[DEFAULT]
            n_tried = sum(trial.number != DEFAULT for trial in ledger.trials.values())
            against = against_base(ledger.score, _oof(ledger, best), _oof(ledger, default), group, n_tried)
            again = _confirmed(ledger, best, group)
    configs = [apply(base, trial.values) for trial in ledger.trials.values()]
    full = sum(max(1, task.needs(config, fold).n_steps) for config in configs for fold in range(config.folds))
    results = Results(
        ledger.root,
        table,
        best,
        config,
        space.labels,
        ledger.score,
        full,
        against,
        again,
        command,
        flags,
        rows.root,
    )
    ledger.folder.write("sweep.html", _page(results, ledger, space, base, rungs))
    return results


def _page(results: Results, ledger: Ledger, space: Space, base: Config, rungs: Sequence[int]) -> str:
    from setibl_ray.core.reporting import sweep_page

    texts = {"Base config": base.to_yaml(), "Search space": yaml.safe_dump(space.plain(), sort_keys=False)}
    if results.config is not None:
        texts["Best config: best.yaml"] = results.config.to_yaml()
    return sweep_page.draw(
        sweep_page.Sweep(
            results,
            space,
            base=space.default(base) or {},
            reports={trial.number: ledger.reports(trial) for trial in ledger.trials.values()},
            importance=_importance(ledger, space, base),
            rungs=rungs,
            seeds=None if results.confirmed is None else ledger.folder.read_csv("confirm.csv"),
            texts=texts,
        )
    )


def _confirmed(ledger: Ledger, best: Trial, group: pd.Series | None) -> Comparison | None:
    again = Ledger(confirm_root(ledger.root, best), ledger.score)
    again.load()
    by_seed: dict[int, dict[bool, Trial]] = {}
    for trial in again.done:
        by_seed.setdefault(trial.values["seed"], {})[len(trial.values) > 1] = trial
    whole = {
        seed: pair
        for seed, pair in by_seed.items()
        if len(pair) == 2 and all(again.is_scored(trial.number) for trial in pair.values())
    }
    if not whole:
        return None
    name = ledger.score.name
    pairs = [(_oof(again, pair[True]), _oof(again, pair[False])) for pair in whole.values()]
    rows = [
        {"seed": seed, f"{name}_best": pair[True].score, f"{name}_base": pair[False].score}
        for seed, pair in whole.items()
    ]
    table = pd.DataFrame(rows).assign(difference=lambda t: t[f"{name}_best"] - t[f"{name}_base"])
    ledger.folder.write_csv("confirm.csv", table)
    return confirmed(ledger.score, pairs, group)


def _oof(ledger: Ledger, trial: Trial) -> pd.DataFrame:
    return ledger.run_folder(trial).read_csv("oof.csv")


def _importance(ledger: Ledger, space: Space, base: Config) -> dict[str, float]:
    """Field -> share of the finished trials' variance in score (fANOVA); empty if there are too few trials."""
    import optuna

    if len(ledger.done) < 4:
        return {}
    study = study_of(space, base, ledger.done, ledger.score, ledger.reports)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (RuntimeError, ValueError):  # all finished trials have equal scores or equal values
            return {}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
