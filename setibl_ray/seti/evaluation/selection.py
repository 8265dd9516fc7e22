"""How much choosing the best epoch by the held-out rows would raise their score.

The highest of a dozen noisy AUCs is too high. Each row of history.csv has the AUC of two random halves of the held-out
rows: the epoch that is best on one half scores honestly on the other, and too high on its own. The difference is that
of half as many rows, so it is divided by the square root of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

HALVES = ("val_auc_half_1", "val_auc_half_2")
RANK = {"last": "epoch", "inner": "inner_auc", "held-out": "val_auc"}
"""Column of history.csv whose highest value names the epoch that is kept, by `select`."""


def rank(select: str, row: Mapping[str, float]) -> float:
    """What an epoch's row of history.csv is ranked by; -1, behind all others, where training had diverged."""
    value = row[RANK[select]] if np.isfinite(row["val_auc"]) else np.nan
    return float(value) if np.isfinite(value) else -1.0


def optimism(histories: Mapping[int, pd.DataFrame]) -> float | None:
    """Mean over folds of what choosing the best epoch adds to AUC; None if a history lacks the halves."""
    gains = []
    for past in histories.values():
        halves = past.reindex(columns=list(HALVES)).dropna().to_numpy(np.float64)
        if not len(halves):
            return None
        first, second = halves[halves.argmax(axis=0)]  # the scores of the epoch that each half would choose
        gains.append((first[0] + second[1] - first[1] - second[0]) / 2)
    return float(np.mean(gains) / np.sqrt(2)) if gains else None


def check(select: str, histories: Mapping[int, pd.DataFrame]) -> dict[str, Any]:
    """A row of "can you trust this number": how each fold's epoch was chosen, and what that adds to its score."""
    gain = optimism(histories)
    about = "" if gain is None else f"; the best epoch by the held-out rows would add about {gain:.4f} to AUC"
    says = {
        "last": f"the last one was kept{about}",
        "inner": f"by a tenth of the training rows, which were not trained on{about}",
        "held-out": "by the rows that are scored, which adds "
        + ("an unknown amount to AUC" if gain is None else f"about {gain:.4f} to AUC"),
    }[select]
    state = "look" if select == "held-out" else "ok"
    return {
        "name": "How epochs were chosen",
        "state": state,
        "says": says,
        "select": select,
        "optimism": gain,
    }
