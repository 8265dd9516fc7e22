"""`ray up clusters/on-premises.yaml` for real: three hosts, a 5-fold job, one host lost, `ray down`.

The hosts are namespaces on this machine (hosts.py). The shipped file itself is under test: only addresses, user
and key are put in. The hosts' Python environment is this test's own, marked as installed from the lock, so that
nothing is downloaded; the project is installed into it on every host by the file's own commands.
"""

from __future__ import annotations

import contextlib
import ensurepip
import hashlib
import json
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import hosts
import png_shards
import pytest
import yaml
from job import cv, single_machine_run

PROJECT = Path(__file__).resolve().parents[2]
SHIPPED = PROJECT / "clusters/on-premises.yaml"
DASHBOARD = "http://127.0.0.1:8265"
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_UP_enable_autoscaler_v2": "0"}
RUN = f"{hosts.HOME}/run"
LOST = "worker-2"

_reason = hosts.why_not()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(_reason is not None, reason=f"cannot make hosts here: {_reason}"),
]
T = TypeVar("T")


def test_five_folds_survive_a_lost_host(tmp_path: Path) -> None:
    data, expected = tmp_path / "data", tmp_path / "expected"
    png_shards.write(data, train_shards=10, test_shards=2, per_shard=24)

    with (
        single_machine_run(data, expected) as single_machine,
        hosts.make_hosts(["operator", "head", "worker-1", LOST], shared=[tmp_path]) as machine,
    ):
        operator, head = machine["operator"], machine["head"]
        with ThreadPoolExecutor() as pool:
            list(pool.map(prepare, machine.values()))
        quiet = {name: set(machine[name].processes().values()) for name in ("head", "worker-1")}
        file = tmp_path / "on-premises.yaml"
        file.write_text(rendered(machine))
        operator.run(["ray", "get-auth-token", "--generate"])
        operator.run(["ray", "up", "--no-config-cache", "-y", str(file)], timeout_s=420, **TOKEN)
        wait_until("three nodes", 300, lambda: active_nodes(head) == 3)

        with dashboard(operator, file):
            assert jobs_api(operator, "", token=False) == "401", "a client without the token must be refused"
            job = ["ray", "job", "submit", "--address", DASHBOARD, "--submission-id", "cv", "--no-wait", "--"]
            operator.run([*job, *cv(data, RUN)], **TOKEN)

            wait_until("an epoch on " + LOST, 420, lambda: folds_in_training(head))
            machine[LOST].power_off()

            status = wait_until("the job's end", 600, lambda: job_end(head))
            assert status == "SUCCEEDED", job_logs(head)

        assert single_machine.wait(timeout=600) == 0, (tmp_path / "expected.log").read_text()
        fetched = tmp_path / "fetched"
        operator.run(["ray", "rsync-down", str(file), f"{RUN}/", str(fetched)], **TOKEN)
        assert (fetched / "oof.csv").read_bytes() == (expected / "oof.csv").read_bytes()
        assert (fetched / "submission.csv").read_bytes() == (expected / "submission.csv").read_bytes()
        attempts = [
            attempt
            for fold in json.loads((fetched / "manifest.json").read_text())["folds"].values()
            for attempt in fold["attempts"]
        ]
        assert any(attempt.get("outcome") == "failed" and attempt["node"] == LOST for attempt in attempts)

        operator.run(["ray", "down", "-y", str(file)], timeout_s=180, **TOKEN)
        # Ray stops the head; workers of this provider leave by themselves: raylets after one minute, agents after two.
        wait_until("end of everything", 240, lambda: not left_running(machine, quiet))


def left_running(machine: dict[str, hosts.Host], before: dict[str, set[str]]) -> list[str]:
    """What runs on the surviving hosts and did not before `ray up`; sessions of sshd aside."""
    now = {line for name in before for line in machine[name].processes().values() if line not in before[name]}
    return [line for line in now if "sshd" not in line]


def prepare(host: hosts.Host) -> None:
    """What an administrator has done beforehand: keys, and (here) the locked environment with pip in it."""
    host.run(["bash", "-c", 'mkdir -m 700 ~/.ssh && install -m 600 "$0" ~/.ssh/setibl_ed25519', host.key])
    packages = Path(sysconfig.get_path("purelib"))
    if not (packages / "pip").exists():  # uv makes environments without
        (wheel,) = Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl")
        host.run(["bash", "-c", 'echo "$0" > "$1"', str(wheel), str(packages / "pip.pth")])
    stamp = hashlib.sha256((PROJECT / "requirements.lock").read_bytes()).hexdigest() + "  - "
    host.run(["bash", "-c", f"echo '{stamp}' > {hosts.ENVIRONMENT}/.setibl-lock"])


