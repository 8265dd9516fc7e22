import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from setibl_ray.core.run import oof
from setibl_ray.seti.config import parse


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.randoms())
def test_gather_puts_every_prediction_back_in_its_row(fold_of_row, random):
    fold_of_row = np.array(fold_of_row)
    truth = np.array([random.random() for _ in fold_of_row], np.float32)
    parts = {fold: truth[fold_of_row == fold] for fold in sorted(set(fold_of_row.tolist()), reverse=True)}
    assert (oof.gather(fold_of_row, parts) == truth).all()


def test_gather_refuses_gaps_and_wrong_counts():
    rows = np.array([0, 1, 0])
    with pytest.raises(oof.CoverageError, match="fold 1 has no predictions"):
        oof.gather(rows, {0: np.zeros(2, np.float32)})
    with pytest.raises(oof.CoverageError, match="fold 0: expected 2 predictions"):
        oof.gather(rows, {0: np.zeros(3, np.float32), 1: np.zeros(1, np.float32)})
    with pytest.raises(oof.CoverageError, match="not a finite number"):
        oof.gather(rows, {0: np.array([0, np.nan], np.float32), 1: np.zeros(1, np.float32)})


def test_fold_weights_sum_to_one_and_average_is_the_weighted_mean():
    aucs = [0.5, 0.7, 0.9]
    assert oof.fold_weights(parse({"folds": 3}), aucs) == pytest.approx([1 / 3] * 3)
    assert oof.fold_weights(parse({"folds": 3, "fold_weights": "auc"}), aucs) == pytest.approx(
        [0, 1 / 3, 2 / 3]
    )
    assert oof.fold_weights(parse({"folds": 3, "fold_weights": "auc"}), [0.4] * 3) == pytest.approx(
        [1 / 3] * 3
    )
    weights = oof.fold_weights(parse({"folds": 3, "fold_weights": "1,1,2"}), aucs)
    predictions = [
        np.array([0.0, 1.0], np.float32),
        np.array([1.0, 1.0], np.float32),
        np.array([0.5, 0.0], np.float32),
    ]
    assert oof.average(predictions, weights) == pytest.approx([0.5, 0.5])
