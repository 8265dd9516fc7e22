"""benchmarks/gpu.py works where there is no GPU: as a rehearsal, and in saying so."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/gpu.py"


def test_without_a_gpu_it_says_so(tmp_path):
    without = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, SCRIPT], env=without, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("no GPU here")


def test_parts_measured_earlier_with_the_same_card_stay(tmp_path):
    file = tmp_path / "gpu-rehearsal.json"
    command = [sys.executable, SCRIPT, "--rehearse", "--seconds", "-1", "--out", tmp_path, "--only"]
    subprocess.run([*command, "speed-nano,job"], check=True)
    subprocess.run([*command, "job,share"], check=True)
    assert [row["part"] for row in json.loads(file.read_text())["rows"]] == ["speed-nano", "job", "share"]
    file.write_text(file.read_text().replace("none (rehearsal", "another card"))
    subprocess.run([*command, "job"], check=True)
    assert [row["part"] for row in json.loads(file.read_text())["rows"]] == ["job"]
    assert file.with_suffix(".md").read_text().count("no time left") == 1


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_its_rehearsal_measures_every_part(tmp_path):
    command = [sys.executable, SCRIPT, "--rehearse", "--seconds", "1700", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["what"]: row for row in json.loads((tmp_path / "gpu-rehearsal.json").read_text())["rows"]}
    others = sum(2 if find_spec(module) else 1 for module in ("torch", "jax"))
    assert len(rows) == 16 + others, done.stderr[-3000:]
    for what in (
        "demo: exit code",
        "two runs of five folds at once: oof.csv and submission.csv",
        "a worker killed in training",
    ):
        assert rows[what]["holds"], rows[what]
