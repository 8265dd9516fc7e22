"""List scheduling: folds in order, each on a slot as soon as one is free; test predictions where no fold waits.

A slot is a fold's share of a node. What a task pays depends on where it runs and on what ran there before: the first
that needs a node's panels builds them while the others wait, and a CPU fold in the process of an earlier one pays for
process and model no more. An accelerator is freed by its process only, so each of its tasks has a process of its own.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count

PART_S = 60.0  # a fold's test predictions are cut into parts of about this length


@dataclass(frozen=True)
class Work:
    """What one fold costs, in seconds.

    Attributes:
      model: what must be built for it; a process keeps the last model.
      panels: what a node must hold for it: a store per split.
      start_s: a process up to its device: interpreter, imports, TPU system.
      build_s: model and tracing.
      open_s, open_test_s: decoding a node's training and test panels.
      train_s: epochs.
      views_s: views of the held-out part.
      test_s: all views of the test set, on one slot.
    """

    fold: int
    start_s: float
    build_s: float
    open_s: float
    train_s: float
    views_s: float
    open_test_s: float
    test_s: float
    model: Hashable = None
    panels: Hashable = None


@dataclass(frozen=True)
class Span:
    """A task from start to end: a whole fold, or `part` of the `n_parts` of its test predictions.

    `laps` are its stages and their seconds in order; "wait" is for a store that another task of the node builds.
    """

    fold: int
    slot: int
    start_s: float
    laps: tuple[tuple[str, float], ...]
    part: int | None = None
    n_parts: int = 0

    @property
    def end_s(self) -> float:
        return self.start_s + self.length_s

    @property
    def length_s(self) -> float:
        return sum(seconds for _, seconds in self.laps)


def n_parts(test_s: float, n_slots: int) -> int:
    """Parts of a fold's test predictions; none where there is nothing to predict."""
    return max(1, min(round(test_s / PART_S), n_slots)) if test_s > 0 else 0


def simulate(works: Sequence[Work], nodes: Sequence[int], keep_processes: bool) -> list[Span]:
    """Run folds and their test predictions on slots, in simulated time.

    Args:
      works: the folds, in the order in which they are submitted.
      nodes: the node of each slot.
      keep_processes: a slot's process serves its next task too (CPU folds).

    Returns:
      Spans in the order in which they start. The last of their ends is the makespan.
    """
    folds, parts = deque(works), deque[tuple[Work, int, int]]()
    free, busy = set(range(len(nodes))), Counter[int]()
    models: dict[int, Hashable] = {}  # slot -> the model that its process keeps
    stores: dict[tuple[int, str, Hashable], float] = {}  # (node, split, panels) -> when they are there
    running: list[tuple[float, int, Span, Work]] = []
    order = count()
    spans: list[Span] = []
    now = 0.0

    def start(work: Work, part: tuple[int, int] | None) -> None:
        # Ray spreads tasks over nodes, and hands a task a process that a node has before it starts another.
        slot = min(free, key=lambda slot: (busy[nodes[slot]], models.get(slot) != work.model, slot))
        free.remove(slot)
        busy[nodes[slot]] += 1
        laps: list[tuple[str, float]] = []
        warm = keep_processes and slot in models
        if not warm:
            laps.append(("start", work.start_s))
        split, open_s = ("train", work.open_s) if part is None else ("test", work.open_test_s)
        here = now + sum(seconds for _, seconds in laps)
        store = (nodes[slot], split, work.panels)
        if store in stores:
            laps.append(("wait", max(0.0, stores[store] - here)))
        else:
            laps.append(("open", open_s))
            stores[store] = here + open_s
        if not (warm and models[slot] == work.model):
            laps.append(("build", work.build_s))
        models[slot] = work.model
        if part is None:
            laps += [("train", work.train_s), ("views", work.views_s)]
            span = Span(work.fold, slot, now, tuple(laps))
        else:
            laps.append(("test", work.test_s / part[1]))
            span = Span(work.fold, slot, now, tuple(laps), *part)
        spans.append(span)
        heapq.heappush(running, (span.end_s, next(order), span, work))

    while folds or parts or running:
        while free and folds:
            start(folds.popleft(), None)
        while free and parts:
            work, part, of = parts.popleft()
            start(work, (part, of))
        now = running[0][0]
        while running and running[0][0] == now:
            _, _, span, work = heapq.heappop(running)
            free.add(span.slot)
            busy[nodes[span.slot]] -= 1
            if span.part is None:
                of = n_parts(work.test_s, len(nodes))
                parts.extend((work, part, of) for part in range(of))
    return spans
