"""How weak a signal a run still finds: its folds applied to new simulated cadences of known S/N, drift and kind.

Thresholds are set on simulated haystacks, half of which look like needles, so that every share of needles found belongs
to a rate of false positives. The de-Doppler search of `baselines` scores the same cadences, with its own thresholds.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from setibl_ray.core.errors import ConfigError
from setibl_ray.core.randomness import stream_key
from setibl_ray.seti.evaluation import baselines, metrics
from setibl_ray.seti.making.recipe import Recipe

if TYPE_CHECKING:
    from setibl_ray.seti.config import Config

SNR = (3.0, 100.0)
FPR_LEVELS = (0.01, 0.001, 0.0001)
RECALLS = (0.5, 0.9)  # shares of needles found whose S/N is looked for
N_SNR_BINS = 9
N_DRIFT_BINS = 5
N_BOOTSTRAP = 200
CHUNK = 100  # cadences that a process makes at a time; a whole number of observations
METHODS = {"this run": "pred", "de-Doppler, ON minus OFF": "line"}


def recipe_for(n_haystacks: int, n_needles: int, *, seed: int, data: Mapping[str, Any]) -> Recipe:
    """What a study synthesises: needles of every kind, and haystacks, half of which look like needles.

    Args:
      seed: of every random number; a data set made with the same seed has other cadences.
      data: the run's `data` in manifest.json: `panel_shape`, and where known `df_hz` and `dt_s`.

    Raises:
      ConfigError: the run's panels were normalised differently from simulated ones.
    """
    if data.get("conditioning"):
        raise ConfigError(
            "sensitivity: expected a run on panels normalised as `data synth` does, but its shards hold conditioned "
            "observations; `search --recover` says how weak a signal such a run finds"
        )
    n = n_haystacks + n_needles
    known = {name: data[name] for name in ("df_hz", "dt_s") if data.get(name)}
    return Recipe(
        train=n,
        shards=-(-n // CHUNK),
        seed=stream_key("sensitivity", seed) % 2**31,
        snr=SNR,
        positive=n_needles / n,
        hard=0.5,
        shape=tuple(data["panel_shape"]),
        **known,
    )


def make(recipe: Recipe, shard: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Cadences of one shard of a recipe.

    Returns:
      (n, 6, time, frequency) uint8, and a table: target, kind, snr, drift_hz_s, line (the de-Doppler score).
    """
    from setibl_ray.seti.making import synth

    made = [synth.synthesise_with_drift(recipe, planned) for planned in synth.plan(recipe, "train", shard)]
    panels = np.stack([record.panels for record, _ in made])
    labels = [(record.target, record.kind, record.snr, drift) for record, drift in made]
    table = pd.DataFrame(labels, columns=["target", "kind", "snr", "drift_hz_s"])
    return panels, table.assign(line=baselines.dedoppler(panels.transpose(0, 2, 3, 1)))


def _made(recipe: Recipe, n_processes: int) -> Iterator[tuple[np.ndarray, pd.DataFrame]]:
    """Every shard in order; few are made ahead, as each takes tens of megabytes."""
    if n_processes == 1:
        yield from (make(recipe, shard) for shard in range(recipe.shards))
        return
    ahead: deque[Future[tuple[np.ndarray, pd.DataFrame]]] = deque()
    with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as pool:
        for shard in range(recipe.shards):
            ahead.append(pool.submit(make, recipe, shard))
            if len(ahead) > n_processes:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def score(config: Config, weights: Sequence[bytes], recipe: Recipe, *, n_processes: int = 1) -> pd.DataFrame:
    """The tables of `make` with `pred`, the mean over folds of the plain image's score.

    Args:
      config: of a run.
      weights: each fold's weights file.
    """
    config = config.model_copy(
        update={"device": "auto", "devices_per_fold": None, "cpus_per_fold": n_processes}
    )
    # By name, as whatever imports the networks imports TensorFlow.
    scorer = importlib.import_module("setibl_ray.seti.train.scoring").folds_scorer(config, weights)
    tables = [table.assign(pred=scorer(panels).mean(axis=1)) for panels, table in _made(recipe, n_processes)]
    return pd.concat(tables, ignore_index=True)


