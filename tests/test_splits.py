"""Which fold holds out which row: every way to divide rows, and what is refused."""

import tempfile

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from sklearn import model_selection
from sklearn.model_selection import KFold

from setibl_ray.core import splits
from setibl_ray.core.config import Config
from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.core.task import Rows
from setibl_ray.seti.config import parse
from setibl_ray.seti.task import check_classes


def rows(n_shards, per_shard, groups=7, **changes):
    n = n_shards * per_shard
    table = pd.DataFrame(
        {
            "id": [f"row-{i:03d}" for i in range(n)],
            "target": np.arange(n) % 2,
            "unit": np.repeat(np.arange(n_shards), per_shard),
            "group": [f"obs-{i % groups}" for i in range(n)],
        }
    ).assign(**changes)
    return Rows(table, table[["id"]].iloc[:0], "f", root="DIR", about={"n_units": n_shards})


def held_out(fold_of_row):
    return [np.flatnonzero(fold_of_row == fold).tolist() for fold in range(fold_of_row.max() + 1)]


def test_shards_are_split_as_the_original_notebook_splits_them():
    train = rows(20, 4)
    fold_of_row = splits.assign(parse({"seed": 42}), train)
    for fold, (_, held) in enumerate(KFold(5, shuffle=True, random_state=42).split(np.arange(20))):
        assert set(train.table["unit"][fold_of_row == fold]) == set(held)


@settings(max_examples=30)
@given(
    st.integers(2, 6),
    st.sampled_from(["rows", "units", "shards", "stratified", "group", "KFold", "GroupKFold"]),
    st.integers(0, 2**32 - 1),
)
def test_every_split_is_a_partition_with_both_classes(n_folds, split, seed):
    train = rows(12, 10)
    config = parse({"folds": n_folds, "split": split, "seed": seed})
    fold_of_row = splits.assign(config, train)
    assert fold_of_row.dtype == np.int16
    assert sorted(set(fold_of_row)) == list(range(n_folds))
    for fold in range(n_folds):
        assert set(train.target[fold_of_row == fold]) == {0, 1}
    if "roup" in split:
        assert all(len(set(fold_of_row[train.group == group])) == 1 for group in set(train.group))
    if split in splits.UNITS:
        unit = train.table["unit"]
        assert all(len(set(fold_of_row[unit == one])) == 1 for one in set(unit))
    assert (fold_of_row == splits.assign(config, train)).all()


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("KFold", KFold(3, shuffle=True, random_state=8)),
        ("StratifiedKFold", model_selection.StratifiedKFold(3, shuffle=True, random_state=8)),
        ("StratifiedGroupKFold", model_selection.StratifiedGroupKFold(3, shuffle=True, random_state=8)),
        ("GroupKFold", model_selection.GroupKFold(3, shuffle=True, random_state=8)),
        ("rows", KFold(3, shuffle=True, random_state=8)),
        ("stratified", model_selection.StratifiedKFold(3, shuffle=True, random_state=8)),
        ("group", model_selection.StratifiedGroupKFold(3, shuffle=True, random_state=8)),
    ],
)
def test_a_splitter_of_scikit_learn_by_its_name(name, like):
    train = rows(6, 7)
    fold_of_row = splits.assign(Config(folds=3, split=name, seed=8), train)
    group = train.group if "Group" in type(like).__name__ else None
    expected = [held.tolist() for _, held in like.split(train.target, train.target, group)]
    assert held_out(fold_of_row) == expected


def test_groups_of_rows_whose_targets_are_numbers_are_split_without_strata():
    target = np.random.default_rng(0).normal(size=60)
    train = rows(6, 10, target=target)
    fold_of_row = splits.assign(Config(folds=3, split="group", seed=8), train)
    like = model_selection.GroupKFold(3, shuffle=True, random_state=8)
    assert held_out(fold_of_row) == [held.tolist() for _, held in like.split(target, target, train.group)]
    for split in ("stratified", "StratifiedKFold", "StratifiedGroupKFold"):
        with pytest.raises(ConfigError, match="stratified needs classes, but these targets are numbers"):
            splits.assign(Config(folds=3, split=split), train)


def test_refusals_name_the_field_and_the_way_out():
    with pytest.raises(ConfigError, match=r"5 folds need at least 5 training shards, but DIR has 3.*--folds"):
        splits.assign(parse({}), rows(3, 10))
    one_class = rows(5, 10).table.eval("(unit == 0)").astype(int)
    with pytest.raises(DataError, match=r"fold \d: the held-out part has only target"):
        check_classes(splits.assign(parse({}), rows(5, 10)), one_class.to_numpy(), 5)
    with pytest.raises(DataError, match="50 without one"):
        splits.assign(parse({"split": "group"}), rows(5, 10, group=""))
    with pytest.raises(ConfigError, match="need 5 groups, but DIR has 2"):
        splits.assign(parse({"split": "group"}), rows(5, 10, groups=2))
    bare = rows(5, 10)
    bare = Rows(bare.table.drop(columns="unit"), bare.test, "f", root="DIR")
    with pytest.raises(ConfigError, match=r"DIR has no units\. Take --split rows"):
        splits.assign(Config(split="units"), bare)
    with pytest.raises(ConfigError, match="5 folds need as many rows, but DIR has 4"):
        splits.assign(Config(), rows(2, 2))
    with pytest.raises(ConfigError, match="need 5 records of each class, but DIR has 4 of one"):
        splits.assign(Config(split="stratified"), rows(5, 10, target=(np.arange(50) < 4).astype(int)))


