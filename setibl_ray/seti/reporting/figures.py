"""The report's figures as plain Plotly dictionaries; the page draws them.

Colours are names ("@needle", "@muted/0.3" with opacity), resolved in the browser, so that one figure serves
light and dark. Curves are thinned to what a screen shows: a report of 60,000 rows is as small as one of 600.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from setibl_ray.seti.cadence import CLASS_NAMES
from setibl_ray.seti.evaluation import calibration

Spec = dict[str, Any]

N_COLOURS = 8  # more folds than this share one muted colour: nobody tells nine lines apart by hue
MAX_POINTS = 400
N_BINS = 50
LOG_TICKS = [1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1]
MIN_SHOWN = 30  # needles per bin below which a kind's curve is noise; a reader may switch it on


class Figure(NamedTuple):
    """A drawing and its name, by which its caption is found where it brings none of its own."""

    name: str
    spec: Spec
    caption: tuple[str, str] | None = None  # title, how to read it


def _numbers(values: Any) -> list[float | None]:
    """JSON numbers of six digits; what is not finite becomes a gap in the line."""
    array = np.asarray(values, np.float64)
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in array]


def thin(x: np.ndarray, y: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points of a monotone curve over [0, 1], even along it both on linear and on log x."""
    if len(x) <= limit:
        return x, y
    floor = x[x > 0].min(initial=1.0)
    kept = {0, len(x) - 1}
    for along in (x, np.log(np.maximum(x, floor))):
        scale = np.ptp(along) or 1.0
        travelled = np.concatenate([[0], np.cumsum(np.abs(np.diff(along)) / scale + np.abs(np.diff(y)))])
        steps = np.linspace(0, travelled[-1], limit // 2 - 1)
        kept.update(np.searchsorted(travelled, steps).clip(0, len(x) - 1).tolist())
    index = np.array(sorted(kept))
    return x[index], y[index]


def _line(x: Any, y: Any, name: str, colour: str, **more: Any) -> Spec:
    line = {"color": colour, "width": more.pop("width", 2), **more.pop("line", {})}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": _numbers(x),
        "y": _numbers(y),
        "name": name,
        "line": line,
        **more,
    }


def _fold_style(position: int, n_folds: int) -> Spec:
    """Colour and legend entry of a fold: its own while hues last, else one for all."""
    if n_folds <= N_COLOURS:
        return {"colour": f"@c{position}", "showlegend": True}
    return {"colour": "@muted/0.5", "showlegend": position == 0, "legendgroup": "folds"}


def _layout(x: str, y: str, **more: Any) -> Spec:
    layout: Spec = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    for name, value in more.items():
        layout[name] = {**layout[name], **value} if name in ("xaxis", "yaxis") else value
    return layout


def _two_classes(target: np.ndarray) -> bool:
    return 0 < target.sum() < len(target)


def _fold_rows(oof: pd.DataFrame) -> Iterator[tuple[int, int, pd.DataFrame]]:
    """(position, fold, its rows) of every fold whose held-out rows have both classes."""
    for position, (fold, rows) in enumerate(oof.groupby("fold")):
        if _two_classes(rows["target"].to_numpy()):
            yield position, int(fold), rows


