"""Reading a folder of shards: their names, the index of all records, and random access to pixels.

Everything goes through fsspec, so a folder may be local, `gs://`, `s3://` or `memory://`. Sets written by
this package have `dataset.json` (how they were made) and `index.csv.gz` (one row per record), which saves
a scan of all bytes; a folder without them is scanned and then works the same.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias, cast

import fsspec
import google_crc32c
import numpy as np
import pandas as pd
from fsspec.implementations.local import LocalFileSystem

from setibl_ray.core.errors import ConfigError, DataError, StorageError
from setibl_ray.core.storage import filesystem, reaching
from setibl_ray.core.tables import from_csv
from setibl_ray.seti.cadence import N_PANELS, ON, Storage
from setibl_ray.seti.formats.records import Labels, Record, decode_labels, decode_record
from setibl_ray.seti.formats.tfrecord import BadRecord, frames, masked_crc

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
# Each storage and panel shape, with the name of a shard that has it.
Layouts: TypeAlias = "dict[tuple[Storage, tuple[int, int]], str]"

DATASET_FILE = "dataset.json"
INDEX_FILE = "index.csv.gz"
FORMAT_VERSION = 1

_GAP_BYTES = 1 << 20  # smaller gaps are read too: that is cheaper than another request
_BLOCK_BYTES = 32 << 20  # of one read at most
_SAMPLE = 16  # images of a split that are decoded to see whether they can be

_NAME = re.compile(r"(train|test)(\d{2,})-(\d+)\.tfrec")
_COLUMNS = {
    "image_id": object,
    "target": "int8",
    "group": object,
    "snr": "float32",
    "kind": object,
    "shard": "int64",
    "record": "int64",
    "offset": "int64",
    "length": "int64",
    "crc": "uint32",
}


@dataclass(frozen=True)
class ShardInfo:
    """One shard file: `path` is a full URL or an absolute path, `n_records` the number in its name."""

    split: Split
    index: int
    n_records: int
    path: str
    size_bytes: int

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True, eq=False)
class DataIndex:
    """Everything known about a data set without its pixels; small, and pickles between processes.

    `train` and `test` hold one row per record in shard order: image_id, target (train only), group, snr, kind,
    shard (position among the shards of that split), record (number in its shard), offset and length of the
    payload in its file, and crc (its masked CRC32C). Unknown group and kind are None, unknown snr is nan. `notes` are
    sentences about what was passed over.
    """

    root: str
    storage: Storage
    panel_shape: tuple[int, int]
    shards: tuple[ShardInfo, ...]
    train: pd.DataFrame
    test: pd.DataFrame
    fingerprint: str
    metadata: dict[str, Any] = field(default_factory=dict)
    bad_records: tuple[BadRecord, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def n_left_out(self) -> int:
        """Records counted in names but not in tables: a damaged length loses all records after it in a shard."""
        promised = sum(shard.n_records for shard in self.shards)
        return max(len(self.bad_records), promised - len(self.train) - len(self.test))

    def shards_of(self, split: Split) -> tuple[ShardInfo, ...]:
        return tuple(shard for shard in self.shards if shard.split == split)

    def table(self, split: Split) -> pd.DataFrame:
        return self.train if split == "train" else self.test


class Row(NamedTuple):
    """One record of a shard and the position of its payload."""

    labels: Labels
    record: int
    offset: int
    length: int
    crc: int


class ShardScan(NamedTuple):
    """The result of reading a shard from end to end; `table` has the columns of `DataIndex.train`.

    `bad` are the records left out of it, and `n_found` counts them too.
    """

    table: pd.DataFrame
    layouts: frozenset[tuple[Storage, tuple[int, int]]]
    bad: tuple[BadRecord, ...]
    n_found: int
    crc32c: str
    n_stray_targets: int


def shard_name(split: Split, index: int, n_records: int) -> str:
    return f"{split}{index:02d}-{n_records}.tfrec"


def list_shards(root: str, needs: Split | None = "train") -> list[ShardInfo]:
    """The shards of a folder, train before test, each split by index.

    Args:
      needs: a split that must be there; None for either.

    Raises:
      DataError: no such folder, no shards of the split that is needed, a misnamed shard, an index that is missing or
        taken twice.
    """
    fs, folder = filesystem(root)
    with reaching(root, "read", StorageError):
        fs.invalidate_cache()  # an earlier listing of this process may be out of date
        is_folder = fs.isdir(folder)
        entries = fs.ls(folder, detail=True) if is_folder else []
    if not is_folder:
        raise DataError(
            f"{root} is not a folder. Expected one with train00-N.tfrec …; see `setibl_ray.data synth`."
        )
    # A plain absolute path also works for readers that do not support URLs.
    local = isinstance(fs, LocalFileSystem)
    shards = []
    for entry in entries:
        name = entry["name"].rstrip("/").rsplit("/", 1)[-1]
        match = _NAME.fullmatch(name)
        if match:
            path = entry["name"] if local else fs.unstrip_protocol(entry["name"])
            split = cast(Split, match[1])
            shards.append(ShardInfo(split, int(match[2]), int(match[3]), path, int(entry["size"])))
        elif name.endswith(".tfrec") and name.startswith(SPLITS):
            raise DataError(
                f"{root}/{name}: expected a name like train00-50.tfrec (index, number of records)"
            )
    if not any(needs in (shard.split, None) for shard in shards):
        wanted = f"{needs} shards" if needs else "shards"
        raise DataError(f"{root} has no {wanted}. Expected files named like {needs or 'train'}00-50.tfrec.")
    shards.sort(key=lambda shard: (shard.split != "train", shard.index, shard.n_records))
    for split in SPLITS:
        indices = [shard.index for shard in shards if shard.split == split]
        twice = [index for index, n in Counter(indices).items() if n > 1]
        missing = sorted(set(range(len(set(indices)))) - set(indices))
        if twice:
            names = ", ".join(
                shard.name for shard in shards if shard.split == split and shard.index == twice[0]
            )
            raise DataError(f"{root}: {split} shard {twice[0]:02d} appears twice ({names}). Remove one.")
        if missing:
            raise DataError(
                f"{root}: {split}{missing[0]:02d} is missing among {len(indices)} {split} shards "
                f"(highest {max(indices):02d}). Copy it, or renumber the shards from 00."
            )
    return shards


def iter_records(shard: ShardInfo) -> Iterator[Record]:
    """Decode a shard from end to end, in order.

    Raises:
      DataError: naming file and record.
    """
    with reaching(shard.path, "read", StorageError), fsspec.open(shard.path, "rb") as stream:
        for item in frames(stream, shard.name):
            yield decode_record(item.payload, _where(shard, item.record), labelled=shard.split == "train")


def read_index(
    root: str | Path,
    *,
    on_bad_record: Literal["fail", "skip"] = "fail",
    needs: Split = "train",
    decode: Literal["none", "some", "all"] = "none",
) -> DataIndex:
    """Read the index of a data set, from `index.csv.gz` if that matches the shards, otherwise by scanning them.

    Args:
      root: folder or URL.
      on_bad_record: "skip" leaves unusable records out and lists them in `bad_records`. To find them, every record is
        decoded, even if there is a stored index.
      needs: the split that must be present.
      decode: how many images are decoded before they are needed.

    Raises:
      DataError: what `list_shards` raises; a damaged or undecodable record; a count other than the name's;
        mixed storages or shapes; an image_id twice, or in train and test.
    """
    root = str(root)
    shards = list_shards(root, needs)
    metadata = read_metadata(root)
    stored = stored_tables(root, metadata, shards) if on_bad_record == "fail" else None
    if stored is not None:
        layout = (metadata["storage"], tuple(metadata["panel_shape"]))
        index = _index(root, shards, stored, {layout: shards[0].name}, metadata, (), needs)
        return checked(index, decode)
    skip = on_bad_record == "skip"

    def scan(shard: ShardInfo) -> ShardScan:
        found = scan_shard(shard, skip=skip)
        miscount = count_problem(shard, found.n_found)
        if miscount and not skip:
            raise DataError(f"{miscount}. Rename the shard, or copy it again.")
        if miscount and not found.bad:
            return found._replace(bad=(BadRecord(shard.name, found.n_found, miscount),))
        return found

    with _pool() as pool:
        scans = list(pool.map(scan, shards))
    bad = tuple(record for found in scans for record in found.bad)
    tables, layouts, notes = combined(shards, scans)
    index = _index(root, shards, tables, layouts, metadata, bad, needs, notes)
    return index if skip else checked(index, decode)


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(4, os.cpu_count() or 1))  # at least four, as reading is mostly waiting


def checked(index: DataIndex, decode: Literal["none", "some", "all"]) -> DataIndex:
    """Decode images of `index`: none, some of each split spread evenly, or all.

    Raises:
      DataError: one is not what its index says, or cannot be decoded; names it.
    """

    def read(part: tuple[Split, np.ndarray]) -> None:
        read_panels(index, *part, ON)  # every kind of shard has these

    parts: list[tuple[Split, np.ndarray]] = []
    for split in SPLITS if decode != "none" else ():
        rows = np.arange(len(index.table(split)))
        if decode == "some":
            rows = rows[:: max(1, len(rows) // _SAMPLE)]
        parts += [(split, rows[i : i + _SAMPLE]) for i in range(0, len(rows), _SAMPLE)]
    with _pool() as pool:
        for _ in pool.map(read, parts):
            pass
    return index


def scan_shard(shard: ShardInfo, *, skip: bool) -> ShardScan:
    """Read one shard from end to end, verifying checksums and labels.

    Without `skip` the first bad record is raised; with it, they are left out, and every panel is decoded to find them.
    """
    rows: list[Row] = []
    bad: list[BadRecord] = []
    last, n_stray_targets = -1, 0
    with reaching(shard.path, "read", StorageError), fsspec.open(shard.path, "rb") as file:
        stream = _ChecksumReader(file)
        for item in frames(cast(BinaryIO, stream), shard.name, bad if skip else None):
            last = item.record
            where = _where(shard, item.record)
            try:
                labels = decode_labels(item.payload, where, labelled=shard.split == "train")
                if skip and labels.storage == "png":  # the bytes of a cadence are its pixels
                    decode_record(item.payload, where)
            except DataError as error:
                if not skip:
                    raise
                bad.append(BadRecord(shard.name, item.record, error.message.removeprefix(where).lstrip(": ")))
            else:
                n_stray_targets += labels.stray_target is not None
                rows.append(Row(labels, item.record, item.offset, len(item.payload), item.crc))
        stream.drain()
    n_found = 1 + max([last, *(record.record for record in bad)])
    layouts = frozenset((row.labels.storage, row.labels.panel_shape) for row in rows)
    table = table_of(rows, shard.split)
    return ShardScan(table, layouts, tuple(bad), n_found, stream.crc32c(), n_stray_targets)


def combined(
    shards: Sequence[ShardInfo], scans: Sequence[ShardScan]
) -> tuple[dict[Split, pd.DataFrame], Layouts, tuple[str, ...]]:
    """Tables of all shards, their layouts, and sentences about what scanning passed over."""
    tables = join_tables(shards, [scan.table for scan in scans])
    layouts = {layout: shard.name for shard, scan in zip(shards, scans) for layout in scan.layouts}
    n_stray = sum(scan.n_stray_targets for scan in scans)
    note = f"{n_stray} test records have a target that is neither 0 nor 1, such as -1; it is not used"
    return tables, layouts, (note,) if n_stray else ()


def count_problem(shard: ShardInfo, n_found: int) -> str | None:
    if n_found == shard.n_records:
        return None
    return f"{shard.name}: its name says {shard.n_records} records, it holds {n_found}"


def read_panels(
    index: DataIndex, split: Split, rows: Sequence[int] | np.ndarray, panels: Sequence[int]
) -> np.ndarray:
    """Read the pixels of some rows, from whichever shards hold them.

    Args:
      rows: row numbers of the split's table, any order, repeats allowed.
      panels: cadence positions (0 … 5), in the order in which they are wanted.

    Returns:
      uint8 (rows, height, width, panels), in the order of `rows`. Each shard is opened once and read
      forwards; neighbouring records take one read.

    Raises:
      ConfigError: positions that the shards do not hold.
      DataError: a payload differs from the indexed one.
    """
    channels = panel_channels(index.storage, panels)
    table = index.table(split)
    shards = index.shards_of(split)
    rows = np.asarray(rows, np.int64)
    wanted = table.iloc[rows]
    shard_of, offset, length, crc, record = (
        wanted[column].to_numpy() for column in ("shard", "offset", "length", "crc", "record")
    )
    out = np.empty((len(rows), *index.panel_shape, len(channels)), np.uint8)
    fs, _ = filesystem(index.root)
    order = np.lexsort((offset, shard_of))
    for position in np.unique(shard_of):
        shard = shards[position]
        with (
            reaching(shard.path, "read", StorageError),
            fs.open(shard.path, "rb", cache_type="none") as stream,
        ):
            for together in _neighbours(order[shard_of[order] == position], offset, length):
                start = int(offset[together[0]])
                stream.seek(start)
                block = stream.read(int((offset + length)[together].max()) - start)
                for i in together:
                    where = _where(shard, record[i])
                    payload = block[offset[i] - start : offset[i] - start + length[i]]
                    if len(payload) != length[i] or masked_crc(payload) != crc[i]:
                        raise DataError(
                            f"{where} has changed since it was indexed. Run `python -m setibl_ray.data verify`."
                        )
                    pixels = decode_record(payload, where).panels
                    out[i] = pixels[channels].transpose(1, 2, 0)
    return out


def _neighbours(rows: np.ndarray, offset: np.ndarray, length: np.ndarray) -> Iterator[np.ndarray]:
    """Divide rows, in the order of their offsets, into groups for one read each: a request to an object store takes as
    long as reading some megabytes."""
    begun = 0
    for k in range(1, len(rows)):
        before, after = rows[k - 1], rows[k]
        is_far = offset[after] - offset[before] - length[before] > _GAP_BYTES
        if is_far or offset[after] + length[after] - offset[rows[begun]] > _BLOCK_BYTES:
            yield rows[begun:k]
            begun = k
    yield rows[begun:]


def panel_channels(storage: Storage, panels: Sequence[int]) -> list[int]:
    """Indexes of cadence positions among a record's panels.

    Raises:
      ConfigError: a position outside 0 … 5, or an OFF panel of PNG shards, which hold only the three ON panels.
    """
    held = tuple(range(N_PANELS)) if storage == "cadence" else ON
    missing = [panel for panel in panels if panel not in held]
    if missing:
        what = "PNG shards hold the ON panels only" if storage == "png" else "a cadence holds the panels"
        raise ConfigError(
            f"panels {tuple(panels)} asked for, but {what} {held}. Choose a layout of those, "
            "or pack the cadences with `python -m setibl_ray.data pack`."
        )
    return [held.index(panel) for panel in panels]


def read_metadata(root: str) -> dict[str, Any]:
    """The contents of `dataset.json`, or {} if there is none.

    Raises:
      DataError: it is not JSON, or has a later format than this version can read.
    """
    fs, folder = filesystem(root)
    path = f"{folder}/{DATASET_FILE}"
    with reaching(f"{root}/{DATASET_FILE}", "read", StorageError):
        if not fs.exists(path):
            return {}
        content = fs.cat_file(path)
    try:
        metadata = json.loads(content)
    except ValueError as error:
        raise DataError(
            f"{root}/{DATASET_FILE} is not JSON ({error}). Remove it to have the shards scanned."
        ) from None
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{root}/{DATASET_FILE}: expected format_version {FORMAT_VERSION}, found {version}. "
            "Use the version of setibl_ray that wrote it, or remove it to have the shards scanned."
        )
    return metadata


def table_of(rows: Iterable[Row], split: Split) -> pd.DataFrame:
    """The rows of one shard as a table; `shard` is 0 until shards are joined."""
    records = [
        (r.labels.image_id, r.labels.target, r.labels.group, r.labels.snr, r.labels.kind, 0, *r[1:])
        for r in rows
    ]
    columns = dict(zip(_COLUMNS, zip(*records)))  # none where there are no rows
    return pd.DataFrame(
        {name: pd.Series(columns.get(name, ()), dtype=kind) for name, kind in _columns(split).items()}
    )


def join_tables(shards: Sequence[ShardInfo], tables: Sequence[pd.DataFrame]) -> dict[Split, pd.DataFrame]:
    """Tables of all shards as one for each split, `shard` counting the shards of the split."""
    joined: dict[Split, pd.DataFrame] = {}
    for split in SPLITS:
        own = [table for shard, table in zip(shards, tables) if shard.split == split]
        parts = [table.assign(shard=np.int64(position)) for position, table in enumerate(own)]
        joined[split] = pd.concat(parts, ignore_index=True) if parts else table_of((), split)
    return joined


def fingerprint(tables: dict[Split, pd.DataFrame]) -> str:
    """SHA-256 over split, image_id, target and payload length and checksum of every record, in order."""
    digest = hashlib.sha256()
    for split, table in tables.items():
        targets = table["target"] if "target" in table else [""] * len(table)
        for row in zip(table["image_id"], targets, table["length"], table["crc"]):
            digest.update("\t".join((split, *map(str, row))).encode() + b"\n")
    return digest.hexdigest()


def id_problems(shards: Sequence[ShardInfo], tables: dict[Split, pd.DataFrame]) -> Iterator[str]:
    """Every image_id that more than one record has, and where."""
    parts = []
    for split, table in tables.items():
        names = np.array([shard.name for shard in shards if shard.split == split], object)
        parts.append(table[["image_id", "record"]].assign(file=names[table["shard"].to_numpy()]))
    ids = pd.concat(parts, ignore_index=True)
    for image_id, places in ids[ids["image_id"].duplicated(keep=False)].groupby("image_id", sort=False):
        where = ", ".join(f"{file} record {record}" for file, record in zip(places["file"], places["record"]))
        yield f"image_id {image_id} belongs to {len(places)} records: {where}"


def layout_problems(names: Layouts) -> Iterator[str]:
    """A sentence if shards differ in storage or panel shape."""
    if len(names) > 1:
        found = ", ".join(f"{storage} {h}x{w} in {name}" for (storage, (h, w)), name in sorted(names.items()))
        yield f"expected shards of one storage and panel shape, found {found}"


def _index(
    root: str,
    shards: Sequence[ShardInfo],
    tables: dict[Split, pd.DataFrame],
    layouts: Layouts,
    metadata: dict[str, Any],
    bad: tuple[BadRecord, ...],
    needs: Split,
    notes: tuple[str, ...] = (),
) -> DataIndex:
    for problem in (*layout_problems(layouts), *id_problems(shards, tables)):
        raise DataError(f"{root}: {problem}. Pack the set again, or remove the odd shards.")
    if not len(tables[needs]):
        raise DataError(
            f"{root}: no {needs} record can be used ({len(bad)} bad ones). Copy or write the set again."
        )
    (storage, panel_shape), *_ = layouts
    return DataIndex(
        root=root,
        storage=storage,
        panel_shape=panel_shape,
        shards=tuple(shards),
        train=tables["train"],
        test=tables["test"],
        fingerprint=fingerprint(tables),
        metadata=metadata,
        bad_records=bad,
        notes=notes,
    )


def stored_tables(
    root: str, metadata: dict[str, Any], shards: Sequence[ShardInfo]
) -> dict[Split, pd.DataFrame] | None:
    """The tables of `index.csv.gz`, or None if it is missing, damaged, or does not match the shards."""
    listed = {shard.name: shard.size_bytes for shard in shards}
    described = {shard["name"]: shard["size_bytes"] for shard in metadata.get("shards", ())}
    fs, folder = filesystem(root)
    path = f"{folder}/{INDEX_FILE}"
    with reaching(f"{root}/{INDEX_FILE}", "read", StorageError):
        if listed != described or not fs.exists(path):
            return None
        packed = fs.cat_file(path)
    if hashlib.sha256(packed).hexdigest() != metadata.get("index_sha256"):
        return None
    both = from_csv(gzip.decompress(packed), {"image_id", "group", "kind"})
    tables: dict[Split, pd.DataFrame] = {}
    for split in SPLITS:
        table = both[both["split"] == split].reset_index(drop=True)[list(_columns(split))]
        for column in ("group", "kind"):
            table[column] = table[column].astype(object).where(table[column] != "", None)
        tables[split] = table.astype(_columns(split))
    return tables


def _columns(split: Split) -> dict[str, Any]:
    return {name: kind for name, kind in _COLUMNS.items() if split == "train" or name != "target"}


def _where(shard: ShardInfo, record: int) -> str:
    return f"{shard.name} record {record}"


class _ChecksumReader:
    """A stream that computes the checksum of what is read from it, so that verifying reads a file only once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._crc = google_crc32c.Checksum()

    def read(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        self._crc.update(data)
        return data

    def drain(self) -> None:
        while self.read(1 << 20):
            pass

    def crc32c(self) -> str:
        return self._crc.hexdigest().decode()