def examine(table: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Recall against S/N, drift and kind at each rate of false positives, of the run and of the baseline.

    Args:
      table: of `score`.
      seed: of the bootstrap.

    Returns:
      {"n_haystacks", "n_needles", "methods": [{"name", "auc", "levels": [{"fpr", "n_false", "n", "n_hits", "share",
      "interval", "snr_at", "by_snr", "by_drift", "by_kind"}]}]} as in metrics.json.
    """
    target = table["target"].to_numpy()
    needles = table[target == 1]
    snr, drift = needles["snr"].to_numpy(), needles["drift_hz_s"].abs().to_numpy()
    snr_edges = np.geomspace(snr.min(), snr.max(), N_SNR_BINS + 1)
    drift_edges = np.linspace(0, drift.max(), N_DRIFT_BINS + 1)
    methods = []
    for name, column in METHODS.items():
        ranking = metrics.Ranking(target, table[column].to_numpy(np.float64))
        counts = ranking.counts()
        levels = []
        for fpr in FPR_LEVELS:
            at = counts.cut(fpr)
            threshold = ranking.thresholds[at] if at >= 0 else np.inf
            found = needles[column].to_numpy(np.float64) >= threshold
            levels.append(
                {
                    "fpr": fpr,
                    "n_false": int(counts.false[at]) if at >= 0 else 0,
                    **metrics.share(found),
                    "snr_at": snr_at(snr, found, seed),
                    "by_snr": _bins(snr, found, snr_edges),
                    "by_drift": _bins(drift, found, drift_edges),
                    "by_kind": [
                        {"kind": kind, **metrics.share(found[needles["kind"] == kind])}
                        for kind in sorted(set(needles["kind"]))
                    ],
                }
            )
        methods.append({"name": name, "auc": counts.auc(), "levels": levels})
    return metrics.plain(
        {"n_haystacks": int((target == 0).sum()), "n_needles": len(needles), "methods": methods}
    )


def _bins(values: np.ndarray, found: np.ndarray, edges: np.ndarray) -> list[dict[str, Any]]:
    place = np.searchsorted(edges[1:-1], values, side="right")
    return [
        {"low": float(edges[i]), "high": float(edges[i + 1])} | metrics.share(found[place == i])
        for i in range(len(edges) - 1)
    ]


def snr_at(snr: np.ndarray, found: np.ndarray, seed: int = 0) -> list[dict[str, Any]]:
    """S/N from which each of RECALLS is reached, on a fitted curve that only rises, with a 95 % bootstrap interval.

    None if it is never reached, or is exceeded already at the lowest S/N; no interval if that happens in more than one
    resample in 40.
    """
    rng = np.random.default_rng(seed)
    draws = [
        _crossings(snr[rows], found[rows])
        for rows in (rng.integers(len(snr), size=len(snr)) for _ in range(N_BOOTSTRAP))
    ]
    return [
        {
            "recall": recall,
            "snr": None if np.isnan(crossing) else float(crossing),
            "interval": metrics.interval(own) if np.isnan(own).mean() <= 0.025 else None,
        }
        for recall, crossing, own in zip(RECALLS, _crossings(snr, found), np.array(draws).T)
    ]


def _crossings(snr: np.ndarray, found: np.ndarray) -> list[float]:
    from sklearn.isotonic import isotonic_regression

    order = np.argsort(snr, kind="stable")
    curve = isotonic_regression(found[order].astype(np.float64))
    firsts = (int(np.searchsorted(curve, recall - 1e-9)) for recall in RECALLS)
    return [float(snr[order][first]) if 0 < first < len(curve) else np.nan for first in firsts]


def lines(study: Mapping[str, Any]) -> list[str]:
    """The study as text: one line per method and rate of false positives."""
    shown = [
        "",
        f"{study['n_needles']:,} simulated needles, {study['n_haystacks']:,} haystacks, half of them look-alikes; "
        "S/N from which needles are found",
    ]
    for method in study["methods"]:
        for level in method["levels"]:
            at = ", ".join(f"{100 * point['recall']:.0f} % from {_span(point)}" for point in level["snr_at"])
            shown.append(f"{method['name']:26}{100 * level['fpr']:4g} % FPR ({level['n_false']} false): {at}")
    return shown


def _span(point: Mapping[str, Any]) -> str:
    if point["snr"] is None:
        return "–"
    bounds = point["interval"]
    return f"{point['snr']:.1f}" + (f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else "")
