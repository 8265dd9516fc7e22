"""The trainer: what a fold leaves behind must not reach the next, and a resumed fold must not differ."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from setibl_ray.seti.config import parse
from setibl_ray.seti.train import keras2
from setibl_ray.seti.train import trainer as trainers
from setibl_ray.seti.train.device import Device
from setibl_ray.seti.train.trainer import FoldState, Trainer

SHAPE = (40, 36, 3)


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(32, *SHAPE)).astype(np.float32)
    targets = rng.integers(0, 2, (32, 1)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((images, targets)).batch(8, drop_remainder=True)


def make(device=None, **fields):
    config = parse(
        {"model": "efficientnet-nano", "weights": "none", "image_size": "40x36", "batch_size": 8, **fields}
    )
    device = device or Device("cpu", tf.distribute.get_strategy(), 1)
    return Trainer(SimpleNamespace(config=config, files={}), config.for_fold(0), SHAPE, device, {})


@pytest.fixture(scope="module")
def trainer():
    return make()


def train(trainer, batches, epochs):
    for epoch in epochs:
        logs = trainer.train_epoch(batches, learning_rate=1e-3, key=epoch)
        assert set(logs) == {"loss", "auc"}
    return trainer.capture()


def equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a, b)


def test_a_reset_trainer_repeats_itself(trainer, batches):
    trainer.reset()
    first = train(trainer, batches, range(2))
    trainer.reset()
    again = train(trainer, batches, range(2))
    equal(first[0], again[0])
    equal(first[1], again[1])


@pytest.fixture(scope="module")
def accelerator():
    """A CPU that stands in for one."""
    return make(Device("gpu", tf.distribute.get_strategy(), 1))


@pytest.mark.parametrize("n_batches", [3, 16, 21])
def test_sixteen_steps_in_one_execution_give_the_bytes_of_one_by_one(
    trainer, accelerator, batches, n_batches
):
    """The number of batches need not be a multiple."""
    accelerator.reset()
    assert accelerator.model._steps_per_execution.numpy() == 16
    many = batches.repeat().take(n_batches)
    images, n = many.map(lambda image, _: image), 8 * n_batches - 3
    trainer.reset()
    results = [(*train(each, many, range(2)), each.predict(images, n)) for each in (trainer, accelerator)]
    for one, other in zip(*results, strict=True):
        equal(one, other)
    assert results[0][2].shape == (1, n)


def test_dropout_follows_from_the_key_alone(trainer, batches):
    trainer.reset()
    one = train(trainer, batches, [5])
    trainer.reset()
    other = train(trainer, batches, [6])
    assert trainer._generators
    assert any((a != b).any() for a, b in zip(one[0], other[0]))


def test_a_state_travels_as_bytes_and_goes_on_in_a_new_trainer(trainer, batches):
    trainer.reset()
    whole = train(trainer, batches, range(3))
    trainer.reset()
    weights, optimizer = train(trainer, batches, range(2))
    state = FoldState(2, weights, optimizer, weights, 0.7, 1, np.ones(3, np.float32), 240.5)
    back = FoldState.from_bytes(state.to_bytes())
    equal(back.weights, weights)
    equal(back.optimizer, optimizer)
    assert (back.epochs_done, back.best_rank, back.best_epoch, back.images_per_s) == (2, 0.7, 1, 240.5)

    fresh = make()
    fresh.restore(back)
    resumed = train(fresh, batches, [2])
    equal(resumed[0], whole[0])
    equal(resumed[1], whole[1])


def test_the_weights_file_is_one_that_keras_loads(trainer, tmp_path):
    (tmp_path / "w.h5").write_bytes(keras2.weights_file(trainer.model))
    assert keras2.weights_file(trainer.model) == (tmp_path / "w.h5").read_bytes()
    fresh = make(seed=7)
    assert any((a != b).any() for a, b in zip(fresh.model.get_weights(), trainer.model.get_weights()))
    fresh.model.load_weights(tmp_path / "w.h5")
    equal(fresh.model.get_weights(), trainer.model.get_weights())


def test_the_process_keeps_one_trainer_and_what_does_not_shape_it_may_change(monkeypatch):
    monkeypatch.setattr(trainers, "_kept", None)
    base = {"model": "efficientnet-nano", "weights": "none", "image_size": "40x36", "batch_size": 8}
    device = Device("cpu", tf.distribute.get_strategy(), 1)

    def get(**fields):
        config = parse({**base, **fields})
        work = SimpleNamespace(config=config, files={})
        return trainers.trainer_for(work, config.for_fold(0), SHAPE, device, {})

    first = get()
    assert get(schedule={"lr_max": 0.5}, augment={"strength": 0}, epochs=3) is first
    assert get(label_smoothing=0.2) is not first


def test_focal_loss_weighs_by_class_and_by_what_is_told_already():
    focal = trainers.SmoothedFocal(0.1)
    target, pred = np.array([[1.0], [0.0]], np.float32), np.array([[0.8], [0.3]], np.float32)
    smooth = target * 0.9 + 0.05
    cross = -(smooth * np.log(pred) + (1 - smooth) * np.log(1 - pred))
    p_t = smooth * pred + (1 - smooth) * (1 - pred)
    alpha = smooth * 0.25 + (1 - smooth) * 0.75
    assert float(focal(target, pred)) == pytest.approx(
        float(np.mean(alpha * (1 - p_t) ** 2 * cross)), rel=1e-4
    )


@pytest.mark.filterwarnings(r"ignore:\s*TensorFlow Addons:UserWarning")
def test_focal_loss_and_its_gradient_are_tensorflow_addons_to_the_bit():
    addons = pytest.importorskip("tensorflow_addons", reason="has no wheel for this Python")
    rng = np.random.default_rng(0)
    target = tf.constant(rng.integers(2, size=(500, 1)), tf.float32)
    pred = tf.Variable(np.concatenate([rng.uniform(size=(498, 1)), [[0.0], [1.0]]]), dtype=tf.float32)

    # The same name: TensorFlow orders a graph by its names, and rounds so.
    class SmoothedFocal(tf.keras.losses.Loss):
        def call(self, y_true, y_pred):
            return addons.losses.sigmoid_focal_crossentropy(y_true * 0.9 + 0.05, y_pred)

    @tf.function
    def value_and_gradient(loss):
        with tf.GradientTape() as tape:
            value = loss(target, pred)
        return value, tape.gradient(value, pred)

    for ours, others in zip(
        value_and_gradient(trainers.SmoothedFocal(0.1)), value_and_gradient(SmoothedFocal())
    ):
        np.testing.assert_array_equal(ours, others)


def test_steps_compile_under_xla(trainer, batches):
    """Static shapes and no host op in a step: as near to a TPU as a CPU comes."""
    compiled = make(jit_compile=True)
    assert compiled.model.jit_compile
    trainer.reset()
    logs = [each.train_epoch(batches, learning_rate=1e-3, key=1) for each in (compiled, trainer)]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=0.05)
    images = batches.map(lambda image, _: image)
    assert compiled.predict(images, 15, 2).shape == (2, 15)
    assert np.isfinite(compiled.predict(images, 32)).all()


def test_mixed_precision_predicts_in_float32(batches):
    trainer = make(mixed_precision=True)
    try:
        trainer.train_epoch(batches, learning_rate=1e-3, key=1)
        assert trainer.model.layers[1].compute_dtype == "bfloat16"
        assert trainer.predict(batches.map(lambda image, _: image), 32).dtype == np.float32
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def test_loss_scaling_is_part_of_the_state(batches):
    device = Device("gpu", tf.distribute.get_strategy(), 1)  # float16 is for GPUs; a CPU only takes longer
    trainer = make(device, mixed_precision=True)
    try:
        before = train(trainer, batches, [0])
        state = FoldState(1, *before, before[0], 0.0, 0, np.empty(0, np.float32))
        after = train(trainer, batches, [1])
        trainer.optimizer._loss_scale.current_loss_scale.assign(1.0)
        trainer.restore(FoldState.from_bytes(state.to_bytes()))
        equal(trainer.capture()[1], before[1])
        again = train(trainer, batches, [1])
        equal(after[0], again[0])
        equal(after[1], again[1])
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
