"""Small real data sets that the tests of this folder share."""

from pathlib import Path

import pytest
from data_sets import SMALL, seed_features, write_frames

from setibl_ray.seti.making.synth import write_synthetic


@pytest.fixture(scope="session")
def small_set(tmp_path_factory) -> Path:
    """A synthetic set; not to be written to."""
    return write_synthetic(SMALL, tmp_path_factory.mktemp("sets") / "small", n_processes=1)


@pytest.fixture
def seed_set(tmp_path) -> Path:
    """Two train shards of three records and a test shard of two, in the seed notebook's format."""
    folder = tmp_path / "seed"
    for shard in range(2):
        examples = [seed_features(f"train{shard}{i}", (shard + i) % 2) for i in range(3)]
        write_frames(folder / f"train{shard:02d}-3.tfrec", examples)
    write_frames(folder / "test00-2.tfrec", [seed_features(f"test{i}") for i in range(2)])
    return folder
