"""More that happens to a run: signals, a stopped process, Ray's own processes killed, a full disk, other drivers.

Each at a seeded random moment, with a Ray of the run's own: in the end the bytes of a run that nothing happened to, and
nothing is left. `make soak` runs them; what is quick and certain of it is in `make test`.
"""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from harness import RUN, attempts_of, manifest, nothing_left, processes_with, same_results, start
from waiting import wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
DEADLINE_S = 400
RESUME = "Resume with: python -m setibl_ray.cv --resume"


class Running:
    """A run on a Ray of its own, its processes known by a mark in their environment."""

    def __init__(self, out, shards, *more):
        self.out = out
        self.mark = f"soak-{os.getpid()}-{out.name}"
        self.log = out.with_suffix(".log")
        self.more = more
        self.process = self._start(*RUN, "--data", shards)

    def _start(self, *arguments):
        with self.log.open("a") as stream:
            return start(*arguments, "--out", self.out, *self.more, epoch_s=0.5, log=stream, MARK=self.mark)

    @property
    def said(self):
        return self.log.read_text()

    def wait_until_folds_run(self, rng, longest_s=3):
        def begun():
            return self.process.poll() is not None or (
                (self.out / "manifest.json").exists() and any("pid" in a for a in attempts_of(self.out))
            )

        wait_for(begun, DEADLINE_S)
        time.sleep(rng.uniform(0, longest_s))

    def running(self):
        return [a["pid"] for a in attempts_of(self.out) if a["outcome"] == "running" and "pid" in a]

    def of_ray(self, name):
        """The ids of this run's processes whose command line holds `name`."""
        found = []
        for pid in processes_with(f"MARK={self.mark}"):
            with suppress(OSError):
                if name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def end(self, *codes):
        """Wait for the end, resume if that was not success, and hold what came of it against what should have."""
        code = self.process.wait(DEADLINE_S)
        assert code in codes, (code, self.said)
        assert "Traceback" not in self.said
        if code:
            wait_for(lambda: not processes_with(f"MARK={self.mark}"), DEADLINE_S)
            self.process = self._start("--resume")
            assert self.process.wait(DEADLINE_S) == 0, self.said
        return code


@pytest.fixture
def running(shards, tmp_path):
    def begin(name="run", *more):
        begun.append(Running(tmp_path / name, shards, *more))
        return begun[-1]

    begun = []
    yield begin
    for run in begun:
        for pid in (
            [run.process.pid, *processes_with(f"MARK={run.mark}")] if run.process.poll() is None else []
        ):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def check(run, undisturbed):
    same_results(undisturbed, run.out)
    nothing_left(run.out, f"MARK={run.mark}")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_driver(running, undisturbed, number):
    run = running()
    run.wait_until_folds_run(random.Random(number))
    run.process.send_signal(number)
    assert run.end(130, 0) == 130
    assert RESUME in run.said
    check(run, undisturbed)


@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_a_process_that_is_stopped_for_a_while(running, undisturbed, victim):
    """As a laptop that sleeps or a hypervisor that pauses does."""
    rng = random.Random(victim)
    run = running()
    run.wait_until_folds_run(rng)
    wait_for(lambda: run.running() or run.process.poll() is not None)
    pid = run.process.pid if victim == "driver" else rng.choice(run.running() or [run.process.pid])
    os.kill(pid, signal.SIGSTOP)
    time.sleep(20)
    os.kill(pid, signal.SIGCONT)
    assert run.end(0) == 0
    check(run, undisturbed)


@pytest.mark.parametrize(
    "victim", ["gcs_server", "raylet/raylet", "dashboard/agent.py", "runtime_env/agent/main.py"]
)
def test_a_process_of_rays_own_is_killed(running, undisturbed, victim):
    """Ray lives on without it or the run ends with what is finished; the next one has its results."""
    run = running()
    run.wait_until_folds_run(random.Random(victim))
    victims = run.of_ray(victim)
    assert victims or run.process.poll() is not None, f"Ray has no {victim}"
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    code = run.end(0, 1)
    assert not code or RESUME in run.said
    check(run, undisturbed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_disk_that_fills_up_at_any_moment(running, undisturbed, tmp_path, seed):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.decode().strip()}")
    try:
        run = running("disk/run", "--runner", "local")
        run.wait_until_folds_run(random.Random(seed))
        ballast = disk / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        code = run.process.wait(DEADLINE_S)
        assert code in (0, 1), run.said
        ballast.unlink()
        if code:
            assert "No space left on device" in run.said
            assert RESUME in run.said
        run.end(code)
        check(run, undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_drivers_on_one_folder(running, shards, undisturbed):
    run = running()
    run.wait_until_folds_run(random.Random(0), 1)
    other = start("--resume", "--out", run.out, epoch_s=0)
    assert other.wait(DEADLINE_S) == 2
    assert f"is in use by process {run.process.pid}" in other.stdout.read()
    other.stdout.close()
    assert run.end(0) == 0
    assert manifest(run.out)["resumed"] == []
    check(run, undisturbed)


def test_two_drivers_on_one_node(running, undisturbed):
    """They share the node's decoded panels: who ends first must not take them from the other."""
    runs = [running("first"), running("second")]
    runs[0].wait_until_folds_run(random.Random(1))
    runs[0].process.send_signal(signal.SIGTERM)
    for run in runs:
        run.end(130, 0)
    for run in runs:
        check(run, undisturbed)
