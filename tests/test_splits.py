import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from sklearn.model_selection import KFold

from setibl_ray.core import folds
from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.seti.config import parse


def table(n_shards, per_shard, groups=7):
    n = n_shards * per_shard
    return pd.DataFrame(
        {
            "target": np.arange(n) % 2,
            "shard": np.repeat(np.arange(n_shards), per_shard),
            "group": [f"obs-{i % groups}" for i in range(n)],
        }
    )


def test_shards_are_split_as_the_seed_splits_them():
    train = table(20, 4)
    fold_of_row = folds.assign(parse({"seed": 42}), train, 20, "DIR")
    for fold, (_, held_out) in enumerate(KFold(5, shuffle=True, random_state=42).split(np.arange(20))):
        assert set(train["shard"][fold_of_row == fold]) == set(held_out)


@settings(max_examples=30)
@given(st.integers(2, 6), st.sampled_from(["shards", "stratified", "group"]), st.integers(0, 2**32 - 1))
def test_every_split_is_a_partition_with_both_classes(n_folds, split, seed):
    train = table(12, 10)
    config = parse({"folds": n_folds, "split": split, "seed": seed})
    fold_of_row = folds.assign(config, train, 12, "DIR")
    assert sorted(set(fold_of_row)) == list(range(n_folds))
    for fold in range(n_folds):
        assert set(train["target"][fold_of_row == fold]) == {0, 1}
    if split == "group":
        assert train.groupby("group")["shard"].count().sum() == len(train)
        assert all(len(set(fold_of_row[train["group"] == group])) == 1 for group in set(train["group"]))
    assert (fold_of_row == folds.assign(config, train, 12, "DIR")).all()


def test_refusals_name_the_field_and_the_way_out():
    with pytest.raises(ConfigError, match=r"5 folds need at least 5 training shards, but DIR has 3.*--folds"):
        folds.assign(parse({}), table(3, 10), 3, "DIR")
    one_class = table(5, 10).assign(target=lambda t: (t["shard"] == 0).astype(int))
    with pytest.raises(DataError, match=r"fold \d: the held-out part has only target"):
        folds.assign(parse({}), one_class, 5, "DIR")
    with pytest.raises(DataError, match="50 without one"):
        folds.assign(parse({"split": "group"}), table(5, 10).assign(group=""), 5, "DIR")
    with pytest.raises(ConfigError, match="need 5 groups, but DIR has 2"):
        folds.assign(parse({"split": "group"}), table(5, 10, groups=2), 5, "DIR")
