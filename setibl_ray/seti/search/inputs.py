"""From a window's bytes to the kind of input that a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from setibl_ray.seti.feeding import panels as feeding
from setibl_ray.seti.kernels import jit


def prepared(
    windows: np.ndarray, layout_panels: Sequence[int], size: tuple[int, int], standardize: bool
) -> np.ndarray:
    """What `feeding.panels.prepare` makes of the same records, uint8 (n, *size, panels).

    If panels are standardised and each row only has to be repeated, as when windows of 16 spectra are searched, one
    pass over the bytes is enough: each of a panel's 256 byte values has one standardised byte, from a mean and a
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
