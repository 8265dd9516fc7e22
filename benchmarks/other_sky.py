"""Cadences by other rules than `data synth`'s, to test on.

    python benchmarks/other_sky.py OUT [--train 3200] [--seed 1] [--snr 30 100]

No code is shared with setibl_ray.seti.making: the noise is summed spectra of complex Gaussians under a rippled
bandpass and a drifting gain, profiles are squared sincs, pulses lose the energy of the time they are off, a `single`
signal shows in one ON panel only, and interference comes as combs, switched carriers and whole bright rows. 40 % are
needles; half of the others look like one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from setibl_ray.seti.formats.records import CLIP, Record
from setibl_ray.seti.formats.writer import ShardWriter, WrittenShard, new_folder, write_dataset, write_shards

TIME, FREQUENCY = 273, 256
NEEDLES = ("line", "bend", "wiggle", "pulses", "single")
LOOK_ALIKES = ("everywhere", "off-panels", "on-and-off", "carrier")
LOOKS = 6  # spectra summed in a time bin


class Shard(NamedTuple):
    folder: str
    number: int
    n: int
    seed: int
    snr: tuple[float, float]


def cadence(rng: np.random.Generator, kind: str, snr: float) -> np.ndarray:
    """Power in units of the noise's deviation, (6, time, frequency)."""
    shape = (6, TIME, FREQUENCY)
    power = rng.standard_gamma(LOOKS, shape, dtype=np.float32) / np.float32(np.sqrt(LOOKS))
    x = np.arange(FREQUENCY)
    ripple = 1 + 0.08 * np.sin(2 * np.pi * (x / rng.uniform(60, 300) + rng.uniform()))
    gain = (
        1 + 0.03 * rng.standard_normal((6, 1)) + 0.03 * np.linspace(-1, 1, TIME) * rng.standard_normal((6, 1))
    )
    for _ in range(rng.poisson(0.6)):  # a comb of carriers, switched on and off as a whole
        on = rng.random((6, 1)) < rng.choice((1.0, 0.8))
        for teeth in rng.uniform(0, FREQUENCY) + rng.uniform(20, 60) * np.arange(rng.integers(1, 4)):
            power += line(np.full((6, TIME), teeth), on * rng.uniform(5, 40) / np.sqrt(TIME), 1.5)
    for _ in range(rng.poisson(0.5)):
        power[rng.integers(6), rng.integers(TIME)] += rng.uniform(0.5, 3)
    panels, shape_of = (0, 2, 4), kind
    if kind == "single":
        panels, shape_of = (int(rng.choice((0, 2, 4))),), "line"
    elif kind in LOOK_ALIKES:
        panels = {
            "everywhere": (0, 1, 2, 3, 4, 5),
            "off-panels": (1, 3, 5),
            "on-and-off": (0, 2, 4, int(rng.choice((1, 3, 5)))),
            "carrier": (0, 1, 2, 3, 4, 5),
        }[kind]
        shape_of = "carrier" if kind == "carrier" else str(rng.choice(NEEDLES[:4]))
    if kind != "nothing":
        track, level = signal(rng, shape_of)
        level[[panel for panel in range(6) if panel not in panels]] = 0
        power += line(track, level * snr / np.sqrt(TIME), rng.uniform(1.5, 4))
    return power * (ripple * gain[..., None]).astype(np.float32)


def signal(rng: np.random.Generator, shape: str) -> tuple[np.ndarray, np.ndarray]:
    """Centre in frequency bins and level, both (6, time): panels of 293 s with 30 s between them."""
    t = (np.arange(6)[:, None] * 323 + np.linspace(0, 293, TIME)) / 1908 * 2 - 1
    level = np.ones((6, TIME))
    if shape == "pulses":
        period, duty = rng.uniform(0.02, 0.09), rng.uniform(0.2, 0.6)
        level = (((t + 1) / period + rng.uniform()) % 1 < duty).astype(float)
    while True:
        slope = 0 if shape == "carrier" else rng.uniform(-110, 110)
        track = rng.uniform(0, FREQUENCY) + slope * t
        if shape == "bend":
            track = track + rng.uniform(-60, 60) * (t**3 + t**2)
        elif shape == "wiggle":
            track = track + rng.uniform(8, 30) * np.sin(2 * np.pi * (rng.uniform(0.5, 2) * t + rng.uniform()))
        if np.mean((track > 0) & (track < FREQUENCY - 1)) > 0.85:
            return track, level


def line(track: np.ndarray, level: np.ndarray, width: float) -> np.ndarray:
    """A squared sinc of height `level` about each row's centre, (6, time, frequency) float32."""
    away = (np.arange(FREQUENCY, dtype=np.float32) - track[..., None].astype(np.float32)) / np.float32(width)
    return (np.sinc(away) ** 2 * level[..., None]).astype(np.float32)


def to_bytes(power: np.ndarray) -> np.ndarray:
    mean, deviation = power.mean(axis=(1, 2), keepdims=True), power.std(axis=(1, 2), keepdims=True)
    low, high = CLIP
    return np.rint(((power - mean) / deviation - low).clip(0, high - low) * (255 / (high - low))).astype(
        np.uint8
    )


def write_shard(shard: Shard) -> WrittenShard:
    with ShardWriter(shard.folder, "train", shard.number) as writer:
        for i in range(shard.n):
            rng = np.random.default_rng([shard.seed, shard.number, i])
            draw = rng.random()
            kind = str(rng.choice(NEEDLES if draw < 0.4 else LOOK_ALIKES)) if draw < 0.7 else "nothing"
            snr = float(np.exp(rng.uniform(*np.log(shard.snr)))) if kind != "nothing" else float("nan")
            writer.write(
                Record(
                    image_id=f"other-{shard.seed}-{shard.number:02d}-{i:04d}",
                    target=int(kind in NEEDLES),
                    group=None,
                    snr=snr,
                    kind=kind,
                    panels=to_bytes(cadence(rng, kind, snr)),
                )
            )
    return writer.written


def write(
    out: str | Path, n: int, *, seed: int = 1, snr: tuple[float, float] = (30, 100), shards: int = 20
) -> Path:
    """Write `n` labelled cadences in as many shards; nothing is done where `out` is there already."""
    path = Path(out).absolute()
    if not path.exists():
        with new_folder(path) as folder:
            sizes = [len(part) for part in np.array_split(np.arange(n), shards)]
            tasks = [Shard(str(folder), number, size, seed, snr) for number, size in enumerate(sizes)]
            made = {"command": "other_sky", "n": n, "seed": seed, "snr": list(snr)}
            write_dataset(folder, write_shards(write_shard, tasks), (TIME, FREQUENCY), made)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out")
    parser.add_argument("--train", type=int, default=3200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--snr", type=float, nargs=2, default=(30, 100))
    options = parser.parse_args()
    print(write(options.out, options.train, seed=options.seed, snr=tuple(options.snr)))
