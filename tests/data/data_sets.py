"""Recipes and records that the tests of this folder share."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from setibl_ray.seti.formats.tfrecord import encode_example, frame
from setibl_ray.seti.making.recipe import Recipe

SMALL = Recipe(train=48, test=12, shards=4, test_shards=2, seed=7, shape=(32, 24), hard=0.5)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def png_features(name: str, target: int | None = None, shape=(20, 16)) -> dict:
    rng = np.random.default_rng(sum(name.encode()))
    features = {"image": png(rng.integers(0, 256, (*shape, 3), np.uint8)), "image_id": name}
    return features if target is None else {**features, "target": target}


def write_frames(path: Path, examples: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(frame(encode_example(example)) for example in examples))
    return path
