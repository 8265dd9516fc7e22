"""Augmented training images per second: a plain per-image tf.data pipeline and this package's, side by side.

    python benchmarks/pipeline.py [--threads 2] [--out pipeline.json]

Both run in one process on the same cores, in turns, and the best turn counts: on a shared machine the fastest
repetition is the one least disturbed, and images per second of processor time are less disturbed still. The
plain pipeline does what the original notebook describes, one image at a time: read records, decode the PNG, affine map,
flip, saturation, contrast, brightness, dropout squares, batch.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import notebook_loop
import numpy as np
import pandas as pd
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from setibl_ray.core import randomness
from setibl_ray.seti.cadence import LAYOUTS
from setibl_ray.seti.config import Augment
from setibl_ray.seti.feeding.panels import PanelStore, open_store
from setibl_ray.seti.feeding.pipeline import training_epoch

BATCH = 32
N_IMAGES = 192
TURNS = 3
SEED_SIZE = (273, 256)
SETTINGS = Augment(strength=1)  # the original notebook's


@dataclass
class Panels:
    """Noise panels in memory, in the shape of a `DataIndex`."""

    values: np.ndarray  # (n, height, width, 6) uint8
    fingerprint: str = "benchmark"

    @property
    def panel_shape(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[2]

    @property
    def train(self) -> pd.DataFrame:
        return pd.DataFrame(index=range(len(self.values)))


def noise_panels() -> Panels:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((N_IMAGES, *SEED_SIZE, 6), dtype=np.float32)
    return Panels((85 + 21 * noise).clip(0, 255).astype(np.uint8))


def write_png_shard(path: Path, panels: Panels) -> None:
    """One shard of PNG records of the three ON panels."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, image in enumerate(panels.values[..., ::2]):
            png = tf.io.encode_png(image).numpy()
            features = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[png])),
                "image_id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"%d" % number])),
                "target": tf.train.Feature(int64_list=tf.train.Int64List(value=[number % 2])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


def our_pipeline(store: PanelStore, layout: str, batches: int, threads: int) -> tf.data.Dataset:
    """An epoch over the store's rows, repeated to the number of batches wanted."""
    rows = np.resize(np.arange(len(store)), batches * BATCH)
    return training_epoch(
        store,
        rows,
        np.zeros(len(rows), np.float32),
        randomness.sample_keys(str(row) for row in rows),
        layout=LAYOUTS[layout],
        batch=BATCH,
        order_key=0,
        augment_key=1,
        settings=SETTINGS,
        threads=threads,
    )


def rate(dataset: tf.data.Dataset, batches: int) -> Callable[[], np.ndarray]:
    """A turn: images per second, and per second of processor time, once the pipeline's threads run."""
    warm_up = 4  # more than are prefetched, which would count as made in no time

    def turn() -> np.ndarray:
        iterator = iter(dataset)
        for _ in range(warm_up):
            next(iterator)
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(batches - warm_up):
            next(iterator)
        seconds = time.perf_counter() - start, time.process_time() - start_cpu
        return (batches - warm_up) * BATCH / np.array(seconds)

    return turn


def measure(threads: int, folder: Path) -> dict[str, np.ndarray]:
    panels = noise_panels()
    shard = folder / f"train00-{N_IMAGES}.tfrec"
    write_png_shard(shard, panels)

    def store(layout: str, size: tuple[int, int]) -> PanelStore:
        return open_store(
            panels,
            "train",
            LAYOUTS[layout].panels,
            size,
            True,
            policy="disk",
            folder=folder,
            threads=threads,
            read=lambda index, split, rows, positions: index.values[rows][..., list(positions)],
        )

    plain = notebook_loop.dataset(
        [str(shard)],
        SEED_SIZE,
        BATCH,
        augment=True,
        repeat=True,
        shuffle=N_IMAGES,
        training=True,
        threads=threads,
    )
    turns = {
        "per image, 273x256x3": rate(plain, 12),
        "ours, 273x256x3": rate(our_pipeline(store("on3", SEED_SIZE), "on3", 100, threads), 100),
        "ours, 273x256x6": rate(our_pipeline(store("all6", SEED_SIZE), "all6", 50, threads), 50),
        "ours, 91x85x6": rate(our_pipeline(store("all6", (91, 85)), "all6", 400, threads), 400),
    }
    best = {name: np.zeros(2) for name in turns}
    for _ in range(TURNS):
        for name, turn in turns.items():
            best[name] = np.maximum(best[name], turn())
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("pipeline.json"))
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(arguments.threads, Path(folder))
    baseline = next(iter(rates.values()))
    table = Table(
        *("pipeline", "images/s", "ratio", "images/core-s", "ratio"),
        title=f"augmented training images, {arguments.threads} threads",
    )
    for name, speeds in rates.items():
        cells = [(f"{speed:,.0f}", f"{speed / base:.1f}x") for speed, base in zip(speeds, baseline)]
        table.add_row(name, *cells[0], *cells[1])
    Console().print(table)
    result = {
        "threads": arguments.threads,
        "batch": BATCH,
        "images_per_s": {name: speeds[0] for name, speeds in rates.items()},
        "images_per_core_s": {name: speeds[1] for name, speeds in rates.items()},
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
