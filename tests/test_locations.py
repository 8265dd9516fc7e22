"""Paths and URLs of data and results: what may stand in them."""

import pytest

from setibl_ray import blend, cv, evaluate, predict, report, sweep
from setibl_ray.core.errors import ConfigError
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.storage import without_credentials
from setibl_ray.data import entry as data_entry
from setibl_ray.seti.formats.shards import read_index

SECRET = "kUxLzPq7"
URLS = (
    f"s3://AKIA:{SECRET}@bucket/run",
    f"https://host/shards?token={SECRET}",
    f"gs://bucket/run?sig={SECRET}",
)


@pytest.mark.parametrize(
    "argv",
    [
        (cv.entry, "--data", "URL"),
        (cv.entry, "--out", "URL"),
        (sweep.entry, "--data", "URL"),
        (sweep.entry, "--out", "URL"),
        (predict.entry, "URL", "--data", "d"),
        (predict.entry, "run", "--data", "URL"),
        (blend.entry, "run", "URL", "--out", "o"),
        (blend.entry, "run", "--out", "URL"),
        (report.entry, "URL"),
        (evaluate.entry, "URL"),
        (data_entry, "verify", "URL"),
    ],
)
@pytest.mark.parametrize("url", URLS)
def test_a_url_with_a_secret_is_refused_without_a_word_of_it(argv, url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command, *arguments = argv
    assert command([url if argument == "URL" else argument for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert "without credentials" in printed.err
    assert SECRET not in printed.out + printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opened", [RunFolder, read_index])
@pytest.mark.parametrize("url", URLS)
def test_so_it_is_from_python(opened, url):
    with pytest.raises(ConfigError, match="without credentials") as caught:
        opened(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [
        "runs/a?b:c@d",
        "/data/x@y",
        "gs://bucket/run",
        "s3://bucket/a@b:c",
        "abfs://box@account.host/x",
        "ssh://me@host/x",
    ],
)
def test_what_is_no_secret_passes(location):
    assert without_credentials(location) == location


def test_an_unknown_protocol_or_a_missing_package_is_one_line(monkeypatch):
    with pytest.raises(ConfigError, match=r"Expected a local path, gs:// or s3://\."):
        RunFolder("s4://bucket/run")

    def missing(location):
        raise ImportError("Install abc to access this")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"pip install 'setibl-ray\[gcs\]'"):
        RunFolder("gs://bucket/run")
    with pytest.raises(ConfigError, match="Install abc to access this"):
        RunFolder("abfs://bucket/run")
