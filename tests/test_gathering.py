"""Fold results to tables: rows back in their places, folds weighed, predictions of one column or several."""

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from sklearn.metrics import log_loss, mean_squared_error

from setibl_ray.core.config import Config
from setibl_ray.core.jobs import RunSpec
from setibl_ray.core.run import gathering
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.task import Fitted, Outcome, Prediction, Rows, Score, Task, predictions
from setibl_ray.seti.config import parse
from setibl_ray.seti.task import CadenceTask

AUC = CadenceTask.score
RMSE = Score("rmse", lambda target, pred: float(np.sqrt(mean_squared_error(target, pred))), "minimize")
LOG_LOSS = Score("log_loss", lambda target, pred: float(log_loss(target, pred)), "minimize", chance=np.log(3))


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(0, 3),
    st.sampled_from([np.float32, np.float64]),
    st.randoms(),
)
def test_gather_puts_every_prediction_back_in_its_row(fold_of_row, columns, dtype, random):
    """`columns` 0 stands for predictions that are one number a row."""
    fold_of_row = np.array(fold_of_row)
    truth = np.array([[random.random() for _ in range(max(columns, 1))] for _ in fold_of_row], dtype)
    truth = truth if columns else truth[:, 0]
    parts = {fold: truth[fold_of_row == fold] for fold in sorted(set(fold_of_row.tolist()), reverse=True)}
    gathered = gathering.gather(fold_of_row, parts)
    assert gathered.dtype == dtype
    assert gathered.shape == truth.shape
    assert (gathered == truth).all()


def test_gather_refuses_gaps_and_wrong_counts():
    rows = np.array([0, 1, 0])
    with pytest.raises(gathering.CoverageError, match="fold 1 has no predictions"):
        gathering.gather(rows, {0: np.zeros(2, np.float32)})
    with pytest.raises(gathering.CoverageError, match="fold 0: expected 2 predictions"):
        gathering.gather(rows, {0: np.zeros(3, np.float32), 1: np.zeros(1, np.float32)})
    with pytest.raises(gathering.CoverageError, match="not a finite number"):
        gathering.gather(rows, {0: np.array([0, np.nan], np.float32), 1: np.zeros(1, np.float32)})
    with pytest.raises(gathering.CoverageError, match=r"fold 1: expected .*got shape \(1, 2\)"):
        gathering.gather(rows, {0: np.zeros((2, 3)), 1: np.zeros((1, 2))})
    with pytest.raises(gathering.CoverageError, match="fold 0: a prediction is not a finite number"):
        gathering.gather(rows, {0: np.array([[0, 1], [np.inf, 0]]), 1: np.zeros((1, 2))})


def scored(aucs):
    """An out-of-fold table whose folds have these AUCs, in tenths."""
    target = np.tile([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], len(aucs))
    pred = np.concatenate([[10 * auc - 0.5, *range(10)] for auc in aucs])
    return pd.DataFrame({"target": target, "pred": pred, "fold": np.repeat(range(len(aucs)), 11)})


def test_fold_weights_sum_to_one_and_average_is_the_weighted_mean():
    aucs = scored([0.5, 0.7, 0.9])
    assert gathering.fold_weights(parse({"folds": 3}), AUC, aucs) == pytest.approx([1 / 3] * 3)
    by_auc = parse({"folds": 3, "fold_weights": "auc"})
    assert gathering.fold_weights(by_auc, AUC, aucs) == pytest.approx([0, 1 / 3, 2 / 3])
    assert gathering.fold_weights(by_auc, AUC, scored([0.4] * 3)) == pytest.approx([1 / 3] * 3)
    weights = gathering.fold_weights(parse({"folds": 3, "fold_weights": "1,1,2"}), AUC, aucs)
    predictions = [
        np.array([0.0, 1.0], np.float32),
        np.array([1.0, 1.0], np.float32),
        np.array([0.5, 0.0], np.float32),
    ]
    assert gathering.average(predictions, weights) == pytest.approx([0.5, 0.5])
    assert gathering.average(predictions, weights).dtype == np.float32


class ByLogLoss(Config):
    weight_rules = ("equal", "log_loss")


