"""The fold that holds out each training row, decided and checked before anything is trained."""

from __future__ import annotations

import inspect
import os

import numpy as np
import pandas as pd

from setibl_ray.core.config import Config
from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.core.storage import filesystem, reaching
from setibl_ray.core.tables import from_csv
from setibl_ray.core.task import Rows
from setibl_ray.core.terminal import one_line

UNITS = ("units", "shards")
NAMES = ("rows", *UNITS, "stratified", "group")


def assign(config: Config, rows: Rows) -> np.ndarray:
    """Give every training row its fold.

    Args:
      config: `folds`, `split` and `seed` decide.
      rows: `unit`, `target` or `group` are used by the splits of these names.

    Returns:
      (n,) int16 in 0 … folds-1. `rows` and `units` are scikit-learn's shuffled KFold over those, `stratified` is
      StratifiedKFold, `group` is StratifiedGroupKFold if targets are classes and otherwise GroupKFold.

    Raises:
      ConfigError: no such split; fewer rows, units, rows of a class or groups than folds.
      DataError: groups are missing, or a split file does not fit the rows.
    """
    if is_file(config.split):
        fold_of_row = _from_file(config, rows)
    elif config.split in UNITS:
        fold_of_row = _by_unit(config, rows)
    else:
        fold_of_row = _by_splitter(config, rows)
    counts = np.bincount(fold_of_row[fold_of_row >= 0], minlength=config.folds)
    if (fold_of_row < 0).any() or not counts.all():
        empty = np.flatnonzero(counts == 0)
        what = f"fold {empty[0]} holds out no rows" if len(empty) else "some rows belong to no fold"
        raise DataError(f"split: {what} of {rows.root}. Lower --folds, or take another --split.")
    return fold_of_row


def divided_groups(rows: Rows, fold_of_row: np.ndarray) -> str:
    """A warning about groups with rows in several folds; empty if there are none, or fewer groups than folds."""
    if rows.group is None:
        return ""
    group = rows.group.replace("", None)
    fold = pd.Series(fold_of_row).groupby(group.to_numpy())
    n_divided = int((fold.nunique() > 1).sum())
    if not n_divided or fold.ngroups <= fold_of_row.max():
        return ""
    how = "; --split group keeps each in one" if group.notna().all() else ""
    return f"{n_divided} groups have rows in more than one fold, so scores may be better than for new groups{how}"


def is_file(split: str) -> bool:
    return split.endswith(".csv") or os.sep in split


def _by_unit(config: Config, rows: Rows) -> np.ndarray:
    from sklearn.model_selection import KFold

    if "unit" not in rows.table:
        raise ConfigError(f"split: {rows.root} has no units. Take --split rows, stratified or group.")
    unit, folds = rows.table["unit"].to_numpy(), config.folds
    n_units = max(int(rows.about.get("n_units", 0)), int(unit.max(initial=-1)) + 1)
    if n_units < folds:
        raise ConfigError(
            f"folds: {folds} folds need at least {folds} training {config.split}, but {rows.root} has {n_units}. "
            f"Lower --folds, take --split stratified, or divide the rows into more {config.split}."
        )
    fold_of_row = np.full(len(unit), -1, np.int16)
    splitter = KFold(folds, shuffle=True, random_state=config.seed)
    for fold, (_, held_out) in enumerate(splitter.split(np.arange(n_units))):
        fold_of_row[np.isin(unit, held_out)] = fold
    return fold_of_row


