"""A cross-validation from start to end: check, plan, run the folds, gather, write.

This is the one place that follows a run through time. It never computes with TensorFlow and never touches an
accelerator: folds do, wherever the runner puts them, and what they find arrives here as events.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from rich.console import Console

from setibl_ray.core import folds, terminal
from setibl_ray.core.contract import FoldResult, LocalRunner, Plan, Predicted, Runner
from setibl_ray.core.errors import ConfigError, FoldFailedError, Interrupted, RunFolderError, RunStoppedError
from setibl_ray.core.run import oof
from setibl_ray.core.run import resume as taken_up
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import Manifest, describe
from setibl_ray.core.run.progress import Progress
from setibl_ray.core.run.supervisor import Supervisor
from setibl_ray.core.storage import location, temporary_folder
from setibl_ray.core.where import Where
from setibl_ray.seti.cadence import DEFAULT_LAYOUT, LAYOUTS, N_PANELS
from setibl_ray.seti.config import Config, parse
from setibl_ray.seti.evaluation import metrics, postprocess
from setibl_ray.seti.formats.shards import DataIndex, read_index
from setibl_ray.seti.memory import largest_fold_bytes

if TYPE_CHECKING:
    from setibl_ray.core.cluster.placement import Request

FOLD_TASK = "setibl_ray.seti.train.fold:fold_task"  # named, not imported: it brings TensorFlow with it


@dataclass(frozen=True)
class CrossValidation:
    """A finished run: its folder, its metrics (the content of metrics.json), and the index of its data."""

    folder: str
    metrics: dict[str, Any]
    index: DataIndex = field(repr=False)


def cross_validate(
    config: Config | Mapping[str, Any] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str],
    where: Where | Mapping[str, Any] | None = None,
    resume: bool = False,
    on_bad_record: Literal["fail", "skip"] | None = None,
    check_all: bool = False,
    build_model: Callable[..., Any] | None = None,
    console: Console | None = None,
) -> CrossValidation:
    """Train every fold, and write out-of-fold and test predictions to a run folder.

    Args:
      config: a `Config`, or a mapping of its fields; None for the defaults.
      data: folder or URL of training and test shards; with `resume` the run's own if left out.
      out: run folder or URL to write.
      where: where folds run; a `Where`, or a mapping of its fields.
      resume: go on with the unfinished folds of the run at `out`. What `config` leaves out is the run's own then,
        what it sets must not contradict it.
      on_bad_record: refuse data with an unusable record [the default], or leave such records out and list them in
        manifest.json.
      check_all: decode every image before anything is trained, not only some.
      build_model: (image_shape, config, fold_config) -> uncompiled Keras model with one sigmoid output,
        instead of the config's backbone. Runs in the fold tasks.
      console: where progress is shown.

    Raises:
      ConfigError, DataError, RunFolderError: found before any training.
      FoldFailedError: a fold failed for good; the others are in the run folder.
      RunStoppedError: the run folder could not be written any more, or the cluster was lost.
      Interrupted: Ctrl-C; what was finished is in the run folder.
    """
    where, console = Where.of(where), console or terminal.console()
    given = config if isinstance(config, Config) else parse(config or {})
    data = location("data", data) if data is not None else None
    folder = RunFolder(location("out", out))
    with folder.locked():
        if resume:
            earlier, own = taken_up.load(folder)
            config = taken_up.run_config(folder, own, given)
            data = data or earlier.content["data"]["root"]
            on_bad_record = on_bad_record or earlier.content["data"]["on_bad_record"]
        else:
            taken_up.refuse_existing(folder)
            config = given
        if data is None:
            raise ConfigError(
                "data: expected a folder or URL of shards; only a run that is resumed knows its own"
            )
        plan = plan_for(config, data, on_bad_record or "fail", console, build_model, check_all)
        with runner_for(plan, where, console) as (runner, plan):
            manifest = open_run(folder, plan, resume, on_bad_record or "fail")
            with (
                resumable(folder, manifest, _resuming(folder, plan, where)),
                Progress(range(config.folds), plan.n_test, console) as progress,
            ):
                supervisor = Supervisor(runner, folder, manifest, plan, where.max_retries, say=progress.say)
                if resume:
                    supervisor.take_up(*taken_up.take_up(folder, manifest, plan, progress.say))
                for event, decision in supervisor.follow():
                    progress.update(event, decision)
                all_done(manifest)
                return gather_run(folder, manifest, plan, supervisor.results, supervisor.predicted)


def plan_for(
    config: Config,
    data: str,
    on_bad_record: Literal["fail", "skip"],
    console: Console,
    build_model: Callable[..., Any] | None = None,
    check_all: bool = False,
) -> Plan:
    """Everything that can be found wrong with config and data before a node is asked for.

    Raises:
      ConfigError, DataError: something is.
    """
    index = read_index(data, on_bad_record=on_bad_record, decode="all" if check_all else "some")
    for note in index.notes:
        _say(console, note)
    if index.bad_records:
        first = f"first {index.bad_records[0]}"
        _say(
            console,
            f"left out as unusable: {index.n_left_out} records (manifest.json lists them; {first})",
        )
    config = check(config, index)
    fold_of_row = folds.assign(config, index.train, describe(index)["n_train_shards"], data)
    check_batches(config, fold_of_row)
    return Plan(config, index, fold_of_row, scratch_of(index), build_model=build_model)


def scratch_of(index: DataIndex) -> str:
    """The folder on each node for decoded panels of a data set."""
    return f"{temporary_folder()}/setibl-ray-{os.getuid()}-{index.fingerprint[:12]}"


@contextmanager
def resumable(folder: RunFolder, manifest: Manifest, how: str) -> Iterator[None]:
    """Whatever ends work that has begun leaves its state behind and says how to go on from it."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(RunFolderError):
            manifest.interrupted()
            manifest.save()
        raise Interrupted(f"interrupted; finished folds and epochs are kept. {how}") from None
    except (RunFolderError, RunStoppedError) as error:
        raise RunStoppedError(f"{error} Everything before is kept. {how}") from error
    except FoldFailedError as error:
        raise FoldFailedError(f"{error} The others are kept. {how}") from None


