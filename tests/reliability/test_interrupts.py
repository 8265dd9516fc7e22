"""Ctrl-C and SIGTERM: state kept, exit code 130, the resuming command, and no process or file left."""

import fcntl
import os
import signal
import subprocess
import sys
import termios

import pytest
from harness import (
    RUN,
    STANDIN,
    attempts_of,
    leftovers,
    nothing_left,
    processes_with,
    same_results,
    start,
    stores_of,
)
from waiting import DEADLINE_S, wait_for


@pytest.mark.parametrize(
    ("number", "runner", "to"),
    [
        (signal.SIGINT, "local", "driver"),
        (signal.SIGTERM, "local", "driver"),
        (signal.SIGTERM, "ray", "driver"),
        (signal.SIGTERM, "ray", "its group"),  # as `timeout` and batch systems do
    ],
)
def test_an_interrupted_run_is_whole_and_gone(shards, tmp_path, undisturbed, number, runner, to):
    out, mark = tmp_path / "run", f"interrupt-{os.getpid()}-{number}-{runner}"
    with (tmp_path / "log").open("w") as log:
        process = start(
            *RUN, "--data", shards, "--out", out, "--runner", runner, epoch_s=0.5, log=log, MARK=mark
        )
        wait_for(lambda: list(out.glob("fold-*/state-001*")) or process.poll() is not None)
        (os.killpg if to == "its group" else os.kill)(process.pid, number)
        code = process.wait(timeout=DEADLINE_S)
    said = (tmp_path / "log").read_text()
    assert code == 130, said
    assert f"Resume with: python -m setibl_ray.cv --resume --out {out}" in said
    assert "Traceback" not in said
    wait_for(lambda: not processes_with(f"MARK={mark}"))
    wait_for(lambda: not stores_of(out))
    assert all(name.split("/")[1].startswith("state-") for name in leftovers(out))
    outcomes = [attempt["outcome"] for attempt in attempts_of(out)]
    assert "interrupted" in outcomes
    assert "running" not in outcomes

    again = start("--resume", "--out", out, "--runner", "local", epoch_s=0)
    assert again.wait(timeout=DEADLINE_S) == 0, again.stdout.read()
    again.stdout.close()
    same_results(undisturbed, out)
    nothing_left(out)


def test_a_second_signal_ends_it_at_once(shards, tmp_path):
    # A task that takes a minute to clear up: it is not waited for.
    script = (
        "import os, sys, time\n"
        "from setibl_ray import cv\nfrom setibl_ray.seti import task\n"
        "from setibl_ray.core.task import Step\n"
        "class Slow(task.CadenceTask):\n"
        "    def fit(self, work):\n"
        "        try:\n"  # around the step, too: the driver may be at work on it when the signal comes
        "            yield Step({'epoch': 0}, b'state')\n"
        "            time.sleep(60)\n"
        "        finally:\n"
        "            open(os.environ['CLEARING'], 'w').close()\n"
        "            time.sleep(60)\n"
        "task.NAME = Slow()\n"
        "sys.exit(cv.entry(sys.argv[1:]))\n"
    )
    out, clearing = tmp_path / "run", tmp_path / "clearing"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            script,
            *map(str, RUN),
            "--data",
            str(shards),
            "--out",
            str(out),
            "--runner",
            "local",
        ],
        env={**os.environ, "CLEARING": str(clearing)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list(out.glob("fold-0/state-*")))
    process.send_signal(signal.SIGINT)
    wait_for(clearing.exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert "leaving at once" in process.stderr.read()
    process.stderr.close()


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_closes(shards, tmp_path, undisturbed, ignored):
    """As SIGTERM, unless it is ignored as `nohup` has it."""
    out = tmp_path / "run"
    ours, theirs = os.openpty()

    def at_the_terminal():
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, *STANDIN, *map(str, RUN), "--data", shards, "--out", out, "--runner", "local"],
        env={**os.environ, "EPOCH_S": "0.2"},
        stdin=theirs,
        stdout=theirs if not ignored else subprocess.DEVNULL,
        stderr=theirs if not ignored else subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=at_the_terminal,
    )
    os.close(theirs)
    wait_for(lambda: list(out.glob("fold-*/state-000*")) or process.poll() is not None)
    os.close(ours)
    assert process.wait(timeout=DEADLINE_S) == (0 if ignored else 130)
    if not ignored:
        assert "interrupted" in [attempt["outcome"] for attempt in attempts_of(out)]
        again = start("--resume", "--out", out, "--runner", "local", epoch_s=0, log=subprocess.DEVNULL)
        assert again.wait(timeout=DEADLINE_S) == 0
    same_results(undisturbed, out)
    nothing_left(out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("imported", ["pydantic", "pydantic_settings", "setibl_ray.core.where"])
@pytest.mark.parametrize("command", [("-m", "setibl_ray.cv"), ("-m", "setibl_ray", "data")])
def test_a_signal_while_a_command_starts(tmp_path, command, imported, number):
    """A third of a second in which nothing is there yet to be kept; Python's own part of it is nobody's to change."""
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins, os\n"
        "real = builtins.__import__\n"
        "def watched(name, *rest, **more):\n"
        f"    if name == {imported!r}:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = watched\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        # A shell starts background jobs, of which these tests may be one, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
