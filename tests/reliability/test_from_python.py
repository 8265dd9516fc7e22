"""`cross_validate` as a notebook calls it: paths, mappings, and one line for what is neither."""

from pathlib import Path

import pandas as pd
import pytest
from datasets import put, record
from harness import RUN, same_results
from standin import StandIn

from setibl_ray import cross_validate
from setibl_ray.core.errors import ConfigError

CONFIG = {name.removeprefix("--"): value for name, value in zip(RUN[::2], RUN[1::2])}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("setibl_ray.seti.task.NAME", StandIn())


def test_paths_and_mappings(shards, tmp_path, undisturbed):
    done = cross_validate(
        CONFIG, data=Path(shards), out=tmp_path / "run", where={"runner": "local", "max-retries": 1}
    )
    assert done.folder == str(tmp_path / "run")
    same_results(undisturbed, tmp_path / "run")


@pytest.mark.parametrize(("given", "message"), [
    ({"data": pd.DataFrame({"id": ["a"]})}, "data: expected a folder or URL, as a string or a path; got DataFrame"),
    ({"data": ""}, "data: expected a folder or URL, as a string or a path; got nothing"),
    ({"data": "s3://KEY:SECRET@bucket/x"}, "data: expected a URL without credentials"),
    ({"out": None}, "out: expected a folder or URL, as a string or a path; got nothing"),
    ({"out": b"run"}, "out: expected a folder or URL, as a string or a path; got bytes"),
    ({"out": "a\0b"}, "a path cannot hold a NUL"),
    ({"where": "local"}, "where: expected a Where or a mapping of its fields, got str"),
    ({"where": {"worker": 1}}, "where: unknown field 'worker'; expected some of runner, address, workers"),
    ({"config": ["folds"]}, "config: expected a Config or a mapping of its fields, got list"),
])  # fmt: skip
def test_what_is_of_another_type(shards, tmp_path, given, message):
    arguments = {
        "config": CONFIG,
        "data": shards,
        "out": tmp_path / "run",
        "where": {"runner": "local"},
        **given,
    }
    with pytest.raises(ConfigError) as caught:
        cross_validate(**arguments)
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_an_id_of_any_text_survives_a_resume(tmp_path, monkeypatch):
    ids = ["a\rb", "a\r\nb", "=1+1", "007", "NaN", 'a"b,c', " x", "[/red]", "\x1b[31m", "\u202e", "é"]
    data = tmp_path / "data"
    data.mkdir()
    for shard in range(5):
        put(data, "train", shard, *(record(f"{text}{shard}", number % 2) for number, text in enumerate(ids)))
    put(data, "test", 0, *(record(text, -1) for text in ids))
    broken = tmp_path / "broken"
    broken.write_text("3")
    monkeypatch.setattr("setibl_ray.seti.task.NAME", StandIn(broken=broken))
    arguments = {"config": CONFIG, "data": data, "where": {"runner": "local"}}
    with pytest.raises(Exception, match="broken on purpose"):
        cross_validate(out=tmp_path / "run", **arguments)
    broken.unlink()
    cross_validate(out=tmp_path / "run", resume=True, **arguments)
    cross_validate(out=tmp_path / "other", **arguments)
    same_results(tmp_path / "run", tmp_path / "other")
