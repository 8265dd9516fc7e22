"""What makes trials comparable, how points are suggested, and when a best trial is called better."""

import numpy as np
import pandas as pd
import pytest
import toys

from setibl_ray.core.tuning.compare import against_base, confirmed
from setibl_ray.core.tuning.ladder import DIVERGED, Standing, ladder, slots_for
from setibl_ray.core.tuning.ledger import Trial
from setibl_ray.core.tuning.pruning import Pruning
from setibl_ray.core.tuning.search import suggest
from setibl_ray.core.tuning.space import parse_space
from setibl_ray.seti.config import parse

SPACE = parse_space(
    {name: {"loguniform" if "lr" in name else "uniform": list(ends)} for name, ends in toys.BOUNDS.items()}
)
NO_REPORTS = pd.DataFrame({"fold_epochs": [], "auc": []})


def test_the_ladder_counts_fold_epochs_wave_by_wave():
    steps = ladder([2, 2, 2], slots=2)
    assert [(s.folds, s.epoch, s.ends_wave, s.fold_epochs) for s in steps] == [
        ((0, 1), 0, False, 2),
        ((0, 1), 1, True, 4),
        ((2,), 0, False, 5),
        ((2,), 1, True, 6),
    ]
    assert [s.fold_epochs for s in ladder([1, 3], slots=2)] == [2, 3, 4]
    assert [slots_for(5, n) for n in (1, 2, 4, 5, 9)] == [1, 1, 1, 5, 5]
    assert [slots_for(6, n) for n in (1, 2, 4, 5, 9)] == [1, 2, 3, 3, 6]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_step_is_worth_the_same_however_folds_race(slots):
    rng = np.random.default_rng(0)
    epochs, fold_of_row = [3, 3, 3], np.repeat([0, 1, 2], 10)
    target = rng.integers(0, 2, 30)
    target[::10], target[1::10] = 0, 1
    pred = rng.random(30).astype(np.float32)
    auc = rng.random((3, 3))
    waves = [range(first, min(first + slots, 3)) for first in range(0, 3, slots)]
    seen = []
    for attempt in range(6):
        standing = Standing(ladder(epochs, slots), target, fold_of_row)
        out = []
        for wave in waves:
            events = [[*((fold, epoch) for epoch in range(3)), (fold, None)] for fold in wave]
            while any(events):
                fold, epoch = events[rng.choice([i for i, left in enumerate(events) if left])].pop(0)
                if epoch is None:
                    standing.saw_result(fold, pred[fold_of_row == fold])
                else:
                    standing.saw_epoch(fold, epoch, auc[fold, epoch])
                out += standing.reached()
        seen.append([(step.number, value) for step, value in out])
        assert [step for step, _ in out] == ladder(epochs, slots), attempt
    assert all(one == seen[0] for one in seen)
    from sklearn.metrics import roc_auc_score

    assert seen[0][-1][1] == pytest.approx(roc_auc_score(target, pred))


