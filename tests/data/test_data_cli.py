"""The command line: exit codes, one line for every error, help that loads nothing heavy."""

import subprocess
import sys

import numpy as np
import pytest

from setibl_ray.core.terminal import visible
from setibl_ray.data import entry
from setibl_ray.seti.formats.records import Record
from setibl_ray.seti.formats.shards import read_index
from setibl_ray.seti.formats.writer import ShardWriter

SIZES = [
    "--train",
    "12",
    "--test",
    "4",
    "--shards",
    "2",
    "--test-shards",
    "2",
    "--shape",
    "32x24",
    "--processes",
    "1",
]


@pytest.mark.parametrize(
    "snr",
    [
        ["--snr", "20", "40"],
        ["--snr", "20,40"],
        ["--hard-snr", "30", "35", "--snr", "20", "40", "--without", "needle-sine,hard-one-on"],
    ],
)
def test_synth_then_verify(tmp_path, capsys, snr):
    out = tmp_path / "set"
    assert entry(["synth", "--out", str(out), *SIZES, *snr]) == 0
    assert "12 train (6 needles) and 4 test cadences" in capsys.readouterr().out
    index = read_index(out)
    assert index.panel_shape == (32, 24)
    assert index.train["snr"].dropna().between(20, 40).all()
    assert entry(["verify", str(out)]) == 0
    captured = capsys.readouterr()
    assert "4 shards, 16 records: sound" in captured.out
    assert "needle-constant" in captured.out
    assert captured.err == ""


def test_damage_is_exit_2_and_listed(small_set, tmp_path, capsys):
    for path in small_set.glob("*.tfrec"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:-1])
    assert entry(["verify", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 7
    assert "6 problems, listed above" in lines[-1]


@pytest.mark.parametrize(("argv", "message"), [
    (["synth", "--out", "x", "--train", "0"], "synth.train: Input should be greater than 0; got '0'"),
    (["synth", "--out", "x", "--train", "9", "--snr", "5", "2"], "the lower first"),
    (["verify", "nowhere"], "nowhere is not a folder"),
    (["pack", "--kaggle", "nowhere", "--out", "x"], "holds no .npy file"),
])  # fmt: skip
def test_errors_are_one_line_and_exit_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert entry(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_unknown_flags_and_missing_ones_are_exit_2(capsys):
    assert entry(["synth", "--out", "x", "--trian", "1"]) == 2
    assert "--trian" in capsys.readouterr().err
    assert entry(["synth", "--out", "x"]) == 2
    assert capsys.readouterr().err.endswith("synth.train: expected, but not given (see --help)\n")
    assert entry([]) == 2
    assert "expected a command: synth, inject, simulate, pack or verify" in capsys.readouterr().err


def test_help_loads_neither_pandas_nor_numpy():
    code = (
        "import sys; from setibl_ray.data import entry\n"
        "try: entry(['--help'])\n"
        "except SystemExit: print(*[m for m in ('numpy', 'pandas', 'tensorflow') if m in sys.modules], 'end')"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "end"
    assert "synth" in out


MARKUP = ["[/red]", "\x1b[31mred\x1b[0m", "[link=x]", "é – \u202e", "<script>alert(1)</script>", "a\r\nb"]


def test_markup_in_data_is_shown_as_it_stands(tmp_path, capsys):
    panels = np.zeros((6, 8, 8), np.uint8)
    for split, labelled in (("train", True), ("test", False)):
        with ShardWriter(tmp_path, split, 0) as writer:
            for i, text in enumerate(MARKUP):
                writer.write(Record(f"{split}{text}", i % 2 if labelled else None, text, 9.0, text, panels))
    with ShardWriter(tmp_path, "train", 1) as writer:
        writer.write(Record(f"train{MARKUP[1]}", 1, None, 9.0, None, panels))
    assert entry(["verify", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    for text in MARKUP[:3]:
        assert visible(text) in captured.out
    assert r"image_id train\x1b[31mred\x1b[0m belongs to 2 records" in captured.err
    assert "\x1b" not in captured.out + captured.err
    assert "\r" not in captured.out + captured.err
