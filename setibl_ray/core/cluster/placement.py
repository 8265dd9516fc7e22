"""What a fold requests of a node, and whether any node can provide it: decided before anything runs.

Ray lets an impossible request wait forever without a message; here it is refused at once, with what was requested, what
the cluster has, and the nearest request that fits.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from setibl_ray.core.cluster.rules import tpu
from setibl_ray.core.errors import PlacementError
from setibl_ray.core.task import Needs
from setibl_ray.core.where import Where

NODE_ID_LABEL = "ray.io/node-id"  # every node has it
POD_TYPE_LABEL = "ray.io/tpu-pod-type"  # Ray puts it on TPU hosts of Google: v4-8, v4-16, …
_TYPE_PREFIX = "accelerator_type:"  # Ray counts a generation as a resource: each of its nodes has one
_ARGUMENTS = {
    "CPU": "num_cpus",
    "GPU": "num_gpus",
    "memory": "memory",
}  # Ray's options by resource; all others go into `resources`
TPU_CHIP_COUNTS = (1, 2, 4, 8)  # numbers that Ray can make visible on one host; it refuses all others


@dataclass(frozen=True)
class Node:
    """A node's totals, as the cluster reports them."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    node_id: str = ""

    def total(self, resource: str) -> float:
        return self.resources.get(resource, 0.0)

    def devices(self, kind: str) -> int:
        """How many devices of a kind (`gpu`, `tpu`) one fold could have here."""
        return 0 if kind == "tpu" and self.is_slice_part else int(self.total(kind.upper()))

    @property
    def accelerator_types(self) -> list[str]:
        return [name.removeprefix(_TYPE_PREFIX) for name in self.resources if name.startswith(_TYPE_PREFIX)]

    @property
    def is_slice_part(self) -> bool:
        """Whether this is one of several hosts of a TPU slice: TensorFlow on it would wait for the others forever."""
        try:
            return tpu.from_type(self.labels.get(POD_TYPE_LABEL, "")).hosts > 1
        except ValueError:
            return False


@dataclass(frozen=True)
class Request:
    """What one fold takes from one node."""

    device: str  # "cpu", "gpu" or "tpu"
    cpus: int
    gpus: float = 0  # a fraction of one if folds share it
    tpu_chips: int = 0
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    # Memory that Ray books on a node: it makes other jobs wait for memory, but enforces nothing.
    memory_bytes: int = 0
    slices: tuple[str, ...] = ()  # types of TPU slices whose hosts it must not run on

    @property
    def resources(self) -> dict[str, float]:
        """Ray's resource names and amounts."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "TPU": self.tpu_chips, "memory": self.memory_bytes}
        if self.accelerator_type:
            wanted[_TYPE_PREFIX + self.accelerator_type] = 0.001
        return {name: amount for name, amount in wanted.items() if amount}

    def options(self, spread: bool = True, avoid: Sequence[str] = (), prefer: str | None = None) -> dict:
        """Keyword arguments of a Ray task's `.options`.

        Args:
          spread: over the cluster; otherwise it stays in its caller's placement group.
          avoid: ids of nodes that it must not run on.
          prefer: id of a node to run on if it has room.
        """
        amounts = self.resources
        options: dict = {key: amounts.pop(name) for name, key in _ARGUMENTS.items() if name in amounts}
        options["resources"] = amounts
        if spread:
            near = prefer and NodeAffinitySchedulingStrategy(prefer, soft=True, _spill_on_unavailable=True)
            options["scheduling_strategy"] = near or "SPREAD"
        if selector := self.selector(avoid):
            options["label_selector"] = selector
        return options

    def selector(self, avoid: Sequence[str] = ()) -> dict[str, str]:
        """Ray's label selector: the user's labels, and nodes that it must not run on."""
        # No space after the commas: Ray 2.60 would read it as part of the next value, and allow that node.
        never = {NODE_ID_LABEL: avoid, POD_TYPE_LABEL: self.slices}
        return dict(self.labels) | {
            key: f"!in({','.join(values)})" for key, values in never.items() if values
        }

    def matches(self, node: Node) -> bool:
        """Whether `node` is of the requested kind, whatever its amounts."""
        typed = not self.accelerator_type or self.accelerator_type in node.accelerator_types
        return typed and all(node.labels.get(key) == value for key, value in self.labels.items())

    def slots(self, node: Node) -> int:
        """How many such folds `node` can hold at once."""
        if not self.matches(node) or (self.tpu_chips and not node.devices("tpu")):
            return 0
        return int(min(node.total(name) / amount + 1e-9 for name, amount in self.resources.items()))

    def __str__(self) -> str:
        parts = [f"{self.gpus:g} GPU" * bool(self.gpus), f"{self.tpu_chips} TPU chips" * bool(self.tpu_chips)]
        parts += [f"{self.cpus} CPU"]
        parts += [f"accelerator type {self.accelerator_type}"] if self.accelerator_type else []
        parts += [f"label {key}={value}" for key, value in self.labels.items()]
        return ", ".join(part for part in parts if part) + " on one node"


class Ask(NamedTuple):
    """What a user requests; together with the cluster's nodes it gives a `Request`."""

    device: str = "auto"
    cpus: int | None = None
    devices: float | None = None
    folds: int = 1
    accelerator_type: str | None = None
    labels: Mapping[str, str] = {}

    @classmethod
    def of(cls, config: Any, needs: Needs, where: Where) -> Ask:
        """Flags first, then what the task needs."""
        devices = config.devices_per_fold or needs.gpus
        cpus = config.cpus_per_fold or needs.cpus
        return cls(config.device, cpus, devices, config.folds, where.accelerator_type, where.labels)


