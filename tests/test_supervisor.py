"""Which jobs follow from which events: random walks over events, failures and resumes; then case by case with files."""

import io
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from rich.console import Console
from tasks import Made, spec_of, zeros

from setibl_ray.core.jobs import Cause, Failed, Job, Place, Predicted, Started, Stepped, Trained
from setibl_ray.core.run import gathering, session
from setibl_ray.core.run.failures import ACTIONS
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.progress import Progress
from setibl_ray.core.run.supervisor import Standing, Supervisor
from setibl_ray.core.spans import SPAN_S, cut, fit_goes_on, span_rows
from setibl_ray.core.task import Fitted, Needs, Prediction

PLACE = Place("here", 1, "cpu", 1, node_id="n1")
N_STEPS = 3


class Runs(RuleBasedStateMachine):
    """Any order of events that a runner can give, and drivers that end at any moment.

    `disk` is what the record would have kept: steps, fitted folds, spans. A new driver starts from that alone.
    """

    jobs = Bundle("jobs")

    @initialize(
        target=jobs,
        folds=st.integers(2, 5),
        n_test=st.integers(0, 20),
        retries=st.integers(0, 2),
        slots=st.integers(1, 4),
    )
    def begin(self, folds, n_test, retries, slots):
        self.n_test, self.retries, self.slots = n_test, retries, slots
        self.disk = {fold: Standing() for fold in range(folds)}
        self.rows_predicted = {fold: [] for fold in range(folds)}
        self.fits = dict.fromkeys(range(folds), 0)
        return self._driver()

    def _driver(self):
        self.supervisor = Supervisor(
            {k: replace(v, predicted=set(v.predicted)) for k, v in self.disk.items()},
            self.n_test,
            self.retries,
        )
        self.submitted, self.pending, self.given_up = set(), set(), set()
        self.in_a_row = {}
        return multiple(*self._take(self.supervisor.begin()))

    def _take(self, jobs):
        for job in jobs:
            key = job.fold, job.span, job.attempt
            assert key not in self.submitted, "submitted twice"
            assert not any((fold, span) == (job.fold, job.span) for fold, span, _ in self.pending), (
                "runs already"
            )
            assert job.fold not in self.given_up or job.span is not None
            self.submitted.add(key)
            self.pending.add(key)
        return jobs

    def _alive(self, job):
        return (job.fold, job.span, job.attempt) in self.pending

    @rule(job=jobs)
    def starts(self, job):
        if self._alive(job):
            assert self.supervisor.on(Started(job.fold, PLACE, job.span), self.slots).jobs == ()

    @rule(job=jobs, state=st.sampled_from([b"s", b""]))
    def steps(self, job, state):
        standing = self.disk[job.fold]
        if self._alive(job) and job.span is None and standing.step < N_STEPS:
            answer = self.supervisor.on(Stepped(job.fold, standing.step, {}, state), self.slots)
            if state:  # a step without one is shown only: whoever fails next has made no progress
                standing.step += 1
                self.in_a_row[job.fold, None] = 0
            assert answer.jobs == ()

    @rule(
        target=jobs,
        job=consumes(jobs),
        row_s=st.sampled_from([0.0, SPAN_S / 5, SPAN_S]),
        batch=st.integers(1, 4),
        device=st.sampled_from(["cpu", "gpu"]),
    )
    def ends_well(self, job, row_s, batch, device):
        if not self._alive(job):
            return multiple()
        self.pending.discard((job.fold, job.span, job.attempt))
        standing = self.disk[job.fold]
        if job.span is None:
            self.fits[job.fold] += 1
            goes_on = self.n_test and fit_goes_on(device, row_s * self.n_test)
            whole = (0, self.n_test) if goes_on else None
            fitted = Fitted(np.zeros(1), batch=batch, row_s=row_s)
            answer = self.supervisor.on(Trained(job.fold, fitted, whole), self.slots)
            standing.state, standing.span_rows = answer.state, answer.span_rows
            if self.n_test:
                assert standing.span_rows % batch == 0
            if whole:
                assert answer.jobs == ()
                return multiple(*self._take([Job(job.fold, whole)]))
        else:
            answer = self.supervisor.on(Predicted(job.fold, job.span, Prediction(np.zeros(1))), self.slots)
            self.rows_predicted[job.fold] += range(*job.span)
            standing.predicted.add(job.span)
            if answer.state == "done":
                standing.state = "done"
        return multiple(*self._take(answer.jobs))

    @rule(
        target=jobs, job=consumes(jobs), cause=st.sampled_from([c for c in get_args(Cause) if c != "config"])
    )
    def fails(self, job, cause):
        if not self._alive(job):
            return multiple()
        self.pending.discard((job.fold, job.span, job.attempt))
        in_a_row = self.in_a_row.get((job.fold, job.span), 0) + 1
        self.in_a_row[job.fold, job.span] = in_a_row
        answer = self.supervisor.on(Failed(job.fold, cause, "", node_id="n1", span=job.span), self.slots)
        assert (answer.decision.action == "give-up") == (
            ACTIONS[cause] == "give-up" or in_a_row > self.retries
        )
        if answer.decision.action == "give-up":
            assert answer.jobs == ()
            self.given_up.add(job.fold)
        else:
            (again,) = answer.jobs
            assert (again.fold, again.span, again.attempt) == (job.fold, job.span, job.attempt + 1)
            assert ("n1" in again.avoid) == (answer.decision.action == "retry-elsewhere" or "n1" in job.avoid)
            if job.span is None:
                assert again.step == self.disk[job.fold].step
        return multiple(*self._take(answer.jobs))

    @rule(target=jobs)
    def driver_dies_and_another_goes_on(self):
        for fold, standing in self.disk.items():
            for key in [key for key in self.submitted if key[0] == fold]:
                standing.attempts[key[1]] = max(standing.attempts.get(key[1], 0), key[2] + 1)
        return self._driver()

    @invariant()
    def nothing_is_predicted_twice_or_lost(self):
        for fold, standing in getattr(self, "disk", {}).items():
            rows = self.rows_predicted[fold]
            assert len(rows) == len(set(rows))
            assert self.fits[fold] <= 1
            if standing.state == "done":
                assert sorted(rows) == list(range(self.n_test))

    @invariant()
    def a_run_without_jobs_has_ended(self):
        if getattr(self, "disk", None) and not self.pending:
            assert all(
                fold in self.given_up or standing.state == "done" for fold, standing in self.disk.items()
            )

    @precondition(lambda self: getattr(self, "pending", None))
    @rule()
    def every_fold_that_goes_on_has_a_job(self):
        busy = {fold for fold, _, _ in self.pending}
        for fold, standing in self.disk.items():
            assert fold in busy or standing.state == "done" or fold in self.given_up


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_config_that_no_fold_can_use_stops_the_run():
    supervisor = Supervisor({0: Standing(), 1: Standing()}, 0, 3)
    supervisor.begin()
    assert supervisor.on(Failed(0, "config", "no such layer")).stop


