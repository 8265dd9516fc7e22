"""The one place that writes and reads CSV files, from which any text comes back as it went in.

A text column stays text: "000123" and "1e5" are not numbers, "NaN" and "" not missing values. An id may hold commas,
quotes and line ends; only NUL is impossible in a CSV, and records that hold one are refused when they are read.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection

import pandas as pd

TEXT = frozenset({"id", "group"})
"""Columns that hold text in every table."""

_QUOTED_OR_END = re.compile(rb'("(?:[^"]|"")*")|\r\n')


def text_columns(table: pd.DataFrame) -> list[str]:
    """Names of the columns that hold neither numbers nor truth values."""
    return [str(name) for name in table.select_dtypes(exclude=["number", "bool"])]


def to_csv(table: pd.DataFrame) -> bytes:
    """`table` without its index as UTF-8, lines ended by a line feed; a missing value is an empty cell."""
    plain = table.to_csv(index=False, lineterminator="\n").encode()
    if b"\r" not in plain:
        return plain
    # Only since Python 3.13 does csv quote a line end that is not its own; unquoted, it ends the row for readers.
    both = table.to_csv(index=False, lineterminator="\r\n").encode()
    return _QUOTED_OR_END.sub(lambda found: found[1] or b"\n", both)


def from_csv(content: bytes, text: Collection[str] | None = TEXT) -> pd.DataFrame:
    """Read what `to_csv` or a user wrote.

    Args:
      content: the file.
      text: columns to leave as they are; None for all. In the others an empty cell is a missing value.

    Raises:
      ValueError: it is not a table, or not UTF-8.
    """
    header = next(csv.reader(io.StringIO(content.decode("utf-8-sig").partition("\n")[0], newline="")), [])
    numbers = [] if text is None else [name for name in header if name not in text]
    return pd.read_csv(
        io.BytesIO(content),
        dtype={name: str for name in header if name not in numbers},
        keep_default_na=False,
        na_values={name: ["", "nan"] for name in numbers},
        float_precision="round_trip",  # the default is off by a bit in some values
        encoding="utf-8-sig",
    )
