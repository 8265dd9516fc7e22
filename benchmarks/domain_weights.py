"""Train the weights that `--weights cadences` loads, from simulated cadences of every kind.

    python benchmarks/domain_weights.py OUT
    python benchmarks/domain_weights.py --study FILE      # the S/N from which FILE's network finds needles, as it is

OUT keeps the set and the state after each epoch: the same command continues where it was stopped. It writes
OUT/cadences.h5 and prints its SHA-256, which go into setibl_ray/seti/weights/. One thread, so that the same machine
gives the same bytes; docs/science.md has the time it takes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import time
from pathlib import Path
from typing import Any

import setibl_ray.seti.train  # noqa: F401  (quiets TensorFlow before it starts)

# isort: split
import h5py
import numpy as np

from setibl_ray.core.jobs import Place
from setibl_ray.core.task import Step, Work
from setibl_ray.seti import weights
from setibl_ray.seti.cadence import PANEL_SHAPE
from setibl_ray.seti.config import parse
from setibl_ray.seti.evaluation import metrics, sensitivity
from setibl_ray.seti.formats.shards import read_index
from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic
from setibl_ray.seti.task import rows_of
from setibl_ray.seti.train.fold import fit

RECIPE = Recipe(train=20_000, shards=40, seed=2026, snr=(5, 100), hard_snr=(5, 200), hard=0.5, positive=0.45)
HELD_OUT_SHARDS = 2  # of 40: to judge the weights, not to choose an epoch
FIELDS = {
    "folds": 2,
    **dict(zip(("model", "layout", "head"), weights.NETWORK)),
    "weights": "none",
    "image_size": "91x85",
    "batch_size": 16,
    "epochs": 12,
    # A quarter of the usual peak. It hardly matters over so many steps: networks of a half and of all of it found half
    # of the needles from the same S/N, 6.4.
    "schedule": {"lr_max": 2e-3},
    "tta": 0,
    "device": "cpu",
    "cpus_per_fold": 1,
}


def train(out: Path) -> Path:
    rows = rows_of(read_index(write_synthetic(RECIPE, out / "shards")))
    held_out = rows.table["unit"].to_numpy() < HELD_OUT_SHARDS
    config = parse(FIELDS)
    kept, begun = out / "state", time.process_time()
    work = Work(
        config, rows, 0, np.where(held_out, 0, 1).astype(np.int16), Place.here(config), str(out / "scratch"),
        state=kept.read_bytes() if kept.exists() else None,
    )  # fmt: skip
    for event in fit(work, {}):
        if isinstance(event, Step):
            kept.write_bytes(event.state)
            row, spent = event.row, time.process_time() - begun
            print(
                f"epoch {row['epoch']}: held-out AUC {row['val_auc']:.4f}, {spent:.0f} s of processor",
                flush=True,
            )
        else:
            counts = metrics.Ranking(rows.target[held_out], event.pred).counts()
            print(
                f"held-out AUC {counts.auc():.4f}, recall {counts.recall_at(0.01):.3f} at 1 % false positives"
            )
            (out / "cadences.h5").write_bytes(in_half(event.artifact))
    return out / "cadences.h5"


def in_half(weights_file: bytes) -> bytes:
    """The same file in half precision: scores differ by less than 0.001, and the package is a megabyte smaller."""
    half = io.BytesIO()
    with h5py.File(io.BytesIO(weights_file), "r") as source, h5py.File(half, "w") as target:

        def copy(name: str, found: h5py.Group | h5py.Dataset) -> None:
            if isinstance(found, h5py.Dataset):
                target[name] = found[()].astype(np.float16)
            else:
                target.require_group(name).attrs.update(found.attrs)

        copy("/", source)
        source.visititems(copy)
    return half.getvalue()


def study(file: Path) -> dict[str, Any]:
    """What `evaluate --sensitivity` finds of a run whose only fold is this file: 2,000 needles, 4,000 haystacks."""
    config = parse(FIELDS)
    recipe = sensitivity.recipe_for(4000, 2000, seed=config.seed, data={"panel_shape": PANEL_SHAPE})
    return sensitivity.examine(sensitivity.score(config, [file.read_bytes()], recipe))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--study", action="store_true")
    options = parser.parse_args()
    if options.study:
        print("\n".join(sensitivity.lines(study(options.out))))
        sys.exit()
    options.out.mkdir(parents=True, exist_ok=True)
    path = train(options.out)
    print(f"{path}: {path.stat().st_size} bytes, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
