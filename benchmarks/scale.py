"""What the driver pays as rows and folds grow: gathering 10 million rows, and 1,000 empty folds on Ray.

python benchmarks/scale.py [--out scale.json] [--rows 10000000] [--folds 1000] [--nodes 20]
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from setibl_ray import oof


def gather(n_rows: int, folds: int = 5) -> dict[str, float]:
    """Seconds and bytes to put OOF predictions in order and to average as many test predictions over folds."""
    rng = np.random.default_rng(0)
    fold_of_row = rng.integers(0, folds, n_rows).astype(np.int16)
    counts = np.bincount(fold_of_row, minlength=folds)
    valid = {fold: rng.random(counts[fold], np.float32) for fold in range(folds)}
    test = [rng.random(n_rows, np.float32) for _ in range(folds)]
    start = time.perf_counter()
    gathered = oof.gather(fold_of_row, valid)
    averaged = oof.average(test, np.full(folds, 1 / folds))
    seconds = time.perf_counter() - start
    assert len(gathered) == len(averaged) == n_rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"gather_s": seconds, "gather_peak_gb": peak / 1e9}


def empty_folds(n_folds: int, n_nodes: int) -> dict[str, float]:
    """Driver milliseconds per fold that does nothing, and how much the driver's memory grows over the second half."""
    import ray
    from ray.cluster_utils import Cluster

    from setibl_ray.cluster.connect import private_token
    from setibl_ray.cluster.placement import Request
    from setibl_ray.cluster.runner import RayRunner
    from setibl_ray.contract import FoldResult, Job, Place, Started

    def task(plan, job):
        yield Started(job.fold, Place.here("cpu", 1, 1))
        yield FoldResult(job.fold, *[np.zeros(1, np.float32)] * 2, 0, [], b"", {}, 0)

    private_token()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(n_nodes - 1):
        cluster.add_node(num_cpus=2, wait=False)
    cluster.wait_for_nodes(timeout=300)
    ray.init(address=cluster.address, log_to_driver=False)
    runner = RayRunner(task, SimpleNamespace(), Request("cpu", 1), max_parallel=2 * n_nodes)
    runner.submit(Job(n_folds))  # starts a worker
    list(runner.events())
    for fold in range(n_folds):
        runner.submit(Job(fold))
    memory = []
    cpu, start = time.process_time(), time.perf_counter()
    for event in runner.events():
        if isinstance(event, FoldResult):
            memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    ray.shutdown()
    cluster.shutdown()
    return {
        "fold_wall_ms": 1e3 * seconds / n_folds,
        "fold_driver_ms": 1e3 * cpu / n_folds,
        "driver_growth_mb": (memory[-1] - memory[len(memory) // 2]) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("scale.json"))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folds", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=20)
    options = parser.parse_args()
    result = gather(options.rows) | empty_folds(options.folds, options.nodes)
    for name, value in result.items():
        print(f"{name:20} {value:.3f}")
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
