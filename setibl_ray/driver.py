"""A cross-validation from start to end: check, plan, run the folds, gather, write.

This is the one place that follows a run through time. It never computes with TensorFlow and never touches an
accelerator: folds do, wherever the runner puts them, and what they find arrives here as events.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from setibl_ray import folds, metrics, oof
from setibl_ray.cadence import DEFAULT_LAYOUT, LAYOUTS, N_PANELS
from setibl_ray.config import Config, parse
from setibl_ray.contract import EpochEnd, Event, Failed, FoldResult, Job, LocalRunner, Plan, Runner, Started
from setibl_ray.data.shards import DataIndex, read_index
from setibl_ray.errors import ConfigError, FoldFailedError, Interrupted, RunFolderError
from setibl_ray.failures import Decision, decide
from setibl_ray.manifest import Manifest, describe
from setibl_ray.progress import Progress
from setibl_ray.runfolder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console

FIT_FOLD = "setibl_ray.train.fold:fit_fold"  # named, not imported: it brings TensorFlow with it


@dataclass(frozen=True)
class Where:
    """Where and how folds run; nothing here changes a result.

    Attributes:
      runner: `ray`, or `local` for a plain loop in this process.
      address: Ray cluster to join; None starts Ray on this machine, unless RAY_ADDRESS names a cluster.
      workers: at most this many folds at once; None for as many as fit.
      accelerator_type: Ray's name of a generation, such as TPU-V4 or A100.
      labels: node labels that a fold's node must carry.
      placement_timeout_s: how long to wait for a cluster to grow before an impossible request is refused.
      max_retries: retries of one fold after its worker or node died.
    """

    runner: Literal["ray", "local"] = "ray"
    address: str | None = None
    workers: int | None = None
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    placement_timeout_s: float = 0.0
    max_retries: int = 3


@dataclass(frozen=True)
class CrossValidation:
    """A finished run: its folder and its metrics (the content of metrics.json)."""

    folder: str
    metrics: dict[str, Any]


def cross_validate(
    config: Config | Mapping[str, Any] | None = None,
    *,
    data: str,
    out: str,
    where: Where | None = None,
    resume: bool = False,
    build_model: Callable[..., Any] | None = None,
    console: Console | None = None,
) -> CrossValidation:
    """Train every fold, and write out-of-fold and test predictions to a run folder.

    Args:
      config: a `Config`, or a mapping of its fields; None for the defaults.
      data: folder or URL of training and test shards.
      out: run folder or URL to write.
      where: where folds run.
      resume: go on with the unfinished folds of the run at `out`.
      build_model: (image_shape, config, fold_config) -> uncompiled Keras model with one sigmoid output,
        instead of the config's backbone. Runs in the fold tasks.
      console: where progress is shown.

    Raises:
      ConfigError, DataError, RunFolderError: found before any training.
      FoldFailedError: a fold failed for good; the others are in the run folder.
      Interrupted: Ctrl-C; what was finished is in the run folder.
    """
    where = where or Where()
    config = config if isinstance(config, Config) else parse(dict(config or {}))
    index = read_index(data)
    config = check(config, index)
    fold_of_row = folds.assign(config, index.train, describe(index)["n_train_shards"], data)
    check_batches(config, fold_of_row)
    folder = RunFolder(out)
    scratch = tempfile.gettempdir() + f"/setibl-ray-{os.getuid()}-{index.fingerprint[:12]}"
    plan = Plan(config, index, fold_of_row, scratch, build_model=build_model)
    with runner_for(plan, where, console) as (runner, plan):
        manifest = open_run(folder, plan, resume)
        results = finished_folds(folder, manifest, plan) if resume else {}
        todo = [fold for fold in range(plan.config.folds) if fold not in results]
        with Progress(todo, console) as progress:
            try:
                results |= run_folds(runner, folder, manifest, plan, todo, where.max_retries, progress)
            except KeyboardInterrupt:
                runner.cancel()
                raise Interrupted(
                    f"interrupted; finished folds and epochs are kept. {resuming(folder)}"
                ) from None
    if manifest.failed_folds:
        failed = manifest.failed_folds
        reasons = "; ".join(f"fold {f}: {manifest.fold(f)['attempts'][-1]['message']}" for f in failed)
        raise FoldFailedError(
            f"{len(failed)} of {config.folds} folds failed ({reasons}). The others are kept. {resuming(folder)}"
        )
    return gather_run(folder, manifest, plan, results)


def check(config: Config, index: DataIndex) -> Config:
    """Settle what depends on the data, and refuse what cannot work with it.

    Raises:
      ConfigError: the layout needs panels that the shards do not hold, or the weights are not there.
    """
    layout = LAYOUTS[config.layout or DEFAULT_LAYOUT[index.storage]]
    if index.storage == "seed" and len(layout.panels) == N_PANELS:
        raise ConfigError(
            f"layout: {layout.name} needs all six panels, but the seed shards in {index.root} hold the three ON "
            "panels only. Take --layout on3 or on_stack, or pack the cadences with `python -m setibl_ray.data pack`."
        )
    if config.weights == "imagenet" and "efficientnet-nano" in config.model:
        raise ConfigError(
            "weights: nobody has trained efficientnet-nano on ImageNet; take --weights none or a weights file"
        )
    if config.weights not in ("imagenet", "none") and not Path(config.weights).is_file():
        raise ConfigError(
            f"weights: expected imagenet, none or a weights file; {config.weights!r} is no file"
        )
    return config.model_copy(update={"layout": layout.name})


def check_batches(config: Config, fold_of_row: np.ndarray) -> None:
    for fold in range(config.folds):
        n_train, batch = int((fold_of_row != fold).sum()), config.for_fold(fold).batch_size
        if n_train < batch:
            raise ConfigError(
                f"batch-size: fold {fold} trains on {n_train} records, fewer than one batch of {batch}. "
                "Lower --batch-size."
            )


@contextmanager
def runner_for(plan: Plan, where: Where, console: Console | None) -> Iterator[tuple[Runner, Plan]]:
    """A runner, and the plan with the device and cores that a fold gets there."""
    from rich.console import Console as RichConsole

    console = console or RichConsole()
    if where.runner == "local":
        cores = len(os.sched_getaffinity(0))
        share = plan.config.cpus_per_fold or max(1, cores // plan.config.folds)
        plan = _placed(plan, plan.config.device, share)
        yield LocalRunner(FIT_FOLD, plan), plan
        return
    from setibl_ray.cluster import connect, placement
    from setibl_ray.cluster.runner import RayRunner

    with connect.connected(where.address) as greeting:
        console.print(greeting, highlight=False, markup=False)
        request = placement.wait_for_placement(
            lambda: placement.request_for(
                plan.config, placement.cluster_nodes(), where.accelerator_type, where.labels
            ),
            where.placement_timeout_s,
            lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True),
        )
        plan = _placed(plan, request.device, request.cpus)
        yield RayRunner(FIT_FOLD, plan, request, where.workers), plan


def _placed(plan: Plan, device: str, cpus: int) -> Plan:
    from dataclasses import replace

    config = plan.config.model_copy(update={"device": device, "cpus_per_fold": cpus})
    return replace(plan, config=config)


def run_folds(
    runner: Runner,
    folder: RunFolder,
    manifest: Manifest,
    plan: Plan,
    todo: list[int],
    max_retries: int,
    progress: Progress,
) -> dict[int, FoldResult]:
    """Run folds and show what happens.

    Raises:
      ConfigError: a fold found that no fold of this config can work.
    """
    results: dict[int, FoldResult] = {}
    for event, decision in follow_folds(runner, folder, manifest, plan, todo, max_retries):
        if isinstance(event, FoldResult):
            results[event.fold] = event
        progress.update(event, decision)
    return results


def follow_folds(
    runner: Runner, folder: RunFolder, manifest: Manifest, plan: Plan, todo: list[int], max_retries: int
) -> Iterator[tuple[Event, Decision | None]]:
    """Run folds, write down what happens as it happens, and try failed attempts again where that helps.

    Yields:
      Every event once it is in the run folder; with a `Failed`, what was decided about it.

    Raises:
      ConfigError: a fold found that no fold of this config can work.
    """
    failures: dict[int, list[Failed]] = {fold: [] for fold in todo}
    for fold in todo:
        runner.submit(Job(fold, state=_last_state(folder, fold)))
    for event in runner.events():
        decision = None
        if isinstance(event, Started):
            manifest.started(event)
        elif isinstance(event, EpochEnd):
            folder.save_state(event.fold, event.epoch, event.state)
        elif isinstance(event, FoldResult):
            _save_fold(folder, plan, event)
            manifest.done(event)
        else:
            decision = decide(event, failures[event.fold], max_retries)
            failures[event.fold].append(event)
            manifest.failed(event, decision)
            if event.cause == "config":
                runner.cancel()
                raise ConfigError(event.message)
            if decision.action != "give-up":
                runner.submit(Job(event.fold, len(failures[event.fold]), _last_state(folder, event.fold)))
            elif event.details:
                folder.write(f"fold-{event.fold}/error.txt", event.details)
        yield event, decision


def _last_state(folder: RunFolder, fold: int) -> bytes | None:
    states = folder.states(fold)
    return folder.read(states[-1]) if states else None


def _save_fold(folder: RunFolder, plan: Plan, result: FoldResult) -> None:
    from setibl_ray.reporting import training_plot

    own = plan.config.for_fold(result.fold)
    height, width = own.image_size
    title = f"FOLD {result.fold} - image size {height}x{width}, {own.model}"
    import pandas as pd

    valid = plan.index.train.iloc[plan.valid_rows(result.fold)][["image_id", "target"]]
    plot = training_plot.draw(pd.DataFrame(result.history), title)
    folder.save_fold(result, valid, plan.index.test["image_id"].to_numpy(), plot)


def open_run(folder: RunFolder, plan: Plan, resume: bool) -> Manifest:
    """Begin a run folder, or take up one that exists."""
    if folder.exists():
        if not resume:
            raise RunFolderError(
                f"{folder} holds a run already. Add --resume to go on with it, or choose another --out."
            )
        _same_run(folder, plan)
        return Manifest.load(folder)
    if resume:
        raise RunFolderError(
            f"--resume: {folder} holds no run (no manifest.json). Leave --resume out to begin one."
        )
    train = plan.index.train
    folder.write("config.yaml", plan.config.to_yaml())
    assigned = train[["image_id"]].assign(fold=plan.fold_of_row)
    folder.write_csv("folds.csv", assigned)
    folder.write_csv(
        "records.csv", train[["image_id", "target", "group", "snr", "kind"]].assign(fold=plan.fold_of_row)
    )
    manifest = Manifest.new(folder, plan.index, plan.config.folds, shlex.join(sys.argv))
    manifest.save()
    return manifest


def _same_run(folder: RunFolder, plan: Plan) -> None:
    """Raises:
    RunFolderError: the run there has another config, other data or another format; says which.
    """
    import yaml

    from setibl_ray.runfolder import FORMAT

    there = Manifest.load(folder).content
    if there.get("format") != FORMAT:
        raise RunFolderError(f"{folder} has run format {there.get('format')}, this version writes {FORMAT}.")
    if there["data"]["fingerprint"] != plan.index.fingerprint:
        raise RunFolderError(
            f"{folder} was made from other data: fingerprint {there['data']['fingerprint'][:12]} of "
            f"{there['data']['root']}, now {plan.index.fingerprint[:12]} of {plan.index.root}."
        )
    old, new = yaml.safe_load(folder.read("config.yaml")), yaml.safe_load(plan.config.to_yaml())
    changed = list(differences(old, new))
    if changed:
        raise RunFolderError(
            f"{folder} was begun with another config: {'; '.join(changed)}. Resume with the config of "
            f"{folder.path('config.yaml')}, or choose another --out."
        )


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        label = f"{prefix}{name.replace('_', '-')}"
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differences(before, now, f"{label}.")
        elif before != now:
            yield f"{label} was {before}, now {now}"


def finished_folds(folder: RunFolder, manifest: Manifest, plan: Plan) -> dict[int, FoldResult]:
    """The finished folds of a run that is taken up again, read back from its folder."""
    results = {}
    for fold in range(plan.config.folds):
        if not manifest.is_done(fold):
            continue
        valid = folder.read_csv(f"fold-{fold}/oof.csv")
        test = folder.read_csv(f"fold-{fold}/test.csv") if plan.predict_test and len(plan.index.test) else None
        empty = np.empty(0, np.float32)
        results[fold] = FoldResult(
            fold=fold,
            valid_pred=valid["pred"].to_numpy(np.float32),
            valid_pred_no_tta=valid["pred_no_tta"].to_numpy(np.float32),
            test_pred=empty if test is None else test["pred"].to_numpy(np.float32),
            test_pred_no_tta=empty if test is None else test["pred_no_tta"].to_numpy(np.float32),
            best_epoch=manifest.fold(fold)["best_epoch"],
            history=folder.read_csv(f"fold-{fold}/history.csv").to_dict("records"),
            weights=b"",
            timings=manifest.fold(fold)["timings"],
            peak_memory_bytes=manifest.fold(fold)["peak_memory_bytes"],
        )
    return results


def gather_run(
    folder: RunFolder, manifest: Manifest, plan: Plan, results: Mapping[int, FoldResult]
) -> CrossValidation:
    """Write what all folds together give: oof.csv, submission.csv, metrics.json."""
    import pandas as pd

    pred = oof.gather(plan.fold_of_row, {fold: r.valid_pred for fold, r in results.items()})
    plain = oof.gather(plan.fold_of_row, {fold: r.valid_pred_no_tta for fold, r in results.items()})
    table = oof.oof_table(plan.index.train, plan.fold_of_row, pred, plain)
    summary = metrics.summarise(table, seed=plan.config.seed)
    for entry in summary["folds"]:
        entry["best_epoch"] = results[entry["fold"]].best_epoch
    folder.write_csv("oof.csv", table[["image_id", "target", "pred", "fold"]])
    if plan.predict_test and len(plan.index.test):
        in_order = [results[fold] for fold in range(plan.config.folds)]
        weights = oof.fold_weights(plan.config, [entry["auc"] for entry in summary["folds"]])
        test = pd.DataFrame(
            {
                "id": plan.index.test["image_id"].to_numpy(),
                "target": oof.average([result.test_pred for result in in_order], weights),
            }
        )
        folder.write_csv("submission.csv", test.sort_values("id", kind="stable"))
        summary["fold_weights"] = weights.tolist()
    folder.write_json("metrics.json", summary)
    manifest.content["ended_s"] = time.time()
    manifest.save()
    return CrossValidation(str(folder), summary)


def resuming(folder: RunFolder) -> str:
    """The command that goes on with a run."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    if not any(argument == "--out" or argument.startswith("--out=") for argument in arguments):
        arguments += ["--out", str(folder)]
    return f"Resume with: python -m setibl_ray.cv {shlex.join(arguments)} --resume"
