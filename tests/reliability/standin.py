"""Folds without TensorFlow whose result depends on every epoch that led to it; run as a script, `cv` with them.

A lost, repeated or mixed-up epoch changes every prediction, so equal bytes mean that nothing of the kind happened. They
share their node's decoded panels with other folds as the real ones do, and their predictions depend on them. Folds say
that they are slow, so the test set is cut into as many spans as there are slots.
"""

import hashlib
import os
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from ray import cloudpickle

from setibl_ray.core.spans import SPAN_S
from setibl_ray.core.task import Fitted, Prediction, Step
from setibl_ray.seti.cadence import LAYOUTS
from setibl_ray.seti.feeding.panels import open_store
from setibl_ray.seti.task import CadenceTask

# Worker processes cannot import tests: what is here travels to them by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class StandIn(CadenceTask):
    """The cadence task with other folds.

    Args:
      epoch_s: how long an epoch, or a span, takes.
      broken: a path; as long as it exists, the fold whose number it holds fails.
      around: (work, steps) -> steps, to meddle with what a fit yields; called with no steps before a prediction.
    """

    def __init__(self, epoch_s=0.0, broken=None, around=None):
        super().__init__()
        self.epoch_s, self.broken, self.around = epoch_s, broken, around

    def draw(self, config, fold, history):
        return {"training.png": b"a plot takes a second, and nothing here is about it"}

    def fit(self, work):
        steps = self.steps(work)
        yield from self.around(work, steps) if self.around else steps

    def steps(self, work):
        with closing(panels_of(work, "train")) as store:
            digest = hashlib.sha256(store.take(work.train)).hexdigest()
        fold, config = work.fold, work.config
        digest = work.state.decode() if work.state else f"{config.seed} {fold} {digest}"
        n_epochs = config.for_fold(fold).epochs
        for epoch in range(work.step, n_epochs):
            time.sleep(self.epoch_s)
            if self.broken and Path(self.broken).exists() and Path(self.broken).read_text() == str(fold):
                raise ZeroDivisionError(f"broken on purpose in epoch {epoch}")
            digest = hashlib.sha256(f"{digest} {epoch}".encode()).hexdigest()
            value = int(digest[:8], 16) / 2**32
            row = {
                "epoch": epoch,
                "lr": 1e-3,
                "loss": value,
                "auc": value,
                "val_loss": value,
                "val_auc": value,
            }
            yield Step({**row, "images_per_s": 0.01, "duration_s": self.epoch_s}, digest.encode())
        rng = np.random.default_rng(int(digest[:16], 16))
        pred, plain = (rng.random(len(work.valid), np.float32) for _ in range(2))
        yield Fitted(
            pred,
            digest.encode(),
            {"pred_no_tta": plain},
            {"best_epoch": n_epochs - 1, "timings": {"train_s": self.epoch_s}},
            batch=2 * config.for_fold(fold).batch_size,
            row_s=SPAN_S,
        )

    def predict(self, work):
        if self.around:
            list(self.around(work, ()))
        time.sleep(self.epoch_s)
        with closing(panels_of(work, "test")) as store:
            images = store.take(np.arange(*work.span))
        digests = [hashlib.sha256(work.artifact + image.tobytes()).digest() for image in images]
        pred = np.array([[digest[0], digest[1]] for digest in digests], np.float32) / 255
        return Prediction(pred[:, 0], {"pred_no_tta": pred[:, 1]})


def panels_of(work, split):
    config, layout = work.config, LAYOUTS[work.config.layout]
    size = config.for_fold(0).image_size
    folder = Path(work.scratch)
    return open_store(
        work.rows.content,
        split,
        layout.panels,
        size,
        config.standardize,
        policy=config.cache,
        folder=folder,
        threads=1,
    )


def no_report(*arguments):
    return "none"


if __name__ == "__main__":
    from setibl_ray import cv, report
    from setibl_ray.seti import task

    report.write_report = no_report
    task.NAME = StandIn(float(os.environ.get("EPOCH_S", "0.2")), os.environ.get("BROKEN"))
    sys.exit(cv.entry())
