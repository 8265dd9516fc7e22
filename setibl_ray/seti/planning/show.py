"""A forecast on a terminal, in 80 columns or more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from setibl_ray.core.text import counted, duration, in_one_unit, size, three_digits
from setibl_ray.seti.planning.assume import Assume
from setibl_ray.seti.planning.forecast import Bill, Forecast, places_of
from setibl_ray.seti.planning.rates import Rates
from setibl_ray.seti.planning.simulate import Assignment

MAX_ROWS = 16  # of slots, of folds, and of the values of one rate; the others are only counted
MAX_WIDTH = 110

_STAGES = {  # stage -> its character and colour in the bars
    "start": ("░", "bright_black"),
    "open": ("░", "bright_black"),
    "build": ("░", "bright_black"),
    "wait": ("·", "bright_black"),
    "train": ("█", "blue"),
    "views": ("▓", "cyan"),
    "test": ("▒", "green"),
}
_LEGEND = {
    "start": "set-up",
    "train": "training",
    "views": "held-out views",
    "test": "test views",
    "wait": "idle",
}
_PLACES = {
    "memory": "in /dev/shm",
    "disk": "on disk",
    "nowhere": "not kept: read and decoded again each time",
    "refused": "no room there: such a run will be refused",
    "memory?": "in /dev/shm, if there is room",
    "disk?": "on disk, if there is room",
}

Format = Callable[[float], str]


def show(
    plan: Forecast, bill: Sequence[Bill], assume: Assume, notes: Sequence[str], console: Console
) -> None:
    """Print everything about a plan."""
    width = min(console.width, MAX_WIDTH)
    time = in_one_unit(plan.makespan_s)
    sections = [
        _head(plan),
        _bars(plan, time, width),
        _folds(plan, time),
        _sums(plan, bill, assume),
        _memory(plan),
        _rates(plan),
        *map(Text, notes),
    ]
    for i, section in enumerate(sections):
        if i:
            console.print()
        console.print(section, highlight=False, width=width)


def _head(plan: Forecast) -> RenderableType:
    config = plan.config
    own = [config.for_fold(cost.fold) for cost in plan.costs]
    models = ", ".join(dict.fromkeys(f"{fold.model} at {_by(fold.image_size)}" for fold in own))
    epochs = sorted({fold.epochs for fold in own})
    of = f"{epochs[0]} to {epochs[-1]} epochs" if len(epochs) > 1 else counted(epochs[0], "epoch")
    where = plan.hosts[0].name if len(plan.hosts) == 1 else counted(len(plan.hosts), "node")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    told = f"{counted(len(plan.costs), 'fold')}, {of}, {config.tta} views; {models}, {config.layout}"
    table.add_row("plan", told)
    table.add_row("data", f"{plan.rows.train:,} training and {plan.rows.test:,} test cadences")
    table.add_row("where", f"{where}: {counted(len(plan.slots), 'slot')} of {plan.share}")
    return table


def _bars(plan: Forecast, time: Format, width: int) -> RenderableType:
    """A line per slot."""
    names = [plan.hosts[node].name for node in plan.slots]
    label = min(max(map(len, names)), 24)
    columns = max(20, width - label - 2)
    indent = " " * (label + 2)
    lines = [Text(indent + _axis(plan.makespan_s, time, columns), "bright_black", no_wrap=True)]
    for slot in sorted(range(len(names)), key=lambda slot: plan.slots[slot])[:MAX_ROWS]:
        ours = [job for job in plan.assignments if job.slot == slot]
        bar = _bar(ours, plan.makespan_s, columns)
        lines.append(Text(f"{names[slot][-label:]:{label}}  ", no_wrap=True).append_text(bar))
    if len(names) > MAX_ROWS:
        lines.append(Text(f"{indent}… and {counted(len(names) - MAX_ROWS, 'slot')} more", "bright_black"))
    legend = Text(indent)
    for stage, name in _LEGEND.items():
        character, colour = _STAGES[stage]
        legend.append(f"{character}{character} ", colour).append(f"{name}   " if stage != "wait" else name)
    return Group(*lines, legend)


def _axis(makespan_s: float, time: Format, columns: int) -> str:
    middle, end = time(makespan_s / 2), time(makespan_s)
    line = "0".ljust(columns // 2 - len(middle) // 2) + middle
    return line.ljust(columns - len(end)) + end


def _bar(jobs: Sequence[Assignment], makespan_s: float, columns: int) -> Text:
    """The stages of one slot's jobs; each job begins with its fold's number where there is room."""
    cells = [_STAGES["wait"]] * columns

    def column(at_s: float) -> int:
        return round(at_s / makespan_s * columns)

    for job in jobs:
        at_s = job.start_s
        for stage, seconds in job.laps:
            cells[column(at_s) : column(at_s + seconds)] = [_STAGES[stage]] * (
                column(at_s + seconds) - column(at_s)
            )
            at_s += seconds
        first, number = column(job.start_s), str(job.fold)
        if column(job.end_s) - first > len(number):
            for i, digit in enumerate(number, first):
                cells[i] = digit, f"bold reverse {cells[i][1]}"
    text = Text(no_wrap=True)
    for style, run in groupby(cells, key=lambda cell: cell[1]):
        text.append("".join(character for character, _ in run), style)
    return text


def _folds(plan: Forecast, time: Format) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("fold", "on", "starts", "trained", "test predictions", "done"):
        table.add_column(name, justify="left" if name in ("on", "test predictions") else "right")
    folds = [cost.fold for cost in plan.costs]
    for fold in folds[:MAX_ROWS]:
        training = [job for job in plan.assignments if job.fold == fold and job.span is None]
        spans = [job for job in plan.assignments if job.fold == fold and job.span is not None]
        done_s = max(job.end_s for job in (*training, *spans))
        trained = [(_nodes(plan, training), time(job.start_s), time(job.end_s)) for job in training]
        table.add_row(
            str(fold), *(trained or [("", "", "before")])[0], _spans(plan, spans, time), time(done_s)
        )
    if len(folds) > MAX_ROWS:
        table.add_row("…", f"{len(folds) - MAX_ROWS} more", "", "", "", time(plan.makespan_s))
    return table


def _spans(plan: Forecast, spans: Sequence[Assignment], time: Format) -> str:
    if not spans:
        return "none"
    return f"{counted(len(spans), 'span')} on {_nodes(plan, spans)}, from {time(min(job.start_s for job in spans))}"


def _nodes(plan: Forecast, jobs: Sequence[Assignment]) -> str:
    nodes = sorted({plan.slots[job.slot] for job in jobs})
    return plan.hosts[nodes[0]].name if len(nodes) == 1 else counted(len(nodes), "node")


def _grid() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True, min_width=18)
    table.add_column(justify="right", no_wrap=True, min_width=16)
    table.add_column(overflow="fold")  # a path must stay whole
    return table


def _sums(plan: Forecast, bill: Sequence[Bill], assume: Assume) -> RenderableType:
    table = _grid()
    says = "first fold submitted to last result; metrics come after it"
    table.add_row("makespan", duration(plan.makespan_s), says)
    idle = f"of the time of {counted(len(plan.slots), 'slot')}"
    unused = len(plan.hosts) - len(plan.nodes_used())
    idle += f"; {counted(unused, 'node')} without any work" if unused else ""
    table.add_row("idle", f"{100 * plan.idle_share:.0f} %", idle)
    around = f"{duration(assume.setup_s)} before and {duration(assume.idle_s)} after its work"
    for one in bill:
        price = f"{counted(len(plan.hosts), 'node')} at ${one.price:.2f}/h, head ${one.head:.2f}"
        table.add_row(f"bill, {one.kind}" if one.kind else "bill", f"${one.nodes + one.head:.2f}", price)
    if bill:
        table.add_row("", "", f"and each {around}")
    return table


def _memory(plan: Forecast) -> RenderableType:
    """Memory of the node that has the least to spare."""
    folds = {node: plan.slots.count(node) * plan.fold_bytes for node in plan.nodes_used()}
    node = min(folds, key=lambda node: plan.hosts[node].memory_bytes - folds[node])
    host, n_folds = plan.hosts[node], plan.slots.count(node)
    table = _grid()
    table.add_row("memory of a node", size(host.memory_bytes), "" if len(plan.hosts) == 1 else host.name)
    table.add_row("  folds", size(folds[node]), f"{n_folds} at once, {size(plan.fold_bytes)} each (estimate)")
    in_memory = folds[node]
    for store, place in zip(plan.stores, places_of(plan.config.cache, plan.stores, host.free)):
        where = f"{_by(store.image_size)}, {_PLACES[place]} (--cache {plan.config.cache})"
        table.add_row(f"  {store.split} panels", size(store.n_bytes), where)
        in_memory += store.n_bytes if place == "memory" else 0
    if in_memory > host.memory_bytes:
        table.add_row("", "", Text(f"{size(in_memory)} in all is more than the node has", "yellow"))
    return table


_RATES: tuple[tuple[str, str, Callable[[Rates], str]], ...] = (
    ("train", "training", lambda rates: f"{three_digits(rates.train)} images/s"),
    ("predict", "predicting", lambda rates: f"{three_digits(rates.predict)} images/s"),
    ("epoch_s", "between epochs", lambda rates: f"{rates.epoch_s:.1f} s"),
    ("start_s", "starting a process", lambda rates: f"{rates.start_s:.0f} s"),
    ("build_s", "building a model", lambda rates: f"{rates.build_s:.0f} s"),
    ("build_test_s", "… to predict only", lambda rates: f"{rates.build_test_s:.0f} s"),
    ("cadences", "decoding panels", lambda rates: f"{three_digits(rates.cadences)} cadences/s"),
)


def _rates(plan: Forecast) -> RenderableType:
    """Each rate and its source; several lines if folds differ."""
    table = _grid()
    predict_only = any(job.span is not None and "build" in dict(job.laps) for job in plan.assignments)
    for name, label, text in _RATES:
        if name == "build_test_s" and not predict_only:
            continue
        values = dict.fromkeys((text(rates), rates.source[name]) for rates in plan.rates.values())
        for i, (value, source) in enumerate(list(values)[:MAX_ROWS]):
            table.add_row("" if i else label, value, source)
    return table


def _by(image_size: tuple[int, int]) -> str:
    return "x".join(map(str, image_size))
