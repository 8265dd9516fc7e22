"""Several runs' predictions into one: weights that maximise out-of-fold AUC, scored without flattering themselves.

AUC as a function of the weights is a staircase, so no gradient leads anywhere. `simplex_weights` moves weight
between pairs of runs in shrinking steps, each judged by the exact AUC. Weights chosen and scored on the same
rows look better than they are; `nested` chooses them on all folds but one and scores that one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from setibl_ray import metrics

STEPS = (0.25, 0.1, 0.05, 0.02, 0.01)
# Gains below this are luck, and would give a run of noise a little weight.
MIN_GAIN = 1e-4


def simplex_weights(target: np.ndarray, preds: np.ndarray) -> np.ndarray:
    """Weights of at least 0 that sum to 1 and maximise the AUC of the weighted mean.

    Starts from the best of equal weights and each run alone, so the result is never below those. Costs a sort
    of the
    rows per step: about a second for five runs of 60,000 rows.

    Args:
      target: (n,) 0 or 1, both present.
      preds: (n, m) scores of m runs.

    Returns:
      (m,) float64.
    """
    n_runs = preds.shape[1]

    def score(weights: np.ndarray) -> float:
        return metrics.auc(target, preds @ weights)

    starts = [np.full(n_runs, 1 / n_runs), *np.eye(n_runs)]
    scores = [score(start) for start in starts]
    best = int(np.argmax(scores))
    weights, reached = starts[best], scores[best]
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            moves = _moves(weights, step)
            gains = [score(move) for move in moves]
            if moves and max(gains) > reached + MIN_GAIN:
                best = int(np.argmax(gains))
                weights, reached, improved = moves[best], gains[best], True
    return weights / weights.sum()


def _moves(weights: np.ndarray, step: float) -> list[np.ndarray]:
    """Every shift of up to `step` of weight from one run to another."""
    moves = []
    for giver in np.flatnonzero(weights > 0):
        for taker in range(len(weights)):
            if taker != giver:
                moved = weights.copy()
                amount = min(step, weights[giver])
                moved[giver] = 0.0 if amount == weights[giver] else weights[giver] - amount
                moved[taker] += amount
                moves.append(moved)
    return moves


def ranks(preds: np.ndarray) -> np.ndarray:
    """(n, m) each column's ranks in (0, 1], ties sharing their mean: scores of unlike scales become alike."""
    from scipy.stats import rankdata

    return rankdata(preds, axis=0) / len(preds)


class Nested(NamedTuple):
    """Honest predictions of a blend.

    Attributes:
      pred: (n,) each row blended with weights that its fold had no part in.
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
