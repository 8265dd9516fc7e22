"""The networks: a backbone for any number of channels, global average pooling, Dense 32, one sigmoid."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from setibl_ray.core.errors import ConfigError
from setibl_ray.core.storage import can_be_written, file_lock
from setibl_ray.core.terminal import one_line
from setibl_ray.seti.config import Config, FoldConfig
from setibl_ray.seti.models import MODELS
from setibl_ray.seti.train import keras2

ImageShape = tuple[int, int, int]
Code = Mapping[str, Callable[..., Any]]  # the user's own builders, by the name that a config has for them

# With Keras' momentum of 0.99, batch normalisation follows the activations too slowly for a run of a few hundred steps:
# held-out AUC stays at chance for epochs while the training loss falls. With 0.9 it follows within tens of steps.
SCRATCH_BN_MOMENTUM = 0.9


def efficientnet_nano(*, include_top: bool, weights: str | None, input_shape: ImageShape) -> tf.keras.Model:
    """An EfficientNet for CPUs and quick looks: width and depth 0.35 of B0's, 355 thousand parameters."""
    import efficientnet.model
    from efficientnet.tfkeras import inject_tfkeras_modules

    if weights:
        raise ConfigError(
            "weights: there are no ImageNet weights for --model efficientnet-nano; take --weights none or a file"
        )
    build = inject_tfkeras_modules(efficientnet.model.EfficientNet)
    own = {"model_name": "efficientnet-nano", "include_top": include_top, "weights": None}
    return build(0.35, 0.35, 91, **own, input_shape=input_shape)


def no_backbone(*, include_top: bool, weights: None, input_shape: ImageShape) -> tf.keras.Model:
    """The mean of each channel: next to nothing beside the features of the on-off head."""
    image = tf.keras.Input(input_shape)
    return tf.keras.Model(image, tf.keras.layers.GlobalAveragePooling2D()(image))


def vit_tiny(*, include_top: bool, weights: str | None, input_shape: ImageShape) -> tf.keras.Model:
    from keras_cv_attention_models import beit

    n_classes = 1000 if include_top else 0
    pretrained = "imagenet21k-ft1k" if weights else None
    return beit.ViTTinyPatch16(input_shape=input_shape, num_classes=n_classes, pretrained=pretrained)


def build_model(
    image_shape: ImageShape,
    config: Config,
    own: FoldConfig,
    code: Code | None = None,
    files: Mapping[str, bytes] | None = None,
) -> tf.keras.Model:
    """An uncompiled model: images (n, *image_shape) float32 -> needle probability (n, 1) float32.

    Args:
      image_shape: (height, width, channels).
      config, own: of the run and of the fold.
      code: the user's own builders by the name that `own.model` has for them; others are imported.
      files: weights files by the name that `config.weights` has for them.

    Raises:
      ConfigError: ImageNet weights cannot be downloaded, a weights file does not fit, the image is too small, or the
        user's model is not such a model.
    """
    model = (
        _own(image_shape, config, own, code or {}) if ":" in own.model else _known(image_shape, config, own)
    )
    if config.weights not in ("imagenet", "none"):
        try:
            keras2.load_weights_file(model, (files or {})[config.weights])
        except (OSError, ValueError) as error:
            reason = one_line(error)
            raise ConfigError(f"weights: {config.weights} does not fit {own.model}: {reason}") from error
    return model


def _own(image_shape: ImageShape, config: Config, own: FoldConfig, code: Code) -> tf.keras.Model:
    """Build a user's model and check, before any data are decoded, that it is what a fold needs."""
    name = own.model
    try:
        build = code.get(name) or pkgutil.resolve_name(name)
        model = build(image_shape, config, own)
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ConfigError(
            f"model: {name} could not build a model for images {image_shape}: {reason}"
        ) from error
    wanted = f"model: expected {name} to return an uncompiled Keras model with one output of shape (None, 1)"
    if not isinstance(model, tf.keras.Model):
        raise ConfigError(f"{wanted}, a {_name_of(tf.keras.Model)}; got {_name_of(type(model))}")
    if len(model.inputs) != 1 or tuple(model.inputs[0].shape[1:]) != tuple(image_shape):
        shapes = [tuple(one.shape[1:]) for one in model.inputs]
        raise ConfigError(f"{wanted} for one input of shape {tuple(image_shape)}; its inputs are {shapes}")
    if len(model.outputs) != 1 or tuple(model.outputs[0].shape) != (None, 1):
        raise ConfigError(f"{wanted}; its outputs are {[tuple(one.shape) for one in model.outputs]}")
    probe = np.random.default_rng(0).normal(0, 3, (4, *image_shape)).astype(np.float32)
    found = np.asarray(model(probe, training=False))
    if not ((found >= 0) & (found <= 1)).all():
        raise ConfigError(
            f"{wanted} in [0, 1], a probability; got {float(found.ravel()[0]):.3g}: end it in a sigmoid"
        )
    return model


