"""Synthetic cadences with setigen's physics, painted on one array, for demos, tests and injection studies.

An observation is a band of radiometer noise (chi-squared) and interference, seen in six panels at different
start times with the telescope's slews between them. A cadence is a cut of an observation, with a needle or
a look-alike in it; every panel is then normalised and quantised by `records.quantise`. A cadence is a pure
function of (recipe, split, number) and depends neither on shards nor on processes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from platformdirs import user_cache_path
from scipy.special import gammaincinv, ndtr

from setibl_ray.core.errors import ConfigError
from setibl_ray.core.randomness import stream_key
from setibl_ray.seti.cadence import N_PANELS, OFF, ON
from setibl_ray.seti.formats.records import Record, quantise
from setibl_ray.seti.formats.shards import SPLITS, Split
from setibl_ray.seti.formats.writer import (
    ShardWriter,
    WrittenShard,
    is_made,
    new_folder,
    write_dataset,
    write_shards,
)
from setibl_ray.seti.making.recipe import DEMO, HARD_KINDS, HAYSTACK, NEEDLE_KINDS, Recipe

# Raise it when equal recipes no longer give equal bytes: cached demo sets are then made again.
SYNTH_VERSION = 3

CADENCES_PER_OBSERVATION = 10
BANDS_PER_OBSERVATION = 4  # cadences are cut from a band this many times as wide, so cuts overlap
RFI_TRACKS = 1.0  # on average in a cadence
BURSTS = 0.2  # on average in a cadence
SLEW_S = (20.0, 60.0)
IN_BAND = 0.9  # smallest part of a needle's track that must lie inside the band
NARROW_FWHM = (1.5, 4.0)  # frequency bins
SMEAR = 0.5  # bins per row from which a drift is smeared; below that, smearing would change a profile by under 1 %
UNEVEN = (0.1, 1.0)  # levels of an uneven signal's panels, as fractions of its S/N

_FWHM = 2 * np.sqrt(2 * np.log(2))  # of a Gaussian, in standard deviations
_REACH = 3.0  # standard deviations to which a track is painted
_SAMPLE_DT_S = 1.4316557653333333  # of the observations behind setigen's noise means


@dataclass(frozen=True)
class Planned:
    """What a cadence will show; exact counts are decided here, before anything is drawn."""

    split: Split
    number: int
    kind: str
    observation: int


class Track(NamedTuple):
    """A signal's centre and level over a cadence, each (6, time); level 0 where it is absent."""

    centre: np.ndarray  # frequency bins
    level: np.ndarray  # in units of snr * sigma / sqrt(time bins)
    fwhm: float  # frequency bins
    smear: np.ndarray | None = None  # frequency bins that it drifts in a row, (6, time)


class Observation(NamedTuple):
    """What a group shares: `time_s` (6, time), and `rfi` in a band of BANDS_PER_OBSERVATION cuts."""

    noise_mean: float
    time_s: np.ndarray
    rfi: tuple[Track, ...]


