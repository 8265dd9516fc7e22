"""What is done to scores after the folds: a hook by group, then calibration; the same for `cv` and `blend`.

A hook adjusts scores within groups, such as cadences of one target or one patch of sky. It is a function of a table
(image_id, pred, group) that returns new scores (n,) in [0, 1]: one of the built-in names, or `module:function`. It
never sees targets. It is given the held-out rows of one fold at a time, because a row of the same group in another fold
was scored by a model that trained on this row's target; it is given the test set whole.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from setibl_ray.core.errors import ConfigError
from setibl_ray.seti.evaluation import calibration, metrics

Hook = Callable[[pd.DataFrame], np.ndarray]

SHARE = 0.3  # of a group's mean in `group-mean`


def group_mean(table: pd.DataFrame) -> np.ndarray:
    """Pull each score towards the mean of its group: helps where groups are all needle or all haystack."""
    return (1 - SHARE) * table["pred"].to_numpy() + SHARE * _of_group(table, "mean")


def group_max(table: pd.DataFrame) -> np.ndarray:
    """Pull each score towards the highest of its group: helps where one clear detection confirms the others."""
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
        raise ConfigError(
            f"postprocess: expected none, {', '.join(BUILT_IN)} or module:function; got {name!r}"
        )
    try:
        hook = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"postprocess: {name} cannot be imported: {error}") from None
    if not callable(hook):
        raise ConfigError(f"postprocess: {name} is a {type(hook).__name__}, expected a function")
    return hook


def check(name: str, groups: Mapping[str, pd.Series]) -> None:
    """Refuse, before anything is trained, a hook that cannot be applied to both training and test rows.

    Args:
      name: of the hook, or none.
      groups: (n,) group of each row of the training or test set, "" or missing for none; an empty set is skipped.

    Raises:
      ConfigError: the hook does not exist, or a set has no groups.
    """
    if name == "none":
        return
    find(name)
    for split, group in groups.items():
        if len(group) and not has_group(group).any():
            raise ConfigError(
                f"postprocess: {name} works on groups, but none of the {len(group)} {split} records has one"
            )


def has_group(group: pd.Series) -> np.ndarray:
    """(n,) bool."""
    return (group.fillna("").astype(str) != "").to_numpy()


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
      ConfigError: the hook does not exist, or returns anything else.
    """
    hook, grouped = find(name), has_group(group)
    out = np.array(pred, np.float64)
    if not grouped.any():
        return out
    table = pd.DataFrame(
        {"image_id": image_ids.to_numpy(), "pred": out, "group": group.astype(str).to_numpy()}
    )[grouped].reset_index(drop=True)
    changed = np.asarray(hook(table.copy()), np.float64)
    if changed.shape != (len(table),):
        raise ConfigError(f"postprocess: expected {len(table)} scores from {name}, got shape {changed.shape}")
    outside = ~((changed >= 0) & (changed <= 1))
    if outside.any():
        raise ConfigError(
            f"postprocess: expected scores in [0, 1] from {name}, got {changed[outside][0]} "
            f"for {table['image_id'][outside].iloc[0]}"
        )
    out[grouped] = changed
    return out


class Finished(NamedTuple):
    """Final scores.

    Attributes:
      oof: (n,) float64 in [0, 1].
      test: (t,) likewise.
      report: `postprocess` and `calibration`, each only if requested: scores before and after, and the
        paired difference with its interval, as in metrics.json.
    """

    oof: np.ndarray
    test: np.ndarray
    report: dict[str, Any]


def finish(
    oof: pd.DataFrame, test: pd.DataFrame, *, postprocess: str, calibrate: calibration.Asked, seed: int = 0
) -> Finished:
    """Post-process, then calibrate, out-of-fold and test scores alike.

    Args:
      oof: image_id, target, pred, fold, group.
      test: image_id, pred, group; may have no rows.
      postprocess: name of a hook, or none.
      calibrate: isotonic, platt or none. Out-of-fold rows are calibrated without their own fold, test rows by all.
      seed: of the intervals.

    Raises:
      ConfigError: what `check` and `apply` raise.
      DataError: all rows outside some fold are of one class, so nothing can be calibrated.
    """
    check(postprocess, {"training": oof["group"], "test": test["group"]})
    target, fold, group = oof["target"].to_numpy(), oof["fold"].to_numpy(), oof["group"]
    pred, test_pred = oof["pred"].to_numpy(np.float64), test["pred"].to_numpy(np.float64)
    report: dict[str, Any] = {}
    if postprocess != "none":
        after = np.empty(len(pred))
        for k in np.unique(fold):
            held = fold == k
            after[held] = apply(postprocess, oof["image_id"][held], pred[held], group[held])
        test_pred = apply(postprocess, test["image_id"], test_pred, test["group"])
        report["postprocess"] = {
            "hook": postprocess,
            **_before_and_after(target, pred, after),
            "effect": metrics.difference(target, pred, after, group, seed=seed),
        }
        pred = after
    if calibrate != "none":
        after = calibration.cross_calibrate(calibrate, target, pred, fold)
        if len(test_pred):
            test_pred = calibration.fit(calibrate, target, pred)(test_pred)
        report["calibration"] = {
            "method": calibrate,
            **_before_and_after(target, pred, after),
            "brier_effect": metrics.mean_difference(
                (pred - target) ** 2, (after - target) ** 2, group, seed=seed
            ),
        }
        pred = after
    return Finished(pred, test_pred, metrics.plain(report))


def _before_and_after(target: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    scores = {"auc": metrics.auc, "brier": calibration.brier, "ece": calibration.expected_calibration_error}
    return {
        f"{name}_{when}": score(target, pred)
        for name, score in scores.items()
        for when, pred in (("before", before), ("after", after))
    }
