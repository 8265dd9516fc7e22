"""A forecast of a run: the cost of each fold by its rates, the resulting schedule, memory of the nodes, dollars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from setibl_ray.core.spans import fit_goes_on, span_rows
from setibl_ray.seti.cadence import LAYOUTS
from setibl_ray.seti.config import Config
from setibl_ray.seti.feeding.panels import Policy, room_needed
from setibl_ray.seti.memory import fold_bytes
from setibl_ray.seti.planning.assume import DEVICES, Assume
from setibl_ray.seti.planning.rates import Rates, Share
from setibl_ray.seti.planning.simulate import Assignment, FoldCost, simulate
from setibl_ray.seti.sizes import PREDICT_SPEEDUP, sizes


@dataclass(frozen=True)
class Host:
    """A node that folds may run on.

    `free` is the room for panel stores there, in "memory" and on "disk", in bytes; a missing entry is unknown.
    """

    name: str
    n_slots: int
    memory_bytes: float
    free: Mapping[str, float]


@dataclass(frozen=True)
class Rows:
    """Numbers of cadences: of each fold's held-out part, of the training set, and of the test set."""

    valid: Mapping[int, int]
    test: int

    @property
    def train(self) -> int:
        return sum(self.valid.values())

    @classmethod
    def of(cls, fold_of_row: np.ndarray, n_test: int) -> Rows:
        """From the fold that holds out each training row, (n_train,)."""
        return cls(dict(enumerate(np.bincount(fold_of_row).tolist())), n_test)


class Store(NamedTuple):
    """Decoded panels of the training or test set at one size, as a node keeps them."""

    split: str
    image_size: tuple[int, int]
    n_bytes: int


@dataclass(frozen=True)
class Forecast:
    """How a run is expected to go. `slots` holds the position in `hosts` of each slot's node; times are seconds from
    the submission of the first fold."""

    config: Config
    rows: Rows
    hosts: Sequence[Host]
    slots: Sequence[int]
    share: Share
    rates: Mapping[int, Rates]
    costs: Sequence[FoldCost]
    assignments: Sequence[Assignment]

    @property
    def makespan_s(self) -> float:
        """From the first fold submitted to the last result."""
        return max((job.end_s for job in self.assignments), default=0.0)

    @property
    def idle_share(self) -> float:
        """Idle share of the slots' time up to the makespan; waiting for a node's panels counts as idle."""
        busy = sum(seconds for job in self.assignments for lap, seconds in job.laps if lap != "wait")
        return 1 - busy / (len(self.slots) * self.makespan_s) if busy else 0.0

    @property
    def stores(self) -> list[Store]:
        """In the order in which a node that trains and predicts opens them."""
        layout = LAYOUTS[self.config.layout or "all6"]
        sizes = list(dict.fromkeys(self.config.for_fold(cost.fold).image_size for cost in self.costs))
        return [
            Store(split, size, n * size[0] * size[1] * len(layout.panels))
            for split, n in (("train", self.rows.train), ("test", self.rows.test))
            for size in sizes
            if n
        ]

    @property
    def fold_bytes(self) -> int:
        """The estimate for the largest fold."""
        config, share, folds = self.config, self.share, [cost.fold for cost in self.costs]
        return max(
            fold_bytes(config, fold, share.kind, share.cpus, sizes(config, fold, {})) for fold in folds
        )

    def nodes_used(self) -> set[int]:
        return {self.slots[job.slot] for job in self.assignments}


def slots_of(hosts: Sequence[Host], workers: int | None = None) -> list[int]:
    """The node of each slot, in the order in which folds spread: one on every node before a second on any."""
    rounds = range(max((host.n_slots for host in hosts), default=0))
    return [i for turn in rounds for i, host in enumerate(hosts) if turn < host.n_slots][:workers]


def forecast(
    config: Config,
    rows: Rows,
    hosts: Sequence[Host],
    share: Share,
    rates: Mapping[int, Rates],
    *,
    workers: int | None = None,
    training_first: bool = True,
    epochs_done: Mapping[int, int] | None = None,
) -> Forecast:
    """Simulate a run.

    Args:
      config: with the layout, device and cores that its folds get.
      rows: numbers of cadences.
      hosts: nodes with slots.
      share: what a fold computes on.
      rates: of the folds to run; a fold without rates is not run.
      workers: at most this many folds at once.
      training_first: as Ray's runner does; a plain loop predicts with a fold as soon as it is trained.
      epochs_done: finished epochs of each fold; if all are finished, only its test predictions remain.
    """
    slots = slots_of(hosts, workers)
    done = epochs_done or {}
    costs = [
        cost_of(config, rows, share, fold, rates[fold], n_slots=len(slots), epochs_done=done.get(fold, 0))
        for fold in rates
    ]
    # An accelerator is held until its process ends, so that each job has its own; on CPUs jobs share processes.
    jobs = simulate(costs, slots, keep_processes=share.kind == "cpu", training_first=training_first)
    return Forecast(config, rows, hosts, slots, share, rates, costs, jobs)


