"""TPU slices: from an accelerator type or a topology to chips and hosts, with Ray's own tables."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ray._private.accelerators import tpu as ray_tpu

# Cloud TPU has TensorFlow builds for these; later generations only run JAX and PyTorch.
TENSORFLOW_GENERATIONS = ("v2", "v3", "v4", "v5litepod", "v5p")
_TYPE = re.compile(r"^(v\d+[a-z]*)-(\d+)$")


@dataclass(frozen=True)
class Slice:
    """Connected chips, on one host or several."""

    generation: str  # as in an accelerator type: v4, v5litepod, …
    chips: int

    @property
    def accelerator_type(self) -> str:
        return f"{self.generation}-{self.chips * ray_tpu.get_tpu_cores_per_chip(self.generation)}"

    @property
    def chips_per_host(self) -> int:
        return ray_tpu.get_num_tpu_visible_chips_per_host(self.accelerator_type)

    @property
    def hosts(self) -> int:
        return math.ceil(self.chips / self.chips_per_host)


def from_type(accelerator_type: str) -> Slice:
    """`v4-8` counts TensorCores (two per chip), `v5litepod-8` counts chips.

    Raises:
      ValueError: no such type; the message says what is expected.
    """
    match = _TYPE.match(accelerator_type)
    generation = match.group(1) if match else ""
    if generation not in ray_tpu.VALID_TPU_TYPES:
        raise ValueError(f"GENERATION-SIZE with one of {', '.join(ray_tpu.VALID_TPU_TYPES)}, such as v4-8")
    cores_per_chip = ray_tpu.get_tpu_cores_per_chip(generation)
    size = int(match.group(2)) if match else 0
    chips = size // cores_per_chip
    # A slice on one host has all its chips (v5litepod: 1, 4 or 8); larger slices consist of whole hosts.
    sizes = (1, 4, 8) if generation in ray_tpu.TPU_8_CHIPS_PER_HOST_TYPES else (4,)
    if size % cores_per_chip or (chips not in sizes and (chips <= max(sizes) or chips % 4)):
        offered = ", ".join(f"{generation}-{chips * cores_per_chip}" for chips in sizes)
        raise ValueError(f"a size that is offered: {offered} on one host")
    return Slice(generation, chips)


def from_topology(generation: str, topology: str) -> Slice:
    """
    Raises:
      ValueError: the generation has no such topology; the message says what is expected.
    """
    known = ray_tpu.VALID_TPU_TOPOLOGY.get(generation, set())
    if topology not in known:
        small = sorted(known, key=lambda shape: (math.prod(map(int, shape.split("x"))), shape))[:4]
        raise ValueError(f"a topology of {generation}: {', '.join(small)}, …")
    return Slice(generation, math.prod(map(int, topology.split("x"))))
