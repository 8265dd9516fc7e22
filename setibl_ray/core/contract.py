"""What travels between a driver and a fold: a plan and a job one way, events the other way.

A fold task is a generator, `task(plan, job) -> Iterator[Event]`. For a `Job` it yields `Started`, then `EpochEnd`
after every epoch with all it takes to go on from there, then one `FoldResult`; for a `PredictJob`, a span of the test
set under the weights of a trained fold, `Started` and one `Predicted`. Whatever goes wrong is yielded as a `Failed`. A
runner (plain loop or Ray) hands the events to the driver in the order in which they happen and knows nothing else
about a fold, so any other task with these events can be run in its place.
"""

from __future__ import annotations

import os
import pkgutil
import platform
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from setibl_ray.core.errors import ConfigError, DataError, SetiblError, StorageError
from setibl_ray.core.terminal import headline

if TYPE_CHECKING:
    import numpy as np

    from setibl_ray.seti.config import Config
    from setibl_ray.seti.formats.shards import DataIndex

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


Span: TypeAlias = tuple[int, int]
"""(start, stop): rows of the test table."""


@dataclass(frozen=True)
class Plan:
    """What all folds of a run share."""

    config: Config
    index: DataIndex
    fold_of_row: np.ndarray  # (n_train,) int16: the fold that holds a training row out
    scratch: str  # folder on each node for decoded panels; the same name on every node
    predict_test: bool = True
    build_model: Callable[..., Any] | None = None  # (image_shape, config, fold_config) -> Keras model

    def train_rows(self, fold: int) -> np.ndarray:
        return (self.fold_of_row != fold).nonzero()[0]

    def valid_rows(self, fold: int) -> np.ndarray:
        return (self.fold_of_row == fold).nonzero()[0]

    @property
    def n_test(self) -> int:
        """Rows of the test set to predict."""
        return len(self.index.test) if self.predict_test else 0

    def prediction_batch(self, fold: int, n_replicas: int) -> int:
        """Images per prediction step over all replicas: twice those of training (the seed's): no gradients are kept."""
        return 2 * n_replicas * self.config.for_fold(fold).batch_size


@dataclass(frozen=True)
class Job:
    """One attempt at training one fold.

    Attributes:
      state: what the last `EpochEnd` of an earlier attempt left, if any.
      avoid: `node_id`s that this attempt should not run on, as long as another node can take it.
    """

    fold: int
    attempt: int = 0
    state: bytes | None = field(default=None, repr=False)
    avoid: tuple[str, ...] = ()

    span = None  # of the test set: a training job has none

    @property
    def name(self) -> str:
        return f"fold-{self.fold}"


@dataclass(frozen=True)
class PredictJob:
    """One attempt at a span of the test set, under the weights that a fold ended with.

    A span's bytes do not depend on how the test set was cut, as long as every cut lies between two batches.

    Attributes:
      weights: the `FoldResult`'s.
    """

    fold: int
    span: Span
    weights: bytes = field(repr=False)
    attempt: int = 0
    avoid: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"fold-{self.fold}-test-{self.span[0]}"


@dataclass(frozen=True)
class Place:
    """Where a fold runs."""

    node: str
    pid: int
    device: str  # "cpu", "gpu" or "tpu"
    n_replicas: int
    threads: int
    visible: dict[str, str]  # the variables that tell frameworks which accelerators are theirs
    node_id: str = ""  # the cluster's own name of the node, filled in by a runner that has one

    @classmethod
    def here(cls, device: str, n_replicas: int, threads: int) -> Place:
        names = ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "TPU_CHIPS_PER_HOST_BOUNDS", "TPU_HOST_BOUNDS")
        visible = {name: os.environ[name] for name in names if name in os.environ}
        return cls(socket.gethostname() or platform.node(), os.getpid(), device, n_replicas, threads, visible)


@dataclass(frozen=True)
class Started:
    fold: int
    place: Place
    span: Span | None = None


@dataclass(frozen=True)
class EpochEnd:
    """An epoch is over. `row` is its line of history.csv; `state` lets another process go on from here."""

    fold: int
    epoch: int
    n_epochs: int
    row: dict[str, float]
    state: bytes = field(repr=False)


@dataclass(frozen=True)
class FoldResult:
    """What a fold found, all of it from the weights of its best epoch.

    `valid_*` are needle probabilities (m,) float32 in the order of `Plan.valid_rows`; `…_no_tta` from one plain pass.
    """

    fold: int
    valid_pred: np.ndarray
    valid_pred_no_tta: np.ndarray
    best_epoch: int
    history: list[dict[str, float]]
    weights: bytes = field(
        repr=False
    )  # HDF5, as Keras' save_weights writes it; empty where they are not kept
    timings: dict[str, float]
    peak_memory_bytes: int


