"""What a network is fed: shapes, order, and the same bytes whatever the threads or the replicas."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
import tensorflow as tf
from fakes import fake_index, read_fake

from setibl_ray.core import randomness
from setibl_ray.core.errors import ConfigError
from setibl_ray.seti.cadence import LAYOUTS, Layout
from setibl_ray.seti.config import Augment
from setibl_ray.seti.feeding.augment import augment, plain
from setibl_ray.seti.feeding.panels import PanelStore, open_store
from setibl_ray.seti.feeding.pipeline import prediction_views, training_epoch

N = 11
SETTINGS = Augment(strength=1, height_shift=0.05, width_shift=0.05)
KEYS = randomness.sample_keys(f"id{row}" for row in range(20))


@pytest.fixture(scope="module", params=["disk", "off"])
def policy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def on3(tmp_path: Path, policy: str) -> PanelStore:
    return make_store(tmp_path, LAYOUTS["on3"], policy)


def make_store(folder: Path, layout: Layout, policy: str = "disk") -> PanelStore:
    return open_store(
        fake_index(20),
        "train",
        layout.panels,
        (12, 10),
        True,
        policy=policy,  # type: ignore[arg-type]
        folder=folder,
        threads=1,
        read=read_fake,
    )


ROWS = np.arange(19, 19 - N, -1)


def epoch(store: PanelStore, layout: str = "on3", **changes: object) -> tf.data.Dataset:
    arguments = {"batch": 4, "order_key": 1, "augment_key": 2, "settings": SETTINGS, "threads": 2} | changes
    return training_epoch(
        store,
        ROWS,
        (ROWS % 2).astype(np.float32),
        KEYS[ROWS],
        layout=LAYOUTS[layout],
        **arguments,  # type: ignore[arg-type]
    )


def collect(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(images.numpy(), targets.numpy()) for images, targets in dataset]
    return np.concatenate([images for images, _ in pairs]), np.concatenate([targets for _, targets in pairs])


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_shapes_are_static_and_the_layouts(tmp_path: Path, layout: str) -> None:
    store = make_store(tmp_path, LAYOUTS[layout])
    dataset = epoch(store, layout)
    images, targets = dataset.element_spec
    assert images.shape == (4, *LAYOUTS[layout].image_shape((12, 10)))
    assert targets.shape == (4, 1)
    assert images.dtype == targets.dtype == tf.float32
    assert dataset.cardinality() == N // 4
    assert collect(dataset)[0].shape[0] == 8


def test_an_epoch_is_a_permutation_with_each_rows_own_target_and_augmentation(on3: PanelStore) -> None:
    images, targets = collect(epoch(on3))
    order = randomness.generator(1).permutation(N)[:8]
    rows = ROWS[order]
    expected = augment(
        on3.take(rows),
        np.arange(8),
        randomness.sample_seeds(2, KEYS[rows]),
        SETTINGS,
        dropout=True,
        scale=on3.scale,
    )
    assert images.tobytes() == expected.tobytes()
    assert targets[:, 0].tolist() == (rows % 2).tolist()


def test_keys_change_the_epoch_and_threads_do_not(on3: PanelStore) -> None:
    first = collect(epoch(on3, threads=1))[0].tobytes()
    assert collect(epoch(on3, threads=2))[0].tobytes() == first
    assert collect(epoch(on3, threads=3))[0].tobytes() == first
    assert collect(epoch(on3, order_key=7))[0].tobytes() != first
    assert collect(epoch(on3, augment_key=7))[0].tobytes() != first


def test_it_runs_inside_a_graph(on3: PanelStore) -> None:
    dataset = epoch(on3)

    @tf.function
    def total() -> tf.Tensor:
        result = tf.constant(0.0)
        for images, _ in dataset:
            result += tf.reduce_sum(images)
        return result

    np.testing.assert_allclose(total().numpy(), collect(dataset)[0].sum(dtype=np.float64), rtol=1e-3)


def test_a_batch_stays_as_it_is_after_later_ones_have_been_made(on3: PanelStore) -> None:
    kept = [images for images, _ in epoch(on3)]
    again = [images.numpy() for images, _ in epoch(on3)]
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(kept, again))


def test_too_few_rows_name_the_field(on3: PanelStore) -> None:
    with pytest.raises(ConfigError, match="batch_size: one step takes 32 images"):
        epoch(on3, batch=32)


def test_a_store_of_other_panels_is_refused(on3: PanelStore) -> None:
    with pytest.raises(ValueError, match="layout all6 takes panels"):
        epoch(on3, "all6")


@pytest.mark.parametrize("batch", [1, 4, 11, 64])
def test_views_come_one_after_another_each_padded_to_whole_batches(on3: PanelStore, batch: int) -> None:
    dataset = prediction_views(
        on3,
        ROWS,
        KEYS[ROWS],
        layout=LAYOUTS["on3"],
        batch=batch,
        view_keys=(None, 5, None, 9),
        settings=Augment(dropout_probability=1),
        threads=2,
    )
    assert dataset.element_spec.shape == (batch, 12, 10, 3)
    assert dataset.cardinality() == 4 * -(-N // batch)  # Keras must know it to run several steps at once
    views = np.concatenate([part.numpy() for part in dataset]).reshape(4, -1, 12, 10, 3)
    assert views.shape[1] == -(-N // batch) * batch
    stored = on3.take(ROWS)
    for view, key in enumerate((None, 5, None, 9)):
        got = views[view, :N]
        assert (views[view, N:] == got[-1]).all()
        if key is None:
            expected = plain(stored, np.arange(N), on3.scale)
        else:
            seeds = randomness.sample_seeds(key, KEYS[ROWS])
            expected = augment(stored, np.arange(N), seeds, Augment(), dropout=False, scale=on3.scale)
        assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("cut", [4, 8])
def test_rows_cut_between_batches_give_the_batches_of_all_rows(on3: PanelStore, cut: int) -> None:
    def views(rows: np.ndarray) -> np.ndarray:
        dataset = prediction_views(
            on3,
            rows,
            KEYS[rows],
            layout=LAYOUTS["on3"],
            batch=4,
            view_keys=(None, 5),
            settings=SETTINGS,
            threads=2,
        )
        return np.stack([part.numpy() for part in dataset]).reshape(2, -1, 4, 12, 10, 3)

    whole = views(ROWS)
    assert np.concatenate([views(ROWS[:cut]), views(ROWS[cut:])], axis=1).tobytes() == whole.tobytes()


def replicate(folder: Path) -> None:
    """Run in a process of its own: devices cannot be split once TensorFlow has started."""
    physical = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(physical, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    store = make_store(folder, LAYOUTS["on3"])
    expected, targets = collect(epoch(store))
    steps = [
        (strategy.experimental_local_results(images), strategy.experimental_local_results(labels))
        for images, labels in strategy.experimental_distribute_dataset(epoch(store))
    ]
    assert all(part.shape[0] == 2 for images, _ in steps for part in images)
    assert np.concatenate([part for images, _ in steps for part in images]).tobytes() == expected.tobytes()
    assert np.concatenate([part for _, labels in steps for part in labels]).tobytes() == targets.tobytes()


def test_replicas_share_every_batch_between_them(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(replicate, tmp_path).result(timeout=120)
