"""Blending: what is planted must come out, and nothing may look better than it is."""

import json

import numpy as np
import pandas as pd
import pytest
import runs as fake
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from setibl_ray import blend
from setibl_ray.core.errors import RunFolderError
from setibl_ray.seti.evaluation import blending, metrics, postprocess
from setibl_ray.seti.evaluation.finished import load_run


def complementary(n, seed=0):
    """Target and two scores, each blind to the needles that the other sees."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 2, n)
    seen = rng.integers(0, 2, n)
    a = rng.random(n) * 0.6 + 0.4 * target * (seen == 0)
    b = rng.random(n) * 0.6 + 0.4 * target * (seen == 1)
    return target, a, b


def test_complements_beat_both_on_rows_that_chose_no_weights():
    target, a, b = complementary(4000)
    chosen, held = np.arange(4000) < 2000, np.arange(4000) >= 2000
    preds = np.column_stack([a, b])
    weights = blending.simplex_weights(target[chosen], preds[chosen])
    blended = metrics.auc(target[held], preds[held] @ weights)
    assert blended > max(metrics.auc(target[held], own[held]) for own in (a, b)) + 0.05
    assert weights == pytest.approx([0.5, 0.5], abs=0.12)


@pytest.mark.parametrize("seed", range(8))
def test_noise_gets_next_to_no_weight(seed):
    target, a, b = complementary(3000, seed)
    noise = np.random.default_rng(seed + 100).random(3000)
    assert blending.simplex_weights(target, np.column_stack([a, noise]))[1] < 0.02
    assert blending.simplex_weights(target, np.column_stack([a, b, noise]))[2] < 0.02


def test_equals_share_alike():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 2000)
    preds = np.column_stack([rng.normal(0.8 * target, 1) for _ in range(5)])
    assert blending.simplex_weights(target, preds).min() > 0.1


@settings(max_examples=40)
@given(st.integers(0, 2**31))
def test_difference_of_aucs_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    target = np.r_[0, 0, 1, 1, rng.integers(0, 2, 40)]
    first, second = rng.integers(0, 9, (2, 44))
    expected = roc_auc_score(target, first) - roc_auc_score(target, second)
    assert blending.auc_difference(target, first, second)[0] == pytest.approx(expected)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12))
def test_its_standard_error_is_delongs_by_the_definition(seed, n_needles, n_haystacks):
    rng = np.random.default_rng(seed)
    target = rng.permutation(np.repeat([1, 0], [n_needles, n_haystacks]))
    scores = rng.integers(0, 5, (2, len(target)))

    def wins(pred):  # (needles, haystacks): 1 where the needle is above, half where they tie
        gap = pred[target == 1][:, None] - pred[target == 0][None, :]
        return (gap > 0) + 0.5 * (gap == 0)

    gap = wins(scores[0]) - wins(scores[1])
    variance = 0.0
    for means in (gap.mean(axis=1), gap.mean(axis=0)):
        if len(means) > 1:
            variance += sum((means - gap.mean()) ** 2) / (len(means) - 1) / len(means)
    difference, error = blending.auc_difference(target, *scores)
    assert difference == pytest.approx(gap.mean())
    assert error == pytest.approx(np.sqrt(variance))


def test_its_standard_error_is_that_of_resampling():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 1500)
    first, second = rng.normal(target, 1), rng.normal(0.5 * target, 1)
    draws = []
    for _ in range(400):
        rows = rng.integers(0, 1500, 1500)
        draws.append(metrics.auc(target[rows], first[rows]) - metrics.auc(target[rows], second[rows]))
    assert blending.auc_difference(target, first, second)[1] == pytest.approx(np.std(draws), rel=0.15)


def test_weights_reach_what_a_fine_grid_reaches():
    rng = np.random.default_rng(3)
    target = rng.integers(0, 2, 800)
    preds = np.column_stack([rng.normal(k * target, 1) for k in (0.6, 0.8, 1.0)])
    weights = blending.simplex_weights(target, preds)
    steps = np.linspace(0, 1, 21)
    grid = [(x, y, 1 - x - y) for x in steps for y in steps if x + y <= 1]
    best = max(metrics.auc(target, preds @ np.array(point)) for point in grid)
    assert metrics.auc(target, preds @ weights) >= best - 1e-3


@settings(max_examples=30)
@given(st.integers(2, 4), st.integers(0, 2**31))
def test_weights_lie_on_the_simplex_and_lose_to_no_run(n_runs, seed):
    rng = np.random.default_rng(seed)
    target = np.r_[0, 1, rng.integers(0, 2, 60)]
    preds = rng.integers(0, 8, (62, n_runs)) / 8
    weights = blending.simplex_weights(target, preds)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    assert metrics.auc(target, preds @ weights) >= max(metrics.auc(target, own) for own in preds.T) - 1e-9


def test_nested_score_of_noise_is_chance_while_the_naive_one_flatters():
    rng = np.random.default_rng(0)
    target, fold = rng.integers(0, 2, 600), np.arange(600) % 5
    preds = rng.random((600, 8))
    honest = blending.nested(target, preds, fold)
    naive = metrics.auc(target, preds @ blending.simplex_weights(target, preds))
    assert naive > honest.auc + 0.02
    assert abs(honest.auc - 0.5) < 0.06


def test_nested_predictions_equal_a_loop_over_folds():
    target, a, b = complementary(600)
    fold, preds = np.arange(600) % 3, np.column_stack([a, b])
    honest = blending.nested(target, preds, fold)
    scores = []
    for k in range(3):
        weights = blending.simplex_weights(target[fold != k], preds[fold != k])
        assert honest.pred[fold == k] == pytest.approx(preds[fold == k] @ weights)
        scores.append(roc_auc_score(target[fold == k], preds[fold == k] @ weights))
    assert honest.auc == pytest.approx(np.mean(scores))


def test_a_fold_of_one_class_has_no_part_in_the_mean():
    target, fold = np.array([0, 1, 1, 1, 0, 0]), np.array([0, 0, 1, 1, 2, 2])
    assert blending.mean_fold_auc(target, np.arange(6.0), fold) == 1.0
    assert np.isnan(blending.mean_fold_auc(target[2:4], np.arange(2.0), fold[2:4]))


def test_nested_weights_ignore_their_own_fold():
    target, a, b = complementary(1000)
    fold, preds = np.arange(1000) % 4, np.column_stack([a, b])
    before = blending.nested(target, preds, fold)
    spoiled = np.where(fold == 2, 1 - target, target)
    after = blending.nested(spoiled, preds, fold)
    assert (before.weights[2] == after.weights[2]).all()


def test_ranks_share_ties():
    assert blending.ranks(np.array([[0.2], [0.2], [0.9]]))[:, 0] == pytest.approx([0.5, 0.5, 1.0])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    base = tmp_path_factory.mktemp("pair")
    rows = fake.records(1000, 5, np.random.default_rng(0))
    target, a, b = complementary(1000)
    rows["target"] = target
    return base, [
        str(fake.write_run(base / name, rows=rows, pred=own, epochs=2)) for name, own in (("a", a), ("b", b))
    ]


def test_command_blends_and_writes_what_it_says(pair, tmp_path, capsys):
    _, paths = pair
    assert blend.entry([*paths, "--out", str(tmp_path / "out"), "--calibrate", "platt"]) == 0
    said = json.loads((tmp_path / "out/blend.json").read_text())
    assert said["method"] == "weights"
    assert said["gain_over_best_run"]["interval"][0] > 0.03
    assert said["calibration"]["ece_after"] < said["calibration"]["ece_before"]
    oof = pd.read_csv(tmp_path / "out/oof.csv", dtype={"image_id": str})
    assert oof["image_id"].tolist() == load_run(paths[0]).oof["image_id"].tolist()
    submission = pd.read_csv(tmp_path / "out/submission.csv", dtype={"id": str})
    assert submission["id"].is_monotonic_increasing
    assert submission["target"].between(0, 1).all()
    assert "out-of-fold AUC" in capsys.readouterr().out


def test_test_predictions_are_the_weighted_mean(pair):
    _, paths = pair
    runs = [load_run(path) for path in paths]
    _, test, report = blend.blend_runs(runs, "weights")
    expected = sum(
        entry["weight"] * run.submission["pred"].to_numpy() for entry, run in zip(report["runs"], runs)
    )
    assert test["pred"].to_numpy() == pytest.approx(expected)
    assert sum(entry["weight"] for entry in report["runs"]) == pytest.approx(1)


def test_rank_mean_ignores_scales(pair, tmp_path):
    base, paths = pair
    run = load_run(paths[1])
    rows = run.oof[["image_id", "target", "group", "snr", "kind", "fold"]]
    squashed = fake.write_run(base / "squashed", rows=rows, pred=run.oof["pred"].to_numpy() ** 9, epochs=2)
    first, *_ = blend.blend_runs([load_run(paths[0]), run], "rank-mean")
    second, *_ = blend.blend_runs([load_run(paths[0]), load_run(str(squashed))], "rank-mean")
    assert first["pred"].to_numpy() == pytest.approx(second["pred"].to_numpy())


def test_runs_over_other_rows_are_refused(pair, tmp_path, capsys):
    _, paths = pair
    other = fake.write_run(tmp_path / "other", n_train=1000, seed=9, epochs=2)
    shorter = fake.write_run(tmp_path / "shorter", n_train=996, epochs=2)
    assert blend.entry([paths[0], str(other), "--out", str(tmp_path / "out")]) == 2
    assert "rows differ" in capsys.readouterr().err
    assert blend.entry([paths[0], str(shorter), "--out", str(tmp_path / "out")]) == 2
    assert "has 996" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert blend.entry([paths[0], "--out", paths[1]]) == 2
    assert "holds a run" in capsys.readouterr().err


def test_one_class_outside_a_fold_is_refused(tmp_path):
    rows = fake.records(100, 2, np.random.default_rng(0))
    rows["target"] = (rows["fold"] == 0).astype(int)
    path = fake.write_run(tmp_path / "run", rows=rows, folds=2, epochs=2)
    with pytest.raises(RunFolderError, match="without fold 0 one class is left"):
        blend.blend_runs([load_run(str(path))])


def test_command_post_processes_out_of_fold_and_test_alike(pair, tmp_path, capsys):
    _, paths = pair
    run = load_run(paths[0])
    groups = tmp_path / "groups.csv"
    run.submission[["image_id"]].assign(group="all").to_csv(groups, index=False)
    arguments = [paths[0], "--out", str(tmp_path / "out"), "--postprocess", "group-mean"]
    assert blend.entry([*arguments, "--groups", str(groups), "--calibrate", "platt"]) == 0
    said = json.loads((tmp_path / "out/blend.json").read_text())
    table = run.oof[["image_id", "target", "pred", "fold", "group"]]
    test = run.submission.assign(group="all")
    same = postprocess.finish(table, test, postprocess="group-mean", calibrate="platt")
    assert {name: said[name] for name in same.report} == same.report
    assert pd.read_csv(tmp_path / "out/oof.csv")["pred"].to_numpy() == pytest.approx(same.oof)
    assert pd.read_csv(tmp_path / "out/submission.csv")["target"].to_numpy() == pytest.approx(same.test)
    out = capsys.readouterr().out
    assert "group-mean" in out
    assert "platt calibration" in out


def test_groups_of_a_file_go_before_those_of_the_shards(pair, tmp_path):
    _, paths = pair
    run = load_run(paths[0])
    named = pd.DataFrame(
        {"image_id": [run.oof["image_id"][0], run.submission["image_id"][1]], "group": "new"}
    )
    named.to_csv(tmp_path / "groups.csv", index=False)
    table, test = blend.with_groups(run.oof, run.submission, run, str(tmp_path / "groups.csv"))
    assert table["group"].tolist() == ["new", *run.oof["group"][1:]]
    assert test["group"].tolist() == ["", "new", *[""] * (len(test) - 2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("", "not a CSV"),
        ("image_id,sky\na,b\n", "no column 'group' among image_id, sky"),
        ("image_id,group\na,b\na,c\n", "image_id a appears twice"),
    ],
)
def test_a_file_of_groups_that_does_not_work_is_named(pair, tmp_path, capsys, content, message):
    _, paths = pair
    file = tmp_path / "groups.csv"
    if content is not None:
        file.write_text(content)
    arguments = [
        paths[0],
        "--out",
        str(tmp_path / "out"),
        "--postprocess",
        "group-mean",
        "--groups",
        str(file),
    ]
    assert blend.entry(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
