"""What the driver pays as rows, folds and nodes grow: gathering 10 million rows, and 1,000 empty folds on 20 nodes.

    python benchmarks/scale.py [--out scale.json] [--rows 10000000] [--folds 1000] [--nodes 20]

Gathering is what `session.gather` does with predictions: put the held-out ones in table order with and without
views, score each fold for its weight, average the test predictions of all folds. Its tables of image ids, its metrics
and its CSV files are not in it.

The folds are real to the driver: a run folder, a manifest, a supervisor, Ray, a cluster of raylets on this machine.
They train nothing and predict two rows each. The one thing that grows with what a fold did, drawing its training.png,
is timed by itself: it is matplotlib's time.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from setibl_ray.core.jobs import Job, RunSpec, Trained
from setibl_ray.core.run import gathering, session
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.task import Fitted, Rows, Step, Task, Work
from setibl_ray.seti.config import Config, parse
from setibl_ray.seti.reporting import training_plot
from setibl_ray.seti.task import TASK

N_FOLDS = 5  # that are gathered
N_EPOCHS = 2  # of an empty fold


def gather(n_rows: int) -> dict[str, float]:
    """Seconds and peak memory to gather so many training and test predictions of five folds; its own process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_gather, (n_rows,))


def _gather(n_rows: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    config = parse({"folds": N_FOLDS, "weights": "none", "fold_weights": "auc"})
    target = rng.integers(0, 2, n_rows).astype(np.int8)
    fold_of_row = rng.integers(0, N_FOLDS, n_rows).astype(np.int16)
    counts = np.bincount(fold_of_row, minlength=N_FOLDS)
    valid = {fold: rng.random(counts[fold], np.float32) for fold in range(N_FOLDS)}
    plain = {fold: rng.random(counts[fold], np.float32) for fold in range(N_FOLDS)}
    predicted = [rng.random(n_rows, np.float32) for _ in range(N_FOLDS)]
    before = _peak_bytes()
    start = time.perf_counter()
    pred, no_tta = gathering.gather(fold_of_row, valid), gathering.gather(fold_of_row, plain)
    table = pd.DataFrame({"target": target, "pred": pred, "fold": fold_of_row})
    weights = gathering.fold_weights(config, TASK.score, table)
    average = gathering.average(predicted, weights)
    seconds = time.perf_counter() - start
    assert len(pred) == len(no_tta) == len(average) == n_rows
    return {"gather_s": seconds, "gather_peak_gb": _peak_bytes() / 1e9, "predictions_gb": before / 1e9}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class EmptyFolds(Task):
    """Folds that fit nothing: what is left is the driver's."""

    Settings = Config
    score = TASK.score

    def fit(self, work: Work) -> Iterator[Step | Fitted]:
        row = {"lr": 1e-3, "loss": 0.7, "auc": 0.5, "val_loss": 0.7, "val_auc": 0.5, "images_per_s": 1.0}
        for epoch in range(N_EPOCHS):
            yield Step({"epoch": epoch, **row, "duration_s": 1.0})
        yield Fitted(np.full(len(work.valid), 0.5, np.float32))


@contextmanager
def cluster(n_nodes: int) -> Iterator[float]:
    """Raylets of two cores each; yields the seconds that they took to come up."""
    import ray
    from ray.cluster_utils import Cluster

    from setibl_ray.core.cluster.connect import private_token

    private_token()
    start = time.perf_counter()
    head = {"num_cpus": 2, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(n_nodes - 1):
        nodes.add_node(num_cpus=2, wait=False)
    nodes.wait_for_nodes(timeout=300)
    ray.init(address=nodes.address, log_to_driver=False)
    yield time.perf_counter() - start
    ray.shutdown()
    nodes.shutdown()


def follow(n_folds: int, n_nodes: int, folder: str) -> dict[str, float]:
    """Driver milliseconds per fold and how its memory grows over the second half, with and without a run folder."""
    from setibl_ray.core.cluster.placement import Request
    from setibl_ray.core.cluster.runner import RayRunner

    table = pd.DataFrame(
        {"id": [f"row-{i}" for i in range(2 * n_folds)], "target": np.arange(2 * n_folds) % 2}
    )
    rows = Rows(table, table[["id"]][:0], "empty", root=folder)
    config = parse({"folds": n_folds, "weights": "none", "device": "cpu", "split": "rows"})
    spec = RunSpec(EmptyFolds(), config, rows, (np.arange(2 * n_folds) % n_folds).astype(np.int16), folder)
    found: dict[str, float] = {}
    with cluster(n_nodes) as found["cluster_start_s"]:

        def runner() -> RayRunner:
            return RayRunner(spec, Request("cpu", 1), max_parallel=2 * n_nodes)

        warm = runner()
        for fold in range(4 * n_nodes):  # starts the workers
            warm.submit(Job(fold % n_folds))
        list(warm.events())

        bare = runner()
        for fold in range(n_folds):
            bare.submit(Job(fold))
        found |= _paid("runner", bare.events(), n_folds)

        run = RunFolder(f"{folder}/run")
        with run.locked():
            record = session.open_record(run, spec, resume=False)
            events = (event for event, _ in session.follow(runner(), record, max_retries=0))
            found |= _paid("run", events, n_folds)
    return found


def _paid(name: str, events: Iterator[Any], n_folds: int) -> dict[str, float]:
    memory, n_done = [], 0
    start_cpu, start = time.process_time(), time.perf_counter()
    for event in events:
        if isinstance(event, Trained):
            n_done += 1
            if n_done in (n_folds // 2, n_folds):
                memory.append(_held_bytes())
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        f"{name}_wall_ms": 1e3 * seconds / n_folds,
        f"{name}_driver_ms": 1e3 * cpu / n_folds,
        f"{name}_growth_mb": (memory[1] - memory[0]) / 1e6,
    }


def picture(n: int = 50) -> dict[str, float]:
    """Milliseconds to draw a fold's training.png."""
    names = ("auc", "val_auc", "loss", "val_loss")
    history = (
        pd.DataFrame({name: np.linspace(0.4, 0.9, 12) for name in names}).rename_axis("epoch").reset_index()
    )
    training_plot.draw(history, "warm")
    start = time.process_time()
    for number in range(n):
        training_plot.draw(history, str(number))
    return {"picture_ms": 1e3 * (time.process_time() - start) / n}


def _held_bytes() -> int:
    """Resident memory of this process without what it has freed and the C library keeps for the next time."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("scale.json"))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folds", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = gather(options.rows) | follow(options.folds, options.nodes, folder) | picture()
    for name, value in result.items():
        print(f"{name:20} {value:.3f}")
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
