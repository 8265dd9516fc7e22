"""What is decided about a failure, and that Ray's side of it holds: other nodes, time limits, nodes that are gone."""

import os
import signal
import time
from typing import get_args

import pytest
from ray import exceptions
from tasks import Made, spec_of, zeros
from waiting import wait_for

from setibl_ray.core.cluster import placement, runner
from setibl_ray.core.cluster.placement import Node, Request
from setibl_ray.core.cluster.runner import RayRunner
from setibl_ray.core.jobs import Cause, Failed, Job, LocalRunner, Started, Trained
from setibl_ray.core.run.failures import ACTIONS, decide
from setibl_ray.core.task import Step
from setibl_ray.seti.config import parse
from setibl_ray.seti.memory import fold_bytes
from setibl_ray.seti.sizes import sizes
from setibl_ray.seti.task import TASK


def test_every_cause_has_a_decision_and_retries_end():
    assert set(ACTIONS) == set(get_args(Cause))
    for cause in ACTIONS:
        failures: list[Failed] = []
        while (decision := decide(failure := Failed(0, cause, ""), failures, 3)).action != "give-up":
            failures.append(failure)
        assert len(failures) == (0 if ACTIONS[cause] == "give-up" else 3)
        assert cause in decision.reason


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (exceptions.OutOfMemoryError("killed by the memory monitor"), "host-memory"),
        (exceptions.OutOfDiskError("spilling"), "storage"),
        (exceptions.ObjectStoreFullError("full"), "storage"),
        (exceptions.NodeDiedError("preempted"), "node-died"),
        (exceptions.ObjectLostError("00" * 28, "", ""), "node-died"),
        (exceptions.WorkerCrashedError(), "worker-died"),
        (exceptions.TaskUnschedulableError("no such node"), "no-node"),
    ],
)
def test_rays_errors_have_causes(error, cause):
    assert runner._cause(error) == cause


def test_errors_of_a_task_have_causes():
    exhausted = type("ResourceExhaustedError", (Exception,), {})
    for error, cause in (
        (exhausted("OOM when allocating tensor"), "device-memory"),
        (MemoryError(), "host-memory"),
        (RuntimeError("The TPU is already in use by process 12"), "tpu-busy"),
        (KeyError("x"), "code"),
    ):
        assert TASK.cause_of(error) == cause


def test_a_retry_elsewhere_names_the_nodes_to_avoid():
    selector = Request("cpu", 1, labels={"zone": "a"}).options(avoid=("b" * 56, "c" * 56))["label_selector"]
    assert selector == {"zone": "a", "ray.io/node-id": f"!in({'b' * 56},{'c' * 56})"}


def sleeper(seconds):
    def fit(work):
        for _ in range(100):
            time.sleep(seconds / 100)
        yield from zeros(work)

    return spec_of(Made(fit), folds=5)


@pytest.mark.usefixtures("own_ray")
def test_a_time_limit_stops_an_attempt_and_its_process():
    # Two CPUs, as no other test here: Ray may still give the process that ends to the next job of the same needs.
    ray_runner = RayRunner(sleeper(600), Request("cpu", 2), timeout_s=0.5)
    ray_runner.submit(Job(4))
    started, failed = ray_runner.events()
    assert (failed.cause, failed.message) == ("time-limit", "not done after 0.5 s (--fold-timeout-s)")
    assert failed.node == started.place.node
    assert failed.node_id == started.place.node_id != ""
    wait_for(lambda: not os.path.exists(f"/proc/{started.place.pid}"))


def test_a_time_limit_of_a_plain_loop_is_seen_at_the_next_event():
    def fit(work):
        time.sleep(0.05)
        yield Step({})
        raise AssertionError("not reached")

    local = LocalRunner(spec_of(Made(fit)), timeout_s=0.03)
    local.submit(Job(0))
    names = [getattr(event, "cause", type(event).__name__) for event in local.events()]
    assert names == ["Started", "Stepped", "time-limit"]


@pytest.mark.usefixtures("own_ray")
def test_the_only_node_is_used_again_though_it_should_be_avoided():
    (node,) = placement.cluster_nodes()
    ray_runner = RayRunner(sleeper(0), Request("cpu", 1))
    ray_runner.submit(Job(0, avoid=(node.node_id,)))
    events = list(ray_runner.events())
    assert [type(event) for event in events] == [Started, Trained], events


@pytest.mark.usefixtures("own_ray")
def test_a_fold_without_a_node_fails_after_a_while_instead_of_waiting_for_ever():
    ray_runner = RayRunner(sleeper(0), Request("cpu", 99), no_node_s=0.1)
    ray_runner.submit(Job(0))
    (failed,) = ray_runner.events()
    assert failed.cause == "no-node"
    assert "99 CPU" in failed.message


@pytest.mark.usefixtures("own_ray")
def test_a_worker_that_dies_before_it_starts_has_a_node():
    def fit(work):
        os.kill(os.getpid(), signal.SIGKILL)
        yield

    ray_runner = RayRunner(spec_of(Made(fit)), Request("cpu", 1))
    ray_runner.submit(Job(0))
    *_, failed = ray_runner.events()
    assert failed.cause == "worker-died"
    assert failed.node


@pytest.mark.usefixtures("own_ray")
def test_folds_wait_for_memory():
    total = placement.cluster_nodes()[0].total("memory")
    request = placement.with_memory(Request("cpu", 1), int(0.6 * total), placement.cluster_nodes())
    assert request.slots(placement.cluster_nodes()[0]) == 1
    ray_runner = RayRunner(sleeper(0.3), request)
    for fold in range(3):
        ray_runner.submit(Job(fold))
    names = [type(event).__name__ for event in ray_runner.events()]
    assert names == ["Started", "Trained"] * 3


def test_a_fold_larger_than_any_node_runs_alone():
    nodes = [Node("a", {"CPU": 4, "memory": 100.0}), Node("b", {"CPU": 1, "memory": 900.0})]
    request = placement.with_memory(Request("cpu", 2), 500, nodes)
    assert (request.memory_bytes, [request.slots(node) for node in nodes]) == (100, [1, 0])


def test_the_memory_of_a_fold_grows_with_what_it_holds():
    small = parse({"model": "efficientnet-nano", "weights": "none", "image_size": "91x85", "batch_size": 16})
    large = parse({"batch_size": 32})
    assert fold_bytes(small, 0, "cpu", 1, sizes(small, 0, {})) < 2e9
    of_large = sizes(large, 0, {})
    assert fold_bytes(large, 0, "tpu", 4, of_large) < 10e9 < fold_bytes(large, 0, "cpu", 4, of_large)