@pytest.mark.parametrize(
    ("n_spans", "slots", "expected"),
    [
        (0.2, 3, [(0, 14)]),
        (2, 3, [(0, 8), (8, 14)]),  # seven rows each, brought to whole batches of two
        (9, 3, [(0, 6), (6, 12), (12, 14)]),
        (9, 1, [(0, 14)]),
    ],
)
def test_a_test_set_is_cut_into_spans_of_a_minute_at_most_one_a_slot(n_spans, slots, expected):
    assert cut(14, span_rows(14, n_spans * SPAN_S, slots, 2)) == expected


class Scripted:
    """A runner whose jobs do what `answer` says, fits first."""

    def __init__(self, answer, slots=3):
        self.answer, self.slots = answer, slots
        self.jobs, self.done = [], []

    def submit(self, job):
        self.jobs.append(job)

    def events(self):
        while self.jobs:
            job = min(self.jobs, key=lambda job: job.span is not None)
            self.jobs.remove(job)
            self.done.append(job)
            yield Started(job.fold, PLACE, job.span)
            yield self.answer(job)

    def cancel(self):
        self.jobs.clear()


SPEC = spec_of(Made(zeros), folds=2, n_test=14)


def answers(n_spans, fails=lambda job: False):
    """Answers of a run whose test set takes `n_spans` spans."""

    def answer(job):
        if fails(job):
            return Failed(job.fold, "worker-died", "it died", span=job.span)
        if job.span is not None:
            values = np.arange(*job.span, dtype=np.float32) / 100 + job.fold / 2
            assert job.payload == b"w%d" % job.fold
            return Predicted(
                job.fold, job.span, Prediction(values, {"more": values / 2}, {"timings": {"predict_s": 1.0}})
            )
        pred = np.full(len(SPEC.valid(job.fold)), 0.5, np.float32)
        return Trained(job.fold, Fitted(pred, b"w%d" % job.fold, batch=2, row_s=n_spans * SPAN_S / 14))

    return answer


