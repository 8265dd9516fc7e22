"""Windows about lines, and the way from a window's bytes to what a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from setibl_ray.seti.feeding import panels as feeding
from setibl_ray.seti.observations.kernels import jit


def cut(plane: np.ndarray, middles: np.ndarray, width: int) -> np.ndarray:
    """(n, 6, time, width) uint8 windows of a plane (6, time, frequency), each about a channel; the plane's ends repeat.

    A window keeps the whole of its width: near an end of the band it lies less central.
    """
    n = plane.shape[-1]
    starts = np.clip(np.asarray(middles) - width // 2, 0, max(0, n - width))
    channels = np.minimum(starts[:, None] + np.arange(width), n - 1)
    out = np.empty((len(starts), *plane.shape[:2], width), np.uint8)
    for window, own in zip(out, channels):
        np.take(plane, own, axis=2, out=window) if own[-1] - own[0] < width - 1 else np.copyto(
            window, plane[..., own[0] : own[0] + width]
        )
    return out


def prepared(
    windows: np.ndarray, layout_panels: Sequence[int], size: tuple[int, int], standardize: bool
) -> np.ndarray:
    """What `feeding.panels.prepare` makes of the same records, uint8 (n, *size, panels).

    Where each row only has to be repeated and panels are standardised, which is how windows of 16 spectra are searched,
    one pass over the bytes does it: of a panel's 256 byte values each has one standardised byte, from a mean and a
    deviation that are exact sums of integers.
    """
    n, _, height, width = windows.shape
    if standardize and size[1] == width and size[0] % height == 0:
        out = np.empty((n, *size, len(layout_panels)), np.uint8)
        low, high = feeding.Z_RANGE
        _standardised(windows, np.array(layout_panels), size[0] // height, low, 255 / (high - low), out)
        return out
    chosen = np.ascontiguousarray(windows[:, list(layout_panels)].transpose(0, 2, 3, 1))
    return feeding.prepare(chosen, size, standardize)


@jit
def _standardised(windows, chosen, repeats, low, gain, out):
    n, _, height, width = windows.shape
    counts = np.empty(256, np.int64)
    table = np.empty(256, np.uint8)
    for i in range(n):
        for k in range(chosen.size):
            panel = windows[i, chosen[k]]
            counts[:] = 0
            for t in range(height):
                for f in range(width):
                    counts[panel[t, f]] += 1
            total, squares = 0, 0
            for value in range(256):
                total += value * counts[value]
                squares += value * value * counts[value]
            size = height * width
            mean = total / size
            variance = squares / size - mean * mean
            factor = 1 / np.sqrt(variance) if size * squares > total * total else 0.0
            for value in range(256):
                scaled = np.rint(((value - mean) * factor - low) * gain)
                table[value] = np.uint8(min(max(scaled, 0.0), 255.0))
            for t in range(height):
                for r in range(repeats):
                    for f in range(width):
                        out[i, t * repeats + r, f, k] = table[panel[t, f]]
