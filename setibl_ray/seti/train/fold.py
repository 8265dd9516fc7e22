"""The work of a fold, in the order in which it happens: device, data, model, epochs, best weights, views.

Training a fold and predicting a span of the test set with it are separate jobs, so that all free devices can share
the test set of one fold.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import tensorflow as tf

from setibl_ray.core.errors import ConfigError
from setibl_ray.core.randomness import generator, sample_keys, stream_key
from setibl_ray.core.task import Fitted, Prediction, Span, Step, Work
from setibl_ray.seti.cadence import DEFAULT_LAYOUT, LAYOUTS
from setibl_ray.seti.config import Config
from setibl_ray.seti.evaluation import metrics, selection
from setibl_ray.seti.feeding.panels import PanelStore, open_store
from setibl_ray.seti.feeding.pipeline import prediction_views, training_epoch
from setibl_ray.seti.formats.shards import DataIndex
from setibl_ray.seti.memory import check_share
from setibl_ray.seti.sizes import PREDICT_SPEEDUP, sizes
from setibl_ray.seti.train import device as devices
from setibl_ray.seti.train import keras2
from setibl_ray.seti.train.models import Code
from setibl_ray.seti.train.parts import within_memory
from setibl_ray.seti.train.trainer import FoldState, Trainer, trainer_for


class FoldData:
    """The datasets of one fold over its node's decoded panels; training and test panels are opened when needed."""

    def __init__(self, work: Work, threads: int, n_replicas: int) -> None:
        self._config = config = work.config
        self._folder = Path(work.scratch)
        self._index: DataIndex = work.rows.content
        self._fold = work.fold
        self._threads = threads
        self._batch = config.for_fold(work.fold).batch_size * n_replicas
        self.prediction_batch = 2 * self._batch  # as in the original notebook: no gradients are kept
        self._layout = LAYOUTS[config.layout or DEFAULT_LAYOUT[self._index.storage]]
        self._image_size = config.for_fold(work.fold).image_size
        self._stores: dict[str, PanelStore] = {}
        self._keys = sample_keys(self._index.train["image_id"])
        targets = self._index.train["target"].to_numpy(np.float32)
        self.train_rows, self.inner_rows = self._split(work.train)
        self.valid_rows = work.valid
        self.train_targets = targets[self.train_rows]
        self.inner_targets = targets[self.inner_rows]
        self.valid_targets = targets[self.valid_rows]
        if config.select == "inner" and len(np.unique(self.inner_targets)) < 2:
            raise ConfigError(
                "select: inner needs both classes in the tenth of the training rows that chooses the epoch; in fold "
                f"{work.fold} these {len(self.inner_rows)} rows lack one. Take --select last, or more rows."
            )
        order = generator(config.seed, "halves", work.fold).permutation(len(self.valid_rows))
        self.valid_halves = np.array_split(order, 2)

    def _split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on, and rows to choose the epoch by: with `select` inner, a random tenth."""
        n_inner = len(rows) // 10 if self._config.select == "inner" else 0
        order = generator(self._config.seed, "inner", self._fold).permutation(len(rows))
        return rows[np.sort(order[n_inner:])], rows[np.sort(order[:n_inner])]

    def open(self, split: str) -> PanelStore:
        """The node's panels of a split, decoded on first use."""
        if split not in self._stores:
            self._stores[split] = open_store(
                self._index,
                split,
                self._layout.panels,
                self._image_size,
                self._config.standardize,
                policy=self._config.cache,
                folder=self._folder,
                threads=self._threads,
            )
        return self._stores[split]

    def close(self) -> None:
        """Release the node's panels, so that they can be removed."""
        for store in self._stores.values():
            store.close()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._layout.image_shape(self._image_size)

    @property
    def n_steps(self) -> int:
        return len(self.train_rows) // self._batch

    def epoch(self, epoch: int) -> tf.data.Dataset:
        seed = self._config.seed
        return training_epoch(
            self.open("train"),
            self.train_rows,
            self.train_targets,
            self._keys[self.train_rows],
            layout=self._layout,
            batch=self._batch,
            order_key=stream_key(seed, "order", self._fold, epoch),
            augment_key=stream_key(seed, "augment", self._fold, epoch),
            settings=self._config.augment,
            threads=self._threads,
        )

    def inner(self) -> tf.data.Dataset:
        return self._views(self.open("train"), self.inner_rows, self._keys[self.inner_rows], [None])

    def valid_views(self, views: Sequence[int | None]) -> tf.data.Dataset:
        return self._views(self.open("train"), self.valid_rows, self._keys[self.valid_rows], views)

    def test_views(self, span: Span, views: Sequence[int | None]) -> tf.data.Dataset:
        ids = self._index.test["image_id"].iloc[slice(*span)]
        return self._views(self.open("test"), np.arange(*span), sample_keys(ids), views)

    def _views(
        self, store: PanelStore, rows: np.ndarray, keys: np.ndarray, views: Sequence[int | None]
    ) -> tf.data.Dataset:
        return prediction_views(
            store,
            rows,
            keys,
            layout=self._layout,
            batch=self.prediction_batch,
            view_keys=[
                None if view is None else stream_key(self._config.seed, "view", self._fold, view)
                for view in views
            ],
            settings=self._config.augment.of_views,
            threads=self._threads,
        )


