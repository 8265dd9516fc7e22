"""Post-processing and calibration: what they do to each row, what they must not see, and that the effect is told."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.seti.evaluation import calibration, metrics, postprocess


def tables(n=240, n_test=60, seed=0, folds=4):
    """Out-of-fold rows in groups of three that share target and fold, and test rows in groups of three."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) // 3
    target = (rng.random(n // 3) < 0.4).astype(int)[group]
    target[:6] = 0, 0, 0, 1, 1, 1
    oof = pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(n)],
            "target": target,
            "pred": np.clip(0.25 * target + 0.75 * rng.random(n), 0, 1),
            "fold": group % folds,
            "group": [f"g{g}" for g in group],
        }
    )
    test = pd.DataFrame(
        {
            "image_id": [f"t{i}" for i in range(n_test)],
            "pred": rng.random(n_test),
            "group": [f"g{i // 3}" for i in range(n_test)],
        }
    )
    return oof, test


def halved(table):
    assert set(table) == {"image_id", "pred", "group"}  # no target
    return table["pred"] / 2


def test_hooks_work_on_groups_and_leave_the_rest():
    ids = pd.Series(["a", "b", "c", "d"])
    pred, group = np.array([0.2, 0.8, 0.4, 0.6]), pd.Series(["g", "g", "h", ""])
    expected = {
        "group-mean": [0.7 * 0.2 + 0.15, 0.7 * 0.8 + 0.15, 0.4, 0.6],
        "group-max": [0.7 * 0.2 + 0.24, 0.8, 0.4, 0.6],
        "group-best": [0.1, 0.8, 0.4, 0.6],
        "test_postprocess:halved": [0.1, 0.4, 0.2, 0.6],
    }
    for name, scores in expected.items():
        assert postprocess.apply(name, ids, pred, group) == pytest.approx(scores), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("group-median", "expected none, group-mean, .* or module:function; got 'group-median'"),
        ("nowhere:hook", "cannot be imported"),
        ("test_postprocess:missing", "cannot be imported"),
        ("numpy:pi", "expected a function"),
        ("builtins:len", "expected 2 scores"),
        (
            "test_postprocess:doubled",
            r"expected scores in \[0, 1\] from test_postprocess:doubled, got 1.8 for b",
        ),
    ],
)
def test_hooks_that_do_not_work_are_named(name, message):
    with pytest.raises(ConfigError, match=message):
        postprocess.apply(name, pd.Series(["a", "b"]), np.array([0.1, 0.9]), pd.Series(["g", "g"]))


def doubled(table):
    return table["pred"] * 2


def test_a_split_without_groups_is_refused_not_passed_over():
    oof, test = tables()
    with pytest.raises(ConfigError, match="none of the 60 test records has one"):
        postprocess.finish(oof, test.assign(group=""), postprocess="group-mean", calibrate="none")
    with pytest.raises(ConfigError, match="none of the 240 training records has one"):
        postprocess.finish(oof.assign(group=None), test, postprocess="group-mean", calibrate="none")
    whole = postprocess.finish(oof, test.iloc[:0], postprocess="group-mean", calibrate="none")
    assert len(whole.test) == 0


def test_nothing_asked_for_changes_nothing_and_reports_nothing():
    oof, test = tables()
    done = postprocess.finish(oof, test, postprocess="none", calibrate="none")
    assert (done.oof == oof["pred"]).all()
    assert (done.test == test["pred"]).all()
    assert done.report == {}


def test_the_effect_is_that_of_scikit_learn_and_helps_where_groups_share_their_target():
    oof, test = tables()
    done = postprocess.finish(oof, test, postprocess="group-mean", calibrate="none")
    said = done.report["postprocess"]
    before, after = (roc_auc_score(oof["target"], pred) for pred in (oof["pred"], done.oof))
    assert (said["auc_before"], said["auc_after"]) == pytest.approx((before, after))
    assert said["effect"]["difference"] == pytest.approx(after - before)
    assert said["effect"]["interval"][0] > 0
    assert said["effect"]["resampled"] == "groups"
    assert said["brier_after"] == pytest.approx(brier_score_loss(oof["target"], done.oof))
    mean = test.groupby("group")["pred"].transform("mean")
    assert done.test == pytest.approx(0.7 * test["pred"] + 0.3 * mean)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from(["group-mean", "group-max", "group-best"]))
