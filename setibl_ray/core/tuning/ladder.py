"""How trials are compared: the steps through a trial's folds and epochs, and its score at each step.

A trial runs its folds in waves of as many as it has slots. A step is over when every fold of the wave has
finished that epoch, so at any step all trials of a sweep have trained the same epochs on the same folds,
whichever fold was faster. Before the first wave ends, a trial's score is the mean of its folds' best held-out scores so
far; then it is the out-of-fold score of the finished waves, which after the last wave is the sweep's objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from setibl_ray.core.task import Score


@dataclass(frozen=True)
class Step:
    """One step at which trials can be compared.

    Attributes:
      number: from 0.
      folds: folds of the wave.
      epoch: the epoch that all of them have finished.
      ends_wave: whether it is over only when they have results, not just finished their last epoch.
      fold_epochs: epochs of all folds so far.
    """

    number: int
    folds: tuple[int, ...]
    epoch: int
    ends_wave: bool
    fold_epochs: int


def ladder(epochs: Sequence[int], slots: int) -> list[Step]:
    """Steps of a trial whose fold k trains `epochs[k]` epochs, `slots` folds at once; 0 epochs count as one."""
    epochs = [max(1, n) for n in epochs]
    steps: list[Step] = []
    spent = 0
    for first in range(0, len(epochs), slots):
        wave = tuple(range(first, min(first + slots, len(epochs))))
        longest = max(epochs[fold] for fold in wave)
        for epoch in range(longest):
            spent += sum(epoch < epochs[fold] for fold in wave)
            steps.append(Step(len(steps), wave, epoch, epoch == longest - 1, spent))
    return steps


def first_compared(steps: Sequence[Step], grace_epochs: int, score: Score) -> Step:
    """The first step at which a trial may be stopped: after the grace, but not before there are scores to compare.

    A score without a column of its own in a fit's steps is only known when the first wave has ended.
    """
    return next(
        (step for step in steps if step.epoch + 1 >= grace_epochs and (score.step or step.ends_wave)),
        steps[-1],
    )


def slots_for(folds: int, available: int) -> int:
    """Folds that a trial runs at once: the most that fit and divide `folds`, so that all slots end together."""
    return max(slots for slots in range(1, folds + 1) if folds % slots == 0 and slots <= max(available, 1))


@dataclass
class Standing:
    """Progress of a trial.

    Attributes:
      steps: its ladder.
      target: (n,) of every training row.
      fold_of_row: (n,) the fold that holds a row out.
      score: how its predictions are judged.
    """

    steps: Sequence[Step]
    target: np.ndarray
    fold_of_row: np.ndarray
    score: Score
    seen: dict[int, dict[int, float]] = field(default_factory=dict)  # fold -> step -> held-out score
    results: dict[int, np.ndarray] = field(default_factory=dict)  # fold -> out-of-fold predictions
    _next: int = 0

    def saw_step(self, fold: int, step: int, score: float) -> None:
        self.seen.setdefault(fold, {})[step] = score

    def saw_result(self, fold: int, pred: np.ndarray) -> None:
        self.results[fold] = pred

    @property
    def spent(self) -> int:
        """Steps of all folds, including those beyond the last common one; a fold without steps counts as one."""
        without = sum(fold not in self.seen for fold in self.results)
        return sum(len(steps) for steps in self.seen.values()) + without

    def reached(self) -> list[tuple[Step, float]]:
        """Steps that are finished and have not been reported yet, with the score at each."""
        out = []
        while self._next < len(self.steps) and self._is_over(self.steps[self._next]):
            step = self.steps[self._next]
            out.append((step, self.at(step)))
            self._next += 1
        return out

    def _is_over(self, step: Step) -> bool:
        if step.ends_wave:
            return all(fold in self.results for fold in step.folds)
        return all(
            fold in self.results or max(self.seen.get(fold, {-1: 0.0})) >= step.epoch for fold in step.folds
        )

    def at(self, step: Step) -> float:
        done = range(step.folds[-1] + 1) if step.ends_wave else range(step.folds[0])
        if done:
            return pooled(
                self.score, self.target, self.fold_of_row, {fold: self.results[fold] for fold in done}
            )
        return self.wave_score(step)

    def wave_score(self, step: Step) -> float:
        """Mean over the step's wave of each fold's best held-out score up to the step's epoch."""
        best = []
        for fold in step.folds:
            seen = self.seen.get(fold, {}).items()
            finite = [score for epoch, score in seen if epoch <= step.epoch and np.isfinite(score)]
            best.append(max(finite, key=lambda score: self.score.sign * score, default=self.score.worst))
        return float(np.mean(best))


def pooled(
    score: Score, target: np.ndarray, fold_of_row: np.ndarray, results: Mapping[int, np.ndarray]
) -> float:
    """Score of the predictions of some folds over their rows together; the worst if one is not a number."""
    # In the order of the rows, as a run's own score: a sum of floats depends on it.
    rows = np.concatenate([(fold_of_row == fold).nonzero()[0] for fold in results])
    order = np.argsort(rows)
    return score.of(target[rows[order]], np.concatenate(list(results.values()))[order])
