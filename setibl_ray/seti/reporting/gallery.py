"""Cadences as pictures: panels one below the other, labelled ON or OFF, with seconds and hertz if known."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from setibl_ray.core.reporting.page import image_url
from setibl_ray.seti.cadence import ON
from setibl_ray.seti.evaluation.pixels import positions

MAX_ROWS = 56  # of one panel in the picture; time is averaged, as drift is slow
GAP = 3  # rows between panels
QUALITY = 72


@lru_cache(maxsize=1)
def _colours() -> np.ndarray:
    """(256, 3) uint8: viridis, perceptually uniform and readable by the colour-blind."""
    from matplotlib import colormaps

    return (colormaps["viridis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def waterfall(panels: np.ndarray) -> bytes:
    """WebP of a cadence.

    Args:
      panels: (H, W, P) of any number type, P panels in the order of the cadence; time runs down.

    Returns:
      A picture P * min(H, 56) rows high (plus gaps) and W columns wide, from its 1st to its 99.8th
      percentile.
    """
    from PIL import Image

    height, width, count = panels.shape
    rows = min(height, MAX_ROWS)
    edges = np.arange(rows + 1) * height // rows
    small = np.add.reduceat(panels.astype(np.float32), edges[:-1], axis=0) / np.diff(edges)[:, None, None]
    # One scale for all six, so that ON and OFF can be compared.
    low, high = np.percentile(small, [1, 99.8])
    levels = np.clip((small - low) / max(high - low, 1e-6), 0, 1)
    coloured = _colours()[(levels * 255).astype(np.uint8)]
    picture = np.full((count * (rows + GAP) - GAP, width, 3), 128, np.uint8)
    for position in range(count):
        top = position * (rows + GAP)
        picture[top : top + rows] = coloured[:, :, position]
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "webp", quality=QUALITY, method=4)
    return buffer.getvalue()


class Lane(NamedTuple):
    """A panel of a picture: ON or OFF, and when it begins, if known."""

    on: bool
    since_s: float | None


class Card(NamedTuple):
    """A cadence for a page: its picture as a URL, its panels from the top, and the texts below it."""

    picture: str
    lanes: list[Lane]
    axis: Sequence[str]


def card(panels: np.ndarray, axes: Mapping[str, Any]) -> Card:
    """A labelled cadence.

    Args:
      panels: (H, W, P).
      axes: `df_hz`, `dt_s` of a raw pixel and `panel_shape` of a raw panel, where known; `f_start_mhz`
        likewise.
    """
    height, width = axes.get("panel_shape") or panels.shape[:2]
    dt, df = axes.get("dt_s"), axes.get("df_hz")
    lanes = [Lane(at in ON, at * height * dt if dt else None) for at in positions(panels.shape[2])]
    texts = _frequencies(width, df, axes.get("f_start_mhz"))
    return Card(image_url(waterfall(panels), "webp"), lanes, texts)


def _frequencies(width: int, df_hz: float | None, f_start_mhz: float | None) -> Sequence[str]:
    if not df_hz:
        return "channel 0", f"{width - 1}"
    if f_start_mhz is not None:
        return f"{f_start_mhz:.5f}", f"{f_start_mhz + width * df_hz / 1e6:.5f} MHz"
    return "0", "frequency", f"{width * df_hz:.0f} Hz"
