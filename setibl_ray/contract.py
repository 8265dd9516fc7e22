"""What travels between a driver and a fold: a plan and a job one way, events the other way.

A fold task is a generator, `task(plan, job) -> Iterator[Event]`. It yields `Started`, then `EpochEnd` after
every epoch with all it takes to go on from there, then one `FoldResult`; whatever goes wrong is yielded
as a `Failed`. A runner (plain loop or Ray) hands the events to the driver in the order in which they happen and
knows nothing else about a fold, so any other task with these events can be run in its place.
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

from setibl_ray.errors import ConfigError, DataError, SetiblError

if TYPE_CHECKING:
    import numpy as np

    from setibl_ray.config import Config
    from setibl_ray.data.shards import DataIndex

Cause = Literal[
    "config",
    "data",
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


@dataclass(frozen=True)
class Job:
    """One attempt at one fold.

    Attributes:
      state: what the last `EpochEnd` of an earlier attempt left, if any.
      avoid: `node_id`s that this attempt should not run on, as long as another node can take it.
    """

    fold: int
    attempt: int = 0
    state: bytes | None = field(default=None, repr=False)
    avoid: tuple[str, ...] = ()


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

    `valid_*` are needle probabilities (m,) float32 in the order of `Plan.valid_rows`, `test_*` (t,) float32 in
    test-table order (empty when test predictions were not asked for); `…_no_tta` from one plain pass.
    """

    fold: int
    valid_pred: np.ndarray
    valid_pred_no_tta: np.ndarray
    test_pred: np.ndarray
    test_pred_no_tta: np.ndarray
    best_epoch: int
    history: list[dict[str, float]]
    weights: bytes = field(
        repr=False
    )  # HDF5, as Keras' save_weights writes it; empty where they are not kept
    timings: dict[str, float]
    peak_memory_bytes: int


@dataclass(frozen=True)
class Failed:
    """A fold attempt that ended without a result."""

    fold: int
    cause: Cause
    message: str
    details: str = field(default="", repr=False)  # the worker's traceback
    node: str = ""  # where it ran, as far as the runner knows: an attempt may die before it can say `Started`
    node_id: str = ""

    @classmethod
    def late(cls, fold: int, timeout_s: float | None) -> Failed:
        return cls(fold, "time-limit", f"not done after {timeout_s:g} s (--fold-timeout-s)")

    @classmethod
    def from_exception(cls, fold: int, error: BaseException) -> Failed:
        """Name the cause by the exception's class; TensorFlow's are known by name, as the driver has no TensorFlow."""
        kind = type(error).__name__
        text = f"{error}"
        cause: Cause
        if isinstance(error, ConfigError):
            cause = "config"
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
        message = text if isinstance(error, SetiblError) else f"{kind}: {text}"
        return cls(fold, cause, message, "".join(traceback.format_exception(error)))


Event: TypeAlias = Started | EpochEnd | FoldResult | Failed
Task = Callable[[Plan, Job], Iterator[Event]]


def events_of(task: Task | str, plan: Plan, job: Job) -> Generator[Event, None, None]:
    """Run a task; an exception becomes its last event, since tracebacks with TensorFlow objects do not travel.

    A task may be named (`package.module:function`), so that a driver need not import what only workers need.
    """
    try:
        function: Task = pkgutil.resolve_name(task) if isinstance(task, str) else task
        yield from function(plan, job)
    except Exception as error:
        yield Failed.from_exception(job.fold, error)


class Runner(Protocol):
    """Runs jobs and hands out their events. `submit` may be called at any time, also while `events` is consumed."""

    def submit(self, job: Job) -> None: ...

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
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
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
                        yield Failed.late(job.fold, self._timeout_s)
                        break

    def cancel(self) -> None:
        self._jobs.clear()
