"""Uncertainty of a score: a bootstrap over rows, or over groups of rows that belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

N_BOOTSTRAP = 400
Fn = Callable[[np.ndarray, np.ndarray], float]


def units(group: pd.Series | None, n: int) -> np.ndarray:
    """(n,) number of the unit that each row is resampled with; a row without a group is its own unit."""
    if group is None:
        return np.arange(n)
    codes, _ = pd.factorize(group.fillna(""), sort=False)
    alone = (group.fillna("") == "").to_numpy()
    codes[alone] = codes.max(initial=-1) + 1 + np.arange(alone.sum())
    return np.unique(codes, return_inverse=True)[1]


def _resamples(unit: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of `N_BOOTSTRAP` draws of all units with replacement; none if there is only one unit."""
    if unit.max(initial=0) == 0:
        return
    order = np.argsort(unit, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(unit[order])) + 1)
    rng = np.random.default_rng(0)
    for _ in range(N_BOOTSTRAP):
        yield np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])


def _drawn(fn: Fn, target: np.ndarray, preds: list[np.ndarray], group: pd.Series | None) -> np.ndarray:
    """(draws, predictions) scores; without draws in which the score is undefined."""
    found = []
    for rows in _resamples(units(group, len(target))):
        try:
            found.append([fn(target[rows], pred[rows]) for pred in preds])
        except ValueError:  # one class only, say
            continue
    values = np.array(found, np.float64).reshape(-1, len(preds))
    return values[np.isfinite(values).all(axis=1)]


def interval(
    fn: Fn, target: np.ndarray, pred: np.ndarray, group: pd.Series | None = None
) -> list[float] | None:
    """95 % bootstrap interval of a score; None if it is undefined in too many draws."""
    if not np.isfinite(pred).all():
        return None
    draws = _drawn(fn, target, [pred], group)
    return np.quantile(draws[:, 0], [0.025, 0.975]).tolist() if len(draws) > N_BOOTSTRAP / 2 else None


def difference(
    fn: Fn, target: np.ndarray, first: np.ndarray, second: np.ndarray, group: pd.Series | None = None
) -> tuple[float, float]:
    """How much larger the second predictions' score is on the same rows, and the standard error of that."""
    draws = _drawn(fn, target, [first, second], group)
    gains = draws[:, 1] - draws[:, 0]
    return float(fn(target, second) - fn(target, first)), float(gains.std(ddof=1)) if len(
        gains
    ) > 1 else np.inf
