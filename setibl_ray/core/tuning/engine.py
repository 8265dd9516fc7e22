"""A sweep from start to end: check, pass trials to Tune, compare, write.

Tune places trials, keeps them within their placement groups, stops them and logs them. The state of all trials is in
the ledger, so that a killed sweep continues with the same trials, each from its last step.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import ray
import yaml
from ray import tune
from ray.tune.logger import TBXLoggerCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from rich.console import Console

from setibl_ray.core import terminal
from setibl_ray.core.cluster import connect, placement
from setibl_ray.core.cluster.placement import Node, Request
from setibl_ray.core.cluster.runner import on_every_node
from setibl_ray.core.config import config_of, differences, parse
from setibl_ray.core.errors import ConfigError, FoldFailedError, Interrupted, PlacementError, RunFolderError
from setibl_ray.core.jobs import RunSpec, load_task
from setibl_ray.core.run import session, stored
from setibl_ray.core.run.folder import sha256
from setibl_ray.core.storage import location
from setibl_ray.core.task import Task
from setibl_ray.core.tuning.desk import Desk
from setibl_ray.core.tuning.ladder import Step, first_compared, ladder, slots_for
from setibl_ray.core.tuning.ledger import DEFAULT, ENDED, Ledger, Trial
from setibl_ray.core.tuning.pruning import Pruning
from setibl_ray.core.tuning.results import Results, confirm_root, confirm_seeds, write_results
from setibl_ray.core.tuning.search import Queue, Search, suggest
from setibl_ray.core.tuning.space import Space, check_space, parse_space
from setibl_ray.core.tuning.trial import CrossValidationTrial, Shared
from setibl_ray.core.where import Where

FORMAT = 2
SESSION = ("time_budget_s",)  # what --resume does not take from the earlier session
WORKER_DEATHS = 2  # times that Tune starts a trial's own process again; it continues from its folder

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its CSV and JSON only repeat the ledger
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed reports why, and no score
    "RAY_AIR_NEW_OUTPUT": "0",  # and its tables repeat the desk
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would wait for running epochs; everything is on disk already
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same in a trial as in the command
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",  # of snapshots that nobody reads
}


@dataclass(frozen=True)
class Options:
    """Options of a sweep.

    Attributes:
      trials: how many, including the base config.
      search: how points are chosen.
      stopping: `asha`, or `none` to run every trial to its end.
      reduction_factor: at each rung, ASHA continues only the best 1/`reduction_factor` of the trials.
      grace_epochs: epochs that every trial runs of its first folds; None for all / `reduction_factor`, so that the next
        rung is at the end of those folds.
      folds_at_once: slots of a trial; None for as many as fit and divide the folds.
      trials_at_once: None for as many as fit.
      time_budget_s: after this time nothing is begun or trained; None for no limit.
      confirm_seeds: repeat the best and the base config with this many other seeds.
      predict_test: also predict the test set in every trial.
      keep_weights: keep each fold's artifact.
      log_to: `mlflow`, `wandb`: Tune's own callbacks, besides TensorBoard.
    """

    trials: int = 20
    search: Search = "optuna"
    stopping: Literal["asha", "none"] = "asha"
    reduction_factor: float = 3.0
    grace_epochs: int | None = None
    folds_at_once: int | None = None
    trials_at_once: int | None = None
    time_budget_s: float | None = None
    confirm_seeds: int = 0
    predict_test: bool = False
    keep_weights: bool = False
    log_to: Sequence[str] = ()


def sweep(
    task: Task | str,
    base: Any = None,
    space: Space | Mapping[str, Any] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    where: Where | Mapping[str, Any] | None = None,
    resume: bool = False,
    command: str = "python -m setibl_ray.sweep",
    console: Console | None = None,
) -> Results:
    """Search for a better config; every trial is a whole cross-validation.

    With `resume`, missing arguments are the sweep's own; given ones must not contradict them.

    Args:
      task: what is run, or its dotted name.
      base: what every trial starts from, and trial 0: a config or a mapping of its fields.
      space: what varies, as a `Space` or in its YAML form; None for the config's `default_space`.
      data: what the task's `open` reads.
      out: folder to write.
      options: fields of `Options`; those left out have its defaults.
      where: the cluster, what a fold takes of it and how often it is tried; `runner` and `workers` do not apply.
      resume: continue the sweep at `out`.
      command: what a user types to resume, for messages; empty if the user made this call.
      console: where progress is shown.

    Raises:
      ConfigError, DataError, RunFolderError: found before any trial.
      FoldFailedError: trials failed; what the others found is written.
      Interrupted: Ctrl-C; what was found so far is written.
    """
    where, console = Where.of(where), console or terminal.console()
    say, loaded = session.sayer(console), load_task(task)
    kind = config_of(loaded.Settings)
    source = location("data", data) if data is not None else None
    place_of_sweep = location("out", out)
    if "://" in place_of_sweep:
        raise ConfigError(
            f"out: a sweep writes to a local folder, which can be copied at the end; got {place_of_sweep}"
        )
    ledger = Ledger(place_of_sweep, loaded.score)
    given: Any = stored.given(kind, base, ledger.folder if resume else None)
    with ledger.folder.locked(), session.cleaned(loaded.clean):
        begun = _begun(ledger, resume)
        if begun:
            given = stored.run_config(ledger.folder, parse(kind, begun["config"]), given)
            source = source or begun["data_root"]
            space = space or begun["space"]
        settings = Options(**{**begun.get("options", {}), **(options or {})})
        callbacks = _loggers(settings.log_to)
        if source is None:
            raise ConfigError("data: expected where the data lie; only a sweep that is resumed knows its own")
        spec = session.check(task, given, source, say=say)
        base = spec.config
        if not isinstance(space, Space):
            space = parse_space(base.default_space() if space is None else space, kind)
        configs = _check(space, spec, settings)
        with connect.connected(where.address, timeout_s=where.connect_timeout_s) as greeting:
            say(greeting)
            request = session.request_on(task, configs, where, say)
            spec = session.granted(spec, request.device, request.cpus)
            base = spec.config
            slots = begun.get("slots") or _slots(settings, base, request, placement.cluster_nodes())
            place = _Placement(request, slots)
            files = _files(loaded, spec, space, configs)
            spec = replace(spec, predict_test=settings.predict_test, files=files)
            shared = Shared(
                ledger.root, spec, request, slots, where, settings.keep_weights, shlex.join(sys.argv)
            )
            _open(ledger, begun, space, settings, shared)
            at_once = place.trials_at_once(settings.trials_at_once)
            say(
                f"{settings.trials} trials of {base.folds} folds, each {request}; {at_once} trials at once, "
                f"{slots} folds at once in each; results in {ledger.root}"
            )
            steps = ladder([loaded.needs(base, fold).n_steps for fold in range(base.folds)], slots)
            scheduler = _scheduler(ledger, steps, settings)
            desk = Desk(ledger, space.labels, settings.trials, base.folds, place.check, console)
            ends_s = math.inf if settings.time_budget_s is None else time.monotonic() + settings.time_budget_s
            run = partial(_run, desk, at_once=at_once, callbacks=callbacks, place=place)
            try:
                with desk:
                    values_of = partial(_values, ledger, space, base, settings.search)
                    run(shared, _to_do(ledger, settings.trials, values_of), scheduler, settings)
                    if settings.time_budget_s is not None:
                        settings = replace(settings, time_budget_s=ends_s - time.monotonic())
                    if settings.confirm_seeds and desk.ends_because is None and time.monotonic() < ends_s:
                        _confirm(run, desk, shared, settings)
            except KeyboardInterrupt:
                desk.interrupted = True
            if loaded.clean:
                on_every_node(loaded.clean)
        for kept in (ledger, desk.ledger):
            for trial in kept.trials.values():
                if trial.state == "running":
                    kept.end(trial, "unfinished")
        rungs = scheduler.rungs if isinstance(scheduler, Pruning) else []
        command = "" if loaded.code else command
        results = write_results(ledger, space, base, loaded, spec.rows, rungs, command, where.flags())
        for line in results.lines():
            say(line)
        return _end(desk, ledger, results)


def _begun(ledger: Ledger, resume: bool) -> dict[str, Any]:
    """What the sweep in the ledger's folder was begun with; empty for a new one.

    Raises:
      RunFolderError: there is a sweep but no `resume`, or the other way round.
    """
    if ledger.exists and not resume:
        raise RunFolderError(
            f"{ledger.root} holds a sweep already. Add --resume to go on with it, or choose another --out."
        )
    if resume and not ledger.exists:
        raise RunFolderError(
            f"--resume: {ledger.root} holds no sweep (no sweep.json). Leave --resume out to begin one."
        )
    return ledger.folder.read_json("sweep.json") if resume else {}


def _end(desk: Desk, ledger: Ledger, results: Results) -> Results:
    """Return the results, or raise why the sweep is not complete."""
    kept = f"Finished trials, folds and epochs are kept. Go on with: {results.again}"
    if desk.interrupted:
        raise Interrupted(f"interrupted. {kept}")
    if isinstance(desk.ends_because, PlacementError):
        raise PlacementError(f"{desk.ends_because} {kept}")
    if desk.ends_because:
        raise FoldFailedError(f"the sweep was ended: {desk.ends_because}. {kept}")
    failed = [trial for trial in ledger.trials.values() if trial.state == "failed"]
    if failed:
        raise FoldFailedError(
            f"{len(failed)} of {len(ledger.trials)} trials failed, the first (trial {failed[0].number}): "
            f"{failed[0].message}. The others are compared as usual. --resume tries the failed ones again."
        )
    return results


def _check(space: Space, spec: RunSpec, options: Options) -> list[Any]:
    """All checks that are possible before Ray starts; returns the configs that were checked."""
    task, base = load_task(spec.task), spec.config
    configs = [base, *check_space(space, base)]
    for config in configs:
        task.check(task.settle(config, spec.rows), spec.rows, spec.fold_of_row)
    n_steps = {tuple(task.needs(config, fold).n_steps for fold in range(base.folds)) for config in configs}
    if len(n_steps) > 1 and options.stopping == "asha":
        raise ConfigError(
            "space: with epochs searched, trials have no epochs in common that ASHA could compare. Add --stopping none."
        )
    if options.search == "grid":
        points = len(space.grid())
        if options.trials > points + 1:
            raise ConfigError(
                f"trials: the grid has {points} points, with the base config {points + 1} trials; got {options.trials}"
            )
    return configs


def _files(task: Task, spec: RunSpec, space: Space, configs: Sequence[Any]) -> dict[str, bytes]:
    """Content of the files that any trial's config may name; each is read once."""
    names = [field.name for field in space if any(isinstance(option, str) for option in field.options)]
    files, read = dict(spec.files), [[spec.config.search_value(name) for name in names]]
    for config in configs:
        if (texts := [config.search_value(name) for name in names]) not in read:
            read.append(texts)
            files |= task.files(config)
    return files


