"""Every metric against an independent computation: scikit-learn, or a loop that follows the definition."""

import math

import numpy as np
import pandas as pd
import pytest
import runs as fake
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from setibl_ray.core import stats
from setibl_ray.core.errors import DataError
from setibl_ray.seti.evaluation import calibration, metrics, selection
from setibl_ray.seti.evaluation.summary import summary_lines

# Few distinct scores, so that most draws have ties across classes.
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=60)


def columns(rows):
    target, score, weight = np.array(rows).T
    return target, score / 6, weight.astype(float)


def naive_recall(target, pred, fpr):
    best = 0.0
    for threshold in pred:
        flagged = pred >= threshold
        if flagged[target == 0].mean() <= fpr:
            best = max(best, flagged[target == 1].mean())
    return best


@given(ROWS)
def test_ranking_metrics_equal_scikit_learn_and_loops(rows):
    target, pred, _ = columns(rows)
    counts = metrics.Ranking(target, pred).counts()
    if len(set(target)) < 2:
        assert math.isnan(counts.auc())
        assert math.isnan(counts.average_precision())
        assert math.isnan(counts.recall_at(0.1))
        return
    assert counts.auc() == pytest.approx(roc_auc_score(target, pred))
    assert counts.average_precision() == pytest.approx(average_precision_score(target, pred))
    for fpr in (0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 1.0):
        assert counts.recall_at(fpr) == pytest.approx(naive_recall(target, pred, fpr))


@given(ROWS)
def test_weights_stand_for_repeated_rows(rows):
    target, pred, weight = columns(rows)
    counts = metrics.Ranking(target, pred).counts(weight)
    again = np.repeat(np.arange(len(target)), weight.astype(int))
    repeated = metrics.Ranking(target[again], pred[again]).counts()
    for name in ("auc", "average_precision"):
        assert getattr(counts, name)() == pytest.approx(getattr(repeated, name)(), nan_ok=True)
    assert counts.recall_at(0.2) == pytest.approx(repeated.recall_at(0.2), nan_ok=True)


@given(ROWS)
def test_auc_sees_only_the_order(rows):
    target, pred, _ = columns(rows)
    assert metrics.auc(target, pred) == pytest.approx(metrics.auc(target, np.exp(3 * pred)), nan_ok=True)
    if len(set(target)) == 2:
        assert metrics.auc(target, pred) + metrics.auc(target, -pred) == pytest.approx(1)


@given(ROWS, st.integers(1, 20))
def test_calibration_scores_equal_loops(rows, n_bins):
    target, pred, _ = columns(rows)
    assert calibration.brier(target, pred) == pytest.approx(brier_score_loss(target, pred))
    gap = 0.0
    for i in range(n_bins):
        inside = [r for r, p in enumerate(pred) if min(int(p * n_bins), n_bins - 1) == i]
        if inside:
            gap += len(inside) / len(pred) * abs(pred[inside].mean() - target[inside].mean())
    assert calibration.expected_calibration_error(target, pred, n_bins) == pytest.approx(gap)


def test_no_rows_and_one_class_give_null_not_an_error():
    assert math.isnan(calibration.brier(np.array([]), np.array([])))
    assert math.isnan(calibration.expected_calibration_error(np.array([]), np.array([])))
    rows = fake.records(40, 2, np.random.default_rng(0)).assign(target=0, pred=0.5, pred_no_tta=0.5)
    summary = metrics.summarise(rows, n_bootstrap=10)
    assert summary["oof_auc"] is None
    assert summary["intervals"]["oof_auc"] is None
    assert summary["recall_at_fpr"][0]["recall"] is None
    assert summary["needles"] == []
    assert summary["brier"] == 0.25


@pytest.fixture(scope="module")
def oof():
    rng = np.random.default_rng(1)
    rows = fake.records(600, 5, rng)
    pred = fake.scores(rows, rng)
    return rows.assign(pred=pred, pred_no_tta=np.clip(pred + rng.normal(0, 0.1, 600), 0, 1))


def test_summary_equals_scikit_learn(oof):
    summary = metrics.summarise(oof, n_bootstrap=50)
    assert summary["oof_auc"] == pytest.approx(roc_auc_score(oof["target"], oof["pred"]))
    assert summary["oof_auc_no_tta"] == pytest.approx(roc_auc_score(oof["target"], oof["pred_no_tta"]))
    assert summary["oof_ap"] == pytest.approx(average_precision_score(oof["target"], oof["pred"]))
    assert summary["brier"] == pytest.approx(brier_score_loss(oof["target"], oof["pred"]))
    for fold in summary["folds"]:
        held = oof[oof["fold"] == fold["fold"]]
        assert fold["auc"] == pytest.approx(roc_auc_score(held["target"], held["pred"]))
        assert fold["n_valid"] == len(held)
    low, high = summary["intervals"]["oof_auc"]
    assert low < summary["oof_auc"] < high
    assert summary["intervals"]["resampled"] == "groups"
    assert summary["intervals"]["n_units"] == 150


