"""Kill workers, nodes and drivers at seeded random moments: the results are those of a run that nothing happened to,
and no process, file or shared memory is left.

Three kills in `make test`; twenty, and some of the real fold task, in `make soak`, which writes its figures to
docs/reliability.md.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import ray
from datasets import TINY
from harness import RUN, attempts_of, nothing_left, same_results, start
from ray.cluster_utils import Cluster
from raylets import until_it_starts
from waiting import wait_for

DEADLINE_S = 500
N_REAL_KILLS = 6


@dataclass
class Faults:
    """A cluster of three nodes, and what can be done to it. The head holds no fold, as killing it kills the cluster."""

    cluster: Cluster
    workers: list

    @classmethod
    def begin(cls):
        ray.shutdown()  # a Ray of this process listens on loopback only, and a cluster begun beside it would, too
        head = {"num_cpus": 0, "include_dashboard": False}
        cluster = until_it_starts(Cluster, initialize_head=True, head_node_args=head)
        found = cls(cluster, [])
        found.mend()
        return found

    def kill_node(self, rng):
        node = self.workers.pop(rng.randrange(len(self.workers)))
        self.cluster.remove_node(node, allow_graceful=False)

    def mend(self):
        while len(self.workers) < 2:
            self.workers.append(until_it_starts(self.cluster.add_node, num_cpus=2))


@pytest.fixture(scope="module")
def faults():
    found = Faults.begin()
    yield found
    found.cluster.shutdown()


def running_workers(out):
    if not (out / "manifest.json").exists():
        return []
    return [attempt["pid"] for attempt in attempts_of(out) if attempt["outcome"] == "running"]


def run_with_a_kill(faults, run, out, victim, rng, log, longest_s):
    """One run, from its start to its end, with one kill at most `longest_s` after its first fold began."""
    where = ("--out", out, "--address", faults.cluster.address)
    mark = f"kill-{os.getpid()}-{out.name}"
    with log.open("w") as stream:
        driver = run.start(*run.arguments, *where, log=stream, MARK=mark)
        wait_for(lambda: running_workers(out) or driver.poll() is not None, DEADLINE_S)
        time.sleep(rng.uniform(0, longest_s))
        if victim == "worker":
            # One of those that run now; between two folds there may be none for a moment.
            wait_for(lambda: running_workers(out) or driver.poll() is not None, DEADLINE_S)
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(rng.choice(running_workers(out)), signal.SIGKILL)
        elif victim == "node":
            faults.kill_node(rng)
        else:
            driver.kill()
            driver.wait(timeout=DEADLINE_S)
            driver = run.start("--resume", *where, log=stream, MARK=mark)
        code = driver.wait(timeout=DEADLINE_S)
    faults.mend()
    assert code == 0, log.read_text()
    nothing_left(out, f"MARK={mark}")


def disturbed(out):
    """Attempts that did not end as they should: the kill hit something."""
    return [a.get("cause", a["outcome"]) for a in attempts_of(out) if a["outcome"] != "done"]


@dataclass
class Run:
    """What is run and what should come out of it."""

    arguments: tuple
    reference: Path
    start: Callable


def check_kills(faults, run, folder, victims, rng, longest_s):
    hits = []
    for number, victim in enumerate(victims):
        out = folder / f"run-{number}"
        run_with_a_kill(faults, run, out, victim, rng, folder / f"log-{number}", longest_s)
        same_results(run.reference, out)
        hits.append((victim, disturbed(out)))
    return hits


@pytest.fixture
def standin_run(shards, undisturbed):
    return Run((*RUN, "--data", shards), undisturbed, partial(start, epoch_s=0.4))


@pytest.mark.timeout(600)
def test_three_kills(faults, standin_run, tmp_path):
    hits = check_kills(faults, standin_run, tmp_path, ("worker", "node", "driver"), random.Random(3), 2)
    causes = dict(hits)
    assert set(causes["worker"]) <= {"worker-died"}
    assert set(causes["node"]) <= {"node-died", "worker-died"}
    assert set(causes["driver"]) <= {"interrupted"}
    assert sum(map(bool, causes.values())) >= 2, hits  # a moment may fall between two folds


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_twenty_kills(faults, standin_run, tmp_path, record_soak):
    victims, rng = drawn(20)
    started = time.monotonic()
    hits = check_kills(faults, standin_run, tmp_path, victims, rng, 3)
    record_soak("stand-in", hits, time.monotonic() - started)
    assert sum(bool(causes) for _, causes in hits) >= 15, hits


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_kills_of_real_folds(faults, shards, tmp_path, record_soak):
    """The same with TensorFlow in the folds."""
    arguments = (
        *TINY,
        "--folds",
        "5",
        "--epochs",
        "4",
        "--tta",
        "2",
        "--cpus-per-fold",
        "1",
        "--data",
        shards,
    )
    arguments += ("--device", "cpu")
    reference = tmp_path / "reference"
    start_real = partial(start, script=("-m", "setibl_ray.cv"))
    with (tmp_path / "log").open("w") as log:
        assert start_real(*arguments, "--out", reference, "--runner", "local", log=log).wait(DEADLINE_S) == 0
    victims, rng = drawn(N_REAL_KILLS)
    started = time.monotonic()
    hits = check_kills(faults, Run(arguments, reference, start_real), tmp_path, victims, rng, 20)
    record_soak("EfficientNet-nano", hits, time.monotonic() - started)


def drawn(n):
    rng = random.Random(n)
    return [rng.choice(("worker", "node", "driver")) for _ in range(n)], rng
