"""The report's figures. Curves are thinned to what a screen shows: 60,000 rows make a report no larger than 600."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from setibl_ray.core.reporting import charts
from setibl_ray.core.reporting.charts import Spec
from setibl_ray.seti.cadence import CLASS_NAMES
from setibl_ray.seti.evaluation import calibration

N_COLOURS = 8  # more folds than this share one muted colour, as nine hues cannot be told apart
MAX_POINTS = 400
N_BINS = 50
LOG_TICKS = [1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1]
SNR_TICKS = [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1000]
MIN_SHOWN = 30  # needles per bin below which a kind's curve is noise; a reader may switch it on
PERCENT = {"range": [0, 1.02], "tickformat": ".0%"}


def thin(x: np.ndarray, y: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points of a monotone curve over [0, 1], evenly spread on both linear and logarithmic x."""
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


def _fold_style(position: int, n_folds: int) -> Spec:
    """Colour and legend entry of a fold: its own if there are enough colours, otherwise one for all."""
    if n_folds <= N_COLOURS:
        return {"colour": f"@c{position}", "showlegend": True}
    return {"colour": "@muted/0.5", "showlegend": position == 0, "legendgroup": "folds"}


def _two_classes(rows: pd.DataFrame) -> bool:
    return 0 < rows["target"].sum() < len(rows)


Curve = Callable[[pd.DataFrame], tuple[np.ndarray, np.ndarray]]


