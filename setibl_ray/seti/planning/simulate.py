"""List scheduling: folds in order, each on the first free slot; spans of the test set when no fold is waiting.

A slot is a fold's share of a node. The cost of a job depends on where it runs and on what ran there before: the first
job that needs a node's panels decodes them while others wait, and on a CPU a process continues with the next job with
TensorFlow loaded and the last model built. An accelerator is only freed when its process ends, so there each job has
its own process, which goes on with a test set that is one span.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True)
class FoldCost:
    """What a fold costs, in seconds.

    Attributes:
      start_s: until a process has its device: interpreter, imports, TPU system.
      build_s, build_test_s: model and tracing, to train and to predict only.
      open_s, open_test_s: decoding a node's training and test panels.
      train_s: epochs.
      views_s: views of the held-out part.
      spans_s: each span of the test set.
      model: what is built; a process keeps the last one.
      panels: what is decoded.
      trained: only the test set remains.
      goes_on: the process that trained predicts the test set, too.
    """

    fold: int
    start_s: float
    build_s: float
    open_s: float
    train_s: float
    views_s: float
    build_test_s: float
    open_test_s: float
    spans_s: tuple[float, ...]
    model: Hashable = None
    panels: Hashable = None
    trained: bool = False
    goes_on: bool = False


@dataclass(frozen=True)
class Assignment:
    """A job on a slot: a fold's training, or its span number `span` of the test set.

    `laps` are stages and their seconds, in order; "wait" is for panels that another job of the node decodes.
    """

    fold: int
    span: int | None
    slot: int
    start_s: float
    laps: tuple[tuple[str, float], ...]

    @property
    def length_s(self) -> float:
        return sum(seconds for _, seconds in self.laps)

    @property
    def end_s(self) -> float:
        return self.start_s + self.length_s


def simulate(
    costs: Sequence[FoldCost], nodes: Sequence[int], *, keep_processes: bool, training_first: bool = True
) -> list[Assignment]:
    """Run folds and their test predictions on slots, in simulated time.

    Args:
      costs: of the folds, in the order in which they are submitted.
      nodes: the node of each slot.
      keep_processes: a slot's process also runs the next job there.
      training_first: spans wait until no fold is waiting; otherwise they go before folds.

    Returns:
      Assignments in the order in which they start. The last of their ends is the makespan.
    """
    folds = deque(cost for cost in costs if not cost.trained)
    spans = deque((cost, span) for cost in costs if cost.trained for span in range(len(cost.spans_s)))
    free, busy = set(range(len(nodes))), Counter[int]()
    built: dict[int, Hashable] = {}  # slot -> the model built in its process
    # (node, train or test, panels) -> when they are decoded.
    decoded: dict[tuple[int, str, Hashable], float] = {}
    running: list[tuple[float, int, Assignment, FoldCost]] = []
    order = count()
    assignments: list[Assignment] = []
    now = 0.0

    def start(cost: FoldCost, span: int | None) -> None:
        # Ray spreads jobs over nodes, and reuses an idle process of a node before it starts another.
        slot = min(free, key=lambda slot: (busy[nodes[slot]], built.get(slot) != cost.model, slot))
        run(cost, span, slot, warm=keep_processes and slot in built)

    def run(cost: FoldCost, span: int | None, slot: int, *, warm: bool) -> None:
        free.remove(slot)
        busy[nodes[slot]] += 1
        split, open_s, build_s = (
            ("train", cost.open_s, cost.build_s)
            if span is None
            else ("test", cost.open_test_s, cost.build_test_s)
        )
        laps = [] if warm else [("start", cost.start_s)]
        here = now + sum(seconds for _, seconds in laps)
        panels = nodes[slot], split, cost.panels
        if panels in decoded:
            laps.append(("wait", max(0.0, decoded[panels] - here)))
        else:
            laps.append(("open", open_s))
            decoded[panels] = here + open_s
        if not (warm and built[slot] == cost.model):
            laps.append(("build", build_s))
        built[slot] = cost.model
        if span is None:
            laps += [("train", cost.train_s), ("views", cost.views_s)]
        else:
            laps.append(("test", cost.spans_s[span]))
        assignment = Assignment(cost.fold, span, slot, now, tuple(laps))
        assignments.append(assignment)
        heapq.heappush(running, (assignment.end_s, next(order), assignment, cost))

    while folds or spans or running:
        while free and (folds or spans):
            if folds and (training_first or not spans):
                start(folds.popleft(), None)
            else:
                start(*spans.popleft())
        now = running[0][0]
        while running and running[0][0] == now:
            _, _, ended, cost = heapq.heappop(running)
            free.add(ended.slot)
            busy[nodes[ended.slot]] -= 1
            if ended.span is None and cost.goes_on:
                run(cost, 0, ended.slot, warm=True)
            elif ended.span is None:
                spans.extend((cost, span) for span in range(len(cost.spans_s)))
    return assignments
