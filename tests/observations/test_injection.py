"""Injected sets: the same bytes however many processes, every parameter with its record, nothing that is excluded."""

from itertools import pairwise

import numpy as np
import pytest
from skies import SMALL

from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.data import entry
from setibl_ray.seti.formats.shards import read_index, read_panels
from setibl_ray.seti.formats.tfrecord import decode_example, frames
from setibl_ray.seti.observations import signals, windows
from setibl_ray.seti.observations.conditioning import definition
from setibl_ray.seti.observations.injection import inject, plan
from setibl_ray.seti.observations.injection_recipe import InjectionRecipe
from setibl_ray.seti.observations.observation import read_list

RECIPE = InjectionRecipe(train=40, shards=4, seed=5, width=32)


@pytest.fixture(scope="module")
def injected(small, tmp_path_factory):
    return inject(str(small), tmp_path_factory.mktemp("injected") / "set", RECIPE, n_processes=1)


def test_any_number_of_processes_gives_the_same_bytes(small, injected, tmp_path):
    again = inject(str(small), tmp_path / "set", RECIPE, n_processes=2)
    files = sorted(path.name for path in injected.iterdir())
    assert files == sorted(path.name for path in again.iterdir())
    assert all((injected / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_what_a_set_says_of_itself(small, injected):
    index = read_index(injected)
    assert index.panel_shape == (16, 32)
    assert len(index.train) == 40
    assert index.train["target"].sum() == 20
    assert set(index.train["group"]) == {"session-1/1902MHz"}
    assert index.metadata["conditioning"] == definition()
    assert index.metadata["windows"] == windows.definition(32)
    assert index.metadata["df_hz"] == pytest.approx(2.794, abs=1e-3)
    kinds = set(index.train["kind"])
    assert kinds <= {*signals.NEEDLE_SHARES, *signals.LOOK_ALIKE_SHARES, "haystack"}
    made = index.metadata["made"]
    assert made["snr"] == [6, 100]
    assert len(made["observations"][0]["files"]) == 6


def test_every_record_keeps_its_true_parameters(small, injected):
    observation = read_list(str(small))[0]
    seen = 0
    for path in sorted(injected.glob("*.tfrec")):
        with path.open("rb") as stream:
            for item in frames(stream, path.name):
                record = decode_example(item.payload)
                f_mhz = record["f_hz"][0] / 1e6
                assert observation.mhz(0) - 1e-4 <= f_mhz <= observation.mhz(8192) + 1e-4
                assert bytes(record["observation"][0]) == b"sky"
                if b"needle" in bytes(record["kind"][0]):
                    assert abs(record["drift_hz_s"][0]) < 0.4
                    assert 2 < record["width_hz"][0] < 12
                    assert 6 <= record["snr"][0] <= 100
                    seen += 1
    assert seen == 20


def test_needles_stand_upright_in_on_panels(injected):
    index = read_index(injected)
    rows = np.flatnonzero((index.train["kind"] == "needle-constant") & (index.train["snr"] > 15))
    assert len(rows)
    panels = read_panels(index, "train", rows, range(6)).astype(float).mean(axis=1)  # (n, width, 6)
    middle = panels[:, 16 - 5 : 16 + 6].max(axis=1)
    quiet = np.median(panels, axis=1)
    assert ((middle - quiet)[:, ::2] > 15).mean() > 0.95


def test_stretches_do_not_overlap(small):
    observations = read_list(str(small), n_coarse=2)
    stretches = plan(observations, RECIPE)
    assert len(stretches) == 4
    ends = sorted((stretch.low, stretch.high) for stretch in stretches)
    assert all(a[1] <= b[0] for a, b in pairwise(ends))


def test_exclusions(small, tmp_path):
    with pytest.raises(ConfigError, match="exclude-session: nothing is left"):
        inject(str(small), tmp_path / "a", InjectionRecipe(train=8, shards=2, exclude_session=("session-1",)))
    with pytest.raises(ConfigError, match="exclude-mhz: every coarse channel"):
        inject(str(small), tmp_path / "a", InjectionRecipe(train=8, shards=2, exclude_mhz="1800-2000"))
    top = SMALL.fch1_mhz
    half = InjectionRecipe(train=8, shards=2, coarse_channels=2, exclude_mhz=f"{top - 0.001}-{top}")
    (kept,) = {stretch.channel.number for stretch in plan(read_list(str(small), n_coarse=2), half)}
    assert kept == 0


@pytest.mark.parametrize(("argv", "message"), [
    (["--snr", "9", "5"], "the lower first"), (["--train", "3"], "do not fill 20 shards"),
    (["--exclude-mhz", "1400"], "expected a range of MHz"), (["--bins", "0"], "bins"),
    (["--shards", "9", "--train", "9"], "Ask for fewer shards"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(small, tmp_path, capsys, argv, message):
    given = ["inject", "--list", str(small), "--out", str(tmp_path / "x"), "--processes", "1"]
    assert entry([*given, *argv, *([] if "--train" in argv else ["--train", "40"])]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_empty_stretch_is_refused(tmp_path, small):
    import shutil

    import h5py

    shutil.copytree(small.parent, tmp_path / "sky")
    for path in (tmp_path / "sky").glob("*.h5"):
        with h5py.File(path, "r+") as file:
            file["data"][...] = 0
    with pytest.raises(DataError, match="hold nothing"):
        inject(str(tmp_path / "sky" / "observation.csv"), tmp_path / "x", RECIPE, n_processes=1)