def roc(oof: pd.DataFrame) -> Spec:
    """ROC per fold and pooled, false-positive rate on a logarithmic axis that a button makes linear."""
    from sklearn.metrics import roc_curve

    n_folds = oof["fold"].nunique()
    curves = [(f"fold {fold}", rows, _fold_style(i, n_folds), 1.2) for i, fold, rows in _fold_rows(oof)]
    if _two_classes(oof["target"].to_numpy()):
        curves.append(("all folds", oof, {"colour": "@ink", "showlegend": True}, 3))
    floor = 0.5 / max(1, int((oof["target"] == 0).sum()))
    traces = []
    for name, rows, style, width in curves:
        fpr, tpr, _ = roc_curve(rows["target"], rows["pred"])
        # A zero has no place on a log axis; half a false positive is as far left as the data reach.
        x, y = thin(np.maximum(fpr, floor), tpr, _points(n_folds, width))
        style = dict(style)
        traces.append(_line(x, y, name, style.pop("colour"), width=width, **style))
    diagonal = np.geomspace(floor, 1, 60)
    traces.append(
        _line(diagonal, diagonal, "chance", "@muted", width=1, line={"dash": "dot"}, hoverinfo="skip")
    )
    marks = [
        {
            "type": "line",
            "x0": at,
            "x1": at,
            "y0": 0,
            "y1": 1,
            "line": {"color": "@needle", "width": 1, "dash": "dash"},
        }
        for at in (0.01, 0.001)
        if at >= floor
    ]
    buttons = [
        {
            "label": kind,
            "method": "relayout",
            "args": [{"xaxis.type": kind, "xaxis.autorange": True, "xaxis.tickmode": ticks}],
        }
        for kind, ticks in (("log", "array"), ("linear", "auto"))
    ]
    return {
        "data": traces,
        "layout": _layout(
            "false-positive rate",
            "recall (needles found)",
            xaxis={"type": "log", "tickformat": "~p", "tickmode": "array", "tickvals": LOG_TICKS},
            yaxis={"range": [0, 1.02], "tickformat": ".0%"},
            shapes=marks,
            updatemenus=[{"buttons": buttons}],
        ),
    }


