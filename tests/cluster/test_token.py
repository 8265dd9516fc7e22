"""Who gets in: nobody without the token, to the jobs API or the cluster; nobody from outside at all."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# This program's own Ray (with a dashboard besides), in a process tree of its own, until its stdin is closed.
CLUSTER = """
import json, sys, psutil, ray
from setibl_ray.core.cluster.connect import connected
init = ray.init
ray.init = lambda **options: init(**{**options, "include_dashboard": True, "num_cpus": 1})
with connected(None):
    ray.get(ray.remote(lambda: None).remote())
    me = psutil.Process()
    listening = [
        [process.name(), socket.laddr.ip]
        for process in [me, *me.children(recursive=True)]
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN
    ]
    gcs = ray.get_runtime_context().gcs_address
    dashboard = ray._private.worker.get_dashboard_url()
    print(json.dumps({"gcs": gcs, "dashboard": dashboard, "listening": listening}), flush=True)
    sys.stdin.read()
"""
CLIENT = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.get(ray.put('in')))"


def environment(home: Path, mode: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(home), "RAY_AUTH_MODE": mode}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    home = tmp_path_factory.mktemp("home")
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(home, "token"),
    )
    assert process.stdin
    assert process.stdout
    try:
        yield {**json.loads(process.stdout.readline()), "home": str(home)}
    finally:
        process.stdin.close()
        process.wait(timeout=60)


def jobs_status(cluster: dict[str, Any], **headers: str) -> int:
    request = urllib.request.Request(f"http://{cluster['dashboard']}/api/jobs/", headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def join(cluster: dict[str, Any], home: Path, mode: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CLIENT, cluster["gcs"]],
        # The loopback switch again: without it a client looks for 127.0.0.1 at the machine's outer address.
        env={**environment(home, mode), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        text=True,
        capture_output=True,
        timeout=120,
    )


def test_the_token_is_readable_by_its_owner_only(cluster: dict[str, Any]) -> None:
    assert (Path(cluster["home"]) / ".ray/auth_token").stat().st_mode & 0o077 == 0


def test_a_single_machine_listens_on_loopback_only(cluster: dict[str, Any]) -> None:
    listening = cluster["listening"]
    assert listening
    outside = [
        entry for entry in listening if not ipaddress.ip_address(entry[1].removeprefix("::ffff:")).is_loopback
    ]
    assert not outside


def test_the_jobs_api_refuses_a_client_without_the_token(cluster: dict[str, Any]) -> None:
    token = (Path(cluster["home"]) / ".ray/auth_token").read_text().strip()
    assert jobs_status(cluster) == 401
    assert jobs_status(cluster, Authorization="Bearer " + "0" * len(token)) in (401, 403)
    assert jobs_status(cluster, Authorization=f"Bearer {token}") == 200


def test_a_driver_without_the_token_cannot_join(cluster: dict[str, Any], tmp_path: Path) -> None:
    stranger = join(cluster, tmp_path, "disabled")
    assert stranger.returncode != 0
    assert "in" not in stranger.stdout.split()
    owner = join(cluster, Path(cluster["home"]), "token")
    assert owner.stdout.split() == ["in"], owner.stderr
