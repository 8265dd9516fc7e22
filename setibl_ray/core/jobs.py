"""What travels between a driver and a worker: a run's specification and a job one way, events the other way.

`events_of` runs a job in place and yields `Started`; then a fit yields a `Stepped` after each step and one
`Trained`, and a span of the test set yields one `Predicted`. On an accelerator, a fit goes on with the test set if that
is one span. Any failure is a `Failed`, the last event of its attempt. A runner (a plain loop or Ray) passes events to
the driver in the order in which they happen, and knows nothing else about a job.
"""

from __future__ import annotations

import os
import pkgutil
import platform
import socket
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from setibl_ray.core.errors import SetiblError
from setibl_ray.core.spans import fit_goes_on
from setibl_ray.core.task import Fitted, Prediction, Rows, Span, Step, Task, Work
from setibl_ray.core.terminal import headline

Cause = Literal[
    "config",
    "data",
    "storage",
    "device-memory",
    "tpu-busy",
    "code",
    "worker-died",
    "node-died",
    "host-memory",
    "time-limit",
    "no-node",
]


@dataclass(frozen=True)
class RunSpec:
    """What all jobs of a run share.

    Attributes:
      task: itself, or its dotted name, `package.module:NAME`, so that a driver need not load what only workers need.
      config, rows: settled, see `Task`.
      fold_of_row: (n,) int16, the fold that holds a training row out.
      scratch: folder on each node for temporary files; the same name on every node.
      predict_test: whether folds predict the test set.
      files: content of the user's files that the config names.
    """

    task: Task | str
    config: Any
    rows: Rows
    fold_of_row: np.ndarray
    scratch: str
    predict_test: bool = True
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def valid(self, fold: int) -> np.ndarray:
        return (self.fold_of_row == fold).nonzero()[0]

    @property
    def n_test(self) -> int:
        """Rows of the test set to predict."""
        return len(self.rows.test) if self.predict_test else 0


def load_task(task: Task | str) -> Task:
    return pkgutil.resolve_name(task) if isinstance(task, str) else task


@dataclass(frozen=True)
class Job:
    """One attempt at fitting a fold, or at predicting a span of the test set with it.

    Attributes:
      span: of the test set; None to fit.
      step: number of finished steps of the fit.
      avoid: `node_id`s that this attempt should not run on, as long as another node can take it.
      payload: what the last step of an earlier attempt left, or the fitted fold's artifact.
    """

    fold: int
    span: Span | None = None
    attempt: int = 0
    step: int = 0
    avoid: tuple[str, ...] = ()
    payload: bytes | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return f"fold-{self.fold}" + (f"-test-{self.span[0]}" if self.span else "")


@dataclass(frozen=True)
class Place:
    """Where a job runs.

    Attributes:
      device: `cpu`, `gpu`, `tpu`, or `auto` where only the task can tell.
      cpus: cores of the job.
      share: fraction of a device, if jobs share one.
      visible: the variables that tell frameworks which accelerators are theirs.
      node_id: the cluster's own name of the node, filled in by a runner that has one.
    """

    node: str
    pid: int
    device: str
    cpus: int
    share: float = 1.0
    visible: Mapping[str, str] = field(default_factory=dict)
    node_id: str = ""

    @classmethod
    def here(cls, config: Any) -> Place:
        names = ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "TPU_CHIPS_PER_HOST_BOUNDS", "TPU_HOST_BOUNDS")
        visible = {name: os.environ[name] for name in names if name in os.environ}
        share = min(1.0, config.devices_per_fold or 1.0)
        node = socket.gethostname() or platform.node()
        return cls(node, os.getpid(), config.device, config.cpus_per_fold or 1, share, visible)


@dataclass(frozen=True)
class Started:
    fold: int
    place: Place
    span: Span | None = None


@dataclass(frozen=True)
class Stepped:
    """Step number `step` (from 0) of a fit is over."""

    fold: int
    step: int
    row: Mapping[str, float]
    state: bytes = field(repr=False)

    span = None


@dataclass(frozen=True)
class Trained:
    """A fit is over; its process goes on with `next_span` of the test set, or ends."""

    fold: int
    fitted: Fitted
    next_span: Span | None = None

    span = None


@dataclass(frozen=True)
class Predicted:
    fold: int
    span: Span
    prediction: Prediction


