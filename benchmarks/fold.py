"""A fold's steady state against the bare model on batches in memory, and what a second fold finds ready.

    python benchmarks/fold.py [--out fold.json] [--rows 2400]

The process is held to one core, a fold's share where there are as many folds as cores: what the input pipeline takes,
the model lacks. The model is the smallest, so the input weighs most.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import setibl_ray.seti.train  # noqa: F401  (quiets TensorFlow before it starts)

# isort: split
import tensorflow as tf

from setibl_ray.core.jobs import Place
from setibl_ray.core.task import Fitted, Work
from setibl_ray.seti.config import parse
from setibl_ray.seti.formats.shards import DataIndex, read_index
from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic
from setibl_ray.seti.task import rows_of
from setibl_ray.seti.train import device as devices
from setibl_ray.seti.train import trainer as trainers
from setibl_ray.seti.train.fold import FoldData, fit
from setibl_ray.seti.train.trainer import trainer_for

TURNS = 5
VIEWS = 4
BATCHES = (16, 32, 64)
FIELDS = {
    "folds": 2,
    "model": "efficientnet-nano",
    "weights": "none",
    "image_size": "91x85",
    "layout": "all6",
    "device": "cpu",
    "cpus_per_fold": 1,
}


def best(*turns: Callable[[], object]) -> list[float]:
    """Seconds of each, the best of several rounds in turns: what is measured side by side is disturbed alike."""
    seconds = [float("inf")] * len(turns)
    for _ in range(TURNS):
        for i, turn in enumerate(turns):
            start = time.perf_counter()
            turn()
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds


def in_memory(dataset: tf.data.Dataset) -> tf.data.Dataset:
    batches = dataset.cache().prefetch(2)
    for _ in batches:
        pass
    return batches


def work_for(index: DataIndex, scratch: str, fold: int = 0, **fields: object) -> Work:
    config = parse({**FIELDS, **fields})
    return Work(config, rows_of(index), fold, index.train["shard"].to_numpy(), Place.here(config), scratch)


def steady_state(index: DataIndex, scratch: str, batch: int) -> dict[str, float]:
    """A fold's speed over the bare model's in training, and its cost over the bare model's for all views."""
    work = work_for(index, scratch, batch_size=batch)
    data = FoldData(work, 1, 1)
    own = work.config.for_fold(0)
    trainer = trainer_for(work, own, data.image_shape, devices.acquire("cpu", 1), {})
    bare = in_memory(data.epoch(0))
    trainer.train_epoch(bare, learning_rate=1e-3, key=0)  # traces
    ours, plain = best(
        lambda: trainer.train_epoch(data.epoch(1), learning_rate=1e-3, key=1),
        lambda: trainer.train_epoch(bare, learning_rate=1e-3, key=1),
    )
    n = len(data.valid_rows)
    still = in_memory(data.valid_views([None]))
    trainer.predict(still, n)
    views, one = best(
        lambda: trainer.predict(data.valid_views(range(VIEWS)), n, VIEWS), lambda: trainer.predict(still, n)
    )
    data.close()
    return {"training_speed": plain / ours, "cost_per_view": views / (VIEWS * one)}


def second_fold(index: DataIndex, scratch: str) -> dict[str, float]:
    """Two folds one after the other, as in a CPU process that is used again: seconds and traces of each."""
    found: dict[str, float] = {}
    for name, fold in (("first", 0), ("second", 1)):
        work = work_for(index, scratch, fold, batch_size=32, epochs=1, tta=1)
        fitted = next(found for found in fit(work, {}) if isinstance(found, Fitted))
        model = trainers._kept[1].model
        functions = (model.train_function, model.predict_function)
        found[f"{name}_traces"] = sum(each.experimental_get_tracing_count() for each in functions)
        found[f"{name}_build_s"] = fitted.facts["timings"]["build_s"]
        found[f"{name}_train_s"] = fitted.facts["timings"]["train_s"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("fold.json"))
    parser.add_argument("--rows", type=int, default=2400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(train=options.rows, shards=2, shape=(91, 85))
        index = read_index(str(write_synthetic(recipe, f"{folder}/data")))
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        result = {
            "second_fold": second_fold(index, f"{folder}/scratch"),
            "batches": {batch: steady_state(index, f"{folder}/scratch", batch) for batch in BATCHES},
            "views": VIEWS,
        }
    print(json.dumps(result, indent=2))
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
