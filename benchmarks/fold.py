"""A fold's steady state against the bare model on batches in memory: training at three batch sizes, and views.

python benchmarks/fold.py [--out fold.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import setibl_ray.train  # noqa: F401  (quiets TensorFlow before it starts)

# isort: split
import tensorflow as tf

from setibl_ray.config import parse
from setibl_ray.contract import Plan
from setibl_ray.data.recipe import Recipe
from setibl_ray.data.shards import DataIndex, read_index
from setibl_ray.data.synth import write_synthetic
from setibl_ray.train import device as devices
from setibl_ray.train.fold import FoldData
from setibl_ray.train.trainer import trainer_for

TURNS = 3
VIEWS = 11


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


def measure(index: DataIndex, scratch: str, batch: int) -> dict[str, float]:
    """A fold's speed over the bare model's in training, and its cost over the bare model's for all views."""
    fields = {
        "folds": 2,
        "model": "efficientnet-nano",
        "weights": "none",
        "image_size": "91x85",
        "layout": "all6",
    }
    config = parse({**fields, "batch_size": batch, "device": "cpu", "cpus_per_fold": 1})
    plan = Plan(config, index, index.train["shard"].to_numpy(), scratch)
    data = FoldData(plan, 0, 1, batch)
    trainer = trainer_for(plan, config.for_fold(0), data.image_shape, devices.acquire("cpu", 1))
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
        lambda: trainer.predict(data.valid_views(range(VIEWS)), VIEWS * n), lambda: trainer.predict(still, n)
    )
    data.close()
    return {
        f"training speed, batch {batch}": plain / ours,
        f"{VIEWS} views, batch {2 * batch}, cost a view": views / (VIEWS * one),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("fold.json"))
    options = parser.parse_args()
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(train=640, test=10, shards=2, test_shards=1, shape=(91, 85))
        index = read_index(str(write_synthetic(recipe, f"{folder}/data")))
        for batch in (16, 32, 64):
            result |= measure(index, f"{folder}/scratch", batch)
    for name, ratio in result.items():
        print(f"{name:40} {ratio:.3f}")
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
