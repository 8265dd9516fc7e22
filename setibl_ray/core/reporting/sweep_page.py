"""sweep.html: one self-contained page that shows what a sweep tried, what it stopped, and what mattered.

The text is in templates/sweep.html.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from setibl_ray.core.reporting import charts, page
from setibl_ray.core.reporting.charts import Spec, numbers
from setibl_ray.core.text import spread
from setibl_ray.core.tuning.ledger import DEFAULT

if TYPE_CHECKING:
    from setibl_ray.core.tuning.results import Results
    from setibl_ray.core.tuning.space import Field, Space

COLOURS = {"done": "@c0", "running": "@c5", "stopped": "@c1", "unfinished": "@muted", "failed": "@bad"}
BEST = "@good"
BAR = 16  # pixels of a trial in the timeline


@dataclass(frozen=True)
class Sweep:
    """What the page is drawn from.

    Attributes:
      results: what the sweep found.
      space: the searched fields.
      base: field -> the base config's value, shown for the trial without values.
      reports: trial -> fold_epochs, score, time_s at each comparable step.
      importance: field -> share of variance.
      rungs: fold-epochs after which trials are stopped.
      seeds: confirm.csv: seed, SCORE_best, SCORE_base, difference; one row per repetition. None if there is none.
      texts: title -> text about how the sweep was made, collapsed at the end of the page.
    """

    results: Results
    space: Space
    base: Mapping[str, Any]
    reports: Mapping[int, pd.DataFrame]
    importance: Mapping[str, float]
    rungs: Sequence[int]
    seeds: pd.DataFrame | None
    texts: Mapping[str, str]

    @property
    def best(self) -> int | None:
        """Number of the best trial."""
        return None if self.results.best is None else self.results.best.number

    @property
    def score(self) -> str:
        """Name of the score by which trials are compared."""
        return self.results.score.label

    @property
    def less_is_better(self) -> bool:
        return self.results.score.sign < 0

    def title(self, trial: int) -> str:
        """A trial's number, and whether it is the best or the base config."""
        roles = [name for at, name in ((self.best, "best"), (DEFAULT, "base config")) if at == trial]
        return f"{trial} · {', '.join(roles)}" if roles else f"{trial}"

    def colours(self, rows: pd.DataFrame) -> list[str]:
        return [
            BEST if trial == self.best else COLOURS[state]
            for trial, state in zip(rows["trial"], rows["state"])
        ]


def draw(sweep: Sweep) -> str:
    """The page as HTML that needs no network."""
    results, score = sweep.results, sweep.results.score.name
    table = results.table.rename(columns={score: "score", f"{score}_low": "low", f"{score}_high": "high"})
    for field in sweep.space:
        base = sweep.base.get(field.name)
        table[field.name] = [base if _missing(value) else value for value in table[field.name]]
    done = table[table["state"] == "done"]
    fields = {f"field-{i}": field for i, field in enumerate(sweep.space)}
    figures = {"objective": _objective(sweep, done)} if len(done) else {}
    if len(done) > 1:
        figures |= {name: _slice(field, sweep, table, done) for name, field in fields.items()}
        figures["parallel"] = _parallel(sweep, done)
        if sweep.importance:
            figures["importance"] = _importance(sweep)
    if len(table):
        figures |= {"curves": _curves(sweep, table), "timeline": _timeline(sweep, table)}
    gain, name = results.against_base, os.path.basename(results.root)
    return page.render(
        __package__,
        "sweep.html",
        figures=figures,
        title=name,
        subtitle=f"{name} · {len(table)} trials · {', '.join(sweep.space.names)}",
        verdict=results.verdict(),
        sweep=sweep,
        default=DEFAULT,
        gain=f"{gain.gain:+.4f}" if gain else "",
        gain_interval=", ".join(filter(None, (gain.interval, gain.corrected))) if gain else "",
        confirmed=f"Repeated with other seeds: {results.confirmed}." if results.confirmed else "",
        fields=fields,
        trials={row["trial"]: row for row in table.to_dict("records")},
        states=table["state"].value_counts(),
        spent=int(table["fold_epochs"].sum()),
        shown=_shown,
        interval=_interval,
        seed_rows=_seed_rows(sweep),
        trial_rows=_trial_rows(sweep, table),
    )


def _shown(score: float) -> str:
    return f"{score:.4f}" if abs(score) < 10 else f"{score:,.5g}"


def _interval(row: Mapping[str, Any]) -> str:
    return "" if _missing(row["low"]) else spread((row["low"], row["high"]))


