"""What ASHA would have spent and chosen, from a sweep whose trials all ran to their ends.

    python -m setibl_ray.sweep --trials 16 --folds 3 --tta 2 --stopping none --out SWEEP
    python benchmarks/pruning.py SWEEP

The reports of the whole trials go through the sweep's own scheduler as if they came one after another from as many
trials at once, in their own order and in random ones: what is kept and what is lost when only the stopping differs.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pandas as pd

from setibl_ray.core.tuning.ledger import DEFAULT, Ledger, Trial
from setibl_ray.core.tuning.pruning import Pruning
from setibl_ray.seti.task import TASK

GOAL_SPENT, GOAL_LOST = 0.5, 0.01


class Stops:
    """What the scheduler asks of a ledger."""

    score = TASK.score

    def __init__(self, numbers: Sequence[int]) -> None:
        self.trials = {number: Trial(number, {}) for number in numbers}

    def end(self, trial: Trial, state: str) -> None:
        trial.state = "stopped"


def replay(
    reports: dict[int, pd.DataFrame], order: Sequence[int], at_once: int, grace: int, reduction_factor: float
) -> tuple[int, float]:
    """(fold-epochs trained, AUC of the best finished trial) of `order`, `at_once` at a time, one tick a fold-epoch."""
    whole = int(next(iter(reports.values()))["fold_epochs"].iloc[-1])
    stops = Stops(order)
    pruning = Pruning(stops, grace=grace, total=whole, reduction_factor=reduction_factor)
    waiting = list(order)
    running: list[tuple[int, int, int]] = []  # time of its next report, trial, number of that report
    spent, best, now = 0, 0.0, 0

    def begin() -> None:
        if waiting:
            number = waiting.pop(0)
            pruning.on_trial_add(None, trials[number])
            heapq.heappush(running, (now + int(reports[number]["fold_epochs"].iloc[0]), number, 0))

    trials = {number: SimpleNamespace(trial_id=str(number), config={"trial": number}) for number in order}
    for _ in range(at_once):
        begin()
    while running:
        now, number, step = heapq.heappop(running)
        table = reports[number]
        report = table.iloc[step].to_dict()
        if step == len(table) - 1:
            pruning.on_trial_complete(None, trials[number], report)
            spent, best = spent + whole, max(best, report["score"])
            begin()
        elif pruning.on_trial_result(None, trials[number], report) == "STOP":
            spent += int(report["fold_epochs"])
            begin()
        else:
            wait = int(table["fold_epochs"].iloc[step + 1] - table["fold_epochs"].iloc[step])
            heapq.heappush(running, (now + wait, number, step + 1))
    return spent, best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweep", help="folder of a sweep with --stopping none, all its trials done")
    parser.add_argument("--trials", type=int, help="only the first so many trials")
    parser.add_argument("--at-once", type=int, default=2, help="trials at once")
    parser.add_argument(
        "--grace",
        type=int,
        nargs="*",
        help="fold-epochs before the first rung [as the sweep itself places it]",
    )
    parser.add_argument("--reduction-factor", type=float, nargs="*", default=[3.0])
    parser.add_argument(
        "--orders", type=int, default=1000, help="random orders of the trials, the base config first"
    )
    options = parser.parse_args()
    ledger = Ledger(options.sweep, TASK.score)
    ledger.load()
    unfinished = [number for number, trial in ledger.trials.items() if trial.state != "done"]
    if unfinished:
        parser.error(f"trials {unfinished} of {options.sweep} did not run to their ends")
    numbers = sorted(ledger.trials)[: options.trials]
    reports = {number: ledger.reports(ledger.trials[number]) for number in numbers}
    others = sorted(set(reports) - {DEFAULT})
    whole = sum(int(table["fold_epochs"].iloc[-1]) for table in reports.values())
    best = max(float(table["score"].iloc[-1]) for table in reports.values())
    rng = np.random.default_rng(0)
    orders = [[DEFAULT, *rng.permutation(others).tolist()] for _ in range(options.orders)]
    print(f"{len(reports)} trials, {whole} fold-epochs, best AUC {best:.4f}")
    default = reports[DEFAULT]
    first_folds = int(default.loc[default["folds_done"] > 0, "fold_epochs"].iloc[0])
    for factor in options.reduction_factor:
        for grace in options.grace or [math.ceil(first_folds / factor)]:
            spent, found = replay(reports, [DEFAULT, *others], options.at_once, grace, factor)
            print(
                f"grace {grace}, reduction factor {factor:g}: {spent} fold-epochs ({spent / whole:.0%}), "
                f"AUC {best - found:.4f} below the best"
            )
            every = np.array([replay(reports, order, options.at_once, grace, factor) for order in orders])
            shares, lost = every[:, 0] / whole, best - every[:, 1]
            cheap, near = (shares <= GOAL_SPENT).mean(), (lost <= GOAL_LOST).mean()
            print(
                f"  {len(orders)} random orders: {shares.mean():.0%} of the fold-epochs ({shares.min():.0%} – "
                f"{shares.max():.0%}), at most {GOAL_SPENT:.0%} in {cheap:.0%}; AUC {lost.mean():.4f} below the best, "
                f"at most {GOAL_LOST:g} in {near:.0%}"
            )


if __name__ == "__main__":
    main()