def _points(n_folds: int, width: float) -> int:
    return MAX_POINTS if width > 2 else max(40, 3000 // n_folds)


def precision_recall(oof: pd.DataFrame) -> Spec:
    from sklearn.metrics import precision_recall_curve

    n_folds = oof["fold"].nunique()
    curves = [(f"fold {fold}", rows, _fold_style(i, n_folds), 1.2) for i, fold, rows in _fold_rows(oof)]
    if _two_classes(oof["target"].to_numpy()):
        curves.append(("all folds", oof, {"colour": "@ink", "showlegend": True}, 3))
    traces = []
    for name, rows, style, width in curves:
        precision, recall, _ = precision_recall_curve(rows["target"], rows["pred"])
        x, y = thin(recall[::-1], precision[::-1], min(_points(n_folds, width), MAX_POINTS))
        style = dict(style)
        traces.append(_line(x, y, name, style.pop("colour"), width=width, **style))
    share = float(oof["target"].mean())
    traces.append(_line([0, 1], [share, share], "chance", "@muted", width=1, line={"dash": "dot"}))
    percent = {"range": [0, 1.02], "tickformat": ".0%"}
    return {
        "data": traces,
        "layout": _layout(
            "recall (needles found)", "precision (flags that are needles)", xaxis=percent, yaxis=percent
        ),
    }


def fold_scores(metrics: Mapping[str, Any]) -> Spec:
    """AUC per fold with its interval, with and without TTA, against the pooled interval."""
    folds, intervals = metrics["folds"], metrics["intervals"]
    x = [fold["fold"] for fold in folds]
    bounds = [intervals.get(f"fold_{fold}_auc") for fold in x]
    auc = [fold["auc"] for fold in folds]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [
            high_low[1] - value if high_low and value is not None else 0
            for value, high_low in zip(auc, bounds)
        ],
        "arrayminus": [
            value - high_low[0] if high_low and value is not None else 0
            for value, high_low in zip(auc, bounds)
        ],
        "color": "@c0/0.5",
        "thickness": 1.5,
    }
    dots = {"type": "scatter", "mode": "markers", "x": x}
    pooled = intervals.get("oof_auc")
    band = (
        [
            {
                "type": "rect",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": pooled[0],
                "y1": pooled[1],
                "fillcolor": "@muted/0.15",
                "line": {"width": 0},
                "layer": "below",
            }
        ]
        if pooled
        else []
    )
    return {
        "data": [
            {**dots, "y": auc, "name": "with TTA", "marker": {"color": "@c0", "size": 10}, "error_y": error},
            {
                **dots,
                "y": [fold["auc_no_tta"] for fold in folds],
                "name": "without TTA",
                "marker": {"color": "@c1", "size": 9, "symbol": "diamond-open", "line": {"width": 2}},
            },
        ],
        "layout": _layout("fold", "ROC AUC", shapes=band, xaxis={"dtick": max(1, -(-len(x) // 12))}),
    }


def score_distribution(oof: pd.DataFrame, submission: pd.DataFrame) -> Spec:
    """Share of cadences per score, for both classes and for the test set."""
    edges = np.linspace(0, 1, N_BINS + 1)
    parts = [
        (CLASS_NAMES[0], oof.loc[oof["target"] == 0, "pred"], "@haystack"),
        (CLASS_NAMES[1], oof.loc[oof["target"] == 1, "pred"], "@needle"),
        ("test set", submission["pred"], "@ink"),
    ]
    traces = []
    for name, pred, colour in parts:
        if not len(pred):
            continue
        share = np.histogram(pred, edges)[0] / len(pred)
        test = name == "test set"
        fill = {} if test else {"fill": "tozeroy", "fillcolor": f"{colour}/0.25"}
        line = {"shape": "hvh", "dash": "dot"} if test else {"shape": "hvh"}
        traces.append(
            _line((edges[:-1] + edges[1:]) / 2, share, f"{name} ({len(pred):,})", colour, line=line, **fill)
        )
    return {
        "data": traces,
        "layout": _layout(
            "score",
            "share of its class",
            xaxis={"range": [0, 1]},
            yaxis={"tickformat": ".0%", "rangemode": "tozero"},
        ),
    }


def reliability(oof: pd.DataFrame) -> Spec:
    """Share of needles against mean score, with the number of cadences below; and what it was before calibration."""
    target = oof["target"].to_numpy(np.float64)
    bins = calibration.reliability(target, oof["pred"].to_numpy(np.float64))
    before = []
    if not np.array_equal(oof["pred"], oof["pred_model"]):
        model = calibration.reliability(target, oof["pred_model"].to_numpy(np.float64))
        before = [
            _line(
                model.predicted,
                model.observed,
                "as the models gave it",
                "@c1",
                width=1.5,
                line={"dash": "dash"},
            )
        ]
    size = 7 + 9 * np.sqrt(bins.n_rows / bins.n_rows.max())
    return {
        "data": [
            _line([0, 1], [0, 1], "perfect", "@muted", width=1, line={"dash": "dot"}, hoverinfo="skip"),
            *before,
            _line(
                bins.predicted,
                bins.observed,
                "this run",
                "@c0",
                mode="lines+markers",
                marker={"size": _numbers(size)},
                customdata=bins.n_rows.tolist(),
                hovertemplate="score %{x:.2f}, needles %{y:.0%}<br>%{customdata:,} cadences<extra></extra>",
            ),
            {
                "type": "bar",
                "x": _numbers(bins.predicted),
                "y": bins.n_rows.tolist(),
                "yaxis": "y2",
                "width": 0.04,
                "marker": {"color": "@muted/0.5"},
                "name": "cadences",
            },
        ],
        "layout": _layout(
            "mean score of the bin",
            "share of needles",
            xaxis={"range": [0, 1], "anchor": "y2"},
            yaxis={"range": [0, 1.03], "domain": [0.3, 1], "tickformat": ".0%"},
            yaxis2={"domain": [0, 0.2], "title": {"text": "cadences"}, "nticks": 3},
        ),
    }


def recall_by_snr(rows: Sequence[Mapping[str, Any]]) -> Spec:
    traces: list[Spec] = []
    kinds = [kind for kind in dict.fromkeys(row["kind"] for row in rows) if kind != "all"]
    for i, kind in enumerate([*kinds, "all"]):
        own = [row for row in rows if row["kind"] == kind and row["n"]]
        x, y = [row["snr_median"] for row in own], [row["share"] for row in own]
        everything = kind == "all"
        if everything:
            low, high = [row["interval"][0] for row in own], [row["interval"][1] for row in own]
            traces.append(
                _line(
                    [*x, *x[::-1]],
                    [*high, *low[::-1]],
                    "95 % interval",
                    "@ink/0",
                    fill="toself",
                    fillcolor="@ink/0.1",
                    hoverinfo="skip",
                )
            )
        traces.append(
            _line(
                x,
                y,
                escape(kind),  # a plot's texts take some HTML
                "@ink" if everything else f"@c{i % N_COLOURS}",
                width=3 if everything else 1.5,
                mode="lines+markers",
                visible=True
                if everything or np.median([row["n"] for row in own] or [0]) >= MIN_SHOWN
                else "legendonly",
                customdata=[row["n"] for row in own],
                hovertemplate="S/N %{x:.0f}: %{y:.0%} of %{customdata} found<extra>%{fullData.name}</extra>",
            )
        )
    return {"data": traces, "layout": _snr_layout()}


def _snr_layout() -> Spec:
    return _layout(
        "S/N of the needle in one panel",
        "recall at 1 % false positives",
        xaxis={
            "type": "log",
            "tickvals": [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1000],
        },
        yaxis={"range": [0, 1.03], "tickformat": ".0%"},
    )


def compared_snr(named: Mapping[str, Sequence[Mapping[str, Any]]]) -> Spec:
    """Recall against S/N over all kinds of needle, one line per run; no lines where the shards carry no S/N."""
    traces = []
    for i, (name, rows) in enumerate(named.items()):
        own = [row for row in rows if row["kind"] == "all" and row["n"]]
        if own:
            x, y = [row["snr_median"] for row in own], [row["share"] for row in own]
            traces.append(_line(x, y, escape(name), f"@c{i % N_COLOURS}", mode="lines+markers"))
    return {"data": traces, "layout": _snr_layout()}


def shares_by_kind(rows: Sequence[Mapping[str, Any]], x: str, colour: str) -> Spec:
    """A horizontal bar with its interval per kind, largest at the top."""
    known = sorted((row for row in rows if row["share"] is not None), key=lambda row: row["share"])
    share = [row["share"] for row in known]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [row["interval"][1] - row["share"] for row in known],
        "arrayminus": [row["share"] - row["interval"][0] for row in known],
        "color": "@ink/0.6",
        "thickness": 1.5,
    }
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "x": _numbers(share),
                "y": [escape(row["kind"]) for row in known],
                "error_x": error,
                "marker": {"color": f"{colour}/0.7"},
                "showlegend": False,
                "customdata": [[row["n_hits"], row["n"], row["auc"]] for row in known],
                "hovertemplate": "%{y}: %{customdata[0]} of %{customdata[1]}, AUC %{customdata[2]:.3f}"
                "<extra></extra>",
            }
        ],
        "layout": _layout(
            x,
            "",
            xaxis={"tickformat": "~p", "rangemode": "tozero"},
            yaxis={"automargin": True, "title": {"text": ""}},
        ),
    }


