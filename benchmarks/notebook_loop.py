"""The plain way that the others are measured against: one process, one fold after another, image by image.

    python benchmarks/notebook_loop.py --data SHARDS --out DIR [--epochs 2] [--tta 3] …

It does what the original notebook describes and nothing to speed it up: a per-image tf.data pipeline, a model built and
traced anew for every fold, views made by repeating the data set, three passes to collect ids and targets.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

from setibl_ray.seti.config import Augment

SETTINGS = Augment(strength=1)  # the original notebook's
SEED = 42


def dataset(
    files: list[str],
    size: tuple[int, int],
    batch: int,
    *,
    augment: bool = False,
    repeat: bool = False,
    shuffle: int = 0,
    training: bool = False,
    second: str = "target",
    threads: int | None = None,
) -> tf.data.Dataset:
    """Images and `second` ("target" or "image_id") of PNG shards, one image at a time until they are batched."""
    height, width = size
    features = {"image": tf.io.FixedLenFeature([], tf.string)}
    features[second] = tf.io.FixedLenFeature([], tf.int64 if second == "target" else tf.string)

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = tf.io.parse_single_example(record, features)
        return example["image"], example[second]

    def affine(image: tf.Tensor) -> tf.Tensor:
        # The seed pads the width to a square, maps every pixel of the square, gathers, and crops.
        side, pad = height, (height - width) // 2
        square = tf.pad(image, [[0, 0], [pad, side - width - pad], [0, 0]])
        normal = tf.random.normal([6])
        shear = SETTINGS.shear * normal[1] * np.pi / 180
        zoom = 1 + SETTINGS.height_zoom * normal[2:4]
        shift = SETTINGS.width_shift * 256 * normal[4:6]
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

    def prepare(png: tf.Tensor, other: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.cast(tf.image.decode_png(png, channels=3), tf.float32) / 255
        image = tf.ensure_shape(image, (height, width, 3))
        if augment:
            image = affine(image)
            image = tf.image.random_flip_left_right(image)
            image = tf.image.random_saturation(image, 1 - SETTINGS.saturation, 1 + SETTINGS.saturation)
            image = tf.image.random_contrast(image, 1 - SETTINGS.contrast, 1 + SETTINGS.contrast)
            image = tf.image.random_brightness(image, SETTINGS.brightness)
        return tf.ensure_shape(image, (height, width, 3)), other

    def drop(image: tf.Tensor, other: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if tf.random.uniform([]) < SETTINGS.dropout_probability:
            half = int(SETTINGS.dropout_size * min(size)) // 2
            for _ in range(SETTINGS.dropout_count):
                x = tf.random.uniform([], 0, width, tf.int32)
                y = tf.random.uniform([], 0, height, tf.int32)
                top, bottom = tf.maximum(0, y - half), tf.minimum(height, y + half)
                left, right = tf.maximum(0, x - half), tf.minimum(width, x + half)
                blank = tf.zeros([bottom - top, right - left, 3])
                band = tf.concat([image[top:bottom, :left], blank, image[top:bottom, right:]], axis=1)
                image = tf.concat([image[:top], band, image[bottom:]], axis=0)
        return tf.ensure_shape(image, (height, width, 3)), other

    data = tf.data.TFRecordDataset(files, num_parallel_reads=tf.data.AUTOTUNE).cache()
    data = data.repeat() if repeat else data
    data = data.shuffle(shuffle, seed=SEED) if shuffle else data
    data = data.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    data = data.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    if training and augment:
        data = data.map(drop, num_parallel_calls=tf.data.AUTOTUNE)
    options = tf.data.Options()
    if threads:
        options.threading.private_threadpool_size = threads
    options.deterministic = not shuffle
    return data.batch(batch).prefetch(tf.data.AUTOTUNE).with_options(options)


def count(files: list[str]) -> int:
    return sum(int(re.search(r"-(\d+)\.", name)[1]) for name in files)


def build(size: tuple[int, int]) -> tf.keras.Model:
    import efficientnet.tfkeras as efn

    image = tf.keras.layers.Input((*size, 3))
    x = efn.EfficientNetB0(input_shape=(*size, 3), weights=None, include_top=False)(image)
    x = tf.keras.layers.GlobalAveragePooling2D()(x)
    x = tf.keras.layers.Dense(32, activation="relu")(x)
    model = tf.keras.Model(image, tf.keras.layers.Dense(1, activation="sigmoid")(x))
    loss = tf.keras.losses.BinaryCrossentropy(label_smoothing=0.01)
    model.compile(tf.keras.optimizers.Adam(1e-3), loss, metrics=["AUC"])
    return model


def run(data: Path, out: Path, size: tuple[int, int], epochs: int, batch: int, tta: int) -> None:
    train = sorted(map(str, data.glob("train*.tfrec")))
    test = sorted(map(str, data.glob("test*.tfrec")))
    oof, submission = [], np.zeros(count(test))
    folds = KFold(5, shuffle=True, random_state=SEED)
    for fold, (trained, held_out) in enumerate(folds.split(np.arange(len(train)))):
        ours, theirs = [train[i] for i in trained], [train[i] for i in held_out]
        tf.keras.backend.clear_session()
        model = build(size)
        weights = str(out / f"fold-{fold}.h5")
        model.fit(
            dataset(ours, size, batch, augment=True, repeat=True, shuffle=2048, training=True),
            epochs=epochs,
            steps_per_epoch=count(ours) // batch,
            validation_data=dataset(theirs, size, batch),
            callbacks=[
                tf.keras.callbacks.ModelCheckpoint(
                    weights, monitor="val_auc", save_best_only=True, save_weights_only=True, mode="max"
                ),
                tf.keras.callbacks.LearningRateScheduler(lambda epoch: 1e-3),
            ],
            verbose=0,
        )
        model.load_weights(weights)

        def views(files: list[str], model: tf.keras.Model = model) -> np.ndarray:
            n = count(files)
            pairs = dataset(files, size, 2 * batch, augment=True, repeat=True, second="image_id")
            images = pairs.map(lambda image, _: image)
            steps = int(np.ceil(tta * n / (2 * batch)))
            pred = model.predict(images, steps=steps, verbose=0)[: tta * n]
            return pred.reshape((n, tta), order="F").mean(axis=1)

        pred = views(theirs)
        target = np.concatenate([t.numpy() for _, t in dataset(theirs, size, batch)])
        ids = np.concatenate([i.numpy() for _, i in dataset(theirs, size, batch, second="image_id")])
        oof.append(pd.DataFrame({"image_id": ids.astype(str), "target": target, "pred": pred, "fold": fold}))
        submission += views(test) / 5
    table = pd.concat(oof)
    print(f"overall OOF AUC {roc_auc_score(table['target'], table['pred']):.3f}")
    table.to_csv(out / "oof.csv", index=False)
    ids = np.concatenate([i.numpy() for _, i in dataset(test, size, batch, second="image_id")]).astype(str)
    answer = pd.DataFrame({"id": ids, "target": submission}).sort_values("id")
    answer.to_csv(out / "submission.csv", index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(91, 85))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tta", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    run(options.data, options.out, tuple(options.size), options.epochs, options.batch, options.tta)


if __name__ == "__main__":
    main()
