"""The learning rate of each epoch as a pure function: ramp, sustain, then exponential decay or half a cosine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# The notebook's peak for ImageNet weights, per image of the global batch: fine-tuning changes weights little.
PRETRAINED_LR_PER_IMAGE = 1.25e-6
# From scratch, Adam needs far more, and the on-off head four times what a backbone alone takes (docs/science.md has the
# figures). The package's own weights know the task and only learn the sky of other data. Beyond the limit, Adam learns
# less or diverges, so the linear rule stops there.
LR_PER_IMAGE = {"plain": 1.25e-4, "on-off": 5e-4, "cadences": 6.25e-5}
LR_LIMIT = 1.6e-2


@dataclass(frozen=True)
class LearningRate:
    """A schedule with all its values. `start`, `peak`, `floor` are Adam learning rates; the rest are epochs."""

    start: float
    peak: float
    floor: float
    ramp_epochs: float
    sustain_epochs: float
    decay: float | None
    """Factor per epoch; None: half a cosine, which would reach the floor at `epochs`."""
    epochs: int

    def __call__(self, epoch: int) -> float:
        """Learning rate of `epoch` (from 0)."""
        if epoch < self.ramp_epochs:
            return self.start + (self.peak - self.start) / self.ramp_epochs * epoch
        if epoch < self.ramp_epochs + self.sustain_epochs:
            return self.peak
        after = epoch - self.ramp_epochs - self.sustain_epochs
        if self.decay is None:
            part = (
                1 + math.cos(math.pi * after / (self.epochs - self.ramp_epochs - self.sustain_epochs))
            ) / 2
        else:
            part = self.decay**after
        return self.floor + (self.peak - self.floor) * part


def resolve(
    given: Mapping[str, float], *, weights: str, head: str, global_batch: int, epochs: int
) -> LearningRate:
    """Fill in the values that the config leaves open; `given` are the others, by the fields of its `schedule`.

    Pretrained weights get the notebook's numbers: start 5e-6, peak 1.25e-6 x global batch, floor 1e-6, five
    epochs of ramp, decay 0.8. From scratch, those would hardly change the weights in a short run: peak 5e-4 x global
    batch with the on-off head, 1.25e-4 without it (at most 1.6e-2), start a quarter and floor a hundredth of the peak,
    one epoch of ramp, then half a cosine. Weights `cadences` begin at their peak, 6.25e-5 x global batch.
    If the notebook's ramp is longer than the run, it is kept: the run is then all ramp, as in the notebook.
    """
    if weights not in ("none", "cadences"):
        peak = given.get("lr_max", PRETRAINED_LR_PER_IMAGE * global_batch)
        usual = {"lr_start": 5e-6, "lr_min": 1e-6, "ramp_epochs": 5, "decay": 0.8}
    else:
        tuned = weights == "cadences"
        peak = given.get("lr_max", min(LR_PER_IMAGE["cadences" if tuned else head] * global_batch, LR_LIMIT))
        usual = {"lr_start": peak / 4, "lr_min": peak / 100, "ramp_epochs": int(epochs > 1 and not tuned)}
    own = {**usual, **given}
    start, floor, ramp = own["lr_start"], own["lr_min"], own["ramp_epochs"]
    return LearningRate(start, peak, floor, ramp, own["sustain_epochs"], own.get("decay"), epochs)
