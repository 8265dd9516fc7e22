"""Kaggle's folder of .npy cadences turned into stratified shards, one file in memory at a time.

Expected: `train/**/*.npy` and `test/**/*.npy`, float16 (6, time, frequency) named by their id,
`train_labels.csv` (id, target) and optionally `sample_submission.csv` (id, …), which then lists the test files
to expect. A column of these tables may name groups. Without one, a file's folder is its group, unless folders only sort
files by how their ids begin, as in Kaggle's `train/0/0a1b2c.npy`: such folders say nothing about the cadences.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from setibl_ray.core.errors import DataError
from setibl_ray.core.randomness import generator
from setibl_ray.core.tables import from_csv
from setibl_ray.core.terminal import one_line
from setibl_ray.seti.cadence import N_PANELS
from setibl_ray.seti.formats.records import Record, quantise
from setibl_ray.seti.formats.shards import SPLITS, Split
from setibl_ray.seti.formats.writer import ShardWriter, WrittenShard, new_folder, write_dataset, write_shards
from setibl_ray.seti.observations import conditioning

LABELS_FILE = "train_labels.csv"
SUBMISSION_FILE = "sample_submission.csv"
DF_HZ, DT_S = 2.7939677238464355, 1.0737418240  # matches Kaggle's snippets: 273 bins in 293 s


class Source(NamedTuple):
    """One .npy file and what is known about it."""

    path: Path
    image_id: str
    target: int | None
    group: str | None


class PackTask(NamedTuple):
    folder: str
    split: Split
    shard: int
    sources: tuple[Source, ...]
    panel_shape: tuple[int, int]
    robust: bool


def pack(
    kaggle: str | Path,
    out: str | Path,
    *,
    n_shards: int = 20,
    n_test_shards: int = 10,
    seed: int = 0,
    group_column: str | None = None,
    df_hz: float = DF_HZ,
    dt_s: float = DT_S,
    robust: bool = False,
    test_only: bool = False,
    n_processes: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    on_shard: Callable[[WrittenShard], None] = lambda shard: None,
) -> Path:
    """Write Kaggle's folder as shards, stratified by target and group.

    Args:
      kaggle: the unzipped folder.
      out: a local folder that does not exist or is empty.
      n_shards, n_test_shards: train and test shards.
      seed: decides the shard of each cadence and its position there.
      group_column: column of the tables that names groups; by default files' folders do, as described above.
      df_hz, dt_s: width of a frequency bin and length of a time bin.
      robust: bring panels to sigmas as observations are (`observations.conditioning`): a bright line then does not
        raise the deviation that panels are divided by, and so does not hide a weak one.
      test_only: there are no train files and no labels.
      n_processes: by default one per core.
      say: takes lines about what was left out.
      on_shard: called after each shard, e.g. to show progress.

    Raises:
      DataError: labels or files missing, each naming some; a file that is not a finite (6, time, frequency)
        array of the first one's shape; fewer cadences than shards; `out` holding something already.
    """
    root, path = Path(kaggle), Path(os.path.abspath(out))
    sources = find_sources(root, group_column, say, test_only=test_only)
    shape = _load((sources["train"] or sources["test"])[0].path, writable=False).shape
    panel_shape = (shape[1], shape[2])
    with new_folder(path) as folder:
        n_shards_of = {"train": n_shards, "test": n_test_shards}
        tasks = [
            PackTask(str(folder), split, shard, dealt, panel_shape, robust)
            for split in SPLITS
            for shard, dealt in enumerate(deal(sources[split], n_shards_of[split], split, seed))
        ]
        shards = write_shards(write_shard, tasks, n_processes=n_processes, on_shard=on_shard)
        made = {"command": "pack", "shards": n_shards, "test_shards": n_test_shards, "seed": seed}
        if group_column:
            made["group_column"] = group_column
        facts = {"conditioning": conditioning.definition()} if robust else {}
        write_dataset(folder, shards, panel_shape, made, df_hz=df_hz, dt_s=dt_s, **facts)
    return path


def find_sources(
    root: Path,
    group_column: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    *,
    test_only: bool = False,
) -> dict[str, list[Source]]:
    """Every training and test .npy file, by id, checked against the labels; with `test_only` the test files alone.

    Raises:
      DataError: no labels, ids twice, targets other than 0 and 1, labels without files or files without
        labels, no such column of groups, a file whose name is not text.
    """
    needed: Split = "test" if test_only else "train"
    splits: tuple[Split, ...] = ("test",) if test_only else SPLITS
    files = {split: _npy_files(root / split, say) for split in splits}
    if not files[needed]:
        raise DataError(
            f"{root / needed} holds no .npy file. Expected Kaggle's folder with {needed}/**/*.npy."
        )
    for paths in files.values():
        for first, second in pairwise(paths):
            if first.stem == second.stem:
                raise DataError(f"id {first.stem} appears twice: {first} and {second}. Remove one.")
    if test_only:
        groups = _groups(root, files, {}, None)
        tests = [Source(path, path.stem, None, groups["test"].get(path.stem)) for path in files["test"]]
        return {"train": [], "test": tests}
    named = [group_column] if group_column else []
    labels = _read_csv(root / LABELS_FILE, ["id", "target", *named])
    values = pd.to_numeric(labels["target"], errors="coerce")
    odd = labels[~values.isin((0, 1))]
    if len(odd):
        line, found = odd.index[0] + 2, odd["target"].iloc[0]
        raise DataError(f"{root / LABELS_FILE} line {line}: expected target 0 or 1, found {found!r}")
    targets = dict(zip(labels["id"], values.astype(int)))
    tables: dict[Split, pd.DataFrame] = {"train": labels}
    _check_same_ids(root / LABELS_FILE, labels["id"], root / "train", files["train"])
    if (root / SUBMISSION_FILE).exists():
        tables["test"] = _read_csv(root / SUBMISSION_FILE, ["id"])
        _check_same_ids(root / SUBMISSION_FILE, tables["test"]["id"], root / "test", files["test"])
    groups = _groups(root, files, tables, group_column)
    return {
        split: [
            Source(path, path.stem, targets.get(path.stem), groups[split].get(path.stem)) for path in paths
        ]
        for split, paths in files.items()
    }


def _npy_files(folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Every .npy file below a folder except hidden ones, by name; links to folders are followed.

    macOS puts a `._NAME.npy` of its own beside each file that it copies to other file systems.
    """
    found, hidden, seen = [], 0, set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        arrays = [name for name in names if name.endswith(".npy")]
        is_hidden = any(part.startswith((".", "__MACOSX")) for part in Path(parent).relative_to(folder).parts)
        kept = [] if is_hidden else [name for name in arrays if not name.startswith(".")]
        hidden += len(arrays) - len(kept)
        found += [Path(parent, name) for name in kept]
    if hidden:
        say(
            f"{folder}: {hidden} hidden .npy files are left out (names that begin with a dot, such as ._x.npy)"
        )
    for path in found:
        if not path.stem.isascii() and any(0xDC80 <= ord(character) <= 0xDCFF for character in path.stem):
            raise DataError(f"{folder}: the name of {path.stem!r}.npy is no UTF-8 text. Rename it.")
    return sorted(found, key=lambda path: path.stem)