def test_intervals_are_those_of_a_bootstrap_that_repeats_rows(oof):
    """Group by group, drawn with the same generator, scored by scikit-learn."""
    rows = oof.iloc[:240].copy()  # 60 groups of four, all folds
    found = metrics.summarise(rows, n_bootstrap=30, seed=5)["intervals"]
    names, rng = list(dict.fromkeys(rows["group"])), np.random.default_rng(5)
    members = {name: np.flatnonzero(rows["group"] == name) for name in names}
    draws = {"oof_auc": [], "oof_ap": [], "tta_gain": [], "fold_2_auc": [], "recall_at_0.01": []}
    for _ in range(30):
        drawn = rows.iloc[np.concatenate([members[names[i]] for i in rng.integers(0, 60, 60)])]
        target, pred = drawn["target"].to_numpy(), drawn["pred"].to_numpy()
        auc = roc_auc_score(target, pred)
        fold = drawn[drawn["fold"] == 2]
        draws["oof_auc"].append(auc)
        draws["oof_ap"].append(average_precision_score(target, pred))
        draws["tta_gain"].append(auc - roc_auc_score(target, drawn["pred_no_tta"]))
        draws["fold_2_auc"].append(roc_auc_score(fold["target"], fold["pred"]))
        draws["recall_at_0.01"].append(naive_recall(target, pred, 0.01))
    for name, values in draws.items():
        assert found[name] == pytest.approx(np.percentile(values, [2.5, 97.5])), name
    assert found["n_units"] == 60


def test_views_are_judged_by_the_models_own_scores(oof):
    processed = oof.assign(pred=oof["pred"] ** 2 * (oof["fold"] + 1) / 5, pred_model=oof["pred"])
    before, after = (metrics.summarise(rows, n_bootstrap=20) for rows in (oof, processed))
    assert after["oof_auc"] == pytest.approx(roc_auc_score(oof["target"], processed["pred"]))
    assert after["oof_auc"] != before["oof_auc"]
    assert (
        after["tta_gain"] == before["tta_gain"] == pytest.approx(before["oof_auc"] - before["oof_auc_no_tta"])
    )
    assert after["intervals"]["tta_gain"] == before["intervals"]["tta_gain"]


def test_one_group_alone_has_no_interval_rather_than_a_certain_one(oof):
    summary = metrics.summarise(oof.assign(group="g"), n_bootstrap=20)
    assert summary["intervals"]["n_units"] == 1
    assert summary["intervals"]["oof_auc"] is None
    target, pred = oof["target"].to_numpy(), oof["pred"].to_numpy()
    whole = pd.Series("g", oof.index)
    assert metrics.difference(target, pred, pred, whole)["interval"] is None
    assert metrics.auc_gain(target, pred, -pred, whole)[1] == math.inf
    assert stats.interval(metrics.auc, target, pred, whole) is None
    assert stats.difference(metrics.auc, target, pred, -pred, whole)[1] == math.inf
    assert metrics.mean_difference(pred, pred, whole)["interval"] is None
    assert summary_lines(summary)  # and the text does without


@given(st.integers(0, 40), st.integers(0, 40))
def test_shares_have_wilsons_interval(hits, misses):
    n, z = hits + misses, 1.959963984540054
    found = metrics.share(np.repeat([True, False], [hits, misses]))
    if not n:
        assert found == {"n": 0, "n_hits": 0, "share": None, "interval": None}
        return
    p = hits / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert found["share"] == p
    assert found["interval"] == pytest.approx([middle - half, middle + half], abs=1e-9)


def test_kinds_and_snr_bins_equal_loops(oof):
    summary = metrics.summarise(oof, n_bootstrap=10)
    threshold = summary["recall_at_fpr"][0]["threshold"]
    assert (oof.loc[oof["target"] == 0, "pred"] >= threshold).mean() <= 0.01
    for row in summary["needles"] + summary["interference"]:
        own = oof[oof["kind"] == row["kind"]]
        assert (row["n"], row["n_hits"]) == (len(own), int((own["pred"] >= threshold).sum()))
        assert row["interval"][0] <= row["share"] <= row["interval"][1]
    needles = oof[oof["target"] == 1]
    bins = [row for row in summary["recall_by_snr"] if row["kind"] == "all"]
    assert sum(row["n"] for row in bins) == len(needles)
    for row in bins[:-1]:
        inside = needles[(needles["snr"] >= row["snr_low"]) & (needles["snr"] < row["snr_high"])]
        assert (row["n"], row["n_hits"]) == (len(inside), int((inside["pred"] >= threshold).sum()))


