"""What a fold asks of a node, and whether any node can give it: decided from the cluster's totals before anything runs.

Ray lets an impossible request wait for ever without a word; here it ends at once with what was asked, what
the cluster has, and the nearest request that fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import ray

from setibl_ray.config import Config
from setibl_ray.errors import PlacementError

NODE_ID_LABEL = "ray.io/node-id"  # every node carries it
TPU_CHIP_COUNTS = (1, 2, 4, 8)  # what Ray can mask on one host; anything else it refuses


@dataclass(frozen=True)
class Node:
    """A node's totals, as the cluster reports them."""

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    node_id: str = ""

    def total(self, resource: str) -> float:
        return self.resources.get(resource, 0.0)


@dataclass(frozen=True)
class Request:
    """What one fold takes from one node."""

    device: str  # "cpu", "gpu" or "tpu"
    cpus: int
    gpus: int = 0
    tpu_chips: int = 0
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int = (
        0  # of Ray's own account of a node's memory; Ray does not enforce it, but lets others wait
    )

    @property
    def resources(self) -> dict[str, float]:
        """Ray's resource names and amounts."""
        wanted: dict[str, float] = {"CPU": self.cpus}
        if self.gpus:
            wanted["GPU"] = self.gpus
        if self.tpu_chips:
            wanted["TPU"] = self.tpu_chips
        if self.memory_bytes:
            wanted["memory"] = self.memory_bytes
        if self.accelerator_type:
            wanted[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return wanted

    def options(self, spread: bool = True, avoid: Sequence[str] = ()) -> dict:
        """Keyword arguments of a Ray task's `.options`.

        Args:
          spread: over the cluster; otherwise it stays in its caller's placement group.
          avoid: ids of nodes that it must not run on.
        """
        custom = {
            name: amount for name, amount in self.resources.items() if name not in ("CPU", "GPU", "memory")
        }
        options: dict = {"num_cpus": self.cpus, "resources": custom}
        if spread:
            options["scheduling_strategy"] = "SPREAD"
        if self.gpus:
            options["num_gpus"] = self.gpus
        if self.memory_bytes:
            options["memory"] = self.memory_bytes
        selector = dict(self.labels)
        if avoid:
            # No space after the commas: Ray 2.60 would take it for a part of the next id, and let that node in.
            selector[NODE_ID_LABEL] = f"!in({','.join(avoid)})"
        if selector:
            options["label_selector"] = selector
        return options

    def slots(self, node: Node) -> int:
        """How many such folds `node` can hold at once."""
        if any(node.labels.get(key) != value for key, value in self.labels.items()):
            return 0
        return int(min(node.total(name) / amount + 1e-9 for name, amount in self.resources.items()))

    def __str__(self) -> str:
        parts = [f"{self.gpus} GPU" * bool(self.gpus), f"{self.tpu_chips} TPU chips" * bool(self.tpu_chips)]
        parts += [f"{self.cpus} CPU"]
        parts += [f"accelerator type {self.accelerator_type}"] if self.accelerator_type else []
        parts += [f"label {key}={value}" for key, value in self.labels.items()]
        return ", ".join(part for part in parts if part) + " on one node"


def cluster_nodes() -> list[Node]:
    """The live nodes of the connected cluster."""
    return [
        Node(node["NodeManagerHostname"], node["Resources"], node.get("Labels") or {}, node["NodeID"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def request_for(
    config: Config,
    nodes: Sequence[Node],
    accelerator_type: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Request:
    """The request of every fold of a run.

    `--device auto` takes TPUs where there are any, else GPUs, else CPUs. A fold takes a whole TPU VM (the chips that
    its hosts turn out to have), or one GPU, unless `devices_per_fold` says otherwise; and `cpus_per_fold`, by default
    its even share of the cores.

    Raises:
      PlacementError: no node can ever hold it.
    """
    labels = labels or {}
    matching = [node for node in nodes if all(node.labels.get(key) == value for key, value in labels.items())]
    device = config.device
    if device == "auto":
        device = next(
            (kind for kind in ("tpu", "gpu") if any(n.total(kind.upper()) for n in matching)), "cpu"
        )
    gpus = chips = 0
    if device == "gpu":
        gpus = config.devices_per_fold or 1
    elif device == "tpu":
        chips = config.devices_per_fold or _common_chip_count(matching)
        if chips not in TPU_CHIP_COUNTS:
            raise PlacementError(
                f"devices-per-fold: a fold takes {', '.join(map(str, TPU_CHIP_COUNTS[:-1]))} or "
                f"{TPU_CHIP_COUNTS[-1]} TPU chips of one host; got {chips}"
            )
    bare = Request(device, 1, gpus, chips, accelerator_type, labels)
    request = Request(device, config.cpus_per_fold or _cpu_share(config, bare, nodes), *_rest(bare))
    if not any(request.slots(node) for node in nodes):
        raise PlacementError(_explain(request, nodes))
    return request


def with_memory(request: Request, wanted_bytes: int, nodes: Sequence[Node]) -> Request:
    """The request with an amount of memory, at most what the largest node that can hold it has.

    The amount is an estimate: where it is more than any node has, a fold runs alone on its node instead of not at all.
    """
    most = max((node.total("memory") for node in nodes if request.slots(node)), default=0)
    return replace(request, memory_bytes=min(wanted_bytes, int(most)))


def _rest(request: Request) -> tuple:
    return request.gpus, request.tpu_chips, request.accelerator_type, request.labels


def _common_chip_count(nodes: Sequence[Node]) -> int:
    """Chips per host that most folds can use at once; 4 where there is no TPU, for the refusal to name."""
    counts = [int(node.total("TPU")) for node in nodes if node.total("TPU")]
    return max(set(counts), key=lambda count: (counts.count(count), count)) if counts else 4


def _cpu_share(config: Config, bare: Request, nodes: Sequence[Node]) -> int:
    """Cores of a fold: those of the cluster divided by the folds that can run at once, at most a node's own share."""
    able = [node for node in nodes if bare.slots(node)]
    if not able:
        return 1
    if bare.device == "cpu":
        total = int(sum(node.total("CPU") for node in able))
        largest = int(max(node.total("CPU") for node in able))
        return max(1, min(total // config.folds, largest))
    return max(1, int(min(node.total("CPU") / bare.slots(node) for node in able)))


def _explain(request: Request, nodes: Sequence[Node]) -> str:
    kinds: dict[str, int] = {}
    for node in nodes:
        shown = {name: node.total(name) for name in ("CPU", "GPU", "TPU") if node.total(name)}
        accelerators = [
            name.partition(":")[2] for name in node.resources if name.startswith("accelerator_type:")
        ]
        text = " + ".join(f"{amount:g} {name}" for name, amount in shown.items()) or "nothing"
        text += f" ({', '.join(accelerators)})" if accelerators else ""
        kinds[text] = kinds.get(text, 0) + 1
    has = "; ".join(f"{count} x {text}" for text, count in sorted(kinds.items()))
    return (
        f"a fold asks for {request}, but no node has that much. The cluster has: {has or 'no nodes'}. "
        f"{_nearest(request, nodes)}"
    )


def _nearest(request: Request, nodes: Sequence[Node]) -> str:
    """The closest request that some node can hold, as flags."""
    typed = request.accelerator_type and f"accelerator_type:{request.accelerator_type}"
    if typed and not any(node.total(typed) for node in nodes):
        return "Nearest that fits: drop --accelerator-type, or name one of those."
    if not any(all(node.labels.get(k) == v for k, v in request.labels.items()) for node in nodes):
        return "Nearest that fits: drop --label, no node carries it."
    kind = request.device.upper()
    most = int(max((node.total(kind) for node in nodes), default=0))
    if request.device != "cpu" and most == 0:
        other = next((k for k in ("tpu", "gpu") if any(n.total(k.upper()) for n in nodes)), "cpu")
        return f"Nearest that fits: --device {other}."
    wanted = request.gpus or request.tpu_chips
    if wanted > most and request.device != "cpu":
        return f"Nearest that fits: --devices-per-fold {most}."
    cpus = int(max((n.total("CPU") for n in nodes if n.total(kind) >= wanted or kind == "CPU"), default=0))
    return f"Nearest that fits: --cpus-per-fold {max(cpus, 1)}."


def wait_for_placement(
    ask: Callable[[], Request], timeout_s: float, say: Callable[[str], None], poll_s: float = 2.0
) -> Request:
    """Ask again until the cluster has grown enough: for clusters with an autoscaler.

    Raises:
      PlacementError: still impossible after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    said = False
    while True:
        try:
            return ask()
        except PlacementError as error:
            if time.monotonic() >= deadline:
                waited = f" (waited {timeout_s:g} s for the cluster to grow)" if timeout_s else ""
                raise PlacementError(f"{error}{waited}") from None
            if not said:
                say(f"waiting up to {timeout_s:g} s for the cluster to grow: {error}")
                said = True
            time.sleep(poll_s)
