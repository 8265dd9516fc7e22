"""A batch that does not fit is worked through in parts: same results, or one line that says what does not fit."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from setibl_ray.seti.config import parse
from setibl_ray.seti.train.device import Device
from setibl_ray.seti.train.parts import MIN_PART, more_parts, within_memory
from setibl_ray.seti.train.trainer import FoldState, Trainer

SHAPE = (8, 8, 1)
BATCH = 32


def plain_model(image_shape, config, own):
    """Neither batch normalisation nor dropout."""
    image = tf.keras.Input(image_shape)
    x = tf.keras.layers.Conv2D(4, 3, activation="relu")(image)
    x = tf.keras.layers.Dense(8, activation="tanh")(tf.keras.layers.Flatten()(x))
    return tf.keras.Model(image, tf.keras.layers.Dense(1, activation="sigmoid", dtype="float32")(x))


def make(**fields):
    config = parse({"model": "own:plain", "weights": "none", "batch_size": BATCH, **fields})
    device = Device("cpu", tf.distribute.get_strategy(), 1)
    work = SimpleNamespace(config=config, files={})
    return Trainer(work, config.for_fold(0), SHAPE, device, {"own:plain": plain_model})


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4 * BATCH, *SHAPE)).astype(np.float32)
    targets = rng.integers(2, size=(4 * BATCH, 1)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((images, targets)).batch(BATCH, drop_remainder=True)


class Small:
    """A device that holds at most `most` images: a step that asks for more spoils the weights and fails."""

    def __init__(self, trainer, most):
        self.trainer, self.most, self.tried = trainer, most, []

    def train(self, batches):
        size = BATCH // self.trainer.n_parts
        self.tried.append(size)
        if size > self.most:
            self.trainer.model.set_weights([weight + 1 for weight in self.trainer.model.get_weights()])
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return self.trainer.train_epoch(batches, learning_rate=1e-2, key=1)


@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_a_batch_in_parts_gives_the_whole_batchs_results(batches, loss):
    trainer = make(loss=loss)
    state = FoldState(0, *trainer.capture(), [], 0.0, -1, np.empty(0, np.float32))
    whole = trainer.train_epoch(batches, learning_rate=1e-2, key=1)
    images = batches.map(lambda image, _: image)
    expected = trainer.capture(), trainer.predict(images, 100)

    trainer.reset()
    small = Small(trainer, 8)

    def undo():
        state.n_parts = trainer.n_parts
        trainer.restore(state)

    logs = within_memory(trainer, undo, lambda: small.train(batches))
    assert small.tried == [32, 16, 8]
    assert logs == pytest.approx(whole, rel=1e-4)
    got = trainer.capture(), trainer.predict(images, 100)
    for ours, theirs in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)

    # The state remembers the parts: another process goes on with them, and the next fold begins without.
    again = FoldState.from_bytes(state.to_bytes())
    trainer.reset()
    assert trainer.n_parts == 1
    trainer.restore(again)
    assert trainer.n_parts == 4


def test_what_does_not_fit_in_parts_either_is_said(batches):
    trainer = make()
    small = Small(trainer, 7)
    with pytest.raises(tf.errors.ResourceExhaustedError, match="does not hold 8 images of a batch of 32"):
        within_memory(trainer, lambda: None, lambda: small.train(batches))


@given(batch=st.integers(1, 500), parts=st.integers(1, 8))
def test_parts_are_equal_and_no_smaller_than_they_may_be(batch, parts):
    more = more_parts(batch, parts)
    if more is not None:
        assert more >= 2 * parts
        assert batch % more == 0
        assert batch // more >= MIN_PART
    else:
        assert not [n for n in range(2 * parts, batch + 1) if batch % n == 0 and batch // n >= MIN_PART]


def test_loss_scaling_is_undone(batches):
    trainer = make()
    trainer.device = Device("gpu", tf.distribute.get_strategy(), 1)
    plain = trainer.model
    scaled = tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.legacy.SGD(0.1))
    plain.compile(scaled, "binary_crossentropy")
    before = plain.get_weights()
    whole = [weight.copy() for weight in (plain.fit(batches.take(1), verbose=0), plain.get_weights())[1]]
    plain.set_weights(before)
    trainer.in_parts(4)
    plain.fit(batches.take(1), verbose=0)
    for ours, theirs in zip(plain.get_weights(), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
