"""A run from start to end: check, place, follow, gather.

`cv`, `predict`, each trial of a sweep, and `--plan` all build their run here. They differ in the state of the folds at
the beginning, and in the observers, which are told of every event once it is in the run folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import pkgutil
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
from rich.console import Console

from setibl_ray.core import splits, terminal
from setibl_ray.core.config import C, config_of
from setibl_ray.core.errors import (
    ConfigError,
    FoldFailedError,
    Interrupted,
    RunFolderError,
    RunStoppedError,
)
from setibl_ray.core.jobs import Event, Job, LocalRunner, Runner, RunSpec, Trained, load_task
from setibl_ray.core.run import gathering, stored
from setibl_ray.core.run.folder import FORMAT, RunFolder, sha256
from setibl_ray.core.run.manifest import PACKAGES, FoldEntry, Manifest, versions
from setibl_ray.core.run.progress import Progress
from setibl_ray.core.run.record import Record, Say
from setibl_ray.core.run.supervisor import Answer, Standing, Supervisor
from setibl_ray.core.storage import location, temporary_folder
from setibl_ray.core.tables import text_columns
from setibl_ray.core.task import FoldReport, Rows, Task
from setibl_ray.core.where import Where

if TYPE_CHECKING:
    from setibl_ray.core.cluster.placement import Request


class Observer(Protocol):
    def on(self, event: Event, answer: Answer) -> None: ...


class Kept(Observer, Protocol):
    """What a run continues from, as `follow` sees it: a `Record`, or anything else that keeps the results of jobs."""

    spec: RunSpec

    def standings(self) -> dict[int, Standing]: ...

    def ready(self, job: Job) -> Job: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class CrossValidation:
    """A finished run: its folder, its metrics (the content of metrics.json), and its rows."""

    folder: str
    metrics: dict[str, Any]
    rows: Rows = field(repr=False)


def check(
    task: Task | str,
    config: Any,
    data: str,
    *,
    options: Mapping[str, Any] | None = None,
    say: Say = print,
) -> RunSpec:
    """All checks of config and data that need no node.

    Args:
      task: itself, or its dotted name.
      config: of the run.
      data: what `task.open` reads.
      options: further arguments of `task.open`.
      say: takes a line for the user.

    Raises:
      ConfigError, DataError: something is wrong.
    """
    loaded = load_task(task)
    rows = loaded.open(data, config, **(options or {}))
    rows = replace(rows, root=rows.root or data)
    for note in rows.notes:
        say(note)
    config = loaded.settle(config, rows)
    if config.fold_weights.isidentifier() and config.fold_weights not in ("equal", loaded.score.name):
        raise ConfigError(
            f"fold-weights: expected equal, {loaded.score.name}, or numbers; got {config.fold_weights!r}"
        )
    fold_of_row = splits.assign(config, rows)
    loaded.check(config, rows, fold_of_row)
    if note := splits.divided_groups(rows, fold_of_row):
        say(note)
    return RunSpec(task, config, rows, fold_of_row, scratch_of(rows), files=loaded.files(config))


def scratch_of(rows: Rows) -> str:
    """The folder on each node for temporary files about a data set."""
    return f"{temporary_folder()}/setibl-ray-{os.getuid()}-{rows.fingerprint[:12]}"


@contextmanager
def place(spec: RunSpec, where: Where, say: Say) -> Iterator[tuple[Runner, RunSpec]]:
    """A runner, and the specification with the device and cores that a fold gets there."""
    clean = load_task(spec.task).clean
    with cleaned(clean):
        if where.runner == "local":
            spec = granted(spec, spec.config.device, cores_here(spec.config))
            yield LocalRunner(spec, where.fold_timeout_s), spec
            return
        from setibl_ray.core.cluster.runner import on_every_node

        with cluster_for(spec.task, spec.config, where, say) as request:
            spec = granted(spec, request.device, request.cpus)
            runner = ray_runner(spec, request, where, where.workers, say=say)
            try:
                yield runner, spec
            finally:
                runner.cancel()
                if clean:
                    on_every_node(clean)


def ray_runner(
    spec: RunSpec,
    request: Request,
    where: Where,
    max_parallel: int | None,
    *,
    spread: bool = True,
    say: Say = lambda text: None,
) -> Runner:
    """A runner on the connected cluster."""
    from setibl_ray.core.cluster.runner import NO_NODE_S, RayRunner

    return RayRunner(
        spec,
        request,
        max_parallel,
        spread,
        timeout_s=where.fold_timeout_s,
        no_node_s=max(NO_NODE_S, where.placement_timeout_s),  # also waits for preempted nodes to come back
        busy_s=where.placement_timeout_s or None,
        say=say,
    )


def cores_here(config: Any) -> int:
    """Cores of a fold in a plain loop on this machine."""
    return config.cpus_per_fold or max(1, len(os.sched_getaffinity(0)) // config.folds)


def granted(spec: RunSpec, device: str, cpus: int) -> RunSpec:
    return replace(spec, config=spec.config.model_copy(update={"device": device, "cpus_per_fold": cpus}))


@contextmanager
def cluster_for(task: Task | str, config: Any, where: Where, say: Say) -> Iterator[Request]:
    """The connected cluster, and what each fold requests of a node.

    Raises:
      PlacementError: no node can ever run a fold.
    """
    from setibl_ray.core.cluster import connect

    with connect.connected(where.address, timeout_s=where.connect_timeout_s) as greeting:
        say(greeting)
        yield request_on(task, [config], where, say)


def request_on(task: Task | str, configs: Sequence[Any], where: Where, say: Say) -> Request:
    """What each fold of any of these configs requests of a node of the connected cluster.

    Raises:
      PlacementError: no node can ever run it.
    """
    from setibl_ray.core.cluster import placement

    loaded = load_task(task)
    ask = placement.Ask.of(configs[0], loaded.needs(configs[0], 0), where)
    request = placement.wait_for_placement(ask, where.placement_timeout_s, say)
    return placement.with_memory(request, most_memory(loaded, configs, request), placement.cluster_nodes())


def most_memory(task: Task, configs: Sequence[Any], request: Request) -> int:
    """The largest estimate of a fold's memory, in bytes, once device and cores are known."""
    update = {"device": request.device, "cpus_per_fold": request.cpus}
    settled = [config.model_copy(update=update) for config in configs]
    return max(task.needs(config, fold).memory_bytes for config in settled for fold in range(config.folds))