def cluster_nodes() -> list[Node]:
    """The live nodes of the connected cluster."""
    return [
        Node(node["NodeManagerHostname"], node["Resources"], node.get("Labels") or {}, node["NodeID"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def request_for(ask: Ask, nodes: Sequence[Node]) -> Request:
    """The request of every fold of a run.

    `--device auto` takes TPUs if there are any, otherwise GPUs, otherwise CPUs. A fold takes a whole TPU VM (all
    chips of its host), or one GPU, unless `devices` says otherwise; and `cpus`, by default an equal share of
    the cores.

    Raises:
      PlacementError: no node can ever hold it.
    """
    request = _wanted(ask, nodes)
    if not any(request.slots(node) for node in nodes):
        raise PlacementError(_explain(request, nodes, _nearest(ask, nodes)))
    return request


def with_memory(request: Request, wanted_bytes: int, nodes: Sequence[Node]) -> Request:
    """The request with an amount of memory, at most that of the largest node that can hold it.

    The amount is an estimate: if it is more than any node has, a fold runs alone on its node instead of not at all.
    If each node has enough memory for as many folds as it can hold anyway, none is requested: an autoscaler only starts
    nodes for resources that their entries in the cluster file name, and few entries name memory.
    """
    able = [node for node in nodes if request.slots(node)]
    most = max((node.total("memory") for node in able), default=0)
    asking = replace(request, memory_bytes=min(wanted_bytes, int(most)))
    return asking if any(asking.slots(node) < request.slots(node) for node in able) else request


def wait_for_placement(
    ask: Ask,
    timeout_s: float,
    say: Callable[[str], None],
    *,
    look: Callable[[], Sequence[Node]] = cluster_nodes,
    poll_s: float = 2.0,
) -> Request:
    """The request of every fold, once the cluster can hold one.

    Args:
      ask: what is asked for.
      timeout_s: how long to wait for the cluster to grow. Meanwhile a task with the smallest request waits in Ray's
        queue, which makes an autoscaler start a node.
      say: takes a line that says what is being waited for.
      look: returns the nodes of the cluster.
      poll_s: seconds between looks.

    Raises:
      PlacementError: still impossible after `timeout_s`.
    """
    nodes = look()
    try:
        return request_for(ask, nodes)
    except PlacementError as error:
        if not timeout_s:
            raise
        say(f"waiting up to {timeout_s:g} s for the cluster to grow: {error}")
    deadline = time.monotonic() + timeout_s
    with _demand(_least(ask, nodes)):
        while True:
            time.sleep(poll_s)
            try:
                return request_for(ask, look())
            except PlacementError as error:
                if time.monotonic() >= deadline:
                    raise PlacementError(
                        f"{error} (waited {timeout_s:g} s for the cluster to grow)"
                    ) from None


@ray.remote(max_retries=0)
def _nothing() -> None:
    pass


@contextmanager
def _demand(request: Request) -> Iterator[None]:
    task = _nothing.options(**request.options(), name="waiting for a node").remote()
    try:
        yield
    finally:
        with suppress(ray.exceptions.RayError):
            ray.cancel(task)


def _wanted(ask: Ask, nodes: Sequence[Node]) -> Request:
    """The request, whether or not a node can hold it."""
    bare = _least(ask, nodes)
    if bare.device == "tpu":
        chips = ask.devices or _common_chip_count(bare, nodes)
        if chips not in TPU_CHIP_COUNTS:
            raise PlacementError(
                f"devices-per-fold: a fold takes {', '.join(map(str, TPU_CHIP_COUNTS[:-1]))} or "
                f"{TPU_CHIP_COUNTS[-1]} TPU chips of one host; got {chips:g}"
            )
        slices = {node.labels[POD_TYPE_LABEL] for node in nodes if node.is_slice_part}
        bare = replace(bare, tpu_chips=int(chips), slices=tuple(sorted(slices)))
    return replace(bare, cpus=ask.cpus or _cpu_share(bare, nodes, ask.folds))


def _least(ask: Ask, nodes: Sequence[Node]) -> Request:
    """The smallest request of a fold: one of each resource for which no number is given."""
    wanted = Request("cpu", ask.cpus or 1, accelerator_type=ask.accelerator_type, labels=ask.labels)
    device = ask.device
    if device == "auto":
        device = _best_device([node for node in nodes if wanted.matches(node)])
    count = ask.devices or 1
    return replace(
        wanted,
        device=device,
        gpus=count if device == "gpu" else 0,
        tpu_chips=max(1, int(count)) if device == "tpu" else 0,
    )


def _best_device(nodes: Sequence[Node]) -> str:
    return next((kind for kind in ("tpu", "gpu") if any(node.devices(kind) for node in nodes)), "cpu")


def _common_chip_count(request: Request, nodes: Sequence[Node]) -> int:
    """The commonest number of chips per host; 4 if there is no TPU, for the message."""
    counts = [node.devices("tpu") for node in nodes if node.devices("tpu") and request.matches(node)]
    return max(set(counts), key=lambda count: (counts.count(count), count)) if counts else 4


def _cpu_share(bare: Request, nodes: Sequence[Node], folds: int) -> int:
    """Cores of a fold: on CPUs as many as let all folds run at once, otherwise its device's share of the node's."""
    able = [(node.total("CPU"), bare.slots(node)) for node in nodes if bare.slots(node)]
    if bare.device != "cpu":
        return max(1, int(min((cpus / slots for cpus, slots in able), default=1)))
    shares = range(int(max(able, default=(1, 0))[0]), 1, -1)
    return next((share for share in shares if sum(cpus // share for cpus, _ in able) >= folds), 1)


def _explain(request: Request, nodes: Sequence[Node], nearest: list[str]) -> str:
    kinds = Counter(_description(node, request.labels) for node in nodes)
    has = "; ".join(f"{count} x {text}" for text, count in sorted(kinds.items())) or "no nodes"
    fits = f"Nearest that fits: {', '.join(nearest)}."
    if not nearest:
        fits = "Nodes that an autoscaler has yet to start are waited for with --placement-timeout-s."
    return f"a fold asks for {request}, but no node has that. The cluster has: {has}. {fits}"


def _description(node: Node, label_keys: Iterable[str]) -> str:
    shown = {name: node.total(name) for name in ("CPU", "GPU", "TPU") if node.total(name)}
    text = " + ".join(f"{amount:g} {name}" for name, amount in shown.items()) or "nothing"
    remarks = [
        *node.accelerator_types,
        *(f"{key}={node.labels[key]}" for key in label_keys if key in node.labels),
        *([f"one host of a {node.labels[POD_TYPE_LABEL]} slice"] if node.is_slice_part else []),
    ]
    return text + (f" ({', '.join(remarks)})" if remarks else "")


def _nearest(ask: Ask, nodes: Sequence[Node]) -> list[str]:
    """The fewest changes that make the request fit, as flags: another device only if nothing else helps."""
    # A node without cores is kept free of folds.
    kinds = {_description(node, ask.labels): node for node in nodes if node.total("CPU")}
    ways = [
        (rank, len(flags), sum(flag.startswith("no ") for flag in flags), flags, changed)
        for node in kinds.values()
        for rank, device in enumerate((ask.device, "tpu", "gpu", "cpu"))
        for flags, changed in [_changes(ask, node, device)]
    ]
    for *_, flags, changed in sorted(ways, key=lambda way: way[:3]):
        with suppress(PlacementError):  # 0.2 of a GPU is no number of TPU chips
            request = _wanted(changed, nodes)
            if any(request.slots(node) for node in nodes):
                return flags
    return []


def _changes(ask: Ask, node: Node, device: str) -> tuple[list[str], Ask]:
    """The request that would run on a `device` of `node`, and the same as flags."""
    labels, accelerator_type = ask.labels, ask.accelerator_type
    flags = [f"no --label {key}" for key in labels if key not in node.labels]
    fitting = {key: node.labels[key] for key in labels if key in node.labels}
    flags += [f"--label {key}={value}" for key, value in fitting.items() if value != labels[key]]
    if accelerator_type and accelerator_type not in node.accelerator_types:
        accelerator_type = next(iter(node.accelerator_types), None)
        flags.append(
            f"--accelerator-type {accelerator_type}" if accelerator_type else "no --accelerator-type"
        )
    values: dict[str, Any] = {} if device == ask.device else {"device": device}
    device = _best_device([node]) if device == "auto" else device
    if ask.devices and device != "cpu":
        most = min(ask.devices, node.devices(device))
        if device == "tpu":
            most = max((count for count in TPU_CHIP_COUNTS if count <= most), default=0)
        if 0 < most < ask.devices:
            values["devices"] = most
    if (ask.cpus or 1) > node.total("CPU"):
        values["cpus"] = int(node.total("CPU"))
    names = {"devices": "devices-per-fold", "cpus": "cpus-per-fold"}
    flags += [f"--{names.get(name, name)} {value}" for name, value in values.items()]
    return flags, ask._replace(accelerator_type=accelerator_type, labels=fitting, **values)