def follow(out, runner, spec=SPEC, resume=False, max_retries=1, **options):
    record = session.open_record(RunFolder(str(out)), spec, resume=resume, **options)
    events = [event for event, _ in session.follow(runner, record, max_retries)]
    return record, events


def spans(runner, fold=0):
    return [job.span for job in runner.done if job.span is not None and job.fold == fold]


def bad(job):
    return job.span == (8, 14) and job.fold == 1


def test_folds_are_fitted_then_predict_their_spans(tmp_path):
    runner = Scripted(answers(2))
    record, events = follow(tmp_path / "run", runner)
    assert spans(runner, 0) == spans(runner, 1) == [(0, 8), (8, 14)]
    assert [job.span for job in runner.done[:2]] == [None, None]
    assert record.manifest.states("done") == [0, 1]
    for fold in (0, 1):
        expected = np.arange(14, dtype=np.float32) / 100 + fold / 2
        assert record.predicted[fold].pred.tobytes() == expected.tobytes()
        assert record.predicted[fold].columns["more"].tobytes() == (expected / 2).tobytes()
        assert [attempt.rows for attempt in record.manifest.folds[fold].predictions] == [[0, 8], [8, 14]]
        assert not list((tmp_path / "run" / f"fold-{fold}").glob("*.npz"))
    assert sum(isinstance(event, Predicted) for event in events) == 4


def test_a_span_that_dies_is_tried_again_and_then_given_up(tmp_path):
    runner = Scripted(answers(2, bad))
    record, _ = follow(tmp_path / "run", runner)
    assert [job.attempt for job in runner.done if bad(job)] == [0, 1]
    assert record.manifest.states("failed") == [1]
    assert record.manifest.folds[1].why_failed == "it died"
    assert record.manifest.states("done") == [0]
    assert [p.name[:24] for p in (tmp_path / "run" / "fold-1").glob("*.npz")] == ["test-000000000-000000008"]

    # Resumed on another number of slots: the cut stays, what was predicted is not predicted again, no fold is fitted.
    runner = Scripted(answers(2), slots=1)
    record, _ = follow(tmp_path / "run", runner, resume=True)
    assert [(job.fold, job.span, job.attempt) for job in runner.done] == [(1, (8, 14), 2)]
    assert record.manifest.states("done") == [0, 1]
    expected = (np.arange(14, dtype=np.float32) / 100 + 0.5).tobytes()
    assert record.predicted[1].pred.tobytes() == expected
    assert not list((tmp_path / "run" / "fold-1").glob("*.npz"))