def _name_of(kind: type) -> str:
    """A class's name with its module, unless it is built in: Keras 2 and Keras 3 both have a Model."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _known(image_shape: ImageShape, config: Config, own: FoldConfig) -> tf.keras.Model:
    backbone = _with_weights(own.model, image_shape, "imagenet" if config.weights == "imagenet" else None)
    momentum = config.bn_momentum or (SCRATCH_BN_MOMENTUM if config.weights in ("none", "cadences") else None)
    if momentum is not None:
        for layer in backbone.submodules:
            if isinstance(layer, tf.keras.layers.BatchNormalization):
                layer.momentum = momentum
    x = backbone.output
    if x.shape.rank == 4:
        x = tf.keras.layers.GlobalAveragePooling2D()(x)
    elif x.shape.rank == 3:  # a transformer's tokens
        x = tf.keras.layers.GlobalAveragePooling1D()(x)
    activation = "relu"
    if own.head == "on-off":
        # With ReLU all 32 units died in some runs at this head's learning rate: one score for every needle.
        activation = tf.nn.leaky_relu
        x = tf.keras.layers.Concatenate()(
            [x, _on_off(backbone.input, config.bn_momentum or SCRATCH_BN_MOMENTUM)]
        )
    x = tf.keras.layers.Dense(32, activation=activation)(x)
    # float32 whatever the policy: a sigmoid in 16 bits cannot tell probabilities near 1 apart.
    x = tf.keras.layers.Dense(1, activation="sigmoid", dtype="float32")(x)
    return tf.keras.Model(backbone.input, x, name=own.model)


def _on_off(image: tf.Tensor, momentum: float) -> tf.Tensor:
    """(n, 368) features of six panels (n, h, w, 6): what one small encoder sees in ON panels against OFF panels.

    A backbone has to learn separately for each panel what a track is, and then that it must not be in OFF panels. With
    an encoder shared by all panels, each cadence gives six examples of the former, and the latter is a comparison.
    """

    def convolved(x: tf.Tensor, filters: int, kernel: int, stride: int) -> tf.Tensor:
        x = tf.keras.layers.Conv2D(
            filters, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal"
        )(x)
        return tf.keras.layers.ReLU()(tf.keras.layers.BatchNormalization(momentum=momentum)(x))

    height, width, n_panels = image.shape[1:]
    x = tf.reshape(tf.transpose(image, (0, 3, 1, 2)), (-1, height, width, 1))
    for filters, kernel in ((16, 5), (32, 3), (48, 3)):
        x = convolved(x, filters, kernel, 2)
    # Panels alternate, ON first; a strided slice and its gradient take longer than the first convolution.
    on, off = tf.unstack(tf.reshape(x, (-1, n_panels // 2, 2, *x.shape[1:])), axis=2)
    # Where: in the same place, up to drifts that two more convolutions bridge.
    x = tf.concat([reduce(part, 1) for part in (on, off) for reduce in (tf.reduce_mean, tf.reduce_max)], -1)
    x = convolved(convolved(x, 64, 3, 1), 64, 3, 2)
    # Whether: anywhere in a panel.
    on, off = tf.reduce_max(on, (2, 3)), tf.reduce_max(off, (2, 3))
    anywhere = [tf.reduce_mean(on, 1), tf.reduce_max(on, 1), tf.reduce_min(on, 1)]
    anywhere += [tf.reduce_mean(off, 1), tf.reduce_max(off, 1)]
    return tf.concat([tf.reduce_mean(x, (1, 2)), tf.reduce_max(x, (1, 2)), *anywhere], -1)


def _build(model: str, shape: ImageShape, weights: str | None) -> tf.keras.Model:
    builder = pkgutil.resolve_name(MODELS[model].builder)
    with warnings.catch_warnings():
        # Keras' applications warn about any number of channels but 1 and 3, and then build the model all the same.
        warnings.filterwarnings("ignore", message="This model usually expects 1 or 3 input channels")
        return builder(include_top=False, weights=weights, input_shape=shape)


def _with_weights(model: str, shape: ImageShape, weights: str | None) -> tf.keras.Model:
    if weights is None:
        return _build(model, shape, None)
    try:
        with _one_download():
            three_channels = _build(model, (*shape[:2], 3), weights)
    except ConfigError:
        raise
    except Exception as error:  # each library raises its own class for a failed download
        raise ConfigError(
            f"weights: ImageNet weights for {model} could not be fetched ({one_line(error, 120)}). "
            "Take --weights none to train from scratch, or --weights FILE with weights of an earlier run."
        ) from error
    if shape[2] == 3:
        return three_channels
    backbone = _build(model, shape, None)
    _adapt_channels(three_channels, backbone)
    return backbone


@contextmanager
def _one_download() -> Iterator[None]:
    """Let only one process at a time use Keras' folder of downloads.

    Keras writes a download under its final name, where another process would take half a file for a whole one. Later it
    compares the file with its checksum each time, and fetches it again if a process was killed during the download.
    """
    home, otherwise = Path("~/.keras").expanduser(), Path("/tmp/.keras")  # as Keras chooses
    for folder in (home, otherwise):
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
        if can_be_written(folder):
            with file_lock(folder / "setibl-ray.lock"):
                yield
            return
    raise ConfigError(
        f"weights: ImageNet weights are kept in {home} or {otherwise}, and neither can be written"
    )


def _adapt_channels(source: tf.keras.Model, target: tf.keras.Model) -> None:
    """Copy weights between two builds that differ in input channels only.

    The first kernel is repeated over the channels and rescaled by 3 / channels; the remainder, if 3 does not divide
    the number of channels, is spread over them. The response to a grey image stays the same.
    """
    weights = []
    for ours, theirs in zip(target.weights, source.get_weights(), strict=True):
        if tuple(ours.shape) != theirs.shape:
            axis = next(i for i, (a, b) in enumerate(zip(ours.shape, theirs.shape, strict=True)) if a != b)
            n_channels = ours.shape[axis]
            n_source = theirs.shape[axis]
            repeated = np.take(theirs, np.arange(n_channels) % n_source, axis=axis) * (n_source / n_channels)
            left = theirs.sum(axis=axis, keepdims=True) - repeated.sum(axis=axis, keepdims=True)
            theirs = repeated + left / n_channels
        weights.append(theirs)
    target.set_weights(weights)
