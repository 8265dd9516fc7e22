"""`python -m setibl_ray.blend RUN RUN… --out DIR`: combine several runs, weighted by out-of-fold AUC."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from setibl_ray import cli
from setibl_ray.core.errors import ConfigError, RunFolderError
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.storage import Location
from setibl_ray.core.tables import from_csv
from setibl_ray.core.terminal import one_line, say
from setibl_ray.core.text import gained
from setibl_ray.seti.evaluation import blending, calibration, metrics, postprocess
from setibl_ray.seti.evaluation.finished import Run, load_run, same_rows
from setibl_ray.seti.evaluation.summary import finish_lines


class Blend(cli.Command):
    """Blend the predictions of runs over the same cadences.

    Writes oof.csv (each row blended with weights chosen without its fold), submission.csv (weights from all rows)
    and blend.json. A single run can be given too, to calibrate or post-process it.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.blend")

    runs: CliPositionalArg[list[Location]]
    """Run folders or URLs."""
    out: Location
    """Folder or URL to write."""
    method: Literal["best", "weights", "rank-mean"] = "best"
    """weights maximises AUC, rank-mean is the plain mean of ranks, best is the better of the two by nested score."""
    postprocess: str = "none"
    """none, group-mean, group-max, group-best or module:function; applied to out-of-fold and test scores."""
    groups: str | None = None
    """CSV with columns image_id and group, for --postprocess: groups of test rows, and of training rows whose group is
    not that of the shards [all groups from the shards]."""
    calibrate: calibration.Asked = "none"
    """Turn scores into probabilities: isotonic or platt, fitted on out-of-fold predictions only."""


def main(options: Blend) -> int:
    runs = [load_run(path) for path in options.runs]
    if not runs:
        raise ConfigError("expected run folders: python -m setibl_ray.blend RUN RUN --out DIR")
    same_rows(runs)
    folder = RunFolder(options.out)
    if folder.exists("manifest.json"):
        raise RunFolderError(f"{folder} holds a run. Choose another --out.")
    table, test, report = blend_runs(runs, options.method)
    if options.postprocess != "none":
        postprocess.find(options.postprocess)  # before shards are read for it
        table, test = with_groups(table, test, runs[0], options.groups)
    done = postprocess.finish(table, test, postprocess=options.postprocess, calibrate=options.calibrate)
    table, test, report = table.assign(pred=done.oof), test.assign(pred=done.test), report | done.report
    folder.write_csv("oof.csv", table[["image_id", "target", "pred", "fold"]])
    if len(test):
        submission = test.rename(columns={"image_id": "id", "pred": "target"})
        folder.write_csv("submission.csv", submission[["id", "target"]])
    folder.write_json("blend.json", metrics.plain(report))
    say("\n".join(_lines(report, folder)))
    return 0


