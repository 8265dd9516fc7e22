"""manifest.json: what ran where, with which versions and data, and how each attempt ended."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setibl_ray.config import Config
from setibl_ray.contract import Failed, FoldResult, Started
from setibl_ray.data.shards import DataIndex
from setibl_ray.failures import Decision
from setibl_ray.memory import fold_bytes
from setibl_ray.runfolder import FORMAT, RunFolder, sha256

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
    """The manifest of a run in progress, saved to its folder whenever a fold starts, fails or is done."""

    def __init__(self, folder: RunFolder, content: dict[str, Any]) -> None:
        self._folder = folder
        self.content = content

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

    def save(self) -> None:
        self._folder.write_json("manifest.json", self.content)

    def fold(self, fold: int) -> dict[str, Any]:
        return self.content["folds"][str(fold)]

    def is_done(self, fold: int) -> bool:
        return self.fold(fold)["state"] == "done"

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
                entry["state"] = "waiting"
        self.save()

    def interrupted(self) -> None:
        """Attempts that are running end here, with their driver."""
        for entry in self.content["folds"].values():
            if entry["state"] == "running":
                entry["state"] = "waiting"
            for attempt in entry["attempts"]:
                if attempt["outcome"] == "running":
                    attempt |= {"outcome": "interrupted", "ended_s": time.time()}

    def undone(self, fold: int, why: str) -> None:
        """A finished fold has to be trained again."""
        entry = self.fold(fold)
        kept = ("memory_estimate_bytes", "attempts")
        self.content["folds"][str(fold)] = {"state": "waiting"} | {name: entry[name] for name in kept}
        entry["attempts"][-1] |= {"outcome": "discarded", "message": why}
        self.save()

    def started(self, event: Started, from_epoch: int) -> None:
        entry = self.fold(event.fold)
        entry["state"] = "running"
        place = event.place
        entry["attempts"].append(
            {
                "attempt": len(entry["attempts"]),
                "node": place.node,
                "from_epoch": from_epoch,
                "device": place.device,
                "n_replicas": place.n_replicas,
                "threads": place.threads,
                "visible": place.visible,
                "pid": place.pid,
                "started_s": time.time(),
                "ended_s": None,
                "outcome": "running",
            }
        )
        self.save()

    def failed(self, event: Failed, decision: Decision) -> None:
        entry = self.fold(event.fold)
        entry["state"] = "failed" if decision.action == "give-up" else "waiting"
        if (
            not entry["attempts"] or entry["attempts"][-1]["outcome"] != "running"
        ):  # it died before it could start
            attempt = {"attempt": len(entry["attempts"]), "started_s": time.time()}
            entry["attempts"].append(attempt | ({"node": event.node} if event.node else {}))
        entry["attempts"][-1] |= {
            "ended_s": time.time(),
            "outcome": "failed",
            "cause": event.cause,
            "message": event.message,
            "decision": decision.action,
            "reason": decision.reason,
        }
        self.save()

    def done(self, result: FoldResult, files: Mapping[str, str]) -> None:
        entry = self.fold(result.fold)
        entry["attempts"][-1] |= {"ended_s": time.time(), "outcome": "done"}
        entry |= {
            "state": "done",
            "best_epoch": result.best_epoch,
            "files": dict(files),
            "timings": result.timings,
            "peak_memory_bytes": result.peak_memory_bytes,
        }
        self.save()


def _waiting(config: Config, fold: int) -> dict[str, Any]:
    estimate = fold_bytes(config, fold, config.device, config.cpus_per_fold or 1)
    return {"state": "waiting", "memory_estimate_bytes": estimate, "attempts": []}


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
