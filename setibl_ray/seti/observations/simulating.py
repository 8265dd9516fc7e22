"""Simulated observations as real files: for demos, tests, and studies of what a search finds.

They resemble Green Bank's fine product: chi-squared noise of 51 averaged samples, a bandpass and a DC spike in each
coarse channel, gains that differ between files, slews between them, and interference of other kinds than those that
`injection` paints: carriers that stay, drift, come and go, or walk; packets; broad humps. All interference shows in OFF
panels too. Needles are listed in truth.csv.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from setibl_ray.core.randomness import generator
from setibl_ray.seti.cadence import N_PANELS, OFF, ON
from setibl_ray.seti.formats.writer import new_folder
from setibl_ray.seti.making.synth import noise
from setibl_ray.seti.observations import signals
from setibl_ray.seti.observations.lines import span_s
from setibl_ray.seti.observations.observation import FINE_HZ, LIST_COLUMNS

DF_HZ, DT_S, N_TIMES = FINE_HZ, 18.253611008, 16
SLEW_S = (20.0, 60.0)
SLOW, FAST = (0.0, 0.25), (0.5, 2.0)  # |drift|, Hz/s


class Sky(NamedTuple):
    """What is simulated.

    Attributes:
      seed: of every random number.
      session: name; sessions begin a day apart.
      n_channels, n_coarse: fine and coarse channels of a file.
      fch1_mhz: centre of the highest channel.
      rfi_per_mhz: interfering signals.
      snr: S/N of needles, each with `per_snr` slow ones and, from 50, as many fast ones.
    """

    seed: int
    session: str = "session-1"
    n_channels: int = 3 << 18
    n_coarse: int = 3
    fch1_mhz: float = 1902.0
    rfi_per_mhz: float = 100.0
    snr: tuple[float, ...] = ()
    per_snr: int = 12
    n_times: int = N_TIMES
    tstart_mjd: float = 60600.0


def simulate(
    sky: Sky,
    folder: str | Path,
    *,
    suffix: Literal["h5", "fil"] = "h5",
    rising: bool = False,
    n_bits: int = 32,
    n_ifs: int = 1,
) -> Path:
    """Write six files, observation.csv (as `read_list` takes it) and truth.csv.

    Args:
      suffix: format of the files.
      rising: whether `foff` is positive.
      n_bits: 8, 16 or 32 bits per value.
      n_ifs: polarisations, each with an equal share of the power.

    Returns:
      The path of observation.csv.
    """
    path = Path(os.path.abspath(folder))
    power, truth, starts_s = observe(sky)
    with new_folder(path) as made:
        sources = ["TARGET" if panel in ON else f"OFF{panel // 2 + 1}" for panel in range(N_PANELS)]
        names = [f"{panel:02d}-{source.lower()}.{suffix}" for panel, source in enumerate(sources)]
        df_mhz = DF_HZ / 1e6
        for panel, name in enumerate(names):
            header: dict[str, Any] = {
                "machine_id": 20, "telescope_id": 6, "data_type": 1, "source_name": sources[panel],
                "fch1": sky.fch1_mhz - (sky.n_channels - 1) * df_mhz if rising else sky.fch1_mhz,
                "foff": df_mhz if rising else -df_mhz, "nchans": sky.n_channels, "nifs": n_ifs, "nbits": n_bits,
                "tsamp": DT_S, "tstart": sky.tstart_mjd + starts_s[panel] / 86400,
            }  # fmt: skip
            # A .fil file need not have these, and blimpy writes angles into it in a way of its own.
            if suffix == "h5":
                header |= {"src_raj": 12.5, "src_dej": 40.0 + panel % 2 * (panel + 1) / 2}
            values = power[panel] if rising else power[panel, :, ::-1]
            write_filterbank(made / name, header, _digitised(values, n_bits, n_ifs))
        row = [path.name, sky.session, f"{sky.fch1_mhz:.0f}MHz", *names]
        pd.DataFrame([row], columns=LIST_COLUMNS).to_csv(made / "observation.csv", index=False)
        truth.to_csv(made / "truth.csv", index=False)
    return path / "observation.csv"


def write_filterbank(path: Path, header: dict[str, Any], data: np.ndarray) -> None:
    """Write (time, IF, channel) of uint8, uint16 or float32 as blimpy would, by the path's suffix."""
    if path.suffix == ".h5":
        import h5py
        import hdf5plugin

        with h5py.File(path, "w") as file:
            file.attrs["CLASS"], file.attrs["VERSION"] = "FILTERBANK", "1.0"
            chunks = (1, 1, min(data.shape[2], 1 << 16))
            made = file.create_dataset("data", data=data, chunks=chunks, **hdf5plugin.Bitshuffle())
            for name, value in header.items():
                made.attrs[name] = value
        return
    from setibl_ray.seti.observations.reading import sigproc

    with path.open("wb") as file:
        file.write(sigproc().to_sigproc_keyword("HEADER_START"))
        for name, value in header.items():
            file.write(sigproc().to_sigproc_keyword(name, value))
        file.write(sigproc().to_sigproc_keyword("HEADER_END"))
        data.tofile(file)


