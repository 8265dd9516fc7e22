"""manifest.json: what ran where, with which versions and data, and how each attempt ended.

During a run, each fold's entry is a small file, fold-K/fold.json, written whenever the fold starts, fails or makes
progress; this file is newer than the entry in manifest.json. When the driver ends, the entries are moved into
manifest.json.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Iterable
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict

from setibl_ray.core.errors import RunFolderError
from setibl_ray.core.jobs import Failed, Place
from setibl_ray.core.run.failures import Decision
from setibl_ray.core.run.folder import FORMAT, RunFolder
from setibl_ray.core.task import Span

READABLE = (2, FORMAT)  # formats that can be read; an unfinished run is resumed by the version that began it
PACKAGES = ("setibl-ray", "ray", "numpy", "pandas", "scikit-learn")


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Attempt(_Open):
    """One attempt at a fold's fit, or at a span of its test set (`rows`)."""

    attempt: int
    started_s: float
    ended_s: float | None = None
    outcome: str = "running"  # running, done, failed, interrupted or discarded
    from_step: int | None = None
    rows: list[int] | None = None
    node: str | None = None
    device: str | None = None
    cpus: int | None = None
    pid: int | None = None
    visible: dict[str, str] | None = None
    cause: str | None = None
    message: str | None = None
    decision: str | None = None
    reason: str | None = None
    timings: dict[str, float] | None = None


class FoldEntry(_Open):
    """A fold: `waiting`, `running`, `trained` (its test set is not predicted yet), `done` or `failed`.

    Further facts from its task (best epoch, timings, memory) are stored beside these fields.
    """

    state: str = "waiting"
    memory_estimate_bytes: int = 0
    attempts: list[Attempt] = []
    predictions: list[Attempt] = []
    files: dict[str, str] = {}
    span_rows: int | None = None
    batch: int = 1
    row_s: float = 0.0

    def of(self, span: Span | None) -> list[Attempt]:
        """Attempts at the fit, or at a span of the test set."""
        if span is None:
            return self.attempts
        return [attempt for attempt in self.predictions if attempt.rows == list(span)]

    @property
    def why_failed(self) -> str:
        """The message of the last failure."""
        failures = [attempt for attempt in [*self.attempts, *self.predictions] if attempt.message]
        return max(failures, key=lambda attempt: attempt.ended_s or 0.0).message or ""


class Manifest(_Open):
    format: int
    task: str = ""
    command: str
    versions: dict[str, str] = {}
    data: dict[str, Any]
    code: dict[str, str] = {}
    files: dict[str, str] = {}
    text: list[str] = []  # columns of records.csv that hold text
    folds: dict[int, FoldEntry] = {}
    resumed: list[dict[str, Any]] = []
    started_s: float
    ended_s: float | None = None

    @classmethod
    def load(cls, folder: RunFolder) -> Manifest:
        """Raises:
        RunFolderError: there is none, or it is not one of this version or the one before.
        """
        content = folder.read_json("manifest.json")
        if content.get("format") not in READABLE:
            known = " and ".join(map(str, READABLE))
            raise RunFolderError(
                f"{folder} has run format {content.get('format')}, this version reads {known}"
            )
        try:
            manifest = cls.model_validate(content)
            for fold in manifest.folds:
                if folder.exists(f"fold-{fold}/fold.json"):
                    manifest.folds[fold] = FoldEntry.model_validate(
                        folder.read_json(f"fold-{fold}/fold.json")
                    )
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise RunFolderError(f"{folder.path('manifest.json')}: {field}: {first['msg']}") from None
        return manifest

    def save(self, folder: RunFolder) -> None:
        folder.write_json("manifest.json", self.plain())
        folder.remove(f"fold-{fold}/fold.json" for fold in self.folds)

    def save_fold(self, folder: RunFolder, fold: int) -> None:
        folder.write_json(
            f"fold-{fold}/fold.json", self.folds[fold].model_dump(mode="json", exclude_none=True)
        )

    def end(self, folder: RunFolder) -> None:
        self.ended_s = time.time()
        self.save(folder)

    def plain(self) -> dict[str, Any]:
        """JSON values."""
        plain = self.model_dump(mode="json")
        plain["folds"] = {
            str(fold): entry.model_dump(mode="json", exclude_none=True) for fold, entry in self.folds.items()
        }
        return plain

    def states(self, *states: str) -> list[int]:
        """Folds that are in one of these states."""
        return [fold for fold, entry in self.folds.items() if entry.state in states]

    def started(self, fold: int, span: Span | None, place: Place, from_step: int) -> None:
        if span is None:
            self.folds[fold].state = "running"
        self._begin(
            fold,
            span,
            from_step=from_step if span is None else None,
            node=place.node,
            device=place.device,
            cpus=place.cpus,
            pid=place.pid,
            visible=dict(place.visible),
        )

    def _begin(self, fold: int, span: Span | None, **known: Any) -> None:
        entry = self.folds[fold]
        rows = list(span) if span else None
        attempt = Attempt(attempt=len(entry.of(span)), started_s=time.time(), rows=rows, **known)
        (entry.attempts if span is None else entry.predictions).append(attempt)

    def failed(self, event: Failed, decision: Decision) -> None:
        fold, span = event.fold, event.span
        entry = self.folds[fold]
        if decision.action == "give-up":
            entry.state = "failed"
        elif span is None:
            entry.state = "waiting"
        if not entry.of(span) or entry.of(span)[-1].outcome != "running":  # it died before it started
            self._begin(fold, span, node=event.node or None)
        self.close(
            fold,
            span,
            "failed",
            cause=event.cause,
            message=event.message,
            decision=decision.action,
            reason=decision.reason,
        )

    def close(self, fold: int, span: Span | None, outcome: str, **more: Any) -> None:
        """End an attempt."""
        attempt = self.folds[fold].of(span)[-1]
        for name, value in {"ended_s": time.time(), "outcome": outcome, **more}.items():
            setattr(attempt, name, value)

    def interrupted(self) -> None:
        """End the running attempts, as their driver has ended."""
        for entry in self.folds.values():
            for attempt in [*entry.attempts, *entry.predictions]:
                if attempt.outcome == "running":
                    attempt.outcome, attempt.ended_s = "interrupted", time.time()
            if entry.state == "running":
                entry.state = "waiting"

    def taken_up(self, command: str) -> None:
        """Another driver continues the run: nothing that an earlier one began is running any more."""
        self.resumed.append({"command": command, "at_s": time.time(), "versions": versions()})
        self.ended_s = None
        self.interrupted()
        for entry in self.folds.values():
            if entry.state == "failed":
                # A fold of `predict` is fitted, but its artifact is a file of the run that it predicts with.
                entry.state = "trained" if entry.files or entry.span_rows else "waiting"

    def undone(self, fold: int, why: str) -> None:
        """Mark a fitted fold as one to be fitted again."""
        old = self.folds[fold]
        old.attempts[-1].outcome, old.attempts[-1].message = "discarded", why
        self.folds[fold] = FoldEntry(
            memory_estimate_bytes=old.memory_estimate_bytes,
            attempts=old.attempts,
            predictions=old.predictions,
        )


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