def _fold_curves(oof: pd.DataFrame, curve: Curve) -> Iterator[Spec]:
    """A thinned curve for every fold whose held-out rows have both classes, and a thick one for all rows."""
    n_folds = oof["fold"].nunique()
    for position, (fold, rows) in enumerate(oof.groupby("fold")):
        if _two_classes(rows):
            x, y = thin(*curve(rows), min(MAX_POINTS, max(40, 3000 // n_folds)))
            yield charts.line(x, y, f"fold {fold}", width=1.2, **_fold_style(position, n_folds))
    if _two_classes(oof):
        yield charts.line(*thin(*curve(oof)), "all folds", "@ink", width=3)


def roc(oof: pd.DataFrame) -> Spec:
    """ROC per fold and pooled, false-positive rate on a logarithmic axis that a button makes linear."""
    from sklearn.metrics import roc_curve

    floor = 0.5 / max(1, int((oof["target"] == 0).sum()))

    def curve(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        fpr, tpr, _ = roc_curve(rows["target"], rows["pred"])
        # A log axis has no zero; half a false positive is the smallest rate that the data can show.
        return np.maximum(fpr, floor), tpr

    diagonal = np.geomspace(floor, 1, 60)
    chance = charts.line(diagonal, diagonal, "chance", "@muted", width=1, dash="dot", hoverinfo="skip")
    dashes = {"color": "@needle", "width": 1, "dash": "dash"}
    buttons = [
        {"label": kind, "method": "relayout"}
        | {"args": [{"xaxis.type": kind, "xaxis.autorange": True, "xaxis.tickmode": ticks}]}
        for kind, ticks in (("log", "array"), ("linear", "auto"))
    ]
    return charts.figure(
        [*_fold_curves(oof, curve), chance],
        "false-positive rate",
        "recall (needles found)",
        xaxis={"type": "log", "tickformat": "~p", "tickmode": "array", "tickvals": LOG_TICKS},
        yaxis=PERCENT,
        shapes=[charts.upright(at, dashes) for at in (0.01, 0.001) if at >= floor],
        updatemenus=[{"buttons": buttons}],
    )


def precision_recall(oof: pd.DataFrame) -> Spec:
    from sklearn.metrics import precision_recall_curve

    def curve(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        precision, recall, _ = precision_recall_curve(rows["target"], rows["pred"])
        return recall[::-1], precision[::-1]

    share = float(oof["target"].mean())
    chance = charts.line([0, 1], [share, share], "chance", "@muted", width=1, dash="dot")
    axes = {"xaxis": PERCENT, "yaxis": PERCENT}
    traces = [*_fold_curves(oof, curve), chance]
    return charts.figure(traces, "recall (needles found)", "precision (flags that are needles)", **axes)


def fold_scores(metrics: Mapping[str, Any]) -> Spec:
    """AUC per fold with its interval, with and without TTA, against the pooled interval."""
    folds, intervals = metrics["folds"], metrics["intervals"]
    x, auc = [fold["fold"] for fold in folds], [fold["auc"] for fold in folds]
    error = _interval_bars(auc, [intervals.get(f"fold_{fold}_auc") for fold in x], "@c0/0.5")
    plain: Spec = {"symbol": "diamond-open", "marker": {"line": {"width": 2}}, "name": "without TTA"}
    pooled = intervals.get("oof_auc")
    band: Spec = {"fillcolor": "@muted/0.15", "line": {"width": 0}, "layer": "below"}
    return charts.figure(
        [
            charts.points(x, auc, "@c0", size=10, error_y=error, name="with TTA"),
            charts.points(x, [fold["auc_no_tta"] for fold in folds], "@c1", **plain),
        ],
        "fold",
        "ROC AUC",
        shapes=[charts.across(*pooled, **band)] if pooled else [],
        xaxis={"dtick": max(1, -(-len(x) // 12))},
    )


def _interval_bars(values: Sequence[Any], bounds: Sequence[Sequence[float] | None], colour: str) -> Spec:
    low, high = zip(*(pair or (None, None) for pair in bounds))
    return charts.error_bars(values, low, high, colour)


def score_distribution(oof: pd.DataFrame, submission: pd.DataFrame) -> Spec:
    """Share of cadences per score, for both classes and for the test set."""
    edges = np.linspace(0, 1, N_BINS + 1)
    parts: list[tuple[str, pd.Series, str, Spec]] = []
    for label, colour in ((0, "@haystack"), (1, "@needle")):
        fill = {"fill": "tozeroy", "fillcolor": f"{colour}/0.25"}
        parts.append((CLASS_NAMES[label], oof.loc[oof["target"] == label, "pred"], colour, fill))
    parts.append(("test set", submission["pred"], "@ink", {"dash": "dot"}))
    traces = []
    for name, pred, colour, style in parts:
        if len(pred):
            share = np.histogram(pred, edges)[0] / len(pred)
            name = f"{name} ({len(pred):,})"
            traces.append(
                charts.line((edges[:-1] + edges[1:]) / 2, share, name, colour, shape="hvh", **style)
            )
    axes = {"xaxis": {"range": [0, 1]}, "yaxis": {"tickformat": ".0%", "rangemode": "tozero"}}
    return charts.figure(traces, "score", "share of its class", **axes)


def reliability(oof: pd.DataFrame) -> Spec:
    """Share of needles against mean score, also before calibration, and the number of cadences below."""
    target = oof["target"].to_numpy(np.float64)
    bins = calibration.reliability(target, oof["pred"].to_numpy(np.float64))
    traces = [charts.line([0, 1], [0, 1], "perfect", "@muted", width=1, dash="dot", hoverinfo="skip")]
    if not np.array_equal(oof["pred"], oof["pred_model"]):
        x, y, _ = calibration.reliability(target, oof["pred_model"].to_numpy(np.float64))
        traces.append(charts.line(x, y, "as the models gave it", "@c1", width=1.5, dash="dash"))
    count = bins.n_rows.tolist()
    dots = {
        "mode": "lines+markers",
        "marker": {"size": charts.numbers(7 + 9 * np.sqrt(bins.n_rows / bins.n_rows.max()))},
        "customdata": count,
        "hovertemplate": "score %{x:.2f}, needles %{y:.0%}<br>%{customdata:,} cadences<extra></extra>",
    }
    traces.append(charts.line(bins.predicted, bins.observed, "this run", "@c0", **dots))
    below = {"yaxis": "y2", "width": 0.04, "name": "cadences"}
    traces.append(charts.bars(charts.numbers(bins.predicted), count, "@muted/0.5", **below))
    return charts.figure(
        traces,
        "mean score of the bin",
        "share of needles",
        xaxis={"range": [0, 1], "anchor": "y2"},
        yaxis={"range": [0, 1.03], "domain": [0.3, 1], "tickformat": ".0%"},
        yaxis2={"domain": [0, 0.2], "title": {"text": "cadences"}, "nticks": 3},
    )


def _snr_curve(rows: Sequence[Mapping[str, Any]], kind: str, name: str, colour: str, **more: Any) -> Spec:
    own = [row for row in rows if row["kind"] == kind and row["n"]]
    x, y = [row["snr_median"] for row in own], [row["share"] for row in own]
    hover = "S/N %{x:.0f}: %{y:.0%} of %{customdata} found<extra>%{fullData.name}</extra>"
    more |= {"customdata": [row["n"] for row in own], "hovertemplate": hover}
    return charts.line(x, y, escape(name), colour, mode="lines+markers", **more)  # plots take some HTML


def _snr_figure(traces: Sequence[Spec]) -> Spec:
    axes = {
        "xaxis": {"type": "log", "tickvals": SNR_TICKS},
        "yaxis": {"range": [0, 1.03], "tickformat": ".0%"},
    }
    return charts.figure(traces, "S/N of the needle in one panel", "recall at 1 % false positives", **axes)


def recall_by_snr(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """A line for each kind of needle, and a thick one with its interval for all of them."""
    traces: list[Spec] = []
    kinds = dict.fromkeys(row["kind"] for row in rows if row["kind"] != "all")
    for i, kind in enumerate(kinds):
        trace = _snr_curve(rows, kind, kind, f"@c{i % N_COLOURS}", width=1.5)
        shown = np.median(trace["customdata"] or [0]) >= MIN_SHOWN
        traces.append(trace | {"visible": True if shown else "legendonly"})
    own = [row for row in rows if row["kind"] == "all" and row["n"]]
    x, (low, high) = [row["snr_median"] for row in own], zip(*(row["interval"] for row in own))
    outline = [*x, *x[::-1]], [*high, *low[::-1]]
    fill: Spec = {"fill": "toself", "fillcolor": "@ink/0.1", "hoverinfo": "skip"}
    traces.append(charts.line(*outline, "95 % interval", "@ink/0", **fill))
    return _snr_figure([*traces, _snr_curve(rows, "all", "all", "@ink", width=3)])


def compared_snr(named: Mapping[str, Sequence[Mapping[str, Any]]]) -> Spec:
    """Recall against S/N over all kinds of needle, one line per run; no lines where the shards carry no S/N."""
    traces = [
        _snr_curve(rows, "all", name, f"@c{i % N_COLOURS}") for i, (name, rows) in enumerate(named.items())
    ]
    return _snr_figure([trace for trace in traces if trace["x"]])


def shares_by_kind(rows: Sequence[Mapping[str, Any]], x: str, colour: str) -> Spec:
    """A horizontal bar with its interval per kind, largest at the top."""
    known = sorted((row for row in rows if row["share"] is not None), key=lambda row: row["share"])
    share = [row["share"] for row in known]
    trace = charts.bars(
        charts.numbers(share),
        [escape(row["kind"]) for row in known],
        f"{colour}/0.7",
        orientation="h",
        error_x=_interval_bars(share, [row["interval"] for row in known], "@ink/0.6"),
        showlegend=False,
        customdata=[[row["n_hits"], row["n"], row["auc"]] for row in known],
        hovertemplate="%{y}: %{customdata[0]} of %{customdata[1]}, AUC %{customdata[2]:.3f}<extra></extra>",
    )
    return charts.figure([trace], x, "", xaxis={"tickformat": "~p", "rangemode": "tozero"})


def history(histories: Mapping[int, pd.DataFrame], quantity: str, best: Mapping[int, int]) -> Spec:
    """`quantity` ("auc" or "loss") per epoch, training dotted and held-out solid, the chosen epoch marked."""
    traces = []
    chosen = []
    for position, (fold, past) in enumerate(sorted(histories.items())):
        style: Spec = {"legendgroup": f"fold {fold}"} | _fold_style(position, len(histories))
        name = f"fold {fold}" if len(histories) <= N_COLOURS else "folds"
        epoch = past["epoch"] + 1  # people count from one
        traces.append(charts.line(epoch, past[f"val_{quantity}"], name, **style))
        style |= {"dash": "dot", "width": 1.2, "opacity": 0.8, "showlegend": False}
        traces.append(charts.line(epoch, past[quantity], f"{name} train", **style))
        marked = past["epoch"] == best.get(fold)
        chosen += [
            (int(at), y, f"fold {fold}") for at, y in zip(epoch[marked], past[f"val_{quantity}"][marked])
        ]
    x, y, text = zip(*chosen) if chosen else ((), (), ())
    star: Spec = {"symbol": "star", "size": 13, "marker": {"line": {"color": "@card", "width": 1}}}
    says: Spec = {"text": text, "hovertemplate": "%{text}: epoch %{x}, %{y:.4f}<extra></extra>"}
    traces.append(charts.points(x, charts.numbers(y), "@ink", **star, name="chosen epoch", **says))
    label = {"auc": "ROC AUC", "loss": "loss"}[quantity]
    return charts.figure(traces, "epoch", label, xaxis={"tickformat": "d"})


def learning_rate(histories: Mapping[int, pd.DataFrame]) -> Spec:
    """One line where all folds share a schedule, else one per fold."""
    rates = {f"fold {fold}": past[["epoch", "lr"]] for fold, past in sorted(histories.items())}
    first = next(iter(rates.values()))
    if all(len(rate) == len(first) and np.allclose(rate, first) for rate in rates.values()):
        rates = {"all folds": first}
    traces = [
        charts.line(rate["epoch"] + 1, rate["lr"], name, mode="lines+markers", **_fold_style(i, len(rates)))
        for i, (name, rate) in enumerate(rates.items())
    ]
    axes = {"xaxis": {"tickformat": "d"}, "yaxis": {"exponentformat": "e", "rangemode": "tozero"}}
    return charts.figure(traces, "epoch", "learning rate", **axes)


# A fold's timings in manifest.json, in chronological order.
PHASES = (
    ("device_s", "start device", "@c4"),
    ("open_s", "open data", "@c3"),
    ("build_s", "build model", "@c1"),
    ("train_s", "train", "@c0"),
    ("predict_valid_s", "predict held-out rows", "@c2"),
)
START = ("start", "@muted/0.5")
PREDICTION = ("predict test rows", "@c6")  # separate jobs, which any free slot can take
FAILED, INTERRUPTED = ("failed attempt", "@bad"), ("interrupted or discarded", "@ink/0.6")
LANE = 0.8  # height of a lane, as a fraction of the distance between two


def timeline(manifest: Mapping[str, Any]) -> Spec:
    """A lane per fold: failed attempts, phases of the last attempt, and spans of the test set."""
    bars: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    folds = sorted(manifest["folds"].items(), key=lambda item: int(item[0]))
    for fold, entry in folds:
        lane = f"fold {fold}"
        jobs = [(*one, entry.get("timings")) for one in _tracks(entry["attempts"])]
        jobs += [(*one, None) for one in _tracks(entry.get("predictions", []))]
        for attempt, track, timings in jobs:
            at, width = attempt["started_s"] - manifest["started_s"], LANE / track.of
            for style, seconds, what in _spent(attempt, timings):
                place = round(seconds, 2), lane, round(at, 2), width, track.number * width - LANE / 2
                bars.setdefault(style, []).append((*place, f"{lane}, {_place(attempt)}<br>{what}"))
                at += seconds
    traces = []
    for style in [START, *((name, colour) for _, name, colour in PHASES), PREDICTION, FAILED, INTERRUPTED]:
        if style in bars:
            x, y, base, widths, offset, text = map(list, zip(*bars[style]))
            lanes = {"orientation": "h", "base": base, "width": widths, "offset": offset}
            marker = {"color": style[1], "line": {"color": "@card", "width": 0.5}}
            says = {"customdata": text, "hovertemplate": "%{customdata}<extra></extra>"}
            traces.append(charts.bars(x, y, None, name=style[0], marker=marker, **lanes, **says))
    return charts.figure(
        traces,
        "seconds since the run began",
        "",
        barmode="overlay",
        legend={"y": 1.02, "yanchor": "bottom"},  # below, it would overlap the axis if there are few lanes
        xaxis={"rangemode": "tozero"},
        yaxis={"categoryorder": "array", "categoryarray": [f"fold {fold}" for fold, _ in folds[::-1]]},
        height=max(220, min(900, 130 + 34 * len(folds))),
    )


class Track(NamedTuple):
    """A strip of a lane, and how many there are: jobs that run at the same time must not hide each other."""

    number: int
    of: int


def _spent(
    attempt: Mapping[str, Any], timings: Mapping[str, float] | None
) -> list[tuple[tuple[str, str], float, str]]:
    """How an attempt spent its time: style, seconds, text. An attempt without timings predicted test rows."""
    total = attempt["ended_s"] - attempt["started_s"]
    if attempt.get("outcome") != "done":
        style = FAILED if attempt.get("outcome") == "failed" else INTERRUPTED
        why = attempt.get("cause") or attempt.get("message") or attempt.get("outcome", "")
        then = f", then {attempt['decision']}" if "decision" in attempt else ""
        return [(style, total, f"{why}{then}")]
    spent = [(PREDICTION, total)]
    if timings is not None:
        spent = [((name, colour), timings.get(key, 0.0)) for key, name, colour in PHASES]
        # Time outside all phases comes first: a process starts before it can measure anything.
        spent.insert(0, (START, total - sum(seconds for _, seconds in spent)))
    return [(style, seconds, f"{style[0]}: {seconds:.1f} s") for style, seconds in spent if seconds > 0]


def _tracks(attempts: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Track]]:
    """Every finished attempt, with a strip in which nothing else runs at that time; as few strips as possible."""
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
    first, end = attempt.get("rows", (0, 0))
    rows = f"test rows {first:,}–{end - 1:,}, " if end else ""
    device = attempt.get("device", "")
    return f"{attempt.get('node', 'no node')} {device} ({rows}attempt {attempt.get('attempt', 0)})"


def class_distribution(oof: pd.DataFrame) -> Spec:
    counts = oof["target"].value_counts().reindex([0, 1], fill_value=0).tolist()
    says = {"text": [f"{count:,} ({count / len(oof):.0%})" for count in counts], "textposition": "outside"}
    style = {"showlegend": False, "cliponaxis": False, "width": 0.55}
    return charts.figure(
        [charts.bars(CLASS_NAMES, counts, ["@haystack", "@needle"], **says, **style)], "", "training cadences"
    )


def fold_balance(oof: pd.DataFrame) -> Spec:
    counts = pd.crosstab(oof["fold"], oof["target"]).reindex(columns=[0, 1], fill_value=0)
    traces = [
        charts.bars(counts.index.astype(str), counts[label].tolist(), colour, name=CLASS_NAMES[label])
        for label, colour in ((0, "@haystack"), (1, "@needle"))
    ]
    return charts.figure(traces, "fold", "held-out cadences", barmode="stack", xaxis={"type": "category"})


def compared_intervals(names: Sequence[str], metrics: Sequence[Mapping[str, Any]]) -> Spec:
    """Pooled AUC with its interval, one row per run."""
    auc = [own["oof_auc"] for own in metrics]
    error = _interval_bars(auc, [own["intervals"].get("oof_auc") for own in metrics], "@ink/0.5")
    colours = [f"@c{i % N_COLOURS}" for i in range(len(names))]
    trace = charts.points(auc, list(map(escape, names)), colours, size=11, error_x=error, showlegend=False)
    upside_down = {"yaxis": {"autorange": "reversed"}, "height": 160 + 40 * len(names)}
    return charts.figure([trace], "pooled out-of-fold AUC", "", **upside_down)


def compared_roc(named: Mapping[str, pd.DataFrame]) -> Spec:
    """Pooled ROC of several runs."""
    figures = [roc(oof) for oof in named.values()]
    curves = []
    for i, (name, figure) in enumerate(zip(named, figures)):
        pooled = next(trace for trace in figure["data"] if trace["name"] == "all folds")
        curves.append({**pooled, "name": escape(name), "line": {"color": f"@c{i % N_COLOURS}", "width": 2}})
    chance = [trace for trace in figures[0]["data"] if trace["name"] == "chance"]
    return {"data": [*curves, *chance], "layout": figures[0]["layout"]}
