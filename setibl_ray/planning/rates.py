"""How fast a fold is: measured in an earlier run, or assumed from its device's peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import pandas as pd
import yaml

from setibl_ray.backbones import BACKBONES
from setibl_ray.cadence import LAYOUTS
from setibl_ray.config import Config, parse
from setibl_ray.errors import ConfigError, RunFolderError
from setibl_ray.planning.assume import Assume, device_of
from setibl_ray.runfolder import RunFolder

BACKWARD = 2.0  # the backward pass in forward passes


@dataclass(frozen=True)
class Share:
    """What a fold computes on: `count` chips, GPUs or cores of a `device` (Ray's name, or CPU)."""

    kind: str  # tpu, gpu or cpu
    device: str
    count: int
    cpus: int

    def __str__(self) -> str:
        of = f"{self.cpus} core{'s' * (self.cpus > 1)}"
        return of if self.kind == "cpu" else f"{self.count} x {self.device} with {of}"


@dataclass(frozen=True)
class Rates:
    """What one fold does on its share of a node.

    Attributes:
      train, predict: images a second.
      cadences: a second, read and decoded for a node's panels.
      start_s: from submission to device; build_s: model and tracing; epoch_s: what an epoch takes besides images.
      source: name of a rate -> where it is from.
    """

    train: float
    predict: float
    cadences: float
    start_s: float
    build_s: float
    epoch_s: float
    source: Mapping[str, str] = field(default_factory=dict)


def flop(config: Config, fold: int) -> float:
    """Of one image, forward."""
    own = config.for_fold(fold)
    height, width, _ = LAYOUTS[config.layout or "all6"].image_shape(own.image_size)
    return 2 * BACKBONES[own.model].multiply_adds * height * width


def assumed(config: Config, fold: int, share: Share, assume: Assume) -> Rates:
    """Raises:
    ConfigError: nothing is known of the device.
    """
    device = device_of(assume, share.device)
    reached = share.count * device.tflops * 1e12 * device.utilisation
    forward = flop(config, fold)
    cadences = assume.cadences_per_s or min(200.0 * share.cpus, 2000.0)
    peak = f"assumed: {100 * device.utilisation:g} % of {share.count} x {device.tflops:g} TFLOP/s"
    gflop = f"{forward / 1e9:.3g} GFLOP an image"
    return Rates(
        train=reached / (forward * (1 + BACKWARD)),
        predict=reached / forward,
        cadences=cadences,
        start_s=assume.start_s,
        build_s=device.build_s,
        epoch_s=0.0,
        source={
            "train": f"{peak}; {1 + BACKWARD:g} x {gflop}",
            "predict": f"{peak}; {gflop}",
            "epoch_s": "assumed",
            "start_s": "assumed",
            "build_s": "assumed",
            "cadences": "assumed, of a node",
        },
    )


@dataclass(frozen=True)
class Measured:
    """The rates of an earlier run: by fold, and what its folds ran on."""

    run: str
    config: Config
    share: Share
    by_fold: Mapping[int, Rates]

    def of(self, config: Config, fold: int, share: Share) -> Rates:
        """Rates of a fold of another config: scaled by FLOP where backbone or size differ, by devices where they do."""
        wanted = flop(config, fold)
        own = config.for_fold(fold)
        near = min(self.by_fold, key=lambda other: abs(flop(self.config, other) - wanted))
        theirs = self.config.for_fold(near)
        rates, says = self.by_fold[near], f"measured in {self.run}"
        if own.batch_size != theirs.batch_size:
            says += f" at batch size {theirs.batch_size}"
        factor = share.count / self.share.count
        unit = "cores" if share.kind == "cpu" else f"{share.kind.upper()}s"
        scaled = [f"{unit} from {self.share.count} to {share.count}"] if factor != 1 else []
        if (own.model, own.image_size) != (theirs.model, theirs.image_size):
            height, width = theirs.image_size
            factor *= flop(self.config, near) / wanted
            scaled.append(f"FLOP from {theirs.model} at {height}x{width}")
        says_scaled = f"{says}, scaled by {' and by '.join(scaled)}" if scaled else says
        source = dict.fromkeys(rates.source, says) | dict.fromkeys(("train", "predict"), says_scaled)
        return replace(rates, train=rates.train * factor, predict=rates.predict * factor, source=source)


def measure(path: str) -> Measured:
    """Read the rates of a run; one that is not finished will do, as soon as a fold of it is.

    Raises:
      RunFolderError: there is no run, or no fold of it is done.
    """
    folder = RunFolder(path)
    manifest = folder.read_json("manifest.json")
    try:
        config = parse(yaml.safe_load(folder.read("config.yaml")))
    except (ConfigError, yaml.YAMLError) as error:
        raise RunFolderError(f"{folder.path('config.yaml')}: {error}") from None
    histories = {
        int(fold): folder.read_csv(f"fold-{fold}/history.csv")
        for fold, entry in manifest["folds"].items()
        if entry["state"] == "done" and entry["attempts"][-1]["from_epoch"] == 0
    }
    if not histories:
        raise RunFolderError(f"{path}: no fold has been trained from start to end there; nothing to go by")
    n_valid = folder.read_csv("folds.csv")["fold"].astype(int).value_counts()
    place = manifest["folds"][str(min(histories))]["attempts"][-1]
    kind = place["device"]
    count = place["threads"] if kind == "cpu" else place["n_replicas"]
    share = Share(kind, kind.upper(), count, place["threads"])
    return Measured(path, config, share, _by_fold(manifest, config, histories, n_valid))


def _by_fold(
    manifest: Mapping[str, Any], config: Config, histories: Mapping[int, pd.DataFrame], n_valid: pd.Series
) -> dict[int, Rates]:
    """Rates of each group of folds with the same backbone and size."""
    attempts = [
        (attempt | {"fold": int(fold)})
        for fold, entry in manifest["folds"].items()
        for attempt in entry["attempts"]
        if "pid" in attempt
    ]
    first: dict[tuple[str, int], dict] = {}  # the first attempt of each process: it builds and traces
    for attempt in sorted(attempts, key=lambda attempt: attempt["started_s"]):
        first.setdefault((attempt["node"], attempt["pid"]), attempt)
    begun_s = manifest["started_s"]
    first_end_s = min((a["ended_s"] for a in attempts if a["ended_s"]), default=float("inf"))
    at_once = [a for a in first.values() if a["started_s"] < first_end_s and a["attempt"] == 0]
    start_s = median([a["started_s"] - begun_s for a in at_once] or [0.0])
    cold = {a["fold"] for a in first.values() if a["fold"] in histories and a["outcome"] == "done"}

    timings = {fold: manifest["folds"][str(fold)]["timings"] for fold in histories}
    opened = [timings[a["fold"]]["open_s"] for a in at_once if a["fold"] in histories]
    cadences = manifest["data"]["n_train"] / max(max(opened, default=0.0), 1e-3)

    groups: dict[tuple, list[int]] = {}
    for fold in histories:
        own = config.for_fold(fold)
        groups.setdefault((own.model, own.image_size, own.batch_size), []).append(fold)
    rates = {}
    for folds in groups.values():
        ours = _group(
            {fold: histories[fold] for fold in folds},
            {fold: timings[fold] for fold in folds},
            {fold: int(n_valid.get(fold, 0)) for fold in folds},
            cold,
            config.tta,
        )
        source = dict.fromkeys(("train", "predict", "cadences", "start_s", "build_s", "epoch_s"), "")
        rates |= dict.fromkeys(folds, Rates(cadences=cadences, start_s=start_s, source=source, **ours))
    return rates


def _group(
    histories: Mapping[int, pd.DataFrame],
    timings: Mapping[int, Mapping[str, float]],
    n_valid: Mapping[int, int],
    cold: set[int],
    tta: int,
) -> dict[str, float]:
    """train, predict, build_s and epoch_s of folds that are alike.

    A fold in `cold` was the first of its process: its first epoch has the tracing in it.
    """
    speeds = [
        speed
        for fold, history in histories.items()
        for speed in history["images_per_s"][1 if fold in cold else 0 :]
    ]
    train = median(speeds or [speed for history in histories.values() for speed in history["images_per_s"]])

    # Besides its images an epoch predicts the held-out part and keeps the fold's state.
    rest = {
        fold: timings[fold]["train_s"] - history["duration_s"].sum() for fold, history in histories.items()
    }
    per_epoch = {fold: rest[fold] / len(history) for fold, history in histories.items()}
    warm = [fold for fold in histories if fold not in cold]
    if tta:
        predict = median(tta * n_valid[fold] / timings[fold]["predict_valid_s"] for fold in histories)
    else:
        predict = median(n_valid[fold] / max(per_epoch[fold], 1e-3) for fold in warm or histories)
    epoch_s = max(0.0, median([per_epoch[fold] - n_valid[fold] / predict for fold in warm] or [0.0]))

    def traced(fold: int) -> float:
        history = histories[fold]
        first = history["duration_s"].iloc[0] * (1 - history["images_per_s"].iloc[0] / train)
        held_out = rest[fold] - len(history) * (n_valid[fold] / predict + epoch_s)
        return timings[fold]["build_s"] + max(0.0, first) + max(0.0, held_out)

    build_s = median([traced(fold) for fold in histories if fold in cold] or [0.0])
    return {"train": train, "predict": predict, "build_s": build_s, "epoch_s": epoch_s}
