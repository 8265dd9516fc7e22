"""Post-processing by group: cadences of one target or one sky patch inform each other's scores.

A hook is a function of a table (image_id, pred, group) that returns new scores (n,) in [0, 1]. It never sees
targets, so applying it to out-of-fold and test predictions alike leaks nothing. It is one of the built-in
names, or `module:function`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable

import numpy as np
import pandas as pd

from setibl_ray.errors import ConfigError

Hook = Callable[[pd.DataFrame], np.ndarray]

SHARE = 0.3  # of a group's mean in `group-mean`


def group_mean(table: pd.DataFrame) -> np.ndarray:
    """Pull each score towards the mean of its group: helps where groups are all needle or all haystack."""
    return (1 - SHARE) * table["pred"].to_numpy() + SHARE * _of_group(table, "mean")


def group_max(table: pd.DataFrame) -> np.ndarray:
    """Pull each score towards the highest of its group: helps where one clear view proves the others."""
    return (1 - SHARE) * table["pred"].to_numpy() + SHARE * _of_group(table, "max")


def group_best(table: pd.DataFrame) -> np.ndarray:
    """Halve every score but the highest of its group: helps where a group holds at most one needle."""
    pred = table["pred"].to_numpy()
    return np.where(pred >= _of_group(table, "max"), pred, pred / 2)


def _of_group(table: pd.DataFrame, statistic: str) -> np.ndarray:
    return table.groupby("group")["pred"].transform(statistic).to_numpy(np.float64)


BUILT_IN: dict[str, Hook] = {"group-mean": group_mean, "group-max": group_max, "group-best": group_best}


def find(name: str) -> Hook:
    """Look a hook up.

    Raises:
      ConfigError: no such built-in, module or function.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        raise ConfigError(f"postprocess: expected {', '.join(BUILT_IN)} or module:function; got {name!r}")
    try:
        hook = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"postprocess: {name} cannot be imported: {error}") from None
    if not callable(hook):
        raise ConfigError(f"postprocess: {name} is a {type(hook).__name__}, expected a function")
    return hook


def apply(name: str, image_ids: pd.Series, pred: np.ndarray, group: pd.Series) -> np.ndarray:
    """Apply a hook to the rows that have a group; the others keep their scores.

    Args:
      name: of the hook.
      image_ids: (n,).
      pred: (n,) scores in [0, 1].
      group: (n,) group of each row, "" for none.

    Returns:
      (n,) float64 in [0, 1].

    Raises:
      ConfigError: the hook does not exist, no row has a group, or the hook returns anything else.
    """
    hook = find(name)
    grouped = (group.fillna("").astype(str) != "").to_numpy()
    if not grouped.any():
        raise ConfigError(f"postprocess: {name} works on groups, but none of the {len(pred)} rows has one")
    table = pd.DataFrame(
        {
            "image_id": image_ids.to_numpy(),
            "pred": np.asarray(pred, np.float64),
            "group": group.astype(str).to_numpy(),
        }
    )[grouped].reset_index(drop=True)
    changed = np.asarray(hook(table.copy()), np.float64)
    if changed.shape != (len(table),) or not ((changed >= 0) & (changed <= 1)).all():
        raise ConfigError(
            f"postprocess: expected {len(table)} scores in [0, 1] from {name}, got shape {changed.shape}"
        )
    out = np.asarray(pred, np.float64).copy()
    out[grouped] = changed
    return out
