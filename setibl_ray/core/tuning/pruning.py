"""Tune's ASHA over fold-epochs, with a memory that outlives the process and one trial that it never stops."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pandas as pd
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from setibl_ray.core.tuning.ledger import DEFAULT, Ledger


class Pruning(ASHAScheduler):
    """A trial goes on past a rung only among the best `1/reduction_factor` of those that were there.

    Rungs lie at `grace`, `grace x reduction_factor`, … fold-epochs; every trial passes the same steps of the
    ladder, so those it is compared with had the same folds and epochs. The base config runs to its end:
    everything is held against it.

    Args:
      ledger: where a stop is written down before anything follows from it.
      grace: fold-epochs before the first rung.
      total: fold-epochs of a whole trial.
      reduction_factor: more stops more.

    Attributes:
      rungs: fold-epochs at which trials are stopped.
    """

    def __init__(self, ledger: Ledger, *, grace: int, total: int, reduction_factor: float) -> None:
        super().__init__(
            time_attr="fold_epochs",
            metric="score",
            mode="max" if ledger.score.sign > 0 else "min",
            grace_period=min(grace, total),
            max_t=total,
            reduction_factor=reduction_factor,
            stop_last_trials=False,
        )
        self._ledger = ledger
        rungs = (math.ceil(grace * reduction_factor**k) for k in itertools.count())
        self.rungs = list(itertools.takewhile(lambda rung: rung < total, rungs))

    def replay(self, number: int, reports: pd.DataFrame) -> None:
        """Put what a trial of an earlier session reported back into the rungs."""
        stand_in: Any = SimpleNamespace(trial_id=f"earlier-{number}")
        no_controller: Any = None  # which ASHA does not ask anyway
        self.on_trial_add(no_controller, stand_in)
        for report in reports.to_dict("records"):
            super().on_trial_result(no_controller, stand_in, report)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        number = trial.config["trial"]
        if action == TrialScheduler.STOP:
            if number == DEFAULT:
                return TrialScheduler.CONTINUE
            self._ledger.end(self._ledger.trials[number], "stopped")
        return action