def _slots(options: Options, base: Any, request: Request, nodes: Sequence[Node]) -> int:
    available = sum(request.slots(node) for node in nodes)
    if options.folds_at_once is None:
        return slots_for(base.folds, available)
    return min(options.folds_at_once, base.folds)


class _Placement:
    """A trial's placement group: a bundle that only ties the trial itself to this node, and one per fold at once."""

    def __init__(self, request: Request, slots: int) -> None:
        self._request, self._slots = request, slots
        here = f"node:{ray.util.get_node_ip_address()}"
        # With an empty bundle, the trial's process could run on any node, but it writes to this one's disk.
        bundles = [{here: 0.001}] + [request.resources] * slots
        # A fold would wait forever for a bundle on a node where it may not run.
        selector = request.selector()
        where = {"bundle_label_selector": [{}, *[selector] * slots]} if selector else {}
        self.group = tune.PlacementGroupFactory(bundles, strategy="PACK", **where)
        self.check()

    @property
    def _available(self) -> int:
        return sum(self._request.slots(node) for node in placement.cluster_nodes())

    def check(self) -> None:
        """Raises:
        PlacementError: the cluster in its present state cannot run a trial.
        """
        if self._available < self._slots:
            raise PlacementError(
                f"folds-at-once: a trial asks for {self._slots} x {self._request}, but the cluster's nodes hold "
                f"{self._available} of those together. Lower --folds-at-once or --cpus-per-fold."
            )

    def trials_at_once(self, most: int | None) -> int:
        fit = self._available // self._slots
        return min(fit, most or fit)


