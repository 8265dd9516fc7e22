"""Run fold tasks on Ray: one streaming task per attempt, its events handed to the driver as they come.

A fold's events come back through Ray's object store, the weights with them, so no disk needs to be shared.
Retries are the driver's: Ray's own would start a fold from its beginning, and some of them without end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import ray
from ray import exceptions

from setibl_ray.cluster.placement import Request
from setibl_ray.contract import Cause, Event, Failed, FoldResult, Job, Plan, Task, events_of

SOFT_CANCEL_S = 5.0  # a soft cancel waits for the C code of a training step; after this it is a hard one


@ray.remote(max_retries=0, num_returns="streaming")
def run_job(task: Task | str, plan: Plan, job: Job) -> Iterator[Event]:
    yield from events_of(task, plan, job)


class RayRunner:
    """A `contract.Runner` on the connected Ray cluster.

    Args:
      task: the fold task or its dotted name.
      plan: put into the object store once, read by every job.
      request: what each job takes from a node.
      max_parallel: at most this many jobs at once; None for as many as fit.
      spread: spread jobs over the cluster; False keeps them in the placement group that this process runs in.
    """

    def __init__(
        self,
        task: Task | str,
        plan: Plan,
        request: Request,
        max_parallel: int | None = None,
        spread: bool = True,
    ) -> None:
        self._task = task
        self._plan = ray.put(plan)
        self._request = request
        self._spread = spread
        self._max_parallel = max_parallel or float("inf")
        self._waiting: deque[Job] = deque()
        self._running: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def events(self) -> Iterator[Event]:
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._max_parallel:
                self._start(self._waiting.popleft())
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=1.0, fetch_local=False)
            for stream in ready:
                yield from self._next_of(stream)

    def _start(self, job: Job) -> None:
        options = self._request.options(self._spread) | {"name": f"fold-{job.fold}"}
        if self._request.device != "cpu":
            # An accelerator is held until its process ends, and Ray may hand the next task the same process. Another
            # environment per attempt gives each a process of its own; CPU folds share one and trace only once.
            attempt = f"{job.fold}.{job.attempt}"
            options["runtime_env"] = {"env_vars": {"SETIBL_RAY_ATTEMPT": attempt}}
        stream = run_job.options(**options).remote(self._task, self._plan, job)
        self._running[stream] = job

    def _next_of(self, stream: Any) -> Iterator[Event]:
        job = self._running[stream]
        try:
            event: Event = ray.get(next(stream))
        except StopIteration:
            del self._running[stream]
            return
        except exceptions.RayError as error:
            del self._running[stream]
            yield Failed(job.fold, _cause(error), " ".join(str(error).split())[:500])
            return
        if isinstance(event, FoldResult | Failed):
            del self._running[stream]
        yield event

    def cancel(self) -> None:
        self._waiting.clear()
        streams = list(self._running)
        self._running.clear()
        for stream in streams:
            ray.cancel(stream, force=False)
        ends = {stream.completed(): stream for stream in streams}
        _, unfinished = (
            ray.wait(list(ends), num_returns=len(ends), timeout=SOFT_CANCEL_S) if ends else ([], [])
        )
        for end in unfinished:
            ray.cancel(ends[end], force=True)
        if unfinished:
            ray.wait(unfinished, num_returns=len(unfinished), timeout=SOFT_CANCEL_S)


def _cause(error: exceptions.RayError) -> Cause:
    if isinstance(error, exceptions.OutOfMemoryError):
        return "host-memory"
    if isinstance(error, exceptions.NodeDiedError | exceptions.ObjectLostError):
        return "node-died"
    if isinstance(error, exceptions.RayTaskError):
        return "code"
    return "worker-died"
