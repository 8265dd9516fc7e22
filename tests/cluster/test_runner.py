"""RayRunner against the plain loop, with small tasks in the place of folds."""

import os
import signal
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from setibl_ray.core.cluster.placement import Request, cluster_nodes
from setibl_ray.core.cluster.runner import RayRunner
from setibl_ray.core.contract import (
    EpochEnd,
    Failed,
    FoldResult,
    Job,
    LocalRunner,
    Place,
    Predicted,
    PredictJob,
    Started,
)
from setibl_ray.core.errors import DataError

PLAN = SimpleNamespace(n_epochs=3)


def fold_task():
    """A task that needs no TensorFlow; made inside a function so that it travels by value."""

    def task(plan, job):
        yield Started(job.fold, Place.here("cpu", 1, 1))
        done = int(job.state or b"0")
        for epoch in range(done, plan.n_epochs):
            yield EpochEnd(job.fold, epoch, plan.n_epochs, {"loss": epoch / 7}, str(epoch + 1).encode())
            if job.fold == 1 and job.attempt == 0 and epoch == 1:
                time.sleep(600)  # until the test kills this process
        if job.fold == 3:
            raise DataError("shard train03-5.tfrec: record 2 is truncated")
        pred = np.full(4, job.fold, np.float32)
        yield FoldResult(job.fold, pred, pred, 0, [], b"w", {}, 0)

    return task


def collect(runner, jobs):
    for job in jobs:
        runner.submit(job)
    return list(runner.events())


def outcome(events, fold):
    keep = [e for e in events if e.fold == fold and not isinstance(e, Started)]
    return [
        (e.epoch, e.row)
        if isinstance(e, EpochEnd)
        else (e.cause, e.message)
        if isinstance(e, Failed)
        else type(e).__name__
        for e in keep
    ]


@pytest.mark.usefixtures("own_ray")
def test_events_are_those_of_the_plain_loop():
    jobs = [Job(0), Job(2), Job(3)]
    plain = collect(LocalRunner(fold_task(), PLAN), jobs)
    for max_parallel in (1, 2, None):
        events = collect(RayRunner(fold_task(), PLAN, Request("cpu", 1), max_parallel), jobs)
        assert [outcome(events, fold) for fold in (0, 2, 3)] == [outcome(plain, fold) for fold in (0, 2, 3)]
    failed = [event for event in events if isinstance(event, Failed)]
    assert [(f.fold, f.cause, f.message) for f in failed] == [
        (3, "data", "shard train03-5.tfrec: record 2 is truncated")
    ]


@pytest.mark.usefixtures("own_ray")
def test_predictions_that_are_kept_hold_nothing_in_the_object_store():
    """Ray's arrays are views: each would keep the whole message, a fold's weights with it, for the rest of the run."""
    events = collect(RayRunner(fold_task(), PLAN, Request("cpu", 1)), [Job(0)])
    result = events[-1]
    assert isinstance(result, FoldResult)
    for array in (result.valid_pred, result.valid_pred_no_tta):
        assert array.flags.owndata
        assert array.flags.writeable


@pytest.mark.usefixtures("own_ray")
def test_a_fold_that_fails_leaves_its_process_to_others():
    def task(plan, job):
        yield Started(job.fold, Place.here("cpu", 1, 1))
        if job.fold % 2:
            raise ValueError("an odd fold")
        pred = np.zeros(1, np.float32)
        yield FoldResult(job.fold, pred, pred, 0, [], b"", {}, 0)

    events = collect(RayRunner(task, PLAN, Request("cpu", 1), max_parallel=1), [Job(n) for n in range(20)])
    assert [event.message for event in events if isinstance(event, Failed)] == [
        "ValueError: an odd fold"
    ] * 10
    assert len({event.place.pid for event in events if isinstance(event, Started)}) <= 2  # one a core


@pytest.mark.usefixtures("own_ray")
def test_a_killed_worker_is_a_failed_event_and_goes_on_from_its_state():
    runner = RayRunner(fold_task(), PLAN, Request("cpu", 1))
    runner.submit(Job(1))
    events = []
    for event in runner.events():
        events.append(event)
        if isinstance(event, EpochEnd) and event.epoch == 1 and event.fold == 1:
            os.kill(events[0].place.pid, signal.SIGKILL)
        elif isinstance(event, Failed):
            runner.submit(Job(1, attempt=1, state=b"2"))
    names = [type(e).__name__ for e in events]
    assert names == ["Started", "EpochEnd", "EpochEnd", "Failed", "Started", "EpochEnd", "FoldResult"]
    assert events[3].cause == "worker-died"
    assert events[5].epoch == 2


