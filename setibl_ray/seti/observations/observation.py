"""Six files as one observation: which of them are ON, when each spectrum was taken, its coarse channels.

An observation is read in the order of `tstart`. One that begins OFF the target (BACADA) is reversed in time, which
makes it A, D, A, C, A, B: everything downstream sees ON first, and drift rates stay right because every row has its
own time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from fsspec.implementations.local import LocalFileSystem

from setibl_ray.core.errors import DataError, StorageError
from setibl_ray.core.storage import filesystem, reaching
from setibl_ray.seti.cadence import N_PANELS, OFF, ON
from setibl_ray.seti.observations.reading import Header, read_header, read_power

COARSE_HZ = 2.9296875e6  # Green Bank's polyphase channel
FINE_HZ = 2.7939677238464355  # and a channel of its fine product
LONGEST_SESSION_H = 3.0
LIST_COLUMNS = ["observation", "session", "band", *(f"file_{i}" for i in range(1, N_PANELS + 1))]
_DAY_S = 86400.0


class Channel(NamedTuple):
    """A coarse channel: fine channels low … high - 1, counted upwards; `dc` is its spike, None where there is none."""

    number: int
    low: int
    high: int
    dc: int | None


@dataclass(frozen=True)
class Observation:
    """Six files that fit together.

    Attributes:
      name, session, band: what they are called; a session must not be both trained on and searched.
      headers: in the order of the panels, ON first.
      time_s: (6, n_times) middle of each spectrum, seconds from the middle of the observation.
      notes: what is unusual about the files, one sentence each.
      n_coarse: coarse channels; None for as many of Green Bank's 2.93 MHz as fit evenly, else one.
    """

    name: str
    session: str
    band: str
    headers: tuple[Header, ...]
    time_s: np.ndarray = field(repr=False, compare=False)
    notes: tuple[str, ...] = ()
    n_coarse: int | None = None

    @property
    def df_hz(self) -> float:
        return self.headers[0].df_hz

    @property
    def dt_s(self) -> float:
        return self.headers[0].tsamp_s

    @property
    def coarseness(self) -> float:
        """Factor for distances in Hz that are chosen for Green Bank's fine product; 1 in finer ones."""
        return max(1.0, self.df_hz / FINE_HZ)

    @property
    def n_times(self) -> int:
        return self.headers[0].n_times

    @property
    def is_reversed(self) -> bool:
        return bool(self.time_s[0, 0] > self.time_s[-1, -1])

    @property
    def first_s(self) -> float:
        """When the observation begins, on the scale of `time_s`."""
        return float(self.time_s.min() - self.dt_s / 2)

    @property
    def last_s(self) -> float:
        return float(self.time_s.max() + self.dt_s / 2)

    def mhz(self, channel: float | np.ndarray) -> float | np.ndarray:
        """Frequency of a fine channel, counted upwards; fractions are between centres."""
        return self.headers[0].lowest_mhz + np.asarray(channel) * (self.df_hz / 1e6)

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        header = self.headers[0]
        n = header.n_channels
        fine = round(COARSE_HZ / header.df_hz)
        count = self.n_coarse or (n // fine if fine and n % fine == 0 else 0)
        if not count:
            return (Channel(0, 0, n, None),)
        fine = n // count
        # The spike is in the middle, counted in the order of the file.
        dc = fine // 2 if header.foff_mhz > 0 else fine - 1 - fine // 2
        return tuple(Channel(i, i * fine, (i + 1) * fine, i * fine + dc) for i in range(count))

    def read(self, low: int, high: int) -> np.ndarray:
        """(6, n_times, high - low) float32 power, panels ON first, rows in the order of `time_s`."""
        power = np.empty((N_PANELS, self.n_times, high - low), np.float32)
        for panel, header in zip(power, self.headers):
            panel[:] = read_power(header, low, high)[:: -1 if self.is_reversed else 1]
        return power


def open_observation(
    files: Sequence[str],
    *,
    name: str | None = None,
    session: str | None = None,
    band: str = "",
    n_coarse: int | None = None,
) -> Observation:
    """Read and check six headers.

    Args:
      files: paths or URLs of .h5 or .fil files, in any order if their tstart values differ.
      name: by default the target's name.
      session: by default the day, as an integer MJD.
      band: by default the file's lowest frequency in MHz.
      n_coarse: coarse channels of a file.

    Raises:
      DataError: not six files; an unsound file; files that do not fit together, naming file and field.
    """
    if len(files) != N_PANELS:
        few = " (an ABABA or three-of-five cadence is not one of six panels)" if len(files) == 5 else ""
        names = ", ".join(file.rsplit("/", 1)[-1] for file in files) or "none"
        raise DataError(f"expected six files, ABACAD or BACADA, found {len(files)}{few}: {names}")
    if len(set(files)) < N_PANELS:
        twice = next(file for file in files if list(files).count(file) > 1)
        raise DataError(f"{twice} is given twice. Expected six different files.")
    with ThreadPoolExecutor(N_PANELS) as pool:  # six objects of a store at once
        headers = list(pool.map(read_header, files))
    first = headers[0]
    for other in headers[1:]:
        for field_name, a, b, tolerance in (
            ("nchans", first.n_channels, other.n_channels, 0),
            ("spectra", first.n_times, other.n_times, 0),
            ("foff", first.foff_mhz, other.foff_mhz, 1e-6 * abs(first.foff_mhz)),
            ("fch1", first.fch1_mhz, other.fch1_mhz, 0.01 * abs(first.foff_mhz)),
            ("tsamp", first.tsamp_s, other.tsamp_s, 1e-6 * first.tsamp_s),
        ):
            if not abs(a - b) <= tolerance:
                raise DataError(
                    f"{other.path}: {field_name}: expected {a!r} as in {first.name}, found {b!r}. "
                    "Six files of one observation and one product fit together."
                )
    ordered, starts_s, notes_on_time = _in_time(headers)
    reverse, notes_on_order = _on_first(ordered)
    time_s = starts_s[:, None] + (np.arange(first.n_times) + 0.5) * first.tsamp_s
    time_s -= (time_s[0, 0] + time_s[-1, -1]) / 2
    if n_coarse and first.n_channels % n_coarse:
        raise DataError(
            f"{first.path}: nchans: {first.n_channels} channels do not divide into {n_coarse} coarse channels"
        )
    if reverse:
        ordered, time_s = ordered[::-1], time_s[::-1, ::-1].copy()
    return Observation(
        name=name or ordered[0].source or Path(ordered[0].name).stem,
        session=session or f"{int(ordered[0].tstart_mjd)}",
        band=band or f"{first.lowest_mhz:.0f}MHz",
        headers=tuple(ordered),
        time_s=time_s,
        notes=(*notes_on_time, *notes_on_order),
        n_coarse=n_coarse,
    )


def find_files(pattern: str) -> list[str]:
    """Files of a glob pattern, sorted by name; later their tstart decides their order."""
    fs, place = filesystem(pattern)
    with reaching(pattern, "read", StorageError):
        found = sorted(fs.glob(place))
    if not found:
        raise DataError(f"{pattern}: no such file")
    return [name if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(name) for name in found]


def read_list(path: str, *, n_coarse: int | None = None) -> list[Observation]:
    """Observations of a CSV with the columns observation, session, band and file_1 … file_6.

    Relative paths are relative to the CSV's folder.

    Raises:
      DataError: the table or one of its observations is unsound; names line and file.
    """
    columns = ", ".join(LIST_COLUMNS)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Expected a table with columns {columns}.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a CSV table: {' '.join(str(error).split())}") from None
    missing = [column for column in LIST_COLUMNS if column not in table]
    if missing:
        raise DataError(f"{path}: expected columns {columns}; {', '.join(missing)} is missing")
    if not len(table):
        raise DataError(f"{path}: expected one line per observation, found none")
    folder = path.rpartition("/")[0] or "."  # of a path or a URL
    observations: list[Observation] = []
    for line, row in enumerate(table[LIST_COLUMNS].itertuples(index=False), start=2):
        files = [f"{folder}/{file}" if _is_relative(file) else file for file in row[3:] if file]
        if row[0] in {observation.name for observation in observations}:
            raise DataError(
                f"{path} line {line}: observation {row[0]!r} appears twice. Give each a name of its own."
            )
        try:
            observation = open_observation(files, name=row[0], session=row[1], band=row[2], n_coarse=n_coarse)
        except DataError as error:
            raise DataError(f"{path} line {line}: {error}") from None
        observations.append(observation)
    return observations


def same_product(observations: Sequence[Observation]) -> None:
    """Raises:
    DataError: observations differ in frequency or time resolution or number of spectra.
    """
    first = observations[0]
    for other in observations[1:]:
        for name, a, b in (
            ("foff", first.df_hz, other.df_hz),
            ("tsamp", first.dt_s, other.dt_s),
            ("spectra", first.n_times, other.n_times),
        ):
            if abs(a - b) > 1e-3 * a:
                raise DataError(
                    f"{other.headers[0].path}: {name}: expected {a:g} as in {first.headers[0].name}, found {b:g}"
                )


def _in_time(headers: Sequence[Header]) -> tuple[list[Header], np.ndarray, list[str]]:
    """Headers by tstart, and their starts in seconds (6,)."""
    mjd = np.array([header.tstart_mjd for header in headers])
    length_s = headers[0].n_times * headers[0].tsamp_s
    if np.ptp(mjd) * _DAY_S < 1.0:
        note = (
            f"all six files have tstart {mjd[0]:.6f}, as setigen writes by default: they are taken in the order given, "
            "without pauses between them"
        )
        return list(headers), np.arange(N_PANELS) * length_s, [note]
    order = np.argsort(mjd, kind="stable")
    ordered = [headers[i] for i in order]
    starts_s = (mjd[order] - mjd[order[0]]) * _DAY_S
    if starts_s[-1] > LONGEST_SESSION_H * 3600 + 5 * length_s:
        gap = int(np.argmax(np.diff(starts_s)))
        hours = np.diff(starts_s)[gap] / 3600
        raise DataError(
            f"{ordered[gap + 1].path}: tstart: {hours:.1f} h after that of {ordered[gap].name}. "
            "The files are of two sessions; give the six of one."
        )
    gaps = np.diff(starts_s) - length_s
    if gaps.min() < -0.1 * headers[0].tsamp_s - 1.0:
        at = int(np.argmin(gaps))
        raise DataError(
            f"{ordered[at + 1].path}: tstart: {-gaps[at]:.1f} s before {ordered[at].name} ends. "
            "Files of one observation follow each other."
        )
    notes = (
        ["the files are taken in the order of their tstart"] if list(order) != list(range(N_PANELS)) else []
    )
    return ordered, starts_s, notes


def _on_first(headers: Sequence[Header]) -> tuple[bool, list[str]]:
    """Whether the cadence begins OFF, from the names of sources."""
    sources = [header.source for header in headers]
    on, off = ({sources[i] for i in positions} for positions in (ON, OFF))
    if len(set(sources)) == 1:
        return False, ["all files name the same source: the first, third and fifth are taken as ON"]
    if len(on) == 1 and not on & off:
        notes = ["the OFF files name one source (ABABAB)"] if len(off) == 1 else []
        return False, notes
    if len(off) == 1 and not on & off:
        return True, [
            "the observation begins OFF its target (BACADA): it is searched from its end to its beginning"
        ]
    raise DataError(
        f"{headers[0].path}: source_name: expected one target in turn with others (ABACAD or BACADA), found "
        f"{', '.join(sources)}"
    )


def _is_relative(file: str) -> bool:
    return "://" not in file and not Path(file).is_absolute()


def channels_of(observations: Sequence[Observation]) -> Iterator[tuple[Observation, Channel]]:
    for observation in observations:
        for channel in observation.channels:
            yield observation, channel
