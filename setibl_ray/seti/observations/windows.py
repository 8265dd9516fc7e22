"""Windows about lines: as wide as a network's panel, turned upright by the line's own drift.

Row t of a panel is shifted by how far the line has drifted by t, so that whatever has the line's drift stands upright
in the middle of the window, however fast it is, and everything else is slanted. So a window can be narrower than a
drift, and a network has to learn one picture of a needle instead of one for each drift.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from setibl_ray.seti.formats.records import CLIP
from setibl_ray.seti.kernels import jit

ABSENT = round(-CLIP[0] * 255 / (CLIP[1] - CLIP[0]))  # the byte of 0 sigmas, beyond the ends of a band


def definition(width: int) -> dict[str, Any]:
    """How windows are cut, as dataset.json records it and a search compares it."""
    return {"version": 1, "width": width, "upright": True}


def cut(
    plane: np.ndarray, time_s: np.ndarray, centres: np.ndarray, rates: np.ndarray, width: int
) -> np.ndarray:
    """Windows of a plane about lines.

    Args:
      plane: (6, time, frequency) uint8.
      time_s: (6, time) from the middle of the observation.
      centres: (n,) channel of each line at time 0.
      rates: (n,) channels per second.

    Returns:
      (n, 6, time, width) uint8; column width // 2 is the channel nearest to the line.
    """
    out = np.full((len(centres), *plane.shape[:2], width), ABSENT, np.uint8)
    at = np.rint(np.asarray(centres)[:, None, None] + np.asarray(rates)[:, None, None] * time_s).astype(
        np.int64
    )
    _cut(plane, at - width // 2, out)
    return out


@jit
def _cut(plane, starts, out):
    n_panels, n_times, n = plane.shape
    width = out.shape[-1]
    for i in range(out.shape[0]):
        for p in range(n_panels):
            for t in range(n_times):
                low = starts[i, p, t]
                first, last = max(0, -low), min(width, n - low)
                if first < last:
                    out[i, p, t, first:last] = plane[p, t, low + first : low + last]
