"""Progress while folds run: a live table on a terminal and in a notebook, one plain line per event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from setibl_ray.core import terminal
from setibl_ray.core.jobs import Event, Predicted, Started, Stepped, Trained
from setibl_ray.core.run.supervisor import Answer, Standing
from setibl_ray.core.task import Needs

HELD_OUT = ("val_", "valid_")  # such a column is shown beside the one without the prefix
COUNTS = ("epoch", "step")  # columns that only repeat the number of the step


@dataclass
class _Row:
    state: str = "waiting"
    node: str = ""
    device: str = ""
    step: str = ""
    values: dict[str, str] = field(default_factory=dict)
    eta: str = ""
    began: float = 0.0
    first: int = 0


class Progress:
    """A context manager and an observer.

    Args:
      needs: of each fold, for how many steps it takes, if that is known.
      n_test: rows of the test set that each fold predicts.
      shown: columns of a step's row; all of them if it is empty.
      console: where.
      note: why nothing runs, shown below the table; empty otherwise.
      begun: how far each fold of a resumed run is.
    """

    def __init__(
        self,
        needs: Mapping[int, Needs],
        n_test: int,
        shown: Sequence[str] = (),
        console: Console | None = None,
        note: Callable[[], str] = str,
        begun: Mapping[int, Standing] | None = None,
    ) -> None:
        self.console = console or terminal.console()
        self._needs, self._note = needs, note
        begun = dict.fromkeys(needs, Standing()) | dict(begun or {})
        self._rows = {fold: _Row(begun[fold].state, step=self._of(fold, begun[fold].step)) for fold in needs}
        self._n_test = n_test
        self._shown = shown
        self._n_predicted = {
            fold: sum(stop - start for start, stop in begun[fold].predicted) for fold in needs
        }
        on_terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live: Live | terminal.Cell | None = None
        if on_terminal:
            self._live = Live(get_renderable=self._table, console=self.console, refresh_per_second=4)
        elif terminal.in_notebook() and self.console.file is sys.stdout:
            self._live = terminal.Cell(self._table)

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def on(self, event: Event, answer: Answer) -> None:
        line = self._apply(self._rows[event.fold], event, answer)
        if isinstance(self._live, terminal.Cell):
            self._live.refresh()
        if line and not self._live:
            terminal.say(f"fold {event.fold}  {line}", self.console)

    def _apply(self, row: _Row, event: Event, answer: Answer) -> str:
        if isinstance(event, Started):
            place = event.place
            if event.span:
                row.state = "predicting"
                return ""
            row.state, row.node, row.device = "starting", place.node, place.device
            row.began, row.first = time.monotonic(), -1
            return f"started on {place.node}, {place.device}, {place.cpus} cores, process {place.pid}"
        if isinstance(event, Stepped):
            return self._stepped(row, event)
        if isinstance(event, Trained):
            row.state, row.eta = ("trained" if self._n_test else "done"), ""
            return row.state
        if isinstance(event, Predicted):
            self._n_predicted[event.fold] += len(event.prediction.pred)
            if self._n_predicted[event.fold] < self._n_test:
                return f"predicted {self._n_predicted[event.fold]} of {self._n_test} test rows"
            row.state = answer.state
            return f"{row.state}, {self._n_test} test rows predicted"
        decision = answer.decision
        assert decision is not None
        row.state = "failed" if decision.action == "give-up" else "retrying"
        return f"{row.state}: {event.message} -> {decision.action} ({decision.reason})"

    def _of(self, fold: int, done: int) -> str:
        """Steps done, and of how many if known: `3/12`."""
        n_steps = self._needs[fold].n_steps
        return (f"{done}/{n_steps}" if n_steps else str(done)) if done else ""

    def _stepped(self, row: _Row, event: Stepped) -> str:
        n_steps, done = self._needs[event.fold].n_steps, event.step + 1
        row.state = "training"
        row.step = self._of(event.fold, done)
        row.values = paired({name: event.row[name] for name in self._shown or event.row if name in event.row})
        if row.first < 0:
            row.first = event.step
        if n_steps:
            a_step_s = (time.monotonic() - row.began) / (done - row.first)
            left_s = a_step_s * (n_steps - done)
            row.eta = f"{left_s:.0f} s" if left_s < 120 else f"{left_s / 60:.0f} min"
        values = "  ".join(f"{name} {value}" for name, value in row.values.items())
        return f"step {row.step}  {values}" + (f"  ETA {row.eta}" if row.eta else "")

    def _table(self) -> Table:
        note = self._note()  # text as Text: a notebook's own console would take it for markup
        table = Table(
            title="folds",
            title_justify="left",
            expand=False,
            caption=Text(terminal.visible(note)) if note else None,
        )
        names = list(dict.fromkeys(name for row in self._rows.values() for name in row.values))
        for name in ("fold", "state", "node", "device"):
            table.add_column(name)
        for name in ("step", *names, "ETA"):
            table.add_column(Text(terminal.visible(name)), justify="right")
        colour = {"done": "green", "trained": "blue", "failed": "red", "retrying": "yellow", "waiting": "dim"}
        for fold, row in self._rows.items():
            state = Text(row.state, colour.get(row.state, "cyan"))
            values = [Text(row.values.get(name, "")) for name in names]
            place = Text(terminal.visible(row.node)), Text(terminal.visible(row.device))
            table.add_row(str(fold), state, *place, row.step, *values, row.eta)
        return table


def paired(row: Mapping[str, float]) -> dict[str, str]:
    """A step's numbers to show: `val_loss` follows `loss`, held-out after training."""
    shown: dict[str, str] = {}
    for name, value in row.items():
        partner = next((name.removeprefix(prefix) for prefix in HELD_OUT if name.startswith(prefix)), name)
        if name in COUNTS:
            continue
        if partner != name and partner in shown:
            shown[partner] += f" / {number(value)}"
        else:
            shown[name] = number(value)
    return shown


def number(value: float) -> str:
    """At most four significant digits."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0.001 <= abs(value) < 10 else f"{value:.3g}"
