"""Straight lines through a whole cadence: a search for all of them, and a fit of one.

A line is a frequency at the middle of the observation and a drift. Its S/N in a panel is the sum along it divided by
the square root of the number of rows, after the panel has been smoothed by (1/2, 1, 1/2) and rescaled to unit noise:
this loses a fifth of a signal one channel wide and gains 40 % for one three channels wide. The search looks for lines
with every ON panel above one threshold and no OFF panel above another, and keeps for each channel the one with the
highest sum over ON panels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from setibl_ray.seti.cadence import N_PANELS, OFF, ON
from setibl_ray.seti.kernels import jit

TIME_BINS = 16  # rows of a panel in the search; finer products are averaged
CLIPPED = 9.0  # sigmas that one value may add to a line: a burst in one row is not a line
# The same for OFF panels in a fit, after smoothing: what a carrier adds that a fast line crosses within two rows.
CROSSING = 4.0
_SMOOTH = np.float32(1 / np.sqrt(1.5))  # of (1/2, 1, 1/2), for unit noise
_STRETCH = 2048  # reference channels searched at a time: their partial sums stay in the processor's cache


class Lines(NamedTuple):
    """The best line through each channel of a band.

    Attributes:
      snr: (n,) float32 of the ON panels together; 0 where no line passes.
      drift: (n,) int32, channels from the beginning to the end of the observation.
    """

    snr: np.ndarray
    drift: np.ndarray


class Fit(NamedTuple):
    """A fitted line.

    Attributes:
      centre: channel at the middle of the observation (time 0).
      rate: channels per second.
      snr: (6,) of each panel along the line; of OFF panels the largest beside it too, values clipped at CROSSING.
      width: equivalent width of the profile along the line, channels.
    """

    centre: float
    rate: float
    snr: np.ndarray
    width: float


def span_s(time_s: np.ndarray) -> float:
    """Seconds between the middles of the first and the last spectrum."""
    return float(time_s.max() - time_s.min())


def time_binned(z: np.ndarray, time_s: np.ndarray, n_bins: int = TIME_BINS) -> tuple[np.ndarray, np.ndarray]:
    """At most `n_bins` rows a panel, of unit noise, and their times; values clipped at CLIPPED first.

    (panels, time, frequency) float32 and (panels, time) to the same with fewer rows.
    """
    clipped = np.minimum(z, np.float32(CLIPPED))
    n_times = z.shape[1]
    if n_times <= n_bins:
        return clipped, time_s
    edges = np.arange(n_bins + 1) * n_times // n_bins
    counts = np.diff(edges)
    sums = np.add.reduceat(clipped, edges[:-1], axis=1)
    sums /= np.sqrt(counts, dtype=np.float32)[:, None]
    return sums, np.add.reduceat(time_s, edges[:-1], axis=1) / counts


def search(z: np.ndarray, time_s: np.ndarray, max_drift: int, *, on_above: float, off_below: float) -> Lines:
    """Search every line of a band, as `search_both` does."""
    return search_both(z, time_s, max_drift, on_above=on_above, off_below=off_below, exchanged=False)[0]


def search_both(
    z: np.ndarray,
    time_s: np.ndarray,
    max_drift: int,
    *,
    on_above: float,
    off_below: float,
    exchanged: bool = True,
) -> tuple[Lines, Lines]:
    """Search every line of a band, and every line with ON and OFF panels exchanged, which takes a third more time.

    Args:
      z: (6, time, n) float32 of unit noise, ON first.
      time_s: (6, time) from the middle of the observation.
      max_drift: channels from the beginning to the end of the observation, either way.
      on_above, off_below: S/N in each ON panel at least, in each OFF panel at most.
      exchanged: whether the second result is wanted; otherwise it is empty.

    Returns:
      Both, with a line for each of the n channels. Beyond the band's ends there is neither signal nor noise.
    """
    rows, times = time_binned(z, time_s)
    n_bins, n = rows.shape[1:]
    span = span_s(time_s)
    drifts = np.arange(-max_drift, max_drift + 1)
    middle = times.mean(axis=1)
    within = (times[:, -1] - times[:, 0]).mean() / span
    slopes = np.rint(drifts * within).astype(np.int64)
    n_slopes = int(np.abs(slopes).max())
    along = (np.arange(n_bins) - (n_bins - 1) / 2) / max(n_bins - 1, 1)
    steps = np.rint(np.arange(-n_slopes, n_slopes + 1)[:, None] * along).astype(np.int64)
    offsets = np.rint(drifts[:, None] * middle / span).astype(np.int64)
    reach = int(np.abs(offsets).max())
    margin = reach + int(np.abs(steps).max()) + 1
    snr, drift = np.zeros((2, n), np.float32), np.zeros((2, n), np.int32)
    scale = np.sqrt(n_bins)
    _search(
        rows, steps, slopes + n_slopes, offsets, drifts.astype(np.int32), margin, reach,
        np.float32(on_above * scale), np.float32(off_below * scale), 2 if exchanged else 1, snr, drift,
    )  # fmt: skip
    snr /= np.float32(np.sqrt(len(ON)) * scale)
    return Lines(snr[0], drift[0]), Lines(snr[1], drift[1])


@jit
def _search(rows, steps, slope_of, offsets, drifts, margin, reach, on_above, off_below, n_roles, snr, drift):
    n_panels, n_bins, n = rows.shape
    n_slopes = steps.shape[0]
    wide = _STRETCH + 2 * reach
    smooth = np.zeros((n_bins, _STRETCH + 2 * margin), np.float32)
    sums = np.zeros((n_panels, n_slopes, wide), np.float32)
    best = np.empty(_STRETCH, np.float32)
    which = np.empty(_STRETCH, np.int32)
    for first in range(0, n, _STRETCH):
        for panel in range(n_panels):
            # Column j of `smooth` is channel first - margin + j.
            for k in range(n_bins):
                line, out = rows[panel, k], smooth[k]
                low, high = max(first - margin, 1), min(first + _STRETCH + margin, n - 1)
                out[:] = 0
                shift = margin - first
                for f in range(low, high):
                    out[f + shift] = (line[f] + np.float32(0.5) * (line[f - 1] + line[f + 1])) * _SMOOTH
            for s in range(n_slopes):
                out = sums[panel, s]
                out[:] = 0
                for k in range(n_bins):
                    start = margin - reach + steps[s, k]
                    part = smooth[k, start : start + wide]
                    for j in range(wide):
                        out[j] += part[j]
        stop = min(_STRETCH, n - first)
        for role in range(n_roles):
            best[:] = 0
            which[:] = 0
            for i in range(drifts.size):
                s, d = slope_of[i], drifts[i]
                on, off = role, 1 - role  # the first ON and the first OFF panel
                a0 = sums[on, s, reach + offsets[i, on] : reach + offsets[i, on] + _STRETCH]
                b0 = sums[off, s, reach + offsets[i, off] : reach + offsets[i, off] + _STRETCH]
                a1 = sums[on + 2, s, reach + offsets[i, on + 2] : reach + offsets[i, on + 2] + _STRETCH]
                b1 = sums[off + 2, s, reach + offsets[i, off + 2] : reach + offsets[i, off + 2] + _STRETCH]
                a2 = sums[on + 4, s, reach + offsets[i, on + 4] : reach + offsets[i, on + 4] + _STRETCH]
                b2 = sums[off + 4, s, reach + offsets[i, off + 4] : reach + offsets[i, off + 4] + _STRETCH]
                for j in range(_STRETCH):
                    total = a0[j] + a1[j] + a2[j]
                    weakest = min(a0[j], min(a1[j], a2[j]))
                    brightest = max(b0[j], max(b1[j], b2[j]))
                    passes = (weakest >= on_above) & (brightest <= off_below) & (total > best[j])
                    best[j] = total if passes else best[j]
                    which[j] = d if passes else which[j]
            snr[role, first : first + stop] = best[:stop]
            drift[role, first : first + stop] = which[:stop]


def peaks(snr: np.ndarray, apart: int) -> np.ndarray:
    """Channels of the highest values, none nearer than `apart` to a higher one, ascending; zeros do not count."""
    candidates = np.flatnonzero(snr > 0)
    order = candidates[np.lexsort((candidates, -snr[candidates]))]
    return np.sort(_thin(order, len(snr), apart))


@jit
def _thin(order, n, apart):
    taken = np.zeros(n, np.bool_)
    kept = np.empty(order.size, np.int64)
    count = 0
    for i in range(order.size):
        f = order[i]
        if not taken[f]:
            kept[count] = f
            count += 1
            taken[max(f - apart + 1, 0) : f + apart] = True
    return kept[:count]


def fit(z: np.ndarray, time_s: np.ndarray, centre: float, rate: float, step: float) -> Fit:
    """Refine a line.

    Args:
      z: (6, time, n) float32 of unit noise, a band around the line.
      time_s: (6, time) from the middle of the observation.
      centre: the line's channel at time 0, counted from the band's first.
      rate: its drift, channels per second.
      step: how coarse these are, in channels and in channels over the whole observation.

    Returns:
      The line that collects most in the ON panels, found by steps that shrink to a tenth of a channel.
    """
    span = span_s(time_s)
    smear = abs(rate) * float(np.median(np.abs(np.diff(time_s, axis=1)))) if time_s.shape[1] > 1 else 0.0
    box = max(1, round(smear))
    smooth = _smoothed(z, box)
    drift = rate * span
    fractions = np.ascontiguousarray(time_s / span)
    step = max(float(step), 0.5 * box)
    while True:
        centre, drift = _best(smooth, fractions, centre, drift, step)
        if step <= 0.1:
            break
        step /= 3
    snr = np.empty(N_PANELS)
    for panel in range(N_PANELS):
        reach = 0 if panel in ON else 2 * box
        beside = np.arange(-reach, reach + 1)
        along = smooth[panel] if panel in ON else np.minimum(smooth[panel], np.float32(CROSSING))
        snr[panel] = max(_along(along, fractions[panel], centre + by, drift) for by in beside)
    return Fit(centre, drift / span, snr, _width(z, fractions, centre, drift, box))


def _smoothed(z: np.ndarray, box: int) -> np.ndarray:
    """Rows convolved with (1/2, 1, 1/2) and a box of `box` channels, of unit noise."""
    kernel = np.convolve(np.array([0.5, 1, 0.5]), np.ones(box))
    kernel /= np.sqrt((kernel**2).sum())
    out = np.zeros_like(z)
    half = len(kernel) // 2
    n = z.shape[-1]
    for i, weight in enumerate(kernel):  # few terms; a channel outside counts as 0
        by = i - half
        out[..., max(0, -by) : n - max(0, by)] += np.float32(weight) * z[..., max(0, by) : n + min(0, by)]
    return out


@jit
def _best(smooth, fractions, centre, drift, step):
    """The best of 9 x 9 lines around one, by the sum over ON panels with linear interpolation."""
    n_times, n = smooth.shape[1:]
    best, best_centre, best_drift = -np.inf, centre, drift
    for i in range(-4, 5):
        for j in range(-4, 5):
            c, d = centre + i * step, drift + j * step
            total = 0.0
            for panel in (0, 2, 4):
                for t in range(n_times):
                    x = c + d * fractions[panel, t]
                    f = int(np.floor(x))
                    if 0 <= f < n - 1:
                        part = x - f
                        total += smooth[panel, t, f] * (1 - part) + smooth[panel, t, f + 1] * part
            # The line that it began with wins a tie.
            if total > best + 1e-9 or (total > best - 1e-9 and abs(i) + abs(j) == 0):
                best, best_centre, best_drift = total, c, d
    return best_centre, best_drift


@jit
def _along(panel, fractions, centre, drift):
    """S/N along a line in one panel (time, frequency), by the nearest channels."""
    n_times, n = panel.shape
    total, count = 0.0, 0
    for t in range(n_times):
        f = int(np.rint(centre + drift * fractions[t]))
        if 0 <= f < n:
            total += panel[t, f]
            count += 1
    return total / np.sqrt(count) if count else 0.0


def _width(z: np.ndarray, fractions: np.ndarray, centre: float, drift: float, box: int) -> float:
    """Area over height of the mean ON profile along the line."""
    reach = 8 + 2 * box
    channels = np.rint(centre + drift * fractions[list(ON)]).astype(np.int64)[..., None]
    channels = channels + np.arange(-reach, reach + 1)
    inside = (channels >= 0) & (channels < z.shape[-1])
    panels = np.array(ON)[:, None, None]
    rows = np.arange(z.shape[1])[None, :, None]
    values = np.where(inside, z[panels, rows, np.clip(channels, 0, z.shape[-1] - 1)], 0)
    profile = values.mean(axis=(0, 1))
    height = profile.max()
    near = profile[reach - 4 - box : reach + 5 + box]
    return float(np.clip(near.sum() / height, 1, len(near))) if height > 0 else 1.0


def passes(snr: np.ndarray, on_above: float, off_below: float) -> bool:
    """The veto: the weakest ON panel above, every OFF panel below."""
    return bool(snr[list(ON)].min() > on_above and snr[list(OFF)].max() < off_below)
