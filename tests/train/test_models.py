import pkgutil
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from setibl_ray.core.errors import ConfigError
from setibl_ray.seti import weights
from setibl_ray.seti.config import parse
from setibl_ray.seti.models import MODELS, with_head
from setibl_ray.seti.train import models

# A minute to build together; b0 and b7 stand for them.
BIG = {f"efficientnet-b{size}" for size in range(1, 7)}


def build(name, channels, size=(80, 76), **fields):
    config = parse({"model": name, "weights": "none", **fields})
    name = config.weights
    files = {} if name in ("imagenet", "none") else {name: Path(name).read_bytes()}
    return models.build_model((*size, channels), config, config.for_fold(0), files=files)


def test_every_name_has_a_builder():
    assert all(callable(pkgutil.resolve_name(model.builder)) for model in MODELS.values())


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


def test_the_on_off_head_compares_on_with_off_whatever_their_order():
    image = tf.keras.Input((80, 76, 6))
    head = tf.keras.Model(image, models._on_off(image, 0.9))
    cadence = np.random.default_rng(0).normal(size=(1, 80, 76, 6)).astype(np.float32)
    orders = [range(6), (4, 1, 0, 5, 2, 3), (1, 0, 3, 2, 5, 4)]
    plain, reordered, exchanged = head(
        np.concatenate([cadence[..., list(order)] for order in orders])
    ).numpy()
    assert plain.shape == (368,)
    np.testing.assert_allclose(plain, reordered, atol=1e-5)
    assert np.abs(plain - exchanged).max() > 0.1
    parameters = MODELS["efficientnet-nano"].parameters, with_head("efficientnet-nano", "on-off").parameters
    model = build("efficientnet-nano", 6, head="on-off")
    assert model.count_params() - build("efficientnet-nano", 6).count_params() == pytest.approx(
        1e6 * (parameters[1] - parameters[0]), rel=0.2
    )
    alone = build("none", 6, head="on-off")
    assert alone.count_params() == pytest.approx(1e6 * with_head("none", "on-off").parameters, rel=0.2)
    pred = alone(np.concatenate([cadence[..., list(order)] for order in orders]), training=False).numpy()
    assert pred[0] == pytest.approx(pred[1], abs=1e-3)
    assert pred[0] != pred[2]


def test_units_of_the_on_off_head_that_are_off_for_all_images_still_learn():
    model = build("none", 6, head="on-off")
    hidden = model.layers[-2]
    hidden.bias.assign([-1e3] * 32)
    images = tf.random.stateless_normal((4, 80, 76, 6), (1, 2))
    with tf.GradientTape() as tape:
        logit = model.layers[-1].kernel[:, 0] * tf.keras.Model(model.input, hidden.output)(images)
    assert tf.reduce_all(tape.gradient(logit, hidden.bias) != 0)


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
    three, other = (models._build("efficientnet-nano", (64, 64, n), None) for n in (3, channels))
    models._adapt_channels(three, other)
    grey = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype(np.float32)
    expected = three(np.repeat(grey, 3, -1), training=False)
    got = other(np.repeat(grey, channels, -1), training=False)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_imagenet_weights_reach_six_channels(monkeypatch):
    three = {}

    def fake(*, include_top, weights, input_shape):
        model = models.efficientnet_nano(include_top=include_top, weights=None, input_shape=input_shape)
        if weights:
            three["weights"] = model.get_weights()
        return model

    monkeypatch.setattr("efficientnet.tfkeras.EfficientNetB0", fake)
    model = build("efficientnet-b0", 6, weights="imagenet")
    first = model.get_weights()[0]
    assert first.shape[2] == 6
    np.testing.assert_allclose(first, np.concatenate([three["weights"][0]] * 2, axis=2) / 2, atol=1e-6)


