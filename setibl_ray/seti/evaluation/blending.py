"""Blending several runs: weights that maximise out-of-fold AUC, and an unbiased score for them.

AUC is a step function of the weights, so there is no gradient to follow. `simplex_weights` moves weight
between pairs of runs in shrinking steps, each judged by the exact AUC. Weights chosen and scored on the same
rows look better than they are; `nested` chooses them on all folds but one and scores that one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from setibl_ray.seti.evaluation import metrics

STEPS = (0.25, 0.1, 0.05, 0.02, 0.01)
# Less than this is one needle moving past a few haystacks: not worth another step.
MIN_GAIN = 1e-5
SIGNIFICANT = 3.0  # standard errors; not 2, as the weight was chosen on the rows that judge it


def simplex_weights(target: np.ndarray, preds: np.ndarray) -> np.ndarray:
    """Weights of at least 0 that sum to 1 and maximise the AUC of the weighted mean.

    Starts from the best of equal weights and each run alone; the result is never below the best run alone.
    Even noise can raise AUC a little by chance, so a run with less than half an equal share is dropped unless
    that costs more than three standard errors. Each step costs one sort of the rows for every pair of runs.

    Args:
      target: (n,) 0 or 1, both present.
      preds: (n, m) scores of m runs.

    Returns:
      (m,) float64.
    """
    n_runs = preds.shape[1]
    alone = np.eye(n_runs)
    starts = [np.full(n_runs, 1 / n_runs), *alone]
    weights = _search(target, preds, max(starts, key=lambda start: metrics.auc(target, preds @ start)))
    while (small := np.flatnonzero((weights > 0) & (weights < 0.5 / n_runs))).size:
        weakest = min(small, key=lambda run: _cost_of_dropping(target, preds, weights, run))
        if _cost_of_dropping(target, preds, weights, weakest) > SIGNIFICANT:
            break
        weights = _without(weights, weakest)
        kept = np.flatnonzero(weights)
        weights[kept] = _search(target, preds[:, kept], weights[kept])
    best = max(alone, key=lambda run: metrics.auc(target, preds @ run))
    return weights if metrics.auc(target, preds @ weights) >= metrics.auc(target, preds @ best) else best


def _search(target: np.ndarray, preds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Move weight between pairs of runs, in shrinking steps, while AUC rises."""
    reached = metrics.auc(target, preds @ weights)
    for step in STEPS:
        while moves := _moves(weights, step):
            scores = [metrics.auc(target, preds @ move) for move in moves]
            best = int(np.argmax(scores))
            if scores[best] <= reached + MIN_GAIN:
                break
            weights, reached = moves[best], scores[best]
    return weights / weights.sum()


def _without(weights: np.ndarray, run: int) -> np.ndarray:
    rest = weights.copy()
    rest[run] = 0.0
    return rest / rest.sum()


def _cost_of_dropping(target: np.ndarray, preds: np.ndarray, weights: np.ndarray, run: int) -> float:
    """How much AUC falls without a run, in standard errors of that difference."""
    difference, error = auc_difference(target, preds @ weights, preds @ _without(weights, run))
    if error > 0:
        return difference / error
    return math.inf if difference > 0 else 0.0


def auc_difference(target: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """AUC of `first` minus AUC of `second` on the same rows, and its standard error (DeLong et al. 1988).

    A class with a single row has no known spread: the error is then that of the other class alone, or 0 if that has
    a single row too.
    """
    gap = [a - b for a, b in zip(_placements(target, first), _placements(target, second))]
    variance = sum(values.var(ddof=1) / len(values) for values in gap if len(values) > 1)
    return float(gap[0].mean()), float(np.sqrt(variance))


def _placements(target: np.ndarray, pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per needle the share of haystacks below it, per haystack the share of needles above it; ties half."""
    from scipy.stats import rankdata

    needle = target == 1
    overall, n_needles = rankdata(pred), int(needle.sum())
    above = (overall[needle] - rankdata(pred[needle])) / (len(target) - n_needles)
    below = 1 - (overall[~needle] - rankdata(pred[~needle])) / n_needles
    return above, below


def _moves(weights: np.ndarray, step: float) -> list[np.ndarray]:
    """Every shift of up to `step` of weight from one run to another."""
    moves = []
    for giver in np.flatnonzero(weights > 0):
        for taker in range(len(weights)):
            if taker != giver:
                moved = weights.copy()
                amount = min(step, weights[giver])
                moved[giver] -= amount
                moved[taker] += amount
                moves.append(moved)
    return moves


def ranks(preds: np.ndarray) -> np.ndarray:
    """(n, m) each column's ranks in (0, 1], ties sharing their mean: makes scores on different scales comparable."""
    from scipy.stats import rankdata

    return rankdata(preds, axis=0) / len(preds)


class Nested(NamedTuple):
    """Unbiased predictions of a blend.

    Attributes:
      pred: (n,) each row blended with weights chosen without its fold.
      weights: fold -> (m,) those weights.
      auc: mean over folds of the AUC on its rows, nan where no fold has both classes. Within folds, because
        weights of different folds put scores on slightly different scales.
    """

    pred: np.ndarray
    weights: dict[int, np.ndarray]
    auc: float


def nested(target: np.ndarray, preds: np.ndarray, fold: np.ndarray) -> Nested:
    """Blend each fold with weights chosen on the others.

    Args:
      target: (n,) 0 or 1.
      preds: (n, m) scores.
      fold: (n,) held-out fold; rows of one group should share one.
    """
    pred = np.empty(len(target))
    weights = {}
    for k in np.unique(fold):
        held = fold == k
        weights[int(k)] = simplex_weights(target[~held], preds[~held])
        pred[held] = preds[held] @ weights[int(k)]
    return Nested(pred, weights, mean_fold_auc(target, pred, fold))


def mean_fold_auc(target: np.ndarray, pred: np.ndarray, fold: np.ndarray) -> float:
    """Mean AUC over the folds that have both classes; nan if none has."""
    aucs = np.array([metrics.auc(target[fold == k], pred[fold == k]) for k in np.unique(fold)])
    known = aucs[np.isfinite(aucs)]
    return float(known.mean()) if len(known) else float("nan")