def test_a_row_hears_nothing_from_relatives_in_other_folds(seed, hook):
    rng = np.random.default_rng(seed)
    oof, test = tables(seed=seed)
    torn = oof.assign(
        fold=rng.integers(0, 4, len(oof)), group=[f"g{g}" for g in rng.integers(0, 9, len(oof))]
    )
    before = postprocess.finish(torn, test, postprocess=hook, calibrate="none").oof
    # Models of other folds trained on this fold's targets, so nothing that they say may count here.
    elsewhere = torn["fold"] != 2
    other = torn.assign(pred=np.where(elsewhere, rng.random(len(oof)), torn["pred"]))
    after = postprocess.finish(other, test, postprocess=hook, calibrate="none").oof
    assert (before[~elsewhere] == after[~elsewhere]).all()


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_the_order_of_rows_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    oof, test = tables()
    here, there = rng.permutation(len(oof)), rng.permutation(len(test))
    arguments = {"postprocess": "group-best", "calibrate": "isotonic"}
    straight = postprocess.finish(oof, test, **arguments)
    shuffled = postprocess.finish(
        oof.iloc[here].reset_index(drop=True), test.iloc[there].reset_index(drop=True), **arguments
    )
    assert shuffled.oof == pytest.approx(straight.oof[here])
    assert shuffled.test == pytest.approx(straight.test[there])


def test_calibration_is_fitted_without_the_own_fold_and_for_test_on_all():
    oof, test = tables()
    done = postprocess.finish(oof, test, postprocess="none", calibrate="isotonic")
    for k in range(4):
        held = oof["fold"] == k
        curve = IsotonicRegression(out_of_bounds="clip").fit(oof["pred"][~held], oof["target"][~held])
        assert done.oof[held] == pytest.approx(curve.predict(oof["pred"][held]))
    curve = IsotonicRegression(out_of_bounds="clip").fit(oof["pred"], oof["target"])
    assert done.test == pytest.approx(curve.predict(test["pred"]))
    said = done.report["calibration"]
    assert said["brier_effect"]["difference"] == pytest.approx(said["brier_after"] - said["brier_before"])
    assert said["brier_after"] == pytest.approx(brier_score_loss(oof["target"], done.oof))
    assert said["ece_after"] == pytest.approx(calibration.expected_calibration_error(oof["target"], done.oof))
    assert said["ece_after"] < said["ece_before"]


def test_calibration_comes_after_post_processing():
    oof, test = tables()
    first = postprocess.finish(oof, test, postprocess="group-max", calibrate="none")
    then = postprocess.finish(
        oof.assign(pred=first.oof), test.assign(pred=first.test), postprocess="none", calibrate="platt"
    )
    both = postprocess.finish(oof, test, postprocess="group-max", calibrate="platt")
    assert both.oof == pytest.approx(then.oof)
    assert both.test == pytest.approx(then.test)
    assert both.report == first.report | then.report


def test_calibration_without_a_class_outside_a_fold_is_refused():
    oof, test = tables()
    with pytest.raises(DataError, match="needs both classes"):
        postprocess.finish(oof.assign(fold=oof["target"]), test, postprocess="none", calibrate="platt")


def test_mean_difference_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 30))
    group = pd.Series([f"g{g}" for g in rng.integers(0, 7, 30)])
    got = metrics.mean_difference(first, second, group, n_bootstrap=40, seed=3)
    names, again = sorted(set(group), key=list(group).index), np.random.default_rng(3)
    draws = []
    for _ in range(40):
        rows = [row for pick in again.integers(0, 7, 7) for row in np.flatnonzero(group == names[pick])]
        draws.append(np.mean(second[rows] - first[rows]))
    assert got["difference"] == pytest.approx(np.mean(second - first))
    assert got["interval"] == pytest.approx(np.percentile(draws, [2.5, 97.5]))
