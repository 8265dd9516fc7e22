"""The networks: a backbone for any number of channels, global average pooling, Dense 32, one sigmoid."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import tensorflow as tf

from setibl_ray.core.errors import ConfigError
from setibl_ray.core.storage import can_be_written, file_lock
from setibl_ray.core.terminal import one_line
from setibl_ray.seti.config import Config, FoldConfig

ImageShape = tuple[int, int, int]
Builder = Callable[[ImageShape, str | None], tf.keras.Model]

# Batch normalisation at Keras' 0.99 follows the activations too slowly for a run of a few hundred steps: held-out
# AUC stays at chance for epochs while the training loss falls. 0.9 follows within tens of steps.
SCRATCH_BN_MOMENTUM = 0.9


def _efficientnet(size: str) -> Builder:
    def build(shape: ImageShape, weights: str | None) -> tf.keras.Model:
        import efficientnet.tfkeras as efn

        return getattr(efn, f"EfficientNet{size.upper()}")(
            input_shape=shape, weights=weights, include_top=False
        )

    return build


def _nano(shape: ImageShape, weights: str | None) -> tf.keras.Model:
    """An EfficientNet for CPUs and quick looks: width and depth 0.35 of B0's, 355 thousand parameters."""
    import efficientnet.model
    from efficientnet.tfkeras import inject_tfkeras_modules

    if weights:
        raise ConfigError(
            "weights: nobody has trained efficientnet-nano on ImageNet; take --weights none or a file"
        )
    build = inject_tfkeras_modules(efficientnet.model.EfficientNet)
    return build(
        0.35, 0.35, 91, model_name="efficientnet-nano", include_top=False, weights=None, input_shape=shape
    )


def _application(module: str, name: str) -> Builder:
    def build(shape: ImageShape, weights: str | None) -> tf.keras.Model:
        constructor = getattr(getattr(tf.keras.applications, module), name)
        return constructor(include_top=False, weights=weights, input_shape=shape)

    return build


def _vit_tiny(shape: ImageShape, weights: str | None) -> tf.keras.Model:
    from keras_cv_attention_models import beit

    pretrained = "imagenet21k-ft1k" if weights else None
    return beit.ViTTinyPatch16(input_shape=shape, num_classes=0, pretrained=pretrained)


BACKBONES: dict[str, Builder] = {
    "efficientnet-nano": _nano,
    **{f"efficientnet-b{size}": _efficientnet(f"b{size}") for size in range(8)},
    "resnet50": _application("resnet", "ResNet50"),
    "inception-v3": _application("inception_v3", "InceptionV3"),
    "xception": _application("xception", "Xception"),
    "vit-tiny": _vit_tiny,
}


def build_model(image_shape: ImageShape, config: Config, own: FoldConfig) -> tf.keras.Model:
    """An uncompiled model: images (n, *image_shape) float32 -> needle probability (n, 1) float32.

    Raises:
      ConfigError: ImageNet weights cannot be had, a weights file does not fit, or the image is too small.
    """
    backbone = _with_weights(own.model, image_shape, "imagenet" if config.weights == "imagenet" else None)
    momentum = config.bn_momentum or (None if config.pretrained else SCRATCH_BN_MOMENTUM)
    if momentum is not None:
        for layer in backbone.submodules:
            if isinstance(layer, tf.keras.layers.BatchNormalization):
                layer.momentum = momentum
    x = backbone.output
    if x.shape.rank == 4:
        x = tf.keras.layers.GlobalAveragePooling2D()(x)
    elif x.shape.rank == 3:  # a transformer's tokens
        x = tf.keras.layers.GlobalAveragePooling1D()(x)
    x = tf.keras.layers.Dense(32, activation="relu")(x)
    # float32 whatever the policy: a sigmoid in 16 bits cannot tell probabilities near 1 apart.
    x = tf.keras.layers.Dense(1, activation="sigmoid", dtype="float32")(x)
    model = tf.keras.Model(backbone.input, x, name=own.model)
    if config.weights not in ("imagenet", "none"):
        try:
            model.load_weights(config.weights)
        except (OSError, ValueError) as error:
            reason = one_line(error)
            raise ConfigError(f"weights: {config.weights} does not fit {own.model}: {reason}") from error
    return model


def _quiet(build: Builder) -> Builder:
    def quietly(shape: ImageShape, weights: str | None) -> tf.keras.Model:
        with warnings.catch_warnings():
            # Keras' applications warn of any number of channels that is not 1 or 3, and then build what was asked for.
            warnings.filterwarnings("ignore", message="This model usually expects 1 or 3 input channels")
            return build(shape, weights)

    return quietly


def _with_weights(model: str, shape: ImageShape, weights: str | None) -> tf.keras.Model:
    build = _quiet(BACKBONES[model])
    if weights is None:
        return build(shape, None)
    try:
        with _one_download():
            three_channels = build((*shape[:2], 3), weights)
    except ConfigError:
        raise
    except Exception as error:  # each library has its own class for "could not be fetched"
        raise ConfigError(
            f"weights: ImageNet weights for {model} could not be fetched ({one_line(error, 120)}). "
            "Take --weights none to train from scratch, or --weights FILE with weights of an earlier run."
        ) from error
    if shape[2] == 3:
        return three_channels
    backbone = build(shape, None)
    _adapt_channels(three_channels, backbone)
    return backbone


@contextmanager
def _one_download() -> Iterator[None]:
    """One process at a time of all that share Keras' folder of downloads.

    Keras writes a download to its final name as it comes; whoever looks meanwhile takes a half file for a whole one.
    Afterwards it holds the file against its checksum each time, and fetches it anew if a process was killed over it.
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

    The kernel that meets the image is repeated over the channels and rescaled by 3 / channels; what is then left
    over, where 3 does not divide the channels, is spread over them. Its response to a grey image stays what it was.
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
