"""Is the best trial better than the base config beyond noise, also with other seeds?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # quantile of Student's t; of the normal for infinite freedom

from setibl_ray.core.task import Score, predictions

LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """Score of one config minus score of the base config on the same rows.

    Attributes:
      score: how they are judged.
      gain: the difference.
      low, high: its interval, at 95 % for all comparisons together.
      n_tried: comparisons that the interval is corrected for.
      n_seeds: repetitions averaged.
    """

    score: Score
    gain: float
    low: float
    high: float
    n_tried: int
    n_seeds: int = 1

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def is_better(self) -> bool:
        return self.beyond_noise and self.score.sign * self.gain > 0

    @property
    def interval(self) -> str:
        if not math.isfinite(self.high - self.low):
            return "without an interval: all rows are of one group"
        return f"[{self.low:+.4f} – {self.high:+.4f}]"

    @property
    def corrected(self) -> str:
        return f"corrected for {self.n_tried} trials" if self.n_tried > 1 else ""

    @property
    def figures(self) -> str:
        over = f"over {self.n_seeds} other seeds" if self.n_seeds > 1 else ""
        return ", ".join(
            filter(None, (f"{self.gain:+.4f} {self.score.label} {self.interval}", self.corrected, over))
        )

    def __str__(self) -> str:
        verdict = "beyond noise" if self.beyond_noise else "within noise: these rows cannot tell them apart"
        return f"{self.figures}: {verdict}"


def against_base(
    score: Score, best: pd.DataFrame, base: pd.DataFrame, group: pd.Series | None, n_tried: int
) -> Comparison:
    """Compare the best of `n_tried` trials with the base config by a paired bootstrap.

    The best of many noisy figures looks better than it is. Bonferroni's correction over every trial, including
    stopped ones, keeps the chance of any false claim at 5 %; it is conservative, as trials are similar.
    Its tails are beyond what a bootstrap can draw, hence a normal interval with the bootstrap's standard error.

    Args:
      score: how they are judged.
      best, base: oof.csv of the two, same rows in the same order.
      group: (n,) what is resampled together, "" for none.
      n_tried: trials besides the base config.
    """
    gain, spread = _compared(score, best, base, group)
    return _comparison(score, gain, spread, max(n_tried, 1), 1)


def confirmed(
    score: Score, pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], group: pd.Series | None
) -> Comparison:
    """Compare two configs that were fixed beforehand, over repetitions with other seeds.

    Args:
      score: how they are judged.
      pairs: oof.csv of (best, base), one pair per seed.
      group: (n,) what is resampled together, "" for none.
    """
    found = [_compared(score, best, base, group) for best, base in pairs]
    gains = np.array([gain for gain, _ in found])
    # All seeds predict the same rows, so the noise of sampling rows does not average out; that of training does.
    rows = float(np.mean([spread for _, spread in found]))
    seeds = float(gains.std(ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    spread = math.hypot(rows, seeds)
    # Welch and Satterthwaite: a spread over few seeds is itself uncertain; it counts by its share of the total.
    freedom = (len(gains) - 1) * (spread / seeds) ** 4 if seeds else math.inf
    return _comparison(score, float(gains.mean()), spread, 1, len(gains), freedom)


def _compared(
    score: Score, best: pd.DataFrame, base: pd.DataFrame, group: pd.Series | None
) -> tuple[float, float]:
    return score.compare(base["target"].to_numpy(), predictions(base), predictions(best), group)


def _comparison(
    score: Score, gain: float, spread: float, n_tried: int, n_seeds: int, freedom: float = math.inf
) -> Comparison:
    reach = float(stdtrit(freedom, 1 - (1 - LEVEL) / 2 / n_tried)) * spread
    return Comparison(score, gain, gain - reach, gain + reach, n_tried, n_seeds)
