"""The real fold task: what it yields, and that a test set cut into spans gives the bytes of one in one piece."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from datasets import cadence_shards
from sklearn.metrics import roc_auc_score

from setibl_ray.core.jobs import Job, Place, Predicted, Started, Stepped, Trained, events_of
from setibl_ray.core.run import session
from setibl_ray.core.task import Work
from setibl_ray.seti.config import parse
from setibl_ray.seti.evaluation import selection
from setibl_ray.seti.task import TASK
from setibl_ray.seti.train import device, keras2
from setibl_ray.seti.train.fold import FoldData
from setibl_ray.seti.train.trainer import trainer_for


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fold")
    config = parse(
        {
            "folds": 3, "model": "efficientnet-nano", "weights": "none", "image_size": "40x36", "batch_size": 2,
            "epochs": 2, "tta": 3, "device": "cpu", "cpus_per_fold": 1, "layout": "all6",
        }
    )  # fmt: skip
    return session.check(TASK, config, str(cadence_shards(folder / "cadences")))


@pytest.fixture(autouse=True, scope="module")
def a_share_of_a_process_that_runs_already():
    with pytest.MonkeyPatch.context() as patch:
        here = device.Device("cpu", tf.distribute.get_strategy(), 1)
        patch.setattr(device, "acquire", lambda kind, threads, share=None: here)
        yield


@pytest.fixture(scope="module")
def events(spec):
    return list(events_of(spec, Job(1)))


@pytest.mark.parametrize("select", ["last", "inner", "held-out"])
def test_a_fold_is_a_start_its_epochs_and_a_result_from_the_chosen_one(spec, events, select):
    if select != "last":
        changed = replace(spec, config=spec.config.model_copy(update={"select": select}))
        events = list(events_of(changed, Job(1)))
    assert [type(event) for event in events] == [Started, Stepped, Stepped, Trained]
    fitted, chosen = events[-1].fitted, events[-1].fitted.facts["best_epoch"]
    target = spec.rows.target[spec.valid(1)]
    ranks = [event.row[selection.RANK[select]] for event in events[1:3]]
    assert ranks[chosen] == max(ranks)
    plain = fitted.columns["pred_no_tta"]
    assert roc_auc_score(target, plain) == pytest.approx(events[1 + chosen].row["val_auc"])
    assert (fitted.pred != plain).any()


def test_rows_that_choose_an_epoch_are_not_trained_on(spec):
    work = Work(spec.config, spec.rows, 1, spec.fold_of_row, Place.here(spec.config), spec.scratch)
    inner = replace(work, config=spec.config.model_copy(update={"select": "inner"}))
    with closing(FoldData(inner, 1, 1)) as data:
        assert len(data.inner_rows) == len(work.train) // 10 > 0
        assert not set(data.inner_rows) & set(data.train_rows)
        assert {*data.inner_rows, *data.train_rows} == set(work.train)
        assert sorted(np.concatenate(data.valid_halves)) == list(range(len(work.valid)))


def predict(spec, artifact, span):
    started, predicted = events_of(spec, Job(1, span, payload=artifact))
    assert (type(started), started.span, type(predicted), predicted.span) == (Started, span, Predicted, span)
    return predicted.prediction


def test_spans_of_the_test_set_give_the_bytes_of_the_whole(spec, events):
    fitted, n = events[-1].fitted, spec.n_test
    assert fitted.batch == 4
    whole = predict(spec, fitted.artifact, (0, n))
    assert whole.pred.shape == whole.columns["pred_no_tta"].shape == (n,)
    assert len(np.unique(whole.pred)) > n // 2
    step = 2 * fitted.batch
    parts = [predict(spec, fitted.artifact, (start, min(start + step, n))) for start in range(0, n, step)]
    assert len(parts) > 1
    assert np.concatenate([part.pred for part in parts]).tobytes() == whole.pred.tobytes()
    joined = np.concatenate([part.columns["pred_no_tta"] for part in parts])
    assert joined.tobytes() == whole.columns["pred_no_tta"].tobytes()


def test_weights_that_travel_as_a_file_predict_what_the_trained_model_did(spec, events):
    here, fitted = device.acquire("cpu", 1), events[-1].fitted
    work = Work(spec.config, spec.rows, 1, spec.fold_of_row, Place.here(spec.config), spec.scratch)
    with closing(FoldData(work, 1, 1)) as data:
        trainer = trainer_for(work, spec.config.for_fold(1), data.image_shape, here, {})
        keras2.load_weights_file(trainer.model, fitted.artifact)
        pred = trainer.predict(data.valid_views([None]), len(data.valid_rows))
    assert pred.tobytes() == fitted.columns["pred_no_tta"].tobytes()
