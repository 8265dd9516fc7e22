"""One compiled model and what a fold does with it: an epoch of training, predictions, its state as bytes.

Building and tracing a model costs more than a short fold's training, so a process keeps its trainer and the
next fold with the same shapes starts from the same initial weights without tracing again. Nothing of the
earlier fold stays: weights, optimizer and random generators are all set back.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
from keras.src.saving.legacy.hdf5_format import load_weights_from_hdf5_group, save_weights_to_hdf5_group

from setibl_ray.core.contract import Plan
from setibl_ray.core.randomness import stream_key
from setibl_ray.seti.config import Config, FoldConfig
from setibl_ray.seti.train.device import Device
from setibl_ray.seti.train.models import ImageShape, build_model


@dataclass
class FoldState:
    """Where a fold stands after `epochs_done` epochs: everything that another process needs to go on."""

    epochs_done: int
    weights: list[np.ndarray]
    optimizer: list[np.ndarray]
    best_weights: list[np.ndarray]
    best_auc: float
    best_epoch: int
    best_valid_pred: np.ndarray
    history: list[dict[str, float]] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """An .npz archive (no pickle in it)."""
        arrays = {"best_valid_pred": self.best_valid_pred}
        for name in ("weights", "optimizer", "best_weights"):
            arrays |= {f"{name}/{i:05d}": value for i, value in enumerate(getattr(self, name))}
        numbers = {name: getattr(self, name) for name in ("epochs_done", "best_auc", "best_epoch", "history")}
        arrays["numbers"] = np.frombuffer(json.dumps(numbers).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> FoldState:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            values: dict[str, Any] = {
                name: [archive[key] for key in sorted(archive.files) if key.startswith(f"{name}/")]
                for name in ("weights", "optimizer", "best_weights")
            }
            numbers = json.loads(archive["numbers"].tobytes())
            return cls(**values, **numbers, best_valid_pred=archive["best_valid_pred"])


class Trainer:
    """A compiled model under a strategy.

    Attributes:
      global_batch: images per step over all replicas.
    """

    def __init__(self, plan: Plan, own: FoldConfig, image_shape: ImageShape, device: Device) -> None:
        config = plan.config
        self.device = device
        self.global_batch = own.batch_size * device.n_replicas
        tf.keras.backend.clear_session()
        # Keras' default random ops get their seed when the step is traced and could not be set back for a resumed
        # epoch; tf.random.Generator keeps its state in a variable, which can.
        tf.keras.backend.experimental.enable_tf_random_generator()
        tf.keras.utils.set_random_seed(stream_key(config.seed, "initial-weights") % 2**32)
        tf.keras.mixed_precision.set_global_policy(_policy(config, device))
        with device.strategy.scope():
            self.model = (plan.build_model or build_model)(image_shape, config, own)
            # TensorFlow's own kernel, one operation per weight, and the seed's optimizer. Keras' newer one takes twenty
            # each: with B0 that is three seconds more of building and tracing, for the same steps.
            self.optimizer = tf.keras.optimizers.legacy.Adam(1e-3)
            self.model.compile(
                optimizer=self.optimizer,
                loss=_loss(config),
                metrics=[tf.keras.metrics.AUC(name="auc")],
                jit_compile=config.jit_compile or device.kind == "tpu",
                # A TPU waits for its host between executions; a CPU or GPU step is long enough by itself.
                steps_per_execution=16 if device.kind == "tpu" else 1,
            )
            self.optimizer = self.model.optimizer  # with float16, compile has wrapped it for loss scaling
            self.optimizer._create_all_weights(self.model.trainable_variables)
        self.loss = _loss(config)
        self._initial = self.model.get_weights()
        self._initial_optimizer = self._optimizer_values()
        self._generators = [
            generator._generator
            for layer in self.model.submodules
            if (generator := getattr(layer, "_random_generator", None)) is not None
            and getattr(generator, "_generator", None) is not None
        ]

    def reset(self) -> None:
        """Back to the state in which the trainer was built."""
        self.model.set_weights(self._initial)
        self._set_optimizer(self._initial_optimizer)

    def restore(self, state: FoldState) -> None:
        self.model.set_weights(state.weights)
        self._set_optimizer(state.optimizer)

    def capture(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Copies of the model's weights and of the optimizer's variables."""
        return self.model.get_weights(), self._optimizer_values()

    def train_epoch(self, dataset: tf.data.Dataset, *, learning_rate: float, key: int) -> dict[str, float]:
        """One pass over `dataset`; loss and training AUC. Dropout follows from `key` alone."""
        self.optimizer.learning_rate = learning_rate
        for number, generator in enumerate(self._generators):
            generator.reset_from_seed(stream_key(key, number) % 2**63)
        history = self.model.fit(dataset, epochs=1, verbose=0, shuffle=False).history
        return {name: float(values[-1]) for name, values in history.items()}

    def predict(self, dataset: tf.data.Dataset, n: int, n_views: int = 1) -> np.ndarray:
        """(n_views, n) float32 needle probabilities; the padding of each view's last batch is cut off."""
        return self.model.predict(dataset, verbose=0).reshape(n_views, -1)[:, :n].astype(np.float32)

    def loss_of(self, targets: np.ndarray, pred: np.ndarray) -> float:
        return float(self.loss(targets.reshape(-1, 1).astype(np.float32), pred.reshape(-1, 1)))

    def weights_file(self) -> bytes:
        """The model's weights as Keras writes them to HDF5; never a file, which a killed process would leave behind."""
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            save_weights_to_hdf5_group(file, self.model)
        return buffer.getvalue()

    def load_weights_file(self, content: bytes) -> None:
        """Take over what `weights_file` gave."""
        load_weights(self.model, content)

    def _optimizer_values(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self._optimizer_variables()]

    def _set_optimizer(self, values: Sequence[np.ndarray]) -> None:
        for variable, value in zip(self._optimizer_variables(), values, strict=True):
            variable.assign(value)

    def _optimizer_variables(self) -> list[tf.Variable]:
        variables = list(self.optimizer.variables())
        if isinstance(self.optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
            variables += [self.optimizer._loss_scale.current_loss_scale, self.optimizer.dynamic_counter]
        return variables


def load_weights(model: tf.keras.Model, content: bytes) -> None:
    """Give a model the weights that `Trainer.weights_file` wrote."""
    with h5py.File(io.BytesIO(content), "r") as file:
        load_weights_from_hdf5_group(file, model)


_kept: tuple[tuple, Trainer] | None = None


def trainer_for(plan: Plan, own: FoldConfig, image_shape: ImageShape, device: Device) -> Trainer:
    """The process's trainer, set back to its initial state; built anew where the last fold's does not fit."""
    global _kept
    config = plan.config
    compiled = (config.weights, config.loss, config.label_smoothing, config.bn_momentum, config.seed)
    steps = (config.mixed_precision, config.jit_compile, own.batch_size, device.kind, device.n_replicas)
    key = (own.model, image_shape, *compiled, *steps, plan.build_model)
    if _kept is None or _kept[0] != key:
        _kept = None  # frees the old model before the new one is built
        _kept = (key, Trainer(plan, own, image_shape, device))
    trainer = _kept[1]
    trainer.reset()
    return trainer


def _policy(config: Config, device: Device) -> str:
    if not config.mixed_precision:
        return "float32"
    return "mixed_float16" if device.kind == "gpu" else "mixed_bfloat16"


def _loss(config: Config) -> tf.keras.losses.Loss:
    if config.loss == "focal":
        return SmoothedFocal(config.label_smoothing)
    return tf.keras.losses.BinaryCrossentropy(label_smoothing=config.label_smoothing)


class SmoothedFocal(tf.keras.losses.Loss):
    """TensorFlow Addons' sigmoid focal cross-entropy (alpha .25, gamma 2) on smoothed targets."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        with warnings.catch_warnings():
            # A second of import that only this loss needs; it warns that TensorFlow Addons has had its last release.
            warnings.simplefilter("ignore", UserWarning)
            import tensorflow_addons as tfa
        self._focal = tfa.losses.sigmoid_focal_crossentropy

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        smooth = y_true * (1 - self.label_smoothing) + self.label_smoothing / 2
        return self._focal(smooth, y_pred)
