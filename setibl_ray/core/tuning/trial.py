"""One trial: a driver of its own, inside its placement group, that reports at each step of the ladder.

It follows its folds as `cv` does and leaves a run folder, so a trial that is taken up again, after a crash of the
worker, the node or the whole sweep, trains no finished fold and no finished epoch twice. Its process sits on the
sweep's own node and takes no core there: as in `cv`, only that node writes, and no storage need be shared.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from ray import tune

from setibl_ray.core import folds
from setibl_ray.core.cluster.placement import Request
from setibl_ray.core.cluster.runner import RayRunner
from setibl_ray.core.contract import (
    AnyJob,
    EpochEnd,
    Event,
    Failed,
    FoldResult,
    Plan,
    Predicted,
    Runner,
    Task,
)
from setibl_ray.core.errors import SetiblError
from setibl_ray.core.run import driver
from setibl_ray.core.run import resume as taken_up
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import describe
from setibl_ray.core.run.oof import CoverageError
from setibl_ray.core.run.supervisor import Supervisor
from setibl_ray.core.tuning.ladder import DIVERGED, Standing, ladder
from setibl_ray.core.tuning.ledger import run_folder
from setibl_ray.core.tuning.space import apply
from setibl_ray.seti.config import Config
from setibl_ray.seti.formats.shards import DataIndex

FATAL = ("data",)  # causes that every other trial would meet as well


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep have in common.

    Attributes:
      root: the sweep's folder.
      base: the config that a trial's values are put into.
      index: the data.
      scratch: folder on each node for decoded panels; one for all trials, so a node decodes the data once.
      request: what one fold takes from a node.
      slots: folds that a trial runs at once.
      task: the fold task or its dotted name.
      predict_test: also predict the test set in every trial.
      keep_weights: keep each fold's weights (as much as a run of `cv` per trial).
      max_retries: retries of a fold whose worker or node died.
      command: what the user typed.
    """

    root: str
    base: Config
    index: DataIndex
    scratch: str
    request: Request
    slots: int
    task: Task | str
    predict_test: bool
    keep_weights: bool
    max_retries: int
    command: str

    def plan(self, config: Config) -> Plan:
        index = self.index
        fold_of_row = folds.assign(config, index.train, describe(index)["n_train_shards"], index.root)
        return Plan(config, index, fold_of_row, self.scratch, predict_test=self.predict_test)