def history(histories: Mapping[int, pd.DataFrame], quantity: str, best: Mapping[int, int]) -> Spec:
    """`quantity` ("auc" or "loss") per epoch, training dotted and held-out solid, the chosen epoch marked."""
    traces = []
    marks: Spec = {"x": [], "y": [], "text": []}
    for position, (fold, past) in enumerate(sorted(histories.items())):
        style = _fold_style(position, len(histories))
        colour = style.pop("colour")
        group = {"legendgroup": style.pop("legendgroup", f"fold {fold}")}
        name = f"fold {fold}" if len(histories) <= N_COLOURS else "folds"
        epoch = past["epoch"] + 1  # people count from one
        traces.append(_line(epoch, past[f"val_{quantity}"], name, colour, **group, **style))
        traces.append(
            _line(
                epoch,
                past[quantity],
                f"{name} train",
                colour,
                width=1.2,
                line={"dash": "dot"},
                opacity=0.8,
                **group,
                showlegend=False,
            )
        )
        chosen = past.loc[past["epoch"] == best.get(fold)]
        if len(chosen):
            marks["x"].append(int(chosen["epoch"].iloc[0]) + 1)
            marks["y"] += _numbers(chosen[f"val_{quantity}"])
            marks["text"].append(f"fold {fold}")
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "chosen epoch",
            **marks,
            "marker": {"symbol": "star", "size": 13, "color": "@ink", "line": {"color": "@card", "width": 1}},
            "hovertemplate": "%{text}: epoch %{x}, %{y:.4f}<extra></extra>",
        }
    )
    label = {"auc": "ROC AUC", "loss": "loss"}[quantity]
    return {"data": traces, "layout": _layout("epoch", label, xaxis={"tickformat": "d"})}