def blend_runs(
    runs: Sequence[Run], method: Literal["best", "weights", "rank-mean"] = "best"
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Blend runs over the same rows.

    Returns:
      Out-of-fold table (image_id, target, pred, fold, group) with unbiased predictions, test table (image_id,
      pred, and an empty group), and the content of blend.json: weights, each run's AUC, the nested AUC of both
      methods and the method taken.

    Raises:
      RunFolderError: all rows outside some fold are of one class, so no weights can be chosen.
    """
    oof = runs[0].oof
    target, fold = oof["target"].to_numpy(), oof["fold"].to_numpy()
    preds = np.column_stack([run.oof["pred"].to_numpy(np.float64) for run in runs])
    for k in np.unique(fold):
        if len(np.unique(target[fold != k])) < 2:
            raise RunFolderError(
                f"{runs[0].folder}: without fold {k} one class is left, so no weights can be chosen"
            )
    weights = blending.simplex_weights(target, preds)
    honest = blending.nested(target, preds, fold)
    # A fold's ranks are taken within the fold: a row's score must not depend on which other rows are in the table.
    ranked = np.empty(len(preds))
    for k in np.unique(fold):
        ranked[fold == k] = blending.ranks(preds[fold == k]).mean(axis=1)
    nested_auc = {"weights": honest.auc, "rank-mean": blending.mean_fold_auc(target, ranked, fold)}
    taken = max(nested_auc, key=lambda name: nested_auc[name]) if method == "best" else method

    test_preds = np.column_stack([run.submission["pred"].to_numpy(np.float64) for run in runs])
    if taken == "weights":
        pred, test_pred = honest.pred, test_preds @ weights
    else:
        pred, test_pred = ranked, blending.ranks(test_preds).mean(axis=1)
    report: dict[str, Any] = {
        "method": taken,
        "runs": [
            {
                "run": str(run.folder),
                "weight": weight if taken == "weights" else 1 / len(runs),
                "weight_by_fold": [honest.weights[k][i] for k in sorted(honest.weights)],
                "auc": metrics.auc(target, run.oof["pred"].to_numpy()),
                "mean_fold_auc": blending.mean_fold_auc(target, run.oof["pred"].to_numpy(), fold),
            }
            for i, (run, weight) in enumerate(zip(runs, weights))
        ],
        "nested_mean_fold_auc": nested_auc,
        "oof_auc": metrics.auc(target, pred),
        "optimistic_auc": metrics.auc(target, preds @ weights),
    }
    best = max(range(len(runs)), key=lambda i: report["runs"][i]["auc"])
    report["gain_over_best_run"] = metrics.difference(target, preds[:, best], pred, oof["group"])
    table = oof[["image_id", "target", "fold", "group"]].assign(pred=pred)
    return table, runs[0].submission[["image_id"]].assign(pred=test_pred, group=""), report


def with_groups(
    table: pd.DataFrame, test: pd.DataFrame, run: Run, path: str | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables with a column `group`: from a CSV if it names the row, otherwise from the shards.

    Args:
      table: out-of-fold rows; image_id and the shards' group.
      test: test rows; image_id.
      run: its shards give the test set's groups if there is no CSV.
      path: of the CSV with columns image_id and group.

    Raises:
      ConfigError: the CSV is missing, lacks a column, or names a row twice.
      DataError: no CSV was given and the shards are not there.
    """
    if path is None:
        from setibl_ray.seti.evaluation.pixels import open_pixels

        named = open_pixels(run).groups("test") if len(test) else pd.Series(dtype=object)
    else:
        named = _read_groups(path)
    own = named.reindex(table["image_id"]).reset_index(drop=True)
    return (
        table.assign(group=own.where(own.notna(), table["group"])),
        test.assign(group=named.reindex(test["image_id"]).fillna("").to_numpy()),
    )


def _read_groups(path: str) -> pd.Series:
    try:
        table = from_csv(Path(path).read_bytes(), text=None)
    except OSError as error:
        raise ConfigError(f"--groups {path}: {error.strerror or error}") from None
    except ValueError as error:  # empty, not text, ragged
        raise ConfigError(f"--groups {path}: not a CSV: {one_line(error)}") from None
    missing = [name for name in ("image_id", "group") if name not in table]
    if missing:
        raise ConfigError(
            f"--groups {path}: expected columns image_id and group, no column {missing[0]!r} among "
            f"{', '.join(table.columns)}"
        )
    twice = table["image_id"].duplicated()
    if twice.any():
        raise ConfigError(f"--groups {path}: image_id {table.loc[twice, 'image_id'].iloc[0]} appears twice")
    return table.set_index("image_id")["group"]


def _lines(report: dict[str, Any], folder: RunFolder) -> list[str]:
    lines = [f"{'run':40}{'AUC':>8}{'weight':>9}"]
    lines += [f"{run['run'][-39:]:40}{run['auc']:8.4f}{run['weight']:9.3f}" for run in report["runs"]]
    nested = report["nested_mean_fold_auc"]
    lines += [
        f"nested score (mean AUC within folds): weights {nested['weights']:.4f}, "
        f"rank mean {nested['rank-mean']:.4f}",
        f"blend by {report['method']}: out-of-fold AUC {report['oof_auc']:.4f}, "
        f"{gained(report['gain_over_best_run'])} over the best run",
        *finish_lines(report),
    ]
    bounds = report["gain_over_best_run"]["interval"]
    if len(report["runs"]) > 1 and not (bounds and bounds[0] > 0):
        lines.append("not shown to be better than the best run alone")
    return [*lines, f"written to {folder}"]


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Blend, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
