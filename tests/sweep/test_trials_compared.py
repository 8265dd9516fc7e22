"""What makes trials comparable, how points are suggested, and when a best trial is called better."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import toys
from sklearn.metrics import roc_auc_score

from setibl_ray.core.task import Score
from setibl_ray.core.tuning.compare import against_base, confirmed
from setibl_ray.core.tuning.ladder import Standing, first_compared, ladder, slots_for
from setibl_ray.core.tuning.ledger import Ledger, Trial
from setibl_ray.core.tuning.pruning import Pruning
from setibl_ray.core.tuning.search import suggest
from setibl_ray.core.tuning.space import parse_space
from setibl_ray.seti.config import Config, parse
from setibl_ray.seti.task import CadenceTask

AUC, RMSE = CadenceTask.score, toys.LineTask.score
SPACE = parse_space(
    {name: {"loguniform" if "lr" in name else "uniform": list(ends)} for name, ends in toys.BOUNDS.items()},
    Config,
)
NO_REPORTS = pd.DataFrame({"fold_epochs": [], "score": []})


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


@pytest.mark.parametrize(
    ("column", "grace", "fold_epochs"), [("val", 1, 2), ("val", 3, 6), ("", 1, 6), ("", 9, 9)]
)
def test_trials_are_compared_once_there_are_scores(column, grace, fold_epochs):
    steps = ladder([3, 3, 3], slots=2)
    assert first_compared(steps, grace, replace(RMSE, step=column)).fold_epochs == fold_epochs


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
        standing = Standing(ladder(epochs, slots), target, fold_of_row, AUC)
        out = []
        for wave in waves:
            events = [[*((fold, epoch) for epoch in range(3)), (fold, None)] for fold in wave]
            while any(events):
                fold, epoch = events[rng.choice([i for i, left in enumerate(events) if left])].pop(0)
                if epoch is None:
                    standing.saw_result(fold, pred[fold_of_row == fold])
                else:
                    standing.saw_step(fold, epoch, auc[fold, epoch])
                out += standing.reached()
        seen.append([(step.number, value) for step, value in out])
        assert [step for step, _ in out] == ladder(epochs, slots), attempt
    assert all(one == seen[0] for one in seen)
    assert seen[0][-1][1] == pytest.approx(roc_auc_score(target, pred))


@pytest.mark.parametrize(("score", "worst"), [(AUC, 0), (RMSE, np.inf)])
def test_predictions_that_are_no_numbers_are_worth_nothing(score, worst):
    standing = Standing(ladder([1, 1], 2), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), score)
    standing.saw_step(0, 0, float("nan"))
    standing.saw_step(1, 0, float("nan"))
    assert standing.wave_score(standing.steps[0]) == worst
    for fold in (0, 1):
        standing.saw_result(fold, np.full(2, np.nan, np.float32))
    assert [value for _, value in standing.reached()] == [worst]


def test_the_best_step_of_a_fold_is_that_with_the_least_error_where_less_is_better():
    standing = Standing(ladder([3, 3], 2), np.arange(4.0), np.array([0, 0, 1, 1]), RMSE)
    for step, (first, second) in enumerate([(0.5, 0.9), (0.3, float("nan")), (0.7, 0.5)]):
        standing.saw_step(0, step, first)
        standing.saw_step(1, step, second)
    assert [value for _, value in standing.reached()] == pytest.approx([0.7, 0.6])
    standing.saw_result(0, np.array([0.0, 1.0]))
    standing.saw_result(1, np.array([2.0, 5.0]))
    assert [value for _, value in standing.reached()] == pytest.approx([1.0])


def value_of(quality: float, score: Score) -> float:
    return quality if score.sign > 0 else 1 - quality


def search_alone(search: str, seed: int, n_trials: int, score: Score = AUC) -> dict[str, float]:
    """A sweep's best point on the planted objective, one trial after another, nothing stopped."""
    base = parse({"seed": seed})
    trials: list[Trial] = []
    for number in range(1, n_trials):
        values = suggest(search, SPACE, base, number, trials, score, lambda trial: NO_REPORTS)
        trials.append(Trial(number, values, "done", score=value_of(toys.quality(values), score)))
    return max(trials, key=lambda trial: score.sign * trial.score).values


def test_tpe_comes_nearer_to_the_planted_optimum_than_random_at_the_same_budget():
    seeds = range(8)
    tpe, random = (
        np.array([toys.distance(search_alone(search, seed, 40)) for seed in seeds])
        for search in ("optuna", "random")
    )
    assert tpe.mean() < 0.7 * random.mean(), (tpe, random)
    assert (tpe < random).sum() >= 6, (tpe, random)


def test_the_same_objective_upside_down_is_searched_alike():
    for seed in range(2):
        up, down = (search_alone("optuna", seed, 20, score) for score in (AUC, RMSE))
        assert up == down


