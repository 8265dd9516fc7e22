"""What is submitted after which event, and what is taken up from an earlier driver; with a runner that does nothing."""

from dataclasses import replace

import numpy as np
import pytest
from datasets import SMALL, cadence_shards

from setibl_ray.core import folds
from setibl_ray.core.contract import Failed, FoldResult, Job, Place, Plan, Predicted, PredictJob, Started
from setibl_ray.core.run import driver
from setibl_ray.core.run import resume as taken_up
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.supervisor import SPAN_S, Supervisor
from setibl_ray.seti.config import parse
from setibl_ray.seti.formats.shards import read_index

ROW = {"epoch": 0, "lr": 1.0, "loss": 1.0, "auc": 0.5, "val_loss": 1.0, "val_auc": 0.5, "duration_s": 1.0}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    index = read_index(str(cadence_shards(tmp_path_factory.mktemp("supervisor") / "cadences")))
    config = parse(
        {
            "folds": 2,
            "model": "efficientnet-nano",
            "weights": "none",
            "batch_size": 1,
            "tta": 2,
            "layout": "all6",
        }
    )
    return Plan(config, index, folds.assign(config, index.train, SMALL.shards, ""), "")


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr("setibl_ray.seti.reporting.training_plot.draw", lambda history, title: b"")


class Scripted:
    """A runner whose jobs do what `answer` says, training first."""

    def __init__(self, answer, slots=3):
        self.answer, self.slots = answer, slots
        self.jobs, self.done, self.cancelled = [], [], False

    def submit(self, job):
        self.jobs.append(job)

    def events(self):
        while self.jobs:
            job = min(self.jobs, key=lambda job: isinstance(job, PredictJob))
            self.jobs.remove(job)
            self.done.append(job)
            yield Started(job.fold, Place("here", 1, "cpu", 1, 1, {}), job.span)
            yield self.answer(job)

    def cancel(self):
        self.cancelled = True


def rate(plan, n_spans):
    """Training speed at which the test set takes `n_spans` spans."""
    return 3 * plan.n_test / (3 * SPAN_S * n_spans)


def answers(plan, images_per_s, fails=lambda job: False):
    def answer(job):
        if fails(job):
            return Failed(job.fold, "worker-died", "it died", span=job.span)
        if isinstance(job, PredictJob):
            values = np.arange(*job.span, dtype=np.float32) / 100 + job.fold / 2
            assert job.weights == b"w%d" % job.fold
            return Predicted(job.fold, job.span, values, values / 2, {"predict_s": 1.0})
        pred = np.full(len(plan.valid_rows(job.fold)), 0.5, np.float32)
        history = [{**ROW, "images_per_s": images_per_s}]
        return FoldResult(job.fold, pred, pred, 0, history, b"w%d" % job.fold, {"train_s": 1.0}, 1)

    return answer


def follow(plan, out, runner, resume=False, max_retries=1, **options):
    folder = RunFolder(str(out))
    manifest = driver.open_run(folder, plan, resume)
    supervisor = Supervisor(runner, folder, manifest, plan, max_retries, **options)
    if resume:
        supervisor.take_up(*taken_up.take_up(folder, manifest, plan))
    events = [event for event, _ in supervisor.follow()]
    return supervisor, manifest, events


def spans(runner, fold=0):
    return [job.span for job in runner.done if isinstance(job, PredictJob) and job.fold == fold]


