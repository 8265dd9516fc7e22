"""Signals added to conditioned panels: needles as they are searched for, and look-alikes.

Everything is in fine channels and sigmas. A signal of S/N s has its peak at s / sqrt(rows) sigmas in each row of a
panel, as setigen counts; one that drifts within a row is spread over the channels that it crosses, keeping its energy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from setibl_ray.seti.cadence import N_PANELS, OFF, ON
from setibl_ray.seti.kernels import jit
from setibl_ray.seti.observations.lines import span_s

NEEDLE_SHARES = {
    "needle-constant": 0.55,  # a straight line in the three ON panels
    "needle-uneven": 0.15,  # its level differs between panels, and wanders within them
    "needle-quadratic": 0.15,  # its drift changes
    "needle-pulsed": 0.15,  # on and off, three or more times a panel
}
LOOK_ALIKE_SHARES = {
    "hard-all-panels": 0.2,  # a line in ON and OFF alike
    "hard-intermittent": 0.3,  # a line in some panels, an OFF one among them: 101111, 110010, …
    "hard-uneven": 0.2,  # a line in all panels that is weak in OFF ones
    "hard-off-only": 0.1,  # a line in OFF panels
    "hard-one-on": 0.1,  # a line in one or two ON panels
    "hard-wandering": 0.1,  # a frequency that walks at random, in all panels
}
BRIGHTEST = 1000.0  # S/N of interference, which may be far above any needle's
LEAST_OFF = 6.0  # lowest S/N of a look-alike in an OFF panel: below, nothing could tell it from a needle


class Signal(NamedTuple):
    """A signal in every row.

    Attributes:
      centre: (6, time) channel at the middle of each row.
      sweep: (6, time) channels that it crosses within a row.
      level: (6, time) sigmas at its peak if it did not drift within a row; 0 where it is absent.
      fwhm: channels, of a Gaussian profile.
    """

    centre: np.ndarray
    sweep: np.ndarray
    level: np.ndarray
    fwhm: float


def paint(panels: np.ndarray, signal: Signal, unit: float = 1.0) -> None:
    """Add a signal to (6, time, frequency) float32 in place; `unit` is the value of a sigma there."""
    sigma = signal.fwhm / (2 * math.sqrt(2 * math.log(2)))
    _paint(panels, signal.centre, signal.sweep, signal.level, sigma, np.float32(unit))


@jit
def _paint(panels, centre, sweep, level, sigma, unit):
    n_panels, n_times, n = panels.shape
    scale = 1 / (sigma * math.sqrt(2.0))
    for p in range(n_panels):
        for t in range(n_times):
            if level[p, t] == 0:
                continue
            half = abs(sweep[p, t]) / 2
            low = max(0, math.ceil(centre[p, t] - half - 4 * sigma))
            high = min(n - 1, math.floor(centre[p, t] + half + 4 * sigma))
            for f in range(low, high + 1):
                x = (f - centre[p, t]) * scale
                if half * scale < 0.05:
                    value = math.exp(-x * x)
                else:  # the mean of the profile over the channels that it crosses
                    h = half * scale
                    value = math.sqrt(math.pi) / (4 * h) * (math.erf(x + h) - math.erf(x - h))
                panels[p, t, f] += np.float32(level[p, t] * value * unit)


def line(
    time_s: np.ndarray, centre: float, rate: float, snr: float, fwhm: float, panels: tuple[int, ...] = ON
) -> Signal:
    """A straight line of one S/N: `centre` is its channel at time 0, `rate` in channels per second."""
    level = np.zeros(time_s.shape)
    level[list(panels)] = snr / math.sqrt(time_s.shape[1])
    dt_s = abs(time_s[0, 1] - time_s[0, 0]) if time_s.shape[1] > 1 else 0.0
    return Signal(centre + rate * time_s, np.full(time_s.shape, rate * dt_s), level, fwhm)


def draw(
    rng: np.random.Generator,
    kind: str,
    snr: float,
    time_s: np.ndarray,
    centre: float,
    rate: float,
    fwhm: float,
) -> Signal:
    """A needle or a look-alike about a line.

    Args:
      kind: of NEEDLE_SHARES or LOOK_ALIKE_SHARES.
      snr: in the panels where it shows, on average.
      time_s: (6, time) from the middle of the observation.
      centre, rate, fwhm: as in `line`.
    """
    signal = line(time_s, centre, rate, snr, fwhm, tuple(range(N_PANELS)))
    level, path = signal.level, signal.centre
    rows = time_s.shape[1]
    span = span_s(time_s)
    if kind.startswith("needle"):
        level[list(OFF)] = 0
    if kind == "needle-uneven":
        level *= rng.uniform(0.5, 1.5, (N_PANELS, 1)) * np.clip(
            1 + 0.3 * rng.normal(size=level.shape), 0.1, None
        )
    elif kind == "needle-quadratic":
        u = time_s / span
        path = path + rng.choice((-1, 1)) * rng.uniform(2, 0.15 * abs(rate * span) + 20) * (u**2 - 1 / 12)
    elif kind == "needle-pulsed":
        period = rows * rng.uniform(0.12, 0.33)
        phase = np.arange(level.size).reshape(level.shape) / period + rng.uniform()
        level *= 2 * ((phase % 1) < rng.uniform(0.4, 0.7))
    elif kind == "hard-intermittent":
        # Not 101010, which is a needle's pattern, but any other with an OFF panel in it.
        shown = np.zeros(N_PANELS, bool)
        while not shown[list(OFF)].any() or shown.sum() < 2:
            shown = rng.random(N_PANELS) < rng.uniform(0.3, 0.9)
        level[~shown] = 0
    elif kind == "hard-uneven":
        level[list(OFF)] *= max(rng.uniform(0.1, 0.7), min(1.0, LEAST_OFF / snr))
        level *= rng.uniform(0.7, 1.3, (N_PANELS, 1))
    elif kind == "hard-off-only":
        level[list(ON)] = 0
    elif kind == "hard-one-on":
        shown = rng.permutation(ON)[: rng.integers(1, 3)]
        level[[panel for panel in range(N_PANELS) if panel not in shown]] = 0
    elif kind == "hard-wandering":
        steps = rng.normal(0, rng.uniform(0.3, 3), time_s.size)
        walk = np.cumsum(steps)
        path = path + (walk - walk.mean()).reshape(time_s.shape)
    sweep = np.gradient(path, axis=1) if rows > 1 else signal.sweep
    return Signal(path, sweep, level, fwhm)
