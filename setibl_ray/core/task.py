"""What a user of the orchestrator writes: a `Task`, and the few values that go in and out of it.

    class Ridge(Task):
        Settings = RidgeSettings                       # what is trained, a pydantic model: flags, YAML, search space
        score = Score("rmse", rmse, "minimize")

        def open(self, data, config):                  # data: the value of --data
            return Rows(table, test, fingerprint=..., content=frame)

        def fit(self, work):                           # in its own process, on any node
            model = sklearn.linear_model.Ridge(work.config.alpha).fit(...work.train...)
            yield Fitted(model.predict(...work.valid...), artifact=to_bytes(model))

        def predict(self, work):                       # rows work.span of the test set
            return from_bytes(work.artifact).predict(...)

A long task yields a `Step` after each part of its work, with numbers to show and bytes to continue from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from pydantic import BaseModel

from setibl_ray.core import stats
from setibl_ray.core.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from setibl_ray.core.jobs import Cause, Place

Span: TypeAlias = tuple[int, int]
"""(start, stop): rows of the test table."""


@dataclass(frozen=True)
class Score:
    """How predictions are judged.

    Attributes:
      name: `auc`, `rmse`, ….
      fn: (target (n,), pred (n,) or (n, k)) -> float; any groups of rows may be passed.
      direction: whether a higher or a lower score is better.
      step: column of a step's row that holds the score of the held-out part; sweeps stop bad trials by it.
      floor: the worst score there is, if there is one (0 for an AUC).
      chance: the score of guessing; with `--fold-weights NAME`, a fold's weight is its distance from this.
      difference: (target, first, second, group) -> (second's score minus first's, its standard error), if there
        is a faster way than the bootstrap of `stats.difference`.
    """

    name: str
    fn: Callable[[np.ndarray, np.ndarray], float]
    direction: Literal["maximize", "minimize"] = "maximize"
    step: str = ""
    floor: float | None = None
    chance: float = 0.0
    difference: Callable[..., tuple[float, float]] | None = None

    @property
    def sign(self) -> int:
        return 1 if self.direction == "maximize" else -1

    @property
    def worst(self) -> float:
        """The score of predictions that are not numbers: worse than any other."""
        return -self.sign * float("inf") if self.floor is None else self.floor

    @property
    def label(self) -> str:
        """The name, as in headings."""
        return self.name.upper() if len(self.name) < 6 else self.name

    def of(self, target: np.ndarray, pred: np.ndarray) -> float:
        return float(self.fn(target, pred)) if np.isfinite(pred).all() else self.worst

    def compare(
        self, target: np.ndarray, first: np.ndarray, second: np.ndarray, group: pd.Series | None = None
    ) -> tuple[float, float]:
        """Score of the second predictions minus that of the first, and its standard error."""
        compare = self.difference or (lambda *parts: stats.difference(self.fn, *parts))
        return compare(target, first, second, group)


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a data set.

    Attributes:
      table: one row per training row: its id (text), `target`, optionally `group` (rows that belong together) and
        `unit` (number of its file, from 0); all other columns are written to records.csv.
      test: one row per row to predict, with its id; no rows if there is nothing to predict.
      fingerprint: a checksum of the content, such as SHA-256; a run can only be resumed on the same data.
      content: what `fit` and `predict` need; it is sent to each node once.
      id: name of the id's column.
      root: the place of the data, for messages.
      about: further facts for the manifest.
      notes: lines to show to the user.
    """

    table: pd.DataFrame
    test: pd.DataFrame
    fingerprint: str
    content: Any = field(default=None, repr=False)
    id: str = "id"
    root: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def target(self) -> np.ndarray:
        return self.table["target"].to_numpy()

    @property
    def group(self) -> pd.Series | None:
        return self.table.get("group")


@dataclass(frozen=True)
class Needs:
    """What one fold takes from a node, unless flags say otherwise.

    Attributes:
      cpus: cores; None for an equal share.
      gpus: GPUs, or a fraction of one; None for one, on a node that has GPUs.
      memory_bytes: an estimate, so that folds wait for room.
      n_steps: how many steps `fit` yields; 0 if none, or if that is unknown.
    """

    cpus: int | None = None
    gpus: float | None = None
    memory_bytes: int = 0
    n_steps: int = 0


