"""Runs over real shards, shared by the tests of probes and pages."""

import json

import pytest
import runs as fake

from setibl_ray.seti.formats import shards
from setibl_ray.seti.making.recipe import Recipe
from setibl_ray.seti.making.synth import write_synthetic


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A fabricated run over synthetic shards."""
    base = tmp_path_factory.mktemp("trained")
    recipe = Recipe(train=120, test=30, shards=5, test_shards=2, shape=(64, 64))
    write_synthetic(recipe, base / "data", n_processes=1)
    index = shards.read_index(base / "data")
    rows = index.train[["image_id", "target", "group", "snr", "kind"]].assign(fold=index.train["shard"])
    root, test_ids = str(base / "data"), index.test["image_id"]
    path = fake.write_run(base / "run", rows=rows, root=root, epochs=3, test_ids=test_ids)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["data"] |= {"fingerprint": index.fingerprint, "panel_shape": [64, 64]}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path