def cost_of(
    config: Config, rows: Rows, share: Share, fold: int, rates: Rates, *, n_slots: int, epochs_done: int = 0
) -> FoldCost:
    """What a fold costs, in seconds; `images` are those in its full global batches.

    train     = epochs x (images / r_train + held out / r_predict + the epoch's own)
    views     = views x held out / r_predict                      the plain pass is the best epoch's
    test      = (views + 1) x test cadences / r_predict           cut into spans as in a run
    fold      = start + panels (first of a node) + build (first of a process) + train + views
    """
    own = config.for_fold(fold)
    n_valid = rows.valid[fold]
    batch = own.batch_size * (1 if share.kind == "cpu" else share.count)
    images = (rows.train - n_valid) // batch * batch
    epoch_s = images / rates.train + n_valid / rates.predict + rates.epoch_s
    spans, goes_on = [], False
    if rows.test:
        # When the driver cuts the test set, it does not know the rate of prediction yet and uses that of training.
        by_training_s = (config.tta + 1) * rows.test / (PREDICT_SPEEDUP * rates.train)
        per_span = span_rows(rows.test, by_training_s, n_slots, 2 * batch)
        spans = [min(per_span, rows.test - start) for start in range(0, rows.test, per_span)]
        goes_on = fit_goes_on(share.kind, by_training_s)
    return FoldCost(
        fold,
        start_s=rates.start_s,
        build_s=rates.build_s,
        open_s=rows.train / rates.cadences,
        train_s=(own.epochs - epochs_done) * epoch_s,
        views_s=config.tta * n_valid / rates.predict,
        build_test_s=rates.build_test_s,
        open_test_s=rows.test / rates.cadences,
        spans_s=tuple((config.tta + 1) * n / rates.predict for n in spans),
        model=(own.model, own.image_size, own.batch_size),
        panels=own.image_size,
        trained=epochs_done >= own.epochs,
        goes_on=goes_on,
    )


def places_of(policy: Policy, stores: Sequence[Store], free: Mapping[str, float]) -> list[str]:
    """Where `feeding.panels.open_store` will keep each store of a node, one after the other.

    Returns:
      "memory" or "disk", with a question mark if it is unknown whether there is room; "nowhere" for panels that are
      read again each time; "refused" if there is no room and no other place is allowed.
    """
    homes = {"auto": ("memory", "disk"), "memory": ("memory",), "disk": ("disk",), "off": ()}[policy]
    left = dict(free)
    places = []
    for store in stores:
        place = "nowhere" if policy in ("auto", "off") else "refused"
        for home in homes:
            if home not in left:
                place = f"{home}?"
                break
            if room_needed(store.n_bytes, policy, in_memory=home == "memory") <= left[home]:
                left[home] -= store.n_bytes
                place = home
                break
        places.append(place)
    return places


class Bill(NamedTuple):
    """Dollars, for nodes with folds and for the head."""

    kind: str  # "on demand" or "preemptible"; "" where the price was given
    price: float  # per node and hour
    nodes: float
    head: float


def bills(plan: Forecast, assume: Assume, n_devices: int) -> list[Bill]:
    """What nodes and head cost; nothing where no price is known.

    bill      = price x sum over nodes of (set-up + end of the last job + idle)
              + price of the head x (set-up + makespan + idle)

    Args:
      n_devices: chips, GPUs or cores of a node.
    """
    last: dict[int, float] = dict.fromkeys(range(len(plan.hosts)), 0.0)
    for job in plan.assignments:
        node = plan.slots[job.slot]
        last[node] = max(last[node], job.end_s)
    around_s = assume.setup_s + assume.idle_s
    hours = sum(around_s + end_s for end_s in last.values()) / 3600
    head = assume.head_price * (around_s + plan.makespan_s) / 3600
    device = DEVICES.get(plan.share.device)
    prices = {"on demand": device and device.price, "preemptible": device and device.spot_price}
    each = {kind: price * n_devices for kind, price in prices.items() if price}
    if assume.price is not None:
        each = {"": assume.price}
    return [Bill(kind, price, price * hours, head) for kind, price in each.items()]
