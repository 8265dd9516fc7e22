"""A step in parts: what to do where a batch does not fit into the device's memory.

The batch of every replica is worked through in equal parts, one after another, and their gradients are added up: the
same global batch, learning rate and number of steps, with the activations of one part in memory. Without batch
normalisation and dropout the result is that of the whole batch to within rounding. Batch normalisation then takes its
statistics from a part, as it otherwise does from one replica's batch, so a part has at least MIN_PART images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import tensorflow as tf

if TYPE_CHECKING:
    from setibl_ray.seti.train.trainer import Trainer

MIN_PART = 8

T = TypeVar("T")


def within_memory(trainer: Trainer, undo: Callable[[], None], work: Callable[[], T]) -> T:
    """Call `work` until it fits into the device's memory: with steps in more and more parts.

    Args:
      undo: brings back what a step that failed half-way may have changed.

    Raises:
      ResourceExhaustedError: not even the smallest part fits.
    """
    while True:
        try:
            return work()
        except tf.errors.ResourceExhaustedError as error:
            parts = more_parts(trainer.batch_size, trainer.n_parts)
            if parts is None:
                size = trainer.batch_size // trainer.n_parts
                raise tf.errors.ResourceExhaustedError(
                    None,
                    None,
                    f"the {trainer.device.kind}'s memory does not hold {size} images of a batch of "
                    f"{trainer.batch_size} at once: take a smaller --image-size or --model, or a larger "
                    "share with --devices-per-fold",
                ) from error
            trainer.in_parts(parts)
            undo()


def more_parts(batch: int, parts: int) -> int | None:
    """The next larger number of equal parts of a batch, at least twice as many; None if they would be too small."""
    fitting = (n for n in range(2 * parts, batch // min(MIN_PART, batch) + 1) if batch % n == 0)
    return next(fitting, None)


def in_parts(model: tf.keras.Model, n_parts: int) -> None:
    """Let a compiled model train and predict in `n_parts` parts per step from now on; 1 is Keras' own way."""
    model.train_step = type(model).train_step.__get__(model)
    model.predict_step = type(model).predict_step.__get__(model)
    if n_parts > 1:
        model.train_step = lambda data: _train_step(model, n_parts, data)
        model.predict_step = lambda data: _predict_step(model, n_parts, data)
    model.train_function = model.predict_function = None  # traced anew


def _split(batch: tf.Tensor, n_parts: int) -> tf.Tensor:
    return tf.reshape(batch, (n_parts, batch.shape[0] // n_parts, *batch.shape[1:]))


def _train_step(
    model: tf.keras.Model, n_parts: int, data: tuple[tf.Tensor, tf.Tensor]
) -> dict[str, tf.Tensor]:
    images, targets = (_split(each, n_parts) for each in data)
    variables = model.trainable_variables
    scaled = isinstance(model.optimizer, tf.keras.mixed_precision.LossScaleOptimizer)

    def add(part: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            pred = model(images[part], training=True)
            loss = model.compiled_loss(targets[part], pred, regularization_losses=model.losses)
            loss = model.optimizer.get_scaled_loss(loss) if scaled else loss
        gradients = tape.gradient(loss, variables)
        model.compiled_metrics.update_state(targets[part], pred)
        return part + 1, *(total + gradient / n_parts for total, gradient in zip(sums, gradients))

    zeros = [tf.zeros_like(variable) for variable in variables]
    # One after another: at the same time, they would need the memory of the whole batch.
    _, *gradients = tf.while_loop(
        lambda part, *_: part < n_parts, add, (tf.constant(0), *zeros), parallel_iterations=1
    )
    gradients = model.optimizer.get_unscaled_gradients(gradients) if scaled else gradients
    model.optimizer.apply_gradients(zip(gradients, variables))
    return model.get_metrics_result()


def _predict_step(model: tf.keras.Model, n_parts: int, images: tf.Tensor) -> tf.Tensor:
    parts = _split(images, n_parts)
    pred = tf.map_fn(lambda part: model(part, training=False), parts, tf.float32, parallel_iterations=1)
    return tf.reshape(pred, (-1, 1))