def test_one_download_at_a_time(monkeypatch, tmp_path):
    """Folds of a node that begin together: none reads what another has half written."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "weights"
    n_downloads = []

    def fake(*, include_top, weights, input_shape):
        if weights:
            if not file.exists():
                n_downloads.append(1)
                for part in (b"half ", b"whole"):
                    with file.open("ab") as stream:
                        stream.write(part)
                    time.sleep(0.05)
            assert file.read_bytes() == b"half whole"
        return input_shape

    monkeypatch.setattr("efficientnet.tfkeras.EfficientNetB0", fake)
    with ThreadPoolExecutor(8) as pool:
        shapes = list(
            pool.map(lambda _: models._with_weights("efficientnet-b0", (32, 32, 3), "imagenet"), range(8))
        )
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


def linear(image_shape, config, own):
    """A user's own network."""
    layers = [tf.keras.layers.Flatten(), tf.keras.layers.Dense(1, activation="sigmoid")]
    return tf.keras.Sequential([tf.keras.Input(image_shape), *layers])


def test_a_users_own_model_is_built_by_its_name_or_from_what_was_passed():
    for name, code in (("mine:linear", {"mine:linear": linear}), (f"{__name__}:linear", {})):
        config = parse({"model": name, "weights": "none"})
        model = models.build_model((40, 36, 6), config, config.for_fold(0), code)
        assert model.count_params() == 40 * 36 * 6 + 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda shape, config, own: None, "got NoneType"),
        (lambda shape, config, own: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda shape: None, "could not build a model"),
        (lambda shape, config, own: linear((20, 20, 1), config, own), "its inputs are [(20, 20, 1)]"),
        (lambda shape, config, own: _ends_in(2, "sigmoid"), "its outputs are [(None, 2)]"),
        (lambda shape, config, own: _ends_in(1, None), "end it in a sigmoid"),
    ],
)
def test_what_is_no_such_model_is_refused_in_one_line(wrong, said):
    config = parse({"model": "mine:wrong", "weights": "none"})
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        models.build_model((40, 36, 6), config, config.for_fold(0), {"mine:wrong": wrong})
    assert "\n" not in str(caught.value)


def _ends_in(n, activation):
    layers = [tf.keras.layers.Flatten(), tf.keras.layers.Dense(n, activation=activation)]
    return tf.keras.Sequential([tf.keras.Input((40, 36, 6)), *layers])


def test_sizes_of_a_users_own_model_are_its_own():
    from setibl_ray.seti.sizes import sizes

    config = parse({"model": "mine:linear", "weights": "none", "image_size": "40x36", "layout": "all6"})
    found = sizes(config, 0, {"mine:linear": linear})
    assert found.parameters == pytest.approx((40 * 36 * 6 + 1) / 1e6)
    assert found.multiply_adds == pytest.approx(6)  # each of the six channels' pixels once
    with pytest.raises(ConfigError, match="got NoneType"):
        sizes(config, 0, {"mine:linear": lambda shape, config, own: None})


def test_the_packages_weights_fit_any_size_and_find_a_line_in_on_panels():
    size, files = (91, 85), {"cadences": weights.read()}
    config = parse({"model": weights.NETWORK[0], "head": weights.NETWORK[2], "weights": "cadences"})
    same, larger = (
        models.build_model((factor * size[0], factor * size[1], 6), config, config.for_fold(0), files=files)
        for factor in (1, 2)
    )
    for ours, theirs in zip(same.get_weights(), larger.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)
    noise = np.random.default_rng(0).normal(size=(8, *size, 6)).astype(np.float32)
    line = np.zeros((1, *size, 6), np.float32)
    line[..., size[1] // 2, ::2] = 6  # an upright line in the ON panels
    assert (same(noise + line, training=False).numpy() > same(noise, training=False).numpy()).all()


def test_weights_that_are_not_those_of_this_version_are_refused(monkeypatch):
    monkeypatch.setattr(weights, "SHA256", "0" * 64)
    with pytest.raises(ConfigError, match=r"cadences.h5 is not the file that this version comes with"):
        weights.read()
