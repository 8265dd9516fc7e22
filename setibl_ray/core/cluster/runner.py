"""Run fold tasks on Ray: one streaming task per attempt, whose events are passed to the driver as they arrive.

A fold's events, including its weights, come back through Ray's object store, so no shared disk is needed; jobs that
predict spans of the test set get the weights the same way. The driver retries: Ray's own retries would start a fold
from its beginning, and some of them have no limit.
"""

from __future__ import annotations

import math
import pkgutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from setibl_ray.core.cluster import connect
from setibl_ray.core.cluster.crowd import Crowd
from setibl_ray.core.cluster.placement import Node, Request, cluster_nodes
from setibl_ray.core.errors import RunStoppedError
from setibl_ray.core.jobs import (
    Cause,
    Event,
    Failed,
    Job,
    Predicted,
    RunSpec,
    Started,
    Stepped,
    Trained,
    events_of,
)
from setibl_ray.core.task import Fitted, Prediction
from setibl_ray.core.terminal import headline

# A soft cancel waits for the C code of a training step; after this time the process is killed.
SOFT_CANCEL_S = 5.0
NO_NODE_S = 60.0  # minimum time that a fold waits when every node that could run it is gone
# Events of a job that may wait to be read; without a limit, a slow run folder lets states fill the object store.
EVENTS_AHEAD = 2
LARGE = 1_000_000  # bytes; smaller objects rarely lack room
_LOOK_S = 2.0  # interval at which attempts are compared with the cluster's nodes


_FULL = (exceptions.OutOfDiskError, exceptions.ObjectStoreFullError)


def _run_job(spec: RunSpec, job: Job, artifact: bytes | None) -> Iterator[str | int | Event]:
    yield ray.get_runtime_context().get_node_id()  # before any import, as an import can kill a process
    for event in events_of(spec, job if job.span is None else replace(job, payload=artifact)):
        if (n_bytes := _size(event)) > LARGE:
            yield n_bytes  # Ray does not say what there was no room for
        yield event


def _size(event: Event) -> int:
    """Approximate size of what a job hands over, in bytes."""
    if isinstance(event, Stepped):
        return len(event.state)
    return len(event.fitted.artifact) if isinstance(event, Trained) else 0


# On a CPU, the next job uses the same process, with libraries loaded and the model built. An accelerator is held until
# the process that opened it ends, so there each job has a process of its own. Ray refuses `.options(max_calls=1)`, and
# makes it the default for GPUs only.
_STREAM: dict[str, Any] = {
    "max_retries": 0,
    "num_returns": "streaming",
    "_generator_backpressure_num_objects": EVENTS_AHEAD,
}
run_job = ray.remote(**_STREAM)(_run_job)
run_job_and_exit = ray.remote(max_calls=1, **_STREAM)(_run_job)


@ray.remote(max_retries=0, num_cpus=0)
def _call(function: str) -> Any:
    return pkgutil.resolve_name(function)()


@dataclass
class _Attempt:
    job: Job
    node_id: str = ""  # empty while it waits for a place
    preferred: str | None = None  # node that it was sent to; it may run on another
    ends_by: float = math.inf
    n_bytes: int = 0  # of what it hands over next


