"""The task of this package's runs: EfficientNets on cadences. The driver's part, without TensorFlow.

The part that computes is only named: `WORKER` is imported where a fold runs.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.core.jobs import Cause
from setibl_ray.core.task import Fitted, FoldReport, Needs, Outcome, Prediction, Rows, Score, Step, Task, Work
from setibl_ray.seti import sizes as models
from setibl_ray.seti import weights
from setibl_ray.seti.cadence import DEFAULT_LAYOUT, LAYOUTS, N_PANELS
from setibl_ray.seti.config import Config
from setibl_ray.seti.evaluation import metrics, postprocess, selection
from setibl_ray.seti.formats.shards import DataIndex, Split, read_index
from setibl_ray.seti.memory import fold_bytes

NAME = "setibl_ray.seti.task:TASK"
WORKER = "setibl_ray.seti.train.fold"


class CadenceTask(Task):
    """Needles in cadences: `Rows.content` is the shards' `DataIndex`."""

    Settings = Config
    score = Score("auc", metrics.auc, step="val_auc", floor=0.0, chance=0.5, difference=metrics.auc_gain)
    artifact_name = "weights.h5"
    clean = "setibl_ray.seti.feeding.panels:remove_all_unused"
    shown = ("loss", "val_loss", "auc", "val_auc", "images_per_s")
    packages = ("tensorflow", "tf-keras", "efficientnet", "tensorflow-addons")

    def __init__(self, code: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self.code = code or {}

    def __getstate__(self) -> dict[str, Any]:
        from ray import cloudpickle  # a function from a notebook or a script exists here only

        pickled = {name: cloudpickle.dumps(function) for name, function in self.code.items()}
        return {**self.__dict__, "code": pickled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["code"]:
            # Before a user's module imports TensorFlow: importing this sets what TensorFlow reads, such as which Keras
            # `tf.keras` is.
            importlib.import_module(WORKER)
        code = {name: pickle.loads(function) for name, function in state["code"].items()}
        self.__dict__.update(state, code=code)

    def open(
        self,
        data: str,
        config: Config,
        *,
        on_bad_record: Literal["fail", "skip"] = "fail",
        check_all: bool = False,
        needs: Split = "train",
    ) -> Rows:
        decode: Literal["some", "all"] = "all" if check_all else "some"
        return rows_of(read_index(data, on_bad_record=on_bad_record, needs=needs, decode=decode))

    def open_test(
        self, data: str, config: Config, *, on_bad_record: Literal["fail", "skip"] = "fail"
    ) -> Rows:
        return self.open(data, config, on_bad_record=on_bad_record, needs="test")

    def settle(self, config: Config, rows: Rows) -> Config:
        """Raises:
        ConfigError: the layout needs panels that the shards do not hold, the weights are not available, or
          post-processing is impossible.
        """
        index: DataIndex = rows.content
        layout = LAYOUTS[config.layout or DEFAULT_LAYOUT[index.storage]]
        if index.storage == "png" and len(layout.panels) == N_PANELS:
            raise ConfigError(
                f"layout: {layout.name} needs all six panels, but the PNG shards in {index.root} hold the three ON "
                "panels only. Take --layout on3 or on_stack, or pack cadences with `python -m setibl_ray.data pack`."
            )
        for model in ("efficientnet-nano", "none"):
            if model in config.model and config.weights == "imagenet":
                raise ConfigError(
                    f"weights: there are no ImageNet weights for --model {model}; take --weights none, cadences or a "
                    "weights file"
                )
        groups = {"training": index.train["group"], "test": index.test["group"]}
        postprocess.check(config.postprocess, groups)
        if config.head == "on-off" and layout.name != "all6":
            raise ConfigError(f"head: on-off compares six panels, those of --layout all6; got {layout.name}")
        config = config.with_layout(layout.name)
        if "none" in config.model and config.head == "plain":
            raise ConfigError(
                f"model: none is the on-off head alone, and this run's head is plain (layout {layout.name}); take "
                "--head on-off with --layout all6, or a backbone"
            )
        network = (",".join(sorted(set(config.model))), config.layout, config.head)
        if config.weights == "cadences" and network != weights.NETWORK:
            wanted, got = (", ".join(map(str, parts)) for parts in (weights.NETWORK, network))
            raise ConfigError(f"weights: cadences are for the model, layout and head {wanted}; got {got}")
        return config

    def check(self, config: Config, rows: Rows, fold_of_row: np.ndarray) -> None:
        """Raises:
        ConfigError: a fold trains on less than a batch, or a user's model is not what a fold needs.
        DataError: a fold's held-out or training part has only one class, and so no AUC.
        """
        for fold in range(config.folds):
            models.sizes(config, fold, self.code)  # refuses what is no such model
        check_classes(fold_of_row, rows.target, config.folds)
        check_batches(config, fold_of_row)

    def check_like(self, run: Mapping[str, Any], rows: Rows) -> None:
        """Raises:
        DataError: panels of another shape, resolution or conditioning than those that the run was trained on.
        """
        for name in ("conditioning", "windows"):
            # Shards that were copied without their dataset.json do not say.
            if rows.content.metadata and name in run and run[name] != rows.about[name]:
                raise DataError(
                    f"{rows.root}: {name}: the run was trained on {run[name] or 'panels as they come'}, but these are "
                    f"{rows.about[name] or 'panels as they come'}. Make them as those were (`data pack --robust`, "
                    "`data inject`), or take another run."
                )
        for name, what in (
            ("panel_shape", "panels"),
            ("df_hz", "channel width in Hz"),
            ("dt_s", "time step in s"),
        ):
            there, here = run.get(name), rows.about.get(name)
            if there is not None and here is not None and not np.allclose(there, here, rtol=1e-3):
                raise DataError(
                    f"{rows.root}: expected the run's {what}, {there}, but {name} is {here} here. A network finds what "
                    "it was trained on only: take a run that was trained on such data."
                )

    def to_predict(self, config: Config) -> Config:
        return config.model_copy(update={"weights": "none"})  # each fold's weights are its artifact

    def files(self, config: Config) -> dict[str, bytes]:
        """Raises:
        ConfigError: the weights file is missing, or is not HDF5. Only a fold finds out whether it fits the model.
        """
        if config.weights in ("imagenet", "none"):
            return {}
        if config.weights == "cadences":
            return {config.weights: weights.read()}
        path = Path(config.weights)
        what = f"weights: expected imagenet, cadences, none or a weights file; {config.weights!r}"
        if not path.is_file():
            raise ConfigError(f"{what} is not a file")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{what} could not be read: {error.strerror}") from None
        if not content.startswith(b"\x89HDF\r\n\x1a\n"):
            raise ConfigError(f"{what} is not an HDF5 file")
        return {config.weights: content}

    def code_names(self, config: Config) -> list[str]:
        return [name for name in dict.fromkeys(config.model) if ":" in name]

    def needs(self, config: Config, fold: int) -> Needs:
        own = config.for_fold(fold)
        sizes = models.sizes(config, fold, self.code)
        memory = fold_bytes(config, fold, config.device, config.cpus_per_fold or 1, sizes)
        return Needs(memory_bytes=memory, n_steps=own.epochs)

    def fit(self, work: Work) -> Iterator[Step | Fitted]:
        yield from importlib.import_module(WORKER).fit(work, self.code)

    def predict(self, work: Work) -> Prediction:
        return importlib.import_module(WORKER).predict(work, self.code)

    def finish(
        self, config: Config, oof: pd.DataFrame, test: pd.DataFrame, folds: Mapping[int, FoldReport]
    ) -> Outcome:
        done = postprocess.finish(
            oof, test, postprocess=config.postprocess, calibrate=config.calibrate, seed=config.seed
        )
        table = oof.assign(pred=done.oof.astype(np.float32), pred_model=oof["pred"])
        summary = metrics.summarise(table, seed=config.seed) | done.report
        for entry in summary["folds"]:
            own = folds[entry["fold"]]
            val_auc = metrics.plain([row["val_auc"] for row in own.history])
            entry |= {"best_epoch": own.facts["best_epoch"], "val_auc": val_auc}
        histories = {fold: pd.DataFrame(list(own.history)) for fold, own in folds.items()}
        summary["selection"] = selection.check(config.select, histories)
        interval = summary["intervals"].get("oof_auc")
        summary["score"] = {"interval": interval}
        return Outcome(table["pred"].to_numpy(), np.asarray(done.test, np.float32), summary)

    def finish_test(self, config: Config, oof: pd.DataFrame, test: pd.DataFrame) -> np.ndarray:
        """As in the run: post-processing and calibration from its out-of-fold scores are applied here too."""
        done = postprocess.finish(
            oof, test, postprocess=config.postprocess, calibrate=config.calibrate, seed=config.seed
        )
        return np.asarray(done.test, np.float32)

    def summary(self, metrics: Mapping[str, Any]) -> list[str]:
        from setibl_ray.seti.evaluation.summary import summary_lines

        return summary_lines(metrics)

    def draw(self, config: Config, fold: int, history: pd.DataFrame) -> dict[str, bytes]:
        from setibl_ray.seti.reporting import training_plot

        own = config.for_fold(fold)
        height, width = own.image_size
        title = f"FOLD {fold} - image size {height}x{width}, {own.model}"
        ranks = [selection.rank(config.select, row) for row in history.to_dict("records")]
        return {"training.png": training_plot.draw(history, title, int(np.argmax(ranks)))}

    def cause_of(self, error: BaseException) -> Cause:
        """TensorFlow's errors are recognised by name, as the driver has no TensorFlow."""
        text = f"{error}"
        if type(error).__name__ == "ResourceExhaustedError":
            return "device-memory"
        if "libtpu" in text or "TPU is already in use" in text:
            return "tpu-busy"
        return super().cause_of(error)


def rows_of(index: DataIndex) -> Rows:
    """An index as `Rows`."""
    notes = index.notes
    if index.bad_records:
        first = f"first {index.bad_records[0]}"
        notes += (f"left out as unusable: {index.n_left_out} records (manifest.json lists them; {first})",)
    train = index.train[["image_id", "target", "group", "snr", "kind"]].assign(unit=index.train["shard"])
    about = {
        "storage": index.storage,
        "panel_shape": list(index.panel_shape),
        "n_train_shards": len(index.shards_of("train")),
        "n_units": len(index.shards_of("train")),
        **{name: index.metadata.get(name) for name in ("df_hz", "dt_s", "conditioning", "windows", "bins")},
        "n_bad_records": index.n_left_out,
        "bad_records": [bad._asdict() for bad in index.bad_records],
    }
    test = index.test[["image_id", "group"]]
    return Rows(
        train, test, index.fingerprint, index, id="image_id", root=index.root, about=about, notes=notes
    )


def check_batches(config: Config, fold_of_row: np.ndarray) -> None:
    for fold in range(config.folds):
        n_train, batch = int((fold_of_row != fold).sum()), config.for_fold(fold).batch_size
        if n_train < batch:
            raise ConfigError(
                f"batch-size: fold {fold} trains on {n_train} records, fewer than one batch of {batch}. "
                "Lower --batch-size."
            )


def check_classes(fold_of_row: np.ndarray, target: np.ndarray, folds: int) -> None:
    for fold in range(folds):
        held_out = fold_of_row == fold
        for part, name in ((target[held_out], "held-out"), (target[~held_out], "training")):
            classes = np.unique(part)
            if len(classes) < 2:
                found = "no records" if len(part) == 0 else f"only target {int(classes[0])}"
                raise DataError(
                    f"fold {fold}: the {name} part has {found} among its {len(part)} records, and AUC needs both "
                    "classes. Pack stratified shards, lower --folds, or take --split stratified."
                )


TASK = CadenceTask()
