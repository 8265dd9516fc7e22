"""`cv --plan`: do all that `cv` does up to its first fold, then estimate what the rest would take."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from rich.console import Console

from setibl_ray.core.errors import ConfigError, RunFolderError
from setibl_ray.core.run import session, stored
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.where import Where
from setibl_ray.seti.cadence import DEFAULT_LAYOUT
from setibl_ray.seti.config import Config
from setibl_ray.seti.feeding.panels import free_bytes
from setibl_ray.seti.planning.assume import DEVICES, Assume, Nodes, parse_nodes, parse_rows
from setibl_ray.seti.planning.forecast import Forecast, Host, Rows, bills, forecast
from setibl_ray.seti.planning.rates import Measured, Rates, Share, assumed, measure
from setibl_ray.seti.planning.show import show
from setibl_ray.seti.task import TASK, check_batches

if TYPE_CHECKING:
    from setibl_ray.core.cluster.placement import Node, Request

FREE_MEMORY = 0.5  # of an assumed node's memory: /dev/shm is half of it by default
RAYS_SHARE = 0.7  # of a node's memory that Ray counts as its own; the rest is its object store's


class Ground(NamedTuple):
    """Nodes that a run can use, and what a fold takes of one."""

    hosts: list[Host]
    share: Share
    n_devices: int  # of a node
    config: Config  # with the device and cores that folds get


def plan_run(
    config: Config,
    *,
    data: str | None,
    out: str | None,
    rates: str | None,
    assume: Assume,
    where: Where,
    resume: bool,
    on_bad_record: Literal["fail", "skip"] | None,
    console: Console,
) -> Forecast:
    """Print the schedule that a run is expected to have, without running or writing anything.

    Args:
      data: folder or URL of shards; None with `assume.rows`, and with `resume` for the run's own.
      out: run folder; with `resume`, only what is left of that run is planned.
      rates: run folder whose rates are taken; by default those of `out`, if it has some.
      assume: what to assume about rates, nodes and rows that are not there.
      config, where, resume, on_bad_record, console: as in `session.cross_validate`.

    Raises:
      ConfigError, DataError, RunFolderError: what `cross_validate` would refuse, and rates that are not there.
    """
    done: dict[int, int] = {}
    finished: set[int] = set()
    notes: list[str] = []
    options = {} if on_bad_record is None else {"on_bad_record": on_bad_record}
    if resume:
        folder = RunFolder(out or "")
        manifest, config, data, options = stored.take_up(folder, config, data, options)
        all_epochs = {fold: config.for_fold(fold).epochs for fold in range(config.folds)}
        fitted, finished = manifest.states("trained", "done"), set(manifest.states("done"))
        done = {
            fold: epochs if fold in fitted else min(folder.next_step(fold), epochs)
            for fold, epochs in all_epochs.items()
        }
        notes.append("Only what is left of the run is planned.")
    elif out and RunFolder(out).exists():
        notes.append(f"{out} holds a run already: this one would need another --out.")
    config, rows = _rows(config, data, assume, options, console)
    ground = _ground(config, assume, where, console)
    measured, why_not = _measured(rates, out, ground.share)
    notes += [why_not] if why_not else []
    todo = [fold for fold in range(config.folds) if fold not in finished]
    if not todo:
        raise RunFolderError(f"{out}: every fold is done, there is nothing left to plan")

    def rates_of(fold: int) -> Rates:
        if measured:
            return measured.of(ground.config, fold, ground.share)
        return assumed(ground.config, fold, ground.share, assume)

    plan = forecast(
        ground.config,
        rows,
        ground.hosts,
        ground.share,
        {fold: rates_of(fold) for fold in todo},
        workers=where.workers,
        training_first=where.runner == "ray",
        epochs_done=done,
    )
    show(plan, bills(plan, assume, ground.n_devices), assume, notes, console)
    return plan


def _rows(
    config: Config,
    data: str | None,
    assume: Assume,
    options: Mapping[str, Any],
    console: Console,
) -> tuple[Config, Rows]:
    """The config as the data settle it, and how many rows its folds hold out."""
    if assume.rows is None:
        assert data is not None
        spec = session.check(TASK, config, data, options=options, say=session.sayer(console))
        return spec.config, Rows.of(spec.fold_of_row, spec.n_test)
    if data is not None:
        raise ConfigError("assume.rows: it stands for data that are not there; leave out --data or this")
    n_train, n_test = parse_rows(assume.rows)
    if n_train < 2 * config.folds:
        raise ConfigError(f"assume.rows: {config.folds} folds need more than {n_train} training cadences")
    fold_of_row = np.arange(n_train) % config.folds
    check_batches(config, fold_of_row)
    config = config.with_layout(config.layout or DEFAULT_LAYOUT["cadence"])
    return config, Rows.of(fold_of_row, n_test)


def _ground(config: Config, assume: Assume, where: Where, console: Console) -> Ground:
    if assume.nodes is not None:
        from setibl_ray.core.cluster import placement

        nodes = _assumed_nodes(parse_nodes(assume.nodes), assume)
        request = placement.request_for(placement.Ask.of(config, TASK.needs(config, 0), where), nodes)
        request = placement.with_memory(request, session.most_memory(TASK, [config], request), nodes)
        assumed_free = {node.node_id: {"memory": FREE_MEMORY * _memory(node)} for node in nodes}
        return _ground_of(config, request, nodes, assumed_free)
    if where.runner == "local":
        cpus = session.cores_here(config)
        device = "cpu" if config.device == "auto" else config.device
        share = Share(
            device,
            device.upper(),
            cpus if device == "cpu" else max(1, int(config.devices_per_fold or 1)),
            cpus,
        )
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        config = config.model_copy(update={"device": device, "cpus_per_fold": cpus})
        return Ground([Host(socket.gethostname(), 1, total, free_bytes())], share, share.count, config)
    from setibl_ray.core.cluster import placement
    from setibl_ray.core.cluster.runner import on_every_node

    with session.cluster_for(TASK, config, where, session.sayer(console)) as request:
        nodes = placement.cluster_nodes()
        here = socket.gethostname()
        free: dict[str, Mapping[str, float]] = {n.node_id: free_bytes() for n in nodes if n.name == here}
        return _ground_of(
            config, request, nodes, free | on_every_node("setibl_ray.seti.feeding.panels:free_bytes")
        )


def _assumed_nodes(nodes: Nodes, assume: Assume) -> list[Node]:
    from setibl_ray.core.cluster.placement import Node

    device = DEVICES.get(nodes.device)
    cpus = assume.cpus_per_node or (device and int(device.cpus * nodes.n_devices))
    memory_gb = assume.memory_gb_per_node or (device and device.memory_gb * nodes.n_devices)
    if not cpus or not memory_gb:
        raise ConfigError(
            f"assume.nodes: nothing is known of a node with {nodes.device}, only with {', '.join(DEVICES)}. Give "
            "--assume.cpus-per-node and --assume.memory-gb-per-node."
        )
    resources: dict[str, float] = {
        "CPU": cpus,
        "memory": RAYS_SHARE * memory_gb * 1e9,
        "object_store_memory": (1 - RAYS_SHARE) * memory_gb * 1e9,
    }
    if nodes.kind != "cpu":
        resources |= {nodes.kind.upper(): nodes.n_devices, f"accelerator_type:{nodes.device}": 1.0}
    return [Node(f"node-{i}", resources, {}, f"node-{i}") for i in range(nodes.n_nodes)]


def _memory(node: Node) -> float:
    """All the memory that Ray found free on a node when it started there."""
    return node.total("memory") + node.total("object_store_memory")


def _ground_of(
    config: Config, request: Request, nodes: Sequence[Node], free: Mapping[str, Mapping[str, float]]
) -> Ground:
    able = [node for node in nodes if request.slots(node)]
    hosts = [Host(node.name, request.slots(node), _memory(node), free.get(node.node_id, {})) for node in able]
    types = able[0].accelerator_types if request.device != "cpu" else ()
    device = next(iter(types), request.device.upper())
    count = request.tpu_chips or max(1, int(request.gpus)) if request.device != "cpu" else request.cpus
    config = config.model_copy(update={"device": request.device, "cpus_per_fold": request.cpus})
    share = Share(request.device, device, count, request.cpus)
    return Ground(hosts, share, int(able[0].total(request.device.upper())), config)


def _measured(rates: str | None, out: str | None, share: Share) -> tuple[Measured | None, str]:
    """Rates measured in the run `rates`, or in `out` if that has usable ones; else why there are none."""
    path = rates or out
    if path is None or (rates is None and not RunFolder(path).exists()):
        return None, ""
    try:
        measured = measure(path)
        if measured.share.kind != share.kind:
            raise RunFolderError(
                f"{path}: its folds ran on {measured.share.kind}, these would on {share.kind}"
            )
    except RunFolderError as error:
        if rates is not None:
            raise
        return None, f"No rates of {error}"
    return measured, ""
