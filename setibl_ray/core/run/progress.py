"""What a person sees while folds run: a live table on a terminal, one plain line per event elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from setibl_ray.core import terminal
from setibl_ray.core.contract import EpochEnd, Event, FoldResult, Predicted, Started
from setibl_ray.core.run.failures import Decision


@dataclass
class _Row:
    state: str = "waiting"
    node: str = ""
    device: str = ""
    epoch: str = ""
    loss: str = ""
    auc: str = ""
    images_per_s: str = ""
    eta: str = ""


class Progress:
    """A context manager; `update` takes every event of the run, `say` any other line.

    Args:
      folds: their numbers.
      n_test: rows of the test set that each fold predicts.
      console: where.
    """

    def __init__(self, folds: Sequence[int], n_test: int, console: Console | None = None) -> None:
        self.console = console or terminal.console()
        self._rows = {fold: _Row() for fold in folds}
        self._n_test = n_test
        self._n_predicted = dict.fromkeys(folds, 0)
        self._live = (
            Live(console=self.console, refresh_per_second=4, transient=False) if self._on_terminal else None
        )

    @property
    def _on_terminal(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
            self._live.update(self._table())
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def say(self, text: str) -> None:
        terminal.say(text, self.console)

    def update(self, event: Event, decision: Decision | None = None) -> None:
        row = self._rows[event.fold]
        line = self._apply(row, event, decision)
        if self._live:
            self._live.update(self._table())
        elif line:
            self.say(f"fold {event.fold}  {line}")

    def _apply(self, row: _Row, event: Event, decision: Decision | None) -> str:
        if isinstance(event, Started):
            place = event.place
            replicas = f" x{place.n_replicas}" if place.n_replicas > 1 else ""
            if event.span:
                row.state = "predicting"
                return ""
            row.state, row.node, row.device = "starting", place.node, f"{place.device}{replicas}"
            return f"started on {place.node}, {row.device}, {place.threads} threads, process {place.pid}"
        if isinstance(event, EpochEnd):
            values = event.row
            row.state = "training" if event.epoch + 1 < event.n_epochs else "predicting"
            row.epoch = f"{event.epoch + 1}/{event.n_epochs}"
            row.loss = f"{values['loss']:.4f} / {values['val_loss']:.4f}"
            row.auc = f"{values['auc']:.3f} / {values['val_auc']:.3f}"
            row.images_per_s = f"{values['images_per_s']:.0f}"
            left_s = values["duration_s"] * (event.n_epochs - event.epoch - 1)
            row.eta = f"{left_s:.0f} s" if left_s < 120 else f"{left_s / 60:.0f} min"
            return (
                f"epoch {row.epoch}  loss {row.loss}  AUC {row.auc} (train / held out)  "
                f"{row.images_per_s} images/s  ETA {row.eta}"
            )
        if isinstance(event, FoldResult):
            best = event.history[event.best_epoch]
            row.state, row.eta = "trained" if self._n_test else "done", ""
            return f"trained, best epoch {event.best_epoch + 1} with held-out AUC {best['val_auc']:.3f}"
        if isinstance(event, Predicted):
            self._n_predicted[event.fold] += len(event.pred)
            if self._n_predicted[event.fold] < self._n_test:
                return f"predicted {self._n_predicted[event.fold]} of {self._n_test} test cadences"
            row.state = "done"
            return f"done, {self._n_test} test cadences predicted"
        row.state = "failed" if decision is None or decision.action == "give-up" else "retrying"
        return f"{row.state}: {event.message}" + (
            f" -> {decision.action} ({decision.reason})" if decision else ""
        )

    def _table(self) -> Table:
        table = Table(title="folds", title_justify="left", expand=False)
        for name in ("fold", "state", "node", "device", "epoch"):
            table.add_column(name)
        for name in ("loss train / held out", "AUC train / held out", "images/s", "ETA"):
            table.add_column(name, justify="right")
        colour = {"done": "green", "trained": "blue", "failed": "red", "retrying": "yellow", "waiting": "dim"}
        for fold, row in self._rows.items():
            table.add_row(
                str(fold), Text(row.state, colour.get(row.state, "cyan")), Text(terminal.visible(row.node)),
                Text(terminal.visible(row.device)), row.epoch,
                row.loss, row.auc, row.images_per_s, row.eta,
            )  # fmt: skip
        return table
