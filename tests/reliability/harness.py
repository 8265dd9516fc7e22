"""Starting runs with the stand-in, and holding their folders against each other."""

import json
import os
import subprocess
import sys
from pathlib import Path

ARGUMENTS = (
    "--model",
    "efficientnet-nano",
    "--weights",
    "none",
    "--image-size",
    "40x36",
    "--batch-size",
    "8",
)
# Batches of two, so that a test set of fourteen can be cut into spans.
RUN = (*ARGUMENTS[:-1], "2", "--folds", "5", "--epochs", "4", "--cpus-per-fold", "1", "--device", "cpu")
RESULTS = ("oof.csv", "submission.csv", "folds.csv", "records.csv", "config.yaml", "fold-3/weights.h5")

STANDIN = (str(Path(__file__).with_name("standin.py")),)


def start(*arguments, epoch_s=0.2, log=subprocess.PIPE, script=STANDIN, **more):
    """`cv`, with the stand-in unless told otherwise, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *script, *map(str, arguments)],
        env={**os.environ, "EPOCH_S": str(epoch_s), **more},
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )


def same_results(one, other):
    for name in RESULTS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


def leftovers(out):
    """Files of a run folder that no finished run has."""
    names = [path.relative_to(out) for path in out.rglob("*")]
    return [
        str(n)
        for n in names
        if ".tmp-" in n.name or n.name == ".lock" or n.name.startswith("state-") or n.suffix == ".npy"
    ]
