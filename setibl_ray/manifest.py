"""manifest.json: what ran where, with which versions and data, and how each attempt ended."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from typing import Any

from setibl_ray.contract import Failed, FoldResult, Started
from setibl_ray.data.shards import DataIndex
from setibl_ray.failures import Decision
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
    def new(cls, folder: RunFolder, index: DataIndex, folds: int, command: str) -> Manifest:
        return cls(
            folder,
            {
                "format": FORMAT,
                "command": command,
                "versions": versions(),
                "data": describe(index),
                "folds": {str(fold): {"state": "waiting", "attempts": []} for fold in range(folds)},
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

    def started(self, event: Started) -> None:
        entry = self.fold(event.fold)
        entry["state"] = "running"
        place = event.place
        entry["attempts"].append(
            {
                "attempt": len(entry["attempts"]),
                "node": place.node,
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
            entry["attempts"].append({"attempt": len(entry["attempts"]), "started_s": time.time()})
        entry["attempts"][-1] |= {
            "ended_s": time.time(),
            "outcome": "failed",
            "cause": event.cause,
            "message": event.message,
            "decision": decision.action,
        }
        self.save()

    def done(self, result: FoldResult) -> None:
        entry = self.fold(result.fold)
        entry["attempts"][-1] |= {"ended_s": time.time(), "outcome": "done"}
        entry |= {
            "state": "done",
            "best_epoch": result.best_epoch,
            "weights_sha256": sha256(result.weights) if result.weights else None,
            "timings": result.timings,
            "peak_memory_bytes": result.peak_memory_bytes,
        }
        self.save()


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


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
