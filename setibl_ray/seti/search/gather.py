"""From hits of all channels to ranked candidates: one for each signal, a threshold, coincidences between targets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from setibl_ray.seti.cadence import OFF, ON
from setibl_ray.seti.observations.injection_recipe import Ranges
from setibl_ray.seti.observations.observation import Observation
from setibl_ray.seti.search.settings import FLOOR, SearchSettings

# Used unless the user gives one, or a rate of false candidates. Networks with the on-off head give needles 0.98 and
# more; above this there was one false candidate in seven observations of two generators (docs/search.md).
THRESHOLD = 0.95
# Both are multiplied by `Observation.coarseness`. At bins 1 and 2, lines that are nowhere farther apart than SAME_HZ
# are one signal; at wider bins, the limit grows in proportion.
SAME_HZ = 40.0
COINCIDENT_HZ = 250.0
_SHOWN_S_N = 5.0  # S/N from which an ON panel counts in n_on
_RECALL_EDGES = (6, 8, 10, 15, 20, 30, 50, 100.0001)

Hit = dict[str, Any]


class Threshold(NamedTuple):
    value: float
    how: str


def merge(hits: Sequence[Hit], coarseness: float = 1.0) -> list[list[Hit]]:
    """Hits of an observation grouped by signal, each group's brightest first, groups in the order of their best score.

    Two hits are of one signal where their lines are near each other at the beginning and at the end; a hit joins the
    nearest group by the distance from its brightest hit, so that a chain of hits does not grow along the band.
    """
    order = sorted(range(len(hits)), key=lambda i: (-sum(hits[i]["snr"][k] for k in ON), hits[i]["f_mhz"]))
    ends = np.array([(hit["f_start_mhz"], hit["f_end_mhz"]) for hit in hits]).reshape(-1, 2) * 1e6
    reach = np.array([SAME_HZ * coarseness * max(1.0, hit["bin"] / 2) for hit in hits])
    groups: list[list[int]] = []
    leaders = np.empty(0, np.int64)
    for i in order:
        apart = np.abs(ends[leaders] - ends[i]).max(axis=1)
        near = apart <= np.maximum(reach[leaders], reach[i])
        if near.any():
            groups[int(np.argmin(np.where(near, apart, np.inf)))].append(i)
        else:
            groups.append([i])
            leaders = np.append(leaders, i)
    merged = [[hits[i] for i in group] for group in groups]
    return sorted(merged, key=lambda group: (-max(hit["score"] for hit in group), group[0]["f_mhz"]))


def tops(hits: Iterable[Sequence[Hit]], coarseness: float = 1.0) -> list[float]:
    """Scores of the signals in the hits of each of several observations, highest first."""
    groups = (group for own in hits for group in merge(own, coarseness))
    return sorted((max(hit["score"] for hit in group) for group in groups), reverse=True)


def choose_threshold(settings: SearchSettings, scores: Sequence[float], ghz: float) -> Threshold:
    """The score from which a hit counts, and in words how it was chosen.

    With `false_per_ghz`, the threshold is the lowest that leaves as many candidates as allowed, rounded down, in the
    data with ON and OFF exchanged, where all are false.

    Args:
      scores: `tops` of the hits with ON and OFF exchanged.
    """
    if settings.threshold is not None:
        return Threshold(settings.threshold, "given (--threshold)")
    if settings.false_per_ghz is None:
        return Threshold(THRESHOLD, "default; --recover and --false-per-ghz tell what it means in these data")
    allowed = int(settings.false_per_ghz * ghz + 1e-9)
    above = scores[allowed] + 1e-6 if len(scores) > allowed else FLOOR
    how = (
        f"{settings.false_per_ghz:g} false candidates per GHz allowed (--false-per-ghz), {allowed} in {ghz:.6g} GHz; "
        f"with ON and OFF exchanged {len(scores)} score above {FLOOR:g}"
    )
    return Threshold(round(min(1.0, above), 6), how)


def null_table(scores: Sequence[float], ghz: float) -> list[dict[str, float]]:
    """How many candidates there are with ON and OFF exchanged at each threshold, and per GHz, from their scores."""
    levels = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
    counts = [sum(score >= level for score in scores) for level in levels]
    return [{"threshold": t, "candidates": c, "per_ghz": round(c / ghz, 3)} for t, c in zip(levels, counts)]


def recall_table(recovered: Sequence[dict[str, Any]], threshold: float) -> list[dict[str, Any]]:
    """How many injected needles are found, by bin and S/N."""
    rows = []
    table = pd.DataFrame(recovered, columns=["bin", "snr", "score"])
    for width, of_bin in table.groupby("bin"):
        for low, high in itertools.pairwise(_RECALL_EDGES):
            own = of_bin[of_bin["snr"].between(low, high, inclusive="left")]
            if len(own):
                found = int((own["score"] >= max(threshold, 1e-9)).sum())
                rows.append({
                    "bin": int(width), "snr_from": float(low), "snr_to": round(float(high), 1),
                    "injected": len(own), "found": found, "recall": round(found / len(own), 4),
                })  # fmt: skip
    return rows


def candidates(
    observations: Sequence[Observation],
    hits: dict[str, list[Hit]],
    threshold: float,
    exclude_mhz: Ranges = (),
) -> list[dict[str, Any]]:
    """Ranked candidates of all observations.

    Args:
      hits: by observation, every hit above FLOOR.
      threshold: score from which a hit belongs to a candidate.

    Returns:
      A mapping for each: the columns of candidates.csv and `picture`.
    """
    rows = []
    for observation in observations:
        others = [
            (other.name, np.sort([hit["f_mhz"] for hit in hits[other.name]]))
            for other in observations
            if other.session == observation.session
            and other.headers[0].source != observation.headers[0].source
        ]
        own = [hit for hit in hits[observation.name] if hit["score"] >= threshold]
        for group in merge(own, observation.coarseness):
            best = group[0]
            rows.append(_row(observation, best, group, _flags(observation, best, others, exclude_mhz)))
    rows.sort(
        key=lambda row: (-row["score"], -row["snr_on1"] - row["snr_on2"] - row["snr_on3"], row["f_start_mhz"])
    )
    return [{"rank": rank, **row} for rank, row in enumerate(rows, 1)]


def _row(observation: Observation, best: Hit, group: Sequence[Hit], flags: list[str]) -> dict[str, Any]:
    snr, headers = list(best["snr"]), list(observation.headers)
    on, off = [snr[k] for k in ON], [snr[k] for k in OFF]
    if observation.is_reversed:  # back to the order in which they were observed
        on, off, headers = on[::-1], off[::-1], headers[::-1]
    top = max(group, key=lambda hit: hit["score"])
    return {
        "id": f"{observation.name}-{best['f_mhz'] * 1e6:.0f}",
        "observation": observation.name,
        "score": top["score"],
        **{f"score_fold_{k}": value for k, value in enumerate(top["folds"])},
        "f_start_mhz": best["f_start_mhz"],
        "f_end_mhz": best["f_end_mhz"],
        "drift_hz_s": best["drift_hz_s"],
        "width_hz": best["width_hz"],
        **{f"snr_on{k}": value for k, value in enumerate(on, 1)},
        **{f"snr_off{k}": value for k, value in enumerate(off, 1)},
        "n_on": sum(value >= _SHOWN_S_N for value in on),
        "n_windows": len(group),
        "bin": best["bin"],
        "flags": " ".join(flags),
        "source": observation.headers[0].source,
        "tstart_mjd": min(header.tstart_mjd for header in headers),
        "files": " ".join(header.path for header in headers),
        "picture": best["picture"],
    }


def _flags(
    observation: Observation, hit: Hit, others: Sequence[tuple[str, np.ndarray]], exclude_mhz: Ranges
) -> list[str]:
    """Reasons to doubt a candidate, none of which removes it."""
    flags = []
    low, high = sorted((hit["f_start_mhz"], hit["f_end_mhz"]))
    if any(start <= high and low <= stop for start, stop in exclude_mhz):
        flags.append("excluded")
    for name, mhz in others:
        near = COINCIDENT_HZ * observation.coarseness / 1e6
        first, last = np.searchsorted(mhz, [hit["f_mhz"] - near, hit["f_mhz"] + near])
        if first < last:
            flags.append(f"also-in:{name}")
    df_mhz = observation.df_hz / 1e6
    for channel in observation.channels:
        bottom, top = float(observation.mhz(channel.low - 0.5)), float(observation.mhz(channel.high - 0.5))
        if not bottom <= hit["f_mhz"] <= top:
            continue
        if min(low - bottom, top - high) < 64 * df_mhz:
            flags.append("channel-edge")
        if channel.dc is not None and low - 8 * df_mhz <= observation.mhz(channel.dc) <= high + 8 * df_mhz:
            flags.append("dc-spike")
    return flags