def _open(
    ledger: Ledger,
    begun: dict[str, Any],
    space: Space,
    options: Options,
    shared: Shared,
) -> None:
    """Save the definition of the sweep, after comparing it with the one it was begun with.

    Raises:
      RunFolderError: new trials would not be comparable with the existing ones; says why.
    """
    settings = {name: value for name, value in vars(options).items() if name not in SESSION}
    base = shared.base
    now = {
        "format": FORMAT,
        "config": yaml.safe_load(base.config.to_yaml()),
        "space": space.plain(),
        "options": {**settings, "log_to": list(options.log_to)},
        "slots": shared.slots,
        "data_root": base.rows.root,
        "data_fingerprint": base.rows.fingerprint,
        "folds": sha256(base.fold_of_row.tobytes()),
        "files": {name: sha256(content) for name, content in base.files.items()},
    }
    if begun:
        if begun.get("folds", now["folds"]) != now["folds"]:
            raise RunFolderError(
                f"{ledger.root}: config and data divide the rows otherwise than when it was begun. Was the split file "
                "changed, or another version of scikit-learn installed? Choose another --out."
            )
        for name, sum_ in begun.get("files", {}).items():
            if now["files"].get(name, sum_) != sum_:
                raise RunFolderError(
                    f"{ledger.root} was begun with another content of {name}. Put that back, or choose another --out."
                )
        same = ("format", "config", "space", "slots", "data_fingerprint")
        changed = list(differences({name: begun[name] for name in same}, {name: now[name] for name in same}))
        for name in ("search", "predict_test", "stopping", "folds_at_once"):
            changed += differences({name: begun["options"][name]}, {name: settings[name]})
        if changed:
            raise RunFolderError(
                f"{ledger.root} was begun otherwise: {'; '.join(changed)}. Leave that out, or choose another --out."
            )
        ledger.load()
    ledger.folder.write("config.yaml", base.config.to_yaml())
    ledger.folder.write_json("sweep.json", now)