@pytest.mark.parametrize("name", ["KFolds", "LeaveOneOut", "TimeSeriesSplit", "shuffled", "train_test_split"])
def test_what_is_no_splitter_into_folds_is_refused_with_those_there_are(name):
    with pytest.raises(ConfigError, match=rf"^split: expected rows, units, .*GroupKFold.*; got '{name}'$"):
        splits.assign(Config(split=name), rows(5, 10))


@pytest.fixture
def split_file(tmp_path):
    def write(table):
        path = tmp_path / "folds.csv"
        table.to_csv(path, index=False)
        return str(path)

    return write


@settings(max_examples=30)
@given(st.permutations(range(12)), st.lists(st.integers(0, 2), min_size=9, max_size=9))
def test_a_file_gives_each_row_its_fold_in_whatever_order_its_lines_stand(order, rest):
    fold = np.array([0, 1, 2, *rest])
    train = rows(3, 4)
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        lines = train.table[["id"]].assign(fold=fold, remark="x").iloc[list(order)]
        lines.to_csv(file, index=False)
        file.flush()
        assert splits.assign(Config(folds=3, split=file.name), train).tolist() == fold.tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.rename(columns={"fold": "k"}), "has no column 'fold', only id, k"),
        (lambda t: t.rename(columns={"id": "image_id"}), "has no column 'id', only image_id, fold"),
        (lambda t: pd.concat([t, t[5:6]]), "id 'row-005' appears twice"),
        (lambda t: t.assign(fold=[3, *t["fold"][1:]]), r"a fold from 0 to 2 for id 'row-000', got '3'"),
        (lambda t: t.assign(fold=["-1", *t["fold"][1:]]), r"a fold from 0 to 2 for id 'row-000', got '-1'"),
        (lambda t: t.assign(fold=["", *t["fold"][1:]]), r"a fold from 0 to 2 for id 'row-000', got ''"),
        (lambda t: t.assign(fold=["0.5", *t["fold"][1:]]), r"a fold from 0 to 2 for id 'row-000', got '0.5'"),
        (lambda t: t[2:], "no line for 2 training rows, the first 'row-000'"),
        (lambda t: t.assign(fold=t["fold"] % 2), "fold 2 holds out no rows of DIR"),
    ],
)
def test_what_is_wrong_with_a_split_file(change, says, split_file):
    train = rows(3, 4)
    path = split_file(change(train.table[["id"]].assign(fold=np.arange(12) % 3)))
    with pytest.raises(DataError, match=says) as caught:
        splits.assign(Config(folds=3, split=path), train)
    assert str(caught.value).startswith("split: ")
    assert len(str(caught.value).splitlines()) == 1


def test_ids_in_a_split_file_are_text_whatever_they_look_like_and_are_called(split_file):
    names = ["01", "1", "1e0", "NA", "nan", "007"]
    bare = rows(2, 3).table.drop(columns="id").assign(star=names)
    path = split_file(bare[["star"]].assign(fold=[0, 1, 0, 1, 1, 0]))
    train = Rows(bare, bare[["star"]].iloc[:0], "f", id="star", root="DIR")
    assert splits.assign(Config(folds=2, split=path), train).tolist() == [0, 1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such file"),
        (b"", "is no CSV file: No columns to parse from file"),
        (b"id,fold\n1,0\n2,0,0\n", "is no CSV file: Error tokenizing data"),
        (b"id,fold\n\xff\xfe,0\n", "is no CSV file: 'utf-8' codec can't decode"),
    ],
)
def test_a_split_file_that_is_missing_or_no_table(content, says, tmp_path):
    path = tmp_path / "mine.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        splits.assign(Config(split=str(path)), rows(5, 10))
    assert str(caught.value).startswith(f"split: {path}")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_groups_that_a_split_divides_are_said():
    whole = rows(6, 4, group=np.repeat([f"obs-{i}" for i in range(6)], 4))
    by_shard = splits.assign(parse({"folds": 3}), whole)
    assert splits.divided_groups(whole, by_shard) == ""
    by_row = np.arange(24) % 3
    assert splits.divided_groups(whole, by_row).startswith("6 groups have rows in more than one fold")
    assert "--split group" in splits.divided_groups(whole, by_row)
    some = rows(6, 4, group=["obs-0"] * 4 + ["obs-1"] * 4 + ["obs-2"] * 4 + [""] * 12)
    assert splits.divided_groups(some, by_row).startswith("3 groups")
    assert "--split group" not in splits.divided_groups(some, by_row)  # which needs a group of every row
    # No split could keep it whole.
    assert splits.divided_groups(rows(6, 4, group="one session"), by_row) == ""
    assert splits.divided_groups(rows(6, 4, group=""), by_row) == ""
