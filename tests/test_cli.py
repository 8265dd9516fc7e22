"""What every command's --help looks like, and the one command that calls the others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from setibl_ray import cli, completion
from setibl_ray.blend import Blend
from setibl_ray.cv import Cv
from setibl_ray.data import Data
from setibl_ray.evaluate import Evaluate
from setibl_ray.predict import Predict
from setibl_ray.report import Report
from setibl_ray.sweep import Sweep


def help_of(capsys, command, *subcommand):
    with pytest.raises(SystemExit) as stopped:
        cli.parse(command, [*subcommand, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


COMMANDS = [
    (Cv,),
    (Sweep,),
    (Predict,),
    (Evaluate,),
    (Report,),
    (Blend,),
    (Data,),
    (Data, "synth"),
    (Data, "pack"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join([c[0].__name__, *c[1:]]))
def test_help_is_for_people(capsys, command):
    text = help_of(capsys, *command)
    assert text.count("usage:") == 1
    assert text.startswith("usage: python -m setibl_ray.")
    assert "[options]" in text.splitlines()[0]
    for python in ("tuple[", "None)", "null", "('", "()"):
        assert python not in text


def test_help_gives_lists_as_they_are_typed(capsys):
    text = " ".join(help_of(capsys, Cv).split())
    assert "--image-size str[,…] Height x width" in text
    assert "(default: 273x256)" in text
    assert "--snr float,float Lowest" in " ".join(help_of(capsys, Data, "synth").split())
    assert (
        help_of(capsys, Blend).splitlines()[0]
        == "usage: python -m setibl_ray.blend [options] RUNS [RUNS ...]"
    )


def test_the_console_script_runs_the_same_commands(shards, tmp_path):
    def setibl_ray(*arguments):
        script = Path(sys.executable).with_name("setibl-ray")
        return subprocess.run([script, *arguments], capture_output=True, text=True, cwd=tmp_path)

    assert "cross-validate on Ray" in setibl_ray("--help").stdout
    unknown = setibl_ray("vc")
    assert unknown.returncode == 2
    assert "expected a command, got 'vc'" in unknown.stderr
    assert setibl_ray("blend", "--help").stdout.startswith("usage: python -m setibl_ray.blend")
    # A module in the folder where the command is typed is found; it has no such function.
    (tmp_path / "hooks.py").write_text("")
    hook = ["--postprocess", "hooks:same", "--folds", "2", "--weights", "none"]
    refused = setibl_ray("cv", *hook, "--data", str(shards))
    assert refused.returncode == 2
    assert "hooks:same cannot be imported: module 'hooks' has no attribute 'same'" in refused.stderr


def completed(script, *typed):
    """What bash offers for the last word."""
    words = " ".join(f"'{word}'" for word in ("setibl-ray", *typed))
    ask = f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _setibl_ray; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_all_that_fits_is_offered(capsys):
    assert completion.entry(["bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "s") == ["sweep", "search"]
    assert completed(script, "data", "") == ["synth", "inject", "simulate", "pack", "verify"]
    assert "--data" in completed(script, "predict", "--")


SHELLS = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_complete_commands_flags_and_files(tmp_path, capsys, shell):
    """A real shell at a terminal: what it makes of a line when Tab is pressed."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    assert completion.entry([shell]) == 0
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    (tmp_path / "a-run").touch()
    terminal = pexpect.spawn(
        shell, SHELLS[shell], cwd=tmp_path, env={**os.environ, "TERM": "dumb"}, timeout=30
    )
    # zsh completes only after compinit, -u as a test may be root; bash ignores the first line.
    terminal.sendline("autoload -U compinit 2>/dev/null && compinit -u -D")
    terminal.sendline('source ./completion; setibl-ray() { echo got "$*" done; }')
    for typed, completed in {
        "sw": "sweep",
        "cv --image": "cv --image-size",
        "cv --folds 5 --augment.sh": "cv --folds 5 --augment.shear",
        "data sim": "data simulate",
        "data pack --kag": "data pack --kaggle",
        "predict --da": "predict --data",
        "report a-": "report a-run",
    }.items():
        terminal.send(f"setibl-ray {typed}\t\r")
        terminal.expect(r"\ngot ([^\r]*) done\r")
        assert terminal.match[1].decode() == completed
    terminal.close(force=True)
