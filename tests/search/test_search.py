"""From files to candidates with a stand-in for the networks: every format, resuming, damage, what is written."""

import io
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import standins
from rich.console import Console
from skies import SMALL

from setibl_ray import search as command
from setibl_ray.core.errors import ConfigError, DataError, FoldFailedError, Interrupted, RunFolderError
from setibl_ray.seti.observations.observation import read_list
from setibl_ray.seti.observations.simulating import recall, simulate
from setibl_ray.seti.search import run as running
from setibl_ray.seti.search.channel import search_channel, to_text
from setibl_ray.seti.search.settings import SearchSettings

SETTINGS = SearchSettings(recover=6)
SKY = SMALL._replace(n_channels=16384)


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    return simulate(SKY, tmp_path_factory.mktemp("sky") / "sky")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return str(standins.trained_run(tmp_path_factory.mktemp("run") / "run"))


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    """Stand-ins for the networks; a list of when they are built, and channels scored in this process."""
    monkeypatch.setattr(running, "SCORER", standins.scorer)
    monkeypatch.setattr("setibl_ray.seti.search.task._built", {})
    standins.calls.clear()
    return standins.calls


def search(run, observations, out, settings, **options):
    return running.search(
        str(run), observations, str(out), settings, **({"where": {"runner": "local"}} | options)
    )


@pytest.fixture(scope="module")
def done(sky, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "SCORER", standins.scorer)
        search(run, read_list(str(sky), n_coarse=2), out, SETTINGS)
    return out


@pytest.fixture
def console():
    """A console that keeps what it is told."""
    return Console(file=io.StringIO(), width=200)


def frequencies(out):
    return pd.read_csv(out / "candidates.csv")[["f_start_mhz", "drift_hz_s"]]


def test_needles_are_found_once_each(sky, done):
    truth = pd.read_csv(sky.parent / "truth.csv")
    found = pd.read_csv(done / "candidates.csv")
    found["f_mhz"] = (found["f_start_mhz"] + found["f_end_mhz"]) / 2
    matched = recall(truth, found)
    assert (matched["candidate"] >= 0).all()
    assert matched["candidate"].is_unique
    assert matched["f_error_hz"].abs().max() < 4
    assert matched["drift_error_hz_s"].abs().max() < 0.005
    assert found["rank"].tolist() == list(range(1, len(found) + 1))
    assert found["id"].is_unique
    assert (found["score"].diff().dropna() <= 0).all()
    assert len(found) <= len(truth) + 2


@pytest.mark.parametrize(
    "options", [{"suffix": "fil"}, {"rising": True}, {"suffix": "fil", "rising": True}], ids=str
)
def test_formats_and_signs_give_the_same_candidates(done, run, tmp_path, options):
    path = simulate(SKY, tmp_path / "sky", **options)
    search(run, read_list(str(path), n_coarse=2), str(tmp_path / "out"), SETTINGS)
    pd.testing.assert_frame_equal(frequencies(tmp_path / "out"), frequencies(done), atol=1e-8, rtol=0)


def test_an_off_first_observation_gives_the_same_candidates(done, sky, run, tmp_path):
    shutil.copytree(sky.parent, tmp_path / "sky")
    for i, path in enumerate(sorted((tmp_path / "sky").glob("*.h5"))):
        with h5py.File(path, "r+") as file:  # the whole observation, backwards in time
            file["data"][...] = file["data"][...][::-1]
            attributes = file["data"].attrs
            attributes["tstart"] = 2 * SKY.tstart_mjd - attributes["tstart"]
            assert attributes["source_name"] == ("TARGET" if i % 2 == 0 else f"OFF{i // 2 + 1}")
    observations = read_list(str(tmp_path / "sky" / "observation.csv"), n_coarse=2)
    assert observations[0].is_reversed
    search(run, observations, str(tmp_path / "out"), SETTINGS)
    ours, theirs = (pd.read_csv(out / "candidates.csv") for out in (tmp_path / "out", done))
    np.testing.assert_allclose(ours["drift_hz_s"], -theirs["drift_hz_s"], atol=1e-5)
    np.testing.assert_allclose(ours["f_start_mhz"], theirs["f_end_mhz"], atol=1e-8)
    np.testing.assert_allclose(ours["snr_on1"], theirs["snr_on3"], atol=0.02)


