"""What a plan assumes where nothing is measured. Every value is a flag, `--assume.…`; defaults depend on the device.

flop      = 2 x multiply-adds x pixels                        of an image, forward; three times that in training
r_predict = devices of a fold x peak x utilisation / flop     images/s
r_train   = r_predict / 3
"""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, Field

from setibl_ray.core.errors import ConfigError
from setibl_ray.seti.config import NonNegative, PositiveInt, Section

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_NODES = re.compile(r"([1-9]\d*) ?x ?([A-Za-z][\w.-]*)(?::([1-9]\d*))?")
_ROWS = re.compile(r"(\d+)(?:\+(\d+))?")


class Device(NamedTuple):
    """One chip, GPU or core, and its share of a host."""

    peak_tflops: float
    # Share of the peak that an EfficientNet reaches: depthwise convolutions are memory-bound.
    utilisation: float
    build_s: float
    cpus: float
    memory_gb: float
    price: float | None = None  # dollars per hour, on demand
    spot_price: float | None = None  # the same, preemptible


# Peaks are the vendors', bfloat16 for the TPU, otherwise float32. Prices are Google's list prices, rounded, of v4-8 in
# us-central2 and g2-standard-16 in us-central1. Utilisations are guesses, except that of a CPU core (docs/cluster.md).
DEVICES = {
    "TPU-V4": Device(275, 0.05, 180, 60, 100, 3.25, 1.25),
    "L4": Device(30, 0.06, 60, 16, 64, 1.15, 0.50),
    "CPU": Device(0.1, 0.18, 10, 1, 4),
}


def _matching(pattern: re.Pattern[str], expected: str) -> BeforeValidator:
    def check(value: object) -> object:
        if value is not None and not pattern.fullmatch(str(value).strip()):
            raise ValueError(f"expected {expected}; got {value!r}")
        return value

    return BeforeValidator(check)


class Assume(Section):
    """What --plan assumes. Unset fields follow the device."""

    nodes: Annotated[str | None, _matching(_NODES, "NODES x DEVICE:COUNT, such as 5 x TPU-V4:4")] = None
    """Plan for a cluster that does not exist: NODES x DEVICE:COUNT, such as "5 x TPU-V4:4" or "3 x CPU:32"."""
    rows: Annotated[str | None, _matching(_ROWS, "TRAINING+TEST cadences, such as 60000+39995")] = None
    """Plan for cadences that do not exist: TRAINING+TEST, such as 60000+39995."""
    peak_tflops: Positive | None = None
    """Peak of one chip, GPU or core, TFLOP/s [TPU-V4 275, L4 30, CPU 0.1]."""
    utilisation: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the peak that a backbone reaches [TPU-V4 0.05, L4 0.06, CPU 0.18]."""
    start_s: NonNegative = 20.0
    """Seconds from a task's submission until it has its device: process, imports, TPU system."""
    build_s: NonNegative | None = None
    """Seconds to build and trace (on TPUs: compile) a model [TPU-V4 180, L4 60, CPU 10]."""
    cadences_per_s: Positive | None = None
    """Cadences per second that a node reads and decodes for its panel store [200 per core of a fold, at most 2,000]."""
    cpus_per_node: PositiveInt | None = None
    """Cores of a node of --assume.nodes [per device: TPU-V4 60, L4 16, CPU 1]."""
    memory_gb_per_node: Positive | None = None
    """Memory of a node of --assume.nodes, GB [per device: TPU-V4 100, L4 64, CPU 4]."""
    price: NonNegative | None = None
    """Dollars per hour for a node [per device: TPU-V4 3.25, L4 1.15; preemptible 1.25, 0.5]."""
    head_price: NonNegative = 0.20
    """Dollars per hour for a head node without folds."""
    setup_s: NonNegative = 600.0
    """Seconds from the start of a node, when its cost begins, to its first task."""
    idle_s: NonNegative = 600.0
    """Seconds that a node is paid for after its last task (idle_timeout_minutes of `ray up`)."""


class Nodes(NamedTuple):
    n_nodes: int
    device: str  # Ray's name, such as TPU-V4, or CPU
    n_devices: int  # per node

    @property
    def kind(self) -> str:
        """tpu, gpu or cpu."""
        return "cpu" if self.device == "CPU" else "tpu" if self.device.startswith("TPU") else "gpu"


def parse_nodes(text: str) -> Nodes:
    """`5 x TPU-V4:4`; a missing count is 1."""
    n_nodes, device, n_devices = _NODES.fullmatch(text.strip()).groups()  # type: ignore[union-attr]
    return Nodes(int(n_nodes), device.upper(), int(n_devices or 1))


def parse_rows(text: str) -> tuple[int, int]:
    """`60000+39995`: training and test cadences; without a plus, no test set."""
    train, test = _ROWS.fullmatch(text.strip()).groups()  # type: ignore[union-attr]
    return int(train), int(test or 0)


def device_of(assume: Assume, name: str) -> Device:
    """What is assumed about a device; flags override defaults.

    Raises:
      ConfigError: a device has no defaults, and not all flags that would replace them are given.
    """
    known = DEVICES.get(name)
    given = {field: getattr(assume, field) for field in ("peak_tflops", "utilisation", "build_s")}
    lacking = [f"--assume.{field.replace('_', '-')}" for field, value in given.items() if value is None]
    if known is None and lacking:
        raise ConfigError(
            f"assume: nothing is known about {name}, only about {', '.join(DEVICES)}. Give {', '.join(lacking)}, "
            "or --rates RUN with a run on such a device."
        )
    flags = {field: value for field, value in given.items() if value is not None}
    return (known or Device(0, 0, 0, 0, 0))._replace(**flags)