@pytest.mark.parametrize(
    ("n_spans", "slots", "cut"),
    [
        (0.2, 3, [(0, 14)]),
        (2, 3, [(0, 8), (8, 14)]),  # seven rows each, brought to whole batches of two
        (9, 3, [(0, 6), (6, 12), (12, 14)]),
        (9, 1, [(0, 14)]),
    ],
)
def test_a_test_set_is_cut_into_spans_of_a_minute_at_most_one_a_slot(plan, tmp_path, n_spans, slots, cut):
    runner = Scripted(answers(plan, rate(plan, n_spans)), slots)
    supervisor, manifest, events = follow(plan, tmp_path / "run", runner)
    assert spans(runner, 0) == spans(runner, 1) == cut
    assert [type(job) for job in runner.done[:2]] == [Job, Job]
    assert manifest.is_done(0)
    assert manifest.is_done(1)
    for fold in (0, 1):
        expected = np.arange(14, dtype=np.float32) / 100 + fold / 2
        assert supervisor.predicted[fold].pred.tobytes() == expected.tobytes()
        assert [attempt["rows"] for attempt in manifest.fold(fold)["predictions"]] == [
            list(span) for span in cut
        ]
        assert not list((tmp_path / "run" / f"fold-{fold}").glob("*.npy"))
    assert sum(isinstance(event, Predicted) for event in events) == 2 * len(cut)


def test_a_span_that_dies_is_tried_again_and_then_given_up(plan, tmp_path):
    bad = (8, 14)
    dies = answers(plan, rate(plan, 2), lambda job: job.span == bad and job.fold == 1)
    runner = Scripted(dies)
    _, manifest, _ = follow(plan, tmp_path / "run", runner)
    assert [job.attempt for job in runner.done if job.span == bad and job.fold == 1] == [0, 1]
    assert manifest.failed_folds == [1]
    assert manifest.why_failed(1) == "it died"
    assert manifest.is_done(0)
    assert [p.name[:24] for p in (tmp_path / "run" / "fold-1").glob("*.npy")] == ["test-000000000-000000008"]

    # Resumed on another number of slots: the cut stays, what was predicted is not predicted again, no fold is trained.
    runner = Scripted(answers(plan, rate(plan, 2)), slots=1)
    supervisor, manifest, _ = follow(plan, tmp_path / "run", runner, resume=True)
    assert [(job.fold, job.span) for job in runner.done] == [(1, bad)]
    assert manifest.is_done(1)
    assert supervisor.predicted[1].pred.tobytes() == (np.arange(14, dtype=np.float32) / 100 + 0.5).tobytes()
    assert not list((tmp_path / "run" / "fold-1").glob("*.npy"))


def test_a_damaged_span_is_predicted_again(plan, tmp_path):
    runner = Scripted(answers(plan, rate(plan, 2), lambda job: job.span == (8, 14) and job.fold == 1))
    follow(plan, tmp_path / "run", runner, max_retries=0)
    (part,) = (tmp_path / "run" / "fold-1").glob("*.npy")
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    runner = Scripted(answers(plan, rate(plan, 2)))
    follow(plan, tmp_path / "run", runner, resume=True)
    assert spans(runner, 1) == [(0, 8), (8, 14)]


def test_without_a_test_set_a_trained_fold_is_done(plan, tmp_path):
    plan = replace(plan, predict_test=False)
    runner = Scripted(answers(plan, 1.0))
    supervisor, manifest, _ = follow(plan, tmp_path / "run", runner, keep_weights=False)
    assert [type(job) for job in runner.done] == [Job, Job]
    assert manifest.is_done(0)
    assert supervisor.is_done(0)
    assert not list((tmp_path / "run").glob("fold-*/weights.h5"))
    assert not any("weights" in name for fold in (0, 1) for name in manifest.fold(fold)["files"])


def test_weights_that_are_not_kept_are_there_until_the_test_set_is_predicted(plan, tmp_path):
    runner = Scripted(answers(plan, rate(plan, 2), lambda job: job.span == (8, 14) and job.fold == 1))
    follow(plan, tmp_path / "run", runner, max_retries=0, keep_weights=False)
    assert [path.parent.name for path in (tmp_path / "run").glob("fold-*/weights.h5")] == ["fold-1"]
    runner = Scripted(answers(plan, rate(plan, 2)))
    follow(plan, tmp_path / "run", runner, resume=True, keep_weights=False)
    assert not list((tmp_path / "run").glob("fold-*/weights.h5"))
