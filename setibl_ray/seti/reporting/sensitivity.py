"""The report's figures of a sensitivity study (`evaluation.sensitivity.examine`)."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from setibl_ray.core.reporting import charts
from setibl_ray.core.reporting.charts import Spec
from setibl_ray.seti.reporting.figures import PERCENT, SNR_TICKS

COLOURS = ("@needle", "@muted")  # this run, the baseline
DASHES = ("solid", "dash", "dot")  # one for each rate of false positives, from the highest


def drawings(study: Mapping[str, Any]) -> dict[str, Spec]:
    """Recall against S/N at every rate of false positives; against drift and by kind at the highest."""
    return {
        "sensitivity-snr": charts.figure(
            _curves(study, "by_snr", len(DASHES)),
            "S/N of the needle in one panel",
            "recall",
            xaxis={"type": "log", "tickvals": SNR_TICKS},
            yaxis=PERCENT,
        ),
        "sensitivity-drift": charts.figure(
            _curves(study, "by_drift", 1), "drift either way, Hz/s", "recall", yaxis=PERCENT
        ),
        "sensitivity-kinds": charts.figure(_bars(study), "", "recall", barmode="group", yaxis=PERCENT),
    }


def _curves(study: Mapping[str, Any], by: str, n_levels: int) -> list[Spec]:
    curves = []
    for method, colour in zip(study["methods"], COLOURS):
        for level, dash in zip(method["levels"][:n_levels], DASHES):
            rows = [row for row in level[by] if row["n"]]
            middle = [
                (row["low"] * row["high"]) ** 0.5 if by == "by_snr" else (row["low"] + row["high"]) / 2
                for row in rows
            ]
            name = f"{method['name']}, {100 * level['fpr']:g} %"
            more: Spec = {
                "mode": "lines+markers",
                "customdata": [row["n"] for row in rows],
                "hovertemplate": "%{x:.2g}: %{y:.0%} of %{customdata} found<extra>%{fullData.name}</extra>",
            }
            curves.append(
                charts.line(middle, [row["share"] for row in rows], name, colour, dash=dash, **more)
            )
    return curves


def _bars(study: Mapping[str, Any]) -> list[Spec]:
    bars = []
    for method, colour in zip(study["methods"], COLOURS):
        rows = method["levels"][0]["by_kind"]
        shares, (low, high) = [row["share"] for row in rows], zip(*(row["interval"] for row in rows))
        error = charts.error_bars(shares, low, high, "@ink/0.6")
        kinds = [escape(row["kind"]) for row in rows]
        bars.append(charts.bars(kinds, charts.numbers(shares), colour, name=method["name"], error_y=error))
    return bars