class RayRunner:
    """A `jobs.Runner` on the connected Ray cluster.

    Training goes before prediction: a span of the test set only starts in a slot that no running or waiting fold needs.
    Folds are submitted to Ray at once, so that an autoscaler sees the demand.

    Args:
      spec: put into the object store once, read by every job.
      request: what each job takes from a node.
      max_parallel: at most this many jobs at once; None for as many as fit.
      spread: spread jobs over the cluster; False keeps them in the placement group that this process runs in.
      timeout_s: an attempt that runs for longer is stopped and fails.
      no_node_s: how long jobs wait for a node when none can hold them any more.
      busy_s: how long they wait for resources in use by others; None for as long as it takes.
      say: takes a line for the user.

    Attributes:
      note: what the run waits for, while others use it; else empty.
    """

    def __init__(
        self,
        spec: RunSpec,
        request: Request,
        max_parallel: int | None = None,
        spread: bool = True,
        *,
        timeout_s: float | None = None,
        no_node_s: float = NO_NODE_S,
        busy_s: float | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.note = ""
        # In a placement group, and in a Ray that this process started, nobody else can hold what this run waits for.
        self._crowd = Crowd(request, say, busy_s) if spread and not connect.is_own() else None
        with _room_for("the run's rows"):
            self._spec = ray.put(spec)
        self._request = request
        self._max_parallel = max_parallel or math.inf
        self._spread = spread
        self._timeout_s = timeout_s
        self._no_node_s = no_node_s
        self._waiting: deque[Job] = deque()
        self._waiting_spans: deque[Job] = deque()
        self._artifacts: dict[int, Any] = {}  # fold -> its artifact in the object store, while spans need it
        self._running: dict[Any, _Attempt] = {}
        self._look_at = 0.0
        self._nodes: list[Node] = []
        self._nodes_until = 0.0
        self._no_node_since: float | None = None

    @property
    def slots(self) -> int:
        return int(min(self._max_parallel, sum(self._request.slots(node) for node in cluster_nodes())))

    def submit(self, job: Job) -> None:
        if job.span is not None:
            if job.fold not in self._artifacts:
                with _room_for("a fitted fold", len(job.payload or b"")):
                    self._artifacts[job.fold] = ray.put(job.payload)
            self._waiting_spans.append(replace(job, payload=None))
        else:
            self._waiting.append(job)

    def events(self) -> Iterator[Event]:
        while self._waiting or self._waiting_spans or self._running:
            _check_ray()
            while self._waiting and len(self._running) < self._max_parallel:
                self._start(self._waiting.popleft())
            while self._waiting_spans and len(self._running) < max(self.slots, 1):
                self._start(self._waiting_spans.popleft())
            try:
                ready, _ = ray.wait(list(self._running), num_returns=1, timeout=1.0, fetch_local=False)
            except (exceptions.LocalRayletDiedError, exceptions.RaySystemError) as error:
                raise RunStoppedError(f"the Ray cluster was lost: {headline(error)}") from error
            _check_ray()
            for stream in ready:
                yield from self._next_of(stream)
            yield from self._overdue()
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + _LOOK_S
                yield from self._on_lost_nodes()
                yield from self._without_node()
                self._look_at_others()

    def _start(self, job: Job) -> None:
        # A placement group has its nodes already: a task that may not go there would wait for ever.
        avoid = job.avoid if self._spread and self._fits_outside(job.avoid) else ()
        prefer = self._emptiest(avoid) if self._spread else None
        options = self._request.options(self._spread, avoid, prefer) | {"name": job.name}
        run = run_job
        if self._request.device != "cpu":
            run = run_job_and_exit
            # A different environment keeps the attempt out of a process that has already run something else.
            options["runtime_env"] = {"env_vars": {"SETIBL_RAY_ATTEMPT": f"{job.name}.{job.attempt}"}}
        artifact = None if job.span is None else self._artifacts[job.fold]
        with _room_for("a fold's state", len(job.payload or b"")):
            stream = run.options(**options).remote(self._spec, job, artifact)
        self._running[stream] = _Attempt(job, preferred=prefer)

    def _emptiest(self, avoid: tuple[str, ...]) -> str | None:
        """The node with the fewest of this run's jobs, if one has room for another.

        Ray's own SPREAD goes round the nodes and sometimes skips one: two jobs on a node beside an empty one.
        """
        jobs = Counter(attempt.node_id or attempt.preferred for attempt in self._running.values())
        if time.monotonic() >= self._nodes_until:
            self._nodes, self._nodes_until = cluster_nodes(), time.monotonic() + _LOOK_S
        room = [
            (jobs[node.node_id], number, node.node_id)
            for number, node in enumerate(self._nodes)
            if node.node_id not in avoid and jobs[node.node_id] < self._request.slots(node)
        ]
        return min(room)[-1] if room else None

    def _next_of(self, stream: Any) -> Iterator[Event]:
        attempt = self._running[stream]
        job = attempt.job
        try:
            event: str | int | Event = _owned(ray.get(next(stream)))
        except StopIteration:
            yield self._end(stream, Failed(job.fold, "code", "the fold task ended without a result"))
            return
        except exceptions.RayError as error:
            message = (
                _no_room("a fold's result", attempt.n_bytes) if isinstance(error, _FULL) else headline(error)
            )
            yield self._end(stream, Failed(job.fold, _cause(error), message, str(error)))
            return
        if isinstance(event, str):
            attempt.node_id = event
            attempt.ends_by = time.monotonic() + (self._timeout_s or math.inf)
        elif isinstance(event, int):
            attempt.n_bytes = event
        elif isinstance(event, Failed):
            yield self._end(stream, event)
        elif isinstance(event, Started):
            yield replace(event, place=replace(event.place, node_id=attempt.node_id))
        else:
            if isinstance(event, Trained) and event.next_span:
                attempt.job = replace(job, span=event.next_span, payload=None)
                attempt.ends_by = time.monotonic() + (self._timeout_s or math.inf)
            elif isinstance(event, Trained | Predicted):
                del self._running[stream]
                self._forget_artifact(job.fold)
            yield event

    def _overdue(self) -> Iterator[Failed]:
        now = time.monotonic()
        for stream, attempt in list(self._running.items()):
            if now > attempt.ends_by:
                yield self._end(stream, Failed.late(attempt.job, self._timeout_s), stop=True)

    def _on_lost_nodes(self) -> Iterator[Failed]:
        """Attempts on nodes that Ray has declared dead: its connection to an unreachable host takes minutes to fail."""
        alive = {node.node_id for node in cluster_nodes()}
        for stream, attempt in list(self._running.items()):
            if attempt.node_id and attempt.node_id not in alive:
                yield self._end(stream, Failed(attempt.job.fold, "node-died", "the node was lost"), stop=True)

    def _without_node(self) -> Iterator[Failed]:
        """Folds whose nodes are all gone: Ray would let them wait forever without a message."""
        waiting = {stream: attempt for stream, attempt in self._running.items() if not attempt.node_id}
        now = time.monotonic()
        if not waiting:
            return
        if not self._fits_outside(()):
            self._no_node_since = self._no_node_since or now
            if now - self._no_node_since > self._no_node_s:
                text = (
                    f"no node that can hold {self._request} is left, and none came in {self._no_node_s:g} s"
                )
                for stream, attempt in waiting.items():
                    yield self._end(stream, Failed(attempt.job.fold, "no-node", text), stop=True)
            return
        self._no_node_since = None
        for stream, attempt in waiting.items():
            # All are gone except those to avoid.
            if attempt.job.avoid and not self._fits_outside(attempt.job.avoid):
                del self._running[stream]
                ray.cancel(stream, force=True)
                self._waiting.append(replace(attempt.job, avoid=()))

    def _look_at_others(self) -> None:
        if self._crowd:
            n_placed = sum(bool(attempt.node_id) for attempt in self._running.values())
            n_waiting = len(self._waiting) + len(self._waiting_spans) + len(self._running) - n_placed
            self.note = self._crowd.state(n_waiting, n_placed)

    def _fits_outside(self, avoid: tuple[str, ...]) -> bool:
        return any(self._request.slots(node) for node in cluster_nodes() if node.node_id not in avoid)

    def _end(self, stream: Any, failed: Failed, *, stop: bool = False) -> Failed:
        """Forget a failed attempt, which may have to be stopped first, and say where it was."""
        attempt = self._running.pop(stream)
        if stop:  # only if it has not ended by itself: Ray would kill the process, which may already run another job
            with suppress(exceptions.RayError, ValueError):
                ray.cancel(stream, force=True)
        node = next((node for node in ray.nodes() if node["NodeID"] == attempt.node_id), None)
        if node and failed.cause == "worker-died" and not node["Alive"]:
            failed = replace(failed, cause="node-died")
        name = node["NodeManagerHostname"] if node else ""
        return replace(failed, node=name, node_id=attempt.node_id, span=attempt.job.span)

    def _forget_artifact(self, fold: int) -> None:
        jobs = [*self._waiting_spans, *(attempt.job for attempt in self._running.values())]
        if not any(job.span is not None and job.fold == fold for job in jobs):
            self._artifacts.pop(fold, None)

    def cancel(self) -> None:
        self._waiting.clear()
        self._waiting_spans.clear()
        attempts = {} if connect.lost() else self._running
        self._running = {}
        # Waiting tasks first: they would start as soon as a running one ends.
        for has_begun in (False, True):
            _stop([stream for stream, attempt in attempts.items() if bool(attempt.node_id) == has_begun])


def _owned(event: Any) -> Any:
    """`event` with copied arrays. Ray's arrays are views of the object store: while one of them exists, everything that
    came with it stays in memory, such as a fold's artifact.
    """
    if isinstance(event, Trained):
        return replace(event, fitted=_copied(event.fitted))
    return replace(event, prediction=_copied(event.prediction)) if isinstance(event, Predicted) else event


def _copied(found: Fitted | Prediction) -> Any:
    columns = {name: np.array(value) for name, value in found.columns.items()}
    return replace(found, pred=np.array(found.pred), columns=columns)


def _check_ray() -> None:
    """Raises:
    RunStoppedError: a process without which this Ray cannot go on has ended.
    """
    if name := connect.lost():
        raise RunStoppedError(f"the Ray of this process was lost: its {name} has ended.")


def _stop(streams: list[Any]) -> None:
    """Cancel tasks, and kill those that do not end."""
    for stream in streams:
        ray.cancel(stream, force=False)
    ends = {stream.completed(): stream for stream in streams}
    if not ends:
        return
    _, unfinished = ray.wait(list(ends), num_returns=len(ends), timeout=SOFT_CANCEL_S)
    for end in unfinished:
        ray.cancel(ends[end], force=True)
    if unfinished:
        ray.wait(unfinished, num_returns=len(unfinished), timeout=SOFT_CANCEL_S)


def on_every_node(function: str, timeout_s: float = 10.0) -> dict[str, Any]:
    """Call the function named `package.module:function` on every node but this one, with a time limit.

    Returns:
      What it returned, by node id; nodes that failed or took longer are left out.
    """
    answers: dict[str, Any] = {}
    if connect.lost():
        return answers
    with suppress(exceptions.RayError):  # the cluster is gone
        here = ray.get_runtime_context().get_node_id()
        others = [node.node_id for node in cluster_nodes() if node.node_id != here]
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in others]
        calls = [_call.options(scheduling_strategy=place).remote(function) for place in places]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=timeout_s)
        for node, call in zip(others, calls):
            with suppress(exceptions.RayError):
                answers[node] = ray.get(call, timeout=0)
    return answers


@contextmanager
def _room_for(what: str, n_bytes: int = 0) -> Iterator[None]:
    """Raises:
    RunStoppedError: the object store of this machine is full, and so is the disk that it falls back on.
    """
    try:
        yield
    except _FULL as error:
        raise RunStoppedError(f"{_no_room(what, n_bytes)}.") from error


def _no_room(what: str, n_bytes: int) -> str:
    size = f" of {n_bytes / 1e6:.0f} MB" if n_bytes > LARGE else ""
    return (
        f"no room for {what}{size}: Ray's object store is full, and so is the disk of its temporary folder. Free disk "
        "space there, set TMPDIR to a larger disk, or give Ray a larger object store"
    )


def _cause(error: exceptions.RayError) -> Cause:
    if isinstance(error, _FULL):
        return "storage"
    if isinstance(error, exceptions.OutOfMemoryError):
        return "host-memory"
    if isinstance(error, exceptions.NodeDiedError | exceptions.ObjectLostError):
        return "node-died"
    if isinstance(error, exceptions.TaskUnschedulableError):
        return "no-node"
    if isinstance(error, exceptions.RayTaskError):
        return "code"
    return "worker-died"
