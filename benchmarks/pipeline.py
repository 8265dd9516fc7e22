"""Augmented training images per second: a plain per-image tf.data pipeline and this package's, side by side.

    python benchmarks/pipeline.py [--threads 2] [--out pipeline.json]

Both run in one process on the same cores, in turns, and the best turn counts: on a shared machine the fastest
repetition is the one least disturbed, and images per second of processor time are less disturbed still. The
plain pipeline does what the seed describes, one image at a time: read records, decode the PNG, affine map,
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

import numpy as np
import pandas as pd
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from setibl_ray import randomness
from setibl_ray.cadence import LAYOUTS
from setibl_ray.config import Augment
from setibl_ray.data.panels import PanelStore, open_store
from setibl_ray.data.pipeline import training_epoch

BATCH = 32
N_IMAGES = 192
TURNS = 3
SEED_SIZE = (273, 256)
SETTINGS = Augment()  # the seed's


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


def write_seed_shard(path: Path, panels: Panels) -> None:
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


def plain_pipeline(shard: Path, threads: int) -> tf.data.Dataset:
    """The per-image pipeline, endless, records cached in memory as the seed caches them."""
    height, width = SEED_SIZE
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "target": tf.io.FixedLenFeature([], tf.int64),
    }

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        return example["image"], example["target"]

    def affine(image: tf.Tensor) -> tf.Tensor:
        # The seed pads the width to a square, maps every pixel of the square, gathers, and crops.
        side, pad = height, (height - width) // 2
        square = tf.pad(image, [[0, 0], [pad, side - width - pad], [0, 0]])
        normal = tf.random.normal([6])
        shear = SETTINGS.shear * normal[1] * np.pi / 180
        zoom = 1 + SETTINGS.height_zoom * normal[2:4]
        shift = SETTINGS.height_shift * normal[4:6]
        zero, one = tf.zeros([]), tf.ones([])
        turn = tf.eye(3)
        skew = tf.stack([[one, tf.sin(shear), zero], [zero, tf.cos(shear), zero], [zero, zero, one]])
        scale = tf.linalg.diag(tf.stack([1 / zoom[0], 1 / zoom[1], one]))
        move = tf.stack([[one, zero, shift[0]], [zero, one, shift[1]], [zero, zero, one]])
        matrix = tf.matmul(tf.matmul(turn, skew), tf.matmul(scale, move))
        up = tf.repeat(tf.range(side // 2, -side // 2, -1), side)
        right = tf.tile(tf.range(-side // 2, side // 2), [side])
        at = tf.matmul(matrix, tf.cast(tf.stack([up, right, tf.ones_like(up)]), tf.float32))
        at = tf.clip_by_value(tf.cast(at, tf.int32), -side // 2 + side % 2 + 1, side // 2)
        index = tf.stack([side // 2 - at[0], side // 2 - 1 + at[1]], axis=1)
        mapped = tf.reshape(tf.gather_nd(square, index), [side, side, 3])
        return mapped[:, pad : pad + width]

    def prepare(png: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.cast(tf.image.decode_png(png, channels=3), tf.float32) / 255
        image = affine(tf.ensure_shape(image, (height, width, 3)))
        image = tf.image.random_flip_left_right(image)
        image = tf.image.random_saturation(image, 1 - SETTINGS.saturation, 1 + SETTINGS.saturation)
        image = tf.image.random_contrast(image, 1 - SETTINGS.contrast, 1 + SETTINGS.contrast)
        return tf.image.random_brightness(image, SETTINGS.brightness), target

    def drop(image: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if tf.random.uniform([]) < SETTINGS.dropout_probability:
            half = int(SETTINGS.dropout_size * min(SEED_SIZE)) // 2
            for _ in range(SETTINGS.dropout_count):
                x = tf.random.uniform([], 0, width, tf.int32)
                y = tf.random.uniform([], 0, height, tf.int32)
                top, bottom = tf.maximum(0, y - half), tf.minimum(height, y + half)
                left, right = tf.maximum(0, x - half), tf.minimum(width, x + half)
                blank = tf.zeros([bottom - top, right - left, 3])
                band = tf.concat([image[top:bottom, :left], blank, image[top:bottom, right:]], axis=1)
                image = tf.concat([image[:top], band, image[bottom:]], axis=0)
        return tf.ensure_shape(image, (height, width, 3)), target

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.deterministic = False
    return (
        tf.data.TFRecordDataset(str(shard))
        .cache()
        .repeat()
        .shuffle(N_IMAGES)
        .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        .map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
        .map(drop, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options)
    )


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
    write_seed_shard(shard, panels)

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

    turns = {
        "per image, 273x256x3": rate(plain_pipeline(shard, threads), 12),
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
