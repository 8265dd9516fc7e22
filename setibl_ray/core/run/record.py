"""What a run saves and continues from: every event is in the run folder before anything follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pandas as pd

from setibl_ray.core.errors import RunFolderError
from setibl_ray.core.jobs import Event, Failed, Job, Predicted, RunSpec, Started, Stepped, Trained, load_task
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import FoldEntry, Manifest
from setibl_ray.core.run.supervisor import Answer, Standing
from setibl_ray.core.spans import cut
from setibl_ray.core.tables import to_csv
from setibl_ray.core.task import Fitted, Prediction, Span, prediction_columns, prediction_names

Say = Callable[[str], None]


class Record:
    """A run folder during its run.

    Args:
      folder, spec, manifest: of the run. The caller holds the folder's lock.
      fitted: folds that another run has fitted; None for this run's own.
      keep_artifacts: leave each fold's artifact; it is there until its test set is predicted.
      say: shows a line to the user.

    Attributes:
      fitted: fold -> its result, once it is fitted; without the artifact when that is no longer needed.
      predicted: fold -> its predictions of the whole test set, once it is done.
      history: fold -> a row per finished step.
    """

    def __init__(
        self,
        folder: RunFolder,
        spec: RunSpec,
        manifest: Manifest,
        *,
        fitted: Mapping[int, Fitted] | None = None,
        keep_artifacts: bool = True,
        say: Say = lambda text: None,
    ) -> None:
        self.folder, self.spec, self.manifest = folder, spec, manifest
        self.fitted: dict[int, Fitted] = dict(fitted or {})
        self.predicted: dict[int, Prediction] = {}
        self.history: dict[int, list[Mapping[str, float]]] = {fold: [] for fold in manifest.folds}
        self._keep_artifacts = keep_artifacts
        self._say = say
        self._task = load_task(spec.task)
        self._parts: dict[int, dict[Span, Prediction]] = {}
        self._from_step: dict[int, int] = {}
        self._take_up()

    # The state that an earlier driver left.

    def _take_up(self) -> None:
        """Folds whose files have changed count as not fitted; if only test predictions are missing, as not
        predicted."""
        for fold, entry in self.manifest.folds.items():
            if entry.state == "done" and self.spec.n_test:
                self._read_test(fold, entry)
            if entry.state in ("trained", "done"):
                if fold not in self.fitted:
                    self._read_fit(fold, entry)
            else:
                self.history[fold] = self._read_history(fold)
            if self.manifest.folds[fold].state == "trained" and entry.span_rows:
                spans = {
                    span: self.folder.read_span(fold, span) for span in cut(self.spec.n_test, entry.span_rows)
                }
                self._parts[fold] = {span: found for span, found in spans.items() if found is not None}
                self._finish_test(fold)  # the driver may have ended just after the last of them

    def _read_test(self, fold: int, entry: FoldEntry) -> None:
        name = f"fold-{fold}/test.csv"
        if self.folder.unfit({name: entry.files.get(name, "")}):
            self._say(f"fold {fold}  {name} is missing or changed since: its test set is predicted again")
            entry.state = "trained"
            entry.files.pop(name, None)
            self.manifest.save_fold(self.folder, fold)
            return
        pred, columns = self._columns(self.folder.read_csv(name, self.spec.rows.id), entry)
        self.predicted[fold] = Prediction(pred, columns)

    def _read_fit(self, fold: int, entry: FoldEntry) -> None:
        wants_artifact = entry.state == "trained" and self.spec.n_test > 0
        artifact = self._artifact(fold)
        unfit = self.folder.unfit(entry.files)
        if wants_artifact and artifact not in entry.files:
            unfit.append(artifact)
        if unfit:
            why = f"{', '.join(unfit)} missing or changed since"
            self._say(f"fold {fold}  was trained, but {why}: it is trained again")
            self.manifest.undone(fold, why)
            self.manifest.save_fold(self.folder, fold)
            return
        pred, columns = self._columns(self.folder.read_csv(f"fold-{fold}/oof.csv", self.spec.rows.id), entry)
        data = self.folder.read(artifact) if wants_artifact else b""
        self.fitted[fold] = Fitted(pred, data, columns, batch=entry.batch, row_s=entry.row_s)
        self.history[fold] = self._read_history(fold)

    def _read_history(self, fold: int) -> list[Mapping[str, float]]:
        name = f"fold-{fold}/history.csv"
        if not self.folder.exists(name):
            return []
        return self.folder.read_csv(name).to_dict("records")

    def _columns(self, table: pd.DataFrame, entry: FoldEntry) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        dtype = (entry.model_extra or {}).get("dtype", "float32")
        names = prediction_names(table)
        pred = table[names].to_numpy(dtype)
        others = [name for name in table if name not in (*names, self.spec.rows.id, "id", "target")]
        columns = {str(name): table[name].to_numpy(dtype) for name in others}
        return pred[:, 0] if names == ["pred"] else pred, columns

    def standings(self) -> dict[int, Standing]:
        """Progress of each fold, for the supervisor."""
        found = {}
        for fold, entry in self.manifest.folds.items():
            attempts: dict[Span | None, int] = {None: len(entry.attempts)}
            for attempt in entry.predictions:
                span: Span = tuple(attempt.rows or ())  # type: ignore[assignment]
                attempts[span] = attempts.get(span, 0) + 1
            found[fold] = Standing(
                entry.state if entry.state in ("trained", "done") else "waiting",
                self.folder.next_step(fold) if entry.state not in ("trained", "done") else 0,
                entry.span_rows,
                set(self._parts.get(fold, ())),
                attempts,
            )
        return found

    # During the run.

    def ready(self, job: Job) -> Job:
        """A job with the bytes that it continues from."""
        if job.span is not None:
            return replace(job, payload=self.fitted[job.fold].artifact)
        last = self.folder.last_state(job.fold)
        for name in last.damaged:
            self._say(f"fold {job.fold}  {name} is damaged; going on from step {last.next_step + 1}")
        self._from_step[job.fold] = last.next_step
        return replace(job, step=last.next_step, payload=last.state)

    def on(self, event: Event, answer: Answer) -> None:
        fold = event.fold
        if isinstance(event, Started):
            self.manifest.started(fold, event.span, event.place, self._from_step.get(fold, 0))
            self.manifest.save_fold(self.folder, fold)
        elif isinstance(event, Stepped):
            # The row before the state: after a crash between the two, the step is repeated with the same bytes; the
            # other way round, its row would be lost.
            self.history[fold] = [*self.history[fold][: event.step], event.row]
            self.folder.write_csv(f"fold-{fold}/history.csv", pd.DataFrame(self.history[fold]))
            if event.state:
                self.folder.save_state(fold, event.step, event.state)
        elif isinstance(event, Trained):
            self._trained(fold, event.fitted, answer)
        elif isinstance(event, Predicted):
            self._predicted(event)
        else:
            self._failed(event, answer)

    def _trained(self, fold: int, fitted: Fitted, answer: Answer) -> None:
        entry = self.manifest.folds[fold]
        if not np.issubdtype(fitted.pred.dtype, np.floating):
            fitted = replace(fitted, pred=fitted.pred.astype(np.float64))
        valid = self.spec.rows.table.iloc[self.spec.valid(fold)][[self.spec.rows.id, "target"]]
        files = {
            "history.csv": to_csv(pd.DataFrame(self.history[fold])),
            "oof.csv": to_csv(valid.assign(**prediction_columns(fitted.pred), **fitted.columns)),
        }
        if not self.history[fold]:
            del files["history.csv"]
        if fitted.artifact and (self._keep_artifacts or self.spec.n_test):
            files[self._task.artifact_name] = fitted.artifact
        entry.files = self.folder.save(fold, files)
        entry.state, entry.span_rows = answer.state, answer.span_rows
        entry.batch, entry.row_s = fitted.batch, fitted.row_s
        facts = {"dtype": str(fitted.pred.dtype), **fitted.facts}
        of_attempt = facts.pop("attempt", {})
        for name, value in facts.items():
            setattr(entry, name, value)
        self.manifest.close(fold, None, "done", **of_attempt)
        self.manifest.save_fold(self.folder, fold)
        passed = [*self.folder.states(fold), *self.folder.spans(fold)]
        self.folder.remove([*passed, f"fold-{fold}/error.txt"])
        self.fitted[fold] = fitted
        self._parts[fold] = {}
        if answer.state == "done":
            self._done(fold)

    def _predicted(self, event: Predicted) -> None:
        fold = event.fold
        # The type of the fit's predictions, with which a resumed run reads these back.
        dtype = (self.manifest.folds[fold].model_extra or {}).get("dtype", event.prediction.pred.dtype)
        prediction = replace(event.prediction, pred=event.prediction.pred.astype(dtype))
        self._parts[fold][event.span] = prediction
        if len(cut(self.spec.n_test, self.manifest.folds[fold].span_rows or self.spec.n_test)) > 1:
            self.folder.save_span(fold, event.span, prediction)
        self.manifest.close(fold, event.span, "done", **prediction.facts)
        self.manifest.save_fold(self.folder, fold)
        self._finish_test(fold)

    def _finish_test(self, fold: int) -> None:
        """Put a fold's test predictions together when the last span has come."""
        entry, parts = self.manifest.folds[fold], self._parts[fold]
        if len(parts) < len(cut(self.spec.n_test, entry.span_rows or self.spec.n_test)):
            return
        in_order = [part for _, part in sorted(parts.items())]
        columns = {
            name: np.concatenate([part.columns[name] for part in in_order]) for name in in_order[0].columns
        }
        whole = Prediction(np.concatenate([part.pred for part in in_order]), columns)
        self.predicted[fold] = whole
        ids = self.spec.rows.test[[self.spec.rows.id]]
        table = ids.assign(**prediction_columns(whole.pred), **whole.columns)
        entry.files |= self.folder.save(fold, {"test.csv": to_csv(table)})
        if entry.state == "trained":
            entry.state = "done"
        self._done(fold)

    def _done(self, fold: int) -> None:
        entry = self.manifest.folds[fold]
        if not self._keep_artifacts:
            entry.files.pop(self._artifact(fold), None)
        self.manifest.save_fold(self.folder, fold)
        self.folder.remove(self.folder.spans(fold))
        if not self._keep_artifacts:
            self.folder.remove([self._artifact(fold)])
        self._parts.pop(fold, None)
        self.fitted[fold] = replace(self.fitted[fold], artifact=b"")  # the driver may hold many folds

    def _failed(self, event: Failed, answer: Answer) -> None:
        assert answer.decision is not None
        self.manifest.failed(event, answer.decision)
        self.manifest.save_fold(self.folder, event.fold)
        if event.details:
            self.folder.write(f"fold-{event.fold}/error.txt", event.details)

    def _artifact(self, fold: int) -> str:
        return f"fold-{fold}/{self._task.artifact_name}"

    def close(self) -> None:
        """The driver ends before its run does."""
        with suppress(RunFolderError):  # which may be why
            self.manifest.interrupted()
            self.manifest.save(self.folder)
