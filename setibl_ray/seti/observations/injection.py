"""Training shards from observations: their windows as background, with needles and look-alikes injected.

A shard takes its windows from one stretch of one coarse channel, so that folds over shards share no background. What a
search would look at, windows about a line that passes its first filter, are negatives as they are; so are windows with
strong interference, and random ones with a look-alike in them. A record is a pure function of (recipe, shard, number).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.core.randomness import generator, stream_key
from setibl_ray.seti.formats.records import Record
from setibl_ray.seti.formats.writer import ShardWriter, WrittenShard, new_folder, write_dataset, write_shards
from setibl_ray.seti.making.recipe import HAYSTACK
from setibl_ray.seti.observations import lines, signals
from setibl_ray.seti.observations.conditioning import BLOCK, binned, condition, definition, to_bytes
from setibl_ray.seti.observations.injection_recipe import InjectionRecipe
from setibl_ray.seti.observations.observation import Channel, Observation, read_list, same_product

INJECT_VERSION = 1  # raise it when equal recipes no longer give equal bytes
WIDTH = 256  # channels of a window, binned
LONGEST_STRETCH = 1 << 18  # channels that a shard conditions
AS_FOUND, STRONG, RANDOM = "as-found", "strong", "random"  # where a window is cut
_PREFILTER = (2.2, 4.5)  # S/N in ON and OFF panels, below that of a search: more windows to learn from
_JITTER = 24  # channels that a window's middle may be off its line, either way
_DRIFT = 0.9  # of what a window holds over the whole observation


class Stretch(NamedTuple):
    """What a shard is made from: fine channels low … high - 1 of an observation."""

    observation: Observation
    channel: Channel
    low: int
    high: int


class InjectTask(NamedTuple):
    folder: str
    recipe: InjectionRecipe
    shard: int
    stretch: Stretch
    n_records: int
    n_needles: int


def inject(
    list_path: str,
    out: str | Path,
    recipe: InjectionRecipe,
    *,
    n_processes: int | None = None,
    on_shard: Callable[[WrittenShard], None] = lambda shard: None,
) -> Path:
    """Write a training set over the observations of a CSV.

    Args:
      list_path: as `read_list` takes it.
      out: a local folder that does not exist or is empty.
      n_processes: by default one a core.
      on_shard: called after each shard, e.g. to show progress.

    Raises:
      ConfigError: nothing is left after exclusions.
      DataError: an observation is unsound, or observations are of different products; `out` holds something.
    """
    observations = [
        observation
        for observation in read_list(list_path, n_coarse=recipe.coarse_channels)
        if observation.session not in recipe.exclude_session
    ]
    if not observations:
        raise ConfigError(f"exclude-session: nothing is left of {list_path} without {', '.join(recipe.exclude_session)}")
    same_product(observations)
    first = observations[0]
    stretches = plan(observations, recipe)
    path = Path(os.path.abspath(out))
    made = {
        "command": "inject",
        "inject_version": INJECT_VERSION,
        **recipe.model_dump(mode="json"),
        "observations": [describe(observation) for observation in observations],
    }
    counts = np.diff(np.arange(recipe.shards + 1) * recipe.train // recipe.shards)
    needles = np.diff(np.floor(np.cumsum([0, *counts]) * recipe.positive + 0.5)).astype(int)
    with new_folder(path) as folder:
        tasks = [
            InjectTask(str(folder), recipe, shard, *of_shard)
            for shard, of_shard in enumerate(zip(stretches, map(int, counts), map(int, needles)))
        ]
        shards = write_shards(write_shard, tasks, n_processes=n_processes, on_shard=on_shard)
        write_dataset(
            folder, shards, (first.n_times, WIDTH), made,
            df_hz=first.df_hz, dt_s=first.dt_s, bins=list(recipe.bins), conditioning=definition(),
        )  # fmt: skip
    return path


def describe(observation: Observation) -> dict[str, Any]:
    """What identifies an observation's files."""
    return {
        "observation": observation.name,
        "session": observation.session,
        "band": observation.band,
        "files": [
            {"path": header.path, "size_bytes": header.size_bytes, "source": header.source, "tstart": header.tstart_mjd}
            for header in observation.headers
        ],
    }