@pytest.mark.usefixtures("own_ray")
def test_at_most_max_parallel_run_at_once():
    def task(plan, job):
        started = time.time()
        yield Started(job.fold, Place.here("cpu", 1, 1))
        time.sleep(0.3)
        yield FoldResult(job.fold, *[np.array([started, time.time()])] * 2, 0, [], b"", {}, 0)

    events = collect(
        RayRunner(task, PLAN, Request("cpu", 1), max_parallel=1), [Job(fold) for fold in range(3)]
    )
    spans = sorted(tuple(event.valid_pred) for event in events if isinstance(event, FoldResult))
    assert all(first[1] <= second[0] for first, second in pairwise(spans))


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("polite", [True, False])
def test_cancel_leaves_no_task_running(tmp_path, polite):
    beats = tmp_path / "beats"

    def task(plan, job):
        if not polite:  # as C code in a long step does
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        yield Started(job.fold, Place.here("cpu", 1, 1))
        while True:
            with beats.open("a") as stream:
                stream.write(f"{job.fold}\n")
            time.sleep(0.02)

    runner = RayRunner(task, PLAN, Request("cpu", 1))
    for fold in range(3):
        runner.submit(Job(fold))
    started: set[int] = set()
    for event in runner.events():
        started |= {event.fold} if isinstance(event, Started) else set()
        if len(started) == 2:
            break
    deadline = time.monotonic() + 30
    while not beats.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    runner.cancel()
    size = beats.stat().st_size
    time.sleep(0.5)
    assert beats.stat().st_size == size
    assert set(map(int, beats.read_text().split())) <= started  # the third had no place, and gets none


def two_stage_task(seconds=0.0):
    """A fold is trained, then it predicts whatever the length of its weights is."""

    def task(plan, job):
        yield Started(job.fold, Place.here("cpu", 1, 1), job.span)
        time.sleep(seconds)
        if isinstance(job, PredictJob):
            pred = np.full(job.span[1] - job.span[0], len(job.weights), np.float32)
            yield Predicted(job.fold, job.span, pred, pred, {})
        else:
            pred = np.zeros(1, np.float32)
            yield FoldResult(job.fold, pred, pred, 0, [], b"w" * (job.fold + 1), {}, 0)

    return task


def train_and_predict(runner, folds, spans):
    for fold in range(folds):
        runner.submit(Job(fold))
    for event in runner.events():
        yield event
        if isinstance(event, FoldResult):
            for span in spans:
                runner.submit(PredictJob(event.fold, span, event.weights))


@pytest.mark.usefixtures("own_ray")
def test_spans_start_in_slots_that_folds_leave_over_and_get_their_folds_weights():
    runner = RayRunner(two_stage_task(0.3), PLAN, Request("cpu", 1))
    assert runner.slots == 2
    events = list(train_and_predict(runner, 3, [(0, 2), (2, 3)]))
    starts = [(event.fold, event.span) for event in events if isinstance(event, Started)]
    # The third fold takes the first slot that is left; a span may have the other one, and be heard of sooner.
    assert sum(span is not None for _, span in starts[: starts.index((2, None))]) <= 1, starts
    predicted = {(e.fold, e.span): e.pred.tolist() for e in events if isinstance(e, Predicted)}
    assert predicted == {(f, s): [f + 1.0] * (s[1] - s[0]) for f in range(3) for s in ((0, 2), (2, 3))}
    assert runner._weights == {}, "weights stay in the object store when nobody needs them"


@pytest.mark.usefixtures("own_ray")
def test_a_process_that_had_an_accelerator_ends_with_its_job():
    """It would keep the TPU or GPU from the next one, which has a process of its own."""
    pids = []
    for event in train_and_predict(RayRunner(two_stage_task(), PLAN, Request("tpu", 1)), 2, [(0, 1)]):
        if isinstance(event, Started):
            pids.append(event.place.pid)
    assert len(set(pids)) == 4
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


@pytest.mark.usefixtures("own_ray")
def test_nodes_report_their_totals():
    (node,) = cluster_nodes()
    assert node.total("CPU") == 2