def _scheduler(ledger: Ledger, steps: Sequence[Step], options: Options) -> TrialScheduler:
    if options.stopping == "none":
        return FIFOScheduler()
    n_epochs = sum(step.folds == steps[0].folds for step in steps)
    grace = options.grace_epochs or math.ceil(n_epochs / options.reduction_factor)
    before = first_compared(steps, grace, ledger.score)
    pruning = Pruning(
        ledger,
        grace=before.fold_epochs,
        total=steps[-1].fold_epochs,
        reduction_factor=options.reduction_factor,
    )
    for trial in ledger.trials.values():
        if trial.state in ENDED:
            pruning.replay(trial.number, ledger.reports(trial))
    return pruning


def _values(ledger: Ledger, space: Space, base: Any, search: Search, number: int) -> dict[str, Any]:
    if number == DEFAULT:
        return {}
    return suggest(search, space, base, number, ledger.trials.values(), ledger.score, ledger.reports)


def _to_do(ledger: Ledger, n_trials: int, values_of: Callable[[int], dict[str, Any]]) -> Iterator[Trial]:
    """Remaining trials, each on disk before Tune gets it; points are chosen when Tune asks for them."""
    for number in range(n_trials):
        trial = ledger.trials.get(number) or Trial(number, values_of(number))
        if trial.state not in ENDED:
            trial.state, trial.message = "running", ""
            ledger.save(trial)
            yield trial


