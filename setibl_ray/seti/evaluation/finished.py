"""A finished run, read back from its folder: what report, evaluate and blend share.

`load_run` reads every table once and checks that they fit together, so that nothing downstream has to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from setibl_ray.core.errors import RunFolderError
from setibl_ray.core.run import stored
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.seti.config import Config


@dataclass(frozen=True)
class Run:
    """A run folder's content.

    Attributes:
      folder: where it was read from.
      config: the resolved config.
      manifest: content of manifest.json.
      metrics: content of metrics.json; None where it is missing.
      oof: one row per training cadence, in table order: image_id, target, pred, fold, as in oof.csv; pred_model and
        pred_no_tta, the fold's model's own scores (mean over views, and plain image), before any post-processing
        or calibration; group ("" if none), snr (nan if unknown), kind ("" if none).
      submission: image_id, pred of the test set, sorted by id; no rows where there was no test set.
      histories: fold -> epoch, lr, loss, auc, val_loss, val_auc, val_auc_half_1, val_auc_half_2, images_per_s,
        duration_s.
    """

    folder: RunFolder
    config: Config
    manifest: Mapping[str, Any]
    metrics: Mapping[str, Any] | None
    oof: pd.DataFrame = field(repr=False)
    submission: pd.DataFrame = field(repr=False)
    histories: Mapping[int, pd.DataFrame] = field(repr=False)

    @property
    def name(self) -> str:
        return self.folder.root.rstrip("/").rsplit("/", 1)[-1]

    @property
    def best_epochs(self) -> dict[int, int]:
        """fold -> epoch (from 0) whose weights predicted."""
        return {int(fold): entry["best_epoch"] for fold, entry in self.manifest["folds"].items()}

    def weights(self, fold: int) -> bytes:
        """A fold's weights file.

        Raises:
          RunFolderError: it was not kept, or has changed.
        """
        files = self.manifest["folds"][str(fold)]["files"]
        return stored.artifact(self.folder, fold, "weights.h5", files)


def load_run(path: str) -> Run:
    """Read a finished run from a local folder or an fsspec URL.

    Raises:
      RunFolderError: a file or column is missing, the tables disagree, or the run is not finished.
    """
    folder = RunFolder(path)
    manifest = stored.finished(folder).plain()
    return Run(
        folder=folder,
        config=stored.read_config(folder, Config),
        manifest=manifest,
        metrics=folder.read_json("metrics.json") if folder.exists("metrics.json") else None,
        oof=_oof(folder),
        submission=_submission(folder),
        histories={int(fold): _history(folder, int(fold)) for fold in manifest["folds"]},
    )


def same_rows(runs: Sequence[Run]) -> None:
    """Check that runs predict the same training and test cadences, in the same order, with the same targets.

    Raises:
      RunFolderError: they do not; names the first row that differs.
    """
    first = runs[0]
    for other in runs[1:]:
        for name, a, b, columns in (
            ("oof.csv", first.oof, other.oof, ["image_id", "target"]),
            ("submission.csv", first.submission, other.submission, ["image_id"]),
        ):
            if len(a) != len(b):
                raise RunFolderError(
                    f"{name}: {first.folder} has {len(a)} rows, {other.folder} has {len(b)}. "
                    "Runs can be put together only where they predict the same cadences."
                )
            differs = np.flatnonzero((a[columns].to_numpy() != b[columns].to_numpy()).any(axis=1))
            if len(differs):
                row = differs[0]
                came = [" ".join(map(str, table[columns].iloc[row])) for table in (a, b)]
                raise RunFolderError(
                    f"{name}: {len(differs)} rows differ between {first.folder} and {other.folder}, "
                    f"first row {row}: {came[0]} against {came[1]}. Take runs over the same shards."
                )


def _read_table(folder: RunFolder, name: str, columns: Sequence[str]) -> pd.DataFrame:
    table = folder.read_csv(name, "image_id", "kind")
    for column in columns:
        if column not in table:
            raise RunFolderError(
                f"{folder.path(name)}: no column {column!r}, only {', '.join(table.columns)}"
            )
    return table


def _oof(folder: RunFolder) -> pd.DataFrame:
    predicted = _read_table(folder, "oof.csv", ["image_id", "target", "pred", "fold"])
    records = _read_table(folder, "records.csv", ["image_id", "target", "group", "snr", "kind", "fold"])
    if predicted["image_id"].tolist() != records["image_id"].tolist():
        raise RunFolderError(f"{folder.path('oof.csv')}: its image_id column is not that of records.csv")
    of_folds = pd.concat(
        _read_table(folder, f"fold-{fold}/oof.csv", ["image_id", "pred", "pred_no_tta"])
        for fold in sorted(predicted["fold"].unique())
    )
    if of_folds["image_id"].duplicated().any() or set(of_folds["image_id"]) != set(predicted["image_id"]):
        raise RunFolderError(
            f"{folder.path('fold-*/oof.csv')}: together they do not hold each row of oof.csv once"
        )
    in_order = of_folds.set_index("image_id").loc[predicted["image_id"]]
    predicted["pred_model"] = in_order["pred"].to_numpy()
    predicted["pred_no_tta"] = in_order["pred_no_tta"].to_numpy()
    _check_predictions(folder, "oof.csv", predicted, ("pred",))
    _check_predictions(folder, "fold-*/oof.csv", predicted, ("pred_model", "pred_no_tta"))
    if not predicted["target"].isin((0, 1)).all():
        raise RunFolderError(f"{folder.path('oof.csv')}: expected targets 0 and 1")
    return predicted[["image_id", "target", "pred", "pred_model", "pred_no_tta", "fold"]].assign(
        group=records["group"].to_numpy(),
        snr=records["snr"].astype(np.float64).to_numpy(),
        kind=records["kind"].to_numpy(),
    )


def _submission(folder: RunFolder) -> pd.DataFrame:
    if not folder.exists("submission.csv"):
        return pd.DataFrame({"image_id": pd.Series([], dtype=str), "pred": pd.Series([], dtype=np.float64)})
    table = _read_table(folder, "submission.csv", ["id", "target"])
    table = table.rename(columns={"id": "image_id", "target": "pred"})
    _check_predictions(folder, "submission.csv", table, ("pred",))
    return table[["image_id", "pred"]]


def _history(folder: RunFolder, fold: int) -> pd.DataFrame:
    columns = ["epoch", "lr", "loss", "auc", "val_loss", "val_auc", "images_per_s", "duration_s"]
    return _read_table(folder, f"fold-{fold}/history.csv", columns)


def _check_predictions(folder: RunFolder, name: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    if table["image_id"].duplicated().any():
        twice = table.loc[table["image_id"].duplicated(), "image_id"].iloc[0]
        raise RunFolderError(f"{folder.path(name)}: image_id {twice} appears twice")
    for column in columns:
        outside = ~pd.to_numeric(table[column], errors="coerce").between(0, 1)
        if outside.any():
            row = table.loc[outside].iloc[0]
            raise RunFolderError(
                f"{folder.path(name)}: expected {column} in [0, 1], got {row[column]} for {row['image_id']}"
            )