def fit(work: Work, code: Code) -> Iterator[Step | Fitted]:
    """Train one fold and predict the rows that it holds out: `CadenceTask.fit`.

    Yields a `Step` per epoch and one `Fitted`. With `work.state`, training continues after the last finished
    epoch and gives the same bytes as an uninterrupted run (same kind of device, same threads).

    Raises:
      ConfigError: the fold has fewer records than one global batch, or the device, weights or layout do not fit.
      DataError: a shard cannot be read.
    """
    config = work.config
    own = config.for_fold(work.fold)
    clock = _Clock()

    device = devices.acquire(config.device, config.cpus_per_fold or 1, work.place.share)
    if device.memory_bytes is not None:
        check_share(config, work.fold, work.place.share, device.memory_bytes, sizes(config, work.fold, code))
    clock.lap("device_s")

    with closing(FoldData(work, device.threads, device.n_replicas)) as data:
        if data.n_steps == 0:
            raise ConfigError(
                f"batch-size: fold {work.fold} trains on {len(data.train_rows)} records, fewer than one global batch "
                f"of {own.batch_size * device.n_replicas} ({own.batch_size} x {device.n_replicas} replicas). "
                "Lower --batch-size."
            )
        data.open("train")
        clock.lap("open_s")
        trainer = trainer_for(work, own, data.image_shape, device, code)
        clock.lap("build_s")

        state = _begin(trainer, work)
        learning_rate = config.learning_rate(work.fold, device.n_replicas)
        row: dict[str, float] = {}
        for epoch in range(state.epochs_done, own.epochs):
            row = _train_epoch(trainer, data, state, epoch, learning_rate(epoch), config, work.fold)
            clock.lap("train_s")
            yield Step(row, state.to_bytes())

        trainer.model.set_weights(state.best_weights)
        valid_plain = state.best_valid_pred
        valid_pred = valid_plain
        if config.tta:
            n = len(valid_plain)
            valid_pred = mean(trainer.predict(data.valid_views(range(config.tta)), n, config.tta))
        clock.lap("predict_valid_s")
        yield Fitted(
            pred=valid_pred,
            artifact=keras2.weights_file(trainer.model),
            columns={"pred_no_tta": valid_plain},
            facts={
                "best_epoch": state.best_epoch,
                "timings": clock.laps,
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "attempt": {"device": device.kind, "n_replicas": device.n_replicas},
            },
            batch=data.prediction_batch,
            row_s=(1 + config.tta) / (PREDICT_SPEEDUP * state.images_per_s),
        )


