"""RayRunner against the plain loop, with small tasks in the place of folds."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tasks import Made, spec_of, zeros
from waiting import wait_for

from setibl_ray.core.cluster.placement import Request, cluster_nodes
from setibl_ray.core.cluster.runner import EVENTS_AHEAD, RayRunner
from setibl_ray.core.errors import DataError
from setibl_ray.core.jobs import Failed, Job, LocalRunner, Predicted, Started, Stepped, Trained
from setibl_ray.core.run import session
from setibl_ray.core.run.failures import ACTIONS
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.task import Fitted, Prediction, Step


def stepped():
    """A fit of three steps; made inside a function so that it travels by value."""

    def fit(work):
        for step in range(work.step, work.config.n_steps):
            yield Step({"loss": step / 7}, str(step + 1).encode())
            if work.fold == 1 and work.state is None and step == 1:
                time.sleep(600)  # until the test kills this process
        if work.fold == 3:
            raise DataError("shard train03-5.tfrec: record 2 is truncated")
        yield Fitted(np.full(len(work.valid), work.fold, np.float32), b"w")

    return spec_of(Made(fit))


def collect(runner, jobs):
    for job in jobs:
        runner.submit(job)
    return list(runner.events())


def outcome(events, fold):
    keep = [e for e in events if e.fold == fold and not isinstance(e, Started)]
    return [
        (e.step, e.row)
        if isinstance(e, Stepped)
        else (e.cause, e.message)
        if isinstance(e, Failed)
        else type(e).__name__
        for e in keep
    ]


@pytest.mark.usefixtures("own_ray")
def test_events_are_those_of_the_plain_loop():
    jobs = [Job(0), Job(2), Job(3)]
    plain = collect(LocalRunner(stepped()), jobs)
    for max_parallel in (1, 2, None):
        events = collect(RayRunner(stepped(), Request("cpu", 1), max_parallel), jobs)
        assert [outcome(events, fold) for fold in (0, 2, 3)] == [outcome(plain, fold) for fold in (0, 2, 3)]
    failed = [event for event in events if isinstance(event, Failed)]
    assert [(f.fold, f.cause, f.message) for f in failed] == [
        (3, "data", "shard train03-5.tfrec: record 2 is truncated")
    ]


@pytest.mark.usefixtures("own_ray")
def test_predictions_that_are_kept_hold_nothing_in_the_object_store():
    """Ray's arrays are views: each would keep the whole message, a fold's artifact with it, for the rest of the run."""
    events = collect(RayRunner(stepped(), Request("cpu", 1)), [Job(0)])
    assert isinstance(events[-1], Trained)
    assert events[-1].fitted.pred.flags.owndata
    assert events[-1].fitted.pred.flags.writeable


@pytest.mark.usefixtures("own_ray")
def test_a_fold_that_fails_leaves_its_process_to_others():
    def fit(work):
        if work.fold % 2:
            raise ValueError("an odd fold")
        yield Fitted(np.zeros(1))

    spec = spec_of(Made(fit), folds=20, rows_per_fold=1)
    events = collect(RayRunner(spec, Request("cpu", 1), max_parallel=1), [Job(n) for n in range(20)])
    assert [event.message for event in events if isinstance(event, Failed)] == [
        "ValueError: an odd fold"
    ] * 10
    assert len({event.place.pid for event in events if isinstance(event, Started)}) <= 2  # one a core


@pytest.mark.usefixtures("own_ray")
def test_a_killed_worker_is_a_failed_event_and_goes_on_from_its_state():
    runner = RayRunner(stepped(), Request("cpu", 1))
    runner.submit(Job(1))
    events = []
    for event in runner.events():
        events.append(event)
        if isinstance(event, Stepped) and event.step == 1 and event.fold == 1:
            os.kill(events[0].place.pid, signal.SIGKILL)
        elif isinstance(event, Failed):
            runner.submit(Job(1, attempt=1, step=2, payload=b"2"))
    names = [type(e).__name__ for e in events]
    assert names == ["Started", "Stepped", "Stepped", "Failed", "Started", "Stepped", "Trained"]
    assert events[3].cause == "worker-died"
    assert events[5].step == 2


@pytest.mark.usefixtures("own_ray")
def test_at_most_max_parallel_run_at_once():
    def fit(work):
        started = time.time()
        time.sleep(0.3)
        yield Fitted(np.array([started, time.time()]))

    spec = spec_of(Made(fit), rows_per_fold=2)
    events = collect(RayRunner(spec, Request("cpu", 1), max_parallel=1), [Job(fold) for fold in range(3)])
    spans = sorted(tuple(event.fitted.pred) for event in events if isinstance(event, Trained))
    assert all(first[1] <= second[0] for first, second in pairwise(spans))


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("polite", [True, False])
def test_cancel_leaves_no_task_running(tmp_path, polite):
    beats = tmp_path / "beats"

    def fit(work):
        if not polite:  # as C code in a long step does
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            with beats.open("a") as stream:
                stream.write(f"{work.fold}\n")
            time.sleep(0.02)
        yield

    runner = RayRunner(spec_of(Made(fit)), Request("cpu", 1))
    for fold in range(3):
        runner.submit(Job(fold))
    started: set[int] = set()
    for event in runner.events():
        started |= {event.fold} if isinstance(event, Started) else set()
        if len(started) == 2:
            break
    wait_for(beats.exists)
    runner.cancel()
    size = beats.stat().st_size
    time.sleep(0.5)
    assert beats.stat().st_size == size
    assert set(map(int, beats.read_text().split())) <= started  # the third had no place, and gets none


def two_stages(seconds=0.0):
    """A fold is fitted, then it predicts whatever the length of its artifact is."""

    def fit(work):
        time.sleep(seconds)
        yield from zeros(work)

    def predict(work):
        time.sleep(seconds)
        return np.full(work.span[1] - work.span[0], len(work.artifact), np.float32)

    return spec_of(Made(fit, predict), n_test=3)


def train_and_predict(runner, folds, spans):
    for fold in range(folds):
        runner.submit(Job(fold))
    for event in runner.events():
        yield event
        if isinstance(event, Trained):
            for span in spans:
                runner.submit(Job(event.fold, span, payload=event.fitted.artifact))


@pytest.mark.usefixtures("own_ray")
def test_spans_start_in_slots_that_folds_leave_over_and_get_their_folds_artifact():
    runner = RayRunner(two_stages(0.3), Request("cpu", 1))
    assert runner.slots == 2
    events = list(train_and_predict(runner, 3, [(0, 2), (2, 3)]))
    starts = [(event.fold, event.span) for event in events if isinstance(event, Started)]
    # The third fold takes the first slot that is left; a span may have the other one, and be heard of sooner.
    assert sum(span is not None for _, span in starts[: starts.index((2, None))]) <= 1, starts
    predicted = {(e.fold, e.span): e.prediction.pred.tolist() for e in events if isinstance(e, Predicted)}
    assert predicted == {(f, s): [f + 1.0] * (s[1] - s[0]) for f in range(3) for s in ((0, 2), (2, 3))}
    assert runner._artifacts == {}, "artifacts stay in the object store when nobody needs them"


@pytest.mark.usefixtures("own_ray")
def test_a_process_that_had_an_accelerator_ends_with_its_job():
    """It would keep the TPU or GPU from the next one, which has a process of its own."""
    pids = []
    for event in train_and_predict(RayRunner(two_stages(), Request("tpu", 1)), 2, [(0, 1)]):
        if isinstance(event, Started):
            pids.append(event.place.pid)
    assert len(set(pids)) == 4
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


@pytest.mark.usefixtures("own_ray")
def test_nodes_report_their_totals():
    (node,) = cluster_nodes()
    assert node.total("CPU") == 2


FULL = """
from tasks import Made, spec_of

