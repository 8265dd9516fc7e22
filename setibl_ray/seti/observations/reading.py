"""One filterbank file, .h5 or .fil: its header, and its power, read for one range of channels at a time.

Channels are counted upwards in frequency whatever the sign of `foff`, so that nothing downstream has to check. Two
polarisations are added up; of four Stokes parameters, the first is read.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import IO, Any

import numpy as np

from setibl_ray.core.errors import DataError, StorageError
from setibl_ray.core.storage import filesystem, reaching
from setibl_ray.core.terminal import one_line

_DTYPES: dict[int, np.dtype] = {
    8: np.dtype("u1"),
    16: np.dtype("<u2"),
    32: np.dtype("<f4"),
    64: np.dtype("<f8"),
}
_FIELDS = ("fch1", "foff", "nchans", "tsamp", "tstart")


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
      fch1_mhz, foff_mhz: centre of the file's first channel, and the step to the next, negative if frequencies fall.
      n_channels, n_ifs, n_times: shape of the data.
      tsamp_s: length of a spectrum.
      tstart_mjd: when the first one began.
      n_bits: 8, 16, 32 or (what setigen writes) 64.
      ra_h, dec_deg: of the source; nan where they are not given.
    """

    path: str
    source: str
    fch1_mhz: float
    foff_mhz: float
    n_channels: int
    n_ifs: int
    n_times: int
    tsamp_s: float
    tstart_mjd: float
    n_bits: int
    ra_h: float
    dec_deg: float
    size_bytes: int
    data_start: int = 0  # of a .fil file, bytes

    @property
    def df_hz(self) -> float:
        return abs(self.foff_mhz) * 1e6

    @property
    def full_scale(self) -> float | None:
        """The highest value that `read_power` can give for 8-bit samples, which may be saturated."""
        return 255.0 * self.n_summed if self.n_bits == 8 else None

    @property
    def n_summed(self) -> int:
        """How many IFs are read: both of two polarisations, only the first of four Stokes parameters."""
        return 2 if self.n_ifs == 2 else 1

    @property
    def lowest_mhz(self) -> float:
        """Centre of the lowest channel."""
        return self.fch1_mhz + min(self.foff_mhz, 0.0) * (self.n_channels - 1)

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


