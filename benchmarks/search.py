"""What a search finds of the needles that a simulated observation holds, and what simpler searches find there.

    python benchmarks/search.py SEARCH --truth TRUTH.csv

    --list OBSERVATION.csv   the de-Doppler baseline on the same data
    --turbo-seti EVENTS.csv  turbo_seti's events there (benchmarks/turbo_seti_events.py)

A needle is found where a candidate's line is within 30 Hz of its own; any other candidate is false.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from setibl_ray.seti.evaluation.baselines import dedoppler
from setibl_ray.seti.observations.conditioning import binned, condition, to_bytes
from setibl_ray.seti.observations.lines import span_s
from setibl_ray.seti.observations.observation import read_list
from setibl_ray.seti.observations.simulating import recall

WIDTH = 256


def candidates(search: Path, threshold: float | None) -> pd.DataFrame:
    table = pd.read_csv(search / "candidates.csv")
    table["f_mhz"] = (table["f_start_mhz"] + table["f_end_mhz"]) / 2
    return table if threshold is None else table[table["score"] >= threshold]


def n_false(truth: pd.DataFrame, found: pd.DataFrame, within_hz: float = 60.0) -> int:
    """Candidates that are no needle's, and not a second one of a needle either."""
    off_hz = np.abs(found["f_mhz"].to_numpy()[:, None] - truth["f_mhz"].to_numpy()) * 1e6
    drift = np.abs(found["drift_hz_s"].to_numpy()[:, None] - truth["drift_hz_s"].to_numpy())
    return int(((off_hz + 900 * drift).min(axis=1, initial=np.inf) > within_hz).sum()) if len(found) else 0


def by_snr(matched: pd.DataFrame) -> pd.DataFrame:
    return (matched["candidate"] >= 0).groupby([matched["kind"], matched["snr"]]).mean().unstack()


def dedoppler_recall(
    truth: pd.DataFrame, path: str, n_coarse: int | None, allowed: int
) -> tuple[pd.DataFrame, float]:
    """The baseline's windows, at the threshold at which `allowed` windows without a needle are left.

    It says which window, not which line: a needle is found where a window that holds half its track is above.
    """
    parts = []
    (observation,) = read_list(path, n_coarse=n_coarse)
    for channel in observation.channels:
        dc = None if channel.dc is None else channel.dc - channel.low
        plane = to_bytes(binned(condition(observation.read(channel.low, channel.high), dc).z, 1))
        starts = np.arange(0, plane.shape[-1] - WIDTH + 1, WIDTH // 2)
        for some in np.array_split(starts, max(1, len(starts) // 256)):
            cut = np.stack([plane[..., s : s + WIDTH].transpose(1, 2, 0) for s in some])
            parts.append((np.asarray(observation.mhz(channel.low + some)), dedoppler(cut)))
    low, score = (np.concatenate(column) for column in zip(*parts))
    high = low + WIDTH * observation.df_hz / 1e6
    half = np.abs(truth["drift_hz_s"].to_numpy()) * span_s(observation.time_s) / 4e6
    f = truth["f_mhz"].to_numpy()
    holds = (low[:, None] <= f + half) & (f - half <= high[:, None])
    others = np.sort(score[~holds.any(axis=1)])[::-1]
    threshold = float(others[allowed])
    best = np.where(holds, score[:, None], -np.inf).max(axis=0)
    return truth.assign(candidate=np.where(best > threshold, 0, -1)), threshold


def turbo_seti_recall(truth: pd.DataFrame, path: Path, first_s: float) -> pd.DataFrame:
    """Events as find_event_pipeline writes them; a needle is found where one is within 60 Hz and 0.1 Hz/s of it.

    An event carries the frequency at the start of the first ON file, `first_s` from the middle of the observation.
    """
    events = pd.read_csv(path)
    columns = {name.lower(): name for name in events.columns}
    f = events[columns["freq"]].to_numpy(float)
    drift = events[columns["driftrate"]].to_numpy(float)
    found = []
    for needle in truth.itertuples():
        at_start = needle.f_mhz + needle.drift_hz_s * first_s / 1e6
        near = (np.abs(f - at_start) * 1e6 < 60) & (np.abs(drift - needle.drift_hz_s) < 0.1)
        found.append(0 if near.any() else -1)
    return truth.assign(candidate=found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("search", type=Path)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--list")
    parser.add_argument("--coarse-channels", type=int)
    parser.add_argument("--turbo-seti", type=Path)
    options = parser.parse_args()
    truth = pd.read_csv(options.truth)
    found = candidates(options.search, options.threshold).reset_index(drop=True)
    matched = recall(truth, found)
    summary = json.loads((options.search / "search.json").read_text())
    false = n_false(truth, found)
    level = options.threshold or summary["threshold"]["value"]
    print(
        f"{len(found)} candidates in {summary['ghz'] * 1e3:.3f} MHz at score {level:g}, "
        f"{false} false; needles found, by S/N in a panel:"
    )
    print(by_snr(matched).round(2).to_string())
    errors = matched[["f_error_hz", "drift_error_hz_s"]].abs().quantile(0.9)
    print(f"90 % of them within {errors.iloc[0]:.2f} Hz and {errors.iloc[1]:.4f} Hz/s of the truth")
    if options.list:
        for allowed in (0, 1):
            baseline, threshold = dedoppler_recall(truth, options.list, options.coarse_channels, allowed)
            print(f"de-Doppler baseline, {allowed} false windows (above {threshold:.2f}):")
            print(by_snr(baseline[baseline["kind"] == "slow"]).round(2).to_string())
    if options.turbo_seti:
        if not options.list:
            parser.error("--turbo-seti needs --list, which says when the observation began")
        (observation,) = read_list(options.list)
        print("turbo_seti:")
        print(by_snr(turbo_seti_recall(truth, options.turbo_seti, observation.first_s)).round(2).to_string())


if __name__ == "__main__":
    main()