def three_classes(n=60, folds=3, seed=0):
    """A spec with targets 0, 1, 2, and folds that predict a column for each; fold 2 only guesses."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"star": [f"s{i}" for i in range(n)], "target": rng.integers(0, 3, n)})
    test = pd.DataFrame({"star": [f"t{i}" for i in rng.permutation(8)]})
    fold_of_row = rng.permutation(np.arange(n) % folds).astype(np.int16)
    rows = Rows(table, test, "f", id="star")
    config = ByLogLoss(folds=folds, split="rows", fold_weights="log_loss")
    spec = RunSpec(Task(), config, rows, fold_of_row, "")
    sure = np.array([0.8, 0.4, 0.0])
    pred = np.eye(3)[rows.target] * sure[fold_of_row][:, None] + (1 - sure[fold_of_row][:, None]) / 3
    fitted = {
        k: Fitted(pred[fold_of_row == k], columns={"raw": rows.target[fold_of_row == k] / 2})
        for k in (2, 0, 1)
    }
    predicted = {k: Prediction(rng.dirichlet([1, 1, 1], 8)) for k in range(folds)}
    return spec, pred, fitted, predicted


def test_predictions_of_several_columns_are_columns_of_every_table(tmp_path):
    spec, pred, fitted, predicted = three_classes()
    table = gathering.oof_table(spec, fitted)
    assert list(table) == ["star", "target", "fold", "pred_0", "pred_1", "pred_2", "raw"]
    assert (predictions(table) == pred).all()
    assert (table["raw"] == table["target"] / 2).all()
    written = gathering.oof_csv(spec.rows, table, pred)
    assert list(written) == ["star", "target", "pred_0", "pred_1", "pred_2", "fold"]

    weights = gathering.fold_weights(spec.config, LOG_LOSS, table)
    gains = [np.log(3) + np.log(part) for part in (0.8 + 0.2 / 3, 0.4 + 0.6 / 3)]
    assert weights == pytest.approx([*(np.array(gains) / sum(gains)), 0], abs=1e-12)
    test = gathering.test_table(spec, predicted, weights)
    mean = sum(weight * predicted[k].pred for k, weight in enumerate(weights))
    assert list(test) == ["star", "pred_0", "pred_1", "pred_2"]
    np.testing.assert_allclose(predictions(test), mean)
    assert predictions(test).sum(axis=1) == pytest.approx(np.ones(8))

    folder = RunFolder(str(tmp_path))
    gathering.write_submission(folder, spec.rows, predictions(test))
    submission = folder.read_csv("submission.csv")
    assert list(submission) == ["id", "target_0", "target_1", "target_2"]
    assert submission["id"].tolist() == sorted(spec.rows.test["star"])
    by_id = submission.set_index("id").loc[spec.rows.test["star"]].to_numpy()
    np.testing.assert_array_equal(by_id, predictions(test))

    score = gathering.score_of(LOG_LOSS, table, Outcome(pred, mean, {}))
    expected = {"name": "log_loss", "direction": "minimize", "interval": None}
    assert score == {**expected, "oof": pytest.approx(log_loss(table["target"], pred))}


def test_the_better_of_two_folds_weighs_more_where_less_is_better():
    table = pd.DataFrame({"target": [0.0, 1, 0, 1], "pred": [0.1, 1.1, 0.5, 1.5], "fold": [0, 0, 1, 1]})

    class ByRmse(Config):
        weight_rules = ("equal", "rmse")

    config = ByRmse(folds=2, split="rows", fold_weights="rmse")
    score = Score("rmse", RMSE.fn, "minimize", chance=0.9)
    assert gathering.fold_weights(config, score, table) == pytest.approx([0.8 / 1.2, 0.4 / 1.2])


def test_without_test_rows_there_is_no_test_table():
    spec, *_ = three_classes()
    bare = Rows(spec.rows.table, spec.rows.test.iloc[:0], "f", id="star")
    table = gathering.test_table(RunSpec(Task(), spec.config, bare, spec.fold_of_row, ""), {}, np.ones(3) / 3)
    assert len(table) == 0
