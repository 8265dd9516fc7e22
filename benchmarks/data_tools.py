"""`data pack` against a plain loop over the same files, and what `data synth` costs a cadence.

    python benchmarks/data_tools.py [--out data_tools.json] [--files 3000]

The plain loop is one process that does one file after another with NumPy and TensorFlow's own record writer. Both are
timed as commands, from Python's start to the last shard, and without what they pay once: the rest for each file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
import tensorflow as tf

from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import ShardTask, write_shard

TURNS = 2
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
    """Seconds of the plain loop and of `data pack`, whole and with a tenth of the files; in turns, the best of each."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, n in (("few", n_files // 10), ("all", n_files)):
            kaggle = kaggle_folder(Path(folder, name), n)
            out = Path(folder, "out")
            plain = [sys.executable, __file__, "--plain", kaggle, out]
            ours = [sys.executable, "-m", "setibl_ray.data", "pack", "--kaggle", kaggle, "--out", out]
            ours += ["--shards", SHARDS, "--test-shards", TEST_SHARDS]
            seconds = {"plain": float("inf"), "pack": float("inf")}
            for _ in range(TURNS):
                for which, command in (("plain", plain), ("pack", ours)):
                    start = time.perf_counter()
                    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
                    seconds[which] = min(seconds[which], time.perf_counter() - start)
                    shutil.rmtree(out)
            found |= {f"{which}_{name}_s": value for which, value in seconds.items()}
    per_file = {which: found[f"{which}_all_s"] - found[f"{which}_few_s"] for which in ("plain", "pack")}
    return (
        found
        | {"whole_ratio": found["plain_all_s"] / found["pack_all_s"]}
        | {"per_file_ratio": per_file["plain"] / per_file["pack"]}
    )


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
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--plain", nargs=2, type=Path, metavar=("KAGGLE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain_loop(*options.plain)
        return
    result = pack(options.files) | {"synth_ms": synth()}
    print(json.dumps(result, indent=2))
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
