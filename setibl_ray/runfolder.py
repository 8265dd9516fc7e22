"""The run folder: every file that a run leaves, written by the driver alone, each whole or not at all.

    config.yaml  manifest.json  folds.csv  records.csv  metrics.json  oof.csv  submission.csv  report.html
    fold-K/      weights.h5  history.csv  oof.csv  test.csv  training.png   (state-NNN.npz while it trains)

A local file is written under a temporary name and renamed; an object store's upload is whole by itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import numpy as np
import pandas as pd

from setibl_ray.contract import FoldResult
from setibl_ray.errors import RunFolderError

FORMAT = 1
STATES_KEPT = 2
_STATE = re.compile(r"state-(\d+)\.npz$")


class RunFolder:
    """A run folder at a local path or an fsspec URL."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.fs, self._base = fsspec.core.url_to_fs(self.root)
        self._local = isinstance(self.fs, fsspec.implementations.local.LocalFileSystem)

    def __str__(self) -> str:
        return self.root

    def path(self, name: str) -> str:
        """`name` as a user would type it."""
        return f"{self.root}/{name}"

    def exists(self, name: str = "manifest.json") -> bool:
        return self.fs.exists(f"{self._base}/{name}")

    def read(self, name: str) -> bytes:
        try:
            return self.fs.cat_file(f"{self._base}/{name}")
        except FileNotFoundError:
            raise RunFolderError(f"{self.path(name)} is missing: is {self.root} a run folder?") from None

    def write(self, name: str, data: bytes | str) -> None:
        """Raises:
        RunFolderError: the place is read-only, full, or out of reach.
        """
        data = data.encode() if isinstance(data, str) else data
        target = f"{self._base}/{name}"
        try:
            if not self._local:
                self.fs.pipe_file(target, data)
                return
            os.makedirs(os.path.dirname(target), exist_ok=True)
            temporary = f"{target}.tmp-{uuid4().hex[:8]}"
            try:
                with open(temporary, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunFolderError(f"{self.path(name)} could not be written: {reason}") from error

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            if self.exists(name):
                self.fs.rm_file(f"{self._base}/{name}")

    def write_csv(self, name: str, table: pd.DataFrame) -> None:
        self.write(name, table.to_csv(index=False, lineterminator="\n"))

    def read_csv(self, name: str) -> pd.DataFrame:
        return pd.read_csv(
            io.BytesIO(self.read(name)), dtype={"image_id": str, "id": str}, keep_default_na=False
        )

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=2, default=_plain) + "\n")

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise RunFolderError(f"{self.path(name)} is not JSON: {error}") from None

    def save_state(self, fold: int, epoch: int, state: bytes) -> None:
        """Keep a fold's state after `epoch`, and the one before it in case this one is damaged."""
        self.write(f"fold-{fold}/state-{epoch:03d}.npz", state)
        self.remove(self.states(fold)[:-STATES_KEPT])

    def states(self, fold: int) -> list[str]:
        """Names of a fold's states, oldest first."""
        folder = f"{self._base}/fold-{fold}"
        if not self.fs.exists(folder):
            return []
        names = [os.path.basename(path) for path in self.fs.ls(folder, detail=False)]
        found = sorted((int(match.group(1)), name) for name in names if (match := _STATE.search(name)))
        return [f"fold-{fold}/{name}" for _, name in found]

    def save_fold(self, result: FoldResult, valid: pd.DataFrame, test_ids: np.ndarray, plot: bytes) -> None:
        """Write a finished fold; its states go when everything else is there.

        Args:
          result: what the fold found.
          valid: image_id and target of its held-out rows.
          test_ids: image ids of the test table.
          plot: training.png.
        """
        folder = f"fold-{result.fold}"
        if result.weights:
            self.write(f"{folder}/weights.h5", result.weights)
        self.write_csv(f"{folder}/history.csv", pd.DataFrame(result.history))
        self.write(f"{folder}/training.png", plot)
        if len(result.test_pred):
            predictions = {"pred": result.test_pred, "pred_no_tta": result.test_pred_no_tta}
            self.write_csv(f"{folder}/test.csv", pd.DataFrame({"image_id": test_ids, **predictions}))
        predictions = {"pred": result.valid_pred, "pred_no_tta": result.valid_pred_no_tta}
        self.write_csv(f"{folder}/oof.csv", valid.assign(**predictions))
        self.remove(self.states(result.fold))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not go into JSON")
