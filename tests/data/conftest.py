"""Small real data sets that the tests of this folder share."""

from pathlib import Path

import pytest
from data_sets import SMALL, png_features, write_frames

from setibl_ray.seti.making.synth import write_synthetic


@pytest.fixture(scope="session")
def small_set(tmp_path_factory) -> Path:
    """A synthetic set; not to be written to."""
    return write_synthetic(SMALL, tmp_path_factory.mktemp("sets") / "small", n_processes=1)


@pytest.fixture
def png_set(tmp_path) -> Path:
    """Two train shards of three records and a test shard of two, in the original notebook's format."""
    folder = tmp_path / "png"
    for shard in range(2):
        examples = [png_features(f"train{shard}{i}", (shard + i) % 2) for i in range(3)]
        write_frames(folder / f"train{shard:02d}-3.tfrec", examples)
    write_frames(folder / "test00-2.tfrec", [png_features(f"test{i}") for i in range(2)])
    return folder
