"""sweep.html: one self-contained page that shows what a sweep tried, what it stopped, and what mattered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from setibl_ray.core.reporting import page
from setibl_ray.core.reporting.page import Section
from setibl_ray.seti.evaluation.summary import number, spread
from setibl_ray.seti.reporting.figures import Figure, Spec
from setibl_ray.seti.reporting.figures import _layout as layout
from setibl_ray.seti.reporting.figures import _numbers as numbers

COLOURS = {"done": "@c0", "stopped": "@c1", "failed": "@bad", "unfinished": "@muted", "running": "@c5"}
BEST = "@good"
BAR = 16  # pixels of a trial in the timeline


@dataclass(frozen=True)
class Searched:
    """A searched field; `label` is its short name, `options` those of a list, else none."""

    name: str
    label: str
    is_log: bool
    options: Sequence[Any]


@dataclass(frozen=True)
class Sweep:
    """What the page is drawn from.

    Attributes:
      name: of the sweep's folder.
      table: trial, state, auc, auc_low, auc_high, a column per searched field, folds_done, fold_epochs,
        started_s, ended_s, message; a line per trial.
      fields: the searched fields.
      base: field -> the base config's value, shown for the trial without values.
      reports: trial -> fold_epochs, auc, time_s at each comparable step.
      importance: field -> share of variance.
      best: number of the best trial.
      default: number of the trial that is the base config.
      rungs: fold-epochs after which trials are stopped.
      full: fold-epochs of all trials, had each run to its end.
      verdict: whether the best differs from the base config, in a sentence.
      gain: the difference between the two and its interval, for a tile; empty where there is none.
      confirmed: the same with other seeds, in a sentence; empty where that was not asked for.
      seeds: seed, auc_best, auc_base, difference; a line per repetition.
      texts: title -> text, folded up at the end: how the sweep was made.
    """

    name: str
    table: pd.DataFrame
    fields: Sequence[Searched]
    base: Mapping[str, Any]
    reports: Mapping[int, pd.DataFrame]
    importance: Mapping[str, float]
    best: int | None
    default: int
    rungs: Sequence[int]
    full: int
    verdict: str
    gain: tuple[str, str, str] | None
    confirmed: str
    seeds: pd.DataFrame | None
    texts: Mapping[str, str]


def draw(sweep: Sweep) -> str:
    """The page as HTML that needs no network."""
    table = sweep.table.copy()
    for field in sweep.fields:
        base = sweep.base.get(field.name)
        table[field.name] = [base if _missing(value) else value for value in table[field.name]]
    done = table[table["state"] == "done"]
    sections = [_result(sweep, done)]
    if len(done) > 1:
        sections.append(_fields(sweep, table, done))
    if len(table):
        sections.append(_stopping(sweep, table))
    sections.append(_trials(sweep, table))
    sections.append(
        Section(
            "making",
            "How it was made",
            "The base config is trial 0; every other trial is the base config with its own values.",
            [page.folded(title, text) for title, text in sweep.texts.items()],
        )
    )
    return page.render(
        title=f"{sweep.name} – setibl_ray",
        verdict=sweep.verdict,
        subtitle=f"{sweep.name} · {len(table)} trials · {', '.join(field.name for field in sweep.fields)}",
        tiles=_tiles(sweep, table),
        sections=sections,
    )


def _tiles(sweep: Sweep, table: pd.DataFrame) -> list[str]:
    by_number = {row["trial"]: row for row in table.to_dict("records")}
    tiles = []
    if sweep.best is not None and sweep.best != sweep.default:
        tiles.append(_auc_tile(by_number[sweep.best], f"OOF AUC of the best, trial {sweep.best}"))
    if sweep.default in by_number and by_number[sweep.default]["state"] == "done":
        tiles.append(_auc_tile(by_number[sweep.default], "OOF AUC of the base config"))
    if sweep.gain is not None:
        tiles.append(page.tile(*sweep.gain))
    counts = table["state"].value_counts()
    rest = ", ".join(f"{count} {state}" for state, count in counts.items() if state != "done")
    tiles.append(page.tile(f"{counts.get('done', 0)} of {len(table)}", "trials run to their end", rest))
    spent = int(table["fold_epochs"].sum())
    if sweep.full:
        tiles.append(
            page.tile(f"{spent:,}", "fold-epochs trained", f"of {sweep.full:,}: {spent / sweep.full:.0%}")
        )
    return tiles


def _auc_tile(row: Mapping[str, Any], label: str) -> str:
    return page.tile(number(row["auc"], 4), label, _interval(row))


def _interval(row: Mapping[str, Any]) -> str:
    return "" if _missing(row["auc_low"]) else spread((row["auc_low"], row["auc_high"]))


def _result(sweep: Sweep, done: pd.DataFrame) -> Section:
    blocks: list[str | Figure] = []
    if len(done):
        blocks.append(_objective(sweep, done))
    else:
        blocks.append(page.note("No trial is finished yet."))
    if sweep.seeds is not None:
        rows = [
            (
                int(row["seed"]),
                number(row["auc_best"], 4),
                number(row["auc_base"], 4),
                f"{row['difference']:+.4f}",
            )
            for row in sweep.seeds.to_dict("records")
        ]
        blocks += [_GAP, page.table(("seed", "AUC of the best", "of the base config", "difference"), rows)]
    lead = (
        "The objective is the out-of-fold AUC over all rows: every cadence is scored by the one fold that never saw "
        "it. Best and base config are compared on the same rows, corrected for the number of trials. "
    )
    return Section("result", "Result", lead + sweep.confirmed, blocks)


def _fields(sweep: Sweep, table: pd.DataFrame, done: pd.DataFrame) -> Section:
    blocks: list[str | Figure] = [
        _slice(f"field-{place}", field, sweep, table, done) for place, field in enumerate(sweep.fields)
    ]
    blocks += [_GAP, _parallel(sweep, done)]
    if sweep.importance:
        blocks += [_GAP, _importance(sweep)]
    lead = (
        "Finished trials only: the AUC of a stopped one is that of fewer epochs, and lower for that reason."
    )
    return Section("fields", "What mattered", lead, blocks)


def _stopping(sweep: Sweep, table: pd.DataFrame) -> Section:
    lead = (
        "Trials are compared where all of them have spent the same epochs on the same folds. "
        "The base config is never stopped."
    )
    return Section(
        "stopping", "What was stopped, and when", lead, [_curves(sweep, table), _timeline(sweep, table)]
    )


def _trials(sweep: Sweep, table: pd.DataFrame) -> Section:
    header = ("trial", "state", "OOF AUC", "95 % interval", *(field.label for field in sweep.fields))
    header += ("folds", "fold-epochs", "message")
    order = {
        state: place for place, state in enumerate(("done", "running", "stopped", "unfinished", "failed"))
    }
    rows = []
    for row in sorted(table.to_dict("records"), key=lambda row: (order[row["state"]], -_or_zero(row["auc"]))):
        auc = "" if _missing(row["auc"]) else number(row["auc"], 4)
        if auc and row["state"] != "done":
            auc = f"({auc})"
        values = [_cell(row[field.name]) for field in sweep.fields]
        spent = (row["folds_done"], row["fold_epochs"], _cell(row["message"]))
        rows.append(
            (
                f"{row['trial']}{_name(sweep, row['trial'])}",
                row["state"],
                auc,
                _interval(row),
                *values,
                *spent,
            )
        )
    lead = "The best first. In brackets: the AUC at an earlier step, comparable only with others at the same step."
    return Section("trials", "Trials", lead, [page.table(header, rows)])


_GAP = '<div style="height:14px"></div>'


def _name(sweep: Sweep, trial: int) -> str:
    names = [name for at, name in ((sweep.best, "best"), (sweep.default, "base config")) if at == trial]
    return f" · {', '.join(names)}" if names else ""


def _colour(sweep: Sweep, row: Mapping[str, Any]) -> str:
    return BEST if row["trial"] == sweep.best else COLOURS[row["state"]]


def _bars(rows: pd.DataFrame) -> Spec:
    auc, low, high = (pd.to_numeric(rows[name]) for name in ("auc", "auc_low", "auc_high"))
    return {
        "type": "data",
        "array": numbers(high - auc),
        "arrayminus": numbers(auc - low),
        "thickness": 1,
        "width": 3,
        "color": "@muted",
    }


def _points(sweep: Sweep, rows: pd.DataFrame, x: Sequence[Any]) -> Spec:
    """Finished trials with their intervals; the base config as a diamond."""
    records = rows.to_dict("records")
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": numbers(rows["auc"]),
        "error_y": _bars(rows),
        "customdata": [f"trial {row['trial']}{_name(sweep, row['trial'])}" for row in records],
        "hovertemplate": "%{customdata}<br>%{x}: %{y:.4f}<extra></extra>",
        "marker": {
            "size": 9,
            "color": [_colour(sweep, row) for row in records],
            "symbol": ["diamond" if row["trial"] == sweep.default else "circle" for row in records],
        },
        "showlegend": False,
    }


def _minutes(times: Any, sweep: Sweep) -> list[float | None]:
    return numbers((pd.to_numeric(times) - sweep.table["started_s"].min()) / 60)


def _objective(sweep: Sweep, done: pd.DataFrame) -> Figure:
    done = done.sort_values("ended_s", kind="stable")
    minutes = _minutes(done["ended_s"], sweep)
    so_far = {
        "type": "scatter",
        "mode": "lines",
        "x": minutes,
        "y": numbers(done["auc"].cummax()),
        "line": {"shape": "hv", "color": BEST, "width": 2},
        "name": "best so far",
        "hoverinfo": "skip",
    }
    shapes = []
    base = done[done["trial"] == sweep.default]
    if len(base):
        at = float(base["auc"].iloc[0])
        line = {"color": "@muted", "width": 1, "dash": "dot"}
        shapes.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": at, "y1": at, "line": line})
    caption = (
        "Objective over time",
        "Each finished trial with its 95 % bootstrap interval, and the best so far. Diamond and dotted line: the base "
        "config. Green: the best.",
    )
    spec = {
        "data": [so_far, _points(sweep, done, minutes)],
        "layout": layout(
            "minutes since the first trial",
            "out-of-fold AUC",
            xaxis={"rangemode": "tozero"},
            shapes=shapes,
            showlegend=False,
        ),
    }
    return Figure("objective", spec, caption)


def _slice(name: str, field: Searched, sweep: Sweep, table: pd.DataFrame, done: pd.DataFrame) -> Figure:
    stopped = table[table["state"] == "stopped"]
    foot = pd.to_numeric(done["auc_low"]).fillna(pd.to_numeric(done["auc"])).min()
    marks = {
        "type": "scatter",
        "mode": "markers",
        "x": _values(field, stopped[field.name]),
        "y": numbers([foot] * len(stopped)),
        "customdata": [f"trial {trial}, stopped" for trial in stopped["trial"]],
        "hovertemplate": "%{customdata}: %{x}<extra></extra>",
        "marker": {"symbol": "line-ns-open", "color": COLOURS["stopped"], "size": 12},
        "showlegend": False,
    }
    kind: Spec = {"type": "category"} if field.options else {}
    if field.is_log:
        kind = {"type": "log", **_decades(pd.to_numeric(table[field.name]))}
    spec = {
        "data": [_points(sweep, done, _values(field, done[field.name])), marks],
        "layout": layout(field.name, "out-of-fold AUC", xaxis=kind, height=300),
    }
    caption = (
        field.name,
        "Finished trials with their intervals; orange marks at the foot: where trials were stopped.",
    )
    return Figure(name, spec, caption)


def _decades(values: pd.Series) -> Spec:
    """1, 2 and 5 of each decade as ticks; of many decades only 1."""
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    digits = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [digit * 10.0**decade for decade in range(low, high + 1) for digit in digits]
    return {"tickvals": numbers(ticks), "ticktext": [f"{tick:g}" for tick in ticks]}


def _values(field: Searched, values: pd.Series) -> list[Any]:
    if field.options:
        return [None if _missing(value) else str(value) for value in values]
    return numbers(pd.to_numeric(values))


def _parallel(sweep: Sweep, done: pd.DataFrame) -> Figure:
    dimensions = [_axis(field, done[field.name]) for field in sweep.fields]
    auc = numbers(done["auc"])
    dimensions.append({"label": "OOF AUC", **_scale(pd.to_numeric(done["auc"]), number)})
    bar = {"thickness": 10, "outlinewidth": 0, "tickfont": {"color": "@soft", "size": 11}}
    scale = [[0, "@c1"], [0.5, "@muted"], [1, "@c0"]]
    font = {"color": "@soft", "size": 11}
    spec = {
        "data": [
            {
                "type": "parcoords",
                "dimensions": dimensions,
                "line": {"color": auc, "colorscale": scale, "showscale": True, "colorbar": bar},
                "labelfont": {**font, "color": "@ink"},
                "tickfont": font,
                "rangefont": {**font, "color": "rgba(0,0,0,0)"},  # the ticks say it
            }
        ],
        "layout": {"height": 360, "margin": {"l": 46, "r": 10, "t": 48, "b": 24}},
    }
    caption = (
        "All fields at once",
        "A line is a finished trial. Drag along an axis to pick a range out of it.",
    )
    return Figure("parallel", spec, caption)


def _axis(field: Searched, values: pd.Series) -> Spec:
    if field.options:
        options = list(field.options)
        places = [options.index(value) if value in options else None for value in values]
        texts = [str(option) for option in options]
        return {
            "label": field.label,
            "values": places,
            "tickvals": list(range(len(options))),
            "ticktext": texts,
        }
    known = pd.to_numeric(values)
    if not field.is_log:
        return {"label": field.label, **_scale(known)}
    logs = known.map(lambda value: math.log10(value) if value > 0 else math.nan)
    return {"label": field.label, **_scale(logs, lambda log: f"{10**log:.2g}")}


def _scale(values: pd.Series, text: Callable[[float], str] = lambda value: f"{value:.2g}") -> Spec:
    """Values of an axis from the least to the greatest, with ticks at both ends and between."""
    low, high = float(values.min()), float(values.max())
    ticks = [low + (high - low) * place / 4 for place in range(5)] if high > low else [low]
    return {"values": numbers(values), "tickvals": numbers(ticks), "ticktext": list(map(text, ticks))}


def _importance(sweep: Sweep) -> Figure:
    names = sorted(sweep.importance, key=lambda name: sweep.importance[name])
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": numbers([sweep.importance[name] for name in names]),
        "y": names,
        "marker": {"color": "@c0"},
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    spec = {
        "data": [bars],
        "layout": layout(
            "share of the variance in AUC", "", xaxis={"tickformat": ".0%"}, height=120 + 34 * len(names)
        ),
    }
    caption = (
        "Importance",
        "How much of the finished trials' variance in AUC each field explains (fANOVA). Over few trials it is a hint.",
    )
    return Figure("importance", spec, caption)


def _curves(sweep: Sweep, table: pd.DataFrame) -> Figure:
    traces: list[Spec] = []
    shown = set()
    for row in table.to_dict("records"):
        curve = sweep.reports[row["trial"]]
        state, is_best = row["state"], row["trial"] == sweep.best
        name = "best" if is_best else state
        symbols = ["circle"] * len(curve)
        if state == "stopped" and symbols:
            symbols[-1] = "x"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": numbers(curve["fold_epochs"]),
                "y": numbers(curve["auc"]),
                "name": name,
                "legendgroup": name,
                "showlegend": name not in shown,
                "line": {"color": _colour(sweep, row), "width": 3 if is_best else 1.3},
                "marker": {"size": [9 if symbol == "x" else 4 for symbol in symbols], "symbol": symbols},
                "hovertemplate": f"trial {row['trial']}{_name(sweep, row['trial'])} ({state})<br>"
                "%{x} fold-epochs: %{y:.4f}<extra></extra>",
            }
        )
        shown.add(name)
    rungs = [
        {"type": "line", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1}
        | {"line": {"color": "@muted", "width": 1, "dash": "dot"}}
        for at in sweep.rungs
    ]
    caption = (
        "AUC at each comparable step",
        "While the first folds train: the mean of their best held-out AUC; then the out-of-fold AUC of the folds that "
        "are done. Dotted lines: where the lower ones are stopped (a cross).",
    )
    spec = {"data": traces, "layout": layout("fold-epochs", "AUC at that step", shapes=rungs, height=420)}
    return Figure("curves", spec, caption)


def _timeline(sweep: Sweep, table: pd.DataFrame) -> Figure:
    rows = table.to_dict("records")
    ends = pd.to_numeric(table["ended_s"]).fillna(table["started_s"])
    bars = {
        "type": "bar",
        "orientation": "h",
        "base": _minutes(table["started_s"], sweep),
        "x": numbers((ends - table["started_s"]) / 60),
        "y": [int(row["trial"]) for row in rows],
        "marker": {"color": [_colour(sweep, row) for row in rows]},
        "customdata": [[row["state"], int(row["fold_epochs"])] for row in rows],
        "hovertemplate": "trial %{y}: %{customdata[0]} after %{customdata[1]} fold-epochs, "
        "%{x:.1f} min<extra></extra>",
    }
    spec = {
        "data": [bars],
        "layout": layout(
            "minutes since the first trial",
            "trial",
            yaxis={"autorange": "reversed", "tickformat": "d"},
            height=max(420, 90 + BAR * len(rows)),
            bargap=0.25,
        ),
    }
    caption = (
        "When each trial ran",
        "Green: the best; blue: run to its end; orange: stopped; red: failed; grey: not finished.",
    )
    return Figure("timeline", spec, caption)


def _cell(value: Any) -> str:
    if _missing(value):
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _or_zero(value: Any) -> float:
    return 0.0 if _missing(value) else float(value)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
