"""A finished run applied to other cadences: every fold predicts them, and the folds are averaged as in the run.

The folder that it leaves is a run folder whose folds are trained already, so spans, retries and resuming are those of
a run; the same test set gives the same bytes as it had there.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from rich.console import Console

from setibl_ray.core import terminal
from setibl_ray.core.contract import FoldResult, Plan
from setibl_ray.core.errors import RunFolderError
from setibl_ray.core.run import driver
from setibl_ray.core.run import resume as taken_up
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import Manifest
from setibl_ray.core.run.progress import Progress
from setibl_ray.core.run.supervisor import Supervisor
from setibl_ray.core.storage import location
from setibl_ray.core.where import Where
from setibl_ray.seti.evaluation import postprocess
from setibl_ray.seti.evaluation.finished import Run, load_run
from setibl_ray.seti.formats.shards import read_index


def predict(
    run: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    where: Where | Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    resume: bool = False,
    on_bad_record: Literal["fail", "skip"] = "fail",
    console: Console | None = None,
) -> str:
    """Predict the test shards of a data set with every fold of a run.

    Args:
      run: folder or URL of a finished run that keeps its weights.
      data: folder or URL of shards; training shards in it are left alone.
      out: folder or URL to write: submission.csv (id, target), and each fold's predictions in fold-K/test.csv.
      where: where to predict.
      changes: config fields of prediction alone that differ from the run's: `tta`, `device`, `devices_per_fold`,
        `cpus_per_fold`, `cache`. By default device and cores are what there is here.
      resume: go on with the predictions at `out`.
      on_bad_record: refuse data with an unusable record, or leave such records out.
      console: where progress is shown.

    Returns:
      The path of submission.csv.

    Raises:
      ConfigError, DataError, RunFolderError: found before anything is predicted.
      FoldFailedError, RunStoppedError, Interrupted: as in `driver.cross_validate`.
    """
    where, console, data = Where.of(where), console or terminal.console(), location("data", data)
    source, folder = load_run(location("run", run)), RunFolder(location("out", out))
    anew = {"weights": "none", "device": "auto", "devices_per_fold": None, "cpus_per_fold": None}
    if resume:
        taken_up.load(folder)
    else:
        taken_up.refuse_existing(folder)
    with folder.locked():
        index = read_index(data, on_bad_record=on_bad_record, needs="test", decode="some")
        config = driver.check(source.config.model_copy(update={**anew, **(changes or {})}), index)
        plan = Plan(config, index, np.empty(0, np.int16), driver.scratch_of(index))
        results = {fold: _trained(source, fold) for fold in range(config.folds)}
        with driver.runner_for(plan, where, console) as (runner, plan):
            manifest = _open(folder, source, plan, resume, on_bad_record)
            with (
                driver.resumable(folder, manifest, _resuming(source, folder, data, where)),
                Progress(range(config.folds), plan.n_test, console) as progress,
            ):
                supervisor = Supervisor(runner, folder, manifest, plan, where.max_retries, say=progress.say)
                supervisor.take_up(results, taken_up.predicted_folds(folder, manifest, plan, progress.say))
                for event, decision in supervisor.follow():
                    progress.update(event, decision)
                driver.all_done(manifest)
                oof = source.oof.assign(pred=source.oof["pred_model"])
                weights = driver.fold_weights(config, oof)
                test = driver.averaged(plan, supervisor.predicted, weights)
                # As in the run: what it learned from its out-of-fold scores is applied here too.
                done = postprocess.finish(
                    oof, test, postprocess=config.postprocess, calibrate=config.calibrate, seed=config.seed
                )
                driver.write_submission(folder, test.assign(pred=done.test))
    return folder.path("submission.csv")


def _trained(source: Run, fold: int) -> FoldResult:
    """A fold as its training left it; of what is not needed here, nothing.

    Raises:
      RunFolderError: its weights were not kept, or are not what they were.
    """
    name = f"fold-{fold}/weights.h5"
    entry = source.manifest["folds"][str(fold)]
    if name not in entry["files"]:
        raise RunFolderError(f"{source.folder} keeps no weights: fold {fold} cannot predict")
    if source.folder.unfit({name: entry["files"][name]}):
        raise RunFolderError(
            f"{source.folder.path(name)} is missing or has changed since it was written. Finish the run again with "
            "`cv --resume`, or restore the file."
        )
    nothing = np.empty(0, np.float32)
    history = source.histories[fold].to_dict("records")
    weights = source.folder.read(name)
    return FoldResult(fold, nothing, nothing, entry["best_epoch"], history, weights, {}, 0)


def _open(folder: RunFolder, source: Run, plan: Plan, resume: bool, on_bad_record: str) -> Manifest:
    """Begin the folder, or take it up. The caller holds its lock.

    Raises:
      RunFolderError: it holds something else than these predictions.
    """
    whose = {
        fold: {name: sum_ for name, sum_ in entry["files"].items() if name.endswith("weights.h5")}
        for fold, entry in source.manifest["folds"].items()
    }
    if resume:
        manifest, own = taken_up.load(folder)
        if manifest.content.get("run", {}).get("weights") != whose:
            raise RunFolderError(f"{folder} holds no predictions of {source.folder}. Choose another --out.")
        taken_up.same_config(folder, own, plan.config)
        taken_up.same_data(folder, manifest, plan)
        folder.remove_temporaries()
        manifest.resumed(shlex.join(sys.argv))
        return manifest
    folder.write("config.yaml", plan.config.to_yaml())
    manifest = Manifest.new(folder, plan.index, plan.config, shlex.join(sys.argv), on_bad_record)
    manifest.content["run"] = {"root": str(source.folder), "weights": whose}
    for fold, entry in source.manifest["folds"].items():
        manifest.content["folds"][fold] |= {
            "state": "trained",
            "best_epoch": entry["best_epoch"],
            "files": {},
            "attempts": entry["attempts"][-1:],
        }
    manifest.save()
    return manifest


def _resuming(source: Run, folder: RunFolder, data: str, where: Where) -> str:
    flags = shlex.join([str(source.folder), "--data", data, "--out", str(folder), *where.flags()])
    return f"Resume with: python -m setibl_ray.predict {flags} --resume"
