"""`Run`, which `cross_validate` returns: an opened run folder, with its results as tables, figures and a page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from html import escape
from typing import Any

import pandas as pd
import yaml

from setibl_ray.core.errors import ConfigError, RunFolderError
from setibl_ray.core.reporting import charts
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import Manifest
from setibl_ray.core.storage import location
from setibl_ray.core.terminal import one_line, visible
from setibl_ray.core.text import duration


class Run:
    """A run's folder or URL, of any task: `Run("runs/b0").oof`.

    A run that is still going on, was interrupted, or failed can be opened too; what it does not have yet raises
    RunFolderError when it is asked for. In a notebook it shows its result and its folds.

    Attributes:
      folder: as it was given.
      manifest: content of manifest.json: versions, data, and every attempt at every fold.

    Raises:
      ConfigError: `folder` is neither a string nor a path.
      RunFolderError: there is no run of this version.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = location("run", folder)
        self._folder = RunFolder(self.folder)
        if not self._folder.exists():
            raise RunFolderError(f"{self.folder} holds no run (no manifest.json)")
        self._manifest = Manifest.load(self._folder)
        self.manifest: Mapping[str, Any] = self._manifest.plain()

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every field of its config, as in config.yaml."""
        return yaml.safe_load(self._folder.read("config.yaml"))

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Content of metrics.json."""
        self._has("metrics.json")
        return self._folder.read_json("metrics.json")

    @cached_property
    def oof(self) -> pd.DataFrame:
        """Out-of-fold predictions: the id, target, pred (or pred_0, pred_1, …), fold; one row per training row."""
        return self._table("oof.csv")

    @cached_property
    def submission(self) -> pd.DataFrame:
        """Predictions of the test set, averaged over folds: id, target (or target_0, …), sorted by id.

        Raises:
          RunFolderError: the run is not finished, or there was no test set.
        """
        return self._table("submission.csv")

    @cached_property
    def folds(self) -> pd.DataFrame:
        """One row per fold: its state, its scores, where it ran [node, device, cpus], and how often it was tried."""
        scores: dict[int, dict[str, Any]] = {}
        if self._folder.exists("metrics.json"):
            scores = {own["fold"]: own for own in self.metrics["folds"]}
        rows = []
        for fold, entry in self._manifest.folds.items():
            numbers = {
                name: value
                for name, value in scores.get(fold, {}).items()
                if name != "fold" and isinstance(value, int | float)
            }
            last = entry.attempts[-1].model_dump() if entry.attempts else {}
            where = {name: last.get(name) for name in ("node", "device", "cpus")}
            rows.append(
                {"fold": fold, "state": entry.state, **numbers, **where, "attempts": len(entry.attempts)}
            )
        return pd.DataFrame(rows).set_index("fold")

    @cached_property
    def history(self) -> pd.DataFrame:
        """The steps (epochs) of all folds that were fitted: fold, and the columns of their history.csv."""
        names = {fold: f"fold-{fold}/history.csv" for fold in self._manifest.folds}
        parts = [
            self._folder.read_csv(name).assign(fold=fold)
            for fold, name in names.items()
            if self._folder.exists(name)
        ]
        if not parts:
            raise RunFolderError(f"{self.folder}: no fold has a history.csv (yet)")
        table = pd.concat(parts, ignore_index=True)
        return table[["fold", *table.columns.drop("fold")]]

    def plot_history(self, column: str | None = None) -> charts.Figure:
        """A column of `history` over the steps: a line per fold, dotted for the training part where `val_…` is known.

        Args:
          column: `loss`, `auc`, …; without `val_`. By default the run's score, or the first number there is.
        """
        steps = self.history
        known = dict.fromkeys(
            name.removeprefix("val_") for name in steps if name not in ("fold", "epoch", "step")
        )
        column = column or next((name for name in (self._score_name, *known) if name in known), "")
        if column not in known:
            raise ConfigError(f"column: expected one of {', '.join(known)}, got {column!r}")
        traces = []
        for i, (fold, rows) in enumerate(steps.groupby("fold")):
            x, colour = range(1, len(rows) + 1), f"@c{i % 8}"
            held_out = f"val_{column}" in steps
            main = f"val_{column}" if held_out else column
            traces.append(charts.line(x, rows[main], f"fold {fold}", colour, legendgroup=f"{fold}"))
            if held_out and column in steps:
                pen: dict[str, Any] = {"width": 1.2, "dash": "dot", "legendgroup": f"{fold}"}
                traces.append(
                    charts.line(x, rows[column], f"fold {fold}, training", colour, showlegend=False, **pen)
                )
        whole = {"dtick": 1} if len(steps) <= 20 * steps["fold"].nunique() else {"tickformat": "d"}
        return charts.plotly_figure(charts.figure(traces, "step", escape(column), xaxis=whole))

    def plot_roc(self) -> charts.Figure:
        """ROC of each fold and of all rows together, with a logarithmic axis; as all below, of a run of cadences."""
        return self._drawn("roc")

    def plot_precision_recall(self) -> charts.Figure:
        """Precision against recall of each fold and of all rows together."""
        return self._drawn("precision-recall")

    def plot_folds(self) -> charts.Figure:
        """Each fold's AUC, with and without test-time augmentation, with its interval."""
        return self._drawn("folds")

    def plot_scores(self) -> charts.Figure:
        """How scores are distributed in needles, haystacks and the test set."""
        return self._drawn("distribution")

    def plot_calibration(self) -> charts.Figure:
        """Share of needles against mean score."""
        return self._drawn("calibration")

    def plot_snr(self) -> charts.Figure:
        """Recall at 1 % false positives against S/N, where the data carry it."""
        return self._drawn("snr")

    def plot_timeline(self) -> charts.Figure:
        """What each fold did when, with failed attempts."""
        return self._drawn("timeline")

    def report(self, data: str | os.PathLike[str] | None = None) -> str:
        """Write report.html into the run's folder: figures, tables and pictures on one page.

        Args:
          data: where the shards are now, for pictures; by default where they were.

        Returns:
          Its path.
        """
        from setibl_ray.report import write_report

        self._must_be_of_cadences()
        self._has("metrics.json")
        return write_report(self.folder, None if data is None else location("data", data))

    def __repr__(self) -> str:
        return f"Run({self.folder!r}): {self._line()}"

    def _repr_html_(self) -> str:
        table = self.folds.drop(columns=["node", "device", "cpus"]).map(_cell)
        title = f"<b>{escape(visible(self.folder))}</b>: {escape(self._line())}"
        return f"<div><p>{title}</p>{table.to_html(escape=True, border=0)}</div>"

    def _line(self) -> str:
        """How the run went, in a sentence."""
        folds = self._manifest.folds
        if not self._folder.exists("metrics.json"):
            states = pd.Series([entry.state for entry in folds.values()]).value_counts()
            return f"not finished; of {len(folds)} folds " + ", ".join(
                f"{n} {state}" for state, n in states.items()
            )
        score = self.metrics.get("score") or {"name": "auc", "oof": self.metrics["oof_auc"], "interval": None}
        interval = " [{:.4g}, {:.4g}]".format(*score["interval"]) if score["interval"] else ""
        took = self._manifest.ended_s and f", {duration(self._manifest.ended_s - self._manifest.started_s)}"
        value = "–" if score["oof"] is None else f"{score['oof']:.4g}"
        return one_line(f"out-of-fold {score['name']} {value}{interval}, {len(folds)} folds{took or ''}")

    @property
    def _score_name(self) -> str:
        if not self._folder.exists("metrics.json"):
            return "auc"
        return self.metrics.get("score", {}).get("name", "auc")

    def _has(self, name: str) -> None:
        if self._folder.exists(name):
            return
        left = ", ".join(
            map(str, (fold for fold, own in self._manifest.folds.items() if own.state != "done"))
        )
        why = f"fold {left} of {len(self._manifest.folds)} is not done. Go on with resume=True"
        if not left:
            why = "there was no test set" if name == "submission.csv" else "the run did not come to its end"
        raise RunFolderError(f"{self.folder} has no {name}: {why}.")

    def _table(self, name: str) -> pd.DataFrame:
        self._has(name)
        head = self._folder.read(name).partition(b"\n")[0].decode()
        return self._folder.read_csv(name, head.partition(",")[0].strip('"'))

    def _must_be_of_cadences(self) -> None:
        if self._folder.exists("metrics.json") and "oof_auc" not in self.metrics:
            raise ConfigError(
                f"{self.folder} is not a run of cadences: it has tables and plot_history() only"
            )

    @cached_property
    def _drawings(self) -> dict[str, charts.Spec]:
        from setibl_ray.seti.evaluation.finished import load_run
        from setibl_ray.seti.reporting import build

        self._must_be_of_cadences()
        return build.drawings(load_run(self.folder))

    def _drawn(self, name: str) -> charts.Figure:
        if name not in self._drawings:
            raise RunFolderError(f"{self.folder}: the data say nothing that could be drawn here ({name})")
        return charts.plotly_figure(self._drawings[name])


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    return visible(f"{value:.4g}" if isinstance(value, float) else value)