def read_header(path: str) -> Header:
    """The header of a .h5 or .fil file, checked against the file's size.

    Raises:
      DataError: not such a file, truncated, or a field that is missing or impossible.
      StorageError: it cannot be reached.
    """
    if path.endswith(".h5"):
        with _opened_h5(path) as (data, size):
            return _header(path, _h5_fields(data), data.shape, size, n_bits=8 * data.dtype.itemsize)
    if path.endswith(".fil"):
        with _opened(path) as (stream, size):
            fields, start = _fil_fields(path, stream)
            n_bits, n_ifs, n_channels = (
                int(fields.get(k, d)) for k, d in (("nbits", 32), ("nifs", 1), ("nchans", 0))
            )
            row = max(1, n_bits // 8 * n_ifs * n_channels)
            if (size - start) % row:
                raise DataError(
                    f"{path}: expected spectra of {row} bytes after the header, found {size - start} bytes, which is "
                    f"{(size - start) / row:.2f} spectra: the file is truncated, or nchans or nbits is wrong"
                )
            return _header(
                path, fields, ((size - start) // row, n_ifs, n_channels), size, n_bits=n_bits, start=start
            )
    raise DataError(f"{path}: expected a file named .h5 or .fil")


def read_power(header: Header, low: int, high: int) -> np.ndarray:
    """Power of channels low … high - 1, counted upwards in frequency.

    Returns:
      (n_times, high - low) float32, in the file's unit.

    Raises:
      DataError: the file does not hold what its header promised.
      StorageError: it cannot be reached.
    """
    n = header.n_channels
    first, last = (low, high) if header.foff_mhz > 0 else (n - high, n - low)
    if header.path.endswith(".h5"):
        with _opened_h5(header.path) as (data, _):
            if data.shape != (header.n_times, header.n_ifs, n):
                raise DataError(
                    f"{header.path}: data has changed shape since its header was read, now {data.shape}"
                )
            raw = data[:, : header.n_summed, first:last]
    else:
        raw = _fil_block(header, first, last)
    power = (
        raw.sum(axis=1, dtype=np.float32) if raw.shape[1] > 1 else raw[:, 0].astype(np.float32, copy=False)
    )
    return power if header.foff_mhz > 0 else power[:, ::-1]


def _header(
    path: str, fields: Mapping[str, Any], shape: tuple[int, ...], size: int, *, n_bits: int, start: int = 0
) -> Header:
    missing = [name for name in _FIELDS if name not in fields]
    if missing:
        raise DataError(
            f"{path}: expected the header fields {', '.join(_FIELDS)}; {', '.join(missing)} is missing"
        )
    values = {name: _number(fields[name]) for name in _FIELDS}
    for name, value in values.items():
        if not np.isfinite(value):
            raise DataError(f"{path}: {name}: expected a number, found {one_line(repr(fields[name]))}")
    if len(shape) != 3 or shape[2] != values["nchans"] or 0 in shape:
        raise DataError(
            f"{path}: expected data (time, IF, {values['nchans']:.0f} channels), found {tuple(shape)}"
        )
    if n_bits not in _DTYPES:
        raise DataError(f"{path}: nbits: expected 8, 16, 32 or 64, found {n_bits}")
    if values["foff"] == 0 or values["tsamp"] <= 0:
        name = "tsamp" if values["foff"] else "foff"
        raise DataError(f"{path}: {name}: expected a number that is not 0, found {fields[name]}")
    return Header(
        path=path,
        source=str(fields.get("source_name", "")).strip(),
        fch1_mhz=values["fch1"],
        foff_mhz=values["foff"],
        n_channels=int(shape[2]),
        n_ifs=int(shape[1]),
        n_times=int(shape[0]),
        tsamp_s=values["tsamp"],
        tstart_mjd=values["tstart"],
        n_bits=n_bits,
        ra_h=_number(fields.get("src_raj")),
        dec_deg=_number(fields.get("src_dej")),
        size_bytes=size,
        data_start=start,
    )


def _number(value: Any) -> float:
    """A header's value, nan if it is no number: blimpy's headers hold an Angle, HDF5 files may hold text (05h12m)."""
    try:
        return float(getattr(value, "value", value))
    except (TypeError, ValueError):
        return float("nan")


@contextmanager
def _opened(path: str) -> Iterator[tuple[IO[bytes], int]]:
    fs, place = filesystem(path)
    with reaching(path, "read", StorageError):
        if not fs.isfile(place):
            raise DataError(f"{path} is missing")
        with fs.open(place, "rb") as stream:
            yield stream, int(fs.size(place))


@contextmanager
def _opened_h5(path: str) -> Iterator[tuple[Any, int]]:
    import h5py
    import hdf5plugin  # noqa: F401  (registers bitshuffle, in which telescopes' files are packed)

    with _opened(path) as (stream, size):
        # HDF5 reads a local file itself; through Python's streams it takes half as long again.
        local = isinstance(getattr(stream, "name", None), str) and os.path.exists(stream.name)
        try:
            with h5py.File(stream.name if local else stream, "r") as file:
                if not isinstance(file.get("data"), h5py.Dataset):
                    raise DataError(
                        f"{path}: expected a data set named data, found {', '.join(file) or 'none'}"
                    )
                yield file["data"], size
        except OSError as error:  # HDF5's word for everything
            reason = one_line(error)
            raise DataError(f"{path} is damaged or not an HDF5 file: {reason}. Copy it again.") from None


def _h5_fields(data: Any) -> dict[str, Any]:
    return {
        name: value.decode(errors="replace") if isinstance(value, bytes | np.bytes_) else value
        for name, value in data.attrs.items()
    }


def sigproc() -> ModuleType:
    """blimpy's module for the headers of .fil files; only they need it, and importing it takes two seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pkg_resources, which blimpy asks for its own version
        from blimpy.io import sigproc

    return sigproc


def _fil_fields(path: str, stream: IO[bytes]) -> tuple[dict[str, Any], int]:
    """Header fields as blimpy reads them, and where the data begin."""
    read_next_header_keyword = sigproc().read_next_header_keyword
    fields: dict[str, Any] = {}
    try:
        keyword, value, _ = read_next_header_keyword(stream)
        if keyword == "HEADER_START":
            while keyword != "HEADER_END":
                fields[keyword] = value
                keyword, value, _ = read_next_header_keyword(stream)
            return fields, stream.tell()
    except Exception as error:  # struct.error, IndexError, KeyError, UnicodeDecodeError: it reads what comes
        after = f" after {list(fields)[-1]}" if fields else ""
        raise DataError(f"{path}: its header cannot be read{after}: {type(error).__name__} {error}") from None
    raise DataError(f"{path}: expected a filterbank file, which begins with HEADER_START")


def _fil_block(header: Header, first: int, last: int) -> np.ndarray:
    """(n_times, n_summed, last - first) of the file's own type."""
    dtype = _DTYPES[header.n_bits]
    block = np.empty((header.n_times, header.n_summed, last - first), dtype)
    with _opened(header.path) as (stream, _):
        for time in range(header.n_times):
            for number in range(header.n_summed):
                at = (time * header.n_ifs + number) * header.n_channels + first
                stream.seek(header.data_start + at * dtype.itemsize)
                content = stream.read((last - first) * dtype.itemsize)
                if len(content) != (last - first) * dtype.itemsize:
                    raise DataError(f"{header.path}: spectrum {time} ends early: the file is truncated")
                block[time, number] = np.frombuffer(content, dtype)
    return block
