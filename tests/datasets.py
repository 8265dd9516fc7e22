"""Small shard folders for tests: synthetic cadences, and three-channel PNG shards made from them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from setibl_ray.seti.formats.shards import iter_records, read_index, shard_name
from setibl_ray.seti.formats.tfrecord import encode_example, frame
from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic

SMALL = Recipe(train=60, test=14, shards=6, test_shards=2, seed=3, shape=(40, 36), snr=(60, 100))


def cadence_shards(folder: Path, recipe: Recipe = SMALL) -> Path:
    return write_synthetic(recipe, folder, n_processes=1)


def png_shards(folder: Path, cadences: Path) -> Path:
    """The ON panels of `cadences` as PNG shards, without dataset.json."""
    folder.mkdir(parents=True)
    for shard in read_index(str(cadences)).shards:
        payloads = []
        for record in iter_records(shard):
            png = io.BytesIO()
            Image.fromarray(np.moveaxis(record.panels[[0, 2, 4]], 0, -1)).save(png, "PNG", compress_level=1)
            features = {"image": png.getvalue(), "image_id": record.image_id}
            if record.target is not None:
                features["target"] = record.target
            payloads.append(encode_example(features))
        name = shard_name(shard.split, shard.index, len(payloads))
        (folder / name).write_bytes(b"".join(frame(payload) for payload in payloads))
    return folder