def _groups(
    root: Path, files: dict[Split, list[Path]], tables: dict[Split, pd.DataFrame], column: str | None
) -> dict[Split, dict[str, str]]:
    """The group of each id that has one."""
    groups: dict[Split, dict[str, str]] = {split: {} for split in files}
    if column:
        for split, table in tables.items():
            if column in table:
                groups[split] = {key: name for key, name in zip(table["id"], table[column]) if name}
        return groups
    folders = {
        split: {path.stem: path.parent.name for path in paths if path.parent != root / split}
        for split, paths in files.items()
    }
    begins = all(key.startswith(name) for named in folders.values() for key, name in named.items())
    return groups if begins else folders


def deal(sources: list[Source], n_shards: int, split: str, seed: int) -> list[tuple[Source, ...]]:
    """Deal sources out like cards, target by target and group by group: for each target, shards differ by at most
    one.

    Raises:
      DataError: fewer sources than shards.
    """
    if not sources:
        return []
    if len(sources) < n_shards:
        raise DataError(f"{len(sources)} {split} files do not fill {n_shards} shards; ask for fewer shards")
    rng = generator(seed, "pack", split)
    shuffled = [sources[i] for i in rng.permutation(len(sources))]
    ordered = sorted(shuffled, key=lambda source: (source.target or 0, source.group or ""))
    hands = [ordered[shard::n_shards] for shard in range(n_shards)]
    return [tuple(hand[i] for i in rng.permutation(len(hand))) for hand in hands]


