"""Keras 2: which package it is, its defaults, and the one place that reaches into its private parts.

Checked in the source of keras 2.15.0 (TensorFlow 2.15) and of tf_keras 2.21.0 (TensorFlow 2.16 and later), which agree.
"""

from __future__ import annotations

import importlib
import io

import h5py
import tensorflow as tf

from setibl_ray.core.errors import ConfigError

PACKAGE = tf.keras.Model.__module__.partition(".")[0]
"""`keras`, or `tf_keras`."""

try:
    _hdf5 = importlib.import_module(f"{PACKAGE}.src.saving.legacy.hdf5_format")
except ImportError:
    raise ConfigError(
        f"TensorFlow {tf.__version__}: expected Keras 2 as tf.keras, found {PACKAGE} 3. Install tf-keras of the same "
        "version; a program that imports TensorFlow before setibl_ray sets TF_USE_LEGACY_KERAS=1 before that"
    ) from None


def set_defaults() -> None:
    """Set what Keras reads from keras.json in the user's home, which must not decide what is trained."""
    tf.keras.backend.set_image_data_format("channels_last")
    tf.keras.backend.set_floatx("float32")
    tf.keras.backend.set_epsilon(1e-7)


def weights_file(model: tf.keras.Model) -> bytes:
    """The model's weights as Keras writes them to HDF5; never a file, which a killed process would leave behind."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        _hdf5.save_weights_to_hdf5_group(file, model)
    return buffer.getvalue()


def load_weights_file(model: tf.keras.Model, content: bytes) -> None:
    """Load the weights of such a file, or of a whole model that Keras saved as HDF5.

    Raises:
      OSError, ValueError: it is no such file, or its weights do not fit the model.
    """
    with h5py.File(io.BytesIO(content), "r") as file:
        whole_model = "layer_names" not in file.attrs and "model_weights" in file
        _hdf5.load_weights_from_hdf5_group(file["model_weights"] if whole_model else file, model)


def layers(model: tf.keras.Model) -> list[tf.keras.layers.Layer]:
    """The model's layers, including those of models inside it."""
    return list(model._flatten_layers(include_self=False))


def optimizer_variables(optimizer: tf.keras.optimizers.legacy.Optimizer) -> list[tf.Variable]:
    """All that an optimizer remembers from step to step, including loss scaling."""
    variables = list(optimizer.variables())
    if isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer):
        variables += [optimizer._loss_scale.current_loss_scale, optimizer.dynamic_counter]
    return variables


def create_optimizer_variables(
    optimizer: tf.keras.optimizers.legacy.Optimizer, model: tf.keras.Model
) -> None:
    """Create an optimizer's variables now, as the first step would."""
    optimizer._create_all_weights(model.trainable_variables)


def random_generators(model: tf.keras.Model) -> list[tf.random.Generator]:
    """The generators of the model's dropout layers, in the order of the layers."""
    layers = [getattr(layer, "_random_generator", None) for layer in model.submodules]
    found = [getattr(layer, "_generator", None) for layer in layers]
    return [generator for generator in found if generator is not None]
