"""Fold results to tables: out-of-fold predictions in table order, fold-weighted test predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from setibl_ray.core.errors import SetiblError
from setibl_ray.seti.config import Config


class CoverageError(SetiblError):
    """A row was predicted by no fold, or a fold's predictions do not fit its rows."""


def gather(fold_of_row: np.ndarray, predictions: Mapping[int, np.ndarray]) -> np.ndarray:
    """Scatter each fold's held-out predictions back into table order.

    Args:
      fold_of_row: (n,) the fold that holds a row out.
      predictions: fold -> (m,) probabilities in the order of that fold's held-out rows.

    Returns:
      (n,) float32.

    Raises:
      CoverageError: a fold is missing, or has another number of predictions than rows, or one that is no number.
    """
    out = np.empty(len(fold_of_row), np.float32)
    # One stable sort instead of a scan of all rows per fold: linear in rows, whatever the number of folds.
    order = np.argsort(fold_of_row, kind="stable")
    folds, starts = np.unique(fold_of_row[order], return_index=True)
    for fold, rows in zip(folds.tolist(), np.split(order, starts[1:])):
        if fold not in predictions:
            raise CoverageError(f"fold {fold} has no predictions for its {len(rows)} held-out rows")
        values = predictions[fold]
        if values.shape != rows.shape:
            raise CoverageError(f"fold {fold}: expected {len(rows)} predictions, got shape {values.shape}")
        if not np.isfinite(values).all():
            raise CoverageError(f"fold {fold}: a prediction is not a finite number (training diverged?)")
        out[rows] = values
    return out


def fold_weights(config: Config, aucs: Sequence[float]) -> np.ndarray:
    """(folds,) float64 summing to 1: equal, in proportion to each fold's OOF AUC above chance, or as given."""
    if config.fold_weights == "equal":
        weights = np.ones(len(aucs))
    elif config.fold_weights == "auc":
        weights = np.clip(np.asarray(aucs, np.float64) - 0.5, 0.0, None)
        if weights.sum() == 0:
            weights = np.ones(len(aucs))
    else:
        weights = np.array([float(part) for part in config.fold_weights.split(",")])
    return weights / weights.sum()


def average(predictions: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(t,) float32: weighted mean over folds, added in fold order so that the bytes do not depend on who came first."""
    total = np.zeros(len(predictions[0]), np.float64)
    for values, weight in zip(predictions, weights, strict=True):
        total += weight * values.astype(np.float64)
    return total.astype(np.float32)


def oof_table(
    train: pd.DataFrame, fold_of_row: np.ndarray, pred: np.ndarray, pred_no_tta: np.ndarray
) -> pd.DataFrame:
    """image_id, target, pred, pred_no_tta, fold and the record's group, snr, kind; in table order."""
    return pd.DataFrame(
        {
            "image_id": train["image_id"].to_numpy(),
            "target": train["target"].to_numpy(),
            "pred": pred,
            "pred_no_tta": pred_no_tta,
            "fold": fold_of_row,
            "group": train["group"].to_numpy(),
            "snr": train["snr"].to_numpy(),
            "kind": train["kind"].to_numpy(),
        }
    )
