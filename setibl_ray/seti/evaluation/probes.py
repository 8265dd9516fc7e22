"""Can this number be trusted? Checks for ways in which a good score can be misleading.

Each check is a dict {"name", "state", "says", …figures}: state is `ok`, `look` (unusual, but may be genuine) or
`problem`. Thresholds are set so that independent noise passes by a wide margin; tests plant each leak, and
run the checks on clean data too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from setibl_ray.core.text import gained
from setibl_ray.seti.evaluation import baselines, metrics, selection
from setibl_ray.seti.evaluation.baselines import Measured
from setibl_ray.seti.evaluation.pixels import Pixels

if TYPE_CHECKING:
    from setibl_ray.seti.evaluation.finished import Run

SAME_BACKGROUND = 0.9  # cosine; the highest of the demo set's half million pairs is 0.66, a copy has 0.99
GIVES_AWAY = 0.97  # AUC of statistics that needles cannot change; normalisation alone gives 0.7
CLOSE = 0.02  # AUC within which statistics count as being as good as the network
SHIFTED = (0.6, 0.8)  # lower bound of train/test AUC from which to look, and from which it is a problem
MIN_GAP = 0.01  # AUC that random folds gain over grouped ones before it counts as a leak
NEIGHBOURS = 5
_BLOCK = 2048  # rows of the cosine matrix in memory at once


class Subject(NamedTuple):
    """The rows that are examined, and their measurements."""

    rows: pd.DataFrame
    train: Measured
    test: Measured | None
    n_panels: int


def examine(run: Run, pixels: Pixels, *, max_rows: int = 5000, seed: int = 0) -> dict[str, Any]:
    """Score the baselines and run every check.

    Args:
      run: its out-of-fold rows and folds are used.
      pixels: its panels.
      max_rows: training and test rows to read at most, drawn at random; about 15 ms each on one core.
      seed: of the draw.

    Returns:
      {"baselines": [...], "trust": [...]} as in metrics.json.
    """
    subject = _measure(run, pixels, max_rows, seed)
    rows = subject.rows
    target, fold = rows["target"].to_numpy(), rows["fold"].to_numpy()
    learned = baselines.out_of_fold(subject.train.statistics, target, fold, seed)
    scored = [
        baselines.score("de-Doppler, ON minus OFF", target, subject.train.line, fold, rows["group"], seed),
        baselines.score("statistics of whole panels", target, learned, fold, rows["group"], seed),
    ]
    simple = {"de-Doppler search": subject.train.line, "statistics of whole panels": learned}
    pairs = near_duplicates(subject.train.background, fold)
    checks = [
        beats_baselines(rows, simple, seed),
        selection.check(run.config.select, run.histories),
        gives_away(rows, subject, learned, seed),
        duplicates(rows, pairs),
        split_groups(rows, subject.train.background, seed),
        train_against_test(subject, seed),
    ]
    return metrics.plain({"baselines": scored, "trust": [check for check in checks if check]})


def _measure(run: Run, pixels: Pixels, max_rows: int, seed: int) -> Subject:
    rng = np.random.default_rng(seed)

    def some(table: pd.DataFrame) -> pd.DataFrame:
        if len(table) <= max_rows:
            return table.reset_index(drop=True)
        return table.iloc[np.sort(rng.choice(len(table), max_rows, replace=False))].reset_index(drop=True)

    rows, test = some(run.oof), some(run.submission)
    measured = baselines.measure(pixels, "train", rows["image_id"].tolist())
    on_test = baselines.measure(pixels, "test", test["image_id"].tolist()) if len(test) else None
    n_panels = measured.statistics.shape[1] // len(baselines.STATISTICS)
    return Subject(rows, measured, on_test, n_panels)


def beats_baselines(rows: pd.DataFrame, simple: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """Is the run better than the best simple method, on the same rows?"""
    target = rows["target"].to_numpy()
    name = max(simple, key=lambda key: metrics.auc(target, simple[key]))
    gain = metrics.difference(target, simple[name], rows["pred"].to_numpy(), rows["group"], seed=seed)
    better = gain["interval"] is not None and gain["interval"][0] > 0
    state = "ok" if better else "look"
    verb = "beats" if better else "is not shown to beat"
    says = f"The run {verb} the best simple method, {name}: AUC {gained(gain, 3)}."
    return {"name": "Better than simple methods", "state": state, "says": says, **gain}


def gives_away(rows: pd.DataFrame, subject: Subject, learned: np.ndarray, seed: int) -> dict[str, Any]:
    """Do statistics that no needle can change (levels of any panel, anything of an OFF panel) reveal the target?"""
    target = rows["target"].to_numpy()
    columns = baselines.unmoved_by_needles(subject.n_panels)
    unmoved = subject.train.statistics[:, columns]
    strength = np.abs(np.array([metrics.auc(target, column) for column in unmoved.T]) - 0.5)
    strongest = int(np.argmax(strength))
    alone = 0.5 + float(strength[strongest])
    together = metrics.auc(target, baselines.out_of_fold(unmoved, target, rows["fold"].to_numpy(), seed))
    name = baselines.statistic_name(columns[strongest], subject.n_panels)
    everything, run = metrics.auc(target, learned), metrics.auc(target, rows["pred"].to_numpy())
    says = (
        f"Among statistics that a needle should not change, the {name} alone reaches AUC {alone:.3f}, all together "
        f"{together:.3f}. All statistics of whole panels reach {everything:.3f}, the run {run:.3f}."
    )
    if max(alone, together) >= GIVES_AWAY:
        state = "problem"
        says += " Something other than the needles separates the classes: check how they were made."
    elif everything > 0.6 and everything > run - CLOSE:
        state = "look"
        says += " The run may have learnt no more than these statistics."
    else:
        state = "ok"
    return {
        "name": "Statistics that give the target away",
        "state": state,
        "says": says,
        "strongest": name,
        "auc": alone,
        "auc_together": together,
        "auc_all_statistics": everything,
    }


class Pairs(NamedTuple):
    """Pairs of cadences in different folds with the same background: row numbers (k,); the highest cosine of all."""

    first: np.ndarray
    second: np.ndarray
    cosine: np.ndarray
    highest: float


def near_duplicates(background: np.ndarray, fold: np.ndarray) -> Pairs:
    """Compare every two unit vectors (n, W) of different folds, a block of rows at a time."""
    first, second, cosine, highest = [], [], [], -1.0
    for start in range(0, len(background), _BLOCK):
        block = background[start : start + _BLOCK] @ background[start:].T
        block[fold[start : start + _BLOCK, None] == fold[None, start:]] = -1.0
        highest = max(highest, float(block.max(initial=-1.0)))
        i, j = np.nonzero(block > SAME_BACKGROUND)
        kept = i < j
        first.append(i[kept] + start)
        second.append(j[kept] + start)
        cosine.append(block[i[kept], j[kept]])
    return Pairs(np.concatenate(first), np.concatenate(second), np.concatenate(cosine), highest)


def duplicates(rows: pd.DataFrame, pairs: Pairs) -> dict[str, Any]:
    """Are cadences cut from the same background in different folds?"""
    n = len(np.union1d(pairs.first, pairs.second))
    result = {"name": "Near-duplicate backgrounds across folds", "n_rows": n, "n_pairs": len(pairs.first),
              "highest_cosine": pairs.highest}  # fmt: skip
    if not n:
        says = (
            f"No two of {len(rows):,} cadences in different folds share a background "
            f"(highest cosine {pairs.highest:.2f})."
        )
        return {**result, "state": "ok", "says": says}
    top = int(np.argmax(pairs.cosine))
    a, b = (rows["image_id"].iloc[side[top]] for side in (pairs.first, pairs.second))
    says = (
        f"{n:,} of {len(rows):,} cadences share their background with one in another fold, for example "
        f"{a} and {b} (cosine {pairs.cosine[top]:.3f}). A model can memorise them: give them the same group "
        "and use --split group."
    )
    return {**result, "state": "problem", "says": says, "example": [a, b]}


def split_groups(rows: pd.DataFrame, background: np.ndarray, seed: int) -> dict[str, Any] | None:
    """Are groups divided between folds, and does knowing their other rows help? None without groups."""
    group, fold, target = rows["group"].to_numpy(), rows["fold"].to_numpy(), rows["target"].to_numpy()
    named = group != ""
    if not named.any() or rows.loc[named, "group"].nunique() < 2:
        return None
    torn = rows[named].groupby("group")["fold"].nunique()
    share = float(rows["group"].isin(torn.index[torn > 1]).mean())
    units, _ = metrics.resampling_units(rows["group"])
    n_folds = max(2, len(np.unique(fold)))
    rng = np.random.default_rng(seed)
    at_random = rng.permutation(len(rows)) % n_folds
    by_group = (rng.permutation(units.max() + 1) % n_folds)[units]
    grouped, random = (neighbours(background, target, folds) for folds in (by_group, at_random))
    gap = metrics.difference(target, grouped, random, rows["group"], seed=seed)
    leaks = gap["interval"] is not None and gap["interval"][0] > MIN_GAP
    state = "problem" if leaks and share > 0 else "ok"
    says = (
        f"{100 * share:.0f} % of the cadences share their group with one in another fold. Guessing from "
        f"the most similar backgrounds gains AUC {gained(gap, 3)} with random folds over grouped ones."
    )
    if state == "problem":
        says += " The folds leak: use --split group."
    return {"name": "Random against grouped folds", "state": state, "says": says, "share_torn": share, **gap}


def neighbours(background: np.ndarray, target: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(n,) mean target of the most similar backgrounds in other folds: a model that only memorises."""
    pred = np.full(len(target), float(target.mean()))
    for start in range(0, len(background), _BLOCK):
        cosine = background[start : start + _BLOCK] @ background.T
        cosine[fold[start : start + _BLOCK, None] == fold[None, :]] = -1.0
        k = min(NEIGHBOURS, cosine.shape[1])
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        # A steep weight: one cadence of the same observation outweighs four unrelated ones.
        weight = np.clip(np.take_along_axis(cosine, nearest, axis=1), 1e-3, 1) ** 4
        pred[start : start + _BLOCK] = (weight * target[nearest]).sum(axis=1) / weight.sum(axis=1)
    return pred


def train_against_test(subject: Subject, seed: int) -> dict[str, Any] | None:
    """Can a classifier distinguish training from test cadences by their statistics? None without a test set."""
    if subject.test is None:
        return None
    features = np.concatenate([subject.train.statistics, subject.test.statistics])
    label = np.repeat([0, 1], [len(subject.train.line), len(subject.test.line)])
    fold = np.random.default_rng(seed).permutation(len(label)) % 5
    pred = baselines.out_of_fold(features, label, fold, seed)
    auc = metrics.auc(label, pred)
    low, high = metrics.bootstrap_auc(label, pred, np.arange(len(label)), seed=seed) or (np.nan, np.nan)
    state = "ok" if not low > SHIFTED[0] else "look" if not low > SHIFTED[1] else "problem"
    says = f"A classifier tells training from test cadences with AUC {auc:.3f} [{low:.3f}, {high:.3f}]."
    if state != "ok":
        says += " Their data differ: expect a different score on the test set."
    return {"name": "Train against test", "state": state, "says": says, "auc": auc, "interval": [low, high]}
