"""Tune's ASHA over fold-epochs, with a state that survives the process and one trial that is never stopped."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pandas as pd
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from setibl_ray.core.tuning.ledger import DEFAULT, Ledger


class Pruning(ASHAScheduler):
    """At each rung, only the best `1/reduction_factor` of the trials that reached it continue.

    Rungs are at `grace`, `grace x reduction_factor`, … fold-epochs; every trial passes the same steps of the
    ladder, so those that are compared had the same folds and epochs. The base config runs to its end, as
    everything is compared with it.

    Args:
      ledger: records a stop before anything follows from it.
      grace: fold-epochs before the first rung.
      total: fold-epochs of a whole trial.
      reduction_factor: the larger it is, the more trials are stopped.

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
        """Enter the reports of a trial of an earlier session into the rungs again."""
        stand_in: Any = SimpleNamespace(trial_id=f"earlier-{number}")
        no_controller: Any = None  # which ASHA does not use anyway
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
