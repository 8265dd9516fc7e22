"""Power to sigmas: DC spike, bandpass and gains taken out, noise brought to a standard deviation of 1.

One definition for injecting, searching and packing. Every estimate is a median over a block of channels, which a line
of a few channels does not move, so that a signal may as well be added after conditioning as before. A bright line
does not hide a weak one beside it either: values are clipped at `records.CLIP` sigmas when they become bytes, and
nothing is divided by a deviation that the line itself has raised.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from setibl_ray.seti.formats.records import CLIP
from setibl_ray.seti.observations.kernels import jit

VERSION = 1
BLOCK = (
    1024  # channels of one estimate of bandpass and noise; Green Bank's coarse channels have 1,024 of them
)
DC_REACH = 1  # channels to either side of the spike that are interpolated too
_SAMPLED = 4  # every fourth value is enough for a median of thousands
_MAD = 1.4826  # of a Gaussian, standard deviations over median absolute deviations


def definition() -> dict[str, Any]:
    """What dataset.json keeps, and a search compares."""
    return {"version": VERSION, "block": BLOCK, "dc_reach": DC_REACH, "clip_sigmas": list(CLIP)}


class Conditioned(NamedTuple):
    """Attributes:
    z: (panels, time, frequency) float32, sigmas.
    flags: for each panel what is wrong with it, e.g. "nan 0.1 %"; mostly empty.
    """

    z: np.ndarray
    flags: tuple[str, ...]


def condition(power: np.ndarray, dc: int | None = None, n_bits: int = 32) -> Conditioned:
    """Condition panels in place.

    Args:
      power: (panels, time, frequency) float32 in any unit; its memory becomes the result's.
      dc: channel of the DC spike.
      n_bits: of the file; 8-bit values may be saturated.

    Returns:
      Values that are not finite, and blocks without any noise, are 0 sigmas.
    """
    flags = []
    for panel in power:
        bad = int(panel.size - np.count_nonzero(np.isfinite(panel)))
        said = [f"{bad / panel.size:.2%} not finite"] if bad else []
        if n_bits == 8:
            saturated = np.count_nonzero(panel >= 255) / panel.size
            said += [f"{saturated:.2%} saturated at 255"] if saturated > 1e-3 else []
        if bad:
            panel[~np.isfinite(panel)] = np.nan
        dead = _condition_panel(panel, dc, bool(bad))
        said += [f"{dead:.1%} of its channels without noise"] if dead else []
        flags.append(", ".join(said))
    return Conditioned(power, tuple(flags))


def _condition_panel(panel: np.ndarray, dc: int | None, has_nan: bool) -> float:
    """Condition (time, frequency) in place; the share of blocks that have no noise."""
    n_times, n_freq = panel.shape
    if dc is not None:
        low, high = max(dc - DC_REACH - 1, 0), min(dc + DC_REACH + 1, n_freq - 1)
        part = np.linspace(0, 1, high - low + 1, dtype=np.float32)
        panel[:, low : high + 1] = panel[:, low, None] * (1 - part) + panel[:, high, None] * part
    median = np.nanmedian if has_nan else np.median
    edges = np.arange(max(1, n_freq // BLOCK)) * BLOCK  # the last block takes what is left over
    stops = [*edges[1:], n_freq]
    level = np.empty(len(edges), np.float32)
    sigma = np.empty(len(edges), np.float32)
    with np.errstate(all="ignore"):
        for i, (start, stop) in enumerate(zip(edges, stops)):
            # Rows take their samples from different channels: all channels count.
            sample = np.concatenate(
                [panel[row, start + row % _SAMPLED : stop : _SAMPLED] for row in range(n_times)]
            )
            finite = sample[np.isfinite(sample)] if has_nan else sample
            level[i] = median(finite) if finite.size else 0
            sigma[i] = _MAD * median(np.abs(finite - level[i])) if finite.size else 0
    alive = sigma > 1e-6 * np.maximum(np.abs(level), 1e-30)
    centres = ((edges + np.array(stops)) / 2).astype(np.float32)
    inverse = np.where(alive, 1 / np.where(alive, sigma, 1), 0).astype(np.float32)
    _scale(panel, level, inverse, centres)
    if has_nan:
        np.nan_to_num(panel, copy=False, nan=0.0)
    if alive.any():
        rows = np.median(panel[:, :: max(1, n_freq // 16384)], axis=1)
        panel -= rows[:, None]
    if not alive.all():
        for start, stop in np.column_stack([edges, stops])[~alive]:
            panel[:, start:stop] = 0
    return float(1 - alive.mean())


@jit
def _scale(panel: np.ndarray, level: np.ndarray, inverse: np.ndarray, centres: np.ndarray) -> None:
    """(x - level) / sigma, both interpolated between the centres of blocks; in place."""
    n_times, n_freq = panel.shape
    subtract = np.empty(n_freq, np.float32)
    factor = np.empty(n_freq, np.float32)
    left = 0
    last = centres.size - 1
    for f in range(n_freq):
        while left < last - 1 and f >= centres[left + 1]:
            left += 1
        if last == 0 or f <= centres[0] or inverse[left] == 0:
            at = 0 if last == 0 or f <= centres[0] else left
            subtract[f], factor[f] = level[at], inverse[at]
            if last > 0 and f > centres[0] and f - centres[left] > centres[left + 1] - f:
                subtract[f], factor[f] = level[left + 1], inverse[left + 1]
        elif f >= centres[last]:
            subtract[f], factor[f] = level[last], inverse[last]
        elif inverse[left + 1] == 0:
            subtract[f], factor[f] = level[left], inverse[left]
        else:
            part = (f - centres[left]) / (centres[left + 1] - centres[left])
            subtract[f] = level[left] + part * (level[left + 1] - level[left])
            factor[f] = 1 / (1 / inverse[left] + part * (1 / inverse[left + 1] - 1 / inverse[left]))
    for t in range(n_times):
        for f in range(n_freq):
            panel[t, f] = (panel[t, f] - subtract[f]) * factor[f]


def binned(z: np.ndarray, width: int) -> np.ndarray:
    """Sums of `width` neighbouring channels of (…, frequency), again with a deviation of 1; a rest is left out."""
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
