"""Baselines and probes: every leak that is planted is reported, and clean data are not accused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import runs as fake

from setibl_ray import evaluate
from setibl_ray.seti.evaluation import baselines, metrics, probes
from setibl_ray.seti.evaluation.finished import load_run
from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic

SHAPE = (32, 96)
N = 240


class Planted:
    """Panels held in memory, by image id."""

    def __init__(self, **splits):
        self._splits = {split: dict(zip(ids, panels)) for split, (ids, panels) in splits.items()}

    def read(self, split, image_ids):
        return np.stack([self._splits[split][image_id] for image_id in image_ids])


@pytest.fixture(scope="module")
def clean():
    """Rows with groups, training and test panels without any leak."""
    rng = np.random.default_rng(0)
    rows = fake.records(N, 5, rng)
    train = fake.cadences(N, rng, rows["target"].to_numpy(), SHAPE)
    test = fake.cadences(N // 2, rng, rng.integers(0, 2, N // 2), SHAPE)
    return SimpleNamespace(rows=rows, train=train, test=test)


def examine(rows, train, test, tmp_path):
    path = fake.write_run(tmp_path / "run", rows=rows, n_test=len(test), epochs=2)
    run = load_run(str(path))
    pixels = Planted(train=(rows["image_id"], train), test=(run.submission["image_id"], test))
    found = probes.examine(run, pixels)
    return found, {check["name"]: check for check in found["trust"]}


DUPLICATES = "Near-duplicate backgrounds across folds"
STATISTICS = "Statistics that give the target away"
GROUPS = "Random against grouped folds"
SHIFT = "Train against test"


def test_clean_data_are_not_accused(clean, tmp_path):
    found, checks = examine(clean.rows, clean.train, clean.test, tmp_path)
    assert {checks[name]["state"] for name in (DUPLICATES, GROUPS, SHIFT)} == {"ok"}
    assert checks[STATISTICS]["state"] != "problem"
    assert checks[DUPLICATES]["highest_cosine"] < 0.7
    detector = found["baselines"][0]
    assert detector["auc"] > 0.9  # bright straight lines: the classical search finds them
    json.dumps(found, allow_nan=False)


def duplicates(rows, train):
    pairs = probes.near_duplicates(baselines.background(train), rows["fold"].to_numpy())
    return probes.duplicates(rows, pairs)


def subject(rows, train, test):
    """What `examine` measures before it checks anything."""
    on = [
        baselines.Measured(baselines.statistics(part), np.zeros(len(part)), np.zeros((len(part), 1)))
        for part in (train, test)
    ]
    return probes.Subject(rows, *on, n_panels=6)


def test_duplicated_backgrounds_across_folds_are_reported(clean):
    train = clean.train.copy()
    # Row 4 lies in another fold than row 0; its background is row 0's, with noise of one level on top.
    assert clean.rows["fold"][0] != clean.rows["fold"][4]
    noise = np.random.default_rng(1).integers(-1, 2, train[0].shape)
    train[4] = np.clip(train[0].astype(int) + noise, 0, 255)
    check = duplicates(clean.rows, train)
    assert check["state"] == "problem"
    assert check["n_rows"] == 2
    assert set(check["example"]) == set(clean.rows["image_id"][[0, 4]])


def test_duplicates_inside_a_fold_are_no_leak(clean):
    train = clean.train.copy()
    assert clean.rows["fold"][0] == clean.rows["fold"][1]
    train[1] = train[0]
    assert duplicates(clean.rows, train)["state"] == "ok"


def test_a_statistic_that_tells_the_target_is_reported_by_name(clean):
    train = clean.train.copy()
    needles = clean.rows["target"].to_numpy() == 1
    train[needles, :, :, 3] = np.clip(train[needles, :, :, 3].astype(int) + 4, 0, 255)
    rows = clean.rows.assign(pred=0.5)
    check = probes.gives_away(rows, subject(rows, train, clean.test), np.full(N, 0.5), 0)
    assert check["state"] == "problem"
    assert "panel 3 (OFF)" in check["strongest"]


def test_a_run_that_knows_no_more_than_statistics_is_looked_at(clean):
    target = clean.rows["target"].to_numpy()
    known = np.clip(0.4 * target + 0.6 * np.random.default_rng(0).random(N), 0, 1)
    for pred, state in ((known, "look"), (target * 0.9, "ok")):
        rows = clean.rows.assign(pred=pred)
        check = probes.gives_away(rows, subject(rows, clean.train, clean.test), known, 0)
        assert check["state"] == state


def test_folds_that_tear_groups_apart_are_reported_when_it_helps(clean):
    rng = np.random.default_rng(2)
    target = np.repeat(rng.integers(0, 2, N // 4), 4)  # a group has one target …
    train = np.repeat(fake.cadences(N // 4, rng, np.zeros(N // 4), SHAPE), 4, axis=0)  # … and one background
    train = np.clip(train.astype(int) + rng.integers(-1, 2, train.shape), 0, 255).astype(np.uint8)
    background = baselines.background(train)
    torn = clean.rows.assign(target=target, fold=np.arange(N) % 5)
    check = probes.split_groups(torn, background, 0)
    assert check["state"] == "problem"
    assert check["interval"][0] > 0.2
    assert duplicates(torn, train)["state"] == "problem"
    whole = clean.rows.assign(target=target)
    assert probes.split_groups(whole, background, 0)["state"] == duplicates(whole, train)["state"] == "ok"
    assert probes.split_groups(whole.assign(group=""), background, 0) is None


def test_a_test_set_of_other_data_is_reported(clean):
    check = probes.train_against_test(
        subject(clean.rows, clean.train, (clean.test * 0.8).astype(np.uint8)), 0
    )
    assert check["state"] == "problem"


def test_statistics_equal_numpy():
    rng = np.random.default_rng(0)
    panels = rng.gamma(4, 12, (3, 20, 30, 6)).clip(0, 255).astype(np.uint8)
    got = baselines.statistics(panels).reshape(3, 6, -1)
    values = panels.astype(float)
    named = dict(zip(baselines.STATISTICS, np.moveaxis(got, 2, 0)))
    centred = values - values.mean(axis=(1, 2), keepdims=True)
    deviation = values.std(axis=(1, 2))
    assert named["mean"] == pytest.approx(values.mean(axis=(1, 2)), rel=1e-5)
    assert named["deviation"] == pytest.approx(deviation, rel=1e-5)
    assert named["skewness"] == pytest.approx((centred**3).mean(axis=(1, 2)) / deviation**3, rel=1e-4)
    assert named["kurtosis"] == pytest.approx((centred**4).mean(axis=(1, 2)) / deviation**4, rel=1e-4)
    assert (named["maximum"] == values.max(axis=(1, 2))).all()
    for name, level in (("percentile 1", 1), ("median", 50), ("percentile 99", 99)):
        flat = values.transpose(0, 3, 1, 2).reshape(3, 6, -1)
        assert (named[name] == np.percentile(flat, level, axis=2, method="inverted_cdf")).all()
    assert baselines.statistic_name(9 * 3, 6) == "mean of panel 3 (OFF)"
    assert baselines.statistic_name(9, 3) == "mean of panel 2 (ON)"


def test_the_detector_takes_on_but_not_what_is_in_off_too():
    plain, needle = (
        fake.cadences(20, np.random.default_rng(0), np.full(20, label), SHAPE) for label in (0, 1)
    )
    everywhere = plain.copy()
    everywhere[:, :, 40] = 255
    one_burst = plain.copy()
    one_burst[:, :, 40, 0] = 255
    shown = {"plain": plain, "needle": needle, "everywhere": everywhere, "one burst": one_burst}
    found = {name: baselines.dedoppler(panels) for name, panels in shown.items()}
    assert found["needle"].min() > found["plain"].max()
    assert found["everywhere"].max() < found["needle"].min()
    assert found["one burst"].max() < found["needle"].min()
    assert baselines.dedoppler(needle[..., [0, 2, 4]]).shape == (20,)


def test_neighbours_and_pairs_equal_loops():
    rng = np.random.default_rng(0)
    background = rng.normal(size=(60, 20)).astype(np.float32)
    background[7] = background[3]
    background /= np.linalg.norm(background, axis=1, keepdims=True)
    fold = np.arange(60) % 3
    pairs = probes.near_duplicates(background, fold)
    expected = [
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if fold[i] != fold[j] and background[i] @ background[j] > probes.SAME_BACKGROUND
    ]
    assert list(zip(pairs.first, pairs.second)) == expected
    target = rng.integers(0, 2, 60)
    pred = probes.neighbours(background, target, fold)
    others = np.flatnonzero(fold != fold[5])
    nearest = others[np.argsort(-(background[others] @ background[5]))[: probes.NEIGHBOURS]]
    weight = np.clip(background[nearest] @ background[5], 1e-3, 1) ** 4
    assert pred[5] == pytest.approx((weight * target[nearest]).sum() / weight.sum(), rel=1e-5)


def test_command_reads_shards_and_writes_what_it_found(trained, capsys):
    assert evaluate.entry([str(trained), "--baselines", "--bootstrap", "20"]) == 0
    written = json.loads((trained / "metrics.json").read_text())
    assert len(written["baselines"]) == 2
    assert len(written["trust"]) == 6
    assert "de-Doppler" in capsys.readouterr().out
    states = {check["name"]: check["state"] for check in written["trust"]}
    assert states[DUPLICATES] == states[GROUPS] == "ok"
    assert metrics.plain(written) == written


def test_other_shards_are_refused(trained, tmp_path, capsys):
    write_synthetic(Recipe(train=20, shards=2, shape=(64, 64), seed=1), tmp_path / "data", n_processes=1)
    assert evaluate.entry([str(trained), "--baselines", "--data", str(tmp_path / "data")]) == 2
    assert "other shards" in capsys.readouterr().err
