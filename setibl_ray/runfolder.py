"""The run folder: every file that a run leaves, written by the driver alone, each whole or not at all.

    config.yaml  manifest.json  folds.csv  records.csv  metrics.json  oof.csv  submission.csv  report.html
    fold-K/      weights.h5  history.csv  oof.csv  test.csv  training.png   (state-NNN-SHA.npz while it trains)

A local file is written under a temporary name and renamed; an object store's upload is whole by itself. What is
read back to be used is held against its SHA-256 first, and nothing that is read is a pickle.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import fsspec
import numpy as np
import pandas as pd

from setibl_ray import locks
from setibl_ray.contract import FoldResult
from setibl_ray.errors import RunFolderError

FORMAT = 1
STATES_KEPT = 2
_STATE = re.compile(r"state-(\d+)-([0-9a-f]{32})\.npz")
_TEMPORARY = re.compile(r".+\.tmp-[0-9a-f]{8}")


class LastState(NamedTuple):
    """Where a fold can go on: its state, None to begin anew; the epoch that comes next; states that were damaged."""

    state: bytes | None
    next_epoch: int
    damaged: list[str]


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
        except OSError as error:
            raise RunFolderError(f"{self.path(name)} could not be read: {error.strerror or error}") from error

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
        self.write(name, _csv(table))

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
        """Keep a fold's state after `epoch`, and the one before it in case this one is damaged.

        The checksum is in the name: it cannot be lost apart from the state, nor written before or after it.
        """
        name = f"fold-{fold}/state-{epoch:03d}-{sha256(state)[:32]}.npz"
        self.write(name, state)
        older = [other for other in self.states(fold) if other != name]
        same = [other for other in older if _epoch(other) >= epoch]  # of an attempt that began from before it
        self.remove([*same, *[other for other in older if other not in same][: 1 - STATES_KEPT]])

    def states(self, fold: int) -> list[str]:
        """Names of a fold's states, oldest first."""
        names = [name for name in self._names(f"fold-{fold}") if _STATE.fullmatch(name)]
        return sorted((f"fold-{fold}/{name}" for name in names), key=_epoch)

    def next_epoch(self, fold: int) -> int:
        """The epoch at which a fold would go on, if its newest state is whole."""
        states = self.states(fold)
        return _epoch(states[-1]) + 1 if states else 0

    def last_state(self, fold: int) -> LastState:
        """A fold's newest state that is whole; damaged ones after it are removed."""
        damaged: list[str] = []
        found, next_epoch = None, 0
        for name in reversed(self.states(fold)):
            state = self.read(name)
            if sha256(state).startswith(name.rsplit("-", 1)[1].removesuffix(".npz")):
                found, next_epoch = state, _epoch(name) + 1
                break
            damaged.append(name)
        self.remove(damaged)
        return LastState(found, next_epoch, damaged)

    def unfit(self, sums: Mapping[str, str]) -> list[str]:
        """Of files and the SHA-256 they should have, those that are missing or have another."""
        return [
            name for name, sum_ in sums.items() if not self.exists(name) or sha256(self.read(name)) != sum_
        ]

    def remove_temporaries(self) -> None:
        """Delete what writers that were killed left behind. The caller holds the folder's lock."""
        if self._local:
            for path in [*Path(self._base).glob("*.tmp-*"), *Path(self._base).glob("fold-*/*.tmp-*")]:
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock, creating the folder; one that was created and is still empty is removed again.

        Raises:
          RunFolderError: another process holds it (says which), or the place cannot be written.
        """
        is_new = self._local and not os.path.exists(self._base)
        hold = (
            locks.local(Path(self._base), self.root)
            if self._local
            else locks.remote(self.fs, self._base, self.root)
        )
        try:
            with hold:
                yield
        finally:
            if is_new:
                with suppress(OSError):
                    os.rmdir(self._base)

    def _names(self, folder: str) -> list[str]:
        path = f"{self._base}/{folder}"
        if not self.fs.exists(path):
            return []
        self.fs.invalidate_cache()  # object stores list from memory
        return [os.path.basename(name) for name in self.fs.ls(path, detail=False)]

    def save_fold(
        self, result: FoldResult, valid: pd.DataFrame, test_ids: np.ndarray, plot: bytes
    ) -> dict[str, str]:
        """Write a finished fold.

        Args:
          result: what the fold found.
          valid: image_id and target of its held-out rows.
          test_ids: image ids of the test table.
          plot: training.png.

        Returns:
          The name of each file and its SHA-256. The fold's states can go once these are in the manifest.
        """
        test = {"image_id": test_ids, "pred": result.test_pred, "pred_no_tta": result.test_pred_no_tta}
        held_out = {"pred": result.valid_pred, "pred_no_tta": result.valid_pred_no_tta}
        files = {
            "history.csv": _csv(pd.DataFrame(result.history)),
            "training.png": plot,
            "oof.csv": _csv(valid.assign(**held_out)),
        }
        if result.weights:
            files["weights.h5"] = result.weights
        if len(result.test_pred):
            files["test.csv"] = _csv(pd.DataFrame(test))
        sums = {}
        for name, data in files.items():
            self.write(f"fold-{result.fold}/{name}", data)
            sums[f"fold-{result.fold}/{name}"] = sha256(data)
        return sums


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


def _epoch(state: str) -> int:
    return int(state.rsplit("state-", 1)[1].split("-")[0])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not go into JSON")