@contextmanager
def cleaned(function: str) -> Iterator[None]:
    """Remove what a task keeps on this machine, for this run or for one that was killed."""
    if not function:
        yield
        return
    clean = pkgutil.resolve_name(function)
    clean()
    try:
        yield
    finally:
        clean()


def open_record(
    folder: RunFolder,
    spec: RunSpec,
    *,
    resume: bool,
    options: Mapping[str, Any] | None = None,
    command: str | None = None,
    keep_artifacts: bool = True,
    say: Say = lambda text: None,
) -> Record:
    """Begin a run folder, or continue an existing one. The caller holds its lock.

    Args:
      folder, spec: of the run.
      resume: continue it.
      options: further arguments of `task.open`, for the manifest.
      command: what the user typed; None for this process's own command line.
      keep_artifacts, say: as in `Record`.

    Raises:
      RunFolderError: there is a run but no `resume`, or the other way round, or it is another run.
    """
    command = command or shlex.join(sys.argv)
    if resume:
        manifest, own = stored.load(folder, type(spec.config))
        stored.same_config(folder, own, spec.config)
        stored.same_data(folder, manifest, spec)
        for name, sum_ in code_sums(spec).items():
            if manifest.code.get(name) != sum_:
                say(f"{name} has changed since the run was begun: its folds may be of different models")
        folder.remove_temporaries()
        manifest.taken_up(command)
    else:
        stored.refuse_existing(folder)
        manifest = new_manifest(spec, options or {}, command)
        rows = spec.rows
        with_fold = rows.table.assign(fold=spec.fold_of_row)
        more = [name for name in rows.table if name not in (rows.id, "target", "unit")]
        folder.write_csv("folds.csv", with_fold[[rows.id, "fold"]])
        folder.write_csv("records.csv", with_fold[[rows.id, "target", *more, "fold"]])
    folder.write("config.yaml", spec.config.to_yaml())
    manifest.save(folder)
    return Record(folder, spec, manifest, keep_artifacts=keep_artifacts, say=say)


