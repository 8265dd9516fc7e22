"""A search through time: check, channels one after the other with each result on disk, then gather.

DIR/plan.json                              what is searched, with which weights and settings
DIR/channels/OBS-CHANNEL-SHA.json          a channel's result, its checksum in its name
DIR/candidates.csv  *.dat  search.json  candidates.html
"""

from __future__ import annotations

import importlib
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from setibl_ray.core.errors import ConfigError, RunFolderError
from setibl_ray.core.run.folder import RunFolder, sha256, to_json
from setibl_ray.core.run.manifest import versions
from setibl_ray.seti.cadence import DEFAULT_LAYOUT
from setibl_ray.seti.evaluation.finished import Run, load_run
from setibl_ray.seti.observations import windows
from setibl_ray.seti.observations.conditioning import definition
from setibl_ray.seti.observations.injection import MAX_DRIFT, describe
from setibl_ray.seti.observations.lines import span_s
from setibl_ray.seti.observations.observation import Channel, Observation, channels_of, same_product
from setibl_ray.seti.search import gather, page, results
from setibl_ray.seti.search.channel import Score, search_channel, shares, to_text
from setibl_ray.seti.search.settings import SearchSettings

FORMAT = 1
_CHANNEL = re.compile(r"(\d+)-(\d+)-([0-9a-f]{32})\.json")

Say = Callable[[str], None]


def search(
    run_path: str,
    observations: Sequence[Observation],
    out: str,
    settings: SearchSettings,
    *,
    resume: bool = False,
    say: Say = lambda line: None,
) -> str:
    """Search observations with every fold of a finished run.

    Args:
      run_path: folder or URL of the run.
      out: folder or URL to write.
      resume: go on with the search in `out`.
      say: takes a line for each observation's notes and each channel done.

    Returns:
      The path of candidates.csv.

    Raises:
      ConfigError, DataError, RunFolderError: found before anything is searched, except damage inside a file.
    """
    run, folder = load_run(run_path), RunFolder(out)
    config = run.config.model_copy(update={"layout": run.config.layout or DEFAULT_LAYOUT["cadence"]})
    check(run, observations)
    width = int(run.manifest["data"]["panel_shape"][1])
    weights = [run.weights(fold) for fold in range(config.folds)]
    plan = {
        "format": FORMAT,
        "run": {
            "root": str(run.folder),
            "weights_sha256": [sha256(content) for content in weights],
        },
        "settings": settings.model_dump(mode="json"),
        "conditioning": definition(),
        "windows": windows.definition(width),
        "observations": [describe(observation) for observation in observations],
    }
    for observation in observations:
        for note in observation.notes:
            say(f"{observation.name}: {note}")
    with folder.locked():
        _open(folder, plan, resume)
        units = list(channels_of(observations))
        recover = shares(settings.recover, len(units))
        done = _done(folder, say)
        score: Score | None = None
        started = time.perf_counter()
        texts = []
        for number, ((observation, channel), n_recover) in enumerate(zip(units, recover), 1):
            key = (observations.index(observation), channel.number)
            if key not in done:
                # TensorFlow is loaded here, and only where a channel is left to search.
                score = score or _scorer(config, weights)
                text = to_text(
                    search_channel(observation, channel, score, settings, width=width, n_recover=n_recover)
                )
                folder.write(_channel_name(key, text), text)
                done[key] = text
                say(_progress(number, len(units), observation, channel, text, time.perf_counter() - started))
            texts.append(done[key])
        return finish(
            folder, observations, plan, settings, [json.loads(text) for text in texts], config.folds
        )


def check(run: Run, observations: Sequence[Observation]) -> None:
    """Whether a run can search observations: the same product as it was trained on, conditioned in the same way.

    Raises:
      ConfigError: it cannot; names the field, what the run has and what the files have.
      DataError: observations of different products.
    """
    same_product(observations)
    data, first = run.manifest["data"], observations[0]
    if data["storage"] != "cadence":
        raise ConfigError(
            f"{run.folder} was trained on PNG shards, which hold no OFF panels: it cannot search"
        )
    n_times, width = data["panel_shape"]
    if n_times != first.n_times:
        raise ConfigError(
            f"{run.folder} was trained on panels of {n_times} spectra; {first.headers[0].name} has {first.n_times}. "
            "Train on shards made by `data inject` from observations of the same product."
        )
    for name, trained, found in (("df_hz", data["df_hz"], first.df_hz), ("dt_s", data["dt_s"], first.dt_s)):
        if trained is None or abs(trained - found) > 0.01 * found:
            raise ConfigError(
                f"{name}: {run.folder} was trained at {trained}, but {first.headers[0].name} has {found:g}. "
                "Train on shards made by `data inject` from observations of the same product."
            )
    for name, own in (("conditioning", definition()), ("windows", windows.definition(width))):
        if data.get(name) != own:
            raise ConfigError(
                f"{name}: {run.folder} was trained on {data.get(name) or 'shards that do not say'}, but a search makes "
                f"{own}. Train on shards made by `data inject`."
            )


