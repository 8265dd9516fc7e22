"""Synthesis: exact counts, the same bytes however it is run, and setigen's own physics."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from data_sets import SMALL
from pydantic import ValidationError
from scipy.stats import chi2, kstest

from setibl_ray.core.errors import DataError
from setibl_ray.seti.cadence import OFF, ON
from setibl_ray.seti.formats.shards import iter_records, read_index
from setibl_ray.seti.making import synth
from setibl_ray.seti.making.recipe import HARD_KINDS, HAYSTACK, NEEDLE_KINDS, Recipe

FULL = Recipe(train=10, shards=1)


def rng():
    return np.random.default_rng(0)


def test_counts_are_exact_and_every_shard_is_stratified():
    recipe = Recipe(train=1003, test=57, shards=20, test_shards=10, positive=0.3, hard=0.4)
    for split, n, n_shards in (("train", 1003, 20), ("test", 57, 10)):
        shards = [synth.plan(recipe, split, shard) for shard in range(n_shards)]
        cadences = [planned for shard in shards for planned in shard]
        assert [planned.number for planned in cadences] == list(range(n))
        kinds = [planned.kind for planned in cadences]
        needles = sum(kind in NEEDLE_KINDS for kind in kinds)
        assert needles == int(0.3 * n + 0.5)
        assert sum(kind in HARD_KINDS for kind in kinds) == int(0.4 * (n - needles) + 0.5)
        for shard in shards:
            assert abs(sum(planned.kind in NEEDLE_KINDS for planned in shard) - 0.3 * len(shard)) <= 1
        groups = [{planned.observation for planned in shard} for shard in shards]
        assert len(set.union(*groups)) == sum(map(len, groups)), "an observation lies in two shards"


def test_train_and_test_share_no_observation_and_no_id(small_set):
    index = read_index(small_set)
    assert not set(index.train["group"]) & set(index.test["group"])
    assert index.train["image_id"].str.fullmatch("[0-9a-f]{15}").all()


def test_same_bytes_from_one_process_or_two_and_from_any_shard(small_set, tmp_path):
    other = synth.write_synthetic(SMALL, tmp_path / "two", n_processes=2)
    for path in small_set.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name
    record = synth.synthesise(SMALL, synth.plan(SMALL, "train", 2)[3])
    stored = list(iter_records(read_index(small_set).shards[2]))[3]
    np.testing.assert_array_equal(record.panels, stored.panels)
    assert record.image_id == stored.image_id


def test_another_seed_gives_other_cadences():
    other = SMALL.model_copy(update={"seed": 8})
    records = [synth.synthesise(recipe, synth.Planned("train", 0, HAYSTACK, 0)) for recipe in (SMALL, other)]
    assert records[0].image_id != records[1].image_id
    assert (records[0].panels != records[1].panels).mean() > 0.5


def test_noise_is_setigens_chi_squared():
    samples = synth.noise(rng(), (6, 273, 256), FULL.chi2_df, 1000.0)
    assert samples.dtype == np.float32
    assert kstest(samples.ravel() / 1000 * 12, chi2(12).cdf).pvalue > 0.01
    tail = np.sort(samples.ravel() / 1000 * 12)[-2000:]  # where the finer quantiles take over
    expected = chi2(12).ppf(1 - (np.arange(2000)[::-1] + 0.5) / samples.size)
    np.testing.assert_allclose(tail[:-20], expected[:-20], rtol=0.03)


def test_needles_show_where_their_kind_says():
    time_s = synth.observe(FULL, "train", 0).time_s
    where = {kind: set(ON) for kind in NEEDLE_KINDS} | {
        "hard-all-panels": set(range(6)),
        "hard-off-only": set(OFF),
        "hard-uneven": set(range(6)),
        "hard-intermittent": set(range(6)),
    }
    generator = rng()
    for kind, panels in where.items():
        for _ in range(20):
            track = synth.draw_signal(generator, kind, 50.0, time_s, 256)
            shown = set(np.flatnonzero(track.level.max(axis=1) > 0))
            if kind == "needle-partial":
                assert shown < panels
            elif kind == "hard-intermittent":
                assert shown & set(ON)
                assert shown & set(OFF)
            else:
                assert shown == panels
            inside = (track.centre >= 0) & (track.centre <= 255)
            assert inside[sorted(shown)].mean() >= synth.IN_BAND
            if kind == "hard-uneven":
                peaks = track.level.max(axis=1)
                assert peaks.max() > 50 - 1e-6
                assert synth.UNEVEN[0] * peaks.max() <= peaks.min() < 0.9 * peaks.max()
            else:
                assert track.level[sorted(shown)].mean() == pytest.approx(50, rel=0.2)


def test_tracks_go_on_through_the_slews():
    time_s = synth.observe(FULL, "train", 0).time_s
    slews = time_s[1:, 0] - (time_s[:-1, -1] + FULL.dt_s)
    assert ((slews >= synth.SLEW_S[0]) & (slews <= synth.SLEW_S[1])).all()
    centre = synth._path(rng(), "needle-constant", time_s, 256)
    np.testing.assert_allclose(np.polyval(np.polyfit(time_s.ravel(), centre.ravel(), 1), time_s), centre)


def test_paint_equals_its_definition_at_any_width():
    for fwhm in (2.0, 30.0, 80.0):
        centre = np.linspace(-40, 300, 6 * 20).reshape(6, 20)
        level = np.broadcast_to(np.arange(6.0)[:, None], (6, 20))
        cadence = np.zeros((6, 20, 256), np.float32)
        synth.paint(cadence, synth.Track(centre, level, fwhm), 2.0)
        away = np.arange(256) - centre[..., None]
        expected = 2 * level[..., None] * np.exp(-4 * np.log(2) * (away / fwhm) ** 2)
        np.testing.assert_allclose(cadence, expected, atol=10 * 0.0112)  # the profile's value at three sigmas


def test_a_drift_within_a_row_is_smeared_over_it_and_keeps_its_energy():
    centre = np.full((6, 16), 100.3)
    smear = np.full((6, 16), 7.0)
    cadence = np.zeros((6, 16, 256), np.float32)
    synth.paint(cadence, synth.Track(centre, np.ones((6, 16)), 2.0, smear), 1.0)
    steps = np.linspace(-3.5, 3.5, 4001)[:, None]
    expected = np.exp(-4 * np.log(2) * ((np.arange(256) - 100.3 - steps) / 2) ** 2).mean(axis=0)
    np.testing.assert_allclose(cadence[2, 5], expected, atol=1e-3)


def test_kinds_left_out_are_not_made_and_look_alikes_have_their_own_snr():
    recipe = Recipe(
        train=200, shards=1, without="needle-sine,hard-one-on", snr=(5, 10), hard_snr=(50, 90), hard=0.5
    )
    planned = synth.plan(recipe, "train", 0)
    assert {p.kind for p in planned} == {*NEEDLE_KINDS, *HARD_KINDS, HAYSTACK} - {
        "needle-sine",
        "hard-one-on",
    }
    for kind, low, high in (("needle-pulsed", 5, 10), ("hard-uneven", 50, 90)):
        record = synth.synthesise(recipe, next(p for p in planned if p.kind == kind))
        assert low <= record.snr <= high


def test_level_and_track_are_setigens():
    stg = pytest.importorskip("setigen")
    n_time, n_freq = FULL.shape
    frame = stg.Frame(shape=FULL.shape, df=FULL.df_hz, dt=FULL.dt_s, seed=1, ascending=True)
    assert frame.chi2_df == FULL.chi2_df
    stock = frame.add_noise(1000.0)
    ours = synth.noise(rng(), FULL.shape, FULL.chi2_df, 1000.0)
    assert ours.mean() == pytest.approx(stock.mean(), rel=0.01)
    assert ours.std() == pytest.approx(stock.std(), rel=0.02)
    sigma = 1000.0 * np.sqrt(2 / FULL.chi2_df)
    unit = sigma / np.sqrt(n_time)
    # setigen estimates sigma after clipping outliers at 3 sigma, so a little low.
    assert 40 * unit == pytest.approx(frame.get_intensity(snr=40), rel=0.06)

    drift, start, fwhm = 0.3, 100, 3.0
    frame.zero_data()
    frame.add_signal(
        stg.constant_path(f_start=frame.get_frequency(start), drift_rate=drift),
        stg.constant_t_profile(level=40 * unit),
        stg.gaussian_f_profile(width=fwhm * FULL.df_hz),
    )
    times = np.tile(frame.ts, (6, 1))
    centre = start + drift * times / FULL.df_hz
    cadence = np.zeros((6, n_time, n_freq), np.float32)
    synth.paint(cadence, synth.Track(centre, np.full(times.shape, 40.0), fwhm), unit)
    np.testing.assert_allclose(cadence[0], frame.data, atol=0.012 * 40 * unit)


def test_noise_means_are_setigens_and_setigen_is_not_imported():
    code = (
        "import sys; from setibl_ray.seti.making import synth; print(len(synth._noise_means()));"
        "print(*[m for m in ('setigen', 'tensorflow', 'ray') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["126500"]


def test_an_existing_set_is_kept_and_anything_else_refused(small_set, tmp_path):
    before = (small_set / "dataset.json").stat().st_mtime_ns
    assert synth.write_synthetic(SMALL, small_set) == small_set
    assert (small_set / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="holds something else"):
        synth.write_synthetic(SMALL.model_copy(update={"seed": 1}), small_set)
    (tmp_path / "empty").mkdir()
    synth.write_synthetic(SMALL, tmp_path / "empty", n_processes=1)
    assert len(read_index(tmp_path / "empty").train) == 48


def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(synth, "quantise", lambda cadence: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synth.write_synthetic(SMALL, tmp_path / "set", n_processes=1)
    assert list(tmp_path.iterdir()) == []


def test_demo_dataset_is_made_once_under_the_given_cache(tmp_path, monkeypatch):
    first = synth.demo_dataset(tmp_path, SMALL, n_processes=1)
    first.rename(first.with_name(f".{first.name}.partial-killed"))
    assert synth.demo_dataset(tmp_path, SMALL, n_processes=1) == first
    assert not list(tmp_path.glob(".*partial*"))
    monkeypatch.setattr(synth, "write_synthetic", lambda *args, **kw: pytest.fail("made twice"))
    assert synth.demo_dataset(tmp_path, SMALL) == first
    monkeypatch.setenv("SETIBL_RAY_CACHE", str(tmp_path))
    assert synth.demo_dataset(recipe=SMALL) == first


def test_concurrent_demo_calls_make_one_set(tmp_path):
    code = (
        "import pickle, sys; from setibl_ray.seti.making.synth import demo_dataset;"
        f"print(demo_dataset({str(tmp_path)!r}, pickle.loads({pickle.dumps(SMALL)!r}), n_processes=1))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    paths = {run.communicate(timeout=120)[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(paths) == 1
    assert len([name for name in os.listdir(tmp_path) if not name.endswith(".lock")]) == 1


@pytest.mark.parametrize(("changes", "message"), [
    ({"snr": (50, 30)}, "the lower first"),
    ({"hard_snr": (50, 30)}, "hard-snr: expected the lower first"),
    ({"without": "needle-sin"}, "without: expected one of needle-constant"),
    ({"without": HARD_KINDS}, "without: at least one"),
    ({"train": 3}, "do not fill 4 shards"),
    ({"dt_s": 0.1}, "must be above 0.5"),
    ({"positive": 1.2}, "less than or equal to 1"),
    ({"shape": "8x8"}, "16 bins each way"),
    ({"shape": "8by8"}, "shape"),
])  # fmt: skip
def test_impossible_recipes_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Recipe(**{**SMALL.model_dump(), **changes})
