"""Folds that need no TensorFlow: predictions whose AUC follows from the config, at a known best point."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from ray import cloudpickle

from setibl_ray.core.contract import EpochEnd, FoldResult, Place, Predicted, PredictJob, Started
from setibl_ray.core.randomness import generator

# Worker processes cannot import tests: what is here travels to them by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

BEST = {"schedule.lr-max": 2.5e-3, "augment.dropout-size": 0.06, "augment.strength": 1.3}
BOUNDS = {"schedule.lr-max": (1e-4, 1e-1), "augment.dropout-size": (0.0, 0.2), "augment.strength": (0.0, 2.0)}


def places(values: dict[str, float]) -> np.ndarray:
    """A point in the unit cube, the learning rate on a logarithmic scale."""
    (low, high), lr = BOUNDS["schedule.lr-max"], values["schedule.lr-max"]
    first = math.log(lr / low) / math.log(high / low)
    rest = [
        (values[name] - BOUNDS[name][0]) / (BOUNDS[name][1] - BOUNDS[name][0])
        for name in ("augment.dropout-size", "augment.strength")
    ]
    return np.array([first, *rest])


def distance(values: dict[str, float]) -> float:
    """From the planted optimum, in the unit cube."""
    return float(np.linalg.norm(places(values) - places(BEST)))


def quality(values: dict[str, float]) -> float:
    """1 at the optimum, falling off smoothly."""
    return math.exp(-3 * distance(values) ** 2)


def quality_of(config) -> float:
    peak = config.schedule.lr_max or 5e-2
    found = {"schedule.lr-max": peak, "augment.dropout-size": config.augment.dropout_size}
    return quality({**found, "augment.strength": config.augment.strength})


def trial_beside_me() -> int:
    """Process of the one trial that runs on this Ray."""
    import psutil

    processes = psutil.Process(os.getppid()).children()
    (trial,) = [process for process in processes if "Trainable.train" in process.cmdline()[0]]
    return trial.pid


def toy_task(journal: Path, epoch_s: float = 0.0, trouble: str = "") -> object:
    """A fold task that writes a line `strength fold epoch|done` to `journal` for whatever it does.

    `trouble`: "mixed" fails where strength is above 1.4, and predicts no numbers between 1.05 and that; "all" fails
    always, "data" always with a DataError; "fold" kills the first attempt at each even fold after an epoch, "trial"
    once the process of the trial that it belongs to.
    """
    once = journal.with_name("once")

    def note(text: str) -> None:
        with open(journal, "a") as stream:
            stream.write(text + "\n")

    def task(plan, job):
        from setibl_ray.core.errors import DataError

        config = plan.config
        name = f"{config.augment.strength:.6f}"
        yield Started(job.fold, Place.here("cpu", 1, 1), job.span)
        if isinstance(job, PredictJob):
            pred = np.full(job.span[1] - job.span[0], 0.5, np.float32)
            yield Predicted(job.fold, job.span, pred, pred, {})
            return
        if trouble == "data":
            raise DataError("shard train03-5.tfrec: record 2 is truncated")
        if trouble == "all" or (trouble == "mixed" and config.augment.strength > 1.4):
            raise ValueError("this model cannot be built")
        n_epochs = config.for_fold(job.fold).epochs
        goal = 0.5 + 0.45 * quality_of(config)
        rows = [
            {"epoch": e, "loss": 1.0, "auc": 0.5, "val_loss": 1.0, "images_per_s": 1.0, "lr": 1.0}
            | {"duration_s": epoch_s, "val_auc": 0.5 + (goal - 0.5) * (1 - 0.5 ** (e + 1))}
            for e in range(n_epochs)
        ]  # fmt: skip
        for epoch in range(int(job.state or b"0"), n_epochs):
            time.sleep(epoch_s)
            note(f"{name} {job.fold} {epoch}")
            yield EpochEnd(job.fold, epoch, n_epochs, rows[epoch], str(epoch + 1).encode())
            if trouble == "fold" and job.fold % 2 == job.attempt == epoch == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if trouble == "trial" and job.fold == 1 and not once.exists():
                once.touch()
                os.kill(trial_beside_me(), signal.SIGKILL)
        rows_out = plan.valid_rows(job.fold)
        target = plan.index.train["target"].to_numpy()[rows_out]
        noise = generator(config.seed, "toy", job.fold).normal(size=len(rows_out))
        pred = 1 / (1 + np.exp(-(2 * quality_of(config) * (target - 0.5) + noise)))
        if trouble == "mixed" and config.augment.strength > 1.05:
            pred = np.full(len(rows_out), np.nan)
        pred = pred.astype(np.float32)
        note(f"{name} {job.fold} done")
        yield FoldResult(job.fold, pred, pred, n_epochs - 1, rows, b"weights", {}, 0)

    return task
