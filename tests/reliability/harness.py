"""Starting runs with the stand-in, holding their folders against each other, and looking for what they left."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import yaml
from datasets import TINY
from waiting import wait_for

from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import Manifest
from setibl_ray.seti.cadence import LAYOUTS
from setibl_ray.seti.config import parse
from setibl_ray.seti.feeding import panels
from setibl_ray.seti.formats.shards import read_index

# Batches of two, so that a test set of fourteen can be cut into spans.
RUN = (*TINY[:-1], "2", "--folds", "5", "--epochs", "4", "--cpus-per-fold", "1", "--device", "cpu")
RESULTS = ("oof.csv", "submission.csv", "folds.csv", "records.csv", "config.yaml", "fold-3/weights.h5")

STANDIN = (str(Path(__file__).with_name("standin.py")),)


def start(*arguments, epoch_s=0.2, log=subprocess.PIPE, script=STANDIN, **more):
    """`cv`, with the stand-in unless told otherwise, in a process of its own; `more` goes into its environment."""
    return subprocess.Popen(
        [sys.executable, *script, *map(str, arguments)],
        env={**os.environ, "EPOCH_S": str(epoch_s), **more},
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def same_results(one, other):
    for name in RESULTS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def manifest(out):
    return json.loads((out / "manifest.json").read_text())


def folds_of(out):
    """What is known of each fold: while a run goes on, in a file of its own."""
    return Manifest.load(RunFolder(str(out))).plain()["folds"]


def leftovers(out):
    """Files of a run folder that no finished run has."""
    names = [path.relative_to(out) for path in out.rglob("*")]
    return [
        str(n)
        for n in names
        if ".tmp-" in n.name
        or n.name == ".lock"
        or n.name.startswith("state-")
        or n.suffix == ".npz"
        or n.name == "fold.json"
    ]


def processes_with(variable):
    """Ids of living processes whose environment holds it: what a command started, and what that started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # gone, or not ours
            continue
    return found


def attempts_of(out):
    """Every attempt of a run, at folds and at spans of their test predictions."""
    folds = folds_of(out).values()
    return [attempt for entry in folds for attempt in [*entry["attempts"], *entry["predictions"]]]


def workers_of(out):
    """Ids of Ray workers that took part in a run and still live."""
    found = []
    for pid in {attempt["pid"] for attempt in attempts_of(out) if "pid" in attempt}:
        with suppress(OSError):  # it has gone; and if its id is another's by now, that is hardly a Ray worker
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                found.append(pid)
    return found


def stores_of(out):
    """The decoded panels of a run's data, and what belongs to them, in shared memory and in the temporary folder."""
    config, root = parse(yaml.safe_load((out / "config.yaml").read_text())), manifest(out)["data"]["root"]
    index, layout = read_index(root), LAYOUTS[config.layout]
    scratch = Path(tempfile.gettempdir(), f"setibl-ray-{os.getuid()}-{index.fingerprint[:12]}")
    found = [scratch] if scratch.exists() else []
    for split in ("train", "test"):
        size, standardize = config.for_fold(0).image_size, config.standardize
        store = panels.PanelStore(index, split, layout.panels, size, standardize, read=None)
        found += panels.memory_folder().glob(f"{Path(panels._file_name(store)).stem}.*")
    return found


def nothing_left(out, mark=None):
    """A finished run has left its results and nothing else: no process, no temporary file, no shared memory.

    Args:
      out: run folder.
      mark: a variable that all processes of the run have in their environment.
    """
    assert leftovers(out) == []
    wait_for(lambda: not workers_of(out))
    if mark:
        wait_for(lambda: not processes_with(mark))
    wait_for(lambda: not stores_of(out))  # another run of this machine may have it open for a moment
