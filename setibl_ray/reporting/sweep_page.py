"""sweep.html: one self-contained page that shows what a sweep tried, what it stopped, and what mattered."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

COLOURS = {
    "done": "#2a6fbb",
    "stopped": "#eb8a2f",
    "failed": "#c9434a",
    "unfinished": "#999999",
    "running": "#53a567",
}
BEST = "#53a567"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem;color:#222}
h1{font-size:1.4rem}h2{font-size:1.05rem;margin:2rem 0 .2rem}p{margin:.2rem 0 .6rem;color:#555}
pre{background:#f5f6f8;padding:.8rem;overflow-x:auto}table{border-collapse:collapse;font-size:13px}
td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #e3e5e8}tr.best{background:#eaf5ec}
"""


@dataclass(frozen=True)
class Searched:
    """A searched field; `options` of a list, else none."""

    name: str
    is_log: bool
    options: Sequence[Any]


@dataclass(frozen=True)
class Sweep:
    """What the page is drawn from.

    Attributes:
      table: trial, state, auc, auc_low, auc_high, a column per searched field, folds_done, fold_epochs,
        started_s, ended_s, message; a line per trial.
      fields: the searched fields.
      base: field -> the base config's value, shown for the trial without values.
      reports: trial -> fold_epochs, auc, time_s at each comparable step.
      importance: field -> share of variance.
      best: number of the best trial.
      lines: the summary as text.
    """

    table: pd.DataFrame
    fields: Sequence[Searched]
    base: Mapping[str, Any]
    reports: Mapping[int, pd.DataFrame]
    importance: Mapping[str, float]
    best: int | None
    lines: Sequence[str]


def draw(sweep: Sweep) -> str:
    """The page as HTML that needs no network."""
    from plotly.offline import get_plotlyjs

    table = sweep.table.copy()
    for field in sweep.fields:
        base = sweep.base.get(field.name)
        table[field.name] = [base if _missing(value) else value for value in table[field.name]]
    done = table[table["state"] == "done"]
    parts = [
        _section(
            "Objective over time",
            "Out-of-fold AUC of each finished trial, and the best so far.",
            _objective(done),
        )
    ]
    if len(done) > 1:
        parts.append(
            _section(
                "All fields at once",
                "One line per finished trial; drag along an axis to select.",
                _parallel(done, sweep),
            )
        )
        parts.append(
            _section(
                "Each field alone",
                "Out-of-fold AUC with its 95 % bootstrap interval; where stopped trials were, as marks at the foot.",
                _slices(table, sweep),
            )
        )
    if sweep.importance:
        what = "Share of the variance in AUC that each field explains over the finished trials (fANOVA)."
        parts.append(_section("What mattered", what, _importance(sweep)))
    parts.append(
        _section(
            "What was stopped, and when",
            "AUC at each comparable step: the same folds and epochs for every trial. A cross: stopped there.",
            _curves(table, sweep),
        )
    )
    body = "\n".join(parts)
    text = html.escape("\n".join(sweep.lines))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sweep</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><h1>Sweep</h1><pre>{text}</pre>{body}<h2>Trials</h2>{_table(table, sweep)}</body></html>"
    )


def _section(title: str, what: str, figure: Any) -> str:
    plot = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(what)}</p>{plot}"


def _figure(height: int = 380, **layout: Any) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    margin = {"l": 60, "r": 20, "t": 20, "b": 50}
    return figure.update_layout(template="plotly_white", height=height, margin=margin, **layout)


def _objective(done: pd.DataFrame) -> Any:
    figure = _figure(xaxis_title="minutes", yaxis_title="out-of-fold AUC")
    if len(done):
        done = done.sort_values("ended_s", kind="stable")
        minutes = (done["ended_s"] - done["started_s"].min()) / 60
        figure.add_scatter(
            x=minutes, y=done["auc"], mode="markers", name="trial", text=done["trial"],
            marker={"color": COLOURS["done"]}, error_y=_interval(done), hovertemplate="trial %{text}: %{y:.4f}",
        )  # fmt: skip
        best = done["auc"].cummax()
        figure.add_scatter(
            x=minutes, y=best, mode="lines", name="best so far", line={"shape": "hv", "color": BEST}
        )
    return figure


def _interval(rows: pd.DataFrame) -> dict[str, Any]:
    auc = pd.to_numeric(rows["auc"])
    high, low = pd.to_numeric(rows["auc_high"]), pd.to_numeric(rows["auc_low"])
    return {"type": "data", "array": high - auc, "arrayminus": auc - low, "thickness": 1, "width": 3}