def observe(sky: Sky) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """Simulate without writing.

    Returns:
      (6, time, channel) float32 power, channels upwards; the needles: f_mhz (at the middle of the observation), drift
      (Hz/s), width (Hz), snr; starts of files, seconds from the first.
    """
    n, rows = sky.n_channels, sky.n_times
    rng = generator(sky.seed, "observe", sky.session)
    length_s = rows * DT_S
    starts_s = np.concatenate([[0], np.cumsum(length_s + rng.uniform(*SLEW_S, N_PANELS - 1))])
    time_s = starts_s[:, None] + (np.arange(rows) + 0.5) * DT_S
    time_s = time_s - (time_s[0, 0] + time_s[-1, -1]) / 2
    df = 4 * round(DF_HZ * DT_S)
    power = np.empty((N_PANELS, rows, n), np.float32)
    fast = np.random.Generator(np.random.SFC64(rng.integers(2**63)))
    for panel in power:
        for row in panel:
            row[:] = noise(fast, (n,), df, 1.0)
    unit = np.sqrt(2 / df)
    for signal in _interference(rng, sky, time_s):
        signals.paint(power, signal, unit)
    truth = []
    for kind, (slow, quick), snr in _wanted(sky):
        rate = rng.choice((-1, 1)) * rng.uniform(slow, quick)
        centre = rng.uniform(0.02, 0.98) * n
        fwhm = rng.uniform(1.0, 4.0)
        signals.paint(power, signals.line(time_s, centre, rate / DF_HZ, snr, fwhm), unit)
        truth.append((_mhz(sky, centre), rate, fwhm * DF_HZ, snr, kind))
    power *= _bandpass(rng, sky)
    for panel in power:
        panel *= rng.uniform(0.9, 1.1) * 1e6
    columns = ["f_mhz", "drift_hz_s", "width_hz", "snr", "kind"]
    return power, pd.DataFrame(truth, columns=columns), starts_s


def _mhz(sky: Sky, channel: float) -> float:
    return sky.fch1_mhz - (sky.n_channels - 1 - channel) * DF_HZ / 1e6


def _wanted(sky: Sky) -> list[tuple[str, tuple[float, float], float]]:
    slow = [("slow", SLOW, snr) for snr in sky.snr for _ in range(sky.per_snr)]
    return slow + [("fast", FAST, snr) for snr in sky.snr if snr >= 50 for _ in range(sky.per_snr)]


