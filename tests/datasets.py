"""Small shard folders for tests: synthetic cadences, PNG shards made from them, copies to spoil; flags of a network."""

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from setibl_ray.seti.formats.records import Record, encode_record
from setibl_ray.seti.formats.shards import iter_records, read_index, shard_name
from setibl_ray.seti.formats.tfrecord import encode_example, frame
from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic

SMALL = Recipe(train=60, test=14, shards=6, test_shards=2, seed=3, shape=(40, 36), snr=(60, 100))
TINY = ("--model", "efficientnet-nano", "--weights", "none", "--image-size", "40x36", "--batch-size", "8")


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


def copied(shards: Path, folder: Path) -> Path:
    """A copy without dataset.json, so that every shard is read."""
    data = folder / "data"
    data.mkdir()
    for path in shards.glob("*.tfrec"):
        shutil.copy(path, data)
    return data


def record(image_id: str, target: int | None = 1, panels: np.ndarray | None = None) -> Record:
    panels = np.zeros((6, 40, 36), np.uint8) if panels is None else panels
    return Record(image_id, target, None, float("nan"), None, panels)


def put(data: Path, split: str, index: int, *records: Record) -> None:
    """Replace a shard by one with these records."""
    for path in data.glob(f"{split}{index:02d}-*"):
        path.unlink()
    path = data / shard_name(split, index, len(records))
    path.write_bytes(b"".join(frame(encode_record(r)) for r in records))
