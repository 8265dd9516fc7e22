"""Reads a whole data set, with every checksum and panel, and lists everything that is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pandas as pd
from rich.table import Column, Table

from setibl_ray.seti.cadence import CLASS_NAMES
from setibl_ray.seti.formats.shards import (
    INDEX_FILE,
    ShardInfo,
    ShardScan,
    Split,
    combined,
    count_problem,
    fingerprint,
    id_problems,
    layout_problems,
    list_shards,
    read_metadata,
    scan_shard,
    stored_tables,
)


@dataclass(frozen=True, eq=False)
class Report:
    """The result of verifying. `problems` are sentences; none if the set is sound. `notes` say what is not used."""

    shards: tuple[ShardInfo, ...]
    tables: dict[Split, pd.DataFrame]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    fingerprint: str


def verify(
    root: str, *, threads: int | None = None, on_shard: Callable[[ShardInfo], None] = lambda shard: None
) -> Report:
    """Decode every record of a set and compare it with its names, checksums and index.

    Args:
      root: folder or URL.
      threads: shards read at once; by default one per core.
      on_shard: called after each shard, e.g. to show progress.

    Raises:
      DataError: there is no set (`list_shards`, `read_metadata`); everything else is listed in the
        report.
    """
    shards = list_shards(root, needs=None)
    metadata = read_metadata(root)

    def scan(shard: ShardInfo) -> ShardScan:
        found = scan_shard(shard, skip=True)
        on_shard(shard)
        return found

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        scans = list(pool.map(scan, shards))
    tables, layouts, notes = combined(shards, scans)

    problems: list[str] = []
    described = {shard["name"]: shard for shard in metadata.get("shards", ())}
    for shard, found in zip(shards, scans):
        problems += map(str, found.bad)
        if miscount := count_problem(shard, found.n_found):
            problems.append(miscount)
        expected = described.pop(shard.name, None)
        if metadata and expected is None:
            problems.append(f"{shard.name} is not listed in dataset.json")
        elif expected and expected["crc32c"] != found.crc32c:
            problems.append(
                f"{shard.name}: dataset.json says CRC32C {expected['crc32c']}, the file has {found.crc32c}"
            )
    problems += [f"{name} is listed in dataset.json but missing" for name in described]
    problems += layout_problems(layouts)
    problems += id_problems(shards, tables)
    if metadata and not problems:
        stored = stored_tables(root, metadata, shards)
        if stored is None:
            problems.append(f"{INDEX_FILE} is missing or damaged; readers scan the shards instead")
        elif any(not stored[split].equals(table) for split, table in tables.items()):
            problems.append(f"{INDEX_FILE} differs from the shards. Remove it.")
    return Report(tuple(shards), tables, tuple(problems), notes, fingerprint(tables))


def balance_tables(report: Report) -> tuple[Table, Table]:
    """For a terminal: classes, groups and kinds of every shard; then records and S/N of every kind."""
    by_shard = Table("shard", *_right("records", *CLASS_NAMES, "groups", "kinds"))
    for split, table in report.tables.items():
        names = [shard.name for shard in report.shards if shard.split == split]
        for position, name in enumerate(names):
            by_shard.add_row(name, *_balance(table[table["shard"] == position]))
        if names:
            by_shard.add_row(f"all {split}", *_balance(table), style="bold", end_section=True)
    by_kind = Table("kind", *_right(*report.tables, "S/N"))
    both = pd.concat(report.tables.values())
    for kind, rows in both.groupby("kind"):
        counts = (str(int((table["kind"] == kind).sum())) for table in report.tables.values())
        known = rows["snr"].dropna()
        by_kind.add_row(str(kind), *counts, f"{known.min():.0f}–{known.max():.0f}" if len(known) else "–")
    return by_shard, by_kind


def _right(*headings: str) -> list[Column]:
    return [Column(heading, justify="right") for heading in headings]


def _balance(table: pd.DataFrame) -> list[str]:
    classes = [
        str(int((table["target"] == c).sum())) if "target" in table else "–" for c in range(len(CLASS_NAMES))
    ]
    return [str(len(table)), *classes, str(table["group"].nunique()), str(table["kind"].nunique())]
