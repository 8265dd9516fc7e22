"""The tf.data pipelines of a fold: one epoch of training batches, and all views of prediction.

Both map a list of sample numbers per batch in parallel through the batched kernel of `augment`. The content of
a batch is decided beforehand, so the bytes do not depend on the number of threads.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from setibl_ray.core import randomness
from setibl_ray.core.errors import ConfigError
from setibl_ray.seti.cadence import Layout
from setibl_ray.seti.config import Augment
from setibl_ray.seti.feeding import augment
from setibl_ray.seti.feeding.panels import PanelStore

_ALIGNMENT = 64  # TensorFlow uses an aligned array in place, and copies any other


def training_epoch(
    store: PanelStore,
    rows: np.ndarray,
    targets: np.ndarray,
    sample_keys: np.ndarray,
    *,
    layout: Layout,
    batch: int,
    order_key: int,
    augment_key: int,
    settings: Augment,
    threads: int,
) -> tf.data.Dataset:
    """One epoch over some rows of a store: shuffled, augmented, in full batches.

    Args:
      store: the panels, in the layout's order.
      rows: (n,) rows of the store to train on.
      targets: (n,) their targets.
      sample_keys: (n,) uint64, their `randomness.sample_keys`.
      layout: how panels become an image.
      batch: images per step over all replicas; the last n % batch of the epoch's order are left out.
      order_key: names the permutation.
      augment_key: names the stream of augmentations, so that those of a sample differ between epochs.
      settings: what to do to the images.
      threads: how many batches are made at a time.

    Returns:
      A dataset of n // batch pairs: images (batch, height, width, channels) and targets (batch, 1), float32.

    Raises:
      ConfigError: fewer rows than one batch.
    """
    if len(rows) < batch:
        raise ConfigError(
            f"batch_size: one step takes {batch} images over all replicas, "
            f"but there are {len(rows)} to train on"
        )
    order = randomness.generator(order_key).permutation(len(rows))
    order = order[: len(order) // batch * batch].reshape(-1, batch)
    seeds = randomness.sample_seeds(augment_key, sample_keys)

    def fill(picked: np.ndarray, out: np.ndarray) -> None:
        _write(store, layout, rows[picked], seeds[picked], settings, dropout=True, out=out)

    images = _images(store, layout, order, fill, threads)
    labels = tf.data.Dataset.from_tensor_slices(targets.astype(np.float32)[order][..., None])
    return tf.data.Dataset.zip((images, labels)).prefetch(2).with_options(_options(threads))


def prediction_views(
    store: PanelStore,
    rows: np.ndarray,
    sample_keys: np.ndarray,
    *,
    layout: Layout,
    batch: int,
    view_keys: Sequence[int | None],
    settings: Augment,
    threads: int,
) -> tf.data.Dataset:
    """All views of some rows, view after view, in batches of one static shape.

    A view's images depend on its key and the samples alone, not on the other views or on the batch. A batch holds one
    view of consecutive rows, so rows that are divided between two batches give the same batches as in one piece.

    Args:
      store, rows, sample_keys, layout, batch, settings, threads: as in `training_epoch`.
      view_keys: for each view the key of its stream, or None for the images as they are. No view has dropout.

    Returns:
      A dataset of images (batch, height, width, channels) float32, ceil(n / batch) for each view. A view's last
      batch repeats its last image: predictions are `.reshape(views, -1)[:, :n]`.
    """
    n = len(rows)
    one_view = np.minimum(np.arange(-(-n // batch) * batch), n - 1).reshape(-1, batch)
    order = (n * np.arange(len(view_keys))[:, None, None] + one_view).reshape(-1, batch)
    seeds = [None if key is None else randomness.sample_seeds(key, sample_keys) for key in view_keys]

    def fill(picked: np.ndarray, out: np.ndarray) -> None:
        view, samples = picked[0] // n, picked % n
        of_view = seeds[view]
        own = None if of_view is None else of_view[samples]
        _write(store, layout, rows[samples], own, settings, dropout=False, out=out)

    return _images(store, layout, order, fill, threads).prefetch(2).with_options(_options(threads))


def _write(
    store: PanelStore,
    layout: Layout,
    rows: np.ndarray,
    seeds: np.ndarray | None,
    settings: Augment,
    *,
    dropout: bool,
    out: np.ndarray,
) -> None:
    """Write rows of a store to `out`: augmented, or without seeds as they are."""
    images = store.images  # the whole store in place, if it has been built
    if images is None:
        images, rows = store.take(rows), np.arange(len(rows))
    if seeds is None:
        augment.plain(images, rows, store.scale, stacked=layout.stacked, out=out)
    else:
        augment.augment(
            images, rows, seeds, settings, dropout=dropout, scale=store.scale, stacked=layout.stacked, out=out
        )


def _images(
    store: PanelStore,
    layout: Layout,
    order: np.ndarray,
    fill: Callable[[np.ndarray, np.ndarray], None],
    threads: int,
) -> tf.data.Dataset:
    """Map each row of `order` (steps, batch), the samples of one batch, to what `fill` writes for it."""
    if store.panels != layout.panels:
        raise ValueError(
            f"layout {layout.name} takes panels {layout.panels}, but the store has {store.panels}"
        )
    shape = (order.shape[1], *layout.image_shape(store.image_size))
    augment.compiled_kernel(len(layout.panels))  # compile here, once, not in every thread of the map

    def make(picked: np.ndarray) -> np.ndarray:
        out = _buffers.take(shape)
        fill(picked, out)
        return out

    def step(picked: tf.Tensor) -> tf.Tensor:
        images = tf.numpy_function(make, [picked], tf.float32)
        return tf.ensure_shape(images, shape)

    batches = tf.data.Dataset.from_tensor_slices(order)
    return batches.map(step, num_parallel_calls=threads, deterministic=True)


class _Buffers:
    """Memory of batches, reused after TensorFlow releases it, by this dataset and by later ones.

    New memory for every batch costs a tenth to a fifth of the pipeline's time, as the operating system
    clears each page when it is first written. There are as many buffers as batches in use at a time, each of the
    largest size requested.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An uninitialised float32 array of the shape; its memory returns to the pool when it is deleted."""
        n_bytes = 4 * math.prod(shape)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < n_bytes + _ALIGNMENT:
            memory = np.empty(n_bytes + _ALIGNMENT, np.uint8)
        skip = -memory.ctypes.data % _ALIGNMENT
        array = memory[skip : skip + n_bytes].view(np.float32).reshape(shape)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array


_buffers = _Buffers()


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = threads
    # There is nothing to tune, and an epoch would only end when the tuner wakes, after 10 ms, 20 ms, … 5.1 s.
    options.autotune.enabled = False
    # A fold is one process with one pipeline, whose global batches the strategy splits among its replicas:
    # there is no second pipeline to share samples with, and there are no files to shard.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