def test_predictions_have_the_fits_type_before_and_after_a_resume(tmp_path):
    """A classifier may predict whole numbers, whose mean over folds is none."""

    def whole_numbers(job):
        answer = answers(2)(job)
        if job.span is not None:
            return replace(answer, prediction=Prediction(np.arange(*job.span) % 2 + job.fold))
        return replace(answer, fitted=replace(answer.fitted, pred=answer.fitted.pred.astype(np.int64)))

    record, _ = follow(tmp_path, Scripted(whole_numbers))
    again, _ = follow(tmp_path, Scripted(whole_numbers), resume=True)
    for found in (record, again):
        mean = gathering.test_table(SPEC, found.predicted, np.array([0.5, 0.5]))["pred"]
        assert mean.tolist() == [0.5, 1.5] * 7


def test_a_damaged_span_is_predicted_again(tmp_path):
    follow(tmp_path / "run", Scripted(answers(2, bad)), max_retries=0)
    (part,) = (tmp_path / "run" / "fold-1").glob("*.npz")
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    runner = Scripted(answers(2))
    follow(tmp_path / "run", runner, resume=True)
    assert spans(runner, 1) == [(0, 8), (8, 14)]


def test_a_driver_that_ends_between_the_last_span_and_the_table_leaves_nothing_to_do(tmp_path):
    record, _ = follow(tmp_path / "run", Scripted(answers(2)))
    for start, stop in ((0, 8), (8, 14)):
        part = record.predicted[1]
        cut_out = Prediction(part.pred[start:stop], {"more": part.columns["more"][start:stop]})
        record.folder.save_span(1, (start, stop), cut_out)
    entry = record.manifest.folds[1]
    entry.state = "trained"
    entry.files.pop("fold-1/test.csv")
    record.manifest.save_fold(record.folder, 1)
    runner = Scripted(answers(2))
    again, _ = follow(tmp_path / "run", runner, resume=True)
    assert runner.done == []
    assert again.manifest.states("done") == [0, 1]
    assert again.predicted[1].pred.tobytes() == part.pred.tobytes()


def test_without_a_test_set_a_fitted_fold_is_done(tmp_path):
    runner = Scripted(answers(1))
    record, _ = follow(tmp_path / "run", runner, replace(SPEC, predict_test=False), keep_artifacts=False)
    assert [job.span for job in runner.done] == [None, None]
    assert record.manifest.states("done") == [0, 1]
    assert not list((tmp_path / "run").glob("fold-*/artifact.bin"))
    assert not any("artifact" in name for fold in (0, 1) for name in record.manifest.folds[fold].files)


def test_artifacts_that_are_not_kept_are_there_until_the_test_set_is_predicted(tmp_path):
    follow(tmp_path / "run", Scripted(answers(2, bad)), max_retries=0, keep_artifacts=False)
    assert [path.parent.name for path in (tmp_path / "run").glob("fold-*/artifact.bin")] == ["fold-1"]
    follow(tmp_path / "run", Scripted(answers(2)), resume=True, keep_artifacts=False)
    assert not list((tmp_path / "run").glob("fold-*/artifact.bin"))


def test_progress_of_a_resumed_run_begins_where_the_run_is(tmp_path):
    runner = Scripted(answers(2, bad))
    follow(tmp_path, runner, max_retries=0)
    record = session.open_record(RunFolder(str(tmp_path)), SPEC, resume=True)
    said = io.StringIO()
    needs = dict.fromkeys((0, 1), Needs())
    progress = Progress(needs, 14, console=Console(file=said, width=99), begun=record.standings())
    assert [row.state for row in progress._rows.values()] == ["done", "trained"]
    for _ in session.follow(Scripted(answers(2)), record, 1, [progress]):
        pass
    assert "fold 1  done, 14 test rows predicted" in said.getvalue()


def test_observers_hear_of_an_event_after_it_is_on_disk(tmp_path):
    seen = []

    class Observer:
        def on(self, event, answer):
            if isinstance(event, Trained):
                seen.append((tmp_path / "run" / f"fold-{event.fold}" / "oof.csv").exists())

    record = session.open_record(RunFolder(str(tmp_path / "run")), SPEC, resume=False)
    for _ in session.follow(Scripted(answers(1)), record, 1, [Observer()]):
        pass
    assert seen == [True, True]