def _run(
    desk: Desk,
    shared: Shared,
    trials: Iterator[Trial],
    scheduler: TrialScheduler,
    options: Options,
    *,
    at_once: int,
    callbacks: list[tune.Callback],
    place: _Placement,
) -> None:
    """Let Tune run `trials` to their ends."""
    os.environ |= QUIET
    # A failed trial is a line on the desk, not a traceback.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # `tune.run`, as a `Tuner` pickles searcher, scheduler and callbacks for a restore, which the ledger replaces.
    interrupt: BaseException | None = None
    try:
        tune.run(
            tune.with_resources(tune.with_parameters(CrossValidationTrial, shared=shared), place.group),
            num_samples=options.trials,
            search_alg=Queue(trials),
            scheduler=scheduler,
            max_concurrent_trials=at_once,
            reuse_actors=True,
            stop=_Ends(desk),
            time_budget_s=options.time_budget_s,
            max_failures=WORKER_DEATHS,
            storage_path=shared.root,
            name="tune",
            trial_name_creator=lambda trial: f"trial-{trial.config['trial']:03d}",
            trial_dirname_creator=lambda trial: f"trial-{trial.config['trial']:03d}",
            callbacks=[desk, *callbacks],
            raise_on_failed_trial=False,
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # silent then; the one for notebooks shows an empty output
        )
    except Exception:
        raise
    except BaseException as error:
        interrupt = error.with_traceback(None)
    if interrupt is not None:
        # Tune frees its placement groups after an Exception only. After a Ctrl-C they last as long as its controller,
        # which the traceback holds, and in a caller's Ray the next sweep would wait for their cores forever.
        gc.collect()
        raise interrupt


class _Ends(tune.Stopper):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it into its own snapshots, which nobody reads

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._desk.must_end()


def _confirm(run: Callable[..., None], desk: Desk, shared: Shared, options: Options) -> None:
    """Run the best trial and the base config again with other seeds, to their ends."""
    best = desk.ledger.best
    if best is None or best.number == DEFAULT or not desk.ledger.is_scored(DEFAULT):
        return
    again = Ledger(confirm_root(shared.root, best), desk.ledger.score)
    again.load()
    seeds = confirm_seeds(shared.base.config, options.confirm_seeds)
    points: list[dict[str, Any]] = [
        {"seed": seed, **values} for seed in seeds for values in ({}, best.values)
    ]
    desk.follow(again, len(points))
    shared, options = replace(shared, root=again.root), replace(options, trials=len(points))
    run(shared, _to_do(again, len(points), points.__getitem__), FIFOScheduler(), options)


def _loggers(names: Sequence[str]) -> list[tune.Callback]:
    """Tune's callbacks.

    Raises:
      ConfigError: a package is not installed, or the name is not known.
    """
    import importlib.util

    callbacks: list[tune.Callback] = [TBXLoggerCallback()]
    for name in names:
        if name not in ("mlflow", "wandb"):
            raise ConfigError(f"log-to: expected mlflow or wandb, got {name!r}")
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f'log-to: {name} is not installed. Install it with: pip install "setibl-ray[{name}]"'
            )
        if name == "mlflow":
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            callbacks.append(MLflowLoggerCallback(experiment_name="setibl-ray-sweep"))
        else:
            from ray.air.integrations.wandb import WandbLoggerCallback

            callbacks.append(WandbLoggerCallback(project="setibl-ray-sweep"))
    return callbacks
