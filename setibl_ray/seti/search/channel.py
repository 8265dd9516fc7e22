"""Search one coarse channel of one observation, from power to hits: a pure function of files, weights and settings.

A prefilter looks for lines that show in every ON panel and in no OFF panel; every fold scores a window about each of
them; if the score is at least FLOOR, the line is fitted and must pass the veto. The same is done with ON and OFF
exchanged, whose hits are false by construction, and in cuts with injected needles, whose hits are recoveries.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from setibl_ray.core.randomness import generator
from setibl_ray.seti.cadence import N_PANELS
from setibl_ray.seti.observations import lines, signals, windows
from setibl_ray.seti.observations.conditioning import BLOCK, binned, condition, to_bytes
from setibl_ray.seti.observations.injection import APART, MAX_DRIFT
from setibl_ray.seti.observations.observation import Channel, Observation
from setibl_ray.seti.search.settings import FLOOR, SearchSettings

SWAPPED = (1, 0, 3, 2, 5, 4)
PICTURE = (16, 96)  # rows and columns of a panel in a hit's picture
RECOVER_SNR = (6.0, 100.0)
_MARGIN = 2 * BLOCK  # channels read beyond a coarse channel's ends, for lines that cross them
# How far beyond a channel's ends the middle of a line may be; both channels then find it, and their hits are merged.
_BORDER = 32
_FOUND_HZ = 30.0  # an injected needle counts as found within this, times `Observation.coarseness`

Score = Callable[[np.ndarray], np.ndarray]
"""(n, 6, time, width) uint8 windows -> (n, folds) float32 scores."""


class Line(NamedTuple):
    """A line that passed the prefilter: fine channel at time 0, fine channels per second."""

    width: int
    centre: float
    rate: float


class Source(NamedTuple):
    """Conditioned panels to look for lines in. `low` is the fine channel that they begin with; `truth` is what was
    injected, with the best score of the hits that find it.
    """

    z: np.ndarray
    low: int
    truth: dict[str, Any] | None = None


class Proposed(NamedTuple):
    """A line that passed the prefilter, in the panels as they are or with ON and OFF exchanged, and its window."""

    source: Source
    exchanged: bool
    line: Line
    window: np.ndarray


def search_channel(
    observation: Observation,
    channel: Channel,
    score: Score,
    settings: SearchSettings,
    *,
    width: int,
    n_recover: int = 0,
) -> dict[str, Any]:
    """Search a coarse channel.

    Args:
      score: all folds of a run.
      width: channels of a window.
      n_recover: needles to inject.

    Returns:
      Plain values for JSON: `hits` and `null` (lists of hits, highest score first), `recovered` (a row for each
      injected needle), `n_windows`, `mhz` searched, `flags` of the panels.
    """
    z, low, flags = _conditioned(observation, channel)
    sources = [Source(z, low)]
    sources += [_injected(observation, channel, z, low, settings, number) for number in range(n_recover)]
    proposed = [
        found
        for source in sources
        for found in _proposed(source, observation.time_s, settings, width)
        if source.truth or channel.low - _BORDER <= source.low + found.line.centre < channel.high + _BORDER
    ]
    scores = score(np.stack([own.window for own in proposed])) if proposed else np.empty((0, 1))
    recovered = [source.truth for source in sources if source.truth]
    result: dict[str, Any] = {"hits": [], "null": [], "recovered": recovered}
    for own, of_folds in zip(proposed, scores):
        hit = _hit(observation, own, of_folds, settings) if of_folds.mean(dtype=np.float64) >= FLOOR else None
        if hit is None:
            continue
        truth = own.source.truth
        if truth is None:
            result["null" if own.exchanged else "hits"].append(hit)
        elif _is_found(hit, truth, _FOUND_HZ * observation.coarseness):
            truth["score"] = max(truth["score"], hit["score"])
    for kind in ("hits", "null"):
        result[kind].sort(key=lambda hit: (-hit["score"], hit["f_mhz"]))
    return {
        "observation": observation.name,
        "channel": channel.number,
        "n_windows": sum(own.source.truth is None and not own.exchanged for own in proposed),
        "n_channels": channel.high - channel.low,
        "mhz": (channel.high - channel.low) * observation.df_hz / 1e6,
        "flags": list(flags),
        **result,
    }


def _conditioned(observation: Observation, channel: Channel) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Conditioned panels of a channel and a margin at either end, their first fine channel, and the panels' flags.

    Each part is conditioned by itself, as a polyphase filter's response has a corner where two channels meet.
    """
    full_scale = observation.headers[0].full_scale
    low = max(0, channel.low - _MARGIN)
    high = min(observation.headers[0].n_channels, channel.high + _MARGIN)
    z = np.empty((N_PANELS, observation.n_times, high - low), np.float32)
    flags: tuple[str, ...] = ()
    for start, stop in ((low, channel.low), (channel.low, channel.high), (channel.high, high)):
        if start < stop:
            own = start == channel.low
            dc = channel.dc - start if own and channel.dc is not None else None
            part = condition(observation.read(start, stop), dc, full_scale)
            z[..., start - low : stop - low] = part.z
            flags = part.flags if own else flags
    return z, low, flags


def to_text(result: dict[str, Any]) -> str:
    """A channel's result as text; equal results give equal bytes."""
    return json.dumps(result, sort_keys=True, separators=(",", ":")) + "\n"


