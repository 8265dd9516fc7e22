import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from setibl_ray.core.errors import ConfigError
from setibl_ray.seti.config import MODELS, parse
from setibl_ray.seti.train import models

BIG = {
    f"efficientnet-b{size}" for size in range(1, 7)
}  # a minute to build together; b0 and b7 stand for them


def build(name, channels, size=(80, 76), **fields):
    config = parse({"model": name, "weights": "none", **fields})
    return models.build_model((*size, channels), config, config.for_fold(0))


def test_every_name_has_a_builder():
    assert set(models.BACKBONES) == set(MODELS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name in BIG else name for name in MODELS]
)
def test_every_backbone_takes_six_channels(name):
    model = build(name, 6)
    images = np.random.default_rng(0).normal(size=(2, 80, 76, 6)).astype(np.float32)
    pred = model(images, training=False).numpy()
    assert pred.shape == (2, 1)
    assert ((pred > 0) & (pred < 1)).all()
    assert pred[0] != pred[1]
    dense = [layer for layer in model.layers if isinstance(layer, tf.keras.layers.Dense)]
    assert [layer.units for layer in dense[-2:]] == [32, 1]
    tf.keras.backend.clear_session()


def test_nano_has_the_size_that_is_stated():
    assert 300_000 < build("efficientnet-nano", 3).count_params() < 400_000


def test_batch_norm_momentum_is_a_field_and_lower_from_scratch():
    def momenta(model):
        return {
            layer.momentum
            for layer in model.submodules
            if isinstance(layer, tf.keras.layers.BatchNormalization)
        }

    assert momenta(build("efficientnet-nano", 3)) == {models.SCRATCH_BN_MOMENTUM}
    assert momenta(build("efficientnet-nano", 3, bn_momentum=0.7)) == {0.7}


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_a_kernel_for_three_channels_answers_grey_images_alike_with_any_number(channels):
    build_nano = models._quiet(models.BACKBONES["efficientnet-nano"])
    three, other = build_nano((64, 64, 3), None), build_nano((64, 64, channels), None)
    models._adapt_channels(three, other)
    grey = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype(np.float32)
    expected = three(np.repeat(grey, 3, -1), training=False)
    got = other(np.repeat(grey, channels, -1), training=False)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_imagenet_weights_reach_six_channels(monkeypatch):
    three = {}

    def fake(shape, weights):
        model = models._nano(shape, None)
        if weights:
            three["weights"] = model.get_weights()
        return model

    monkeypatch.setitem(models.BACKBONES, "efficientnet-b0", fake)
    model = build("efficientnet-b0", 6, weights="imagenet")
    first = model.get_weights()[0]
    assert first.shape[2] == 6
    np.testing.assert_allclose(first, np.concatenate([three["weights"][0]] * 2, axis=2) / 2, atol=1e-6)


def test_one_download_at_a_time(monkeypatch, tmp_path):
    """Folds of a node that begin together: none reads what another has half written."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "weights"
    n_downloads = []

    def fake(shape, weights):
        if weights:
            if not file.exists():
                n_downloads.append(1)
                for part in (b"half ", b"whole"):
                    with file.open("ab") as stream:
                        stream.write(part)
                    time.sleep(0.05)
            assert file.read_bytes() == b"half whole"
        return shape

    monkeypatch.setitem(models.BACKBONES, "resnet50", fake)
    with ThreadPoolExecutor(8) as pool:
        shapes = list(pool.map(lambda _: models._with_weights("resnet50", (32, 32, 3), "imagenet"), range(8)))
    assert shapes == [(32, 32, 3)] * 8
    assert n_downloads == [1]


def test_nowhere_to_keep_a_download(monkeypatch):
    monkeypatch.setattr(models, "can_be_written", lambda folder: False)
    with pytest.raises(ConfigError, match=r"kept in .*\.keras or /tmp/.keras, and neither can be written"):
        build("resnet50", 3, weights="imagenet")


def test_offline_the_other_choices_are_named(monkeypatch):
    def unreachable(*_, **__):
        raise Exception("URL fetch failure on https://github.com/…: None -- Name or service not known")

    import efficientnet.tfkeras as efn

    monkeypatch.setattr(efn, "EfficientNetB0", unreachable)
    with pytest.raises(ConfigError) as caught:
        build("efficientnet-b0", 3, weights="imagenet")
    assert "--weights none" in str(caught.value)
    assert "--weights FILE" in str(caught.value)


def test_a_weights_file_is_loaded_or_refused(tmp_path):
    source = build("efficientnet-nano", 3)
    source.save_weights(tmp_path / "w.h5")
    loaded = build("efficientnet-nano", 3, weights=str(tmp_path / "w.h5"))
    for ours, theirs in zip(loaded.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ConfigError, match="does not fit"):
        build("efficientnet-nano", 6, weights=str(tmp_path / "w.h5"))
    (tmp_path / "bad.h5").write_bytes(b"not hdf5")
    with pytest.raises(ConfigError, match="does not fit"):
        build("efficientnet-nano", 3, weights=str(tmp_path / "bad.h5"))
