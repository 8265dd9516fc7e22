"""The run folder: every file that a run leaves, written by the driver alone, each whole or not at all.

    config.yaml  manifest.json  folds.csv  records.csv  metrics.json  oof.csv  submission.csv  report.html
    fold-K/      weights.h5  history.csv  oof.csv  test.csv  training.png
                 (while it trains state-NNN-SHA.npz, while its test set is predicted test-START-STOP-SHA.npy)

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
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pandas as pd
from fsspec.implementations.local import LocalFileSystem

from setibl_ray.core.contract import FoldResult, Predicted, Span
from setibl_ray.core.errors import RunFolderError
from setibl_ray.core.run import locks
from setibl_ray.core.storage import filesystem, reaching

FORMAT = 2
STATES_KEPT = 2
_STATE = re.compile(r"state-(\d+)-([0-9a-f]{32})\.npz")
_SPAN = re.compile(r"test-(\d+)-(\d+)-([0-9a-f]{32})\.npy")
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
        self.fs, self._base = filesystem(self.root)
        self._local = isinstance(self.fs, LocalFileSystem)

    def __str__(self) -> str:
        return self.root

    def path(self, name: str) -> str:
        """`name` as a user would type it."""
        return f"{self.root}/{name}"

    def exists(self, name: str = "manifest.json") -> bool:
        with self._reaching(name, "read"):
            return self.fs.exists(f"{self._base}/{name}")

    def read(self, name: str) -> bytes:
        with self._reaching(name, "read"):
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
        with self._reaching(name, "written"):
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

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with self._reaching(name, "removed"), suppress(FileNotFoundError):
                self.fs.rm_file(f"{self._base}/{name}")

    def _reaching(self, name: str, what: str) -> AbstractContextManager[None]:
        return reaching(self.path(name), what, RunFolderError)

    def write_csv(self, name: str, table: pd.DataFrame) -> None:
        self.write(name, _csv(table))

    def read_csv(self, name: str) -> pd.DataFrame:
        return pd.read_csv(
            io.BytesIO(self.read(name)), dtype={"image_id": str, "id": str}, keep_default_na=False
        )

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, to_json(value) + "\n")

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
        return sorted(self._matching(fold, _STATE), key=_epoch)

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
            if _is_whole(name, state):
                found, next_epoch = state, _epoch(name) + 1
                break
            damaged.append(name)
        self.remove(damaged)
        return LastState(found, next_epoch, damaged)

    def save_span(self, predicted: Predicted) -> None:
        """Keep a span of a fold's test predictions until all of them are there."""
        buffer = io.BytesIO()
        np.save(buffer, np.stack([predicted.pred, predicted.pred_no_tta]))
        self.write(
            f"{_span_prefix(predicted.fold, predicted.span)}{sha256(buffer.getvalue())[:32]}.npy",
            buffer.getvalue(),
        )

    def read_span(self, fold: int, span: Span) -> Predicted | None:
        """A span that was kept, if there is one that is whole."""
        for name in self.spans(fold):
            if name.startswith(_span_prefix(fold, span)):
                data = self.read(name)
                if _is_whole(name, data):
                    pred, plain = np.load(io.BytesIO(data), allow_pickle=False)
                    return Predicted(fold, span, pred, plain, {})
        return None

    def spans(self, fold: int) -> list[str]:
        """Names of the spans that are kept of a fold's test predictions."""
        return self._matching(fold, _SPAN)

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

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder of this one."""
        self.fs.invalidate_cache()  # object stores list from memory
        with self._reaching(folder, "read"):
            return [os.path.basename(name) for name in self.fs.ls(f"{self._base}/{folder}", detail=False)]

    def _matching(self, fold: int, pattern: re.Pattern[str]) -> list[str]:
        self.fs.invalidate_cache()  # object stores list from memory
        names: list[str] = []
        with self._reaching(f"fold-{fold}", "read"), suppress(FileNotFoundError):
            names = [os.path.basename(name) for name in self.fs.ls(f"{self._base}/fold-{fold}", detail=False)]
        return [f"fold-{fold}/{name}" for name in names if pattern.fullmatch(name)]

    def save_fold(self, result: FoldResult, valid: pd.DataFrame, plot: bytes) -> dict[str, str]:
        """Write a trained fold.

        Args:
          result: what the fold found.
          valid: image_id and target of its held-out rows.
          plot: training.png.

        Returns:
          The name of each file and its SHA-256. The fold's states can go once these are in the manifest.
        """
        held_out = {"pred": result.valid_pred, "pred_no_tta": result.valid_pred_no_tta}
        files = {
            "history.csv": _csv(pd.DataFrame(result.history)),
            "training.png": plot,
            "oof.csv": _csv(valid.assign(**held_out)),
        }
        if result.weights:
            files["weights.h5"] = result.weights
        return self._save(result.fold, files)

    def save_test(self, predicted: Predicted, test_ids: np.ndarray) -> dict[str, str]:
        """Write a fold's predictions of the whole test set, in the order of `test_ids`; returns name and SHA-256."""
        table = {"image_id": test_ids, "pred": predicted.pred, "pred_no_tta": predicted.pred_no_tta}
        return self._save(predicted.fold, {"test.csv": _csv(pd.DataFrame(table))})

    def _save(self, fold: int, files: Mapping[str, bytes]) -> dict[str, str]:
        sums = {}
        for name, data in files.items():
            self.write(f"fold-{fold}/{name}", data)
            sums[f"fold-{fold}/{name}"] = sha256(data)
        return sums


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


def _is_whole(name: str, data: bytes) -> bool:
    """Whether a file whose name ends in its checksum is what was written."""
    return sha256(data).startswith(name.rsplit("-", 1)[1].split(".")[0])


def _span_prefix(fold: int, span: Span) -> str:
    return f"fold-{fold}/test-{span[0]:09d}-{span[1]:09d}-"


def _epoch(state: str) -> int:
    return int(state.rsplit("state-", 1)[1].split("-")[0])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def to_json(value: Any) -> str:
    return json.dumps(value, indent=2, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not go into JSON")