def plan(observations: Sequence[Observation], recipe: InjectionRecipe) -> list[Stretch]:
    """A stretch for each shard, spread evenly over all channels, no two of them overlapping.

    Raises:
      ConfigError: every channel is excluded, or shards are too many for the channels there are.
    """
    channels = [
        (observation, channel)
        for observation in observations
        for channel in observation.channels
        if not is_excluded(observation, channel.low, channel.high, recipe.exclude_mhz)
    ]
    if not channels:
        raise ConfigError("exclude-mhz: every coarse channel of every observation is excluded")
    least = 4 * WIDTH * max(recipe.bins)
    stretches: list[Stretch] = []
    share = np.arange(len(channels) + 1) * recipe.shards / len(channels)
    bounds = np.ceil(share - 1e-9).astype(int)
    for (observation, channel), (start, stop) in zip(channels, pairwise(bounds)):
        count = int(stop - start)
        for i in range(count):
            edges = [channel.low + (channel.high - channel.low) * k // count // BLOCK * BLOCK for k in (i, i + 1)]
            low, high = edges[0], channel.high if i == count - 1 else edges[1]
            if high - low < least:
                raise ConfigError(
                    f"shards: {count} shards take {high - low} channels each of a coarse channel of {observation.name}, "
                    f"fewer than the {least} that windows need. Ask for fewer shards, or lower --bins."
                )
            if high - low > LONGEST_STRETCH:
                room = (high - low - LONGEST_STRETCH) // BLOCK
                low += BLOCK * int(generator(recipe.seed, "stretch", len(stretches)).integers(room + 1))
                high = low + LONGEST_STRETCH
            stretches.append(Stretch(observation, channel, low, high))
    return stretches


def is_excluded(observation: Observation, low: int, high: int, ranges: Sequence[tuple[float, float]]) -> bool:
    """Whether channels low … high - 1 touch a range of MHz."""
    bottom, top = observation.mhz(low), observation.mhz(high - 1)
    return any(start <= top and bottom <= stop for start, stop in ranges)


def write_shard(task: InjectTask) -> WrittenShard:
    """Condition a stretch and write its records; runs in a process of its own."""
    observation, channel, low, high = task.stretch
    dc = channel.dc - low if channel.dc is not None and low <= channel.dc < high else None
    z, flags = condition(observation.read(low, high), dc, observation.headers[0].n_bits)
    if not z.any():
        raise DataError(f"{observation.headers[0].path}: channels {low} to {high} hold nothing ({'; '.join(flags)})")
    rng = generator(task.recipe.seed, "inject", task.shard)
    planes = {width: binned(z, width) for width in task.recipe.bins}
    places = {width: _places(plane, observation.time_s) for width, plane in planes.items()}
    kinds = np.array([True] * task.n_needles + [False] * (task.n_records - task.n_needles))
    with ShardWriter(task.folder, "train", task.shard) as writer:
        for number, is_needle in enumerate(rng.permutation(kinds)):
            width = int(rng.choice(task.recipe.bins))
            writer.write(_record(task, rng, z, width, places[width], number, bool(is_needle)))
    return writer.written


def _places(plane: np.ndarray, time_s: np.ndarray) -> dict[str, np.ndarray]:
    """Middles of windows in a binned plane, by the way in which they were chosen."""
    half = WIDTH // 2
    n = plane.shape[-1]
    found = lines.search(plane, time_s, WIDTH, on_above=_PREFILTER[0], off_below=_PREFILTER[1])
    bright = np.flatnonzero(plane.mean(axis=1).max(axis=0) > 8 / np.sqrt(plane.shape[1]))
    places = {AS_FOUND: lines.peaks(found.snr, WIDTH // 8), STRONG: bright}
    inside = {name: at[(at >= half) & (at < n - half)] for name, at in places.items()}
    return {**inside, RANDOM: np.arange(half, n - half)}


def _record(
    task: InjectTask,
    rng: np.random.Generator,
    z: np.ndarray,
    width: int,
    places: dict[str, np.ndarray],
    number: int,
    is_needle: bool,
) -> Record:
    recipe, (observation, _, low, _) = task.recipe, task.stretch
    half = WIDTH // 2
    how = rng.choice((AS_FOUND, STRONG, RANDOM), p=(0.2, 0.3, 0.5) if is_needle else (0.4, 0.2, 0.4))
    if not len(places[how]):
        how = RANDOM
    middle = int(rng.choice(places[how])) + int(rng.integers(-_JITTER, _JITTER + 1))
    middle = int(np.clip(middle, half, z.shape[-1] // width - half))
    start = (middle - half) * width  # fine channels
    window = z[..., start : start + WIDTH * width].copy()
    kind, snr, centre, rate, fwhm = HAYSTACK, float("nan"), float("nan"), 0.0, float("nan")
    if is_needle or how == RANDOM:
        shares = signals.NEEDLE_SHARES if is_needle else signals.LOOK_ALIKE_SHARES
        kind = str(rng.choice(list(shares), p=list(shares.values())))
        faintest, brightest = recipe.snr[0], recipe.snr[1] if is_needle else signals.BRIGHTEST
        snr = float(np.exp(rng.uniform(np.log(faintest), np.log(brightest))))
        centre = WIDTH * width / 2 + width * float(rng.uniform(-_JITTER, _JITTER))
        rate = float(rng.uniform(-1, 1)) * _DRIFT * WIDTH * width / lines.span_s(observation.time_s)
        fwhm = float(np.exp(rng.uniform(np.log(0.7), np.log(4 * np.sqrt(width)))))
        signals.paint(window, signals.draw(rng, kind, snr, observation.time_s, centre, rate, fwhm))
    panels = to_bytes(binned(window, width))
    f_mhz = float(observation.mhz(low + start + (centre if kind != HAYSTACK else WIDTH * width / 2)))
    return Record(
        image_id=f"{stream_key(recipe.seed, 'inject-id', task.shard, number):016x}"[:15],
        target=int(is_needle),
        group=f"{observation.session}/{observation.band}",
        snr=snr,
        kind=kind,
        panels=panels,
        provenance={
            "observation": observation.name,
            "bin": width,
            "f_mhz": f_mhz,
            "f_hz": round(f_mhz * 1e6),  # numbers are kept in 32 bits, which is 60 Hz at 1 GHz
            "drift_hz_s": rate * observation.df_hz,
            "width_hz": fwhm * observation.df_hz if kind != HAYSTACK else float("nan"),
        },
    )
