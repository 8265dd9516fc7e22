"""Writing a data set so that it exists either completely or not at all.

A set is written into a temporary folder beside its final place and renamed after `dataset.json`, the last
file, is written; likewise each shard within it. A killed command leaves a hidden `.NAME.partial-…` folder and
nothing else.
"""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import google_crc32c
import numpy as np
import pandas as pd

from setibl_ray.core.errors import DataError
from setibl_ray.core.tables import to_csv
from setibl_ray.seti.formats.records import CLIP, Labels, Record, encode_record
from setibl_ray.seti.formats.shards import (
    DATASET_FILE,
    FORMAT_VERSION,
    INDEX_FILE,
    SPLITS,
    Row,
    ShardInfo,
    Split,
    fingerprint,
    join_tables,
    shard_name,
    table_of,
)
from setibl_ray.seti.formats.tfrecord import frame

_HEADER_BYTES, _FOOTER_BYTES = 12, 4

Task = TypeVar("Task")


@dataclass(frozen=True, eq=False)
class WrittenShard:
    """A finished shard: its name, its checksum, and its rows of the index."""

    info: ShardInfo
    crc32c: str
    table: pd.DataFrame


class ShardWriter:
    """Writes one shard under a temporary name and renames it, with the number of records, when it is complete.

    A context manager: an exception removes the file; otherwise, `written` is set at the end.
    """

    written: WrittenShard

    def __init__(self, folder: str | Path, split: Split, index: int) -> None:
        self._folder = Path(folder)
        self._split = split
        self._index = index
        self._partial = self._folder / f".{split}{index:02d}.partial"
        self._rows: list[Row] = []
        self._offset = 0
        self._crc = google_crc32c.Checksum()

    def __enter__(self) -> ShardWriter:
        self._file = self._partial.open("wb")
        return self

    def write(self, record: Record) -> None:
        framed = frame(encode_record(record))
        self._file.write(framed)
        self._crc.update(framed)
        shape = cast("tuple[int, int]", record.panels.shape[1:])
        snr = float(np.float32(record.snr))  # as the record keeps it
        labels = Labels(record.image_id, record.target, record.group, snr, record.kind, "cadence", shape)
        length = len(framed) - _HEADER_BYTES - _FOOTER_BYTES
        crc = int.from_bytes(framed[-_FOOTER_BYTES:], "little")
        self._rows.append(Row(labels, len(self._rows), self._offset + _HEADER_BYTES, length, crc))
        self._offset += len(framed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is not None:
            self._partial.unlink()
            return
        n_records = len(self._rows)
        path = self._folder / shard_name(self._split, self._index, n_records)
        self._partial.rename(path)
        info = ShardInfo(self._split, self._index, n_records, str(path), self._offset)
        self.written = WrittenShard(info, self._crc.hexdigest().decode(), table_of(self._rows, self._split))


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` if the block succeeds, and is removed otherwise.

    Raises:
      DataError: `path` is not empty.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(
            f"{path} is there already and holds something else. Choose another --out, or remove it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_shards(
    write: Callable[[Task], WrittenShard],
    tasks: Sequence[Task],
    *,
    n_processes: int | None = None,
    on_shard: Callable[[WrittenShard], None] = lambda shard: None,
) -> list[WrittenShard]:
    """Run `write` on every task, one shard each, over processes; results in the order of tasks.

    With one process (or one task), it runs in this process. Others are spawned, not forked, because a driver may have
    threads and locks.
    """
    n_processes = min(n_processes or n_cores(), len(tasks))
    if n_processes <= 1:
        done = []
        for task in tasks:
            done.append(write(task))
            on_shard(done[-1])
        return done
    spawn = get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=spawn, initializer=_keep_freed_memory) as pool:
        futures: list[Future[WrittenShard]] = [pool.submit(write, task) for task in tasks]
        try:
            for future in as_completed(futures):
                on_shard(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _keep_freed_memory() -> None:
    """Let glibc keep memory that this process frees. By default it returns every array of a megabyte to the operating
    system and then requests the next one, whose pages must be cleared: a third of the time that packing takes.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**28)
        mallopt(mmap_threshold, 2**28)


def write_dataset(
    folder: Path,
    shards: Iterable[WrittenShard],
    panel_shape: tuple[int, int],
    made: dict[str, Any],
    **facts: Any,
) -> None:
    """Write `index.csv.gz` and then `dataset.json` beside finished shards.

    Args:
      folder: where the shards are.
      shards: all of them, any order.
      panel_shape: (height, width) of every panel.
      made: how the set was made (command and parameters); equal `made` means an equal set.
      facts: further metadata, e.g. df_hz and dt_s.
    """
    shards = sorted(shards, key=lambda shard: (SPLITS.index(shard.info.split), shard.info.index))
    infos = [shard.info for shard in shards]
    tables = join_tables(infos, [shard.table for shard in shards])
    both = pd.concat([table.assign(split=split) for split, table in tables.items()])
    both["target"] = both["target"].astype("Int8")  # none in test rows, and no decimal point in the others
    # mtime=0: equal sets have equal files.
    packed = gzip.compress(to_csv(both), compresslevel=6, mtime=0)
    _write_atomically(folder / INDEX_FILE, packed)
    metadata = {
        "format_version": FORMAT_VERSION,
        "storage": "cadence",
        "panel_shape": list(panel_shape),
        "clip_sigmas": list(CLIP),
        **facts,
        "counts": {split: _counts(table) for split, table in tables.items()},
        "fingerprint": fingerprint(tables),
        "index_sha256": hashlib.sha256(packed).hexdigest(),
        "shards": [
            {"name": shard.info.name, "size_bytes": shard.info.size_bytes, "crc32c": shard.crc32c}
            for shard in shards
        ],
        "made": made,
        "versions": {name: _version(name) for name in ("setibl-ray", "numpy")},
    }
    _write_atomically(folder / DATASET_FILE, json.dumps(metadata, indent=2).encode() + b"\n")


def is_made(folder: Path, made: dict[str, Any]) -> bool:
    """Whether `folder` holds a finished set made in exactly this way."""
    try:
        metadata = json.loads((folder / DATASET_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("made") == made


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _counts(table: pd.DataFrame) -> dict[str, int]:
    counts = {"records": len(table)}
    if "target" in table:
        counts["needles"] = int(table["target"].sum())
    return counts


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
