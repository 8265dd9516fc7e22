"""The run folder: all files of a run, written only by the driver, each completely or not at all.

    config.yaml  manifest.json  folds.csv  records.csv  metrics.json  oof.csv  submission.csv  report.html
    fold-K/      the artifact  history.csv  oof.csv  test.csv  pictures
                 (until the run ends fold.json, see manifest.py; while it trains state-NNN-SHA.bin, while its test set
                 is predicted test-START-STOP-SHA.npz)

A local file is written under a temporary name and renamed; an upload to an object store is
atomic. Files that are read back to be used are first checked against their SHA-256, and none of them is a pickle.
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

from setibl_ray.core.errors import RunFolderError
from setibl_ray.core.run import locks
from setibl_ray.core.storage import filesystem, reaching
from setibl_ray.core.tables import TEXT, from_csv, to_csv
from setibl_ray.core.task import Prediction, Span
from setibl_ray.core.terminal import one_line

FORMAT = 3
STATES_KEPT = 2
_STATE = re.compile(r"state-(\d+)-([0-9a-f]{32})\.bin")
_SPAN = re.compile(r"test-(\d+)-(\d+)-([0-9a-f]{32})\.npz")
_TEMPORARY = re.compile(r".+\.tmp-[0-9a-f]{8}")


class LastState(NamedTuple):
    """Where a fold can continue: its state (None: from the beginning), the next step, and damaged states."""

    state: bytes | None
    next_step: int
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
        RunFolderError: the place is read-only, full, or unreachable.
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
        self.write(name, to_csv(table))

    def read_csv(self, name: str, *text: str) -> pd.DataFrame:
        """Read a table that `write_csv` wrote; the columns `text` hold text, as do those of `TEXT`."""
        try:
            return from_csv(self.read(name), {*TEXT, *text})
        except ValueError as error:
            raise RunFolderError(f"{self.path(name)} is not a table: {one_line(error)}") from None

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, to_json(value) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{self.path(name)} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise RunFolderError(f"{self.path(name)}: expected an object, found {type(value).__name__}")
        return value

    def save_state(self, fold: int, step: int, state: bytes) -> None:
        """Keep a fold's state after `step`, and the one before it in case this one is damaged.

        The checksum is part of the name, so that it is never written or lost separately from the state.
        """
        name = f"fold-{fold}/state-{step:03d}-{sha256(state)[:32]}.bin"
        self.write(name, state)
        older = [other for other in self.states(fold) if other != name]
        same = [other for other in older if _step(other) >= step]  # of an attempt that began from before it
        self.remove([*same, *[other for other in older if other not in same][: 1 - STATES_KEPT]])

    def states(self, fold: int) -> list[str]:
        """Names of a fold's states, oldest first."""
        return sorted(self._matching(fold, _STATE), key=_step)

    def next_step(self, fold: int) -> int:
        """The step at which a fold would continue, if its newest state is complete."""
        states = self.states(fold)
        return _step(states[-1]) + 1 if states else 0

    def last_state(self, fold: int) -> LastState:
        """A fold's newest undamaged state; damaged ones after it are removed."""
        damaged: list[str] = []
        found, next_step = None, 0
        for name in reversed(self.states(fold)):
            state = self.read(name)
            if _is_whole(name, state):
                found, next_step = state, _step(name) + 1
                break
            damaged.append(name)
        self.remove(damaged)
        return LastState(found, next_step, damaged)

    def save_span(self, fold: int, span: Span, prediction: Prediction) -> None:
        """Keep a span of a fold's test predictions until all spans are there."""
        buffer = io.BytesIO()
        np.savez(
            buffer, pred=prediction.pred, **{f"+{name}": value for name, value in prediction.columns.items()}
        )
        data = buffer.getvalue()
        self.write(f"{_span_prefix(fold, span)}{sha256(data)[:32]}.npz", data)

    def read_span(self, fold: int, span: Span) -> Prediction | None:
        """A kept span, if there is an undamaged one."""
        for name in self.spans(fold):
            if name.startswith(_span_prefix(fold, span)) and _is_whole(name, data := self.read(name)):
                with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                    columns = {key[1:]: arrays[key] for key in arrays.files if key != "pred"}
                    return Prediction(arrays["pred"], columns)
        return None

    def spans(self, fold: int) -> list[str]:
        """Names of the files that hold spans of a fold's test predictions."""
        return self._matching(fold, _SPAN)

    def unfit(self, sums: Mapping[str, str]) -> list[str]:
        """Files, of those given with their SHA-256, that are missing or differ."""
        return [
            name for name, sum_ in sums.items() if not self.exists(name) or sha256(self.read(name)) != sum_
        ]

    def remove_temporaries(self) -> None:
        """Delete files left by killed writers. The caller holds the folder's lock."""
        if self._local:
            for path in [*Path(self._base).glob("*.tmp-*"), *Path(self._base).glob("fold-*/*.tmp-*")]:
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock. The folder is created if needed, and removed again if it is still empty at the end.

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
        """Names of the files in a folder of this one; none where there is no such folder."""
        self.fs.invalidate_cache()  # file systems of object stores cache listings
        with self._reaching(folder, "read"), suppress(FileNotFoundError):
            return [os.path.basename(name) for name in self.fs.ls(f"{self._base}/{folder}", detail=False)]
        return []

    def _matching(self, fold: int, pattern: re.Pattern[str]) -> list[str]:
        return [f"fold-{fold}/{name}" for name in self.names(f"fold-{fold}") if pattern.fullmatch(name)]

    def save(self, fold: int, files: Mapping[str, bytes]) -> dict[str, str]:
        """Write files of a fold; returns the SHA-256 of each by its name."""
        sums = {}
        for name, data in files.items():
            self.write(f"fold-{fold}/{name}", data)
            sums[f"fold-{fold}/{name}"] = sha256(data)
        return sums


def _is_whole(name: str, data: bytes) -> bool:
    """Whether a file matches the checksum in its name."""
    return sha256(data).startswith(name.rsplit("-", 1)[1].split(".")[0])


def _span_prefix(fold: int, span: Span) -> str:
    return f"fold-{fold}/test-{span[0]:09d}-{span[1]:09d}-"


def _step(state: str) -> int:
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
