"""Is the best trial better than the base config beyond noise, and is it so again with other seeds?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # quantile of Student's t; of the normal for infinite freedom

from setibl_ray.seti.evaluation import metrics

LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """AUC of one config minus AUC of the base config on the same rows.

    Attributes:
      gain: the difference.
      low, high: its interval, at 95 % for all comparisons together.
      n_tried: comparisons that the interval is corrected for.
      n_seeds: repetitions averaged.
    """

    gain: float
    low: float
    high: float
    n_tried: int
    n_seeds: int = 1

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def interval(self) -> str:
        return f"[{self.low:+.4f} – {self.high:+.4f}]"

    @property
    def corrected(self) -> str:
        return f"corrected for {self.n_tried} trials" if self.n_tried > 1 else ""

    @property
    def figures(self) -> str:
        over = f"over {self.n_seeds} other seeds" if self.n_seeds > 1 else ""
        return ", ".join(filter(None, (f"{self.gain:+.4f} AUC {self.interval}", self.corrected, over)))

    def __str__(self) -> str:
        verdict = "beyond noise" if self.beyond_noise else "within noise: these rows cannot tell them apart"
        return f"{self.figures}: {verdict}"


def against_base(best: pd.DataFrame, base: pd.DataFrame, group: pd.Series, n_tried: int) -> Comparison:
    """Compare the best of `n_tried` trials with the base config by a paired bootstrap.

    The best of many noisy figures looks better than it is. Bonferroni's correction over every trial that was
    tried, stopped ones too, keeps the chance of any false claim at 5 %; trials are alike, so it is on the safe side.
    Its tails lie beyond what a bootstrap can draw, hence the normal interval around the bootstrap's spread.

    Args:
      best, base: oof.csv of the two, same rows in the same order: target, pred.
      group: (n,) what is resampled together, "" for none.
      n_tried: trials besides the base config.
    """
    found = metrics.difference(
        base["target"].to_numpy(), base["pred"].to_numpy(), best["pred"].to_numpy(), group
    )
    return _comparison(found["difference"], _spread(found), max(n_tried, 1), 1)


def confirmed(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], groups: Sequence[pd.Series]) -> Comparison:
    """Compare two configs that were fixed beforehand, over repetitions with other seeds.

    Args:
      pairs: oof.csv of (best, base), one pair per seed.
      groups: what is resampled together, for each pair.
    """
    found = [
        metrics.difference(base["target"].to_numpy(), base["pred"].to_numpy(), best["pred"].to_numpy(), group)
        for (best, base), group in zip(pairs, groups)
    ]
    gains = np.array([one["difference"] for one in found])
    # All seeds predict the same rows: their sampling noise does not average out. What training adds does.
    rows = float(np.mean([_spread(one) for one in found]))
    seeds = float(gains.std(ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    spread = math.hypot(rows, seeds)
    # Welch and Satterthwaite: a spread over few seeds is itself uncertain, and counts as it weighs beside the rows'.
    freedom = (len(gains) - 1) * (spread / seeds) ** 4 if seeds else math.inf
    return _comparison(float(gains.mean()), spread, 1, len(gains), freedom)


def _spread(found: dict[str, Any]) -> float:
    """Standard error of a difference, from the 95 % bootstrap interval around it."""
    low, high = found["interval"]
    return (high - low) / (2 * NormalDist().inv_cdf(0.5 + LEVEL / 2))


def _comparison(
    gain: float, spread: float, n_tried: int, n_seeds: int, freedom: float = math.inf
) -> Comparison:
    reach = float(stdtrit(freedom, 1 - (1 - LEVEL) / 2 / n_tried)) * spread
    return Comparison(gain, gain - reach, gain + reach, n_tried, n_seeds)
