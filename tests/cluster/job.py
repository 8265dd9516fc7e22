"""The job that real clusters are given, and the same on this machine alone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


# Enough epochs that a fold is still training when its host goes, or its job's time is over.
FIVE = "--folds 5 --epochs 4"
TWO = "--folds 2 --epochs 12"


def flags(data: Path, out: Path | str, folds: str = FIVE) -> list[str]:
    small = "--model efficientnet-nano --weights none --image-size 91x85 --batch-size 16 --tta 2"
    return f"{folds} --data {data} --out {out} {small} --device cpu --cpus-per-fold 1".split()


def cv(data: Path, out: Path | str, folds: str = FIVE) -> list[str]:
    return ["python", "-m", "setibl_ray.cv", *flags(data, out, folds)]


@contextlib.contextmanager
def single_machine_run(data: Path, out: Path, folds: str = FIVE) -> Iterator[subprocess.Popen[bytes]]:
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