def plan(recipe: Recipe, split: Split, shard: int) -> list[Planned]:
    """The cadences of one shard.

    Counts are exact: over any run of shards from the first, needles are `positive` of all and hard negatives
    `hard` of the others, rounded; kinds take turns. Each observation lies within one shard, so that folds over shards
    never share one.
    """

    def total(records: int) -> tuple[int, int]:
        needles = int(recipe.positive * records + 0.5)
        return needles, int(recipe.hard * (records - needles) + 0.5)

    sizes = _shard_sizes(recipe, split)
    first, n_records = sum(sizes[:shard]), sizes[shard]
    (needles, hards), (needles_end, hards_end) = total(first), total(first + n_records)
    kinds = [recipe.needle_kinds[i % len(recipe.needle_kinds)] for i in range(needles, needles_end)]
    kinds += [recipe.hard_kinds[i % len(recipe.hard_kinds)] for i in range(hards, hards_end)]
    kinds += [HAYSTACK] * (n_records - len(kinds))
    order = _generator(recipe.seed, "plan", split, shard).permutation(n_records)
    # Observations are numbered consecutively, those of the test set after those of the training set.
    earlier = sizes[:shard] if split == "train" else _shard_sizes(recipe, "train") + sizes[:shard]
    observation = sum(-(-n // CADENCES_PER_OBSERVATION) for n in earlier)
    return [
        Planned(split, first + i, kinds[order[i]], observation + i // CADENCES_PER_OBSERVATION)
        for i in range(n_records)
    ]


def synthesise(recipe: Recipe, planned: Planned) -> Record:
    """Make one cadence: its panels quantised, its labels as planned."""
    return synthesise_with_drift(recipe, planned)[0]


def synthesise_with_drift(recipe: Recipe, planned: Planned) -> tuple[Record, float]:
    """A cadence, and its signal's mean drift in Hz/s from the first row to the last; nan where it has no track."""
    rng = _generator(recipe.seed, "cadence", planned.split, planned.number)
    snr = float("nan")
    if planned.kind != HAYSTACK:
        low, high = recipe.hard_snr or recipe.snr if planned.kind in HARD_KINDS else recipe.snr
        snr = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    observation = observe(recipe, planned.split, planned.observation)
    cadence, track = paint_cadence(recipe, observation, planned.kind, snr, rng)
    drift = float("nan")
    if track is not None:
        span_s = observation.time_s[-1, -1] - observation.time_s[0, 0]
        drift = float(track.centre[-1, -1] - track.centre[0, 0]) * recipe.df_hz / span_s
    record = Record(
        image_id=image_id(recipe.seed, planned.split, planned.number),
        target=int(planned.kind in NEEDLE_KINDS) if planned.split == "train" else None,
        group=f"obs-{planned.observation:04d}",
        snr=snr,
        kind=planned.kind,
        panels=quantise(cadence),
    )
    return record, drift


def image_id(seed: int, split: Split, number: int) -> str:
    """15 hexadecimal characters, as Kaggle's."""
    return f"{stream_key(seed, 'image_id', split, number):016x}"[:15]


def paint_cadence(
    recipe: Recipe, observation: Observation, kind: str, snr: float, rng: np.random.Generator
) -> tuple[np.ndarray, Track | None]:
    """Noise, interference and the signal of `kind` as power, float32 (6, time, frequency); and the signal's track."""
    n_time, n_freq = recipe.shape
    cadence = noise(rng, (N_PANELS, n_time, n_freq), recipe.chi2_df, observation.noise_mean)
    sigma = observation.noise_mean * np.sqrt(2 / recipe.chi2_df)
    unit = sigma / np.sqrt(n_time)
    cut = rng.uniform(0, (BANDS_PER_OBSERVATION - 1) * n_freq)
    for rfi in observation.rfi:
        paint(cadence, rfi._replace(centre=rfi.centre - cut), unit)
    for _ in range(rng.poisson(BURSTS)):
        start = rng.integers(n_time)
        cadence[rng.integers(N_PANELS), start : start + rng.integers(1, 9)] += sigma * rng.uniform(0.3, 2)
    track = None
    if kind == "hard-one-on":
        n_rows, n_columns = (
            rng.integers(n_time // 20 + 1, n_time // 4),
            rng.integers(n_freq // 20 + 1, n_freq // 4),
        )
        row, column = rng.integers(n_time - n_rows), rng.integers(n_freq - n_columns)
        burst = cadence[rng.choice(ON), row : row + n_rows, column : column + n_columns]
        burst += snr * sigma / np.sqrt(n_rows)
    elif kind != HAYSTACK:
        track = draw_signal(rng, kind, snr, observation.time_s, n_freq)
        paint(cadence, track, unit)
    return cadence, track


def noise(rng: np.random.Generator, shape: tuple[int, ...], df: int, mean: float) -> np.ndarray:
    """Chi-squared noise with `df` degrees of freedom and the given mean, float32.

    Each sample is one of 65,536 equally likely quantiles, those of the highest 256th drawn again from 65,536
    finer ones (the last is that of 1 - 2^-25). This takes 2 ms per cadence, NumPy's gamma sampler 9,
    and the steps are far smaller than those of the bytes.
    """
    bulk, tail = _quantiles(df)
    n_samples = int(np.prod(shape))
    draws = np.frombuffer(rng.bytes(2 * n_samples), "<u2")
    samples = bulk.take(draws)
    extreme = np.flatnonzero(draws >= 2**16 - 2**8)
    samples[extreme] = tail[rng.integers(2**16, size=len(extreme))]
    samples *= np.float32(mean / df)
    return samples.reshape(shape)


def paint(cadence: np.ndarray, track: Track, unit: float) -> None:
    """Add a track with a Gaussian profile in frequency to (6, time, frequency) in place.

    Level and profile are those of setigen's `get_intensity` and `gaussian_f_profile`; the profile ends at
    three sigmas. A signal that drifts within a row is smeared over that row, keeping its energy.
    """
    n_freq = cadence.shape[-1]
    sigma = track.fwhm / _FWHM
    widest = 0.0 if track.smear is None else float(track.smear.max())
    reach = _REACH * sigma + widest / 2
    centre, level = track.centre.ravel(), track.level.ravel()
    rows = np.flatnonzero((level > 0) & (centre > -reach) & (centre < n_freq - 1 + reach))
    if not len(rows):
        return
    centre = centre[rows].astype(np.float32)[:, None]
    level = (level[rows] * unit).astype(np.float32)[:, None]
    smear = track.smear.ravel()[rows, None] if track.smear is not None and widest > SMEAR else None
    if 2 * reach > n_freq / 4:  # wide: whole rows are cheaper than a window's indices
        columns = np.arange(n_freq, dtype=np.float32)
        cadence.reshape(-1, n_freq)[rows] += _profile(columns, centre, sigma, smear) * level
        return
    columns = np.ceil(centre - np.float32(reach)).astype(np.int64) + np.arange(int(2 * reach) + 1)
    values = _profile(columns.astype(np.float32), centre, sigma, smear) * level
    inside = (columns >= 0) & (columns < n_freq)
    at = (rows[:, None] * n_freq + columns)[inside]
    cadence.reshape(-1)[at] += values[inside]


def draw_signal(rng: np.random.Generator, kind: str, snr: float, time_s: np.ndarray, n_freq: int) -> Track:
    """A needle, or a hard negative with the shape of one, that stays in band for IN_BAND of its track.

    Drifts are in bands per cadence, so that they fit any resolution.
    """
    panels: tuple[int, ...] = ON
    if kind in ("hard-all-panels", "hard-uneven"):
        panels = tuple(range(N_PANELS))
    elif kind == "hard-off-only":
        panels = OFF
    elif kind == "hard-intermittent":
        panels = (*rng.permutation(ON)[: rng.integers(1, 4)], *rng.permutation(OFF)[: rng.integers(1, 4)])
    elif kind == "needle-partial":
        panels = tuple(rng.permutation(ON)[: rng.integers(1, 3)])
    shape = kind if kind in NEEDLE_KINDS else NEEDLE_KINDS[rng.integers(5)]  # every shape but partial

    level = np.zeros(time_s.shape)
    level[list(panels)] = snr
    if kind == "hard-uneven":
        level *= np.exp(rng.uniform(np.log(UNEVEN[0]), np.log(UNEVEN[1]), (N_PANELS, 1)))
        level *= snr / level.max()
    if shape == "needle-pulsed":
        level *= _pulses(rng, time_s)
    fwhm = n_freq * rng.uniform(0.06, 0.15) if shape == "needle-wideband" else rng.uniform(*NARROW_FWHM)
    while True:
        centre = _path(rng, shape, time_s, n_freq)
        track = centre[list(panels)]
        if np.mean((track >= 0) & (track <= n_freq - 1)) >= IN_BAND:
            return Track(centre, level, fwhm, np.abs(np.gradient(centre, axis=1)))


def _path(rng: np.random.Generator, shape: str, time_s: np.ndarray, n_freq: int) -> np.ndarray:
    u = time_s / time_s[-1, -1] - 0.5
    bands = rng.uniform(0, 1) + rng.uniform(-1, 1) * u
    if shape == "needle-quadratic":
        bands += rng.choice((-1, 1)) * rng.uniform(0.5, 2) * u**2
    elif shape == "needle-sine":
        bands += rng.uniform(0.04, 0.2) * np.sin(2 * np.pi * (rng.uniform(1, 5) * u + rng.uniform()))
    return bands * n_freq


def _pulses(rng: np.random.Generator, time_s: np.ndarray) -> np.ndarray:
    """Gaussian pulses of mean level 1, three or more in a panel."""
    period = (time_s[0, -1] - time_s[0, 0]) * rng.uniform(0.1, 0.33)
    away = (time_s / period + rng.uniform()) % 1 - 0.5
    profile = np.exp(-0.5 * (away / (rng.uniform(0.15, 0.4) / _FWHM)) ** 2)
    return profile / profile.mean()


@lru_cache(maxsize=4)
def observe(recipe: Recipe, split: Split, number: int) -> Observation:
    """Draw an observation: its noise, its slews and the interference in its whole band."""
    rng = _generator(recipe.seed, "observation", split, number)
    n_time, n_freq = recipe.shape
    starts = np.concatenate([[0], np.cumsum(n_time * recipe.dt_s + rng.uniform(*SLEW_S, size=N_PANELS - 1))])
    time_s = starts[:, None] + np.arange(n_time) * recipe.dt_s
    u = time_s / time_s[-1, -1] - 0.5
    rfi = []
    for _ in range(rng.poisson(RFI_TRACKS * BANDS_PER_OBSERVATION)):
        kind = rng.choice(("stationary", "drifting", "random-walk"))
        bands = np.full(time_s.shape, rng.uniform(0, BANDS_PER_OBSERVATION))
        smear = None
        if kind == "drifting":
            drift = rng.uniform(-1, 1)
            bands += drift * u
            smear = np.full(time_s.shape, abs(drift) * n_freq * recipe.dt_s / time_s[-1, -1])
        elif kind == "random-walk":
            steps = rng.normal(0, rng.uniform(0.05, 0.3) / np.sqrt(time_s.size), time_s.size)
            bands += np.cumsum(steps).reshape(time_s.shape)
        low, high = recipe.snr
        level = np.full(time_s.shape, np.exp(rng.uniform(np.log(low), np.log(high))))
        rfi.append(Track(bands * n_freq, level, rng.uniform(*NARROW_FWHM), smear))
    means = _noise_means()
    return Observation(
        float(means[rng.integers(len(means))] * recipe.dt_s / _SAMPLE_DT_S), time_s, tuple(rfi)
    )


def write_synthetic(
    recipe: Recipe,
    out: str | Path,
    *,
    n_processes: int | None = None,
    on_shard: Callable[[WrittenShard], None] = lambda shard: None,
) -> Path:
    """Write a synthetic set; a set of the same recipe that exists in `out` is kept.

    Args:
      out: a local folder that does not exist or is empty.
      n_processes: by default one per core.
      on_shard: called after each shard, e.g. to show progress.

    Raises:
      DataError: `out` holds something else.
    """
    path = Path(os.path.abspath(out))
    made = _made(recipe)
    if is_made(path, made):
        return path
    with new_folder(path) as folder:
        tasks = [
            ShardTask(recipe, split, shard, str(folder))
            for split in SPLITS
            for shard in range(recipe.n_shards(split))
        ]
        shards = write_shards(write_shard, tasks, n_processes=n_processes, on_shard=on_shard)
        write_dataset(folder, shards, recipe.shape, made, df_hz=recipe.df_hz, dt_s=recipe.dt_s)
    return path


class ShardTask(NamedTuple):
    recipe: Recipe
    split: Split
    shard: int
    folder: str


def write_shard(task: ShardTask) -> WrittenShard:
    """Synthesise and write one shard; runs in its own process."""
    with ShardWriter(task.folder, task.split, task.shard) as writer:
        for planned in plan(task.recipe, task.split, task.shard):
            writer.write(synthesise(task.recipe, planned))
    return writer.written


def demo_dataset(
    cache_root: str | Path | None = None,
    recipe: Recipe = DEMO,
    *,
    n_processes: int | None = None,
    on_shard: Callable[[WrittenShard], None] = lambda shard: None,
) -> Path:
    """The folder of the embedded demo set, synthesised on first use and kept (half a gigabyte).

    It is in `cache_root`, or the folder of the environment variable SETIBL_RAY_CACHE, or the user's cache
    folder, named by a hash of its recipe. Concurrent calls wait for the one that makes it; a killed one
    leaves no set behind.
    """
    root = Path(cache_root or os.environ.get("SETIBL_RAY_CACHE") or user_cache_path("setibl_ray"))
    key = hashlib.sha256(f"{SYNTH_VERSION} {recipe.model_dump_json()}".encode()).hexdigest()[:12]
    path = root / f"demo-{key}"
    if not is_made(path, _made(recipe)):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{path.name}.lock"):
            for left in root.glob(f".{path.name}.partial-*"):  # by a killed run: only one holds the lock
                shutil.rmtree(left)
            write_synthetic(recipe, path, n_processes=n_processes, on_shard=on_shard)
    return path


def _made(recipe: Recipe) -> dict[str, Any]:
    return {"command": "synth", "synth_version": SYNTH_VERSION, **recipe.model_dump(mode="json")}


def _shard_sizes(recipe: Recipe, split: Split) -> list[int]:
    """Cadences of each shard, which differ by one at most."""
    n_cadences, n_shards = recipe.n_cadences(split), recipe.n_shards(split)
    return [n_cadences // n_shards + (shard < n_cadences % n_shards) for shard in range(n_shards)]


def _generator(*names: int | str) -> np.random.Generator:
    # SFC64 is twice as fast as the Philox of randomness.generator, and noise is most of the cost of a cadence.
    return np.random.Generator(np.random.SFC64(stream_key("synth", *names)))


def _profile(x: np.ndarray, centre: np.ndarray, sigma: float, smear: np.ndarray | None) -> np.ndarray:
    """A Gaussian of height 1, or its mean over centres from half of `smear` below to half of it above; float32."""
    away = (x - centre) * np.float32(1 / sigma)
    if smear is None:
        return np.exp(np.float32(-0.5) * away * away)
    half = (np.maximum(smear, 1e-3) / (2 * sigma)).astype(np.float32)
    return (ndtr(away + half) - ndtr(away - half)) * (np.float32(np.sqrt(np.pi / 2)) / half)


@lru_cache(maxsize=1)
def _quantiles(df: int) -> tuple[np.ndarray, np.ndarray]:
    """Chi-squared quantiles (65,536) of the whole distribution and of its highest 256th, float32."""
    p = (np.arange(2**16) + 0.5) / 2**16
    return tuple((2 * gammaincinv(df / 2, q)).astype(np.float32) for q in (p, 1 - (1 - p) / 2**8))


@lru_cache(maxsize=1)
def _noise_means() -> np.ndarray:
    """Mean power of 126,500 C-band frames of the Green Bank telescope, as setigen ships them."""
    spec = importlib.util.find_spec("setigen")  # importing it takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "synth takes its noise levels from setigen, which is not installed: pip install setigen"
        )
    return np.load(Path(spec.submodule_search_locations[0], "assets", "sample_noise_params.npy"))[:, 0]
