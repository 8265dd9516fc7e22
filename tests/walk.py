"""A task of steps that takes as long as it is told, and whose result depends on every step; run as a script, too.

Data are a number of rows ("40" or "40+10": training and test), targets are numbers, and less error is better: the best
slope is 2.
"""

from __future__ import annotations

import hashlib
import sys
import time

import numpy as np
import pandas as pd
from pydantic import BaseModel
from ray import cloudpickle

from setibl_ray import Fitted, Needs, Rows, Score, Step, Task, main

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def rmse(target, pred):
    return float(np.sqrt(np.mean((target - pred[:, 0]) ** 2)))


class Settings(BaseModel):
    slope: float = 1.0
    """Of the line that is predicted."""
    n_steps: int = 4
    """Steps of a fit."""
    step_s: float = 0.0
    """How long each takes."""


class Walk(Task):
    """Predict a line, in steps."""

    Settings = Settings
    score = Score("rmse", rmse, "minimize", step="valid_rmse")

    def open(self, data, config):
        n_train, n_test = (int(part) for part in f"{data}+0".split("+")[:2])
        x = np.arange(n_train, dtype=np.float64)
        table = pd.DataFrame(
            {"id": [f"r{i}" for i in range(n_train)], "target": 2 * x, "group": (x // 4).astype(str)}
        )
        return Rows(
            table, pd.DataFrame({"id": [f"t{i}" for i in range(n_test)]}), f"{n_train}+{n_test}", root=data
        )

    def needs(self, config, fold):
        return Needs(n_steps=config.n_steps)

    def fit(self, work):
        config, digest = work.config, work.state or b"begin"
        for step in range(work.step, config.n_steps):
            time.sleep(config.step_s)
            digest = hashlib.sha256(digest + b"%d" % step).digest()
            error = abs(config.slope - 2) + 0.5 ** (step + 1)
            yield Step({"rmse": error, "valid_rmse": error}, digest)
        pred = config.slope * work.valid[:, None] * np.ones(2)
        pred[:, 1] = np.random.default_rng(list(digest)).random(len(pred))
        yield Fitted(pred, digest, facts={"steps": config.n_steps}, batch=3, row_s=20)

    def predict(self, work):
        noise = [np.random.default_rng([*work.artifact, row]).random() for row in range(*work.span)]
        return np.column_stack([work.config.slope * np.arange(*work.span), noise])


if __name__ == "__main__":
    sys.exit(main(Walk(), data="40+10"))
