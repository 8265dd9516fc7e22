"""A fold's peak memory against the estimate by which folds wait for room (setibl_ray/seti/memory.py), on CPUs.

    python benchmarks/fold_memory.py [--out fold_memory.json]      # ten minutes on two cores; writes fold_memory.md too

Each line is a run of two folds of a few steps, one at a time; peaks grow neither with the rows nor with the epochs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic

CASES = (
    ("efficientnet-nano", "91x85", 16),
    ("efficientnet-nano", "273x256", 32),
    ("efficientnet-b0", "91x85", 16),
    ("efficientnet-b0", "91x85", 64),
    ("efficientnet-b0", "273x256", 16),
    ("efficientnet-b3", "91x85", 16),
    ("efficientnet-b6", "91x85", 16),
    ("resnet50", "91x85", 16),
    ("vit-tiny", "91x85", 16),
)


def measure(data: Path, out: Path, model: str, image_size: str, batch_size: int) -> dict[str, int]:
    """Bytes estimated for a fold, and the most that its process took."""
    flags = ["--model", model, "--image-size", image_size, "--batch-size", batch_size, "--weights", "none"]
    flags += [
        "--folds",
        2,
        "--epochs",
        1,
        "--tta",
        1,
        "--cpus-per-fold",
        2,
        "--device",
        "cpu",
        "--workers",
        1,
    ]
    command = [sys.executable, "-m", "setibl_ray.cv", *flags, "--data", data, "--out", out]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    folds = json.loads((out / "manifest.json").read_text())["folds"].values()
    return {
        "estimated": max(fold["memory_estimate_bytes"] for fold in folds),
        "peak": max(fold["peak_memory_bytes"] for fold in folds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("fold_memory.json"))
    options = parser.parse_args()
    result = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(train=256, test=16, shards=4, test_shards=1)
        data = write_synthetic(recipe, f"{folder}/data")
        for number, (model, image_size, batch_size) in enumerate(CASES):
            found = measure(data, Path(f"{folder}/run-{number}"), model, image_size, batch_size)
            result.append({"model": model, "image_size": image_size, "batch_size": batch_size} | found)
            print(", ".join(f"{name} {value}" for name, value in result[-1].items()), flush=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    lines = [
        "| model | image | batch | estimated, GB | peak, GB | peak / estimate |",
        "|---|---|---|---|---|---|",
    ]
    for row in result:
        shares = (
            f"{row['estimated'] / 1e9:.1f} | {row['peak'] / 1e9:.1f} | {row['peak'] / row['estimated']:.2f}"
        )
        lines.append(f"| {row['model']} | {row['image_size']} | {row['batch_size']} | {shares} |")
    options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