def learning_rate(histories: Mapping[int, pd.DataFrame]) -> Spec:
    """One line where all folds share a schedule, else one per fold."""
    rates = {fold: past[["epoch", "lr"]] for fold, past in sorted(histories.items())}
    first = next(iter(rates.values()))
    if all(len(rate) == len(first) and np.allclose(rate, first) for rate in rates.values()):
        rates = {-1: first}
    traces = []
    for position, (fold, rate) in enumerate(rates.items()):
        style = _fold_style(position, len(rates))
        name = "all folds" if fold < 0 else f"fold {fold}"
        traces.append(
            _line(rate["epoch"] + 1, rate["lr"], name, style.pop("colour"), mode="lines+markers", **style)
        )
    return {
        "data": traces,
        "layout": _layout(
            "epoch",
            "learning rate",
            xaxis={"tickformat": "d"},
            yaxis={"exponentformat": "e", "rangemode": "tozero"},
        ),
    }


# A fold's timings in manifest.json, in the order in which a fold spends them.
PHASES = (
    ("open_s", "open data", "@c3"),
    ("build_s", "build model", "@c1"),
    ("train_s", "train", "@c0"),
    ("predict_valid_s", "predict held-out rows", "@c2"),
)
START = ("start", "@muted/0.5")
PREDICTION = ("predict test rows", "@c6")  # work of its own, in spans that any free slot takes
FAILED, INTERRUPTED = ("failed attempt", "@bad"), ("interrupted or discarded", "@ink/0.6")
LANE = 0.8  # of the room between two lanes


def timeline(manifest: Mapping[str, Any]) -> Spec:
    """A lane per fold: what failed, what its last attempt spent its time on, and then spans of the test set."""
    bars: dict[tuple[str, str], Spec] = {}

    def add(style: tuple[str, str], lane: str, start: float, length: float, text: str, track: Track) -> None:
        bar = bars.setdefault(
            style,
            {
                "type": "bar",
                "orientation": "h",
                "name": style[0],
                **{key: [] for key in ("x", "y", "base", "customdata", "width", "offset")},
                "marker": {"color": style[1], "line": {"color": "@card", "width": 0.5}},
                "hovertemplate": "%{customdata}<extra></extra>",
            },
        )
        width = LANE / track.of
        values = (round(length, 2), lane, round(start, 2), text, width, track.number * width - LANE / 2)
        for key, value in zip(("x", "y", "base", "customdata", "width", "offset"), values):
            bar[key].append(value)

    lanes = []
    for fold, entry in sorted(manifest["folds"].items(), key=lambda item: int(item[0])):
        lane = f"fold {fold}"
        lanes.append(lane)
        for attempts, timings in (
            (entry["attempts"], entry.get("timings")),
            (entry.get("predictions", []), None),
        ):
            for attempt, track in _tracks(attempts):
                at = attempt["started_s"] - manifest["started_s"]
                for style, seconds, what in _spent(attempt, timings):
                    add(style, lane, at, seconds, f"{lane}, {_place(attempt)}<br>{what}", track)
                    at += seconds
    order = [START, *((name, colour) for _, name, colour in PHASES), PREDICTION, FAILED, INTERRUPTED]
    return {
        "data": [bars[style] for style in order if style in bars],
        "layout": _layout(
            "seconds since the run began",
            "",
            barmode="overlay",
            legend={"y": 1.02, "yanchor": "bottom"},  # below, it runs into the axis where there are few lanes
            xaxis={"rangemode": "tozero"},
            yaxis={
                "categoryorder": "array",
                "categoryarray": lanes[::-1],
                "automargin": True,
                "title": {"text": ""},
            },
            height=max(220, min(900, 130 + 34 * len(lanes))),
        ),
    }


class Track(NamedTuple):
    """Which of how many strips of a lane: what runs at the same time must not hide each other."""

    number: int
    of: int


def _spent(
    attempt: Mapping[str, Any], timings: Mapping[str, float] | None
) -> list[tuple[tuple[str, str], float, str]]:
    """What an attempt's seconds went into: style, seconds, words. Without timings it predicted test rows."""
    total = attempt["ended_s"] - attempt["started_s"]
    if attempt.get("outcome") != "done":
        style = FAILED if attempt.get("outcome") == "failed" else INTERRUPTED
        why = attempt.get("cause") or attempt.get("message") or attempt.get("outcome", "")
        then = f", then {attempt['decision']}" if "decision" in attempt else ""
        return [(style, total, f"{why}{then}")]
    spent = [(PREDICTION, total)]
    if timings is not None:
        spent = [((name, colour), timings.get(key, 0.0)) for key, name, colour in PHASES]
        # What no phase accounts for comes first: the process starts before it can take any time.
        spent.insert(0, (START, total - sum(seconds for _, seconds in spent)))
    return [(style, seconds, f"{style[0]}: {seconds:.1f} s") for style, seconds in spent if seconds > 0]


