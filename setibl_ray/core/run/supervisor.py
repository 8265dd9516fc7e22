"""The folds of a run as a state machine: it is told what happened, and returns the jobs to submit.

    waiting ── Job ──> fitted ── a Job for each span of the test set, unless it is one
                                 that the process of the fit goes on with ──> done
         └─ Failed: decided by `failures.decide`; again from the last finished step, or given up ─> failed

It reads and writes nothing: `session.follow` records each event before it submits the resulting jobs, so that however
a driver ends, the next one can continue from the run folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from setibl_ray.core.jobs import Event, Failed, Job, Predicted, Stepped, Trained
from setibl_ray.core.run.failures import Decision, decide
from setibl_ray.core.spans import cut, span_rows
from setibl_ray.core.task import Span

State = str  # waiting, trained, done, failed
Work = tuple[int, Span | None]  # a fold and a piece of its work: its fit, or a span of the test set


@dataclass
class Standing:
    """Progress of a fold.

    Attributes:
      step: steps of its fit that are kept.
      span_rows: rows per span of its test set; None before it is fitted.
      predicted: finished spans.
      attempts: how often each piece of its work was tried.
    """

    state: State = "waiting"
    step: int = 0
    span_rows: int | None = None
    predicted: set[Span] = field(default_factory=set)
    attempts: dict[Span | None, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What follows from an event.

    Attributes:
      jobs: to submit.
      decision: about a failure.
      state: of the event's fold, now.
      span_rows: rows per span of the test set, if the fold was just fitted.
      stop: no fold of this run can work.
    """

    jobs: tuple[Job, ...] = ()
    decision: Decision | None = None
    state: State = "waiting"
    span_rows: int | None = None
    stop: bool = False


class Supervisor:
    """Follows folds from their first job to their last.

    Args:
      folds: progress of each; those of a new run are all waiting.
      n_test: rows of the test set that each fold predicts.
      max_retries: retries of a piece of work that makes no progress in between.
    """

    def __init__(self, folds: Mapping[int, Standing], n_test: int, max_retries: int) -> None:
        self.folds = dict(folds)
        self._n_test = n_test
        self._max_retries = max_retries
        self._failures: defaultdict[Work, list[Failed]] = defaultdict(list)  # since it last made progress
        self._avoid: defaultdict[Work, tuple[str, ...]] = defaultdict(tuple)

    def begin(self) -> tuple[Job, ...]:
        """The jobs of all folds that are not done: those to fit first."""
        waiting = [self._job(number, None) for number, fold in self.folds.items() if fold.state == "waiting"]
        fitted = [number for number, fold in self.folds.items() if fold.state == "trained"]
        return (*waiting, *(job for number in fitted for job in self._spans(number)))

    def on(self, event: Event, slots: int = 1) -> Answer:
        """What follows from `event` if there are `slots` places for jobs."""
        fold = self.folds[event.fold]
        if isinstance(event, Stepped):
            if event.state:  # otherwise the next attempt begins where this one did
                fold.step = event.step + 1
                self._failures[event.fold, None].clear()
        elif isinstance(event, Trained):
            fold.state = "trained" if self._n_test else "done"
            if self._n_test:
                seconds = event.fitted.row_s * self._n_test
                fold.span_rows = span_rows(self._n_test, seconds, slots, event.fitted.batch)
            if event.next_span:
                self._count(event.fold, event.next_span)
                return Answer(state=fold.state, span_rows=fold.span_rows)
            return Answer(tuple(self._spans(event.fold)), state=fold.state, span_rows=fold.span_rows)
        elif isinstance(event, Predicted):
            fold.predicted.add(event.span)
            # Counted, not listed: a search has a span for each of its thousands of channels.
            if fold.state == "trained" and len(fold.predicted) * (fold.span_rows or 1) >= self._n_test:
                fold.state = "done"
        elif isinstance(event, Failed):
            return self._failed(event)
        return Answer(state=fold.state)

    def _failed(self, event: Failed) -> Answer:
        work = event.fold, event.span
        fold = self.folds[event.fold]
        decision = decide(event, self._failures[work], self._max_retries)
        self._failures[work].append(event)
        if decision.action == "retry-elsewhere" and event.node_id:
            self._avoid[work] += (event.node_id,)
        if decision.action == "give-up":
            fold.state = "failed"
            return Answer(decision=decision, state=fold.state, stop=event.cause == "config")
        return Answer((self._job(*work),), decision, fold.state)

    def _job(self, number: int, span: Span | None) -> Job:
        step = self.folds[number].step if span is None else 0
        return Job(number, span, self._count(number, span), step, self._avoid[number, span])

    def _count(self, number: int, span: Span | None) -> int:
        """The number of this attempt, from 0."""
        attempts = self.folds[number].attempts
        attempts[span] = attempts.get(span, 0) + 1
        return attempts[span] - 1

    def _spans(self, number: int) -> list[Job]:
        """The spans of a fold's test set that are not predicted yet."""
        fold = self.folds[number]
        if not self._n_test or fold.span_rows is None:
            return []
        spans = cut(self._n_test, fold.span_rows)
        return [self._job(number, span) for span in spans if span not in fold.predicted]
