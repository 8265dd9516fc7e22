"""The sweep folder: what was tried, how far it got and how it ended, each written to disk at once.

    OUT/sweep.json          what all trials share, which --resume must keep
    OUT/config.yaml         the base config
    OUT/trials.csv  best.yaml  sweep.html  confirm.csv
    OUT/trials/NNN/         a run folder (see core/run/folder.py), and in it
        trial.json          values, state, score, times
        reports.csv         the trial's score at each step of the ladder
    OUT/tune/               what Tune's own loggers write (TensorBoard)

Tune's `Tuner.restore` goes back to its last snapshot, loses the trials begun since, and forgets the state of its
scheduler; from this folder, a sweep continues after any crash with the same trials.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.task import Score

State = Literal["running", "done", "stopped", "failed", "unfinished"]
DEFAULT = 0  # number of the trial that is the base config itself
ENDED = ("done", "stopped")  # states that --resume leaves alone


@dataclass
class Trial:
    """One point of a sweep.

    Attributes:
      number: from 0; 0 is the base config.
      values: field -> value; empty for the base config.
      state: `done` with all folds, `stopped` early, `failed`, or `unfinished` if the sweep ended before it.
      score: out-of-fold score when done, otherwise the last comparable one; None before the first.
      fold_epochs: epochs trained, all folds together.
      folds_done: folds with results.
      message: why it failed.
    """

    number: int
    values: dict[str, Any]
    state: State = "running"
    score: float | None = None
    fold_epochs: int = 0
    folds_done: int = 0
    message: str = ""
    started_s: float = field(default_factory=time.time)
    ended_s: float | None = None

    @property
    def name(self) -> str:
        return f"{self.number:03d}"


class Ledger:
    """The folder of one sweep: `trials` are those in it by number, `score` is how they are judged."""

    def __init__(self, root: str, score: Score) -> None:
        self.score = score
        self.folder = RunFolder(os.path.abspath(root))
        self.trials: dict[int, Trial] = {}

    @property
    def root(self) -> str:
        return self.folder.root

    @property
    def exists(self) -> bool:
        return self.folder.exists("sweep.json")

    def load(self) -> None:
        names = sorted(os.listdir(f"{self.root}/trials")) if self.folder.exists("trials") else []
        for name in names:
            if self.folder.exists(f"trials/{name}/trial.json"):
                trial = Trial(**self.folder.read_json(f"trials/{name}/trial.json"))
                self.trials[trial.number] = trial

    def is_scored(self, number: int) -> bool:
        """Whether a trial is done and its predictions are numbers: one that diverged is done, but has no oof.csv."""
        trial = self.trials.get(number)
        return trial is not None and trial.state == "done" and self.run_folder(trial).exists("oof.csv")

    def save(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        self.folder.write_json(f"trials/{trial.name}/trial.json", dataclasses.asdict(trial))

    def end(self, trial: Trial, state: State, message: str = "") -> None:
        trial.state, trial.message, trial.ended_s = state, message, time.time()
        self.save(trial)

    def run_folder(self, trial: Trial) -> RunFolder:
        return run_folder(self.root, trial.number)

    def reports(self, trial: Trial) -> pd.DataFrame:
        """step, fold_epochs, spent, folds_done, score, wave_score, time_s; one row per step that the trial reached."""
        folder = self.run_folder(trial)
        if not folder.exists("reports.csv"):
            return pd.DataFrame(
                columns=["step", "fold_epochs", "spent", "folds_done", "score", "wave_score", "time_s"]
            )
        return folder.read_csv("reports.csv")

    @property
    def done(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.state == "done"]

    @property
    def best(self) -> Trial | None:
        """The finished trial with the best out-of-fold score; the earlier one of two equals."""
        return max(self.done, key=lambda trial: (self.rank(trial), -trial.number), default=None)

    def rank(self, trial: Trial) -> float:
        """The higher, the better."""
        return self.score.sign * (self.score.worst if trial.score is None else trial.score)

    def table(self, names: list[str]) -> pd.DataFrame:
        """trials.csv: one row per trial, with the values of the searched fields `names` (empty: the base config's)."""
        rows = []
        for trial in sorted(self.trials.values(), key=lambda trial: trial.number):
            rows.append(
                {
                    "trial": trial.number,
                    "state": trial.state,
                    self.score.name: trial.score,
                    **self._interval(trial),
                    **{name: trial.values.get(name) for name in names},
                    "folds_done": trial.folds_done,
                    "fold_epochs": trial.fold_epochs,
                    "started_s": trial.started_s,
                    "ended_s": trial.ended_s,
                    "message": trial.message,
                }
            )
        return pd.DataFrame(rows)

    def _interval(self, trial: Trial) -> Mapping[str, float | None]:
        bounds = None
        if trial.state == "done" and self.run_folder(trial).exists("metrics.json"):
            bounds = self.run_folder(trial).read_json("metrics.json")["score"]["interval"]
        low, high = bounds or (None, None)
        return {f"{self.score.name}_low": low, f"{self.score.name}_high": high}


def run_folder(root: str, number: int) -> RunFolder:
    return RunFolder(f"{root}/trials/{number:03d}")