def _seed_rows(sweep: Sweep) -> list[list[Any]]:
    rows = [] if sweep.seeds is None else sweep.seeds.to_dict("records")
    scores = [f"{sweep.results.score.name}_{which}" for which in ("best", "base")]
    return [
        [int(row["seed"]), *(_shown(row[score]) for score in scores), f"{row['difference']:+.4f}"]
        for row in rows
    ]


def _trial_rows(sweep: Sweep, table: pd.DataFrame) -> list[list[Any]]:
    """The best first; scores of unfinished trials in brackets."""
    place = table["state"].map({state: i for i, state in enumerate(COLOURS)})
    table = table.assign(place=place).sort_values("score", ascending=sweep.less_is_better, kind="stable")
    rows = []
    for row in table.sort_values("place", kind="stable").to_dict("records"):
        score = "" if _missing(row["score"]) else _shown(row["score"])
        if score and row["state"] != "done":
            score = f"({score})"
        values = [_cell(row[name]) for name in sweep.space.names]
        about = [sweep.title(row["trial"]), row["state"], score, _interval(row)]
        rows.append([*about, *values, row["folds_done"], row["fold_epochs"], _cell(row["message"])])
    return rows


def _points(sweep: Sweep, rows: pd.DataFrame, x: Sequence[Any]) -> Spec:
    """Finished trials with their intervals; the base config as a diamond."""
    score, low, high = (pd.to_numeric(rows[name]) for name in ("score", "low", "high"))
    return charts.points(
        x,
        numbers(score),
        sweep.colours(rows),
        symbol=["diamond" if trial == DEFAULT else "circle" for trial in rows["trial"]],
        error_y=charts.error_bars(score, low, high, "@muted", thickness=1, width=3),
        customdata=[f"trial {sweep.title(trial)}" for trial in rows["trial"]],
        hovertemplate="%{customdata}<br>%{x}: %{y:.4f}<extra></extra>",
        showlegend=False,
    )


def _minutes(times: Any, sweep: Sweep) -> list[float | None]:
    return numbers((pd.to_numeric(times) - sweep.results.table["started_s"].min()) / 60)


def _objective(sweep: Sweep, done: pd.DataFrame) -> Spec:
    done = done.sort_values("ended_s", kind="stable")
    minutes = _minutes(done["ended_s"], sweep)
    so_far = done["score"].cummin() if sweep.less_is_better else done["score"].cummax()
    base = done.loc[done["trial"] == DEFAULT, "score"]
    return charts.figure(
        [
            charts.line(minutes, so_far, "best so far", BEST, shape="hv", hoverinfo="skip"),
            _points(sweep, done, minutes),
        ],
        "minutes since the first trial",
        f"out-of-fold {sweep.score}",
        xaxis={"rangemode": "tozero"},
        shapes=[charts.across(at, at, line=charts.DOTTED | {"color": "@muted"}) for at in map(float, base)],
        showlegend=False,
    )


def _slice(field: Field, sweep: Sweep, table: pd.DataFrame, done: pd.DataFrame) -> Spec:
    stopped = table[table["state"] == "stopped"]
    foot = pd.to_numeric(done["low"]).fillna(pd.to_numeric(done["score"])).min()
    marks = charts.points(
        _values(field, stopped[field.name]),
        numbers([foot] * len(stopped)),
        COLOURS["stopped"],
        size=12,
        symbol="line-ns-open",
        customdata=[f"trial {trial}, stopped" for trial in stopped["trial"]],
        hovertemplate="%{customdata}: %{x}<extra></extra>",
        showlegend=False,
    )
    axis: Spec = {"type": "category"} if field.options else {}
    if field.is_log:
        axis = {"type": "log", **_decades(pd.to_numeric(table[field.name]))}
    traces = [_points(sweep, done, _values(field, done[field.name])), marks]
    return charts.figure(traces, field.name, f"out-of-fold {sweep.score}", xaxis=axis, height=300)


def _decades(values: pd.Series) -> Spec:
    """Ticks at 1, 2 and 5 of each decade; if there are many decades, only at 1."""
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    digits = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [digit * 10.0**decade for decade in range(low, high + 1) for digit in digits]
    return {"tickvals": numbers(ticks), "ticktext": [f"{tick:g}" for tick in ticks]}


def _values(field: Field, values: pd.Series) -> list[Any]:
    if field.options:
        return [None if _missing(value) else str(value) for value in values]
    return numbers(pd.to_numeric(values))


