"""`sbatch clusters/slurm.sh` for real, on two hosts: a run that meets its time limit is requeued and continues."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hosts
import png_shards
import pytest
from job import TWO, flags, single_machine_run
from waiting import wait_for

PROJECT = Path(__file__).resolve().parents[2]
NAMES = ["node-1", "node-2"]
# Without munge, a service of its own: these hosts trust each other.
CONF = """
ClusterName=test
SlurmctldHost=node-1
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/tmp/slurmctld
SlurmdSpoolDir=/tmp/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
NodeName=node-[1-2] CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    if missing := [
        name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name, path=path) is None
    ]:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm)"
    return hosts.why_not()


class Slurm:
    """A SLURM of two hosts, the first of which takes jobs."""

    def __init__(self, machine: dict[str, hosts.Host], conf: Path) -> None:
        self._machine, self._conf = machine, str(conf)
        self.run("bash", "-c", "mkdir /tmp/slurmctld && slurmctld")
        for name in NAMES:
            self.run("bash", "-c", "mkdir /tmp/slurmd && slurmd", on=name)
        wait_for(lambda: self.run("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"])

    def run(self, *argv: str, on: str = NAMES[0], **environment: str) -> str:
        return self._machine[on].run(argv, SLURM_CONF=self._conf, **environment).stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        shown = self.run("scontrol", "show", "job", number)
        return dict(re.findall(r"(\S+?)=(\S*)", shown))


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    (tmp_path / "slurm.conf").write_text(CONF)
    with hosts.make_hosts(NAMES, shared=[tmp_path]) as machine:
        yield Slurm(machine, tmp_path / "slurm.conf")


@pytest.mark.cluster
@pytest.mark.timeout(1200)
@pytest.mark.skipif(why_not() is not None, reason=f"cannot run SLURM here: {why_not()}")
def test_a_run_that_meets_its_time_limit_is_requeued_and_continues(slurm: Slurm, tmp_path: Path) -> None:
    data, out, expected = (tmp_path / name for name in ("data", "run", "expected"))
    png_shards.write(data, train_shards=10, test_shards=2, per_shard=24)
    submit = ["sbatch", "--parsable", "--nodes=2", f"--chdir={PROJECT}", f"--output={tmp_path}/job.log"]
    with single_machine_run(data, expected, TWO) as single_machine:
        number = slurm.run(*submit, "clusters/slurm.sh", *flags(data, out, TWO), VENV=hosts.ENVIRONMENT)
        log = tmp_path / "job.log"
        wait_for(lambda: list(out.glob("fold-*/state-*")), 300)
        slurm.run("scancel", "--batch", "--signal=USR1", number)  # as SLURM does before the limit
        wait_for(lambda: slurm.job(number)["JobState"] == "PENDING", 120)
        assert "everything that was finished is kept" in log.read_text()
        slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now")
        wait_for(lambda: slurm.job(number)["JobState"] in ("COMPLETED", "FAILED"), 600)
        job = slurm.job(number)
        assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1"), (
            log.read_text()
        )
        assert single_machine.wait(timeout=600) == 0, (tmp_path / "expected.log").read_text()
    for name in ("oof.csv", "submission.csv"):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    manifest = json.loads((out / "manifest.json").read_text())
    attempts = [attempt for fold in manifest["folds"].values() for attempt in fold["attempts"]]
    assert {attempt["node"] for attempt in attempts} == set(NAMES)
    assert len(manifest["resumed"]) == 1
    assert any(attempt["from_step"] for attempt in attempts)
    for name in NAMES:
        assert slurm.run("bash", "-c", "ls -d /tmp/ray* || true", on=name).count("No such file") == 1


def test_without_out_nothing_begins() -> None:
    done = subprocess.run(
        ["bash", str(PROJECT / "clusters/slurm.sh"), "--folds", "5"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("slurm.sh: expected --out")
