"""The values of a trial: random, from a grid, or by Optuna's TPE based on the trials so far.

A suggestion is a function of (seed, trial number, trials so far), with no state between calls. Optuna is told about
stopped trials as pruned ones, with their score at each step: Tune's own OptunaSearch would report the score of an
early epoch as if it were that of a finished cross-validation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import pandas as pd
from ray.tune.search import Searcher

from setibl_ray.core.config import Config
from setibl_ray.core.randomness import generator, stream_key
from setibl_ray.core.task import Score
from setibl_ray.core.tuning.ledger import DEFAULT, Trial
from setibl_ray.core.tuning.space import Space

Search = Literal["optuna", "random", "grid"]
Reports = Callable[[Trial], pd.DataFrame]
N_STARTUP = 8  # trials that TPE draws at random before it has a model of good and bad points


def suggest(
    search: Search,
    space: Space,
    base: Config,
    number: int,
    trials: Iterable[Trial],
    score: Score,
    reports: Reports,
) -> dict[str, Any]:
    """Values of trial `number`.

    Args:
      search: how.
      space: where.
      base: its seed decides the draws; if it lies in the space, Optuna learns of it as trial 0.
      number: from 1; trial 0 is the base config.
      trials: all trials so far, also those that run.
      score: how trials are judged.
      reports: a trial's score by step.
    """
    if search == "grid":
        return space.grid()[number - 1]
    if search == "random":
        return space.sample(generator(base.seed, "sweep", number))
    return _tpe(space, base, number, trials, score, reports)


def _tpe(
    space: Space, base: Config, number: int, trials: Iterable[Trial], score: Score, reports: Reports
) -> dict[str, Any]:
    import optuna

    seed = stream_key(base.seed, "sweep", number) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=N_STARTUP,
            multivariate=True,  # learning rate and augmentation depend on each other
            constant_liar=True,  # new trials keep away from running ones
        )
    study = study_of(space, base, trials, score, reports, sampler)
    asked = study.ask({field.name: field.distribution() for field in space})
    return {field.name: field.decode(asked.params[field.name]) for field in space}


def study_of(
    space: Space, base: Config, trials: Iterable[Trial], score: Score, reports: Reports, sampler: Any = None
) -> Any:
    """An Optuna study in memory that knows `trials`."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=score.direction, sampler=sampler)
    distributions = {field.name: field.distribution() for field in space}
    for trial in sorted(trials, key=lambda trial: trial.number):
        values = trial.values if trial.number != DEFAULT else space.default(base)
        if values is None or trial.state == "failed":
            continue
        params = {field.name: field.encode(values[field.name]) for field in space}
        known: dict[str, Any] = {"state": TrialState.RUNNING}
        if trial.state == "done":
            known = {
                "state": TrialState.COMPLETE,
                "value": score.worst if trial.score is None else trial.score,
            }
        elif trial.state == "stopped":
            steps = reports(trial)
            curve = dict(zip(steps["fold_epochs"].tolist(), steps["score"].tolist()))
            known = {"state": TrialState.PRUNED, "intermediate_values": curve}
        study.add_trial(create_trial(params=params, distributions=distributions, **known))
    return study


class Queue(Searcher):
    """Tune's way to ask for the next trial, answered from an iterator of trials."""

    def __init__(self, trials: Iterator[Trial]) -> None:
        super().__init__(metric="score", mode="max")
        self._trials = trials

    def suggest(self, trial_id: str) -> Any:
        trial = next(self._trials, None)
        return Searcher.FINISHED if trial is None else {"trial": trial.number, **trial.values}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing to note: the ledger has it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
