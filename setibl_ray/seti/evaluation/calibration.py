"""Whether a predicted 0.3 comes true three times in ten, and how to correct scores for which it does not.

`reliability` and the two scores measure this; a `Calibrator` maps scores to probabilities (isotonic or Platt). A
calibrator is fitted on out-of-fold predictions only, never on test; for an unbiased score, `cross_calibrate`
fits it without the fold that it is applied to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from setibl_ray.core.errors import DataError

Method = Literal["isotonic", "platt"]
Asked = Literal["none", "isotonic", "platt"]
Calibrator = Callable[[np.ndarray], np.ndarray]

N_BINS = 15
_EPSILON = 1e-6  # scores of exactly 0 or 1 have no logit


class Reliability(NamedTuple):
    """Occupied bins of equal width over [0, 1]: mean prediction, share of needles, rows; each (k,)."""

    predicted: np.ndarray
    observed: np.ndarray
    n_rows: np.ndarray


def reliability(target: np.ndarray, pred: np.ndarray, n_bins: int = N_BINS) -> Reliability:
    """Bin (n,) predictions in [0, 1]; bin i holds [i/n_bins, (i+1)/n_bins), the last one 1 as well."""
    place = np.minimum((pred * n_bins).astype(np.int64), n_bins - 1)
    count = np.bincount(place, minlength=n_bins)
    kept = count > 0
    predicted = np.bincount(place, pred, n_bins)[kept] / count[kept]
    observed = np.bincount(place, target, n_bins)[kept] / count[kept]
    return Reliability(predicted, observed, count[kept])


def expected_calibration_error(target: np.ndarray, pred: np.ndarray, n_bins: int = N_BINS) -> float:
    """Mean over rows of the gap between their bin's prediction and its share of needles; nan without rows."""
    if not len(target):
        return float("nan")
    bins = reliability(target, pred, n_bins)
    return float(bins.n_rows @ np.abs(bins.predicted - bins.observed) / len(target))


def brier(target: np.ndarray, pred: np.ndarray) -> float:
    """Mean squared error of the probabilities (n,); nan without rows."""
    return float(np.mean((pred - target) ** 2)) if len(target) else float("nan")


def _logit(pred: np.ndarray) -> np.ndarray:
    clipped = np.clip(pred, _EPSILON, 1 - _EPSILON)
    return np.log(clipped / (1 - clipped))


def fit(method: Method, target: np.ndarray, pred: np.ndarray) -> Calibrator:
    """Fit a monotone map from scores to probabilities.

    Args:
      method: isotonic (any increasing step function; needs about a thousand needles, makes ties) or platt
        (a logistic curve in the logit of the score: two parameters, keeps the order).
      target: (n,) 0 or 1.
      pred: (n,) out-of-fold scores in [0, 1].

    Returns:
      A function from (m,) scores to (m,) probabilities.

    Raises:
      DataError: one class is missing.
    """
    if len(np.unique(target)) < 2:
        raise DataError(
            f"calibration needs both classes among the out-of-fold rows, got {len(target)} of one class"
        )
    if method == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        isotonic = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(pred, target)
        return lambda scores: np.asarray(isotonic.predict(scores), np.float64)

    from scipy.optimize import minimize
    from scipy.special import expit

    logit = _logit(pred)

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        z = np.exp(line[0]) * logit + line[1]
        error = expit(z) - target
        value = np.mean(np.logaddexp(0, z) - target * z)
        return value, np.array([np.mean(error * logit) * np.exp(line[0]), error.mean()])

    # The search is over the logarithm of the slope, so that calibration never reverses the order.
    slope, offset = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-8, 8), (-50, 50)]).x
    return lambda scores: expit(np.exp(slope) * _logit(scores) + offset)


def cross_calibrate(method: Method, target: np.ndarray, pred: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(n,) calibrated predictions, each from a calibrator that never saw the row's fold."""
    calibrated = np.empty(len(pred))
    for k in np.unique(fold):
        held = fold == k
        calibrated[held] = fit(method, target[~held], pred[~held])(pred[held])
    return calibrated