def _parallel(sweep: Sweep, done: pd.DataFrame) -> Spec:
    score = pd.to_numeric(done["score"])
    bar = {"thickness": 10, "outlinewidth": 0, "tickfont": {"color": "@soft", "size": 11}}
    scale: list[list[Any]] = [[0, "@c1"], [0.5, "@muted"], [1, "@c0"]]
    if sweep.less_is_better:
        scale = [[1 - at, colour] for at, colour in reversed(scale)]
    font, labels = {"color": "@soft", "size": 11}, sweep.space.labels
    lines = {
        "type": "parcoords",
        "dimensions": [
            *({"label": labels[field.name], **_axis(field, done[field.name])} for field in sweep.space),
            {"label": f"OOF {sweep.score}", **_scale(score, lambda value: f"{value:.3g}")},
        ],
        "line": {"color": numbers(score), "colorscale": scale, "showscale": True, "colorbar": bar},
        "labelfont": {**font, "color": "@ink"},
        "tickfont": font,
        "rangefont": {**font, "color": "rgba(0,0,0,0)"},  # the ticks show it
    }
    return {"data": [lines], "layout": {"height": 360, "margin": {"l": 46, "r": 10, "t": 48, "b": 24}}}


def _axis(field: Field, values: pd.Series) -> Spec:
    if field.options:
        options = field.options
        places = [options.index(value) if value in options else None for value in values]
        ticks = {"tickvals": list(range(len(options))), "ticktext": list(map(str, options))}
        return {"values": places, **ticks}
    known = pd.to_numeric(values)
    if not field.is_log:
        return _scale(known)
    logs = known.map(lambda value: math.log10(value) if value > 0 else math.nan)
    return _scale(logs, lambda log: f"{10**log:.2g}")


def _scale(values: pd.Series, text: Callable[[float], str] = lambda value: f"{value:.2g}") -> Spec:
    """Values of an axis from the least to the greatest, with ticks at both ends and between."""
    low, high = float(values.min()), float(values.max())
    ticks = [low + (high - low) * place / 4 for place in range(5)] if high > low else [low]
    return {"values": numbers(values), "tickvals": numbers(ticks), "ticktext": list(map(text, ticks))}


def _importance(sweep: Sweep) -> Spec:
    names, shares = zip(*sorted(sweep.importance.items(), key=lambda item: item[1]))
    hover = {"orientation": "h", "hovertemplate": "%{y}: %{x:.1%}<extra></extra>"}
    bars = charts.bars(numbers(shares), names, "@c0", **hover)
    axes = {"xaxis": {"tickformat": ".0%"}, "height": 120 + 34 * len(names)}
    return charts.figure([bars], f"share of the variance in {sweep.score}", "", **axes)


def _curves(sweep: Sweep, table: pd.DataFrame) -> Spec:
    traces: list[Spec] = []
    shown = set()
    for trial, state, colour in zip(table["trial"], table["state"], sweep.colours(table)):
        curve, is_best = sweep.reports[trial], trial == sweep.best
        name = "best" if is_best else state
        end = ["x" if state == "stopped" else "circle"][: len(curve)]
        symbols = ["circle"] * (len(curve) - 1) + end
        hover = f"trial {sweep.title(trial)} ({state})<br>%{{x}} fold-epochs: %{{y:.4f}}<extra></extra>"
        legend = {"legendgroup": name, "showlegend": name not in shown}
        marks = {"size": [9 if symbol == "x" else 4 for symbol in symbols], "symbol": symbols}
        style: Spec = {"width": 3 if is_best else 1.3, "mode": "lines+markers", "marker": marks, **legend}
        x, y = curve["fold_epochs"], curve["score"]
        traces.append(charts.line(x, y, name, colour, hovertemplate=hover, **style))
        shown.add(name)
    rungs = [charts.upright(at, charts.DOTTED | {"color": "@muted"}) for at in sweep.rungs]
    return charts.figure(traces, "fold-epochs", f"{sweep.score} at that step", shapes=rungs, height=420)


def _timeline(sweep: Sweep, table: pd.DataFrame) -> Spec:
    ends = pd.to_numeric(table["ended_s"]).fillna(table["started_s"])
    bars = charts.bars(
        numbers((ends - table["started_s"]) / 60),
        table["trial"].tolist(),
        sweep.colours(table),
        orientation="h",
        base=_minutes(table["started_s"], sweep),
        customdata=table[["state", "fold_epochs"]].values.tolist(),
        hovertemplate="trial %{y}: %{customdata[0]} after %{customdata[1]} fold-epochs, %{x:.1f} min<extra></extra>",
    )
    style = {"height": max(420, 90 + BAR * len(table)), "bargap": 0.25}
    axis = {"autorange": "reversed", "tickformat": "d"}
    return charts.figure([bars], "minutes since the first trial", "trial", yaxis=axis, **style)


def _cell(value: Any) -> str:
    if _missing(value):
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
