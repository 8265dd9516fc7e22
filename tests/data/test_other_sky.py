"""benchmarks/other_sky.py: signals show where their kind says, and the same seed gives the same set."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from setibl_ray.seti.formats import shards

SKY = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks/other_sky.py"))


@pytest.mark.parametrize("kind", [*SKY["NEEDLES"], *SKY["LOOK_ALIKES"]])
def test_a_signal_shows_in_the_panels_of_its_kind(kind):
    for seed in range(5):
        bright, dark = (SKY["cadence"](np.random.default_rng(seed), kind, snr) for snr in (1000.0, 0.0))
        shows = {panel for panel in range(6) if np.abs(bright - dark)[panel].max() > 1}
        if kind in SKY["NEEDLES"]:
            assert shows
            assert shows <= {0, 2, 4}
            assert len(shows) == 1 or kind != "single"
        else:
            assert shows & {1, 3, 5}


def test_a_set_is_read_as_any_other_and_made_again_alike(tmp_path, monkeypatch):
    # A script's functions have no module.
    monkeypatch.setattr("setibl_ray.seti.formats.writer.n_cores", lambda: 1)
    sets = [shards.read_index(SKY["write"](tmp_path / name, 40, seed=3, shards=2)) for name in "ab"]
    assert sets[0].fingerprint == sets[1].fingerprint
    train = sets[0].train
    assert len(train) == 40
    assert set(train.loc[train["target"] == 1, "kind"]) <= set(SKY["NEEDLES"])
    assert set(train.loc[train["target"] == 0, "kind"]) <= {*SKY["LOOK_ALIKES"], "nothing"}
    assert train.loc[train["kind"] != "nothing", "snr"].between(30, 100).all()