def _proposed(source: Source, time_s: np.ndarray, settings: SearchSettings, window: int) -> list[Proposed]:
    """Lines that pass the prefilter; with ON and OFF exchanged too, except in cuts with an injected needle."""
    out: list[Proposed] = []
    span = lines.span_s(time_s)
    is_real = source.truth is None
    for width in settings.bins:
        plane = binned(source.z, width)
        both = lines.search_both(
            plane,
            time_s,
            MAX_DRIFT,
            on_above=settings.prefilter_on,
            off_below=settings.prefilter_off,
            exchanged=is_real,
        )
        plane = to_bytes(plane)
        for exchanged, found in enumerate(both):
            at = lines.peaks(found.snr, APART)
            rates = found.drift[at] / span
            cuts = windows.cut(plane, time_s, at, rates, window)
            for channel, rate, own in zip(at, rates, cuts):
                line = Line(width, (channel + 0.5) * width - 0.5, float(rate * width))
                out.append(Proposed(source, bool(exchanged), line, own[list(SWAPPED)] if exchanged else own))
    return out


def _hit(
    observation: Observation, proposed: Proposed, of_folds: np.ndarray, settings: SearchSettings
) -> dict[str, Any] | None:
    """The fitted hit, or None where the veto removes it."""
    source, line = proposed.source, proposed.line
    panels = list(SWAPPED) if proposed.exchanged else list(range(N_PANELS))
    time_s = observation.time_s[panels]
    span = lines.span_s(time_s)
    reach = math.ceil(abs(line.rate) * span / 2) + 32 * line.width + 32
    low = max(0, math.floor(line.centre) - reach)
    high = min(source.z.shape[-1], math.ceil(line.centre) + reach + 1)
    near = source.z[panels, :, low:high]
    fit = lines.fit(near, time_s, line.centre - low, line.rate, step=line.width)
    if not lines.passes(fit.snr, settings.veto_on, settings.veto_off):
        return None
    centre = fit.centre + low + source.low
    hz = fit.rate * observation.df_hz
    mhz = [
        float(observation.mhz(centre + fit.rate * at))
        for at in (observation.first_s, 0.0, observation.last_s)
    ]
    return {
        "f_start_mhz": round(mhz[0], 8),
        "f_mhz": round(mhz[1], 8),
        "f_end_mhz": round(mhz[2], 8),
        "drift_hz_s": round(hz, 6),
        "width_hz": round(fit.width * observation.df_hz, 3),
        "snr": [round(float(value), 2) for value in fit.snr],
        "score": round(float(of_folds.mean(dtype=np.float64)), 6),
        "folds": [round(float(value), 6) for value in of_folds],
        "bin": line.width,
        "picture": picture(near, fit.centre, fit.rate, time_s, observation.df_hz),
    }


def picture(z: np.ndarray, centre: float, rate: float, time_s: np.ndarray, df_hz: float) -> dict[str, Any]:
    """Six panels about a line, 4 bits a pixel.

    Returns:
      `data` base64 of rows (panel, time, frequency), two pixels a byte, the first in the upper half; `rows`, `columns`;
      `column_hz` the width of a column; `left_hz` its left edge, from the line's centre.
    """
    rows, columns = PICTURE
    needed = abs(rate) * lines.span_s(time_s) + 40
    width = max(1, math.ceil(needed / columns))
    low = round(centre) - columns * width // 2
    own = np.zeros((N_PANELS, z.shape[1], columns * width), np.float32)
    start, stop = max(0, low), min(z.shape[-1], low + columns * width)
    own[..., start - low : stop - low] = z[..., start:stop]
    small, _ = lines.time_binned(binned(own, width), time_s, rows)
    nibbles = to_bytes(small) >> 4
    packed = (nibbles[..., ::2] << 4) | nibbles[..., 1::2]
    return {
        "data": base64.b64encode(packed.tobytes()).decode(),
        "rows": small.shape[1],
        "columns": columns,
        "column_hz": round(width * df_hz, 6),
        "left_hz": round((low - 0.5 - centre) * df_hz, 3),
    }


def _injected(
    observation: Observation, channel: Channel, z: np.ndarray, low: int, settings: SearchSettings, number: int
) -> Source:
    """A cut of the channel's panels, whose first channel is `low`, with a needle in it."""
    rng = generator(settings.seed, "recover", observation.name, channel.number, number)
    time_s = observation.time_s
    span = lines.span_s(time_s)
    width = int(settings.bins[number % len(settings.bins)])
    wide = min(4 * MAX_DRIFT * width, z.shape[-1])
    start = int(rng.integers(z.shape[-1] - wide + 1))
    snr = float(np.exp(rng.uniform(*np.log(RECOVER_SNR))))
    # Drifts that only this bin holds, not the next narrower one.
    below = max([w for w in settings.bins if w < width], default=0)
    most = 0.9 * MAX_DRIFT / span
    rate = float(rng.choice((-1, 1)) * rng.uniform(below * most, width * most))
    centre = wide / 2 + float(rng.uniform(-0.25, 0.25)) * MAX_DRIFT * width
    fwhm = float(rng.uniform(1.0, 4.0))
    cut = z[..., start : start + wide].copy()
    signals.paint(cut, signals.line(time_s, centre, rate, snr, fwhm))
    truth = {
        "snr": round(snr, 3),
        "f_mhz": float(observation.mhz(low + start + centre)),
        "drift_hz_s": rate * observation.df_hz,
        "bin": width,
        "score": 0.0,
    }
    return Source(cut, low + start, truth)


def _is_found(hit: dict[str, Any], truth: dict[str, Any], within_hz: float) -> bool:
    off_hz = abs(hit["f_mhz"] - truth["f_mhz"]) * 1e6
    return off_hz + 900 * abs(hit["drift_hz_s"] - truth["drift_hz_s"]) <= within_hz
