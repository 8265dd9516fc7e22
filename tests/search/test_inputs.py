"""What the networks of a search are given and give is what training's own path gives."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from setibl_ray.seti.config import Config
from setibl_ray.seti.feeding.panels import prepare
from setibl_ray.seti.search.inputs import prepared

CONFIG = Config(folds=2, model="efficientnet-nano", weights="none", image_size="32x64", layout="all6")


def cuts(n, seed=0):
    rng = np.random.default_rng(seed)
    made = np.clip(rng.normal(64, 21, (n, 6, 16, 64)), 0, 255).astype(np.uint8)
    made[0, 3] = 64  # a panel without anything
    made[1 % n, :, :, 30:33] = 255
    return made


@pytest.mark.parametrize("size", [(32, 64), (16, 64), (48, 96)])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_fast_path_is_the_one_of_training(size, standardize):
    windows = cuts(5)
    expected = prepare(np.ascontiguousarray(windows.transpose(0, 2, 3, 1)), size, standardize)
    found = prepared(windows, range(6), size, standardize)
    assert found.dtype == np.uint8
    assert abs(found.astype(int) - expected).max() <= 1  # a tie may be rounded either way
    assert (found != expected).mean() < 0.001


def test_panels_of_a_layout():
    windows = cuts(3)
    np.testing.assert_array_equal(
        prepared(windows, (0, 2, 4), (32, 64), True), prepared(windows, range(6), (32, 64), True)[..., ::2]
    )


@pytest.mark.timeout(900)  # it builds three networks
def test_scores_are_the_trainers_and_do_not_depend_on_neighbours(monkeypatch):
    scoring = importlib.import_module("setibl_ray.seti.train.scoring")
    trainer_module = importlib.import_module("setibl_ray.seti.train.trainer")
    devices = importlib.import_module("setibl_ray.seti.train.device")
    keras2 = importlib.import_module("setibl_ray.seti.train.keras2")
    tf = importlib.import_module("tensorflow")
    device = devices.Device("cpu", tf.distribute.get_strategy(), 1)  # a share of a process that runs already
    monkeypatch.setattr(devices, "acquire", lambda kind, threads: device)
    work = SimpleNamespace(config=CONFIG, files={})
    trainer = trainer_module.Trainer(work, CONFIG.for_fold(0), (32, 64, 6), device, {})
    own = keras2.weights_file(trainer.model)
    windows = cuts(7)
    images = prepared(windows, range(6), (32, 64), True).astype(np.float32) * np.float32(12 / 255) - 4
    expected = trainer.model(images, training=False).numpy()[:, 0]
    config = CONFIG.model_copy(update={"device": "cpu", "cpus_per_fold": 1})
    score = scoring.folds_scorer(config, [own, own])
    found = score(windows)
    assert found.shape == (7, 2)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    np.testing.assert_array_equal(score(windows[3:4])[0], found[3])
