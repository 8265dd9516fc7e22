"""Training shards from observations: their windows as background, with needles and look-alikes injected.

A shard takes its windows from one stretch of one coarse channel, so that folds over shards share no background.
Negatives are what a search would look at (windows about lines that pass its first filter) and windows about injected
look-alikes, some of them on lines through strong interference. Backgrounds of needles and look-alikes are chosen in the
same ways. A record is a pure function of (recipe, shard, number).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.core.randomness import generator, stream_key
from setibl_ray.seti.formats.records import Record
from setibl_ray.seti.formats.writer import ShardWriter, WrittenShard, new_folder, write_dataset, write_shards
from setibl_ray.seti.making.recipe import HAYSTACK
from setibl_ray.seti.observations import lines, signals, windows
from setibl_ray.seti.observations.conditioning import BLOCK, binned, condition, definition, to_bytes
from setibl_ray.seti.observations.injection_recipe import InjectionRecipe
from setibl_ray.seti.observations.observation import Channel, Observation, read_list, same_product

INJECT_VERSION = 1  # raise it when equal recipes no longer give equal bytes
MAX_DRIFT = 256  # binned channels over the whole observation: the fastest drift that is searched for
LONGEST_STRETCH = 1 << 18  # channels that a shard conditions
AS_FOUND, STRONG, RANDOM = "as-found", "strong", "random"  # where a window is cut
_PREFILTER = (2.2, 4.5)  # S/N in ON and OFF panels, below that of a search: more windows to learn from
APART = 24  # binned channels between lines that get separate windows
_HAYSTACKS = 0.5  # share of negatives that are windows as found; the others are look-alikes
_BACKGROUNDS = (0.2, 0.3, 0.5)  # shares of windows about found lines, strong interference, and anything
_OFF_LINE, _OFF_DRIFT = (
    2.0,
    3.0,
)  # channels by which a window may miss its line, and by which its drift may be wrong


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
      n_processes: by default one per core.
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
        raise ConfigError(
            f"exclude-session: nothing is left of {list_path} without {', '.join(recipe.exclude_session)}"
        )
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
            folder, shards, (first.n_times, recipe.width), made,
            df_hz=first.df_hz, dt_s=first.dt_s, bins=list(recipe.bins), conditioning=definition(),
            windows=windows.definition(recipe.width),
        )  # fmt: skip
    return path


def describe(observation: Observation) -> dict[str, Any]:
    """What identifies an observation's files."""
    return {
        "observation": observation.name,
        "session": observation.session,
        "band": observation.band,
        "files": [
            {
                "path": header.path,
                "size_bytes": header.size_bytes,
                "source": header.source,
                "tstart": header.tstart_mjd,
            }
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
    least = 4 * MAX_DRIFT * max(recipe.bins)
    stretches: list[Stretch] = []
    share = np.arange(len(channels) + 1) * recipe.shards / len(channels)
    counts = np.diff(np.ceil(share - 1e-9).astype(int)).tolist()
    for (observation, channel), count in zip(channels, counts):
        for i in range(count):
            edges = [
                channel.low + (channel.high - channel.low) * k // count // BLOCK * BLOCK for k in (i, i + 1)
            ]
            low, high = edges[0], channel.high if i == count - 1 else edges[1]
            if high - low < least:
                raise ConfigError(
                    f"shards: {count} shards take {high - low} channels each of a channel of {observation.name}, "
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
    z, flags = condition(observation.read(low, high), dc, observation.headers[0].full_scale)
    if not z.any():
        raise DataError(
            f"{observation.headers[0].path}: channels {low} to {high} hold nothing ({'; '.join(flags)})"
        )
    rng = generator(task.recipe.seed, "inject", task.shard)
    places = {width: _places(binned(z, width), observation.time_s) for width in task.recipe.bins}
    kinds = np.array([True] * task.n_needles + [False] * (task.n_records - task.n_needles))
    with ShardWriter(task.folder, "train", task.shard) as writer:
        for number, is_needle in enumerate(rng.permutation(kinds)):
            width = int(rng.choice(task.recipe.bins))
            writer.write(_record(task, rng, z, width, places[width], number, bool(is_needle)))
    return writer.written


def _places(plane: np.ndarray, time_s: np.ndarray) -> dict[str, np.ndarray]:
    """Lines (n, 2) of channel and drift over the observation in a binned plane, by how they were chosen."""
    n = plane.shape[-1]
    found = lines.search(plane, time_s, MAX_DRIFT, on_above=_PREFILTER[0], off_below=_PREFILTER[1])
    at = lines.peaks(found.snr, APART)
    bright = np.flatnonzero(plane.mean(axis=1).max(axis=0) > 8 / np.sqrt(plane.shape[1]))
    return {
        AS_FOUND: np.column_stack([at, found.drift[at]]),
        STRONG: np.column_stack([bright, np.zeros_like(bright)]),
        RANDOM: np.column_stack([np.arange(n), np.zeros(n, np.int64)]),
    }


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
    time_s, span = observation.time_s, lines.span_s(observation.time_s)
    kind, snr, fwhm = HAYSTACK, float("nan"), float("nan")
    if not is_needle and rng.random() < _HAYSTACKS and len(places[AS_FOUND]):
        how = AS_FOUND
    else:
        how = str(rng.choice((AS_FOUND, STRONG, RANDOM), p=_BACKGROUNDS))
        shares = signals.NEEDLE_SHARES if is_needle else signals.LOOK_ALIKE_SHARES
        kind = str(rng.choice(list(shares), p=list(shares.values())))
    channel, drift = rng.choice(places[how if len(places[how]) else RANDOM]).tolist()
    centre, rate = (channel + 0.5) * width - 0.5, drift * width / span  # fine channels, and per second
    if kind != HAYSTACK:
        centre += width * float(rng.uniform(-0.5, 0.5) * recipe.width)
        rate = float(rng.uniform(-1, 1)) * MAX_DRIFT * width / span
        faintest, brightest = recipe.snr[0], recipe.snr[1] if is_needle else signals.BRIGHTEST
        faintest = min(faintest * math.sqrt(width), brightest)  # a sum over channels has that much more noise
        snr = float(np.exp(rng.uniform(np.log(faintest), np.log(brightest))))
        fwhm = float(np.exp(rng.uniform(np.log(0.7), np.log(4 * np.sqrt(width)))))
    # A band that holds the line and the window about it, at whole binned channels.
    reach = (math.ceil(abs(rate) * span / 2 / width) + recipe.width + 8) * width
    start = (math.floor(centre / width) * width) - reach
    near = np.zeros((*z.shape[:2], 2 * reach), np.float32)
    first, last = max(0, start), min(z.shape[-1], start + 2 * reach)
    if first < last:
        near[..., first - start : last - start] = z[..., first:last]
    if kind != HAYSTACK:
        signals.paint(near, signals.draw(rng, kind, snr, time_s, centre - start, rate, fwhm))
    off_line, off_drift = (float(rng.uniform(-most, most)) for most in (_OFF_LINE, _OFF_DRIFT))
    panels = windows.cut(
        to_bytes(binned(near, width)),
        time_s,
        np.array([(centre - start + 0.5) / width - 0.5 + off_line]),
        np.array([rate / width + off_drift / span]),
        recipe.width,
    )[0]
    f_mhz = float(observation.mhz(low + centre))
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
            "f_hz": round(f_mhz * 1e6),  # floats are kept in 32 bits, to 60 Hz at 1 GHz
            "drift_hz_s": rate * observation.df_hz,
            "width_hz": fwhm * observation.df_hz,
        },
    )