@dataclass(frozen=True)
class Failed:
    """An attempt that ended without a result, at a span of the test set or (None) at fitting."""

    fold: int
    cause: Cause
    message: str
    details: str = field(default="", repr=False)  # the worker's traceback
    node: str = ""  # where it ran, if the runner knows: an attempt may die before it can send `Started`
    node_id: str = ""
    span: Span | None = None

    @classmethod
    def late(cls, job: Job, timeout_s: float | None) -> Failed:
        message = f"not done after {timeout_s:g} s (--fold-timeout-s)"
        return cls(job.fold, "time-limit", message, span=job.span)


Event: TypeAlias = Started | Stepped | Trained | Predicted | Failed


def events_of(spec: RunSpec, job: Job) -> Generator[Event, None, None]:
    """Run a job; an exception becomes its last event, as the objects of a traceback may not be picklable."""
    task: Task | None = None
    span, artifact = job.span, job.payload
    try:
        task = load_task(spec.task)
        place = Place.here(spec.config)
        yield Started(job.fold, place, span)
        work = Work(spec.config, spec.rows, job.fold, spec.fold_of_row, place, spec.scratch, files=spec.files)
        if span is None:
            fitted = yield from _fit(task, replace(work, step=job.step, state=job.payload))
            if spec.n_test and fit_goes_on(place.device, fitted.row_s * spec.n_test):
                span, artifact = (0, spec.n_test), fitted.artifact
            yield Trained(job.fold, fitted, span)
            if span:
                yield Started(job.fold, place, span)
        if span:
            work = replace(work, span=span, artifact=artifact or b"")
            yield Predicted(job.fold, span, _predict(task, work))
    except Exception as error:
        cause = task.cause_of(error) if task else "code"
        text = f"{error}" if isinstance(error, SetiblError) else f"{type(error).__name__}: {headline(error)}"
        details = "".join(traceback.format_exception(error))
        yield Failed(job.fold, cause, text, details, span=span)


def _fit(task: Task, work: Work) -> Generator[Event, None, Fitted]:
    step = work.step
    for found in task.fit(work):
        if isinstance(found, Step):
            yield Stepped(work.fold, step, dict(found.row), found.state)
            step += 1
            continue
        expected = len(work.valid)
        if not isinstance(found, Fitted) or len(found.pred) != expected:
            got = f"{len(found.pred)} predictions" if isinstance(found, Fitted) else type(found).__name__
            raise TypeError(f"fit: expected a Step, or a Fitted with {expected} predictions; got {got}")
        return found
    raise TypeError("fit ended without a Fitted")


def _predict(task: Task, work: Work) -> Prediction:
    found = task.predict(work)
    prediction = found if isinstance(found, Prediction) else Prediction(np.asarray(found))
    expected = work.span[1] - work.span[0]
    if len(prediction.pred) != expected:
        raise TypeError(f"predict: expected {expected} predictions, got {len(prediction.pred)}")
    return prediction


class Runner(Protocol):
    """Runs jobs and yields their events. `submit` may be called at any time, also while `events` is consumed."""

    note: str
    """Why nothing runs, if no event says so; else empty."""

    @property
    def slots(self) -> int:
        """How many jobs can run at once."""
        ...

    def submit(self, job: Job) -> None: ...

    def events(self) -> Iterator[Event]:
        """Events of all submitted jobs until none is left; `Failed` is the last event of an attempt that ends badly."""
        ...

    def cancel(self) -> None:
        """Cancel running jobs, and kill those that do not end; afterwards no process works for this runner."""
        ...


class LocalRunner:
    """A plain loop in this process: one job after another. The readable specification of a runner.

    A step in this process cannot be stopped, so `timeout_s` is only checked when an event arrives.
    """

    def __init__(self, spec: RunSpec, timeout_s: float | None = None) -> None:
        self._spec = spec
        self._timeout_s = timeout_s
        self._fits: deque[Job] = deque()
        self._spans: deque[Job] = deque()

    slots, note = 1, ""

    def submit(self, job: Job) -> None:
        (self._fits if job.span is None else self._spans).append(job)

    def events(self) -> Iterator[Event]:
        while self._spans or self._fits:
            job = (self._spans or self._fits).popleft()  # spans first: their model is still in memory
            started = time.monotonic()
            with closing(events_of(self._spec, job)) as events:
                for event in events:
                    yield event
                    if isinstance(event, Trained):
                        started = time.monotonic()  # the span that may follow is an attempt of its own
                    late = self._timeout_s and time.monotonic() - started > self._timeout_s
                    if late and isinstance(event, Started | Stepped):
                        yield Failed.late(replace(job, span=event.span), self._timeout_s)
                        break

    def cancel(self) -> None:
        self._fits.clear()
        self._spans.clear()
