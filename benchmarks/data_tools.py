"""`data pack` against a plain loop over the same files, and what `data synth` costs a cadence.

    python benchmarks/data_tools.py [--out data_tools.json] [--files 1200]

The plain loop is one process that does one file after another with NumPy and TensorFlow's own record writer. Its
imports are not in its time; Python's start, the spawned processes and the index are in that of `data pack`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
import tensorflow as tf

from setibl_ray.data.recipe import Recipe
from setibl_ray.data.synth import ShardTask, write_shard

TURNS = 3
SHARDS, TEST_SHARDS = 20, 10
PANEL = (273, 256)
DISTINCT = 60  # arrays; more files are links to them, as only reading and packing are measured


def kaggle_folder(folder: Path, n_files: int) -> Path:
    """Files as Kaggle ships them: float16 (6, 273, 256), a sixth of them test files."""
    rng = np.random.default_rng(0)
    arrays = folder / "arrays"
    arrays.mkdir(parents=True)
    for number in range(DISTINCT):
        np.save(arrays / f"{number}.npy", rng.standard_normal((6, *PANEL), np.float32).astype(np.float16))
    ids = [f"{number:015x}" for number in range(n_files)]
    n_test = n_files // 6
    for number, name in enumerate(ids):
        home = folder / ("test" if number < n_test else "train") / name[-1]
        home.mkdir(parents=True, exist_ok=True)
        os.link(arrays / f"{number % DISTINCT}.npy", home / f"{name}.npy")
    labels = pd.DataFrame({"id": ids[n_test:], "target": np.arange(n_files - n_test) % 2})
    labels.to_csv(folder / "train_labels.csv", index=False)
    return folder


def plain_loop(kaggle: Path, out: Path) -> None:
    """The shards that a script of twenty lines would write."""

    def feature(value: bytes | int) -> tf.train.Feature:
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    targets = pd.read_csv(kaggle / "train_labels.csv").set_index("id")["target"]
    out.mkdir()
    for split, n_shards in (("train", SHARDS), ("test", TEST_SHARDS)):
        paths = np.random.default_rng(0).permutation(sorted((kaggle / split).rglob("*.npy")))
        for shard, dealt in enumerate(np.array_split(paths, n_shards)):
            with tf.io.TFRecordWriter(str(out / f"{split}{shard:02d}-{len(dealt)}.tfrec")) as writer:
                for path in dealt:
                    cadence = np.load(path).astype(np.float32)
                    mean = cadence.mean(axis=(1, 2), keepdims=True)
                    std = cadence.std(axis=(1, 2), keepdims=True)
                    clipped = np.clip((cadence - mean) / std, -3, 9)
                    panels = np.round((clipped + 3) * (255 / 12)).astype(np.uint8)
                    features = {"cadence": feature(panels.tobytes()), "image_id": feature(path.stem.encode())}
                    if split == "train":
                        features["target"] = feature(int(targets[path.stem]))
                    example = tf.train.Example(features=tf.train.Features(feature=features))
                    writer.write(example.SerializeToString())


def pack(n_files: int) -> dict[str, float]:
    """Seconds of the plain loop and of `data pack`, in turns; the best of each."""
    best = {"plain_s": float("inf"), "pack_s": float("inf")}
    with tempfile.TemporaryDirectory() as folder:
        kaggle = kaggle_folder(Path(folder, "kaggle"), n_files)
        for turn in range(TURNS):
            start = time.perf_counter()
            plain_loop(kaggle, Path(folder, f"plain{turn}"))
            best["plain_s"] = min(best["plain_s"], time.perf_counter() - start)
            ours = ["--kaggle", kaggle, "--out", Path(folder, f"ours{turn}"), "--shards", SHARDS]
            command = [sys.executable, "-m", "setibl_ray.data", "pack", *ours, "--test-shards", TEST_SHARDS]
            start = time.perf_counter()
            subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
            best["pack_s"] = min(best["pack_s"], time.perf_counter() - start)
    return best


def synth(n_cadences: int = 200) -> float:
    """Milliseconds of processor time per cadence, synthesised, encoded and written in this process."""
    recipe = Recipe(train=n_cadences, shards=1, shape=PANEL)
    seconds = []
    for _ in range(TURNS):
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            write_shard(ShardTask(recipe, "train", 0, folder))
            seconds.append(time.process_time() - start)
    return 1e3 * min(seconds) / n_cadences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data_tools.json"))
    parser.add_argument("--files", type=int, default=1200)
    options = parser.parse_args()
    result = pack(options.files) | {"synth_ms": synth()}
    print(json.dumps(result, indent=2))
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
