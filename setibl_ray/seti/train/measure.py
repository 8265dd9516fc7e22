"""Build a user's model once and report its sizes: run by `seti.sizes` in a separate process."""

from __future__ import annotations

import json
import sys

import numpy as np
import tensorflow as tf
import yaml

from setibl_ray.core.errors import ConfigError
from setibl_ray.seti.config import parse
from setibl_ray.seti.train import keras2
from setibl_ray.seti.train.models import build_model

KEPT = 5.25  # copies of each layer's output for the backward pass, as of an EfficientNet (seti/models.py)


def main() -> None:
    """Read (name, image shape, config, fold, function or None) from standard input; print sizes, or what is wrong."""
    from ray import cloudpickle

    name, shape, text, fold, function = cloudpickle.loads(sys.stdin.buffer.read())
    config = parse(yaml.safe_load(text)).model_copy(update={"weights": "none"})
    try:
        model = build_model(shape, config, config.for_fold(fold), {name: function} if function else {})
    except ConfigError as error:
        print(json.dumps({"error": error.message}))
        return
    pixels = shape[0] * shape[1]
    layers = [own for own in keras2.layers(model) if isinstance(getattr(own, "output_shape", None), tuple)]
    outputs = sum(float(np.prod([side or 1 for side in layer.output_shape[1:]])) for layer in layers)
    adds = sum(map(_multiply_adds, layers))
    parameters = max(model.count_params() / 1e6, 0.001)
    sizes = {"parameters": parameters, "kept": KEPT * outputs / pixels, "multiply_adds": adds / pixels}
    print(json.dumps(sizes))


def _multiply_adds(layer: tf.keras.layers.Layer) -> float:
    """Count for a forward pass: each weight of a kernel is used once for every position of the layer's output."""
    kernel = getattr(layer, "depthwise_kernel", getattr(layer, "kernel", None))
    places = np.prod([side or 1 for side in layer.output_shape[1:-1]]) if len(layer.output_shape) > 2 else 1
    return float(np.prod(kernel.shape) * places) if kernel is not None else 0.0


if __name__ == "__main__":
    main()
