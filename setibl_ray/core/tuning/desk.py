"""Progress of a sweep: a live table on a terminal, a line per event elsewhere; also keeps the ledger up to date."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from setibl_ray.core import terminal
from setibl_ray.core.errors import PlacementError
from setibl_ray.core.tuning.ledger import Ledger, Trial

MAX_FAILURES_IN_A_ROW = 5
STUCK_S = 60.0  # longest time that a trial's process takes to start on a busy machine
ROWS = 24
COLOURS = {"done": "green", "failed": "red", "stopped": "yellow", "running": "cyan"}


class Desk(tune.Callback):
    """Records what Tune reports about trials in the ledger, shows it, and decides when the sweep must end.

    Args:
      ledger: of the sweep.
      labels: searched field -> heading of its column.
      n_trials: how many there will be.
      n_folds: of each.
      can_place: raises PlacementError when the cluster can hold no trial any more.
      console: where.
    """

    def __init__(
        self,
        ledger: Ledger,
        labels: Mapping[str, str],
        n_trials: int,
        n_folds: int,
        can_place: Callable[[], None],
        console: Console,
    ) -> None:
        self.ledger = ledger
        self.ends_because: PlacementError | str | None = None
        self.interrupted = False
        self._labels = labels
        self._n_trials, self._n_folds = n_trials, n_folds
        self._can_place = can_place
        self.console = console
        self._failures_in_a_row = 0
        self._running: set[int] = set()
        self._began = self._idle_since = time.monotonic()
        on_terminal = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, refresh_per_second=4) if on_terminal else None

    @property
    def _label(self) -> str:
        return self.ledger.score.label

    def __enter__(self) -> Desk:
        if self._live:
            self._live.start()
            self._live.update(self.table())
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    def follow(self, ledger: Ledger, n_trials: int) -> None:
        """Switch to the trials that repeat the best and the base config."""
        self.ledger, self._n_trials = ledger, n_trials

    def must_end(self) -> bool:
        """Called by Tune repeatedly; while nothing runs, checks whether anything still can."""
        if self.ends_because is None and not self._running and time.monotonic() - self._idle_since > STUCK_S:
            self._idle_since = time.monotonic()
            try:
                self._can_place()
                text = "no trial runs yet: the cluster has the room for one, but others use it"
                terminal.say(text, self.console)
            except PlacementError as error:
                self.ends_because = error
        return self.ends_because is not None

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        record = self._record(trial)
        self._running.add(record.number)
        self._show(record, f"started  {self._point(record)}")

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        record = self._record(trial)
        if "failed" in result:
            self._failed(record, result["failed"], result["fatal"])
            return
        folds_before = record.folds_done
        record.score, record.folds_done = result["score"], result["folds_done"]
        record.fold_epochs = max(record.fold_epochs, result["spent"])
        if result["complete"]:
            self._failures_in_a_row = 0
            self.ledger.end(record, "done")
            self._show(record, f"done, out-of-fold {self._label} {record.score:.4f}")
        elif record.state == "stopped":  # by the scheduler, a moment ago
            self._failures_in_a_row = 0
            self.ledger.save(record)
            self._show(
                record, f"stopped at {self._label} {record.score:.4f} after {record.fold_epochs} fold-epochs"
            )
        else:
            self.ledger.save(record)
            line = f"{record.folds_done} of {self._n_folds} folds done, {self._label} {record.score:.4f}"
            self._show(record, line if record.folds_done > folds_before else "")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._left(self._record(trial))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        record = self._record(trial)
        error = trial.get_error()
        self._failed(record, terminal.headline(error) if error else "its process died", False)
        self._left(record)

    def _failed(self, record: Trial, message: str, fatal: bool) -> None:
        self.ledger.end(record, "failed", message)
        self._show(record, f"failed: {message}", always=True)
        self._failures_in_a_row += 1
        if fatal:
            self.ends_because = f"trial {record.number} met what every trial would meet: {message}"
        elif self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            self.ends_because = f"{self._failures_in_a_row} trials in a row failed, the last one: {message}"

    def _left(self, record: Trial) -> None:
        self._running.discard(record.number)
        self._idle_since = time.monotonic()

    def _record(self, trial: Any) -> Trial:
        return self.ledger.trials[trial.config["trial"]]

    def _point(self, record: Trial) -> str:
        if not record.values:
            return "the base config"
        labels = {"seed": "seed", **self._labels}
        return "  ".join(f"{labels[name]} {_shown(value)}" for name, value in record.values.items())

    def _show(self, record: Trial, line: str, always: bool = False) -> None:
        """Update the display; `line` is printed if there is no live table, or `always`."""
        if self._live:
            self._live.update(self.table())
        if line and (always or not self._live):
            terminal.say(f"trial {record.number}  {line}", self.console)

    def table(self) -> Table:
        """Running trials, then the best; as many as fit on a screen."""
        known = self.ledger.trials.values()
        ended = sum(trial.state != "running" for trial in known)
        spent = sum(trial.fold_epochs for trial in known)
        minutes = (time.monotonic() - self._began) / 60
        title = f"{ended} of {self._n_trials} trials, {spent} fold-epochs, {minutes:.1f} min"
        table = Table(title=title, title_justify="left", expand=False, box=box.SIMPLE_HEAD)
        for name in ("trial", "state", f"OOF {self._label}", "folds", "epochs", *self._labels.values()):
            table.add_column(name, justify="left" if name == "state" else "right")
        order = {"running": 0, "done": 1, "stopped": 2, "unfinished": 3, "failed": 4}
        best = self.ledger.best
        for trial in sorted(known, key=lambda trial: (order[trial.state], -self.ledger.rank(trial)))[:ROWS]:
            mark = "* " if trial is best else ""
            score = f"{trial.score:.4f}" if trial.score is not None else ""
            if score and trial.state != "done":
                score = f"({score})"  # at an earlier step than the others'
            values = [_shown(trial.values[name]) if name in trial.values else "base" for name in self._labels]
            state = Text(trial.state, COLOURS.get(trial.state, "dim"))
            folds = f"{trial.folds_done}/{self._n_folds}"
            table.add_row(
                f"{mark}{trial.number}", state, score, folds, str(trial.fold_epochs), *map(Text, values)
            )
        return table


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else terminal.visible(value)