@dataclass(frozen=True)
class Predicted:
    """Needle probabilities of a span of the test set: the mean over views and those of one plain pass.

    `pred` and `pred_no_tta` are (stop - start,) float32 in test-table order.
    """

    fold: int
    span: Span
    pred: np.ndarray
    pred_no_tta: np.ndarray
    timings: dict[str, float]


@dataclass(frozen=True)
class Failed:
    """An attempt that ended without a result; at a span of the test set, or at training where there is none."""

    fold: int
    cause: Cause
    message: str
    details: str = field(default="", repr=False)  # the worker's traceback
    node: str = ""  # where it ran, as far as the runner knows: an attempt may die before it can say `Started`
    node_id: str = ""
    span: Span | None = None

    @classmethod
    def late(cls, job: AnyJob, timeout_s: float | None) -> Failed:
        message = f"not done after {timeout_s:g} s (--fold-timeout-s)"
        return cls(job.fold, "time-limit", message, span=job.span)

    @classmethod
    def from_exception(cls, job: AnyJob, error: BaseException) -> Failed:
        """Name the cause by the exception's class; TensorFlow's are known by name, as the driver has no TensorFlow."""
        kind = type(error).__name__
        text = f"{error}"
        cause: Cause
        if isinstance(error, ConfigError):
            cause = "config"
        elif isinstance(error, StorageError):
            cause = "storage"
        elif isinstance(error, DataError):
            cause = "data"
        elif kind == "ResourceExhaustedError":
            cause = "device-memory"
        elif isinstance(error, MemoryError):
            cause = "host-memory"
        elif "libtpu" in text or "TPU is already in use" in text:
            cause = "tpu-busy"
        else:
            cause = "code"
        message = text if isinstance(error, SetiblError) else f"{kind}: {headline(text)}"
        details = "".join(traceback.format_exception(error))
        return cls(job.fold, cause, message, details, span=job.span)


AnyJob: TypeAlias = Job | PredictJob
Event: TypeAlias = Started | EpochEnd | FoldResult | Predicted | Failed
Task = Callable[[Plan, AnyJob], Iterator[Event]]


def events_of(task: Task | str, plan: Plan, job: AnyJob) -> Generator[Event, None, None]:
    """Run a task; an exception becomes its last event, since tracebacks with TensorFlow objects do not travel.

    A task may be named (`package.module:function`), so that a driver need not import what only workers need.
    """
    try:
        function: Task = pkgutil.resolve_name(task) if isinstance(task, str) else task
        yield from function(plan, job)
    except Exception as error:
        yield Failed.from_exception(job, error)


class Runner(Protocol):
    """Runs jobs and hands out their events. `submit` may be called at any time, also while `events` is consumed."""

    @property
    def slots(self) -> int:
        """How many jobs can run at once."""
        ...

    def submit(self, job: AnyJob) -> None: ...

    def events(self) -> Iterator[Event]:
        """Events of all submitted jobs until none is left; `Failed` is the last event of an attempt that ends badly."""
        ...

    def cancel(self) -> None:
        """Stop what runs, politely and then firmly; afterwards no process works for this runner."""
        ...


class LocalRunner:
    """A plain loop in this process: one job after another. The readable specification of a runner.

    Nothing can stop a step of its own process, so `timeout_s` is looked at when an event comes.
    """

    def __init__(self, task: Task | str, plan: Plan, timeout_s: float | None = None) -> None:
        self._task = task
        self._plan = plan
        self._timeout_s = timeout_s
        self._jobs: deque[AnyJob] = deque()

    slots = 1

    def submit(self, job: AnyJob) -> None:
        if isinstance(job, PredictJob):  # while the process still has that fold's model
            self._jobs.appendleft(job)
        else:
            self._jobs.append(job)

    def events(self) -> Iterator[Event]:
        while self._jobs:
            job = self._jobs.popleft()
            started = time.monotonic()
            with closing(events_of(self._task, self._plan, job)) as events:
                for event in events:
                    yield event
                    late = self._timeout_s and time.monotonic() - started > self._timeout_s
                    if late and isinstance(event, Started | EpochEnd):
                        yield Failed.late(job, self._timeout_s)
                        break

    def cancel(self) -> None:
        self._jobs.clear()
