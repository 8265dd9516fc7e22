"""A run's folds as one function from windows to scores, without anything that only training needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from setibl_ray.seti.cadence import LAYOUTS
from setibl_ray.seti.config import Config
from setibl_ray.seti.feeding import augment
from setibl_ray.seti.feeding.panels import Z_RANGE
from setibl_ray.seti.search.inputs import prepared
from setibl_ray.seti.train import device as devices
from setibl_ray.seti.train import keras2
from setibl_ray.seti.train.models import build_model

BATCH = 256


def folds_scorer(config: Config, weights: Sequence[bytes]) -> Callable[[np.ndarray], np.ndarray]:
    """Build every fold's network once.

    Args:
      config: the run's, with `layout` set.
      weights: each fold's weights file.

    Returns:
      (n, 6, time, frequency) uint8 records to (n, folds) float32 needle probabilities. A score depends on its own
      window alone: batches are padded to one shape.
    """
    device = devices.acquire(config.device, config.cpus_per_fold or 1)
    layout = LAYOUTS[config.layout or "all6"]
    scale = Z_RANGE if config.standardize else (0.0, 1.0)
    networks = []
    for fold, content in enumerate(weights):
        own = config.for_fold(fold)
        with device.strategy.scope():
            model = build_model(
                layout.image_shape(own.image_size), config.model_copy(update={"weights": "none"}), own
            )
            keras2.load_weights_file(model, content)
        networks.append(
            (own.image_size, tf.function(lambda x, model=model: model(x, training=False), autograph=False))
        )

    def score(windows: np.ndarray) -> np.ndarray:
        scores = np.empty((len(windows), len(networks)), np.float32)
        for start in range(0, len(windows), BATCH):
            part = windows[start : start + BATCH]
            rows = np.minimum(np.arange(BATCH), len(part) - 1)
            images: dict[tuple[int, int], np.ndarray] = {}
            for fold, (size, network) in enumerate(networks):
                if size not in images:
                    small = prepared(part, layout.panels, size, config.standardize)
                    images[size] = np.empty((BATCH, *layout.image_shape(size)), np.float32)
                    augment.plain(small, rows, scale, stacked=layout.stacked, out=images[size])
                found = network(tf.constant(images[size])).numpy()[: len(part), 0]
                scores[start : start + len(part), fold] = found
        return scores

    return score
