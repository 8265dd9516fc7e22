"""From fold results to tables: out-of-fold predictions in table order, fold-weighted test predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from setibl_ray.core.errors import SetiblError
from setibl_ray.core.jobs import RunSpec
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.task import Fitted, Outcome, Prediction, Rows, Score, prediction_columns, predictions


class CoverageError(SetiblError):
    """A row was predicted by no fold, or a fold's predictions do not fit its rows."""


def gather(fold_of_row: np.ndarray, predictions: Mapping[int, np.ndarray]) -> np.ndarray:
    """Scatter each fold's held-out predictions back into table order.

    Args:
      fold_of_row: (n,) the fold that holds a row out.
      predictions: fold -> (m,) or (m, k) in the order of that fold's held-out rows.

    Returns:
      (n,) or (n, k), of the predictions' type.

    Raises:
      CoverageError: a fold is missing, has another number of predictions than rows, or one that is not a number.
    """
    first = next(iter(predictions.values()), np.empty(0, np.float32))
    out = np.empty((len(fold_of_row), *first.shape[1:]), first.dtype)
    # One stable sort instead of a scan of all rows per fold: linear in rows, whatever the number of folds.
    order = np.argsort(fold_of_row, kind="stable")
    folds, starts = np.unique(fold_of_row[order], return_index=True)
    for fold, rows in zip(folds.tolist(), np.split(order, starts[1:])):
        if fold not in predictions:
            raise CoverageError(f"fold {fold} has no predictions for its {len(rows)} held-out rows")
        values = predictions[fold]
        if values.shape != (len(rows), *first.shape[1:]):
            raise CoverageError(f"fold {fold}: expected {len(rows)} predictions, got shape {values.shape}")
        if not np.isfinite(values).all():
            raise CoverageError(f"fold {fold}: a prediction is not a finite number (training diverged?)")
        out[rows] = values
    return out


def oof_table(spec: RunSpec, fitted: Mapping[int, Fitted]) -> pd.DataFrame:
    """The training table with `fold`, `pred` (or pred_0, …) and the tasks' further columns."""
    pred = gather(spec.fold_of_row, {fold: found.pred for fold, found in fitted.items()})
    names = next(iter(fitted.values())).columns
    more = {
        name: gather(spec.fold_of_row, {fold: found.columns[name] for fold, found in fitted.items()})
        for name in names
    }
    return spec.rows.table.assign(fold=spec.fold_of_row, **prediction_columns(pred), **more)


def oof_csv(rows: Rows, table: pd.DataFrame, pred: np.ndarray) -> pd.DataFrame:
    return table[[rows.id, "target"]].assign(**prediction_columns(pred), fold=table["fold"])


def fold_weights(config: Any, score: Score, table: pd.DataFrame) -> np.ndarray:
    """(folds,) float64 summing to 1: equal, by how much better than guessing each fold's score is, or as given."""
    if config.fold_weights == "equal":
        weights = np.ones(config.folds)
    elif config.fold_weights == score.name:
        scores = [score.of(part["target"].to_numpy(), predictions(part)) for _, part in table.groupby("fold")]
        weights = np.clip(score.sign * (np.asarray(scores, np.float64) - score.chance), 0.0, None)
        if weights.sum() == 0:
            weights = np.ones(config.folds)
    else:
        weights = np.array([float(part) for part in config.fold_weights.split(",")])
    return weights / weights.sum()


def average(predictions: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(t,) or (t, k): weighted mean over folds, added in fold order whichever fold finished first."""
    total = np.zeros(predictions[0].shape, np.float64)
    for values, weight in zip(predictions, weights, strict=True):
        total += weight * values.astype(np.float64)
    return total.astype(predictions[0].dtype)


def test_table(spec: RunSpec, predicted: Mapping[int, Prediction], weights: np.ndarray) -> pd.DataFrame:
    """The test table with `pred`, the folds' predictions averaged with `weights` (folds,)."""
    if not spec.n_test:
        return spec.rows.test.iloc[:0].assign(pred=np.empty(0, np.float32))
    pred = average([predicted[fold].pred for fold in range(len(weights))], weights)
    return spec.rows.test.assign(**prediction_columns(pred))


def write_submission(folder: RunFolder, rows: Rows, pred: np.ndarray) -> None:
    """Write submission.csv: id, target (or target_0, …), sorted by id."""
    columns = {name.replace("pred", "target"): values for name, values in prediction_columns(pred).items()}
    table = pd.DataFrame({"id": rows.test[rows.id].to_numpy(), **columns})
    folder.write_csv("submission.csv", table.sort_values("id", kind="stable"))


def score_of(score: Score, table: pd.DataFrame, found: Outcome) -> dict[str, Any]:
    """The entries about the score in every metrics.json; `interval` if the task or the bootstrap has one."""
    value = score.of(table["target"].to_numpy(), found.oof)
    known = found.metrics.get("score", {})
    return {"name": score.name, "direction": score.direction, "interval": None} | known | {"oof": value}