def _tracks(attempts: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Track]]:
    """Every attempt that has ended, with a strip in which nothing else runs then; as few strips as that takes."""
    ended = sorted(
        (attempt for attempt in attempts if attempt.get("ended_s") is not None),
        key=lambda attempt: attempt["started_s"],
    )
    free_from: list[float] = []
    numbers = []
    for attempt in ended:
        free = [number for number, since in enumerate(free_from) if since <= attempt["started_s"]]
        number = free[0] if free else len(free_from)
        free_from[number : number + 1] = [attempt["ended_s"]]
        numbers.append(number)
    return [(attempt, Track(number, len(free_from))) for attempt, number in zip(ended, numbers)]


def _place(attempt: Mapping[str, Any]) -> str:
    rows = (
        "test rows {:,}–{:,}, ".format(attempt["rows"][0], attempt["rows"][1] - 1)
        if "rows" in attempt
        else ""
    )
    device = attempt.get("device", "")
    return f"{attempt.get('node', 'no node')} {device} ({rows}attempt {attempt.get('attempt', 0)})"


def class_distribution(oof: pd.DataFrame) -> Spec:
    counts = [int((oof["target"] == label).sum()) for label in (0, 1)]
    return {
        "data": [
            {
                "type": "bar",
                "x": list(CLASS_NAMES),
                "y": counts,
                "showlegend": False,
                "textposition": "outside",
                "text": [f"{count:,} ({count / len(oof):.0%})" for count in counts],
                "cliponaxis": False,
                "marker": {"color": ["@haystack", "@needle"]},
                "width": 0.55,
            }
        ],
        "layout": _layout("", "training cadences"),
    }


def fold_balance(oof: pd.DataFrame) -> Spec:
    folds = sorted(oof["fold"].unique())
    traces = []
    for label, colour in ((0, "@haystack"), (1, "@needle")):
        counts = oof.loc[oof["target"] == label, "fold"].value_counts().reindex(folds, fill_value=0)
        traces.append(
            {
                "type": "bar",
                "x": [f"{fold}" for fold in folds],
                "y": counts.tolist(),
                "name": CLASS_NAMES[label],
                "marker": {"color": colour},
            }
        )
    return {
        "data": traces,
        "layout": _layout("fold", "held-out cadences", barmode="stack", xaxis={"type": "category"}),
    }


def compared_intervals(names: Sequence[str], metrics: Sequence[Mapping[str, Any]]) -> Spec:
    """Pooled AUC with its interval, one row per run."""
    auc = [own["oof_auc"] for own in metrics]
    bounds = [own["intervals"].get("oof_auc") or [value, value] for own, value in zip(metrics, auc)]
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "markers",
                "x": auc,
                "y": list(map(escape, names)),
                "showlegend": False,
                "marker": {"size": 11, "color": [f"@c{i % N_COLOURS}" for i in range(len(names))]},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "color": "@ink/0.5",
                    "thickness": 1.5,
                    "array": [high - value for value, (_, high) in zip(auc, bounds)],
                    "arrayminus": [value - low for value, (low, _) in zip(auc, bounds)],
                },
            }
        ],
        "layout": _layout(
            "pooled out-of-fold AUC",
            "",
            yaxis={"automargin": True, "title": {"text": ""}, "autorange": "reversed"},
            height=160 + 40 * len(names),
        ),
    }


def compared_roc(named: Mapping[str, pd.DataFrame]) -> Spec:
    """Pooled ROC of several runs."""
    merged = roc(next(iter(named.values())))
    curves = []
    for i, (name, oof) in enumerate(named.items()):
        pooled = next(trace for trace in roc(oof)["data"] if trace["name"] == "all folds")
        curves.append({**pooled, "name": escape(name), "line": {"color": f"@c{i % N_COLOURS}", "width": 2}})
    chance = [trace for trace in merged["data"] if trace["name"] == "chance"]
    return {"data": [*curves, *chance], "layout": merged["layout"]}
