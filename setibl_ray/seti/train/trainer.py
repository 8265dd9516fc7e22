"""One compiled model and its use by a fold: an epoch of training, predictions, its state as bytes.

Building and tracing a model costs more than a short fold's training, so a process keeps its trainer, and the
next fold with the same shapes starts from the same initial weights without tracing again. Nothing of the
earlier fold remains: weights, optimizer and random generators are all reset.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from setibl_ray.core.randomness import stream_key
from setibl_ray.core.task import Work
from setibl_ray.seti.config import Config, FoldConfig
from setibl_ray.seti.train import keras2, parts
from setibl_ray.seti.train.device import Device
from setibl_ray.seti.train.models import Code, ImageShape, build_model


@dataclass
class FoldState:
    """The state of a fold after `epochs_done` epochs: everything that another process needs to continue."""

    epochs_done: int
    weights: list[np.ndarray]
    optimizer: list[np.ndarray]
    best_weights: list[np.ndarray]
    best_rank: float
    best_epoch: int
    best_valid_pred: np.ndarray
    images_per_s: float = 0.0
    n_parts: int = 1

    def to_bytes(self) -> bytes:
        """An .npz archive (no pickle in it)."""
        arrays = {"best_valid_pred": self.best_valid_pred}
        for name in ("weights", "optimizer", "best_weights"):
            arrays |= {f"{name}/{i:05d}": value for i, value in enumerate(getattr(self, name))}
        numbers = {
            name: getattr(self, name)
            for name in ("epochs_done", "best_rank", "best_epoch", "images_per_s", "n_parts")
        }
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
      batch_size: images per step of each replica.
      global_batch: images per step over all replicas.
      n_parts: in how many parts a replica's batch is worked through; more than 1 if memory is short.
    """

    def __init__(
        self, work: Work, own: FoldConfig, image_shape: ImageShape, device: Device, code: Code
    ) -> None:
        config = work.config
        self.device = device
        self.batch_size = own.batch_size
        self.n_parts = 1
        self.global_batch = own.batch_size * device.n_replicas
        tf.keras.backend.clear_session()
        keras2.set_defaults()
        # Keras' default random ops get their seed when the step is traced and could not be reset for a resumed epoch;
        # tf.random.Generator keeps its state in a variable, which can be.
        tf.keras.backend.experimental.enable_tf_random_generator()
        tf.keras.utils.set_random_seed(stream_key(config.seed, "initial-weights") % 2**32)
        tf.keras.mixed_precision.set_global_policy(_policy(config, device))
        with device.strategy.scope():
            self.model = build_model(image_shape, config, own, code, work.files)
            # The original notebook's optimizer, TensorFlow's own kernel: one operation per weight. Keras' newer one
            # takes twenty each: with B0 that is three seconds more of building and tracing, for the same steps.
            self.optimizer = tf.keras.optimizers.legacy.Adam(1e-3)
            self.model.compile(
                optimizer=self.optimizer,
                loss=_loss(config),
                metrics=[tf.keras.metrics.AUC(name="auc")],
                jit_compile=config.jit_compile or device.kind == "tpu",
                # An accelerator waits for its host between executions: nano at 91x85 trained 1.44 times as fast on an
                # H100 with sixteen steps in each (benchmarks/gpu.md). On a CPU a single step is long enough.
                steps_per_execution=1 if device.kind == "cpu" else 16,
            )
            self.optimizer = self.model.optimizer  # with float16, compile has wrapped it for loss scaling
            keras2.create_optimizer_variables(self.optimizer, self.model)
        self.loss = _loss(config)
        self._initial = self.model.get_weights()
        self._initial_optimizer = self._optimizer_values()
        self._generators = keras2.random_generators(self.model)

    def reset(self) -> None:
        """Return to the state in which the trainer was built."""
        self.in_parts(1)
        self.model.set_weights(self._initial)
        self._set_optimizer(self._initial_optimizer)

    def in_parts(self, n_parts: int) -> None:
        """Work through each batch in `n_parts` parts from now on."""
        if n_parts != self.n_parts:
            parts.in_parts(self.model, n_parts)
            self.n_parts = n_parts

    def restore(self, state: FoldState) -> None:
        self.in_parts(state.n_parts)
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

    def _optimizer_values(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in keras2.optimizer_variables(self.optimizer)]

    def _set_optimizer(self, values: Sequence[np.ndarray]) -> None:
        for variable, value in zip(keras2.optimizer_variables(self.optimizer), values, strict=True):
            variable.assign(value)


_kept: tuple[tuple, Trainer] | None = None


def trainer_for(work: Work, own: FoldConfig, image_shape: ImageShape, device: Device, code: Code) -> Trainer:
    """The process's trainer, reset to its initial state; a new one if that of the last fold does not fit."""
    global _kept
    config = work.config
    compiled = (
        own.head,
        config.weights,
        config.loss,
        config.label_smoothing,
        config.bn_momentum,
        config.seed,
    )
    steps = (config.mixed_precision, config.jit_compile, own.batch_size, device.kind, device.n_replicas)
    key = (own.model, image_shape, *compiled, *steps, code.get(own.model))
    if _kept is None or _kept[0] != key:
        _kept = None  # frees the old model before the new one is built
        _kept = (key, Trainer(work, own, image_shape, device, code))
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
    """Focal cross-entropy (Lin et al. 2017, alpha 0.25, gamma 2) of smoothed targets, as TensorFlow Addons' to the bit.

    Compared with plain cross-entropy, needles weigh a quarter and haystacks three quarters, and an image weighs less
    the more surely it is already told apart.
    """

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return _focal(y_true * (1 - self.label_smoothing) + self.label_smoothing / 2, y_pred)


@tf.function  # its own, as in TensorFlow Addons: in the step's graph its gradients would be summed in another order
def _focal(target: tf.Tensor, pred: tf.Tensor) -> tf.Tensor:
    cross_entropy = tf.keras.backend.binary_crossentropy(target, pred)
    told = target * pred + (1 - target) * (1 - pred)
    weight = target * 0.25 + (1 - target) * (1 - 0.25)
    return tf.reduce_sum(weight * tf.pow(1.0 - told, 2.0) * cross_entropy, axis=-1)
