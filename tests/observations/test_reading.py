"""Files of every kind give the same power; damaged ones are refused in one line."""

import importlib.util
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest
from skies import SMALL

from setibl_ray.core.errors import DataError
from setibl_ray.seti.observations.observation import read_list
from setibl_ray.seti.observations.reading import read_header, read_power
from setibl_ray.seti.observations.simulating import observe, simulate, write_filterbank

HEADER = {
    "fch1": 1500.0,
    "foff": -2.8e-6,
    "nchans": 64,
    "nifs": 1,
    "nbits": 32,
    "tsamp": 18.0,
    "tstart": 60000.0,
}


def written(path, data, **changes):
    write_filterbank(path, {"source_name": "A", **HEADER, **changes}, data)
    return str(path)


@pytest.fixture(scope="module")
def power():
    return observe(SMALL)[0]


@pytest.mark.parametrize("options", [
    {"suffix": "h5"}, {"suffix": "fil"}, {"suffix": "h5", "rising": True}, {"suffix": "fil", "rising": True},
    {"suffix": "fil", "n_ifs": 2}, {"suffix": "h5", "n_ifs": 2},
], ids=str)  # fmt: skip
def test_every_format_and_sign_gives_the_same_power(tmp_path, power, options):
    observation = read_list(str(simulate(SMALL, tmp_path / "sky", **options)))[0]
    np.testing.assert_allclose(observation.read(1000, 3000), power[..., 1000:3000], rtol=1e-6)
    top = observation.mhz(SMALL.n_channels - 1)
    assert top == pytest.approx(SMALL.fch1_mhz, abs=1e-9)


@pytest.mark.parametrize("n_bits", [8, 16])
@pytest.mark.parametrize("suffix", ["fil", "h5"])
def test_few_bits(tmp_path, power, n_bits, suffix):
    observation = read_list(str(simulate(SMALL, tmp_path / "sky", suffix=suffix, n_bits=n_bits)))[0]
    assert observation.headers[0].n_bits == n_bits
    read = observation.read(0, 2000)
    whole = power[..., :2000]
    unsaturated = (read > 0) & (read < 2**n_bits - 1)
    ratio = read[0][unsaturated[0]] / whole[0][unsaturated[0]]
    assert np.std(ratio) / np.mean(ratio) < {8: 0.02, 16: 0.001}[n_bits]


@pytest.mark.parametrize(("n_ifs", "full_scale"), [(1, 255), (2, 510), (4, 255)])
def test_full_scale_of_8_bits_is_that_of_what_is_summed(tmp_path, n_ifs, full_scale):
    data = np.full((2, n_ifs, 64), 255, np.uint8)
    header = read_header(written(tmp_path / "a.fil", data, nifs=n_ifs, nbits=8))
    assert header.full_scale == full_scale == read_power(header, 0, 64).max()


@pytest.mark.parametrize("suffix", ["fil", "h5"])
def test_first_of_four_stokes_parameters_is_read(tmp_path, suffix):
    data = np.arange(2 * 4 * 64, dtype=np.float32).reshape(2, 4, 64)
    header = read_header(written(tmp_path / f"a.{suffix}", data, nifs=4))
    np.testing.assert_array_equal(read_power(header, 0, 64), data[:, 0, ::-1])


def test_the_one_real_file_that_a_package_brings():
    path = Path(importlib.util.find_spec("setigen").origin).parent / "assets" / "sample.fil"
    header = read_header(str(path))
    assert (header.n_times, header.n_channels) == (32, 1024)
    assert header.df_hz == pytest.approx(1.397, abs=1e-3)
    assert np.isfinite(header.ra_h)
    assert (read_power(header, 0, 1024) > 0).all()


@pytest.mark.parametrize(("suffix", "message"), [("fil", "truncated"), ("h5", "damaged or not an HDF5 file")])
def test_truncated(tmp_path, suffix, message):
    path = tmp_path / f"a.{suffix}"
    written(path, np.ones((4, 1, 64), np.float32))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=message) as error:
        read_header(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_not_such_files(tmp_path):
    (tmp_path / "a.fil").write_bytes(b"\x0c\x00\x00\x00HEADER_START\x07\x00\x00\x00nonsens")
    (tmp_path / "b.fil").write_bytes(b"nothing of the kind")
    (tmp_path / "c.h5").write_bytes(b"nothing of the kind")
    (tmp_path / "d.txt").write_text("x")
    for name, message in {
        "a.fil": "header cannot be read", "b.fil": "header cannot be read|HEADER_START", "c.h5": "not an HDF5",
        "d.txt": "expected a file named", "e.h5": "is missing", "f.fil": "is missing",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=message):
            read_header(str(tmp_path / name))


@pytest.mark.parametrize(("changes", "message"), [
    ({"nchans": 63}, "channels"), ({"foff": 0.0}, "foff: expected"), ({"tsamp": -1.0}, "tsamp: expected"),
    ({"tstart": float("nan")}, "tstart: expected a number"), ({"fch1": "C band"}, "fch1: expected a number"),
])  # fmt: skip
def test_impossible_headers(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_header(written(tmp_path / "a.h5", np.ones((4, 1, 64), np.float32), **changes))


def test_a_group_named_data(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("data")
    with pytest.raises(DataError, match="expected a data set named data"):
        read_header(str(tmp_path / "a.h5"))


def test_an_unsupported_number_of_bits(tmp_path):
    with pytest.raises(DataError, match="nbits: expected 8, 16, 32 or 64, found 128"):
        read_header(written(tmp_path / "a.h5", np.ones((4, 1, 64), np.complex128)))


@pytest.mark.parametrize("suffix", ["fil", "h5"])
def test_64_bits_as_setigen_writes(tmp_path, suffix):
    data = np.random.default_rng(0).chisquare(10, (4, 1, 64))
    header = read_header(written(tmp_path / f"a.{suffix}", data, nbits=64))
    np.testing.assert_array_equal(read_power(header, 3, 60)[:, ::-1], data[:, 0, 4:61].astype(np.float32))


@pytest.mark.parametrize("suffix", ["fil", "h5"])
def test_an_object_store(tmp_path, power, suffix):
    path = simulate(SMALL, tmp_path / "sky", suffix=suffix)
    store = fsspec.filesystem("memory")
    store.put(str(path.parent), "/observed/sky", recursive=True)
    observation = read_list("memory://observed/sky/observation.csv")[0]
    np.testing.assert_allclose(observation.read(1000, 1500), power[..., 1000:1500], rtol=1e-6)
    with pytest.raises(DataError, match="is missing"):
        read_header("memory://observed/nothing.h5")