def new_manifest(spec: RunSpec, options: Mapping[str, Any], command: str, **more: Any) -> Manifest:
    task, config, rows = load_task(spec.task), spec.config, spec.rows
    return Manifest(
        format=FORMAT,
        task=spec.task if isinstance(spec.task, str) else type(task).__qualname__,
        command=command,
        versions=versions((*PACKAGES, *task.packages)),
        data={
            "root": rows.root,
            "fingerprint": rows.fingerprint,
            "n_train": len(rows.table),
            "n_test": len(rows.test),
            **rows.about,
            "options": dict(options),
        },
        code=code_sums(spec),
        files={name: sha256(content) for name, content in spec.files.items()},
        text=text_columns(rows.table),
        folds={
            fold: FoldEntry(memory_estimate_bytes=task.needs(config, fold).memory_bytes)
            for fold in range(config.folds)
        },
        started_s=time.time(),
        **more,
    )


def code_sums(spec: RunSpec) -> dict[str, str]:
    """Checksums of the source of functions that the config names: of their modules, or of what was passed in."""
    task, sums = load_task(spec.task), {}
    for name in task.code_names(spec.config):
        try:
            if name in task.code:
                source = inspect.getsource(task.code[name]).encode()
            else:
                found = importlib.util.find_spec(name.partition(":")[0])
                source = Path(found.origin).read_bytes() if found and found.origin else b""
        except (OSError, TypeError, ImportError, ValueError):
            source = b""
        sums[name] = hashlib.sha256(source).hexdigest() if source else "unknown"
    return sums


def follow(
    runner: Runner, record: Kept, max_retries: int, observers: Iterable[Observer] = ()
) -> Iterator[tuple[Event, Answer]]:
    """Run the unfinished work of every fold.

    Yields:
      Every event, with what follows from it, once it is in the run folder and the observers know it.

    Raises:
      ConfigError: a fold found out that no fold of this config can work.
    """
    supervisor = Supervisor(record.standings(), record.spec.n_test, max_retries)
    for job in supervisor.begin():
        runner.submit(record.ready(job))
    for event in runner.events():
        answer = supervisor.on(event, max(runner.slots, 1))
        record.on(event, answer)
        for observer in observers:
            observer.on(event, answer)
        if answer.stop:
            runner.cancel()
            raise ConfigError(getattr(event, "message", ""))
        for job in answer.jobs:
            runner.submit(record.ready(job))
        yield event, answer


