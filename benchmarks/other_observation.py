"""An observation that another generator makes: setigen's noise, needles and interference, written by blimpy.

    python benchmarks/other_observation.py --out FOLDER [--seed 5] [--channels 786432]

It shares no code with `data simulate`: setigen paints needles at its own S/N, smeared in its own way, on its own noise;
level, bandpass and interference follow other rules. Writes six .h5 files, observation.csv and truth.csv.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import setigen
from astropy import units

DF_HZ, DT_S, ROWS = 2.7939677238464355, 18.253611008, 16
FCH1_MHZ = 6095.0
STARTS_S = np.array([0.0, 338.0, 671.0, 1012.0, 1346.0, 1690.0])  # of six files of 292 s
SNR, EACH = (8, 10, 15, 20, 30, 50, 100), 12
BORDER_HZ = 2000.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--channels", type=int, default=3 << 18)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    rng = np.random.default_rng(options.seed)
    n = options.channels
    frames = [
        setigen.Frame(
            fchans=n, tchans=ROWS, df=DF_HZ * units.Hz, dt=DT_S * units.s, fch1=FCH1_MHZ * units.MHz, ascending=False,
            seed=int(rng.integers(2**31)),
        )
        for _ in STARTS_S
    ]  # fmt: skip
    for frame in frames:
        frame.add_noise(x_mean=10.0, noise_type="chi2")
    low, high = frames[0].fs[0] + BORDER_HZ, frames[0].fs[-1] - BORDER_HZ
    middle_s = (STARTS_S[-1] + ROWS * DT_S) / 2
    truth = []
    wanted = [("slow", snr) for snr in SNR for _ in range(EACH)]
    wanted += [("fast", snr) for snr in SNR if snr >= 50 for _ in range(EACH)]
    for kind, snr in wanted:
        drift = float(rng.choice((-1, 1)) * (rng.uniform(0, 0.25) if kind == "slow" else rng.uniform(0.5, 2)))
        at, width = float(rng.uniform(low, high)), float(rng.uniform(3, 10))
        for panel in (0, 2, 4):
            start = at + drift * (STARTS_S[panel] - middle_s)
            paint(frames[panel], start, drift, snr, width, setigen.gaussian_f_profile)
        truth.append((at / 1e6, drift, width, float(snr), kind))
    for _ in range(rng.poisson(100 * n * DF_HZ / 1e6)):
        interfere(frames, rng, low, high, middle_s)
    level = 1 + 0.4 * np.cos(np.linspace(-1.3, 1.3, n // 3)) ** 2  # three coarse channels
    level = np.resize(level, n) * (1 + 0.1 * np.linspace(-1, 1, n))
    level[n // 6 - 1 :: n // 3] *= 8  # the spike, in the middle as a file of falling frequency counts
    names = []
    for panel, frame in enumerate(frames):
        frame.data *= level * rng.uniform(0.8, 1.2)
        source = "TARGET" if panel % 2 == 0 else f"OFF{panel}"
        names.append(f"{panel}-{source.lower()}.h5")
        frame.save_h5(str(options.out / names[-1]))
        with h5py.File(options.out / names[-1], "r+") as file:
            file["data"].attrs["source_name"] = source
            file["data"].attrs["tstart"] = 60700.0 + STARTS_S[panel] / 86400
    columns = ["observation", "session", "band", *(f"file_{i + 1}" for i in range(6))]
    pd.DataFrame([["other", "other-session", "C", *names]], columns=columns).to_csv(
        options.out / "observation.csv", index=False
    )
    columns = ["f_mhz", "drift_hz_s", "width_hz", "snr", "kind"]
    pd.DataFrame(truth, columns=columns).to_csv(options.out / "truth.csv", index=False)


def paint(frame, f_start, drift, snr, width, profile, path=None, times=None):
    """A signal on one file; `snr` is that of its brightest channel over the file, as setigen counts."""
    level = frame.get_intensity(snr=snr)
    reach = abs(drift) * ROWS * DT_S + 60 * width
    frame.add_signal(
        path or setigen.constant_path(f_start=f_start, drift_rate=drift),
        times(level) if times else setigen.constant_t_profile(level),
        profile(width),
        setigen.constant_bp_profile(1),
        bounding_f_range=(max(f_start - reach, frame.fmin), min(f_start + reach, frame.fmax)),
        doppler_smearing=True,
        smearing_subsamples=max(1, int(np.ceil(abs(drift) * DT_S / DF_HZ))),
    )


def interfere(frames, rng, low, high, middle_s):
    """One interfering signal, on some files or all, always on an OFF file."""
    at, snr = float(rng.uniform(low, high)), float(10 ** rng.uniform(0.8, 3))
    kind = rng.choice(
        ("carrier", "satellite", "hopping", "swinging", "pulsed"), p=(0.4, 0.15, 0.15, 0.15, 0.15)
    )
    drift = float(rng.uniform(-0.3, 0.3)) if kind == "satellite" else 0.0
    width = float(rng.uniform(2, 25))
    profile = setigen.box_f_profile if rng.random() < 0.3 else setigen.gaussian_f_profile
    shown = rng.random(6) < (0.5 if rng.random() < 0.3 else 1.1)
    shown[rng.choice((1, 3, 5))] = True
    for panel in np.flatnonzero(shown):
        f_start = at + drift * (STARTS_S[panel] - middle_s)
        path = times = None
        if kind == "hopping":
            path = setigen.simple_rfi_path(
                f_start=f_start,
                drift_rate=0,
                spread=8 * width,
                spread_type="uniform",
                rfi_type="random_walk",
                seed=int(rng.integers(2**31)),
            )
        elif kind == "swinging":
            path = setigen.sine_path(f_start=f_start, drift_rate=0, period=150.0, amplitude=3 * width)
        elif kind == "pulsed":
            times = partial(_pulses, float(rng.uniform(40, 200)))
        paint(frames[panel], f_start, drift, snr, width, profile, path, times)


def _pulses(period_s, level):
    return setigen.sine_t_profile(period=period_s, amplitude=level / 2, level=level / 2)


if __name__ == "__main__":
    main()