def write_shard(task: PackTask) -> WrittenShard:
    """Quantise and write one shard; runs in its own process."""
    with ShardWriter(task.folder, task.split, task.shard) as writer:
        for source in task.sources:
            cadence = _load(source.path, writable=task.robust)
            if cadence.shape[1:] != task.panel_shape:
                expected = (N_PANELS, *task.panel_shape)
                raise DataError(
                    f"{source.path}: expected shape {expected} like the first file, found {cadence.shape}"
                )
            panels = (
                conditioning.to_bytes(conditioning.condition(cadence).z) if task.robust else quantise(cadence)
            )
            writer.write(Record(source.image_id, source.target, source.group, float("nan"), None, panels))
    return writer.written


def _load(path: Path, *, writable: bool) -> np.ndarray:
    """(6, time, frequency) float32, every value finite; the mapped file itself where it need not be writable."""
    try:
        # Mapped, not read: a header that claims terabytes is refused before as much memory is asked for.
        with np.errstate(over="ignore"):
            cadence = np.asarray(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError, TypeError, OverflowError, EOFError) as error:
        if zipfile.is_zipfile(path):
            raise DataError(
                f"{path} is a .npz archive, not an array. Save its array with numpy.save."
            ) from None
        if isinstance(error, OverflowError) or re.search("mmap|too big", str(error)):
            raise DataError(
                f"{path}: its header promises more than its {path.stat().st_size} bytes hold"
            ) from None
        raise DataError(f"{path} is not a .npy array: {one_line(error)}") from None
    if cadence.ndim != 3 or len(cadence) != N_PANELS or 0 in cadence.shape:
        raise DataError(f"{path}: expected shape ({N_PANELS}, time, frequency), found {cadence.shape}")
    if cadence.dtype.kind != "f":
        raise DataError(f"{path}: expected a float array, found {cadence.dtype}")
    # Converted before the check, which takes ten times as long for half floats.
    if cadence.dtype == np.float16:
        cadence = widen(cadence)
    else:
        with np.errstate(over="ignore"):
            cadence = cadence.astype(np.float32, copy=writable)
    bad = np.count_nonzero(~np.isfinite(cadence))
    if bad:
        raise DataError(f"{path}: {bad} of {cadence.size} values are not finite. Download the file again.")
    return cadence


def widen(half: np.ndarray) -> np.ndarray:
    """`half.astype(np.float32)`, exactly, in a fifth of the time: NumPy converts one half float after another.

    After shifting, the exponent of a half float is that of a float 112 powers of two lower. Infinities and NaN, whose
    exponent is all ones, become infinity.
    """
    bits = half.view(np.int16).astype(np.int32)  # the sign fills the upper half
    bits <<= 13
    bits &= ~np.int32(0x70001FFF)  # all between the sign and the exponent
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)
    beyond = np.abs(wide) > 65504  # the largest half float
    if beyond.any():
        wide[beyond] = np.inf
    return wide


def _read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = from_csv(path.read_bytes(), text=None)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Expected a table with columns {', '.join(columns)}.") from None
    except OSError as error:
        raise DataError(f"{path} could not be read: {error.strerror}") from None
    except ValueError as error:  # pandas' parser errors, and bytes that are not text
        raise DataError(f"{path} is not a CSV table: {one_line(error)}") from None
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(f"{path}: expected columns {', '.join(columns)}, found {', '.join(table.columns)}")
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise DataError(f"{path}: id {twice.iloc[0]} appears twice. Remove one line.")
    return table


def _check_same_ids(csv: Path, ids: pd.Series, folder: Path, files: list[Path]) -> None:
    listed, found = set(ids), {path.stem for path in files}
    problems = []
    if listed - found:
        problems.append(f"{len(listed - found)} ids have no file under {folder} ({_some(listed - found)})")
    if found - listed:
        problems.append(
            f"{len(found - listed)} files under {folder} are not listed ({_some(found - listed)})"
        )
    if problems:
        raise DataError(f"{csv}: {' and '.join(problems)}. Complete the download, or use the matching table.")


def _some(ids: set[str]) -> str:
    return ", ".join(sorted(ids)[:3]) + (", …" if len(ids) > 3 else "")
