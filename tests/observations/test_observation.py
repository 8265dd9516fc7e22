"""Which six files make an observation, in which order, and what is said of the others."""

import itertools

import fsspec
import numpy as np
import pytest

from setibl_ray.core.errors import DataError
from setibl_ray.seti.observations.observation import find_files, open_observation, read_list
from setibl_ray.seti.observations.simulating import write_filterbank

BASE = {"fch1": 1500.0, "foff": -2.8e-6, "nchans": 64, "nifs": 1, "nbits": 32, "tsamp": 18.0}
LENGTH_S = 4 * 18.0


@pytest.fixture
def six(tmp_path):
    """Writes six files; `changes` are of single files."""

    def write(sources="ABACAD", gap_s=30.0, changes=None, shape=(4, 1, 64)):
        paths = []
        for i, source in enumerate(sources):
            header = BASE | {"source_name": source, "tstart": 60000 + i * (LENGTH_S + gap_s) / 86400}
            own = header | (changes or {}).get(i, {})
            data = np.full((shape[0], shape[1], own["nchans"]), i + 1, np.float32)
            path = tmp_path / f"{i}{source}.fil"
            write_filterbank(path, own, data)
            paths.append(str(path))
        return paths

    return write


def test_order_is_that_of_tstart(six):
    paths = six()
    for shuffled in itertools.islice(itertools.permutations(paths), 0, 720, 97):
        observation = open_observation(shuffled)
        assert [header.source for header in observation.headers] == list("ABACAD")
        assert observation.read(0, 1)[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert "in the order of their tstart" in open_observation(paths[::-1]).notes[0]
    assert open_observation(paths).notes == ()


def test_times(six):
    observation = open_observation(six())
    assert observation.time_s.shape == (6, 4)
    np.testing.assert_allclose(np.diff(observation.time_s[:, 0]), LENGTH_S + 30, atol=1e-3)
    assert observation.first_s == pytest.approx(-observation.last_s)


def test_off_first_is_turned_round(six):
    observation = open_observation(six("BACADA"))
    assert "BACADA" in observation.notes[0]
    assert [header.source for header in observation.headers] == list("ADACAB")
    assert observation.is_reversed
    assert observation.read(0, 1)[:, 0, 0].tolist() == [6, 5, 4, 3, 2, 1]
    assert (np.diff(observation.time_s.ravel()) < 0).all()


def test_one_default_tstart_is_noticed(six):
    same = {i: {"tstart": 59000.5} for i in range(6)}
    observation = open_observation(six(changes=same))
    assert "setigen" in observation.notes[0]
    np.testing.assert_allclose(np.diff(observation.time_s[:, 0]), LENGTH_S)


@pytest.mark.parametrize(("change", "field"), [
    ({"fch1": 1500.1}, "fch1"), ({"foff": -2.9e-6}, "foff"), ({"nchans": 65}, "nchans"), ({"tsamp": 17.0}, "tsamp"),
])  # fmt: skip
def test_files_that_do_not_fit(six, change, field):
    paths = six(changes={3: change})
    with pytest.raises(DataError, match=f"{field}: expected") as error:
        open_observation(paths)
    assert paths[3] in str(error.value)


def test_two_sessions(six):
    paths = six(changes={5: {"tstart": 60001.0}})
    with pytest.raises(DataError, match="two sessions") as error:
        open_observation(paths)
    assert paths[5] in str(error.value)


def test_overlap(six):
    with pytest.raises(DataError, match=r"before .* ends"):
        open_observation(six(gap_s=-40.0))


@pytest.mark.parametrize("sources", ["ABCABC", "AABBAC", "ABACDA"])
def test_other_orders_of_sources(six, sources):
    with pytest.raises(DataError, match="source_name"):
        open_observation(six(sources))


def test_other_numbers_of_files(six):
    paths = six()
    with pytest.raises(DataError, match="three-of-five"):
        open_observation(paths[:5])
    with pytest.raises(DataError, match="twice"):
        open_observation([*paths[:5], paths[0]])


def test_coarse_channels(six):
    paths = six()
    (whole,) = open_observation(paths).channels
    assert (whole.low, whole.high, whole.dc) == (0, 64, None)
    four = open_observation(paths, n_coarse=4).channels
    assert [(channel.low, channel.high) for channel in four] == [(0, 16), (16, 32), (32, 48), (48, 64)]
    # The middle of a coarse channel in the order of the file, which counts downwards here.
    assert [channel.dc for channel in four] == [7, 23, 39, 55]
    with pytest.raises(DataError, match="do not divide"):
        open_observation(paths, n_coarse=5)


def test_list(six, tmp_path):
    names = [path.rsplit("/", 1)[-1] for path in six()]
    table = tmp_path / "list.csv"
    head = "observation,session,band,file_1,file_2,file_3,file_4,file_5,file_6\n"
    table.write_text(head + f"x,s1,L,{','.join(names)}\n")
    (observation,) = read_list(str(table))
    assert (observation.name, observation.session, observation.band) == ("x", "s1", "L")
    for content, message in {
        head: "found none",
        head + 2 * f"x,s1,L,{','.join(names)}\n": "line 3: observation 'x' appears twice",
        head + "x,s1,L,a.h5,b.h5,c.h5,d.h5,e.h5,f.h5\n": "line 2: .*is missing",
        head + "x,s1,L,a.h5,b.h5,c.h5,d.h5,e.h5,\n": "line 2: expected six files",
        "observation,session\nx,y\n": "band, file_1",
    }.items():
        table.write_text(content)
        with pytest.raises(DataError, match=message):
            read_list(str(table))


def test_glob(six, tmp_path):
    paths = six()
    assert find_files(str(tmp_path / "*.fil")) == paths
    with pytest.raises(DataError, match="no such file"):
        find_files(str(tmp_path / "*.h5"))
    memory = fsspec.filesystem("memory")
    for name in ("b", "a"):
        memory.pipe_file(f"/observation/{name}.fil", b"")
    assert find_files("memory://observation/*.fil") == [f"memory:///observation/{name}.fil" for name in "ab"]
