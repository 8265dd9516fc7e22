"""training.png of a fold: AUC and loss over epochs on one time axis, with the chosen epoch marked."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd

AUC_COLOURS = {"auc": "#eb8a2f", "val_auc": "#2a6fbb"}
LOSS_COLOURS = {"loss": "#33ad96", "val_loss": "#7a45e0"}
LABELS = {"auc": "train AUC", "val_auc": "valid AUC", "loss": "train loss", "val_loss": "valid loss"}


def draw(history: pd.DataFrame, title: str, chosen: int) -> bytes:
    """PNG of a fold's history: columns epoch, auc, val_auc, loss, val_loss; a diverged epoch may be nan.

    Args:
      history: one row per epoch.
      title: above the plot.
      chosen: row of the epoch whose weights are kept.
    """
    # The object interface, not pyplot: no global state, no display, safe in a driver's thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(12, 4.2))
    FigureCanvasAgg(figure)
    # Fixed room for axis labels and legend: a layout engine would draw everything twice to find it.
    left = figure.add_axes((0.05, 0.2, 0.89, 0.73))
    right = left.twinx()
    epoch = history["epoch"].to_numpy() + 1  # people count from one
    lines = []
    for axes, colours, style in ((left, AUC_COLOURS, "-"), (right, LOSS_COLOURS, "--")):
        for name, colour in colours.items():
            lines += axes.plot(
                epoch, history[name], style, marker="o", ms=4, color=colour, label=LABELS[name]
            )
    if np.isfinite(history["val_auc"]).any():
        value = history["val_auc"].iloc[chosen]
        left.axvline(epoch[chosen], color=AUC_COLOURS["val_auc"], lw=8, alpha=0.12)
        left.plot(epoch[chosen], value, "o", ms=12, color=AUC_COLOURS["val_auc"])
        _name(left, f"chosen: {value:.3f}", epoch, chosen, value, 10)
    if np.isfinite(history["val_loss"]).any():
        lowest = int(np.nanargmin(history["val_loss"]))
        value = history["val_loss"].iloc[lowest]
        right.plot(epoch[lowest], value, "o", ms=12, color=LOSS_COLOURS["val_loss"])
        _name(right, "lowest loss", epoch, lowest, value, -18)
    left.set(xlabel="epoch", ylabel="AUC", title=title)
    right.set(ylabel="loss")
    left.margins(y=0.15)  # room for the two labels
    right.margins(y=0.15)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.grid(alpha=0.25)
    left.spines["top"].set_visible(False)
    right.spines["top"].set_visible(False)
    figure.legend(handles=lines, loc="lower center", ncols=4, frameon=False)
    buffer = io.BytesIO()
    # No creation date or software in the file: the same history gives the same bytes.
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _name(axes: Any, text: str, epoch: np.ndarray, at: int, value: float, above: int) -> None:
    """Label a marked epoch, on the side with more room; above a best value there is no curve."""
    side, shift = ("right", -10) if at >= len(epoch) / 2 else ("left", 10)
    axes.annotate(text, (epoch[at], value), (shift, above), textcoords="offset points", ha=side)