from setibl_ray.core.cluster import connect
from setibl_ray.core.cluster.placement import Request
from setibl_ray.core.cluster.runner import EVENTS_AHEAD, RayRunner
from setibl_ray.core.errors import RunStoppedError
from setibl_ray.core.jobs import Job
from setibl_ray.core.task import Step

connect._init(
    None,
    {
        "include_dashboard": False,
        "num_cpus": 1,
        "object_store_memory": 80 << 20,
        "log_to_driver": False,
        "_system_config": {"local_fs_capacity_threshold": 0.0001, "local_fs_monitor_interval_ms": 10},
    },
)


def made():
    def fit(work):
        yield Step({}, bytes(100_000_000))

    return spec_of(Made(fit))


runner = RayRunner(made(), Request("cpu", 1))
runner.submit(Job(0))
*_, failed = runner.events()
print(failed.cause, failed.message, sep=": ")
runner.submit(Job(0, step=1, payload=bytes(100_000_000)))
try:
    list(runner.events())
except RunStoppedError as error:
    print(error)
"""


def test_an_object_store_and_a_disk_that_are_full():
    """What did not fit is said with its size, and the fold is tried elsewhere: another node may have the room."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", FULL], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    fold, run = done.stdout.splitlines()
    assert fold.startswith(
        "storage: no room for a fold's result of 100 MB: Ray's object store is full, and so is the"
    )
    assert run.startswith("no room for a fold's state of 100 MB: ")
    assert ACTIONS["storage"] == "retry-elsewhere"