class CrossValidationTrial(tune.Trainable):
    """Tune's side of a trial. One `step` is one step of the ladder; a failure is a report, not an exception."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]  # Tune's own way
        self._shared = shared
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        values = {name: value for name, value in config.items() if name != "trial"}
        self._work = Work(self._shared, config["trial"], values)
        self._reports = self._work.reports()

    def step(self) -> dict[str, Any]:
        try:
            return next(self._reports)
        except SetiblError as error:
            self._work.cancel()
            return {"failed": error.message, "fatal": False, "done": True}

    def cleanup(self) -> None:
        self._work.cancel()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        # Tune hands this actor, with its placement group, to the next trial: the group's fold processes live
        # on, and the next trial's folds find their model compiled.
        self.cleanup()
        self._begin(new_config)
        return True


class Work:
    """A trial's folds, from what its folder holds to the last report."""

    def __init__(self, shared: Shared, number: int, values: dict[str, Any]) -> None:
        self._shared = shared
        self._folder = run_folder(shared.root, number)
        config = apply(shared.base, values)
        self._plan = shared.plan(config)
        epochs = [config.for_fold(fold).epochs for fold in range(config.folds)]
        target = shared.index.train["target"].to_numpy()
        self._standing = Standing(ladder(epochs, shared.slots), target, self._plan.fold_of_row)
        self._history = _History(self._folder)
        self._runner: Runner | None = None

    def reports(self) -> Iterator[dict[str, Any]]:
        """A report per step of the ladder, the first ones from what is known already; the last has `done`."""
        shared, plan, folder = self._shared, self._plan, self._folder
        self._manifest = driver.open_run(folder, plan, folder.exists(), command=shared.command)
        runner = RayRunner(shared.task, plan, shared.request, shared.slots, spread=False)
        self._runner = _Recorded(runner, self._history)
        self._supervisor = Supervisor(
            self._runner,
            folder,
            self._manifest,
            plan,
            shared.max_retries,
            keep_weights=shared.keep_weights,  # a sweep of large models would fill any disk
        )
        self._supervisor.take_up(*taken_up.take_up(folder, self._manifest, plan))
        for fold, epoch, auc in self._history.epochs:
            self._standing.saw_epoch(fold, epoch, auc)
        for fold in self._supervisor.results:
            self._saw_fold(fold)
        yield from self._new_steps()
        for event, decision in self._supervisor.follow():
            if isinstance(event, EpochEnd):
                self._standing.saw_epoch(event.fold, event.epoch, _finite(event.row["val_auc"]))
            elif isinstance(event, FoldResult | Predicted):
                self._saw_fold(event.fold)
            elif isinstance(event, Failed) and decision is not None and decision.action == "give-up":
                # Without this fold there is no out-of-fold AUC: the others would train for nothing.
                yield {
                    "failed": f"fold {event.fold}: {event.message}",
                    "fatal": event.cause in FATAL,
                    "done": True,
                }
            yield from self._new_steps()

    def cancel(self) -> None:
        """Stop the folds that run; a trial that was stopped for good keeps no state to go on from."""
        if self._runner is not None:
            self._runner.cancel()
            self._runner = None
            if (
                self._folder.exists("trial.json")
                and self._folder.read_json("trial.json")["state"] == "stopped"
            ):
                for fold in range(self._plan.config.folds):
                    self._folder.remove(self._folder.states(fold))

    def _saw_fold(self, fold: int) -> None:
        if not self._supervisor.is_done(fold):
            return
        result = self._supervisor.results[fold]
        for row in result.history:
            self._standing.saw_epoch(fold, int(row["epoch"]), _finite(row["val_auc"]))
        self._standing.saw_result(fold, result.valid_pred)

    def _new_steps(self) -> Iterator[dict[str, Any]]:
        for step, auc in self._standing.reached():
            done = step is self._standing.steps[-1]
            if done:
                # Predictions that are no numbers cannot be gathered: the trial is done, and worth DIVERGED.
                with suppress(CoverageError):
                    found = self._supervisor.results, self._supervisor.predicted
                    driver.gather_run(self._folder, self._manifest, self._plan, *found)
            report = {
                "step": step.number,
                "fold_epochs": step.fold_epochs,
                "spent": self._standing.spent,
                "folds_done": len(self._standing.results),
                "auc": auc,
                "wave_auc": self._standing.wave_auc(step),
            }
            self._history.add_report(report)
            yield {**report, "complete": done, "done": done}


class _Recorded:
    """A runner whose epochs are written down before the driver saves the fold's state.

    The order matters: after a crash between the two, an epoch that is known is trained again, with the same
    bytes; the other way round its AUC would be missing for good.
    """

    def __init__(self, runner: Runner, history: _History) -> None:
        self._runner = runner
        self._history = history

    @property
    def slots(self) -> int:
        return self._runner.slots

    def submit(self, job: AnyJob) -> None:
        self._runner.submit(job)

    def events(self) -> Iterator[Event]:
        for event in self._runner.events():
            if isinstance(event, EpochEnd):
                self._history.add_epoch(event.fold, event.epoch, _finite(event.row["val_auc"]))
            yield event

    def cancel(self) -> None:
        self._runner.cancel()


class _History:
    """epochs.csv and reports.csv of a trial."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._epochs: dict[tuple[int, int], float] = {}
        self._reports: dict[int, dict[str, Any]] = {}
        if folder.exists("epochs.csv"):
            rows = folder.read_csv("epochs.csv").itertuples(index=False)
            self._epochs = {(row.fold, row.epoch): row.val_auc for row in rows}
        if folder.exists("reports.csv"):
            self._reports = {row["step"]: row for row in folder.read_csv("reports.csv").to_dict("records")}

    @property
    def epochs(self) -> list[tuple[int, int, float]]:
        return [(fold, epoch, auc) for (fold, epoch), auc in self._epochs.items()]

    def add_epoch(self, fold: int, epoch: int, auc: float) -> None:
        self._epochs[fold, epoch] = auc
        table = pd.DataFrame(self.epochs, columns=["fold", "epoch", "val_auc"])
        self._folder.write_csv("epochs.csv", table)

    def add_report(self, report: dict[str, Any]) -> None:
        if report["step"] not in self._reports:  # a trial taken up again passes its old steps once more
            self._reports[report["step"]] = {**report, "time_s": time.time()}
            self._folder.write_csv("reports.csv", pd.DataFrame(self._reports.values()))


def _finite(auc: Any) -> float:
    """An AUC as a number; nan, or the empty cell that stands for it in a table, as `DIVERGED`."""
    try:
        value = float(auc)
    except ValueError:
        return DIVERGED
    return value if np.isfinite(value) else DIVERGED