def test_shards_without_kinds_groups_and_snr(oof):
    bare = oof.assign(group="", kind="", snr=np.nan)
    summary = metrics.summarise(bare, n_bootstrap=10)
    assert summary["recall_by_snr"] == summary["needles"] == summary["interference"] == []
    assert summary["intervals"]["resampled"] == "rows"


def test_rows_without_a_group_are_units_of_their_own():
    units, resampled = metrics.resampling_units(pd.Series(["a", "", "a", "b", ""]))
    assert resampled == "groups"
    assert len(set(units)) == 4
    assert units[0] == units[2]


def test_group_bootstrap_is_wider_where_groups_repeat_themselves():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 60)
    pred = np.clip(0.3 * target + rng.random(60) * 0.7, 0, 1)
    bare = {"fold": 0, "group": "", "kind": "", "snr": np.nan}
    rows = pd.DataFrame({"target": target, "pred": pred, "pred_no_tta": pred, **bare}).loc[
        np.repeat(range(60), 8)
    ]
    alone = metrics.summarise(rows.reset_index(drop=True), n_bootstrap=200)["intervals"]["oof_auc"]
    named = rows.assign(group=[f"g{i}" for i in rows.index]).reset_index(drop=True)
    grouped = metrics.summarise(named, n_bootstrap=200)["intervals"]["oof_auc"]
    assert np.ptp(grouped) > 2 * np.ptp(alone)


def test_paired_difference_is_narrower_than_either_and_zero_with_itself(oof):
    target, pred = oof["target"].to_numpy(), oof["pred"].to_numpy()
    same = metrics.difference(target, pred, pred, oof["group"], n_bootstrap=50)
    assert same["difference"] == 0
    assert same["interval"] == [0, 0]
    worse = metrics.difference(target, pred, np.random.default_rng(0).random(len(pred)), oof["group"])
    assert worse["interval"][1] < 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": math.nan}, "expected pred in .0, 1., got"),
        ({"pred": 1.5}, "got .*1.5"),
    ],
)
def test_unusable_rows_are_named(oof, change, message):
    with pytest.raises(DataError, match=message):
        metrics.summarise(oof.assign(**change))


def test_calibrators_mend_what_is_wrong_and_keep_the_order():
    rng = np.random.default_rng(0)
    truth = rng.beta(1, 2, 6000)
    target = (rng.random(6000) < truth).astype(int)
    pred = truth**3  # far too sure of haystacks
    fold = np.arange(6000) % 5
    for method in ("isotonic", "platt"):
        mended = calibration.cross_calibrate(method, target, pred, fold)
        before = calibration.expected_calibration_error(target, pred)
        assert calibration.expected_calibration_error(target, mended) < before / 3
        assert calibration.brier(target, mended) < calibration.brier(target, pred)
        grid = calibration.fit(method, target, pred)(np.linspace(0, 1, 101))
        assert (np.diff(grid) >= -1e-12).all()
        assert grid.min() >= 0
        assert grid.max() <= 1
    platt = calibration.fit("platt", target, pred)(pred)
    assert metrics.auc(target, platt) == pytest.approx(metrics.auc(target, pred), abs=1e-6)


def test_optimism_is_what_choosing_by_the_scored_rows_adds():
    rng = np.random.default_rng(0)
    noise = 0.01  # of an AUC over all rows; of half of them, sqrt(2) times as much
    histories = {
        fold: pd.DataFrame(0.9 + noise * np.sqrt(2) * rng.normal(size=(12, 2)), columns=selection.HALVES)
        for fold in range(4000)
    }
    highest = rng.normal(size=(100_000, 12)).max(axis=1).mean() * noise
    assert selection.optimism(histories) == pytest.approx(highest, rel=0.03)
    steady = pd.DataFrame({name: [0.5, 0.7, 0.9] for name in selection.HALVES})
    assert selection.optimism({0: steady, 1: steady}) == 0
    assert selection.optimism({0: steady[["val_auc_half_1"]]}) is None
    assert selection.check("held-out", {0: steady})["state"] == "look"
    assert selection.check("last", {0: steady})["state"] == "ok"


def test_a_diverged_epoch_ranks_behind_all_others():
    row = {"epoch": 3, "val_auc": 0.6, "inner_auc": 0.7}
    assert [selection.rank(select, row) for select in ("last", "held-out", "inner")] == [3, 0.6, 0.7]
    assert {selection.rank(select, row | {"val_auc": np.nan}) for select in selection.RANK} == {-1}