def _by_splitter(config: Config, rows: Rows) -> np.ndarray:
    from sklearn import model_selection
    from sklearn.utils.multiclass import type_of_target

    target = rows.target
    numbers = np.issubdtype(target.dtype, np.floating)  # though all of them may be whole
    in_classes = not numbers and type_of_target(target) in ("binary", "multiclass")
    name = {
        "rows": "KFold",
        "stratified": "StratifiedKFold",
        "group": "StratifiedGroupKFold" if in_classes else "GroupKFold",
    }.get(config.split, config.split)
    splitter_type = getattr(model_selection, name, None) if name.endswith("Fold") else None
    if splitter_type is None:
        raise ConfigError(
            f"split: expected {', '.join(NAMES)}, a splitter of scikit-learn such as GroupKFold, or a CSV file; "
            f"got {config.split!r}"
        )
    if "Stratified" in name:
        _check_classes(config, target, in_classes, rows.root)
    group = _groups(config, rows) if "Group" in name else None
    if len(target) < config.folds:
        raise ConfigError(
            f"folds: {config.folds} folds need as many rows, but {rows.root} has {len(target)}."
        )
    options = {"n_splits": config.folds, "shuffle": True, "random_state": config.seed}
    accepted = inspect.signature(splitter_type).parameters
    splitter = splitter_type(**{key: value for key, value in options.items() if key in accepted})
    fold_of_row = np.full(len(target), -1, np.int16)
    for fold, (_, held_out) in enumerate(splitter.split(target, target, group)):
        fold_of_row[held_out] = fold
    return fold_of_row


def _check_classes(config: Config, target: np.ndarray, in_classes: bool, where: str) -> None:
    if not in_classes:
        raise ConfigError(
            "split: stratified needs classes, but these targets are numbers. Take --split rows or group."
        )
    rarest = int(np.unique(target, return_counts=True)[1].min()) if len(np.unique(target)) > 1 else 0
    if rarest < config.folds:
        raise ConfigError(
            f"folds: {config.folds} folds need {config.folds} records of each class, but {where} has {rarest} of one. "
            "Lower --folds."
        )


def _groups(config: Config, rows: Rows) -> pd.Series:
    group = rows.group if rows.group is not None else pd.Series([""] * len(rows.table))
    without = int((group.isna() | (group == "")).sum())
    if without:
        raise DataError(
            f"split: --split group needs a group in every record, but {rows.root} has {without} without one. "
            "Take --split stratified or rows."
        )
    if group.nunique() < config.folds:
        raise ConfigError(
            f"folds: {config.folds} folds need {config.folds} groups, but {rows.root} has {group.nunique()}. "
            "Lower --folds, or take --split stratified."
        )
    return group


def _from_file(config: Config, rows: Rows) -> np.ndarray:
    """The folds of a CSV file: one line per row with its id and its fold, 0 … folds-1."""
    table = _read_table(config.split)
    for column in (rows.id, "fold"):
        if column not in table:
            raise DataError(
                f"split: {config.split} has no column {column!r}, only {', '.join(table.columns)}"
            )
    if table[rows.id].duplicated().any():
        twice = table.loc[table[rows.id].duplicated(), rows.id].iloc[0]
        raise DataError(f"split: {config.split}: {rows.id} {twice!r} appears twice")
    fold = pd.to_numeric(table["fold"], errors="coerce")
    wrong = ~fold.isin(range(config.folds))
    if wrong.any():
        line = table[wrong].iloc[0]
        raise DataError(
            f"split: {config.split}: expected a fold from 0 to {config.folds - 1} for {rows.id} {line[rows.id]!r}, got "
            f"{line['fold']!r}. Give --folds as many folds as the file has."
        )
    of_id = pd.Series(fold.to_numpy(), index=table[rows.id])
    found = rows.table[rows.id].map(of_id)
    if found.isna().any():
        lacking = rows.table.loc[found.isna(), rows.id].iloc[0]
        raise DataError(
            f"split: {config.split} has no line for {int(found.isna().sum())} training rows, the first {lacking!r}"
        )
    return found.to_numpy(np.int16)


def _read_table(path: str) -> pd.DataFrame:
    fs, place = filesystem(path)
    with reaching(path, "read", DataError):
        try:
            content = fs.cat_file(place)
        except FileNotFoundError:
            raise DataError(f"split: {path}: there is no such file") from None
    try:
        return from_csv(content, text=None)
    except ValueError as error:
        raise DataError(f"split: {path} is no CSV file: {one_line(error)}") from None