class Draw:
    """An observer that writes a task's pictures into the folders of fitted folds."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._task = load_task(record.spec.task)

    def on(self, event: Event, answer: Answer) -> None:
        if isinstance(event, Trained):
            history = pd.DataFrame(self._record.history[event.fold])
            for name, data in self._task.draw(self._record.spec.config, event.fold, history).items():
                self._record.folder.write(f"fold-{event.fold}/{name}", data)


def run_folds(
    record: Record,
    runner: Runner,
    where: Where,
    console: Console,
    how_to_resume: str,
    observers: Sequence[Observer] = (),
) -> None:
    """Run all folds to their ends, showing progress; an error that ends this early says how to continue.

    Raises:
      FoldFailedError: a fold failed for good; the others are in the run folder.
      RunStoppedError: the run folder could not be written any more, or the cluster was lost.
      Interrupted: Ctrl-C; what was finished is in the run folder.
    """
    task = load_task(record.spec.task)
    needs = {fold: task.needs(record.spec.config, fold) for fold in record.manifest.folds}
    with ending(record, how_to_resume):
        shown = Progress(
            needs, record.spec.n_test, task.shown, console, lambda: runner.note, record.standings()
        )
        with shown as progress:
            for _ in follow(runner, record, where.max_retries, [progress, *observers]):
                pass
        all_done(record.manifest)


@contextmanager
def ending(record: Kept, how_to_resume: str) -> Iterator[None]:
    """If this block ends early, the record is closed and the user is told how to go on.

    Raises:
      FoldFailedError, RunStoppedError, Interrupted: as in `run_folds`.
    """
    try:
        yield
    except KeyboardInterrupt:
        record.close()
        raise Interrupted(f"interrupted; everything that was finished is kept. {how_to_resume}") from None
    except (RunFolderError, RunStoppedError) as error:
        record.close()
        raise RunStoppedError(f"{error} Everything before is kept. {how_to_resume}") from error
    except FoldFailedError as error:
        record.close()
        raise FoldFailedError(f"{error} The others are kept. {how_to_resume}") from None


def how_to_resume(task: Task | str, command: str, *words: str) -> str:
    """What to tell the user: a command, unless no command would do the same as their call."""
    if not command or load_task(task).code:
        return "Resume with the same call and resume=True."
    return f"Resume with: {command} {shlex.join(words)}"


def all_done(manifest: Manifest) -> None:
    """Raises:
    FoldFailedError: a fold was given up.
    """
    failed = manifest.states("failed")
    if failed:
        why: dict[str, list[str]] = {}
        for fold in failed:
            why.setdefault(manifest.folds[fold].why_failed, []).append(str(fold))
        reasons = "; ".join(f"fold {', '.join(folds)}: {message}" for message, folds in why.items())
        raise FoldFailedError(f"{len(failed)} of {len(manifest.folds)} folds failed ({reasons}).")


def cross_validate(
    task: Task | str,
    config: C | Mapping[str, Any] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str],
    where: Where | Mapping[str, Any] | None = None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
    command: str = "python -m setibl_ray.cv",
    console: Console | None = None,
) -> CrossValidation:
    """Fit every fold of a task, and write out-of-fold and test predictions to a run folder.

    Args:
      task: what is run, or its dotted name (`package.module:NAME`).
      config: settings of the task and fields of every config, or a mapping of them; None for the defaults.
      data: what the task's `open` reads; with `resume` the run's own if left out.
      out: run folder or URL to write.
      where: where folds run; a `Where`, or a mapping of its fields.
      resume: continue the unfinished folds of the run at `out`. Fields that `config` leaves out are then the run's
        own; those that it sets must not contradict them.
      options: further arguments of the task's `open`; with `resume`, those left out are the run's own.
      command: what a user types to resume, for messages; empty if the user made this call.
      console: where progress is shown.

    Raises:
      ConfigError, DataError, RunFolderError: found before any training.
      FoldFailedError, RunStoppedError, Interrupted: as in `run_folds`.
    """
    where, console = Where.of(where), console or terminal.console()
    say = sayer(console)
    kind = config_of(load_task(task).Settings)
    options = {name: value for name, value in (options or {}).items() if value is not None}
    place_of_data = location("data", data) if data is not None else None
    folder = RunFolder(location("out", out))
    given: Any = stored.given(kind, config, folder if resume else None)
    with folder.locked():
        if resume:
            _, given, place_of_data, options = stored.take_up(folder, given, place_of_data, options)
        else:
            stored.refuse_existing(folder)
        if place_of_data is None:
            raise ConfigError("data: expected where the data lie; only a run that is resumed knows its own")
        spec = check(task, given, place_of_data, options=options, say=say)
        with place(spec, where, say) as (runner, spec):
            record = open_record(folder, spec, resume=resume, options=options, say=say)
            how = how_to_resume(task, command, "--resume", "--out", str(folder), *where.flags())
            run_folds(record, runner, where, console, how, [Draw(record)])
            return gather(record)


def gather(record: Record) -> CrossValidation:
    """Write the results of all folds together: oof.csv, submission.csv, metrics.json."""
    spec, folder = record.spec, record.folder
    task, config, rows = load_task(spec.task), spec.config, spec.rows
    table = gathering.oof_table(spec, record.fitted)
    weights = gathering.fold_weights(config, task.score, table)
    test = gathering.test_table(spec, record.predicted, weights)
    folds = {
        fold: FoldReport(record.history[fold], entry.model_extra or {})
        for fold, entry in record.manifest.folds.items()
    }
    found = task.finish(config, table, test, folds)
    folder.write_csv("oof.csv", gathering.oof_csv(rows, table, found.oof))
    metrics = found.metrics | {"score": gathering.score_of(task.score, table, found)}
    if len(test):
        gathering.write_submission(folder, rows, found.test)
        metrics["fold_weights"] = weights.tolist()
    folder.write_json("metrics.json", metrics)
    record.manifest.end(folder)
    return CrossValidation(str(folder), metrics, rows)


def sayer(console: Console) -> Say:
    return partial(terminal.say, on=console)