def all_done(manifest: Manifest) -> None:
    """Raises:
    FoldFailedError: a fold was given up.
    """
    failed = manifest.failed_folds
    if failed:
        reasons = "; ".join(f"fold {fold}: {manifest.why_failed(fold)}" for fold in failed)
        raise FoldFailedError(f"{len(failed)} of {len(manifest.content['folds'])} folds failed ({reasons}).")


def check(config: Config, index: DataIndex) -> Config:
    """Settle what depends on the data, and refuse what cannot work with it.

    Raises:
      ConfigError: the layout needs panels that the shards do not hold, the weights are not there, or post-processing
        cannot be done.
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
    if config.weights not in ("imagenet", "none") and (lacking := _no_weights(Path(config.weights))):
        raise ConfigError(f"weights: expected imagenet, none or a weights file; {config.weights!r} {lacking}")
    postprocess.check(config.postprocess, {"training": index.train["group"], "test": index.test["group"]})
    return config.model_copy(update={"layout": layout.name})


def _no_weights(path: Path) -> str:
    """Why `path` can be no weights file; empty if it may be one. What is in it, a fold finds out."""
    if not path.is_file():
        return "is no file"
    try:
        with path.open("rb") as file:
            return "" if file.read(8) == b"\x89HDF\r\n\x1a\n" else "is no HDF5 file"
    except OSError as error:
        return f"could not be read: {error.strerror}"


def check_batches(config: Config, fold_of_row: np.ndarray) -> None:
    for fold in range(config.folds):
        n_train, batch = int((fold_of_row != fold).sum()), config.for_fold(fold).batch_size
        if n_train < batch:
            raise ConfigError(
                f"batch-size: fold {fold} trains on {n_train} records, fewer than one batch of {batch}. "
                "Lower --batch-size."
            )


@contextmanager
def runner_for(plan: Plan, where: Where, console: Console) -> Iterator[tuple[Runner, Plan]]:
    """A runner, and the plan with the device and cores that a fold gets there."""
    with caches_removed():
        if where.runner == "local":
            plan = _placed(plan, plan.config.device, cores_here(plan.config))
            yield LocalRunner(FOLD_TASK, plan, where.fold_timeout_s), plan
            return
        from setibl_ray.core.cluster.runner import NO_NODE_S, RayRunner, on_every_node

        with cluster_for(plan.config, where, console) as request:
            plan = _placed(plan, request.device, request.cpus)
            runner = RayRunner(
                FOLD_TASK,
                plan,
                request,
                where.workers,
                timeout_s=where.fold_timeout_s,
                no_node_s=max(NO_NODE_S, where.placement_timeout_s),  # preempted nodes have to come back, too
            )
            try:
                yield runner, plan
            finally:
                runner.cancel()
                on_every_node("setibl_ray.seti.feeding.panels:remove_all_unused")


def cores_here(config: Config) -> int:
    """Cores of a fold in a plain loop on this machine."""
    return config.cpus_per_fold or max(1, len(os.sched_getaffinity(0)) // config.folds)


@contextmanager
def cluster_for(config: Config, where: Where, console: Console) -> Iterator[Request]:
    """The connected cluster, and what each fold asks of a node of it.

    Raises:
      PlacementError: no node can ever hold a fold.
    """
    from setibl_ray.core.cluster import connect, placement

    say = partial(_say, console)
    with connect.connected(where.address, timeout_s=where.connect_timeout_s) as greeting:
        say(greeting)
        request = placement.wait_for_placement(
            config, where.accelerator_type, where.labels, where.placement_timeout_s, say
        )
        wanted = largest_fold_bytes(config, request.device, request.cpus)
        yield placement.with_memory(request, wanted, placement.cluster_nodes())


def _say(console: Console, text: str) -> None:
    terminal.say(text, console)


@contextmanager
def caches_removed() -> Iterator[None]:
    """Leave no decoded panels on this machine: not this run's, nor those of a run that was killed."""
    from setibl_ray.seti.feeding.panels import remove_all_unused

    remove_all_unused()
    try:
        yield
    finally:
        remove_all_unused()


