"""Folds that need no TensorFlow: predictions whose AUC follows from the config, at a known best point."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel
from ray import cloudpickle

from setibl_ray.core.errors import DataError
from setibl_ray.core.randomness import generator
from setibl_ray.core.task import Fitted, Needs, Rows, Score, Step, Task
from setibl_ray.seti.task import CadenceTask

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


class ToyTask(CadenceTask):
    """Cadences whose folds write a line `strength fold epoch|done` to `journal` for whatever they do.

    `trouble`: "mixed" fails where strength is above 1.4, and predicts no numbers between 1.05 and that; "all" fails
    always, "data" always with a DataError; "fold" kills the first attempt at each even fold after an epoch, "trial"
    once the process of the trial that it belongs to.
    """

    def __init__(self, journal: Path, epoch_s: float, trouble: str) -> None:
        super().__init__()
        self.journal, self.epoch_s, self.trouble = journal, epoch_s, trouble

    def note(self, text: str) -> None:
        with open(self.journal, "a") as stream:
            stream.write(text + "\n")

    def is_first(self, what: str) -> bool:
        once = self.journal.with_name(f"once-{what}")
        if once.exists():
            return False
        once.touch()
        return True

    def fit(self, work):
        config, fold, trouble = work.config, work.fold, self.trouble
        name = f"{config.augment.strength:.6f}"
        if trouble == "data":
            raise DataError("shard train03-5.tfrec: record 2 is truncated")
        if trouble == "all" or (trouble == "mixed" and config.augment.strength > 1.4):
            raise ValueError("this model cannot be built")
        n_epochs = config.for_fold(fold).epochs
        goal = 0.5 + 0.45 * quality_of(config)
        for epoch in range(int(work.state or b"0"), n_epochs):
            time.sleep(self.epoch_s)
            self.note(f"{name} {fold} {epoch}")
            row = {"epoch": epoch, "loss": 1.0, "auc": 0.5, "val_loss": 1.0, "images_per_s": 1.0, "lr": 1.0}
            row |= {"duration_s": self.epoch_s, "val_auc": 0.5 + (goal - 0.5) * (1 - 0.5 ** (epoch + 1))}
            yield Step(row, str(epoch + 1).encode())
            if trouble == "fold" and fold % 2 == epoch == 0 and self.is_first(f"fold-{fold}"):
                os.kill(os.getpid(), signal.SIGKILL)
            if trouble == "trial" and fold == 1 and self.is_first("trial"):
                os.kill(trial_beside_me(), signal.SIGKILL)
        target = work.rows.target[work.valid]
        noise = generator(config.seed, "toy", fold).normal(size=len(target))
        pred = 1 / (1 + np.exp(-(2 * quality_of(config) * (target - 0.5) + noise)))
        if trouble == "mixed" and config.augment.strength > 1.05:
            pred = np.full(len(target), np.nan)
        pred = pred.astype(np.float32)
        self.note(f"{name} {fold} done")
        yield Fitted(pred, b"weights", {"pred_no_tta": pred}, {"best_epoch": n_epochs - 1})

    def predict(self, work):
        return np.full(work.span[1] - work.span[0], 0.5, np.float32)

    def draw(self, config, fold, history):
        return {}


def toy_task(journal: Path, epoch_s: float = 0.0, trouble: str = "") -> ToyTask:
    return ToyTask(journal, epoch_s, trouble)


def rmse(target: np.ndarray, pred: np.ndarray) -> float:
    return float(np.sqrt(np.mean((target - pred) ** 2)))


class LineSettings(BaseModel):
    slope: float = 0.0
    """What x is multiplied by."""
    n_steps: int = 3
    """Steps of a fold, each nearer to its end."""
    hang: bool = False
    """Never end."""


class LineTask(Task):
    """Lines through points of which the best has a slope of 1: the lower the error, the better. Nothing is read."""

    Settings = LineSettings
    score = Score("rmse", rmse, "minimize", step="valid_rmse")

    def open(self, data, config):
        rng = np.random.default_rng(0)
        x = rng.normal(size=60)
        ids = [f"row-{i:02d}" for i in range(60)]
        table = pd.DataFrame({"id": ids, "target": x + rng.normal(0, 0.1, 60)})
        return Rows(table, table[["id"]][:0], "points", content=x)

    def needs(self, config, fold):
        return Needs(cpus=1, n_steps=config.n_steps)

    def fit(self, work):
        while work.config.hang:
            time.sleep(0.1)
        pred = work.config.slope * work.rows.content[work.valid]
        error = rmse(work.rows.target[work.valid], pred)
        for step in range(work.step, work.config.n_steps):
            yield Step({"valid_rmse": error + 1 / (step + 1)}, b"%d" % step)
        yield Fitted(pred if work.config.slope < 9 else pred * np.nan)
