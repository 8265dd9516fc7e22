"""A finished run applied to other rows: every fold predicts them, and the folds are averaged as in the run.

The result is a run folder whose folds are already fitted, so spans, retries and resuming work as in a run; the same
test set gives the same bytes as there.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from setibl_ray.core import terminal
from setibl_ray.core.config import config_of, merge, parse, spelt
from setibl_ray.core.errors import RunFolderError
from setibl_ray.core.jobs import RunSpec, load_task
from setibl_ray.core.run import gathering, stored
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import FoldEntry, Manifest
from setibl_ray.core.run.record import Record
from setibl_ray.core.run.session import (
    code_sums,
    how_to_resume,
    new_manifest,
    place,
    run_folds,
    sayer,
    scratch_of,
)
from setibl_ray.core.spans import span_rows
from setibl_ray.core.storage import location
from setibl_ray.core.task import Fitted, Task
from setibl_ray.core.where import Where


def predict(
    task: Task | str,
    run: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    where: Where | Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
    command: str = "python -m setibl_ray.predict",
    console: Console | None = None,
) -> str:
    """Predict the test rows of a data set with every fold of a run.

    Args:
      task: of the run, or its dotted name.
      run: folder or URL of a finished run that keeps its artifacts.
      data: what the task's `open_test` reads; training rows in it are ignored.
      out: folder or URL to write: submission.csv (id, target), and each fold's predictions in fold-K/test.csv.
      where: where to predict.
      changes: config fields that differ from the run's. By default, device and cores are those available.
      resume: continue the predictions at `out`.
      options: further arguments of `open_test`. With `resume`, options and changes left out are those of the folder.
      command: what a user types to resume, for messages; empty if the user made this call.
      console: where progress is shown.

    Returns:
      The path of submission.csv.

    Raises:
      ConfigError, DataError, RunFolderError: found before anything is predicted.
      FoldFailedError, RunStoppedError, Interrupted: as in `session.run_folds`.
    """
    where, console, data = Where.of(where), console or terminal.console(), location("data", data)
    say, loaded = sayer(console), load_task(task)
    source, folder = RunFolder(location("run", run)), RunFolder(location("out", out))
    theirs, config = stored.finished(source), stored.read_config(source, config_of(loaded.Settings))
    options = {name: value for name, value in (options or {}).items() if value is not None}
    if resume:
        own, config = stored.load(folder, type(config))
        options = {**own.data.get("options", {}), **options}
    else:
        stored.refuse_existing(folder)
    # The run's own devices and cores are not asked for again; those that these predictions began with are kept.
    anew: dict[str, Any] = {"device": "auto", "devices_per_fold": None, "cpus_per_fold": None}
    values = merge(config.model_dump(), {} if resume else anew, spelt(changes or {}))
    config = loaded.to_predict(parse(type(config), values))
    with folder.locked():
        rows = loaded.open_test(data, config, **options)
        for note in rows.notes:
            say(note)
        loaded.check_like(theirs.data, rows)
        config = loaded.settle(config, rows)
        spec = RunSpec(task, config, rows, np.empty(0, np.int16), scratch_of(rows))
        for name, sum_ in code_sums(spec).items():
            if theirs.code.get(name) != sum_:
                say(f"{name} has changed since the run: its artifacts may not fit")
        fitted = {fold: _fitted(source, loaded, theirs, fold) for fold in theirs.folds}
        with place(spec, where, say) as (runner, spec):
            manifest = _open(folder, source, theirs, spec, resume, options, runner.slots)
            record = Record(folder, spec, manifest, fitted=fitted, say=say)
            words = [str(source), "--data", data, "--out", str(folder), *where.flags(), "--resume"]
            run_folds(record, runner, where, console, how_to_resume(task, command, *words))
            oof = _oof(source, rows.id, theirs)
            weights = gathering.fold_weights(config, loaded.score, oof)
            test = gathering.test_table(spec, record.predicted, weights)
            gathering.write_submission(folder, rows, loaded.finish_test(config, oof, test))
            manifest.end(folder)
    return folder.path("submission.csv")


def _fitted(source: RunFolder, task: Task, manifest: Manifest, fold: int) -> Fitted:
    """A fitted fold, with only what predicting needs."""
    entry = manifest.folds[fold]
    artifact = stored.artifact(source, fold, task.artifact_name, entry.files)
    return Fitted(np.empty(0, np.float32), artifact, batch=entry.batch, row_s=entry.row_s)


def _open(
    folder: RunFolder,
    source: RunFolder,
    theirs: Manifest,
    spec: RunSpec,
    resume: bool,
    options: Mapping[str, Any],
    slots: int,
) -> Manifest:
    """Begin or continue the folder. The caller holds its lock.

    Raises:
      RunFolderError: it holds something other than these predictions.
    """
    artifact = load_task(spec.task).artifact_name
    whose = {
        str(fold): {name: sum_ for name, sum_ in entry.files.items() if name.endswith(artifact)}
        for fold, entry in theirs.folds.items()
    }
    if resume:
        manifest, own = stored.load(folder, type(spec.config))
        if (manifest.model_extra or {}).get("run", {}).get("artifacts") != whose:
            raise RunFolderError(f"{folder} holds no predictions of {source}. Choose another --out.")
        stored.same_config(folder, own, spec.config)
        stored.same_data(folder, manifest, spec)
        folder.remove_temporaries()
        manifest.taken_up(shlex.join(sys.argv))
        manifest.save(folder)
        return manifest
    folder.write("config.yaml", spec.config.to_yaml())
    more = {"run": {"root": str(source), "artifacts": whose}}
    manifest = new_manifest(spec, options, shlex.join(sys.argv), **more)
    for fold, entry in theirs.folds.items():
        rows = span_rows(spec.n_test, entry.row_s * spec.n_test, slots, entry.batch)
        fresh = FoldEntry(state="trained", span_rows=rows, attempts=entry.attempts[-1:])
        manifest.folds[fold] = fresh.model_copy(update=entry.model_extra or {})
    manifest.save(folder)
    return manifest


def _oof(source: RunFolder, id_name: str, manifest: Manifest) -> pd.DataFrame:
    """The run's training rows with `fold` and what each fold's fit predicted for them, as `Task.finish` takes them."""
    records = source.read_csv("records.csv", id_name, *manifest.text)
    own = pd.concat([source.read_csv(f"fold-{fold}/oof.csv", id_name) for fold in manifest.folds])
    names = [name for name in own if name not in (id_name, "target")]
    found = own.set_index(id_name).loc[records[id_name], names].astype(np.float64).reset_index(drop=True)
    dtypes = {(entry.model_extra or {}).get("dtype", "float32") for entry in manifest.folds.values()}
    return records.join(found.astype(dtypes.pop()))