def test_a_suggestion_depends_on_nothing_but_seed_number_and_trials():
    base = parse({"seed": 5})
    trials = [
        Trial(number, values := SPACE.sample(np.random.default_rng(number)), "done", toys.quality(values))
        for number in range(1, 13)
    ]
    reports = pd.DataFrame({"fold_epochs": [1, 2], "score": [0.5, 0.6]})
    trials += [Trial(13, trials[0].values, "stopped", 0.6), Trial(14, trials[1].values, "running")]
    trials += [Trial(15, trials[2].values, "failed")]
    once, again = (
        suggest("optuna", SPACE, base, 16, order, AUC, lambda t: reports) for order in (trials, trials[::-1])
    )
    assert once == again
    assert once != suggest("optuna", SPACE, base, 17, trials, AUC, lambda t: reports)
    assert once != suggest("optuna", SPACE, base, 16, trials, RMSE, lambda t: reports)


@pytest.mark.parametrize(("score", "best"), [(AUC, 2), (RMSE, 1)])
def test_the_best_trial_is_the_finished_one_with_the_best_score_and_the_earlier_of_two(score, best, tmp_path):
    ledger = Ledger(str(tmp_path), score)
    for number, (state, value) in enumerate(
        [("done", 0.5), ("done", 0.2), ("done", 0.8), ("done", 0.2), ("done", 0.8), ("stopped", 0.9)]
    ):
        ledger.save(Trial(number, {}, state, value))
    ledger.save(Trial(6, {}, "stopped", 0.1))
    ledger.save(Trial(7, {}, "done", score.worst))
    again = Ledger(str(tmp_path), score)
    again.load()
    assert again.best.number == best
    assert again.trials[7].score == score.worst
    assert min(again.done, key=again.rank).number == 7


class Told:
    """A ledger that only hears of ends."""

    def __init__(self, score=AUC):
        self.score = score
        self.trials = {number: Trial(number, {}) for number in range(9)}
        self.stopped = []

    def end(self, trial, state, message=""):
        self.stopped.append(trial.number)


def tune_trial(number):
    from types import SimpleNamespace

    return SimpleNamespace(trial_id=f"t{number}", config={"trial": number})


def curves(rungs, numbers, sign=1):
    """Feed each trial's curve until it is stopped; better trials have higher numbers."""
    lengths = {}
    for number in numbers:
        trial = tune_trial(number)
        rungs.on_trial_add(None, trial)
        for step in range(1, 28):
            lengths[number] = step
            report = {"fold_epochs": step, "score": sign * (0.5 + number / 100 + step / 1000)}
            if rungs.on_trial_result(None, trial, report) == "STOP":
                break
    return lengths


@pytest.mark.parametrize("score", [AUC, RMSE])
def test_rungs_stop_the_worse_and_never_the_base_config(score):
    ledger = Told(score)
    rungs = Pruning(ledger, grace=1, total=27, reduction_factor=3)
    assert curves(rungs, [8, 7, 6, 0], score.sign) == {8: 27, 7: 1, 6: 1, 0: 27}
    assert ledger.stopped == [7, 6]


def test_rungs_remember_earlier_sessions():
    reports = pd.DataFrame(
        {"fold_epochs": range(1, 28), "score": [0.58 + step / 1000 for step in range(1, 28)]}
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
    auc = AUC.fn
    for _ in range(6):
        trials = [oof(target, 1.0, rng) for _ in range(12)]
        best = max(trials, key=lambda table: auc(table["target"].to_numpy(), table["pred"].to_numpy()))
        found = against_base(AUC, best, base, group, n_tried=12)
        false_claims += found.beyond_noise
        assert found.gain == pytest.approx(
            auc(target, best["pred"].to_numpy()) - auc(target, base["pred"].to_numpy())
        )
    assert false_claims == 0
    better = against_base(AUC, oof(target, 2.5, rng), base, group, n_tried=12)
    assert better.beyond_noise
    assert "beyond noise" in str(better)
    assert "corrected for 12 trials" in str(better)
    assert better.is_better
    worse = against_base(AUC, oof(target, 0.2, rng), base, group, n_tried=12)
    assert worse.beyond_noise
    assert not worse.is_better
    again = confirmed(AUC, [(oof(target, 2.5, rng), oof(target, 1.0, rng)) for _ in range(2)], group)
    assert again.beyond_noise
    assert "2 other seeds" in str(again)


def test_less_error_is_better_and_a_generic_score_is_compared_by_a_paired_bootstrap():
    rng = np.random.default_rng(2)
    target = rng.normal(size=300)
    group = pd.Series(np.arange(300) // 2).astype(str)

    def table(error):
        return pd.DataFrame({"target": target, "pred": target + error * rng.normal(size=300)})

    base, alike, near = table(1.0), table(1.0), table(0.5)
    found = against_base(RMSE, near, base, group, n_tried=5)
    assert found.gain == pytest.approx(toys.rmse(target, near["pred"]) - toys.rmse(target, base["pred"]))
    assert found.low < found.gain < found.high < 0
    assert found.is_better
    assert str(found).endswith("corrected for 5 trials: beyond noise")
    assert "RMSE" in str(found)
    back = against_base(RMSE, base, near, group, n_tried=5)
    assert back.beyond_noise
    assert not back.is_better
    assert not against_base(RMSE, alike, base, group, n_tried=5).beyond_noise
    again = confirmed(RMSE, [(table(0.5), table(1.0)) for _ in range(3)], None)
    assert again.is_better
    assert again.high < 0