def test_predictions_that_are_no_numbers_are_worth_nothing():
    standing = Standing(ladder([1, 1], 2), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    standing.saw_epoch(0, 0, float("nan"))
    standing.saw_epoch(1, 0, float("nan"))
    for fold in (0, 1):
        standing.saw_result(fold, np.full(2, np.nan, np.float32))
    assert [auc for _, auc in standing.reached()] == [DIVERGED]


def search_alone(search: str, seed: int, n_trials: int) -> dict[str, float]:
    """A sweep's best point on the planted objective, one trial after another, nothing stopped."""
    base = parse({"seed": seed})
    trials: list[Trial] = []
    for number in range(1, n_trials):
        values = suggest(search, SPACE, base, number, trials, lambda trial: NO_REPORTS)
        trials.append(Trial(number, values, "done", auc=toys.quality(values)))
    return max(trials, key=lambda trial: trial.auc).values


def test_tpe_comes_nearer_to_the_planted_optimum_than_random_at_the_same_budget():
    seeds = range(8)
    tpe, random = (
        np.array([toys.distance(search_alone(search, seed, 40)) for seed in seeds])
        for search in ("optuna", "random")
    )
    assert tpe.mean() < 0.7 * random.mean(), (tpe, random)
    assert (tpe < random).sum() >= 6, (tpe, random)


def test_a_suggestion_depends_on_nothing_but_seed_number_and_trials():
    base = parse({"seed": 5})
    trials = [
        Trial(number, values := SPACE.sample(np.random.default_rng(number)), "done", auc=toys.quality(values))
        for number in range(1, 13)
    ]
    reports = pd.DataFrame({"fold_epochs": [1, 2], "auc": [0.5, 0.6]})
    trials += [Trial(13, trials[0].values, "stopped", auc=0.6), Trial(14, trials[1].values, "running")]
    trials += [Trial(15, trials[2].values, "failed")]
    once, again = (
        suggest("optuna", SPACE, base, 16, order, lambda t: reports) for order in (trials, trials[::-1])
    )
    assert once == again
    assert once != suggest("optuna", SPACE, base, 17, trials, lambda t: reports)


class Told:
    """A ledger that only hears of ends."""

    def __init__(self):
        self.trials = {number: Trial(number, {}) for number in range(9)}
        self.stopped = []

    def end(self, trial, state, message=""):
        self.stopped.append(trial.number)


def tune_trial(number):
    from types import SimpleNamespace

    return SimpleNamespace(trial_id=f"t{number}", config={"trial": number})


def curves(rungs, numbers):
    """Feed each trial's curve until it is stopped; better trials have higher numbers."""
    lengths = {}
    for number in numbers:
        trial = tune_trial(number)
        rungs.on_trial_add(None, trial)
        for step in range(1, 28):
            lengths[number] = step
            report = {"fold_epochs": step, "auc": 0.5 + number / 100 + step / 1000}
            if rungs.on_trial_result(None, trial, report) == "STOP":
                break
    return lengths


def test_rungs_stop_the_worse_and_never_the_base_config():
    ledger = Told()
    rungs = Pruning(ledger, grace=1, total=27, reduction_factor=3)
    assert curves(rungs, [8, 7, 6, 0]) == {8: 27, 7: 1, 6: 1, 0: 27}
    assert ledger.stopped == [7, 6]


def test_rungs_remember_earlier_sessions():
    reports = pd.DataFrame(
        {"fold_epochs": range(1, 28), "auc": [0.58 + step / 1000 for step in range(1, 28)]}
    )
    ledger = Told()
    rungs = Pruning(ledger, grace=1, total=27, reduction_factor=3)
    rungs.replay(8, reports)
    assert curves(rungs, [7]) == {7: 1}
    assert ledger.stopped == [7]


def oof(target, gain, rng):
    return pd.DataFrame({"target": target, "pred": gain * target + rng.normal(0, 1, len(target))})


def test_a_best_of_many_equals_is_within_noise_and_a_real_gain_is_not():
    rng = np.random.default_rng(1)
    target = np.arange(800) % 2
    group = pd.Series([""] * 800)
    base = oof(target, 1.0, rng)
    false_claims = 0
    for _ in range(6):
        trials = [oof(target, 1.0, rng) for _ in range(12)]
        from setibl_ray.seti.evaluation.metrics import auc

        best = max(trials, key=lambda table: auc(table["target"].to_numpy(), table["pred"].to_numpy()))
        found = against_base(best, base, group, n_tried=12)
        false_claims += found.beyond_noise
        assert found.gain == pytest.approx(
            auc(target, best["pred"].to_numpy()) - auc(target, base["pred"].to_numpy())
        )
    assert false_claims == 0
    better = against_base(oof(target, 2.5, rng), base, group, n_tried=12)
    assert better.beyond_noise
    assert "beyond noise" in str(better)
    assert "corrected for 12 trials" in str(better)
    again = confirmed([(oof(target, 2.5, rng), oof(target, 1.0, rng)) for _ in range(2)], [group] * 2)
    assert again.beyond_noise
    assert "2 other seeds" in str(again)