def finish(
    folder: RunFolder,
    observations: Sequence[Observation],
    plan: dict[str, Any],
    settings: SearchSettings,
    channels: Sequence[dict[str, Any]],
    n_folds: int,
) -> str:
    """Gather the results of all channels and write what a search leaves."""
    hits: dict[str, list[gather.Hit]] = {observation.name: [] for observation in observations}
    null: dict[str, list[gather.Hit]] = {observation.name: [] for observation in observations}
    for channel in channels:
        hits[channel["observation"]] += channel["hits"]
        null[channel["observation"]] += channel["null"]
    all_null = [hit for own in null.values() for hit in own]
    recovered = [row for channel in channels for row in channel["recovered"]]
    ghz = sum(channel["mhz"] for channel in channels) / 1e3
    threshold = gather.choose_threshold(settings, all_null, ghz)
    rows = gather.candidates(observations, hits, threshold.value, settings.exclude_mhz)
    max_drift = max(settings.bins) * MAX_DRIFT * observations[0].df_hz / span_s(observations[0].time_s)
    for observation in observations:
        for name, text in results.dat_files(observation, rows, max_drift).items():
            folder.write(name, text)
    summary = {
        **plan,
        "threshold": {"value": threshold.value, "how": threshold.how},
        "candidates": len(rows),
        "ghz": round(ghz, 9),
        "channels": len(channels),
        "n_windows": sum(channel["n_windows"] for channel in channels),
        "max_drift_hz_s": round(max_drift, 6),
        "on_off_exchanged": gather.null_table(all_null, ghz),
        "recall": gather.recall_table(recovered, threshold.value),
        "notes": {observation.name: list(observation.notes) for observation in observations},
        "damage": [damage for channel in channels for damage in _damage(observations, channel)],
        "versions": versions(),
    }
    folder.write("candidates.html", page.render(rows, summary, observations))
    folder.write("search.json", to_json(summary) + "\n")
    folder.write("candidates.csv", results.csv(rows, n_folds))
    return folder.path("candidates.csv")


def _damage(observations: Sequence[Observation], channel: dict[str, Any]) -> list[dict[str, Any]]:
    """What is wrong with panels of a channel, with the file that each is from."""
    observation = next(other for other in observations if other.name == channel["observation"])
    return [
        {"observation": observation.name, "channel": channel["channel"], "file": header.path, "what": flag}
        for header, flag in zip(observation.headers, channel["flags"])
        if flag
    ]


def _scorer(config: Any, weights: Sequence[bytes]) -> Score:
    return importlib.import_module("setibl_ray.seti.train.scoring").folds_scorer(config, weights)


def _open(folder: RunFolder, plan: dict[str, Any], resume: bool) -> None:
    """Begin the folder, or take it up.

    Raises:
      RunFolderError: it holds a search already, or another one.
    """
    if not folder.exists("plan.json"):
        folder.write_json("plan.json", plan)
        return
    if not resume:
        raise RunFolderError(
            f"{folder} holds a search already. Go on with --resume, or choose another --out."
        )
    kept = folder.read_json("plan.json")
    differs = [name for name in plan if json.loads(json.dumps(plan[name])) != kept.get(name)]
    if differs:
        raise RunFolderError(
            f"{folder.path('plan.json')}: {', '.join(differs)} differ from this search's. Repeat the command that "
            "began it, or choose another --out."
        )


def _channel_name(key: tuple[int, int], text: str) -> str:
    return f"channels/{key[0]:03d}-{key[1]:05d}-{sha256(text.encode())[:32]}.json"


def _done(folder: RunFolder, say: Say) -> dict[tuple[int, int], str]:
    """Channels that are on disk whole."""
    done: dict[tuple[int, int], str] = {}
    if not folder.exists("channels"):
        return done
    for name in sorted(folder.names("channels")):
        match = _CHANNEL.fullmatch(name)
        if match:
            content = folder.read(f"channels/{name}")
            if sha256(content)[:32] == match[3]:
                done[int(match[1]), int(match[2])] = content.decode()
            else:
                say(f"{folder.path(f'channels/{name}')} is damaged: its channel is searched again")
                folder.remove([f"channels/{name}"])
    return done


def _progress(
    number: int, n_channels: int, observation: Observation, channel: Channel, text: str, seconds: float
) -> str:
    result = json.loads(text)
    left = ""
    if number < n_channels and math.isfinite(seconds):
        left = f", {seconds / number * (n_channels - number) / 60:.0f} min to go"
    mhz = observation.mhz(channel.low), observation.mhz(channel.high)
    flags = (
        f"  {'; '.join(sorted({flag for flag in result['flags'] if flag}))}" if any(result["flags"]) else ""
    )
    return (
        f"{number}/{n_channels}  {observation.name}  {mhz[0]:.3f}–{mhz[1]:.3f} MHz: {result['n_windows']} windows, "
        f"{len(result['hits'])} hits{left}{flags}"
    )