@dataclass(frozen=True)
class Step:
    """The end of a part of a fit: numbers to show and keep, and bytes from which another process can continue."""

    row: Mapping[str, float]
    state: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Fitted:
    """A fitted fold.

    Attributes:
      pred: predictions of the held-out rows, in the order of `Work.valid`: (m,) or (m, k).
      artifact: what `predict` needs.
      columns: further columns of fold-K/oof.csv, each (m,).
      facts: further facts for the manifest, JSON values.
      batch: test rows are divided in multiples of this.
      row_s: seconds per test row; 0 keeps the test set in one piece.
    """

    pred: np.ndarray
    artifact: bytes = field(default=b"", repr=False)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 1
    row_s: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """Predictions of a span of the test set: `pred` (n,) or (n, k), further columns of test.csv, facts."""

    pred: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """The argument of `fit` and `predict`.

    Attributes:
      config: the task's settings and the fields of every config.
      rows: as returned by `open`.
      fold: its number, from 0.
      train, valid: numbers of the rows to fit on and to hold out.
      span: rows of the test set to predict, (start, stop).
      step, state: number of steps that earlier attempts finished, and the state of the last; 0 and None at first.
      artifact: of the fitted fold, for `predict`.
      place: where it runs, and with which devices and cores.
      scratch: a folder for this node's temporary files, the same for all folds of the data.
      files: content of the files that the config names.
    """

    config: Any
    rows: Rows
    fold: int
    fold_of_row: np.ndarray = field(repr=False)
    place: Place
    scratch: str
    span: Span = (0, 0)
    step: int = 0
    state: bytes | None = field(default=None, repr=False)
    artifact: bytes = field(default=b"", repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def train(self) -> np.ndarray:
        return (self.fold_of_row != self.fold).nonzero()[0]

    @property
    def valid(self) -> np.ndarray:
        return (self.fold_of_row == self.fold).nonzero()[0]


@dataclass(frozen=True)
class FoldReport:
    """A fitted fold's steps, one row each, and the columns and facts of its `Fitted`."""

    history: list[Mapping[str, float]]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """Results of all folds together.

    Attributes:
      oof: predictions of the training rows, (n,) or (n, k), as they go into oof.csv.
      test: the same of the test rows.
      metrics: content of metrics.json.
    """

    oof: np.ndarray
    test: np.ndarray
    metrics: dict[str, Any]


class Task:
    """The base of a task. A task defines `Settings`, `score`, `open` and `fit`; the rest is optional."""

    Settings: type[BaseModel]
    score: Score
    artifact_name = "artifact.bin"
    clean = ""
    """`package.module:function` that is called on every node when a run ends, to remove what `fit` kept there."""
    packages: tuple[str, ...] = ()
    """Further packages whose versions the manifest names."""
    shown: tuple[str, ...] = ()
    """Columns of a step's row that are shown while a run goes on; all of them if it is empty."""
    code: Mapping[str, Callable[..., Any]] = {}
    """Functions that the user passed in, by their names in the config."""

    def open(self, data: str, config: Any) -> Rows:
        """Read what is known of the rows. Runs where the run is started, so it should not load what only `fit` needs.
        A task may take further arguments by name.

        Raises:
          ConfigError, DataError: the data cannot be used.
        """
        raise NotImplementedError

    def open_test(self, data: str, config: Any) -> Rows:
        """`open` for data of which only test rows are needed; there may be no others."""
        return self.open(data, config)

    def settle(self, config: Any, rows: Rows) -> Any:
        """The config with fields that depend on the data filled in, after checking that it can work with them.

        Raises:
          ConfigError: it cannot.
        """
        return config

    def check(self, config: Any, rows: Rows, fold_of_row: np.ndarray) -> None:
        """Refuse folds that cannot be trained.

        Raises:
          ConfigError: a fold cannot.
        """

    def files(self, config: Any) -> dict[str, bytes]:
        """Content of the files that the config names, by the names that it gives them.

        Read where the run is started: a worker may not have them.
        """
        return {}

    def code_names(self, config: Any) -> list[str]:
        """Names (`module:function`) of the user's code in the config."""
        return []

    def needs(self, config: Any, fold: int) -> Needs:
        """What a fold takes. `config.device` and `config.cpus_per_fold` are settled, once there are nodes."""
        return Needs()

    def fit(self, work: Work) -> Iterator[Step | Fitted]:
        """Fit a fold: a `Step` after each part of the work, if it has parts, and one `Fitted`."""
        raise NotImplementedError

    def predict(self, work: Work) -> Prediction | np.ndarray:
        """Predict the test rows `work.span` with `work.artifact`. The same rows give the same bytes in any span."""
        raise ConfigError("this task has a test set but no `predict`: write one, or open no test rows")

    def finish(
        self, config: Any, oof: pd.DataFrame, test: pd.DataFrame, folds: Mapping[int, FoldReport]
    ) -> Outcome:
        """Turn the folds' predictions into results.

        Args:
          oof: the training table with `fold`, `pred` (or pred_0, pred_1, …) and the further columns of `Fitted`.
          test: the test table with the folds' weighted mean as `pred`.
          folds: what is known of each fold.
        """
        pred, target, fold = predictions(oof), oof["target"].to_numpy(), oof["fold"].to_numpy()
        parts = {int(k): fold == k for k in np.unique(fold)}
        scores = [
            {"fold": k, "rows": int(part.sum()), "score": self.score.of(target[part], pred[part])}
            for k, part in parts.items()
        ]
        interval = stats.interval(self.score.fn, target, pred, oof.get("group"))
        return Outcome(pred, predictions(test), {"score": {"interval": interval}, "folds": scores})

    def finish_test(self, config: Any, oof: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
        """Results for other test rows than the run's own, `oof` being the run's as in `finish`."""
        return predictions(test)

    def check_like(self, run: Mapping[str, Any], rows: Rows) -> None:
        """Refuse test rows that the run, whose `Rows.about` is given, cannot say anything about.

        Raises:
          DataError: it cannot.
        """

    def to_predict(self, config: Any) -> Any:
        """A run's config as `predict` is given it."""
        return config

    def summary(self, metrics: Mapping[str, Any]) -> list[str]:
        """metrics.json in a few lines."""
        score = metrics["score"]
        spread = " [{:.4g}, {:.4g}]".format(*score["interval"]) if score["interval"] else ""
        folds = ", ".join(f"{fold['score']:.4g}" for fold in metrics["folds"])
        return [f"out-of-fold {score['name']} {score['oof']:.4g}{spread}; folds {folds}"]

    def draw(self, config: Any, fold: int, history: pd.DataFrame) -> Mapping[str, bytes]:
        """Pictures of a fitted fold, by file name, for its folder."""
        return {}

    def cause_of(self, error: BaseException) -> Cause:
        """The cause of a failure, from an exception of `fit` or `predict`."""
        if isinstance(error, ConfigError):
            return "config"
        if isinstance(error, StorageError):
            return "storage"
        if isinstance(error, DataError):
            return "data"
        return "host-memory" if isinstance(error, MemoryError) else "code"


def prediction_names(table: pd.DataFrame) -> list[str]:
    """`pred`, or pred_0, pred_1, … for predictions with several columns."""
    if "pred" in table:
        return ["pred"]
    return [name for name in map(str, table) if name.startswith("pred_") and name[5:].isdigit()]


def predictions(table: pd.DataFrame) -> np.ndarray:
    """The predictions in a table: (n,), or (n, k) for several columns."""
    names = prediction_names(table)
    return table["pred"].to_numpy() if names == ["pred"] else table[names].to_numpy()


def prediction_columns(pred: np.ndarray) -> dict[str, np.ndarray]:
    """Predictions as columns of a table."""
    return {"pred": pred} if pred.ndim == 1 else {f"pred_{k}": pred[:, k] for k in range(pred.shape[1])}
