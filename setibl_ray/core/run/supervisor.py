"""The folds of a run while they run: what is submitted, what is written down, what is tried again.

    waiting ── Job ──> trained ── PredictJob for each span of the test set ──> done
         └─ Failed: decided by `failures.decide`; again from the last finished epoch, or given up ─> failed

Every event is in the run folder before anybody hears of it: whatever ends the driver, the next one goes on from here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from setibl_ray.core.contract import (
    EpochEnd,
    Event,
    Failed,
    FoldResult,
    Job,
    Plan,
    Predicted,
    PredictJob,
    Runner,
    Span,
    Started,
)
from setibl_ray.core.errors import ConfigError
from setibl_ray.core.run.failures import Decision, decide
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import Manifest

SPAN_S = 60.0  # a process on an accelerator takes some 20 s to start and compile: shorter spans would mostly do that
PREDICT_SPEEDUP = 3.0  # images per second, over those of training: a forward pass without the backward one


def span_rows(n_test: int, seconds: float, slots: int, batch: int) -> int:
    """Rows of a span: as many spans as take about `SPAN_S` each, at most one for each slot, cut between batches.

    Args:
      seconds: of the whole test set, all views, on one slot.
      batch: images per prediction step.
    """
    n_spans = int(np.clip(round(seconds / SPAN_S), 1, slots))
    return -(-n_test // (n_spans * batch)) * batch


Work = tuple[int, Span | None]  # a fold and what of it: its training, or a span of the test set


class Supervisor:
    """Follows folds from submission to their files in the run folder.

    Args:
      runner: where jobs go.
      folder, manifest: of the run.
      plan: what is run.
      max_retries: retries of a piece of work that makes no progress in between.
      keep_weights: leave each fold's weights in the run folder; they are there until its test set is predicted.
      say: takes a line for the user.

    Attributes:
      results: fold -> what it found, once it is trained. The weights are kept until its test set is predicted.
      predicted: fold -> its predictions of the whole test set, once it is done.
    """

    def __init__(
        self,
        runner: Runner,
        folder: RunFolder,
        manifest: Manifest,
        plan: Plan,
        max_retries: int,
        *,
        keep_weights: bool = True,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.results: dict[int, FoldResult] = {}
        self.predicted: dict[int, Predicted] = {}
        self._runner = runner
        self._folder = folder
        self._manifest = manifest
        self._plan = plan
        self._max_retries = max_retries
        self._keep_weights = keep_weights
        self._say = say
        self._failures: defaultdict[Work, list[Failed]] = defaultdict(list)  # since it last made progress
        self._avoid: defaultdict[Work, tuple[str, ...]] = defaultdict(tuple)
        self._from_epoch: dict[int, int] = {}
        self._spans: dict[int, dict[Span, Predicted | None]] = {}  # fold -> span -> what is known of it

    def take_up(self, results: Mapping[int, FoldResult], predicted: Mapping[int, Predicted]) -> None:
        """Take over what an earlier driver left: trained folds, and whole test predictions of those that are done."""
        self.results |= results
        self.predicted |= predicted

    def is_done(self, fold: int) -> bool:
        return fold in (self.predicted if self._plan.n_test else self.results)

    def follow(self) -> Iterator[tuple[Event, Decision | None]]:
        """Run what is left of every fold.

        Yields:
          Every event once it is in the run folder; with a `Failed`, what was decided about it.

        Raises:
          ConfigError: a fold found that no fold of this config can work.
        """
        for fold in range(self._plan.config.folds):
            if fold not in self.results:
                self._train(fold)
        for fold, result in self.results.items():
            if not self._manifest.is_done(fold):
                self._go_on(result)
        for event in self._runner.events():
            decision = None
            if isinstance(event, Started):
                self._manifest.started(event, self._from_epoch.get(event.fold, 0))
            elif isinstance(event, EpochEnd):
                self._folder.save_state(event.fold, event.epoch, event.state)
                self._failures[event.fold, None].clear()
            elif isinstance(event, FoldResult):
                self._trained(event)
            elif isinstance(event, Predicted):
                self._span_done(event)
            else:
                decision = self._failed(event)
            yield event, decision

    def _train(self, fold: int) -> None:
        last = self._folder.last_state(fold)
        for name in last.damaged:
            self._say(f"fold {fold}  {name} is damaged; going on from epoch {last.next_epoch + 1}")
        self._from_epoch[fold] = last.next_epoch
        attempt = len(self._manifest.attempts(fold))
        self._runner.submit(Job(fold, attempt, last.state, self._avoid[fold, None]))

    def _trained(self, result: FoldResult) -> None:
        fold = result.fold
        if not (self._keep_weights or self._plan.n_test):
            result = replace(result, weights=b"")
        self._manifest.trained(
            result, self._folder.save_fold(result, self._held_out(fold), self._plot(result))
        )
        passed = [*self._folder.states(fold), *self._folder.spans(fold)]
        self._folder.remove([*passed, f"fold-{fold}/error.txt"])
        self.results[fold] = result
        self._go_on(result)

    def _go_on(self, result: FoldResult) -> None:
        """What comes after training: the spans of the test set that are not known yet."""
        if not self._plan.n_test:
            self._done(result.fold, {})
            return
        fold, n_test = result.fold, self._plan.n_test
        rows = self._manifest.span_rows(fold) or self._span_rows(result)
        self._manifest.cut(fold, rows)  # a later driver cuts alike, and finds the spans that are there
        spans = [(start, min(start + rows, n_test)) for start in range(0, n_test, rows)]
        self._spans[fold] = {span: self._folder.read_span(fold, span) for span in spans}
        for span, known in self._spans[fold].items():
            if known is None:
                self._submit_span(fold, span)
        self._finish(fold)

    def _submit_span(self, fold: int, span: Span) -> None:
        attempt = len(self._manifest.attempts(fold, span))
        weights, avoid = self.results[fold].weights, self._avoid[fold, span]
        self._runner.submit(PredictJob(fold, span, weights, attempt, avoid))

    def _span_rows(self, result: FoldResult) -> int:
        fold, n_test = result.fold, self._plan.n_test
        images_per_s = PREDICT_SPEEDUP * result.history[-1]["images_per_s"]
        seconds = (1 + self._plan.config.tta) * n_test / images_per_s
        batch = self._plan.prediction_batch(fold, self._manifest.n_replicas(fold))
        return span_rows(n_test, seconds, self._runner.slots, batch)

    def _span_done(self, predicted: Predicted) -> None:
        self._spans[predicted.fold][predicted.span] = predicted
        if len(self._spans[predicted.fold]) > 1:
            self._folder.save_span(predicted)
        self._manifest.span_done(predicted)
        self._finish(predicted.fold)

    def _finish(self, fold: int) -> None:
        """Put a fold's test predictions together when the last span has come."""
        parts = [part for _, part in sorted(self._spans[fold].items()) if part is not None]
        if len(parts) < len(self._spans[fold]):
            return
        whole = Predicted(
            fold,
            (0, self._plan.n_test),
            np.concatenate([part.pred for part in parts]),
            np.concatenate([part.pred_no_tta for part in parts]),
            {},
        )
        self.predicted[fold] = whole
        self._done(fold, self._folder.save_test(whole, self._plan.index.test["image_id"].to_numpy()))

    def _done(self, fold: int, files: Mapping[str, str]) -> None:
        self._manifest.done(fold, files, self._keep_weights)
        self._folder.remove(self._folder.spans(fold))
        if not self._keep_weights:
            self._folder.remove([f"fold-{fold}/weights.h5"])
        self.results[fold] = replace(self.results[fold], weights=b"")  # the driver may hold many folds

    def _failed(self, event: Failed) -> Decision:
        work = event.fold, event.span
        decision = decide(event, self._failures[work], self._max_retries)
        self._failures[work].append(event)
        self._manifest.failed(event, decision)
        if event.details:
            self._folder.write(f"fold-{event.fold}/error.txt", event.details)
        if event.cause == "config":
            self._runner.cancel()
            raise ConfigError(event.message)
        if decision.action == "retry-elsewhere" and event.node_id:
            self._avoid[work] += (event.node_id,)
        if decision.action != "give-up":
            if event.span is None:
                self._train(event.fold)
            else:
                self._submit_span(event.fold, event.span)
        return decision

    def _held_out(self, fold: int) -> pd.DataFrame:
        return self._plan.index.train.iloc[self._plan.valid_rows(fold)][["image_id", "target"]]

    def _plot(self, result: FoldResult) -> bytes:
        from setibl_ray.seti.reporting import training_plot

        own = self._plan.config.for_fold(result.fold)
        height, width = own.image_size
        title = f"FOLD {result.fold} - image size {height}x{width}, {own.model}"
        return training_plot.draw(pd.DataFrame(result.history), title)
