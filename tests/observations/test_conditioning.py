"""Conditioning gives noise of unit deviation whatever the telescope did to it, and keeps lines."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setibl_ray.seti.observations.conditioning import BLOCK, binned, condition, to_bytes
from setibl_ray.seti.observations.reading import read_header, read_power

SHAPE = (2, 8, 4 * BLOCK + 300)


def noise(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).chisquare(200, shape).astype(np.float32) / 200


@settings(max_examples=15, deadline=None)
@given(gain=st.floats(1e-3, 1e9), slope=st.floats(-0.3, 0.3), seed=st.integers(0, 5))
def test_noise_is_of_unit_deviation_whatever_gain_and_bandpass(gain, slope, seed):
    bandpass = 1 + slope * np.sin(np.linspace(0, 3, SHAPE[2], dtype=np.float32))
    z, flags = condition(noise(seed) * bandpass * np.float32(gain))
    assert flags == ("", "")
    assert abs(z.mean()) < 0.1
    assert abs(z.std() - 1) < 0.05


def test_gain_does_not_change_the_result():
    once = condition(noise())
    other = condition(noise() * np.float32(4096))  # a power of two: nothing is rounded otherwise
    np.testing.assert_array_equal(once.z, other.z)


def test_a_line_neither_hides_another_nor_itself():
    power = noise()
    power[:, :, 2000] += 50 * power.std()
    power[:, :, 2010] += 3 * noise().std()
    z = condition(power).z
    assert z[:, :, 2000].mean() == pytest.approx(50, rel=0.1)
    assert z[:, :, 2010].mean() == pytest.approx(3, abs=0.6)


def test_broadband_burst_is_taken_out():
    power = noise()
    power[0, 3] *= 1.2
    z = condition(power).z
    assert abs(np.median(z[0, 3])) < 0.05


def test_dc_spike():
    power = noise()
    power[:, :, 2048] *= 20
    assert condition(power.copy()).z[:, :, 2048].mean() > 50
    assert abs(condition(power, dc=2048).z[:, :, 2047:2050]).max() < 8


def test_damage_is_flagged_and_becomes_nothing():
    power = noise()
    power[0, 2, 100:400] = np.nan
    power[1, :, BLOCK : 2 * BLOCK] = 0
    z, flags = condition(power)
    assert np.isfinite(z).all()
    assert "not finite" in flags[0]
    assert "without noise" in flags[1]
    assert not z[0, 2, 100:400].any() or abs(z[0, 2, 100:400]).max() < 1
    assert not z[1, :, BLOCK : 2 * BLOCK].any()
    assert abs(z[1, :, 2 * BLOCK + BLOCK // 2 :].std() - 1) < 0.1


def test_all_zeros():
    z, flags = condition(np.zeros((1, 4, 3000), np.float32))
    assert not z.any()
    assert flags == ("100.0% of its channels without noise",)


def test_saturation_of_8_bits():
    power = np.clip(np.rint(noise() * 64), 0, 255)
    power[0, :, 500:600] = 255
    assert "saturated at 255" in condition(power.astype(np.float32), full_scale=255).flags[0]


def test_the_one_real_file_that_a_package_brings():
    path = Path(importlib.util.find_spec("setigen").origin).parent / "assets" / "sample.fil"
    header = read_header(str(path))
    z, flags = condition(read_power(header, 0, header.n_channels)[None].copy())
    assert flags == ("",)
    assert abs(np.median(z)) < 0.05
    assert np.median(abs(z)) * 1.4826 == pytest.approx(1, abs=0.05)


def test_binned_keeps_unit_noise_and_sums_channels():
    z = np.random.default_rng(0).normal(size=(2, 3, 800)).astype(np.float32)
    assert binned(z, 8).shape == (2, 3, 100)
    np.testing.assert_allclose(binned(z, 8)[1, 2, 5], z[1, 2, 40:48].sum() / np.sqrt(8), rtol=1e-5)
    assert binned(z, 1) is z


def test_bytes_are_those_of_the_record_format():
    z = np.linspace(-5, 12, 1000, dtype=np.float32)
    expected = np.clip(np.floor((z + 3) / 12 * 255 + 0.5), 0, 255).astype(np.uint8)
    assert abs(to_bytes(z).astype(int) - expected).max() <= 1  # a tie may fall either way
    assert (to_bytes(z) != expected).mean() < 0.005