def _placed(plan: Plan, device: str, cpus: int) -> Plan:
    from dataclasses import replace

    config = plan.config.model_copy(update={"device": device, "cpus_per_fold": cpus})
    return replace(plan, config=config)


def open_run(
    folder: RunFolder, plan: Plan, resume: bool, on_bad_record: str = "fail", command: str | None = None
) -> Manifest:
    """Begin a run folder, or take up one that exists. The caller holds its lock.

    Args:
      folder, plan: of the run.
      resume: take it up.
      on_bad_record: what was done about unusable records.
      command: what the user typed; None for this process's own command line.

    Raises:
      RunFolderError: there is a run but no `resume`, or the other way round, or it is not this run.
    """
    if resume:
        manifest, own = taken_up.load(folder)
        taken_up.same_config(folder, own, plan.config)
        taken_up.same_data(folder, manifest, plan)
        folder.remove_temporaries()
        manifest.resumed(command or shlex.join(sys.argv))
        return manifest
    taken_up.refuse_existing(folder)
    train = plan.index.train
    folder.write("config.yaml", plan.config.to_yaml())
    folder.write_csv("folds.csv", train[["image_id"]].assign(fold=plan.fold_of_row))
    folder.write_csv(
        "records.csv", train[["image_id", "target", "group", "snr", "kind"]].assign(fold=plan.fold_of_row)
    )
    manifest = Manifest.new(folder, plan.index, plan.config, command or shlex.join(sys.argv), on_bad_record)
    manifest.save()
    return manifest


def gather_run(
    folder: RunFolder,
    manifest: Manifest,
    plan: Plan,
    results: Mapping[int, FoldResult],
    predicted: Mapping[int, Predicted],
) -> CrossValidation:
    """Write what all folds together give: oof.csv, submission.csv, metrics.json."""
    config = plan.config
    pred = oof.gather(plan.fold_of_row, {fold: r.valid_pred for fold, r in results.items()})
    plain = oof.gather(plan.fold_of_row, {fold: r.valid_pred_no_tta for fold, r in results.items()})
    table = oof.oof_table(plan.index.train, plan.fold_of_row, pred, plain)
    weights = fold_weights(config, table)
    test = averaged(plan, predicted, weights)
    done = postprocess.finish(
        table, test, postprocess=config.postprocess, calibrate=config.calibrate, seed=config.seed
    )
    table = table.assign(pred=done.oof.astype(np.float32), pred_model=pred)
    summary = metrics.summarise(table, seed=config.seed) | done.report
    for entry in summary["folds"]:
        own = results[entry["fold"]]
        entry |= {
            "best_epoch": own.best_epoch,
            "val_auc": metrics.plain([row["val_auc"] for row in own.history]),
        }
    folder.write_csv("oof.csv", table[["image_id", "target", "pred", "fold"]])
    if len(test):
        write_submission(folder, test.assign(pred=done.test))
        summary["fold_weights"] = weights.tolist()
    folder.write_json("metrics.json", summary)
    manifest.content["ended_s"] = time.time()
    manifest.save()
    return CrossValidation(str(folder), summary, plan.index)


def fold_weights(config: Config, table: pd.DataFrame) -> np.ndarray:
    """(folds,) weights of the folds in the test prediction, from their models' scores: target, pred and fold."""
    folds = table.groupby("fold")
    aucs = [metrics.auc(part["target"].to_numpy(), part["pred"].to_numpy()) for _, part in folds]
    return oof.fold_weights(config, aucs)


def averaged(plan: Plan, predicted: Mapping[int, Predicted], weights: np.ndarray) -> pd.DataFrame:
    """The test set's image_id, group and pred, the folds' predictions averaged with `weights` (folds,)."""
    test = plan.index.test[["image_id", "group"]]
    if not plan.n_test:
        return test.iloc[:0].assign(pred=np.empty(0, np.float32))
    return test.assign(pred=oof.average([predicted[fold].pred for fold in range(len(weights))], weights))


def write_submission(folder: RunFolder, test: pd.DataFrame) -> None:
    """Write submission.csv from image_id and pred of the test set: id, target, sorted by id."""
    table = pd.DataFrame({"id": test["image_id"], "target": test["pred"].astype(np.float32)})
    folder.write_csv("submission.csv", table.sort_values("id", kind="stable"))


def _resuming(folder: RunFolder, plan: Plan, where: Where) -> str:
    """How to go on with a run; everything but where to run is in its folder."""
    if plan.build_model is not None:
        return "Resume with the same call and resume=True."
    return f"Resume with: python -m setibl_ray.cv --resume --out {shlex.join([str(folder), *where.flags()])}"
