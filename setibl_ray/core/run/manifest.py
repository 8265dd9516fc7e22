"""manifest.json: what ran where, with which versions and data, and how each attempt ended."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setibl_ray.core.contract import Failed, FoldResult, Predicted, Span, Started
from setibl_ray.core.run.failures import Decision
from setibl_ray.core.run.folder import FORMAT, RunFolder, sha256, to_json
from setibl_ray.seti.config import Config
from setibl_ray.seti.formats.shards import DataIndex
from setibl_ray.seti.memory import fold_bytes

PACKAGES = (
    "setibl-ray",
    "tensorflow",
    "efficientnet",
    "tensorflow-addons",
    "ray",
    "numpy",
    "pandas",
    "scikit-learn",
)


class Manifest:
    """The manifest of a run in progress, saved to its folder whenever a fold starts, fails or gets further.

    A fold is `waiting`, `running`, `trained` (its test set is not predicted yet), `done` or `failed`. Its `attempts`
    are those at training it, its `predictions` those at spans of the test set, told apart by their `rows`.
    """

    def __init__(self, folder: RunFolder, content: dict[str, Any]) -> None:
        self._folder = folder
        self.content = content
        self._entries: dict[str, str] = {}  # of folds, as they were last written

    @classmethod
    def new(
        cls, folder: RunFolder, index: DataIndex, config: Config, command: str, on_bad_record: str
    ) -> Manifest:
        return cls(
            folder,
            {
                "format": FORMAT,
                "command": command,
                "versions": versions(),
                "data": describe(index) | bad_records(index, on_bad_record),
                "weights_file_sha256": file_sha256(config.weights),
                "folds": {str(fold): _waiting(config, fold) for fold in range(config.folds)},
                "resumed": [],
                "started_s": time.time(),
                "ended_s": None,
            },
        )

    @classmethod
    def load(cls, folder: RunFolder) -> Manifest:
        return cls(folder, folder.read_json("manifest.json"))

    def save(self, changed: int | None = None) -> None:
        """Write manifest.json, of which one fold's entry has changed, or anything.

        The other entries are those of the last time: formatting a thousand folds at each event of each of them takes
        longer than all else that the driver does.
        """
        if changed is None:
            self._entries.clear()
        else:
            self._entries.pop(str(changed), None)
        folds = self.content["folds"]
        for fold in folds.keys() - self._entries.keys():
            self._entries[fold] = to_json({fold: folds[fold]})[2:-2].replace("\n", "\n  ")
        entries = ",\n".join(f"  {self._entries[fold]}" for fold in folds)
        around = to_json(self.content | {"folds": {}})
        self._folder.write(
            "manifest.json", around.replace('"folds": {}', f'"folds": {{\n{entries}\n  }}', 1) + "\n"
        )

    def fold(self, fold: int) -> dict[str, Any]:
        return self.content["folds"][str(fold)]

    def is_done(self, fold: int) -> bool:
        return self.fold(fold)["state"] == "done"

    def is_trained(self, fold: int) -> bool:
        return self.fold(fold)["state"] in ("trained", "done")

    @property
    def failed_folds(self) -> list[int]:
        return [int(fold) for fold, entry in self.content["folds"].items() if entry["state"] == "failed"]

    def resumed(self, command: str) -> None:
        """Another driver takes the run up: nothing that an earlier one began runs any more."""
        self.content["resumed"].append({"command": command, "at_s": time.time(), "versions": versions()})
        self.content["ended_s"] = None
        self.interrupted()
        for entry in self.content["folds"].values():
            if entry["state"] == "failed":
                entry["state"] = "trained" if "files" in entry else "waiting"
        self.save()

    def interrupted(self) -> None:
        """Attempts that are running end here, with their driver."""
        for entry in self.content["folds"].values():
            if entry["state"] == "running":
                entry["state"] = "waiting"
            for attempt in [*entry["attempts"], *entry["predictions"]]:
                if attempt["outcome"] == "running":
                    attempt |= {"outcome": "interrupted", "ended_s": time.time()}

    def undone(self, fold: int, why: str) -> None:
        """A trained fold has to be trained again."""
        entry = self.fold(fold)
        kept = ("memory_estimate_bytes", "attempts", "predictions")
        self.content["folds"][str(fold)] = {"state": "waiting"} | {name: entry[name] for name in kept}
        entry["attempts"][-1] |= {"outcome": "discarded", "message": why}
        self.save(fold)

    def unpredicted(self, fold: int) -> None:
        """A fold's test set has to be predicted again."""
        entry = self.fold(fold)
        entry["state"] = "trained"
        del entry["files"][f"fold-{fold}/test.csv"]
        self.save(fold)

    def attempts(self, fold: int, span: Span | None = None) -> list[dict[str, Any]]:
        """Attempts at training a fold, or at a span of its test predictions."""
        if span is None:
            return self.fold(fold)["attempts"]
        return [attempt for attempt in self.fold(fold)["predictions"] if attempt["rows"] == list(span)]

    def started(self, event: Started, from_epoch: int) -> None:
        place = event.place
        what: dict[str, Any] = {"from_epoch": from_epoch}
        if event.span is None:
            self.fold(event.fold)["state"] = "running"
        else:
            what = {"rows": list(event.span)}
        self._begin(
            event.fold,
            event.span,
            what
            | {
                "node": place.node,
                "device": place.device,
                "n_replicas": place.n_replicas,
                "threads": place.threads,
                "visible": place.visible,
                "pid": place.pid,
                "ended_s": None,
                "outcome": "running",
            },
        )
        self.save(event.fold)

    def _begin(self, fold: int, span: Span | None, what: dict[str, Any]) -> None:
        attempt = {"attempt": len(self.attempts(fold, span)), "started_s": time.time()} | what
        self.fold(fold)["attempts" if span is None else "predictions"].append(attempt)

    def failed(self, event: Failed, decision: Decision) -> None:
        fold, span = event.fold, event.span
        if decision.action == "give-up":
            self.fold(fold)["state"] = "failed"
        elif span is None:
            self.fold(fold)["state"] = "waiting"
        attempts = self.attempts(fold, span)
        if not attempts or attempts[-1]["outcome"] != "running":  # it died before it could start
            where = {"node": event.node} if event.node else {}
            self._begin(fold, span, where | ({"rows": list(span)} if span else {}))
        self.attempts(fold, span)[-1] |= {
            "ended_s": time.time(),
            "outcome": "failed",
            "cause": event.cause,
            "message": event.message,
            "decision": decision.action,
            "reason": decision.reason,
        }
        self.save(fold)

    def why_failed(self, fold: int) -> str:
        """The message of the last failure of a fold that failed."""
        entry = self.fold(fold)
        failures = [
            attempt for attempt in [*entry["attempts"], *entry["predictions"]] if "message" in attempt
        ]
        return max(failures, key=lambda attempt: attempt["ended_s"])["message"]

    def trained(self, result: FoldResult, files: Mapping[str, str]) -> None:
        entry = self.fold(result.fold)
        entry["attempts"][-1] |= {"ended_s": time.time(), "outcome": "done"}
        entry |= {
            "state": "trained",
            "best_epoch": result.best_epoch,
            "files": dict(files),
            "timings": result.timings,
            "peak_memory_bytes": result.peak_memory_bytes,
        }
        self.save(result.fold)

    def n_replicas(self, fold: int) -> int:
        """On how many replicas a trained fold was trained."""
        return self.fold(fold)["attempts"][-1]["n_replicas"]

    def span_rows(self, fold: int) -> int | None:
        """Rows of the test set that a fold's spans have, the last one excepted; None before it was cut."""
        return self.fold(fold).get("span_rows")

    def cut(self, fold: int, span_rows: int) -> None:
        self.fold(fold)["span_rows"] = span_rows
        self.save(fold)

    def span_done(self, predicted: Predicted) -> None:
        self.attempts(predicted.fold, predicted.span)[-1] |= {
            "ended_s": time.time(),
            "outcome": "done",
            "timings": predicted.timings,
        }
        self.save(predicted.fold)

    def done(self, fold: int, files: Mapping[str, str], keep_weights: bool) -> None:
        """Nothing is left to do for a fold; `files` are those of its test predictions."""
        entry = self.fold(fold)
        entry["state"] = "done"
        entry["files"] |= files
        if not keep_weights:
            entry["files"].pop(f"fold-{fold}/weights.h5", None)
        self.save(fold)


