"""A fold task without TensorFlow whose result depends on every epoch that led to it; run as a script, `cv` with it.

A lost, repeated or mixed-up epoch changes every prediction, so equal bytes mean that nothing of the kind happened. It
shares its node's decoded panels with other folds as the real one does, and its predictions depend on them. Folds say
that they are slow, so the test set is cut into as many spans as there are slots.
"""

import hashlib
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from setibl_ray.core.contract import EpochEnd, FoldResult, Place, Predicted, PredictJob, Started
from setibl_ray.seti.cadence import LAYOUTS
from setibl_ray.seti.feeding.panels import open_store


def standin(epoch_s=0.0, broken=None):
    """A fold task; `broken` is a path: as long as it exists, the fold whose number it holds fails."""

    def task(plan, job):
        yield Started(job.fold, Place.here("cpu", 1, plan.config.cpus_per_fold or 1), job.span)
        with ExitStack() as held:
            if isinstance(job, PredictJob):
                time.sleep(epoch_s)
                images = panels_of(plan, "test", held).take(np.arange(*job.span))
                digests = [hashlib.sha256(job.weights + image.tobytes()).digest() for image in images]
                pred = np.array([[digest[0], digest[1]] for digest in digests], np.float32) / 255
                yield Predicted(job.fold, job.span, pred[:, 0], pred[:, 1], {})
            else:
                images = panels_of(plan, "train", held).take(plan.train_rows(job.fold))
                yield from epochs(plan, job, hashlib.sha256(images).hexdigest())

    def epochs(plan, job, digest):
        fold, n_epochs = job.fold, plan.config.for_fold(job.fold).epochs
        state = {"done": 0, "digest": f"{plan.config.seed} {fold} {digest}", "history": []}
        if job.state:
            state = json.loads(job.state)
        for epoch in range(state["done"], n_epochs):
            time.sleep(epoch_s)
            if broken and Path(broken).exists() and Path(broken).read_text() == str(fold):
                raise ZeroDivisionError(f"broken on purpose in epoch {epoch}")
            digest = hashlib.sha256(f"{state['digest']} {epoch}".encode()).hexdigest()
            value = int(digest[:8], 16) / 2**32
            row = {
                "epoch": epoch,
                "lr": 1e-3,
                "loss": value,
                "auc": value,
                "val_loss": value,
                "val_auc": value,
            }
            row |= {"images_per_s": 0.01, "duration_s": epoch_s}
            state = {"done": epoch + 1, "digest": digest, "history": [*state["history"], row]}
            yield EpochEnd(fold, epoch, n_epochs, row, json.dumps(state).encode())
        rng = np.random.default_rng(int(state["digest"][:16], 16))
        predictions = [rng.random(len(plan.valid_rows(fold)), np.float32) for _ in range(2)]
        weights = state["digest"].encode()
        yield FoldResult(fold, *predictions, n_epochs - 1, state["history"], weights, {"train_s": epoch_s}, 1)

    return task


def panels_of(plan, split, held):
    config, layout = plan.config, LAYOUTS[plan.config.layout]
    store = open_store(
        plan.index,
        split,
        layout.panels,
        config.for_fold(0).image_size,
        config.standardize,
        policy=config.cache,
        folder=Path(plan.scratch),
        threads=1,
    )
    held.callback(store.close)
    return store


def no_plot(history, title):
    return b"a plot takes a second, and nothing here is about it"


def no_report(*arguments):
    return "none"


if __name__ == "__main__":
    from setibl_ray import cv, report
    from setibl_ray.core.run import driver
    from setibl_ray.seti.reporting import training_plot

    training_plot.draw = no_plot
    report.write_report = no_report
    driver.FOLD_TASK = standin(float(os.environ.get("EPOCH_S", "0.2")), os.environ.get("BROKEN"))
    sys.exit(cv.entry())