def predict(work: Work, code: Code) -> Prediction:
    """Predict a span of the test set with the weights of a trained fold: `CadenceTask.predict`.

    The bytes are those of the same rows predicted in one piece with all others (same kind of device, same threads and
    replicas, spans cut at multiples of `Fitted.batch`).

    Raises:
      ConfigError: the device does not fit.
      DataError: a shard cannot be read.
    """
    config = work.config
    clock = _Clock()
    device = devices.acquire(config.device, config.cpus_per_fold or 1, work.place.share)
    clock.lap("device_s")

    with closing(FoldData(work, device.threads, device.n_replicas)) as data:
        data.open("test")
        clock.lap("open_s")
        trainer = trainer_for(work, config.for_fold(work.fold), data.image_shape, device, code)
        keras2.load_weights_file(trainer.model, work.artifact)
        clock.lap("build_s")
        n, views = work.span[1] - work.span[0], [None, *range(config.tta)]
        pred = trainer.predict(data.test_views(work.span, views), n, len(views))
        clock.lap("predict_s")
        facts = {"timings": clock.laps, "device": device.kind, "n_replicas": device.n_replicas}
        return Prediction(mean(pred[1:]) if config.tta else pred[0], {"pred_no_tta": pred[0]}, facts)


def _begin(trainer: Trainer, work: Work) -> FoldState:
    if work.state is not None:
        state = FoldState.from_bytes(work.state)
        trainer.restore(state)
        return state
    weights, optimizer = trainer.capture()
    return FoldState(0, weights, optimizer, weights, -np.inf, -1, np.empty(0, np.float32))


def _train_epoch(
    trainer: Trainer, data: FoldData, state: FoldState, epoch: int, lr: float, config: Config, fold: int
) -> dict[str, float]:
    """Train and validate one epoch, update `state`, and return the epoch's row of history.csv."""
    started = time.perf_counter()
    key = stream_key(config.seed, "dropout", fold, epoch)

    def undo() -> None:
        state.n_parts = trainer.n_parts
        trainer.restore(state)

    logs = within_memory(
        trainer, undo, lambda: trainer.train_epoch(data.epoch(epoch), learning_rate=lr, key=key)
    )
    duration_s = time.perf_counter() - started
    (pred,) = trainer.predict(data.valid_views([None]), len(data.valid_rows))
    auc = _auc(data.valid_targets, pred)
    row = {
        "epoch": epoch,
        "lr": lr,
        "loss": logs["loss"],
        "auc": logs["auc"],
        "val_loss": trainer.loss_of(data.valid_targets, pred),
        "val_auc": auc,
        **{
            column: _auc(data.valid_targets[half], pred[half])
            for column, half in zip(selection.HALVES, data.valid_halves)
        },
        "images_per_s": data.n_steps * trainer.global_batch / duration_s,
        "duration_s": duration_s,
    }
    if config.select == "inner":
        (inner,) = trainer.predict(data.inner(), len(data.inner_rows))
        row["inner_auc"] = _auc(data.inner_targets, inner)
    if state.n_parts > 1:
        row["parts"] = state.n_parts
    state.epochs_done = epoch + 1
    state.weights, state.optimizer = trainer.capture()
    state.images_per_s = row["images_per_s"]
    # A diverged epoch is never the best, except the first, so that there are weights to report.
    if (rank := selection.rank(config.select, row)) > state.best_rank:
        state.best_rank, state.best_epoch = rank, epoch
        state.best_weights, state.best_valid_pred = state.weights, pred
    return row


def mean(views: np.ndarray) -> np.ndarray:
    """(n,) float32 mean of the predictions (n_views, n) of all views."""
    return views.astype(np.float64).mean(axis=0).astype(np.float32)


def _auc(targets: np.ndarray, pred: np.ndarray) -> float:
    return metrics.auc(targets, pred) if np.isfinite(pred).all() else float("nan")


class _Clock:
    """Seconds per stage; repeated stages add up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now