def _bandpass(rng: np.random.Generator, sky: Sky) -> np.ndarray:
    """(n,) float32: roll-off to half and ripple in each coarse channel, and its DC spike."""
    fine = sky.n_channels // sky.n_coarse
    edge = np.minimum(np.arange(fine), np.arange(fine)[::-1]) / fine
    shape = 1 - 0.5 * np.exp(-edge / 0.02)
    parts = []
    for _ in range(sky.n_coarse):
        ripple = 1 + 0.03 * np.sin(2 * np.pi * (rng.uniform(2, 6) * np.arange(fine) / fine + rng.uniform()))
        part = shape * ripple
        part[fine - 1 - fine // 2] *= rng.uniform(3, 20)  # the file counts downwards
        parts.append(part)
    tail = np.ones(sky.n_channels - fine * sky.n_coarse)
    return np.concatenate([*parts, tail]).astype(np.float32)


def _interference(rng: np.random.Generator, sky: Sky, time_s: np.ndarray) -> list[signals.Signal]:
    n, rows = sky.n_channels, sky.n_times
    span = span_s(time_s)
    found = []
    for _ in range(rng.poisson(sky.rfi_per_mhz * n * DF_HZ / 1e6)):
        kind = rng.choice(
            ("steady", "drifting", "intermittent", "walking", "packets", "hump"),
            p=(0.35, 0.15, 0.25, 0.1, 0.1, 0.05),
        )
        snr = float(np.exp(rng.uniform(np.log(8), np.log(2000))))
        fwhm = float(rng.uniform(0.8, 5))
        centre, rate = rng.uniform(0, n), 0.0
        if kind in ("drifting", "packets"):
            rate = rng.normal(0, 0.15) / DF_HZ
        signal = signals.line(time_s, centre, rate, snr, fwhm, tuple(range(N_PANELS)))
        level, path = signal.level, signal.centre
        level *= np.exp(rng.normal(0, 0.3, (N_PANELS, 1)))
        if kind == "intermittent":
            shown = rng.random(N_PANELS) < 0.6
            shown[rng.choice(OFF)] = True
            level[~shown] = 0
        elif kind == "walking":
            walk = np.cumsum(rng.normal(0, rng.uniform(0.2, 2), time_s.size)).reshape(time_s.shape)
            path = path + walk - walk.mean()
        elif kind == "packets":
            level *= rng.random(time_s.shape) < rng.uniform(0.3, 0.8)
        elif kind == "hump":
            fwhm = float(rng.uniform(20, 300))
            level *= 0.1
            path = path + rng.normal(0, 5) * time_s / span
        sweep = np.gradient(path, axis=1) if rows > 1 else signal.sweep
        found.append(signals.Signal(path, sweep, level, fwhm))
    return found


def _digitised(values: np.ndarray, n_bits: int, n_ifs: int) -> np.ndarray:
    """(time, IF, channel) of the file's type."""
    split = np.repeat(values[:, None] / n_ifs, n_ifs, axis=1)
    if n_bits == 32:
        return split.astype(np.float32)
    top = 2**n_bits - 1
    scale = {8: 64, 16: 4096}[n_bits] / float(np.median(split[0]))
    return np.clip(np.rint(split * scale), 0, top).astype({8: np.uint8, 16: np.uint16}[n_bits])


def recall(truth: pd.DataFrame, found: pd.DataFrame, *, within_hz: float = 30.0) -> pd.DataFrame:
    """Which needles are among candidates.

    Args:
      truth: f_mhz, drift_hz_s, snr, kind of each needle.
      found: f_mhz (at the middle of the observation) and drift_hz_s of each candidate.
      within_hz: how far apart at most, in frequency and, over 900 s, in drift together.

    Returns:
      `truth` with `candidate` (row of `found`, -1 for none), `f_error_hz` and `drift_error_hz_s`.
    """
    rows = []
    for needle in truth.itertuples():
        off_hz = (found["f_mhz"].to_numpy() - needle.f_mhz) * 1e6
        off_drift = found["drift_hz_s"].to_numpy() - needle.drift_hz_s
        distance = np.abs(off_hz) + 900 * np.abs(off_drift)
        at = int(np.argmin(distance)) if len(found) else -1
        hit = at >= 0 and distance[at] <= within_hz
        rows.append((at, off_hz[at], off_drift[at]) if hit else (-1, np.nan, np.nan))
    columns = ["candidate", "f_error_hz", "drift_error_hz_s"]
    return truth.join(pd.DataFrame(rows, columns=columns, index=truth.index))
