"""The real fold task: what it yields, and that a test set cut into spans gives the bytes of one in one piece."""

from contextlib import closing

import numpy as np
import pytest
import tensorflow as tf
from datasets import SMALL, cadence_shards
from sklearn.metrics import roc_auc_score

from setibl_ray.core import folds
from setibl_ray.core.contract import EpochEnd, FoldResult, Job, Plan, Predicted, PredictJob, Started
from setibl_ray.seti.config import parse
from setibl_ray.seti.formats.shards import read_index
from setibl_ray.seti.train import device
from setibl_ray.seti.train.fold import FoldData, fold_task
from setibl_ray.seti.train.trainer import trainer_for


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fold")
    index = read_index(str(cadence_shards(folder / "cadences")))
    config = parse(
        {
            "folds": 3, "model": "efficientnet-nano", "weights": "none", "image_size": "40x36", "batch_size": 2,
            "epochs": 2, "tta": 3, "device": "cpu", "cpus_per_fold": 1, "layout": "all6",
        }
    )  # fmt: skip
    fold_of_row = folds.assign(config, index.train, SMALL.shards, index.root)
    return Plan(config, index, fold_of_row, str(folder / "scratch"))


@pytest.fixture(autouse=True, scope="module")
def a_share_of_a_process_that_runs_already():
    with pytest.MonkeyPatch.context() as patch:
        here = device.Device("cpu", tf.distribute.get_strategy(), 1)
        patch.setattr(device, "acquire", lambda kind, threads: here)
        yield


@pytest.fixture(scope="module")
def events(plan):
    return list(fold_task(plan, Job(1)))


def test_a_fold_is_a_start_its_epochs_and_a_result_from_its_best_weights(plan, events):
    assert [type(event) for event in events] == [Started, EpochEnd, EpochEnd, FoldResult]
    result = events[-1]
    target = plan.index.train["target"].to_numpy()[plan.valid_rows(1)]
    aucs = [row["val_auc"] for row in result.history]
    assert roc_auc_score(target, result.valid_pred_no_tta) == pytest.approx(max(aucs))
    assert aucs[result.best_epoch] == max(aucs)
    assert (result.valid_pred != result.valid_pred_no_tta).any()


def predict(plan, weights, span):
    started, predicted = fold_task(plan, PredictJob(1, span, weights))
    assert (type(started), started.span, type(predicted), predicted.span) == (Started, span, Predicted, span)
    return predicted


def test_spans_of_the_test_set_give_the_bytes_of_the_whole(plan, events):
    weights, batch = events[-1].weights, plan.prediction_batch(1, 1)
    n = plan.n_test
    whole = predict(plan, weights, (0, n))
    assert whole.pred.shape == whole.pred_no_tta.shape == (n,)
    assert len(np.unique(whole.pred)) > n // 2
    parts = [predict(plan, weights, (start, min(start + 2 * batch, n))) for start in range(0, n, 2 * batch)]
    assert len(parts) > 1
    for name in ("pred", "pred_no_tta"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert joined.tobytes() == getattr(whole, name).tobytes()


def test_weights_that_travel_as_a_file_predict_what_the_trained_model_did(plan, events):
    here, result = device.acquire("cpu", 1), events[-1]
    with closing(FoldData(plan, 1, 1, 1)) as data:
        trainer = trainer_for(plan, plan.config.for_fold(1), data.image_shape, here)
        trainer.load_weights_file(result.weights)
        pred = trainer.predict(data.valid_views([None]), len(data.valid_rows))
    assert pred.tobytes() == result.valid_pred_no_tta.tobytes()
