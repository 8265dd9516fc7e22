"""Tasks and specifications of runs for tests, without data of any kind: rows are numbers, a fit is what a test says."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from pydantic import BaseModel
from ray import cloudpickle

from setibl_ray.core.config import config_of, parse
from setibl_ray.core.jobs import RunSpec
from setibl_ray.core.task import Fitted, Needs, Rows, Score, Task

# Worker processes cannot import tests: what is here travels to them by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def rmse(target, pred):
    return float(np.sqrt(np.mean((target - pred) ** 2)))


class Free(BaseModel):
    slope: float = 1.0
    n_steps: int = 3


class Made(Task):
    """A task of two functions of `Work`."""

    Settings = Free
    score = Score("rmse", rmse, "minimize")

    def __init__(self, fit, predict=None):
        self._fit, self._predict = fit, predict

    def needs(self, config, fold):
        return Needs(n_steps=config.n_steps)

    def fit(self, work):
        yield from self._fit(work)

    def predict(self, work):
        return self._predict(work)


def table(n, prefix="r", **columns):
    return pd.DataFrame({"id": [f"{prefix}{i}" for i in range(n)], **columns})


def rows(n_train=12, n_test=0, **columns):
    train = table(n_train, target=np.arange(n_train, dtype=np.float64), **columns)
    return Rows(train, table(n_test, "t"), fingerprint="0" * 64, root="nowhere")


def spec_of(task, *, folds=4, rows_per_fold=3, n_test=0, scratch="", **config):
    """A run of `task` whose fold k holds out every `folds`-th row."""
    n = folds * rows_per_fold
    values = {"folds": folds, "device": "cpu", "cpus_per_fold": 1, **config}
    return RunSpec(
        task, parse(config_of(Free), values), rows(n, n_test), np.arange(n, dtype=np.int16) % folds, scratch
    )


def zeros(work):
    """A fit that is over at once."""
    yield Fitted(np.zeros(len(work.valid)), b"w" * (work.fold + 1))
