import pytest

from setibl_ray.seti.config import parse


def seed_schedule(epoch, lr_max, start=5e-6, floor=1e-6, ramp=5, sustain=0, decay=0.8):
    """The original notebook's formula, written out."""
    if epoch < ramp:
        return (lr_max - start) / ramp * epoch + start
    if epoch < ramp + sustain:
        return lr_max
    return (lr_max - floor) * decay ** (epoch - ramp - sustain) + floor


def test_pretrained_default_is_the_seeds_and_scales_with_the_global_batch():
    config = parse({"batch_size": 32})
    for replicas in (1, 8):
        rate = config.learning_rate(0, replicas)
        for epoch in range(12):
            assert rate(epoch) == pytest.approx(seed_schedule(epoch, 1.25e-6 * 32 * replicas))


def test_every_field_counts():
    fields = {
        "lr_start": 1e-4,
        "lr_max": 1e-2,
        "lr_min": 1e-5,
        "ramp_epochs": 2,
        "sustain_epochs": 3,
        "decay": 0.5,
    }
    rate = parse({"schedule": fields}).learning_rate(0, 8)
    for epoch in range(12):
        assert rate(epoch) == pytest.approx(seed_schedule(epoch, 1e-2, 1e-4, 1e-5, 2, 3, 0.5))


def test_from_scratch_the_peak_is_one_that_learns_and_is_bounded():
    small = parse({"weights": "none", "batch_size": 16}).learning_rate(0, 1)
    assert small.peak == pytest.approx(2e-3)
    assert small(0) == pytest.approx(5e-4)
    assert small(1) == pytest.approx(2e-3)
    assert small(11) < 2e-4
    assert all(small(epoch) > small(epoch + 1) for epoch in range(1, 11))
    assert small(1 + 11 / 2) == pytest.approx((2e-3 + 2e-5) / 2)
    assert parse({"weights": "none", "batch_size": 1024}).learning_rate(0, 8).peak == 1.6e-2
    on_off = parse(
        {"weights": "none", "head": "on-off", "batch_size": 16, "model": "none,mine:own", "folds": 2}
    )
    assert on_off.learning_rate(0, 1).peak == 8e-3
    assert on_off.learning_rate(1, 1).peak == 2e-3
    tuned = parse({"weights": "cadences", "batch_size": 16}).learning_rate(0, 1)
    assert tuned(0) == tuned.peak == pytest.approx(1e-3)
    one_epoch = parse({"weights": "none", "batch_size": 16, "epochs": 1}).learning_rate(0, 1)
    assert one_epoch(0) == pytest.approx(2e-3)
