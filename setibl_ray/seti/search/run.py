"""A search from start to end: check, a job for each coarse channel with its result on disk, then gather.

DIR/plan.json                              what is searched, with which weights and settings
DIR/channels/OBS-CHANNEL-SHA.json          a channel's result, its checksum in its name
DIR/candidates.csv  *.dat  search.json  candidates.html
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from setibl_ray.core import terminal
from setibl_ray.core.errors import ConfigError, FoldFailedError, RunFolderError
from setibl_ray.core.jobs import Event, Failed, Job, Predicted, RunSpec
from setibl_ray.core.run import session
from setibl_ray.core.run.folder import RunFolder, sha256, to_json
from setibl_ray.core.run.manifest import versions
from setibl_ray.core.run.supervisor import Answer, Standing
from setibl_ray.core.storage import location
from setibl_ray.core.task import Rows
from setibl_ray.core.where import Where
from setibl_ray.seti.cadence import DEFAULT_LAYOUT
from setibl_ray.seti.evaluation.finished import Run, load_run
from setibl_ray.seti.observations import windows
from setibl_ray.seti.observations.conditioning import definition
from setibl_ray.seti.observations.injection import MAX_DRIFT, describe
from setibl_ray.seti.observations.lines import span_s
from setibl_ray.seti.observations.observation import Observation, channels_of, same_product
from setibl_ray.seti.search import gather, page, results
from setibl_ray.seti.search.settings import SearchSettings
from setibl_ray.seti.search.task import ChannelTask, Scorer, Searched

FORMAT = 1
_CHANNEL = re.compile(r"(\d+)-(\d+)-([0-9a-f]{32})\.json")

Say = Callable[[str], None]
SCORER: Scorer | str = "setibl_ray.seti.train.scoring:folds_scorer"


def search(
    run_path: str,
    observations: Sequence[Observation],
    out: str,
    settings: SearchSettings,
    *,
    where: Where | Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> str:
    """Search observations with every fold of a finished run: a job for each coarse channel.

    Args:
      run_path: folder or URL of the run.
      out: folder or URL to write.
      where: where channels are searched; a `Where`, or a mapping of its fields.
      changes: config fields that say what a job runs on; by default the best device of the cluster, and one core.
      resume: go on with the search in `out`.
      console: where a line for each observation's notes and each channel is shown.

    Returns:
      The path of candidates.csv.

    Raises:
      ConfigError, DataError, RunFolderError: found before anything is searched.
      FoldFailedError: a channel could not be searched; candidates of all others are written.
      RunStoppedError, Interrupted: as in `session.run_folds`.
    """
    where, say = Where.of(where), session.sayer(console or terminal.console())
    run, folder = load_run(run_path), RunFolder(location("out", out))
    check(run, observations)
    width = int(run.manifest["data"]["panel_shape"][1])
    weights = {str(fold): run.weights(fold) for fold in range(run.config.folds)}
    plan = {
        "format": FORMAT,
        "run": {
            "root": str(run.folder),
            "weights_sha256": [sha256(content) for content in weights.values()],
        },
        "settings": settings.model_dump(mode="json"),
        "conditioning": definition(),
        "windows": windows.definition(width),
        "observations": [describe(observation) for observation in observations],
        "coarse_channels": [len(observation.channels) for observation in observations],
    }
    spec = _spec(run, Searched(observations, settings, width), weights, plan, changes or {})
    for observation in observations:
        for note in observation.notes:
            say(f"{observation.name}: {note}")
    for warning in _warnings(run, settings):
        say(warning)
    with folder.locked():
        _open(folder, plan, resume)
        channels = _Channels(folder, spec, say)
        if channels.missing:
            how = f"Go on with the same command, --out {out} and --resume."
            with session.place(spec, where, say) as (runner, placed), session.ending(channels, how):
                channels.spec = placed
                for _ in session.follow(runner, channels, where.max_retries):
                    pass
        found = channels.results()
        path = finish(folder, observations, plan, settings, found, run.config.folds) if found else ""
        channels.check()
        return path


def _warnings(run: Run, settings: SearchSettings) -> Iterator[str]:
    """Warnings if a run was not trained for these bins, or if the threshold leaves out most of its own needles."""
    trained = run.manifest["data"].get("bins") or settings.bins
    if others := [width for width in settings.bins if width not in trained]:
        yield (
            f"bins: the run was trained with --bins {','.join(map(str, trained))}, and has not seen "
            f"{','.join(map(str, others))}; train on shards of `data inject --bins "
            f"{','.join(map(str, settings.bins))}`, or search with the run's"
        )
    if settings.false_per_ghz is not None:
        return
    level = gather.THRESHOLD if settings.threshold is None else settings.threshold
    found = run.oof["pred_no_tta"][run.oof["target"] == 1] >= level
    if len(found) and found.mean() < 0.5:
        yield (
            f"threshold {level:g}: of the run's own needles, {found.mean():.0%} have such a score in its oof.csv; "
            "lower --threshold, or let --false-per-ghz choose one"
        )


def _spec(
    run: Run,
    content: Searched,
    weights: Mapping[str, bytes],
    plan: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> RunSpec:
    settled = run.config.with_layout(run.config.layout or DEFAULT_LAYOUT["cadence"])
    anew = {"weights": "none", "device": "auto", "devices_per_fold": None, "cpus_per_fold": 1}
    config = settled.model_copy(update=anew | dict(changes))
    names = [
        f"{observation.name} {channel.number}" for observation, channel in channels_of(content.observations)
    ]
    rows = Rows(
        pd.DataFrame({"id": [], "target": []}),
        pd.DataFrame({"id": names}),
        fingerprint=sha256(to_json(plan).encode()),
        content=content,
    )
    task = ChannelTask(content, SCORER)
    return RunSpec(task, config, rows, np.empty(0, np.int16), session.scratch_of(rows), files=weights)


class _Channels:
    """What a search saves and continues from, for `session.follow`: each channel is a row of a test set, and a job."""

    def __init__(self, folder: RunFolder, spec: RunSpec, say: Say) -> None:
        self.folder, self.spec, self._say = folder, spec, say
        content = spec.rows.content
        self._units = list(channels_of(content.observations))
        numbers = {observation.name: i for i, observation in enumerate(content.observations)}
        self._keys = [(numbers[observation.name], channel.number) for observation, channel in self._units]
        self._texts = _done(folder, say)
        self._failed: dict[int, str] = {}
        self._began, self._n_before = time.perf_counter(), len(self._texts)

    @property
    def missing(self) -> bool:
        return any(key not in self._texts for key in self._keys)

    def standings(self) -> dict[int, Standing]:
        done = {(row, row + 1) for row, key in enumerate(self._keys) if key in self._texts}
        return {0: Standing("trained", span_rows=1, predicted=done)}

    def ready(self, job: Job) -> Job:
        return job

    def on(self, event: Event, answer: Answer) -> None:
        if isinstance(event, Predicted):
            row, (text,) = event.span[0], event.prediction.facts["texts"]
            self.folder.write(_channel_name(self._keys[row], text), text)
            self._texts[self._keys[row]] = text
            self._say(self._line(row, json.loads(text)))
        elif isinstance(event, Failed) and event.span and answer.decision:
            row, decision = event.span[0], answer.decision
            if decision.action == "give-up":
                self._failed[row] = event.message
            self._say(f"{self._name(row)}: {event.message} -> {decision.action} ({decision.reason})")

    def close(self) -> None:
        """Nothing is open: each channel is written when it is done."""

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(self._texts[key]) for key in self._keys if key in self._texts]

    def check(self) -> None:
        """Raises:
        FoldFailedError: a channel was given up.
        """
        if self._failed:
            row, message = min(self._failed.items())
            raise FoldFailedError(
                f"{len(self._failed)} of {len(self._units)} channels could not be searched, the first "
                f"{self._name(row)}: {message.rstrip('.')}. Results are of the others; --resume tries these again."
            )

    def _name(self, row: int) -> str:
        observation, channel = self._units[row]
        return (
            f"{observation.name}  {observation.mhz(channel.low):.3f}–{observation.mhz(channel.high):.3f} MHz"
        )

    def _line(self, row: int, result: Mapping[str, Any]) -> str:
        n_done, n = len(self._texts), len(self._units)
        a_channel_s = (time.perf_counter() - self._began) / (n_done - self._n_before)
        left = f", {a_channel_s * (n - n_done) / 60:.0f} min to go" if n_done < n else ""
        flags = "; ".join(sorted({flag for flag in result["flags"] if flag}))
        counts = f"{result['n_windows']} windows, {len(result['hits'])} hits"
        return f"{n_done}/{n}  {self._name(row)}: {counts}{left}" + (f"  {flags}" if flags else "")


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
    false = gather.tops(null.values(), observations[0].coarseness)
    recovered = [row for channel in channels for row in channel["recovered"]]
    ghz = sum(channel["mhz"] for channel in channels) / 1e3
    threshold = gather.choose_threshold(settings, false, ghz)
    rows = gather.candidates(observations, hits, threshold.value, settings.exclude_mhz)
    max_drift = max(settings.bins) * MAX_DRIFT * observations[0].df_hz / span_s(observations[0].time_s)
    for observation in observations:
        for name, text in results.dat_files(observation, rows, max_drift).items():
            folder.write(name, text)
    summary = {
        **plan,
        "threshold": threshold._asdict(),
        "candidates": len(rows),
        "ghz": round(ghz, 9),
        "channels": len(channels),
        "n_windows": sum(channel["n_windows"] for channel in channels),
        "max_drift_hz_s": round(max_drift, 6),
        "on_off_exchanged": gather.null_table(false, ghz),
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


def _open(folder: RunFolder, plan: dict[str, Any], resume: bool) -> None:
    """Begin the folder, or continue it.

    Raises:
      RunFolderError: it holds a search already and `resume` is not set, or it holds another search.
    """
    if not folder.exists("plan.json"):
        folder.write_json("plan.json", plan)
        return
    if not resume:
        raise RunFolderError(
            f"{folder} holds a search already. Go on with --resume, or choose another --out."
        )
    kept = folder.read_json("plan.json")
    differs = [name for name in plan if name in kept and json.loads(json.dumps(plan[name])) != kept[name]]
    if differs:
        raise RunFolderError(
            f"{folder.path('plan.json')}: {', '.join(differs)} differ from this search's. Repeat the command that "
            "began it, or choose another --out."
        )


def _channel_name(key: tuple[int, int], text: str) -> str:
    return f"channels/{key[0]:03d}-{key[1]:05d}-{sha256(text.encode())[:32]}.json"


def _done(folder: RunFolder, say: Say) -> dict[tuple[int, int], str]:
    """Results that are complete on disk, by channel."""
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