def _waiting(config: Config, fold: int) -> dict[str, Any]:
    estimate = fold_bytes(config, fold, config.device, config.cpus_per_fold or 1)
    return {"state": "waiting", "memory_estimate_bytes": estimate, "attempts": [], "predictions": []}


def describe(index: DataIndex) -> dict[str, Any]:
    """The data's identity and shape."""
    return {
        "root": index.root,
        "fingerprint": index.fingerprint,
        "storage": index.storage,
        "panel_shape": list(index.panel_shape),
        "n_train": len(index.train),
        "n_test": len(index.test),
        "n_train_shards": sum(shard.split == "train" for shard in index.shards),
        "df_hz": index.metadata.get("df_hz"),
        "dt_s": index.metadata.get("dt_s"),
        "conditioning": index.metadata.get("conditioning"),
        "windows": index.metadata.get("windows"),
    }


def bad_records(index: DataIndex, on_bad_record: str) -> dict[str, Any]:
    """What was left out of the data, and that it was meant to be."""
    listed = [{"file": bad.file, "record": bad.record, "reason": bad.reason} for bad in index.bad_records]
    return {"on_bad_record": on_bad_record, "n_bad_records": index.n_left_out, "bad_records": listed}


def file_sha256(path: str) -> str | None:
    """Of a weights file; None for `imagenet` and `none`, which are no files."""
    return sha256(Path(path).read_bytes()) if Path(path).is_file() else None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
