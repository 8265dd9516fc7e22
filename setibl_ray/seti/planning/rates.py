"""How fast a fold is: measured in an earlier run, or assumed from its device's peak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, NamedTuple

import pandas as pd

from setibl_ray.core.errors import RunFolderError
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import Manifest
from setibl_ray.core.run.stored import read_config
from setibl_ray.seti.cadence import LAYOUTS
from setibl_ray.seti.config import Config, FoldConfig
from setibl_ray.seti.planning.assume import Assume, device_of
from setibl_ray.seti.sizes import sizes

BACKWARD = 2.0  # cost of the backward pass, in forward passes
BUILD_TEST = 0.25  # of building a model to train, which compiles two forward passes and a backward pass
A_QUARTER = "assumed: a quarter of that"


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
    """How fast one fold is on its share of a node.

    Attributes:
      train, predict: images per second.
      cadences: per second, read and decoded for a node's panels.
      epoch_s: fixed time per epoch, besides its images.
      start_s: from submission until the process has its device.
      build_s, build_test_s: model and tracing, to train and to predict only.
      source: name of a rate -> where it is from, if it differs from the others.
    """

    train: float
    predict: float
    cadences: float
    epoch_s: float
    start_s: float
    build_s: float
    build_test_s: float
    source: dict[str, str] = field(default_factory=dict)


NAMES = tuple(name for name in Rates.__dataclass_fields__ if name != "source")


def flop(config: Config, fold: int) -> float:
    """FLOP of a forward pass of one image."""
    own = config.for_fold(fold)
    height, width, _ = LAYOUTS[config.layout or "all6"].image_shape(own.image_size)
    return 2 * sizes(config, fold, {}).multiply_adds * height * width


def assumed(config: Config, fold: int, share: Share, assume: Assume) -> Rates:
    """Rates from the device's peak.

    Raises:
      ConfigError: nothing is known about the device.
    """
    device = device_of(assume, share.device)
    reached = share.count * device.peak_tflops * 1e12 * device.utilisation
    forward = flop(config, fold)
    cadences = assume.cadences_per_s or min(200.0 * share.cpus, 2000.0)
    peak = f"assumed: {100 * device.utilisation:g} % of {share.count} x {device.peak_tflops:g} TFLOP/s"
    gflop = f"{forward / 1e9:.3g} GFLOP an image"
    return Rates(
        train=reached / (forward * (1 + BACKWARD)),
        predict=reached / forward,
        cadences=cadences,
        epoch_s=0.0,
        start_s=assume.start_s,
        build_s=device.build_s,
        build_test_s=device.build_s * BUILD_TEST,
        source=dict.fromkeys(NAMES, "assumed")
        | {
            "train": f"{peak}; {1 + BACKWARD:g} x {gflop}",
            "predict": f"{peak}; {gflop}",
            "build_test_s": A_QUARTER,
        },
    )


@dataclass(frozen=True)
class Measured:
    """The rates of an earlier run by fold, and what its folds ran on."""

    run: str
    config: Config
    share: Share
    by_fold: Mapping[int, Rates]

    def of(self, config: Config, fold: int, share: Share) -> Rates:
        """Rates for a fold of another config, scaled by FLOP (for another backbone or size) and by devices."""
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
        source = dict.fromkeys(NAMES, says) | dict.fromkeys(("train", "predict"), says_scaled) | rates.source
        return replace(rates, train=rates.train * factor, predict=rates.predict * factor, source=source)


def measure(path: str) -> Measured:
    """Read the rates of a run, which need not be finished: one trained fold is enough.

    Raises:
      RunFolderError: there is no run, or no fold of it was trained from its first epoch to its last in one attempt.
    """
    folder = RunFolder(path)
    manifest = Manifest.load(folder).plain()
    config = read_config(folder, Config)
    n_valid = folder.read_csv("folds.csv")["fold"].astype(int).value_counts()
    jobs = list(_jobs(manifest))
    trained = [
        _Trained(job, folder.read_csv(f"fold-{job.fold}/history.csv"), int(n_valid[job.fold]))
        for job in jobs
        if job.rows is None and job.timings and job.whole
    ]
    if not trained:
        raise RunFolderError(f"{path}: no fold was trained there from its first epoch to its last")
    place = trained[0].job
    count = place.threads if place.device == "cpu" else place.n_replicas
    share = Share(place.device, place.device.upper(), count, place.threads)

    # A process starts on a slot that became free when a driver began or a job ended.
    frees = [
        manifest["started_s"],
        *(driver["at_s"] for driver in manifest["resumed"]),
        *(job.ended_s for job in jobs),
    ]
    start_s = median(
        job.started_s - max(free for free in frees if free <= job.started_s) for job in jobs if job.is_first
    )
    # The first fold on a node decodes its panels; others wait for it or find them decoded.
    open_s = max(fold.job.timings["open_s"] for fold in trained)
    cadences = manifest["data"]["n_train"] / max(open_s, 1e-3)

    groups: dict[FoldConfig, list[_Trained]] = {}
    for fold in trained:
        groups.setdefault(config.for_fold(fold.job.fold), []).append(fold)
    by_fold: dict[int, Rates] = {}
    for group in groups.values():
        folds = [fold.job.fold for fold in group]
        spans = [job for job in jobs if job.fold in folds and job.rows and job.timings]
        by_fold |= dict.fromkeys(folds, _rates(group, spans, config.tta, start_s=start_s, cadences=cadences))
    return Measured(path, config, share, by_fold)


@dataclass(frozen=True)
class _Job:
    """An attempt of a run, from its manifest. `is_first`: the first job of its process, which builds and traces."""

    fold: int
    rows: int | None  # of the test set; None for training
    whole: bool  # does not continue another attempt
    device: str
    n_replicas: int
    threads: int
    started_s: float
    ended_s: float
    timings: Mapping[str, float]  # empty unless it ended well
    is_first: bool


def _jobs(manifest: Mapping[str, Any]) -> Iterator[_Job]:
    """Attempts that reported where they run, ordered by their start."""
    told = []
    for fold, entry in manifest["folds"].items():
        for number, attempt in enumerate(entry["attempts"]):
            last = number == len(entry["attempts"]) - 1 and attempt["outcome"] == "done"
            told.append((int(fold), attempt, entry.get("timings", {}) if last else {}))
        told += [(int(fold), attempt, attempt.get("timings", {})) for attempt in entry["predictions"]]
    processes = set()
    for fold, attempt, timings in sorted(told, key=lambda one: one[1]["started_s"]):
        if "pid" in attempt:
            rows = attempt.get("rows")
            yield _Job(
                fold,
                rows[1] - rows[0] if rows else None,
                attempt.get("from_step", attempt.get("from_epoch", 0)) == 0,
                attempt["device"],
                attempt.get("n_replicas", 1),
                attempt.get("cpus") or attempt["threads"],
                attempt["started_s"],
                attempt.get("ended_s") or float("inf"),
                timings,
                (attempt["node"], attempt["pid"]) not in processes,
            )
            processes.add((attempt["node"], attempt["pid"]))


class _Trained(NamedTuple):
    """A fold's training: its job, its history.csv, and its number of held-out rows."""

    job: _Job
    history: pd.DataFrame
    n_valid: int

    @property
    def besides_s(self) -> float:
        """Time of its epochs besides training: predicting the held-out part and saving its state."""
        return self.job.timings["train_s"] - self.history["duration_s"].sum()


