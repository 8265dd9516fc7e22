"""Runs with a stand-in for the fold task: seconds instead of minutes, the same driver."""

import os
import time
from pathlib import Path

import pytest
from datasets import SMALL, cadence_shards
from harness import RUN, start
from standin import StandIn, no_report

from setibl_ray import cv


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return cadence_shards(
        tmp_path_factory.mktemp("shards") / "cadences", SMALL.model_copy(update={"snr": (20, 30)})
    )


@pytest.fixture
def local_cv(monkeypatch, shards):
    """`cv --runner local` in this process with the stand-in; returns the exit code."""

    def call(out, *more, task=None, run=(*RUN, "--data", str(shards))):
        monkeypatch.setattr("setibl_ray.seti.task.NAME", task or StandIn())
        monkeypatch.setattr("setibl_ray.report.write_report", no_report)
        return cv.entry([str(part) for part in (*run, "--out", out, "--runner", "local", *more)])

    return call


@pytest.fixture(scope="session")
def undisturbed(shards, tmp_path_factory):
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done = start(*RUN, "--data", shards, "--out", out, "--runner", "local", epoch_s=0)
    assert done.wait(timeout=120) == 0, done.stdout.read()
    done.stdout.close()
    return out


@pytest.fixture
def record_soak():
    """Write what a soak found into docs/reliability.md, in the place of what the last one found."""

    def write(what, hits, duration_s):
        page = Path(__file__).parents[2] / "docs" / "reliability.md"
        begin, end = f"<!-- soak {what} -->", f"<!-- end of {what} -->"
        before, rest = page.read_text().split(begin)
        _, after = rest.split(end)
        lines = [
            f"{time.strftime('%Y-%m-%d')}, {what} folds: {len(hits)} kills in {duration_s / 60:.0f} minutes "
            f"on {os.cpu_count()} cores. Every oof.csv and submission.csv",
            "byte-identical; no process, temporary file or shared memory left.",
            "",
            "| # | killed | attempts it ended |",
            "|---|---|---|",
        ]
        lines += [
            f"| {i + 1} | {victim} | {', '.join(causes) or 'none'} |"
            for i, (victim, causes) in enumerate(hits)
        ]
        page.write_text("\n".join([before + begin, *lines, end]) + after)

    return write
