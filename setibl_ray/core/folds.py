"""Which fold holds out which training row, decided and checked before anything is trained."""

from __future__ import annotations

import numpy as np
import pandas as pd

from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.seti.config import Config


def assign(config: Config, train: pd.DataFrame, n_shards: int, where: str) -> np.ndarray:
    """Give every training row its fold.

    Args:
      config: `folds`, `split` and `seed` decide.
      train: the training table; `shard`, `target` and, for `--split group`, `group`.
      n_shards: number of training shards.
      where: the data's folder, for messages.

    Returns:
      (n,) int16 in 0 … folds-1. With `--split shards` whole shards, by scikit-learn's shuffled KFold (the
      seed's way); with `stratified` and `group` rows, by StratifiedKFold and StratifiedGroupKFold.

    Raises:
      ConfigError: fewer shards, rows of a class or groups than folds.
      DataError: `--split group` without groups, or a fold whose held-out or training part has one class only.
    """
    from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

    folds, seed = config.folds, config.seed
    target = train["target"].to_numpy()
    fold_of_row = np.full(len(train), -1, np.int16)
    if config.split == "shards":
        if n_shards < folds:
            raise ConfigError(
                f"folds: {folds} folds need at least {folds} training shards, but {where} has {n_shards}. "
                f"Lower --folds, take --split stratified, or pack again with --shards {folds} or more."
            )
        shard = train["shard"].to_numpy()
        splitter = KFold(folds, shuffle=True, random_state=seed)
        for fold, (_, held_out) in enumerate(splitter.split(np.arange(n_shards))):
            fold_of_row[np.isin(shard, held_out)] = fold
    else:
        rarest = int(np.bincount(target, minlength=2).min())
        if rarest < folds:
            raise ConfigError(
                f"folds: {folds} folds need {folds} records of each class, but {where} has {rarest} of one. "
                "Lower --folds."
            )
        if config.split == "stratified":
            splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(target, target)
        else:
            group = train["group"]
            if group.isna().any() or (group == "").any():
                raise DataError(
                    f"split: --split group needs a group in every record, but {where} has "
                    f"{int((group.isna() | (group == '')).sum())} without one. Take --split stratified or shards."
                )
            if group.nunique() < folds:
                raise ConfigError(
                    f"folds: {folds} folds need {folds} groups, but {where} has {group.nunique()}. "
                    "Lower --folds, or take --split stratified."
                )
            splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(target, target, group)
        for fold, (_, rows) in enumerate(splits):
            fold_of_row[rows] = fold
    check_partition(fold_of_row, target, folds)
    return fold_of_row


def check_partition(fold_of_row: np.ndarray, target: np.ndarray, folds: int) -> None:
    """Every row in one fold; both classes in every fold's held-out and training part.

    Raises:
      DataError: otherwise (a fold with one class has no AUC).
    """
    if fold_of_row.min(initial=0) < 0 or fold_of_row.max(initial=0) >= folds:
        raise DataError(f"{int((fold_of_row < 0).sum())} training rows belong to no fold")
    for fold in range(folds):
        held_out = fold_of_row == fold
        for part, name in ((target[held_out], "held-out"), (target[~held_out], "training")):
            classes = np.unique(part)
            if len(classes) < 2:
                found = "no records" if len(part) == 0 else f"only target {int(classes[0])}"
                raise DataError(
                    f"fold {fold}: the {name} part has {found} among its {len(part)} records, and AUC needs both "
                    "classes. Pack stratified shards, lower --folds, or take --split stratified."
                )
