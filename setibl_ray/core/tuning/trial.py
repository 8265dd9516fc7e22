"""One trial: a run inside its placement group that reports at each step of the ladder.

It follows its folds as `cv` does and leaves a run folder, so a trial that is continued after a crash of the
worker, the node or the whole sweep repeats no finished fold and no finished step. Its process runs on the
sweep's own node and takes no core there: as in `cv`, only that node writes, and no shared storage is needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from ray import tune

from setibl_ray.core import splits
from setibl_ray.core.cluster.placement import Request
from setibl_ray.core.errors import SetiblError
from setibl_ray.core.jobs import Event, Failed, Predicted, Runner, RunSpec, Stepped, Trained, load_task
from setibl_ray.core.run import session
from setibl_ray.core.run.gathering import CoverageError
from setibl_ray.core.run.record import Record
from setibl_ray.core.run.supervisor import Answer
from setibl_ray.core.task import Score
from setibl_ray.core.tuning.ladder import Standing, ladder
from setibl_ray.core.tuning.ledger import run_folder
from setibl_ray.core.tuning.space import apply
from setibl_ray.core.where import Where

FATAL = ("data",)  # causes that would affect every other trial as well


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep have in common.

    Attributes:
      root: the sweep's folder.
      base: of the base config, into which a trial's values are put, with the files that any trial's config names.
      request: what one fold takes from a node.
      slots: folds that a trial runs at once.
      where: how often folds are retried, how long they may take.
      keep_artifacts: keep each fold's artifact (as much as a run of `cv` per trial).
      command: what the user typed.
    """

    root: str
    base: RunSpec
    request: Request
    slots: int
    where: Where
    keep_artifacts: bool
    command: str

    def spec(self, values: Mapping[str, Any]) -> RunSpec:
        """The specification of a trial's run, in the trial's own process."""
        base = self.base
        config, fold_of_row = apply(base.config, values), base.fold_of_row
        # A split file is not read again: this process may be in another folder, and the file may have changed.
        if config.seed != base.config.seed and not splits.is_file(config.split):
            fold_of_row = splits.assign(config, base.rows)
        scratch = session.scratch_of(base.rows)
        return replace(base, config=config, fold_of_row=fold_of_row, scratch=scratch)


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
        # Tune reuses this actor, with its placement group, for the next trial: the group's fold processes live
        # on, and the next trial's folds find their model compiled.
        self.cleanup()
        self._begin(new_config)
        return True


class Work:
    """A trial's folds, from what its folder holds to the last report."""

    def __init__(self, shared: Shared, number: int, values: dict[str, Any]) -> None:
        self._shared = shared
        self._folder = run_folder(shared.root, number)
        self._spec = shared.spec(values)
        task = load_task(self._spec.task)
        n_steps = [task.needs(self._spec.config, fold).n_steps for fold in range(self._spec.config.folds)]
        steps = ladder(n_steps, shared.slots)
        self._standing = Standing(steps, self._spec.rows.target, self._spec.fold_of_row, task.score)
        self._reports: dict[int, dict[str, Any]] = {}  # rows of reports.csv by step
        if self._folder.exists("reports.csv"):
            rows = self._folder.read_csv("reports.csv").to_dict("records")
            self._reports = {row["step"]: row for row in rows}
        self._runner: Runner | None = None

    def reports(self) -> Iterator[dict[str, Any]]:
        """A report per step of the ladder, the first ones from what is known already; the last has `done`."""
        shared, folder, where = self._shared, self._folder, self._shared.where
        self._record = session.open_record(
            folder,
            self._spec,
            resume=folder.exists(),
            command=shared.command,
            keep_artifacts=shared.keep_artifacts,  # they would fill any disk in a sweep of large models
        )
        self._runner = session.ray_runner(self._spec, shared.request, where, shared.slots, spread=False)
        standing = _Follow(self._standing, self._record)
        yield from self._new_steps()
        for event, answer in session.follow(self._runner, self._record, where.max_retries, [standing]):
            if isinstance(event, Failed) and answer.decision and answer.decision.action == "give-up":
                # Without this fold there is no out-of-fold score, so the others are not needed.
                message = f"fold {event.fold}: {event.message}"
                yield {"failed": message, "fatal": event.cause in FATAL, "done": True}
            yield from self._new_steps()

    def cancel(self) -> None:
        """Stop the folds that run; a trial that was stopped for good keeps no state."""
        if self._runner is not None:
            self._runner.cancel()
            self._runner = None
            self._record.close()
            if (
                self._folder.exists("trial.json")
                and self._folder.read_json("trial.json")["state"] == "stopped"
            ):
                for fold in range(self._spec.config.folds):
                    self._folder.remove(self._folder.states(fold))

    def _new_steps(self) -> Iterator[dict[str, Any]]:
        for step, score in self._standing.reached():
            done = step is self._standing.steps[-1]
            if done:
                # Predictions that are not numbers cannot be gathered: the trial is done, with the worst score.
                with suppress(CoverageError):
                    session.gather(self._record)
            report = {
                "step": step.number,
                "fold_epochs": step.fold_epochs,
                "spent": self._standing.spent,
                "folds_done": len(self._standing.results),
                "score": score,
                "wave_score": self._standing.wave_score(step),
            }
            if step.number not in self._reports:  # a continued trial passes its old steps again
                self._reports[step.number] = {**report, "time_s": time.time()}
                self._folder.write_csv("reports.csv", pd.DataFrame(self._reports.values()))
            yield {**report, "complete": done, "done": done}


class _Follow:
    """An observer that keeps a trial's progress, beginning with what its folder holds."""

    def __init__(self, standing: Standing, record: Record) -> None:
        self._standing, self._record = standing, record
        for fold, history in record.history.items():
            for step, row in enumerate(history):
                self._step(fold, step, row)
        for fold in record.fitted:
            self._done(fold)

    def on(self, event: Event, answer: Answer) -> None:
        if isinstance(event, Stepped):
            self._step(event.fold, event.step, event.row)
        elif isinstance(event, Trained | Predicted):
            self._done(event.fold)

    def _step(self, fold: int, step: int, row: Any) -> None:
        self._standing.saw_step(fold, step, _finite(row.get(self._standing.score.step), self._standing.score))

    def _done(self, fold: int) -> None:
        if fold in (self._record.predicted if self._record.spec.n_test else self._record.fitted):
            self._standing.saw_result(fold, self._record.fitted[fold].pred)


def _finite(value: Any, score: Score) -> float:
    """A score as a number; nan, or an empty cell of a table, is the worst one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return score.worst
    return number if np.isfinite(number) else score.worst