@pytest.mark.usefixtures("own_ray")
def test_a_job_does_not_run_ahead_of_whoever_takes_its_events(tmp_path):
    """Its states would fill the object store when the run folder is slow."""
    steps = tmp_path / "steps"

    def fit(work):
        for step in range(20):
            with steps.open("a") as stream:
                stream.write("x")
            yield Step({"step": step}, b"")
        yield from zeros(work)

    runner = RayRunner(spec_of(Made(fit)), Request("cpu", 1))
    runner.submit(Job(0))
    events = runner.events()
    assert isinstance(next(events), Started)
    for taken in range(3):
        assert next(events).step == taken
        time.sleep(0.3)  # time enough to go on without us
        assert len(steps.read_text()) <= taken + 2 + EVENTS_AHEAD
    assert isinstance(list(events)[-1], Trained)


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("dies", [False, True])
def test_on_an_accelerator_the_process_of_a_fit_goes_on_with_its_test_set(dies, tmp_path):
    """Of the fit's own process, or, if that dies of it, of the next."""
    heard = tmp_path / "heard"  # the process dies only then: what it has said last would be lost with it
    mark = str(tmp_path / "tried")

    def predict(work):
        if dies and not os.path.exists(mark):
            open(mark, "w").close()
            while not heard.exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        assert work.artifact == b"w" * (work.fold + 1)
        return Prediction(np.full(len(work.rows.test), work.fold, np.float32))

    spec = spec_of(Made(zeros, predict), folds=2, n_test=5, device="gpu")
    record = session.open_record(RunFolder(str(tmp_path / "run")), spec, resume=False)
    runner = RayRunner(spec, Request("cpu", 1), max_parallel=1)
    events = []
    for event, _ in session.follow(runner, record, max_retries=1):
        events.append(event)
        if isinstance(event, Started) and event.span:
            heard.touch()
    assert record.manifest.states("done") == [0, 1]
    for fold in (0, 1):
        np.testing.assert_array_equal(record.predicted[fold].pred, np.full(5, fold))
        own = [event for event in events if event.fold == fold]
        pids = [event.place.pid for event in own if isinstance(event, Started)]
        went_on = not (dies and fold == 0)
        assert [type(event) for event in own] == [Started, Trained, Started] + (
            [Predicted] if went_on else [Failed, Started, Predicted]
        )
        assert pids[0] == pids[1]
        assert [event.span for event in own][1:] == [None] + [(0, 5)] * (len(own) - 2)
        outcomes = [attempt.outcome for attempt in record.manifest.folds[fold].predictions]
        assert outcomes == (["done"] if went_on else ["failed", "done"])


def test_a_span_that_a_plain_loop_goes_on_with_fails_as_a_span():
    def predict(work):
        raise DataError("shard test00-5.tfrec: record 2 is truncated")

    spec = spec_of(Made(zeros, predict), folds=2, n_test=5, device="gpu")
    *_, failed = collect(LocalRunner(spec), [Job(0)])
    assert (failed.cause, failed.span) == ("data", (0, 5))