def rendered(machine: dict[str, hosts.Host]) -> str:
    """The shipped file with this test's addresses, user and key."""
    config = yaml.safe_load(SHIPPED.read_text())
    workers = [host.address for name, host in machine.items() if name.startswith("worker")]
    config["provider"] |= {"head_ip": machine["head"].address, "worker_ips": workers}
    config["auth"]["ssh_user"] = "root"
    assert config["auth"]["ssh_private_key"] == "~/.ssh/setibl_ed25519"
    return yaml.safe_dump(config, sort_keys=False)


def wait_until(what: str, deadline_s: float, probe: Callable[[], T]) -> T:
    """The first true answer of `probe`.

    Raises:
      AssertionError: none came in time.
    """
    begun = time.monotonic()
    while not (answer := probe()):
        assert time.monotonic() - begun < deadline_s, f"no {what} within {deadline_s} s"
        time.sleep(1)
    # Pytest shows it if the test fails.
    print(f"{time.strftime('%X')}  {what}, after {time.monotonic() - begun:.0f} s")
    return answer


def active_nodes(head: hosts.Host) -> int:
    status = head.run(["ray", "status"], check=False, **TOKEN).stdout
    active = status.partition("Active:")[2].partition("Pending:")[0]
    return sum(int(line.split()[0]) for line in active.splitlines() if "local.cluster.node" in line)


@contextlib.contextmanager
def dashboard(operator: hosts.Host, file: Path) -> Iterator[None]:
    """`ray dashboard FILE`, the documented tunnel, for the length of the block."""
    command = operator.command(["ray", "dashboard", str(file)], **TOKEN)
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as tunnel:
        try:
            wait_until("tunnel to the dashboard", 60, lambda: jobs_api(operator, "", token=False) == "401")
            yield
        finally:
            # Killing nsenter would leave what it started; this looks at the operator's own pid namespace only.
            operator.run(["pkill", "-f", "ray dashboard"], check=False)
            operator.run(["pkill", "ssh$"], check=False)
            tunnel.kill()


def jobs_api(host: hosts.Host, path: str, token: bool = True) -> str:
    """The dashboard's answer: a body, or an HTTP error's number. (`ray job` takes seconds of CPU a call.)"""
    code = (
        "import os, sys, urllib.error, urllib.request as r\n"
        "token = open(os.path.expanduser('~/.ray/auth_token')).read().strip()\n"
        "headers = {'Authorization': 'Bearer ' + token} if sys.argv[2] == 'True' else {}\n"
        "request = r.Request(sys.argv[1], headers=headers)\n"
        "try: print(r.urlopen(request, timeout=10).read().decode())\n"
        "except urllib.error.HTTPError as error: print(error.code)\n"
        "except OSError as error: print('no answer:', error)\n"
    )
    return host.run(["python", "-c", code, f"{DASHBOARD}/api/jobs/{path}", str(token)]).stdout.strip()


def folds_in_training(head: hosts.Host) -> list[str]:
    """Folds that have finished an epoch on the host that will be lost, and are still at it."""
    assert job_end(head) is None, job_logs(head)
    states = head.run(["find", RUN, "-name", "state-*"], check=False).stdout
    found = []
    for fold in range(5):
        entry = head.run(["cat", f"{RUN}/fold-{fold}/fold.json"], check=False)
        known = {"state": "", "attempts": []} if entry.returncode else json.loads(entry.stdout)
        if (
            known["state"] == "running"
            and known["attempts"][-1]["node"] == LOST
            and f"fold-{fold}/" in states
        ):
            found.append(str(fold))
    return found


def job_end(head: hosts.Host) -> str | None:
    # Asked on the head itself: on a busy machine ssh gives up a tunnel after 15 s of silence.
    answer = jobs_api(head, "cv")
    status = json.loads(answer)["status"] if answer.startswith("{") else answer
    return status if status in ("SUCCEEDED", "FAILED", "STOPPED") else None


def job_logs(head: hosts.Host) -> str:
    shown = head.run(["ray", "job", "logs", "--address", DASHBOARD, "cv"], check=False, **TOKEN)
    return shown.stdout[-5000:]
