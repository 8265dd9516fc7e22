"""The job that real clusters are given, and the same on this machine alone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def flags(data: Path, out: Path | str, folds: int = 5) -> list[str]:
    # Enough epochs that a fold is still training when its host goes.
    small = "--model efficientnet-nano --weights none --image-size 91x85 --epochs 4 --batch-size 16 --tta 2"
    return f"--folds {folds} --data {data} --out {out} {small} --device cpu --cpus-per-fold 1".split()


def cv(data: Path, out: Path | str, folds: int = 5) -> list[str]:
    return ["python", "-m", "setibl_ray.cv", *flags(data, out, folds)]


@contextlib.contextmanager
def single_machine_run(data: Path, out: Path, folds: int = 5) -> Iterator[subprocess.Popen[bytes]]:
    """The same run as a plain loop on this machine, beside the cluster: it keeps to one core."""
    command = [sys.executable, *cv(data, out, folds)[1:], "--runner", "local"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with (
        out.with_suffix(".log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.kill()
