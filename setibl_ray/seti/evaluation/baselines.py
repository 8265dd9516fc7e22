"""Simple methods on the same cadences: a de-Doppler search, and statistics of whole panels.

Both read each cadence once, in chunks (`measure`). If a network is hardly better, it has learnt little; if
the statistics alone are almost perfect, something in the data reveals the target (see `probes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from setibl_ray.seti.cadence import N_PANELS, OFF, ON
from setibl_ray.seti.evaluation import metrics
from setibl_ray.seti.evaluation.pixels import Pixels, Split, positions

CHUNK = 64  # cadences in memory at once: 27 MB of raw panels
TIME_BINS = 16  # rows per panel in the de-Doppler search; drift within one is far below a channel
N_DRIFTS = 65  # straight lines tried, drifting by up to one band width either way over the whole cadence
SMOOTHING = 31  # channels of the running median that removes the bandpass from a background
STATISTICS = (
    "mean",
    "deviation",
    "skewness",
    "kurtosis",
    "percentile 1",
    "median",
    "percentile 99",
    "maximum",
    "brightest channel",
)


class Measured(NamedTuple):
    """Results of one pass over n cadences of P panels and W channels.

    Attributes:
      statistics: (n, P * 9) float32, `STATISTICS` of each panel in turn.
      line: (n,) float32, the de-Doppler detector's score.
      background: (n, W) float32, unit vectors: the spectrum of the noise, which identifies a background.
    """

    statistics: np.ndarray
    line: np.ndarray
    background: np.ndarray


def measure(pixels: Pixels, split: Split, image_ids: Sequence[str]) -> Measured:
    """Read cadences in chunks; about 15 ms each on one core."""
    parts = []
    for start in range(0, len(image_ids), CHUNK):
        panels = pixels.read(split, image_ids[start : start + CHUNK])
        parts.append(Measured(statistics(panels), dedoppler(panels), background(panels)))
    return Measured(*(np.concatenate(column) for column in zip(*parts)))


def statistics(panels: np.ndarray) -> np.ndarray:
    """(n, P * 9) float32 `STATISTICS` of uint8 panels (n, H, W, P), from one histogram of each panel."""
    n, height, width, count = panels.shape
    flat = panels.transpose(0, 3, 1, 2).reshape(n * count, height * width)
    histogram = np.stack([np.bincount(panel, minlength=256) for panel in flat])
    levels = np.arange(256.0)
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ levels
    centred = levels - mean[:, None]
    variance = (share * centred**2).sum(axis=1)
    deviation = np.sqrt(variance)
    scaled = centred / np.maximum(deviation, 1e-9)[:, None]
    skewness, kurtosis = (share * scaled**3).sum(axis=1), (share * scaled**4).sum(axis=1)
    cumulative = np.cumsum(share, axis=1)
    low, median, high, maximum = ((cumulative < at - 1e-12).sum(axis=1) for at in (0.01, 0.5, 0.99, 1.0))
    channels = panels.mean(axis=1, dtype=np.float32).transpose(0, 2, 1).reshape(n * count, width)
    brightest = channels.max(axis=1) - np.median(channels, axis=1)
    columns = [mean, deviation, skewness, kurtosis, low, median, high, maximum, brightest]
    return np.stack(columns, axis=1).reshape(n, count * len(STATISTICS)).astype(np.float32)


def unmoved_by_needles(n_panels: int) -> list[int]:
    """Columns of `statistics` that a narrow signal in ON panels hardly changes."""
    levels = {STATISTICS.index(name) for name in ("mean", "percentile 1", "median")}
    return [
        panel * len(STATISTICS) + statistic
        for panel in range(n_panels)
        for statistic in range(len(STATISTICS))
        if statistic in levels or (n_panels == N_PANELS and panel in OFF)
    ]


def statistic_name(column: int, n_panels: int) -> str:
    """The statistic and panel of a column of `statistics`, in words."""
    panel, statistic = divmod(column, len(STATISTICS))
    position = positions(n_panels)[panel]
    return f"{STATISTICS[statistic]} of panel {position} ({'ON' if position in ON else 'OFF'})"


def dedoppler(panels: np.ndarray) -> np.ndarray:
    """(n,) float32: S/N of the best straight line that at least two ON panels have and no OFF panel has.

    For every line through the whole cadence, the mean along it in each panel is an S/N; the score of a line is the
    second largest of its three ON values minus its largest OFF value. This is the classical search, as in turboSETI,
    with a built-in ON-OFF filter. (n, H, W, P) uint8; with three panels there is no OFF value to subtract.
    """
    n, height, width, count = panels.shape
    bins = min(TIME_BINS, height)
    edges = np.arange(bins + 1) * height // bins
    rows = np.add.reduceat(panels, edges[:-1], axis=1, dtype=np.float32) / np.diff(edges)[
        :, None, None
    ].astype(np.float32)
    rows -= rows.mean(axis=(1, 2), keepdims=True)
    rows /= np.maximum(rows.std(axis=(1, 2), keepdims=True), 1e-6)
    # (P, bins, n, W): every shift below is a slice.
    by_time = np.ascontiguousarray(rows.transpose(3, 1, 0, 2))
    best = np.full(n, -np.inf, np.float32)
    for drift in np.linspace(-width, width, N_DRIFTS):
        along = np.zeros((count, n, width), np.float32)
        for panel, position in enumerate(positions(count)):
            for row in range(bins):
                shift = round(drift * ((position + (row + 0.5) / bins) / N_PANELS - 0.5))
                low, high = max(0, -shift), min(width, width - shift)
                if low < high:
                    along[panel, :, low:high] += by_time[panel, row, :, low + shift : high + shift]
        along /= np.sqrt(bins)
        on = along if count != N_PANELS else along[list(ON)]
        score = np.sort(on, axis=0)[1]
        if count == N_PANELS:
            score = score - np.maximum(along[list(OFF)].max(axis=0), 0)
        np.maximum(best, score.max(axis=1), out=best)
    return best


def background(panels: np.ndarray) -> np.ndarray:
    """(n, W) float32 unit vectors: each cadence's mean spectrum, bandpass and bright lines removed.

    From the OFF panels where there are any, so that needles do not change it. Bright channels are clipped: two
    cadences with a line in the same channel need not have the same background.
    """
    from scipy.ndimage import median_filter

    used = panels[..., list(OFF)] if panels.shape[3] == N_PANELS else panels
    spectrum = used.mean(axis=(1, 3), dtype=np.float64)
    flat = spectrum - median_filter(spectrum, size=(1, SMOOTHING), mode="nearest")
    spread = 1.4826 * np.median(np.abs(flat - np.median(flat, axis=1, keepdims=True)), axis=1, keepdims=True)
    clipped = np.clip(flat / np.maximum(spread, 1e-9), -3, 3)
    clipped -= clipped.mean(axis=1, keepdims=True)
    return (clipped / np.maximum(np.linalg.norm(clipped, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def out_of_fold(features: np.ndarray, target: np.ndarray, fold: np.ndarray, seed: int = 0) -> np.ndarray:
    """(n,) probabilities of boosted trees grown on the other folds; 0.5 where those have one class."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    pred = np.full(len(target), 0.5)
    for k in np.unique(fold):
        held = fold == k
        if len(np.unique(target[~held])) == 2:
            model = HistGradientBoostingClassifier(
                max_iter=80, max_leaf_nodes=15, early_stopping=False, random_state=seed
            )
            # On a busy machine its threads wait for each other at every split, which takes minutes instead of seconds.
            with threadpool_limits(1, user_api="openmp"):
                model.fit(features[~held], target[~held])
                pred[held] = model.predict_proba(features[held])[:, 1]
    return pred


def score(
    name: str, target: np.ndarray, pred: np.ndarray, fold: np.ndarray, group: Any, seed: int
) -> dict[str, Any]:
    """A baseline's row of metrics.json: AUC with interval, average precision, recall at each FPR, AUC per fold."""
    counts = metrics.Ranking(target, pred).counts()
    units, _ = metrics.resampling_units(group)
    return {
        "name": name,
        "n_rows": len(target),
        "auc": counts.auc(),
        "interval": metrics.bootstrap_auc(target, pred, units, seed=seed),
        "ap": counts.average_precision(),
        "recall_at_fpr": [{"fpr": fpr, "recall": counts.recall_at(fpr)} for fpr in metrics.FPR_LEVELS],
        "fold_auc": [metrics.auc(target[fold == k], pred[fold == k]) for k in np.unique(fold)],
    }
