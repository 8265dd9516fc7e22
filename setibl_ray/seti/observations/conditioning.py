"""Power to sigmas: DC spike, bandpass and gains taken out, noise brought to a standard deviation of 1.

One definition for injecting, searching and packing. Every estimate is a median over a block of channels, which a line
of a few channels does not move, so that it makes no difference whether a signal is added before or after conditioning.
Nor does a bright line hide a weak one beside it: values are clipped at `records.CLIP` sigmas when they become bytes,
and nothing is divided by a deviation that the line itself has raised.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from setibl_ray.seti.formats.records import CLIP
from setibl_ray.seti.kernels import jit

VERSION = 1
# Channels of one estimate of bandpass and noise; Green Bank's coarse channels have 1,024 of them.
BLOCK = 1024
DC_REACH = 1  # channels to either side of the spike that are interpolated too
_SAMPLED = 4  # every fourth value is enough for a median of thousands
_MAD = 1.4826  # of a Gaussian, standard deviations over median absolute deviations


def definition() -> dict[str, Any]:
    """The definition that dataset.json keeps and a search compares."""
    return {"version": VERSION, "block": BLOCK, "dc_reach": DC_REACH, "clip_sigmas": list(CLIP)}


class Conditioned(NamedTuple):
    """Attributes:
    z: (panels, time, frequency) float32, sigmas.
    flags: for each panel what is wrong with it, e.g. "0.10% not finite"; mostly empty.
    """

    z: np.ndarray
    flags: tuple[str, ...]


def condition(power: np.ndarray, dc: int | None = None, full_scale: float | None = None) -> Conditioned:
    """Condition panels in place.

    Args:
      power: (panels, time, frequency) float32 in any unit; its memory becomes the result's.
      dc: channel of the DC spike.
      full_scale: the highest value that a file can hold, where it may be saturated.

    Returns:
      Values that are not finite, and blocks without any noise, are 0 sigmas.
    """
    flags = []
    for panel in power:
        bad = int(panel.size - np.count_nonzero(np.isfinite(panel)))
        said = [f"{bad / panel.size:.2%} not finite"] if bad else []
        if full_scale is not None:
            saturated = np.count_nonzero(panel >= full_scale) / panel.size
            said += [f"{saturated:.2%} saturated at {full_scale:g}"] if saturated > 1e-3 else []
        if bad:
            panel[~np.isfinite(panel)] = np.nan
        dead = _condition_panel(panel, dc, bool(bad))
        said += [f"{dead:.1%} of its channels without noise"] if dead else []
        flags.append(", ".join(said))
    return Conditioned(power, tuple(flags))


def _condition_panel(panel: np.ndarray, dc: int | None, has_nan: bool) -> float:
    """Condition a panel (time, frequency) in place; returns the share of blocks without noise."""
    n_freq = panel.shape[1]
    if dc is not None:
        low, high = max(dc - DC_REACH - 1, 0), min(dc + DC_REACH + 1, n_freq - 1)
        part = np.linspace(0, 1, high - low + 1, dtype=np.float32)
        panel[:, low : high + 1] = panel[:, low, None] * (1 - part) + panel[:, high, None] * part
    edges = np.arange(max(1, n_freq // BLOCK)) * BLOCK  # the last block takes what is left over
    blocks = list(zip(edges.tolist(), [*edges[1:].tolist(), n_freq]))
    centres = np.array([(start + stop - 1) / 2 for start, stop in blocks], np.float32)
    level, alive = np.empty(len(blocks), np.float32), np.empty(len(blocks), bool)
    for i, block in enumerate(blocks):
        sample = _sample(panel, *block, has_nan)
        level[i] = _median(sample)
        alive[i] = 2 * np.count_nonzero(sample == level[i]) < len(sample)
    if not alive.any():
        panel[:] = 0
        return 1.0
    # A block without noise borrows from the nearest with noise, so that it does not affect its neighbours.
    living = np.flatnonzero(alive)
    lender = living[np.abs(np.subtract.outer(np.arange(len(blocks)), living)).argmin(axis=1)]
    _combine(panel, centres, level[lender], False)
    sigma = np.array(
        [_MAD * _median(np.abs(_sample(panel, *block, has_nan))) for block in blocks], np.float32
    )
    _combine(panel, centres, np.maximum(sigma, 1e-30)[lender], True)
    if has_nan:
        np.nan_to_num(panel, copy=False, nan=0.0)
    panel -= np.median(panel[:, :: max(1, n_freq // 16384)], axis=1)[:, None]
    for start, stop in (block for block, lives in zip(blocks, alive) if not lives):
        panel[:, start:stop] = 0
    return float(1 - alive.mean())


def _sample(panel: np.ndarray, start: int, stop: int, has_nan: bool) -> np.ndarray:
    """Every fourth value of a block, from different channels in successive rows."""
    rows = [row[start + number % _SAMPLED : stop : _SAMPLED] for number, row in enumerate(panel)]
    sample = np.concatenate(rows)
    return sample[np.isfinite(sample)] if has_nan else sample


def _median(sample: np.ndarray) -> float:
    return float(np.median(sample)) if sample.size else 0.0


@jit
def _combine(panel, centres, values, divide):
    """Subtract, or divide by, values interpolated between the centres of blocks and extrapolated at the ends."""
    n_times, n_freq = panel.shape
    last = centres.size - 1
    at = np.empty(n_freq, np.float32)
    left = 0
    for f in range(n_freq):
        if last == 0:
            at[f] = values[0]
            continue
        while left < last - 1 and f >= centres[left + 1]:
            left += 1
        part = (f - centres[left]) / (centres[left + 1] - centres[left])
        at[f] = values[left] + part * (values[left + 1] - values[left])
        if divide:
            at[f] = 1 / max(at[f], np.float32(0.5) * min(values[left], values[left + 1]))
    if divide and last == 0:
        at[:] = 1 / values[0]
    for t in range(n_times):
        for f in range(n_freq):
            panel[t, f] = panel[t, f] * at[f] if divide else panel[t, f] - at[f]


def binned(z: np.ndarray, width: int) -> np.ndarray:
    """Sums of `width` neighbouring channels of (…, frequency), rescaled to a deviation of 1; a remainder is dropped."""
    if width == 1:
        return z
    n = z.shape[-1] // width
    sums = z[..., : n * width].reshape(*z.shape[:-1], n, width).sum(axis=-1, dtype=np.float32)
    sums *= np.float32(1 / np.sqrt(width))
    return sums


@jit
def _bytes(z: np.ndarray, low: float, high: float, out: np.ndarray) -> None:
    step = np.float32(255 / (high - low))
    offset = np.float32(0.5 - low * 255 / (high - low))
    for i in range(z.size):
        value = z[i] * step + offset
        out[i] = np.uint8(min(max(value, np.float32(0)), np.float32(255)))


def to_bytes(z: np.ndarray) -> np.ndarray:
    """Sigmas as the uint8 of a record: `records.CLIP` over 0 … 255, rounded to the nearest."""
    z = np.ascontiguousarray(z)
    out = np.empty(z.shape, np.uint8)
    _bytes(z.reshape(-1), *CLIP, out.reshape(-1))
    return out