def _parallel(done: pd.DataFrame, sweep: Sweep) -> Any:
    import numpy as np

    figure = _figure(height=420)
    dimensions = []
    for field in sweep.fields:
        known = done[field.name]
        if field.options:
            at = [field.options.index(value) if value in field.options else -1 for value in known]
            labels = [str(option) for option in field.options]
            dimensions.append(
                {"label": field.name, "values": at, "tickvals": list(range(len(labels))), "ticktext": labels}
            )
        elif field.is_log:
            logs = np.log10(known.astype(float))
            ticks = np.linspace(logs.min(), logs.max(), 5)
            text = [f"{10**tick:.2g}" for tick in ticks]
            dimensions.append({"label": field.name, "values": logs, "tickvals": ticks, "ticktext": text})
        else:
            dimensions.append({"label": field.name, "values": known.astype(float)})
    dimensions.append({"label": "OOF AUC", "values": done["auc"]})
    line = {"color": done["auc"], "colorscale": "Viridis", "showscale": True}
    figure.add_parcoords(dimensions=dimensions, line=line)
    return figure.update_layout(margin={"l": 90, "r": 60, "t": 60, "b": 30})


def _slices(table: pd.DataFrame, sweep: Sweep) -> Any:
    from plotly.subplots import make_subplots

    done, stopped = table[table["state"] == "done"], table[table["state"] == "stopped"]
    names = [field.name for field in sweep.fields]
    figure = make_subplots(rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.03)
    foot = pd.to_numeric(done["auc_low"]).fillna(done["auc"]).min()
    for column, field in enumerate(sweep.fields, 1):
        colours = [BEST if number == sweep.best else COLOURS["done"] for number in done["trial"]]
        figure.add_scatter(
            x=done[field.name], y=done["auc"], mode="markers", text=done["trial"], marker={"color": colours, "size": 8},
            error_y=_interval(done), hovertemplate="trial %{text}: %{y:.4f} at %{x}", showlegend=False,
            row=1, col=column,
        )  # fmt: skip
        figure.add_scatter(
            x=stopped[field.name], y=[foot] * len(stopped), mode="markers", text=stopped["trial"],
            marker={"symbol": "line-ns-open", "color": COLOURS["stopped"], "size": 12},
            hovertemplate="trial %{text}, stopped: %{x}", showlegend=False, row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text=field.name, type="log" if field.is_log else None, row=1, col=column)
    figure.update_yaxes(title_text="out-of-fold AUC", row=1, col=1)
    return figure.update_layout(
        template="plotly_white", height=380, margin={"l": 60, "r": 20, "t": 20, "b": 50}
    )


def _importance(sweep: Sweep) -> Any:
    figure = _figure(height=110 + 40 * len(sweep.importance), xaxis_title="share of variance")
    names = sorted(sweep.importance, key=lambda name: sweep.importance[name])
    shares = [sweep.importance[name] for name in names]
    return figure.add_bar(x=shares, y=names, orientation="h", marker={"color": COLOURS["done"]})


def _curves(table: pd.DataFrame, sweep: Sweep) -> Any:
    figure = _figure(xaxis_title="fold-epochs", yaxis_title="AUC at that step", height=440)
    shown = set()
    for row in table.to_dict("records"):
        curve = sweep.reports[row["trial"]]
        state = row["state"]
        best = row["trial"] == sweep.best
        figure.add_scatter(
            x=curve["fold_epochs"], y=curve["auc"], mode="lines+markers", name=state, legendgroup=state,
            showlegend=state not in shown,
            line={"color": BEST if best else COLOURS[state], "width": 3 if best else 1.3},
            marker={"size": 4, "symbol": "circle"}, opacity=1 if best or state != "done" else 0.75,
            hovertemplate=f"trial {row['trial']} ({state})<br>%{{x}} fold-epochs: %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
        shown.add(state)
        if state == "stopped" and len(curve):
            end = curve.iloc[-1]
            figure.add_scatter(
                x=[end["fold_epochs"]], y=[end["auc"]], mode="markers", showlegend=False, hoverinfo="skip",
                marker={"symbol": "x", "size": 9, "color": COLOURS["stopped"]},
            )  # fmt: skip
    return figure


def _table(table: pd.DataFrame, sweep: Sweep) -> str:
    names = [
        "trial",
        "state",
        "auc",
        *(field.name for field in sweep.fields),
        "folds_done",
        "fold_epochs",
        "message",
    ]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = []
    for row in table.to_dict("records"):
        cells = "".join(f"<td>{html.escape(_cell(row[name]))}</td>" for name in names)
        rows.append(f"<tr{' class=best' if row['trial'] == sweep.best else ''}>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _cell(value: Any) -> str:
    if _missing(value):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
