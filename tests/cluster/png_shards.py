"""PNG shards (three ON panels) in the original notebook's format: small, and learnable."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from setibl_ray.seti.formats.tfrecord import encode_example, frame

SHAPE = (91, 85)


def write(folder: Path, train_shards: int, test_shards: int, per_shard: int) -> None:
    """Write `train%02d-%d.tfrec` and `test%02d-%d.tfrec`; every third training record is a needle."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    for split, shards in (("train", train_shards), ("test", test_shards)):
        for shard in range(shards):
            framed = b"".join(_record(rng, split, shard, number) for number in range(per_shard))
            (folder / f"{split}{shard:02d}-{per_shard}.tfrec").write_bytes(framed)


def _record(rng: np.random.Generator, split: str, shard: int, number: int) -> bytes:
    target = int(number % 3 == 0)
    pixels = rng.normal(90, 25, (*SHAPE, 3))
    if target:  # a drifting line in all ON panels
        time = np.arange(SHAPE[0])
        pixels[time, (20 + time * rng.uniform(0.1, 0.5)).astype(int)] += 120
    png = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(png, "PNG")
    features = {"image": png.getvalue(), "image_id": f"{split}{shard:02d}{number:04d}"}
    return frame(encode_example(features | ({"target": target} if split == "train" else {})))