def test_resume_searches_what_is_missing_and_ends_with_the_same_bytes(
    done, sky, run, tmp_path, networks, console
):
    out = tmp_path / "out"
    shutil.copytree(done, out)
    first, second = sorted((out / "channels").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    for name in ("candidates.csv", "search.json", "candidates.html"):
        (out / name).unlink()
    observations = read_list(str(sky), n_coarse=2)
    search(run, observations, out, SETTINGS, resume=True, console=console)
    assert networks == ["built", "scored", "scored"]
    assert "damaged" in console.file.getvalue()
    assert_same_bytes(out, done)
    networks.clear()
    search(run, observations, out, SETTINGS, resume=True)
    assert networks == []  # nothing to do, so no network is built


def assert_same_bytes(out, done):
    assert {path.name for path in (out / "channels").iterdir()} == {
        path.name for path in (done / "channels").iterdir()
    }
    for path in done.rglob("*.*"):
        assert (out / path.relative_to(done)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.usefixtures("own_ray")
def test_a_killed_worker_on_ray_ends_with_the_bytes_of_the_plain_loop(
    done, sky, run, tmp_path, monkeypatch, console
):
    monkeypatch.setattr(running, "SCORER", standins.dies_once)
    (tmp_path / "once").touch()
    monkeypatch.setattr(standins, "ONCE", str(tmp_path / "once"))
    observations = read_list(str(sky), n_coarse=2)
    search(run, observations, tmp_path / "out", SETTINGS, where={"workers": 1}, console=console)
    assert not (tmp_path / "once").exists()
    assert "worker-died: retry 1 of 3" in console.file.getvalue()
    assert_same_bytes(tmp_path / "out", done)


def test_a_channel_that_cannot_be_searched_leaves_the_others(done, sky, run, tmp_path, monkeypatch):
    observations = read_list(str(sky), n_coarse=2)
    monkeypatch.setattr(running, "SCORER", standins.refused_at_the_second)
    with pytest.raises(
        FoldFailedError, match=r"^1 of 2 channels .*sky  1901.977.*: file.h5: torn. Results .*--resume"
    ):
        search(run, observations, tmp_path / "out", SETTINGS)
    assert len(list((tmp_path / "out" / "channels").iterdir())) == 1
    assert json.loads((tmp_path / "out" / "search.json").read_text())["channels"] == 1
    monkeypatch.setattr(running, "SCORER", standins.scorer)
    search(run, observations, tmp_path / "out", SETTINGS, resume=True)
    assert_same_bytes(tmp_path / "out", done)


def test_resume_with_other_settings_or_into_a_full_folder_is_refused(done, sky, run):
    observations = read_list(str(sky), n_coarse=2)
    with pytest.raises(RunFolderError, match=r"plan.json: settings differ"):
        search(run, observations, str(done), SearchSettings(recover=7), resume=True)
    with pytest.raises(RunFolderError, match=r"plan.json: coarse_channels differ"):
        search(run, read_list(str(sky), n_coarse=1), str(done), SETTINGS, resume=True)
    with pytest.raises(RunFolderError, match="holds a search already"):
        search(run, observations, str(done), SETTINGS)


def test_an_interrupted_search_goes_on(sky, run, tmp_path, monkeypatch, done, networks):
    observations = read_list(str(sky), n_coarse=2)
    monkeypatch.setattr(running, "SCORER", standins.interrupted_at_the_second)
    networks.clear()
    with pytest.raises(Interrupted, match=r"is kept. Go on with the same command, --out .* and --resume"):
        search(run, observations, tmp_path / "out", SETTINGS)
    assert len(list((tmp_path / "out" / "channels").iterdir())) == 1
    monkeypatch.setattr(running, "SCORER", standins.scorer)
    search(run, observations, tmp_path / "out", SETTINGS, resume=True)
    assert networks.count("scored") == 3
    assert (tmp_path / "out" / "candidates.csv").read_bytes() == (done / "candidates.csv").read_bytes()


def test_a_channel_is_a_pure_function(sky):
    observation = read_list(str(sky), n_coarse=2)[0]
    texts = {
        to_text(
            search_channel(
                observation, observation.channels[1], standins.score, SETTINGS, width=32, n_recover=3
            )
        )
        for _ in range(2)
    }
    (text,) = texts
    result = json.loads(text)
    assert result["channel"] == 1
    assert len(result["recovered"]) == 3
    assert result["hits"]
    assert any(row["score"] > 0.5 for row in result["recovered"])


@pytest.mark.parametrize(("changes", "message"), [
    ({"panel_shape": [273, 32]}, "trained on panels of 273 spectra"), ({"df_hz": 1.4}, "df_hz: .* was trained at 1.4"),
    ({"dt_s": None}, "dt_s"), ({"conditioning": None}, "conditioning: .*data inject"), ({"storage": "seed"}, "PNG"),
    ({"windows": {"version": 0}}, "windows"),
])  # fmt: skip
def test_a_run_of_another_product_is_refused(sky, tmp_path, changes, message, networks):
    other = standins.trained_run(tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match=message):
        search(str(other), read_list(str(sky), n_coarse=2), str(tmp_path / "out"), SETTINGS)
    assert networks == []
    assert not (tmp_path / "out").exists()


def test_changed_weights_are_refused(sky, tmp_path):
    other = standins.trained_run(tmp_path / "run")
    (other / "fold-1" / "weights.h5").write_bytes(b"others")
    with pytest.raises(RunFolderError, match=r"fold-1/weights.h5 is missing or has changed"):
        search(str(other), read_list(str(sky), n_coarse=2), str(tmp_path / "out"), SETTINGS)


def test_a_threshold_that_the_needles_of_the_run_do_not_reach_is_said(sky, run, tmp_path, console):
    oof = pd.concat(pd.read_csv(path) for path in sorted(Path(run).glob("fold-*/oof.csv")))
    needles = oof["pred_no_tta"][oof["target"] == 1]
    observations = read_list(str(sky), n_coarse=2)
    for name, level in (("low", needles.quantile(0.3)), ("high", needles.quantile(0.7))):
        search(run, observations, tmp_path / name, SearchSettings(threshold=level), console=console)
        share = f"of the run's own needles, {(needles >= level).mean():.0%} have"
        assert (share in console.file.getvalue()) == (name == "high")


def test_bins_that_the_run_was_not_trained_on_are_said(sky, tmp_path, console):
    run = standins.trained_run(tmp_path / "run", bins=[1])
    search(run, read_list(str(sky), n_coarse=2), tmp_path / "out", SearchSettings(), console=console)
    assert "bins: the run was trained with --bins 1, and has not seen 8" in console.file.getvalue()


def test_damaged_data_are_flagged_with_file_and_channel(sky, run, tmp_path, done):
    shutil.copytree(sky.parent, tmp_path / "sky")
    name = sorted((tmp_path / "sky").glob("*.h5"))[2]
    with h5py.File(name, "r+") as file:
        file["data"][:, :, :3000] = np.nan
        file["data"][:, :, 4096:6144] = 0
    search(
        run, read_list(str(tmp_path / "sky" / "observation.csv"), n_coarse=2), str(tmp_path / "out"), SETTINGS
    )
    damage = json.loads((tmp_path / "out" / "search.json").read_text())["damage"]
    assert {item["file"] for item in damage} == {str(name)}
    assert any("not finite" in item["what"] for item in damage)
    assert any("without noise" in item["what"] for item in damage)
    # The other coarse channel is not touched by any of this.
    other = [path.read_bytes() for path in sorted((done / "channels").glob("*-00000-*"))]
    assert other == [path.read_bytes() for path in sorted((tmp_path / "out" / "channels").glob("*-00000-*"))]


def test_results(sky, done):
    summary = json.loads((done / "search.json").read_text())
    assert summary["threshold"]["value"] == 0.95
    assert summary["channels"] == 2
    assert sum(row["injected"] for row in summary["recall"]) == 6
    assert summary["run"]["weights_sha256"]
    assert summary["observations"][0]["files"][0]["size_bytes"] > 0
    found = pd.read_csv(done / "candidates.csv")
    dats = sorted(done.glob("*.dat"))
    assert len(dats) == 3
    for path in dats:
        lines = path.read_text().splitlines()
        rows = [line.split() for line in lines if not line.startswith("#")]
        assert len(rows) == len(found)
        assert "MJD" in path.read_text()
        np.testing.assert_allclose([float(row[1]) for row in rows], found["drift_hz_s"], atol=1e-6)
    first = [line.split() for line in dats[0].read_text().splitlines() if not line.startswith("#")]
    np.testing.assert_allclose([float(row[3]) for row in first], found["f_start_mhz"], atol=2e-6)
    index = np.array([int(row[5]) for row in first])
    header = read_list(str(sky))[0].headers[0]
    np.testing.assert_allclose(header.fch1_mhz + index * header.foff_mhz, found["f_start_mhz"], atol=2e-6)


def test_command_line(sky, run, tmp_path, capsys, networks):
    given = [run, "--out", str(tmp_path / "out"), "--coarse-channels", "2", "--runner", "local"]
    assert command.entry([*given]) == 2
    assert "either --cadence" in capsys.readouterr().err
    assert command.entry([*given, "--cadence", str(sky.parent / "*.h5"), "--threshold", "0.6"]) == 0
    assert "candidates.csv" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "search.json").read_text())
    assert summary["threshold"] == {"value": 0.6, "how": "given (--threshold)"}
    assert command.entry([*given, "--list", "nowhere.csv"]) == 2
    assert command.entry([*given, "--list", str(sky), "--threshold", "0.5", "--false-per-ghz", "3"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 2
    assert "give one of them" in error[1]


def test_a_truncated_file_is_named_before_anything_is_searched(sky, run, tmp_path, networks):
    shutil.copytree(sky.parent, tmp_path / "sky")
    name = sorted((tmp_path / "sky").glob("*.h5"))[4]
    name.write_bytes(name.read_bytes()[: name.stat().st_size // 2])
    with pytest.raises(DataError, match=name.name):
        read_list(str(tmp_path / "sky" / "observation.csv"))
    assert networks == []


def test_a_needle_that_crosses_from_one_coarse_channel_to_the_next_is_one_candidate(sky, run, tmp_path):
    observation = read_list(str(sky), n_coarse=2)[0]
    border, span_s = observation.channels[1].low, observation.last_s - observation.first_s
    shutil.copytree(sky.parent, tmp_path / "sky")
    paths = sorted((tmp_path / "sky").glob("*.h5"))
    for panel in (0, 2, 4):
        with h5py.File(paths[panel], "r+") as file:
            data = file["data"][...]
            for row, time_s in enumerate(observation.time_s[panel]):
                # The file counts downwards.
                at = SKY.n_channels - 1 - round(border + 3 + 160 * time_s / span_s)
                data[row, 0, at - 1 : at + 2] *= 2
            file["data"][...] = data
    search(
        run, read_list(str(tmp_path / "sky" / "observation.csv"), n_coarse=2), str(tmp_path / "out"), SETTINGS
    )
    found = pd.read_csv(tmp_path / "out" / "candidates.csv")
    middle = (found["f_start_mhz"] + found["f_end_mhz"]) / 2
    near = found[(middle - observation.mhz(border + 3)).abs() * 1e6 < 20]
    assert len(near) == 1
    assert near["drift_hz_s"].iloc[0] == pytest.approx(160 * 2.794 / span_s, abs=0.01)
    assert near["n_windows"].iloc[0] >= 2  # both channels found it