def _rates(
    folds: Sequence[_Trained], spans: Sequence[_Job], tta: int, *, start_s: float, cadences: float
) -> Rates:
    """Rates of folds with the same config, and of their spans of the test set.

    The first job of a process traces in its first epoch or prediction. That one is left out of the rates; the time that
    it takes longer than the others counts as time to build.
    """
    first, later = [f for f in folds if f.job.is_first], [f for f in folds if not f.job.is_first]
    speeds = [speed for fold in first for speed in fold.history["images_per_s"][1:]]
    speeds += [speed for fold in later for speed in fold.history["images_per_s"]]
    train = median(speeds or [speed for fold in folds for speed in fold.history["images_per_s"]])

    predicting = [(tta * fold.n_valid, fold.job.timings["predict_valid_s"]) for fold in folds if tta]
    predicting += [
        ((tta + 1) * (span.rows or 0), span.timings["predict_s"]) for span in spans if not span.is_first
    ]
    if not predicting:
        predicting = [(len(fold.history) * fold.n_valid, fold.besides_s) for fold in later or folds]
    predict = median(images / seconds for images, seconds in predicting)

    epoch_s = median([fold.besides_s / len(fold.history) - fold.n_valid / predict for fold in later] or [0.0])
    epoch_s = max(0.0, epoch_s)

    def build_s(fold: _Trained) -> float:
        traced = fold.history["duration_s"][0] * (1 - fold.history["images_per_s"][0] / train)
        besides = fold.besides_s - len(fold.history) * (fold.n_valid / predict + epoch_s)
        return fold.job.timings["build_s"] + max(0.0, traced) + max(0.0, besides)

    def build_test_s(span: _Job) -> float:
        images = (tta + 1) * (span.rows or 0)
        return span.timings["build_s"] + max(0.0, span.timings["predict_s"] - images / predict)

    built = median([build_s(fold) for fold in first] or [build_s(fold) for fold in later])
    built_test = [build_test_s(span) for span in spans if span.is_first]
    return Rates(
        train=train,
        predict=predict,
        cadences=cadences,
        epoch_s=epoch_s,
        start_s=start_s,
        build_s=built,
        build_test_s=median(built_test or [BUILD_TEST * built]),
        source={} if built_test else {"build_test_s": A_QUARTER},
    )
