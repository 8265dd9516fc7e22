"""What `cv --plan` predicts against what then happens: rates from a short run, a longer one with other views planned.

    python benchmarks/plan.py [--out plan.json] [--epochs 6] [--tta 5]

The makespan is what the plan means by it: from the first fold submitted to the last result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from setibl_ray import cv
from setibl_ray.core.where import Where
from setibl_ray.seti.config import parse
from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic
from setibl_ray.seti.planning.assume import Assume
from setibl_ray.seti.planning.command import plan_run

DATA = Recipe(train=1000, test=200, shards=20, test_shards=10, shape=(91, 85), snr=(30, 100))


def run(data: str, out: str, epochs: int, tta: int) -> dict[str, Any]:
    """The manifest of a run of the demo's config on `data`."""
    fields = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in cv.DEMO.items()
        if name not in ("augment", "epochs")
    ]
    command = [sys.executable, "-m", "setibl_ray.cv", "--data", data, "--out", out, *fields]
    command += ["--epochs", str(epochs), "--tta", str(tta)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(Path(out, "manifest.json").read_text())


def makespan_s(manifest: dict[str, Any]) -> float:
    jobs = [job for fold in manifest["folds"].values() for job in [*fold["attempts"], *fold["predictions"]]]
    return max(job["ended_s"] for job in jobs) - manifest["started_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("plan.json"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--tta", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = str(write_synthetic(DATA, f"{folder}/data"))
        short_s = makespan_s(run(data, f"{folder}/short", epochs=2, tta=11))
        plan = plan_run(
            parse(cv.DEMO | {"epochs": options.epochs, "tta": options.tta}),
            data=data,
            out=None,
            rates=f"{folder}/short",
            assume=Assume(),
            where=Where(),
            resume=False,
            on_bad_record=None,
            console=Console(),
        )
        long_s = makespan_s(run(data, f"{folder}/long", options.epochs, options.tta))
    result = {"short_s": short_s, "predicted_s": plan.makespan_s, "measured_s": long_s}
    result["predicted over measured"] = plan.makespan_s / long_s
    print(json.dumps(result, indent=2))
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
