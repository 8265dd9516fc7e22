"""`python -m setibl_ray.blend RUN RUN… --out DIR`: several runs into one, weighted by out-of-fold AUC."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from setibl_ray import blending, calibration, cli, metrics, postprocess
from setibl_ray.errors import ConfigError, RunFolderError
from setibl_ray.runfolder import RunFolder
from setibl_ray.runs import Run, load_run, same_rows
from setibl_ray.storage import Location


class Blend(cli.Command):
    """Blend the predictions of runs over the same cadences.

    Writes oof.csv (each row blended with weights that its fold had no part in), submission.csv (weights from
    all rows) and blend.json. A single run is taken too, to calibrate or post-process it.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.blend")

    runs: CliPositionalArg[list[Location]]
    """Run folders or URLs."""
    out: Location
    """Folder or URL to write."""
    method: Literal["best", "weights", "rank-mean"] = "best"
    """weights that maximise AUC, the plain mean of ranks, or the better of the two by nested score."""
    postprocess: str | None = None
    """group-mean, group-max, group-best, or module:function; applied to out-of-fold and test alike."""
    groups: str | None = None
    """CSV with image_id,group of the test set, for --postprocess [the shards' own]."""
    calibrate: calibration.Method | None = None
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
    if options.postprocess:
        report["postprocess"] = _postprocess(options, runs[0], table, test)
    if options.calibrate:
        report["calibration"] = _calibrate(options.calibrate, table, test)
    folder.write_csv("oof.csv", table[["image_id", "target", "pred", "fold"]])
    if len(test):
        folder.write_csv("submission.csv", test.rename(columns={"image_id": "id", "pred": "target"}))
    folder.write_json("blend.json", metrics.plain(report))
    print("\n".join(_lines(report, folder)))
    return 0


def blend_runs(
    runs: Sequence[Run], method: Literal["best", "weights", "rank-mean"] = "best"
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Blend runs over the same rows.

    Returns:
      Out-of-fold table (image_id, target, pred, fold, group) with honest predictions, test table (image_id,
      pred), and what blend.json says: weights, each run's AUC, the nested AUC of both methods and the method
      taken.

    Raises:
      RunFolderError: a fold other than the training rows leaves only one class, so no weights can be chosen.
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
    # A fold's ranks are taken within the fold: a row's score must not depend on who else is in the table.
    ranked = np.empty(len(preds))
    for k in np.unique(fold):
        ranked[fold == k] = blending.ranks(preds[fold == k]).mean(axis=1)
    nested_auc = {"weights": honest.auc, "rank-mean": blending.mean_fold_auc(target, ranked, fold)}
    taken = max(nested_auc, key=lambda name: nested_auc[name]) if method == "best" else method

    test_preds = np.column_stack([run.submission["pred"].to_numpy(np.float64) for run in runs])
    if taken == "weights":
        pred, test_pred = honest.pred, test_preds @ weights
    else:
        pred, test_pred = (
            ranked,
            blending.ranks(test_preds).mean(axis=1) if len(test_preds) else test_preds.mean(axis=1),
        )
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
    return table, runs[0].submission[["image_id"]].assign(pred=test_pred), report


def _postprocess(options: Blend, run: Run, table: pd.DataFrame, test: pd.DataFrame) -> dict[str, Any]:
    """Apply the hook in place; returns its effect."""
    assert options.postprocess is not None
    target, before = table["target"].to_numpy(), table["pred"].to_numpy()
    after = postprocess.apply(options.postprocess, table["image_id"], before, table["group"])
    if len(test):
        group = test_groups(run, options.groups).reindex(test["image_id"]).fillna("").reset_index(drop=True)
        test["pred"] = postprocess.apply(
            options.postprocess, test["image_id"], test["pred"].to_numpy(), group
        )
    effect = metrics.difference(target, before, after, table["group"])
    table["pred"] = after
    return {"hook": options.postprocess, "auc_before": metrics.auc(target, before),
            "auc_after": metrics.auc(target, after), "effect": effect}  # fmt: skip


def test_groups(run: Run, path: str | None) -> pd.Series:
    """Group by image id of the test set, from a CSV or from the shards.

    Raises:
      ConfigError: the CSV is missing or lacks a column.
      DataError: no CSV was given and the shards are not there.
    """
    if path is None:
        from setibl_ray.pixels import open_pixels

        return open_pixels(run).groups("test")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return table.set_index("image_id")["group"]
    except OSError as error:
        raise ConfigError(f"--groups {path}: {error.strerror or error}") from None
    except KeyError as error:
        raise ConfigError(
            f"--groups {path}: expected columns image_id and group, no column {error}"
        ) from None


def _calibrate(method: calibration.Method, table: pd.DataFrame, test: pd.DataFrame) -> dict[str, Any]:
    """Calibrate in place, each out-of-fold row without its own fold; returns scores before and after."""
    target, fold = table["target"].to_numpy(), table["fold"].to_numpy()
    before = table["pred"].to_numpy()
    after = calibration.cross_calibrate(method, target, before, fold)
    test["pred"] = (
        calibration.fit(method, target, before)(test["pred"].to_numpy()) if len(test) else test["pred"]
    )
    table["pred"] = after
    return {
        "method": method,
        **{
            f"{name}_{when}": score(target, pred)
            for name, score in (("brier", calibration.brier), ("ece", calibration.expected_calibration_error),
                                ("auc", metrics.auc))
            for when, pred in (("before", before), ("after", after))
        },
    }  # fmt: skip


def _lines(report: dict[str, Any], folder: RunFolder) -> list[str]:
    lines = [f"{'run':40}{'AUC':>8}{'weight':>9}"]
    lines += [f"{run['run'][-39:]:40}{run['auc']:8.4f}{run['weight']:9.3f}" for run in report["runs"]]
    gain = report["gain_over_best_run"]
    low, high = gain["interval"]
    nested = report["nested_mean_fold_auc"]
    lines += [
        f"nested score (mean AUC within folds): weights {nested['weights']:.4f}, "
        f"rank mean {nested['rank-mean']:.4f}",
        f"blend by {report['method']}: out-of-fold AUC {report['oof_auc']:.4f}, "
        f"{gain['difference']:+.4f} [{low:+.4f}, {high:+.4f}] over the best run",
    ]
    if "postprocess" in report:
        own = report["postprocess"]
        lines.append(f"{own['hook']}: AUC {own['auc_before']:.4f} to {own['auc_after']:.4f}")
    if "calibration" in report:
        own = report["calibration"]
        lines.append(
            f"{own['method']}: calibration error {own['ece_before']:.4f} to {own['ece_after']:.4f}, "
            f"Brier {own['brier_before']:.4f} to {own['brier_after']:.4f}"
        )
    return [*lines, f"written to {folder}"]


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Blend, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
