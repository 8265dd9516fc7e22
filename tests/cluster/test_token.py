"""Without the token nobody gets in: neither to the jobs API nor to the cluster itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

# A cluster of its own process tree: it answers on loopback until its stdin is closed.
CLUSTER = """
import json, sys, ray
context = ray.init(address="local", num_cpus=1, include_dashboard=True, log_to_driver=False)
print(json.dumps({"gcs": ray.get_runtime_context().gcs_address, "dashboard": context.dashboard_url}), flush=True)
sys.stdin.read()
"""
CLIENT = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.get(ray.put('in')))"


def environment(home: Path, mode: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(home), "RAY_AUTH_MODE": mode, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
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


def jobs_status(cluster: dict[str, str], **headers: str) -> int:
    request = urllib.request.Request(f"http://{cluster['dashboard']}/api/jobs/", headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def join(cluster: dict[str, str], home: Path, mode: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CLIENT, cluster["gcs"]],
        env=environment(home, mode),
        text=True,
        capture_output=True,
        timeout=120,
    )


def test_the_token_is_readable_by_its_owner_only(cluster: dict[str, str]) -> None:
    assert (Path(cluster["home"]) / ".ray/auth_token").stat().st_mode & 0o077 == 0


def test_the_jobs_api_refuses_a_client_without_the_token(cluster: dict[str, str]) -> None:
    token = (Path(cluster["home"]) / ".ray/auth_token").read_text().strip()
    assert jobs_status(cluster) == 401
    assert jobs_status(cluster, Authorization="Bearer " + "0" * len(token)) in (401, 403)
    assert jobs_status(cluster, Authorization=f"Bearer {token}") == 200


def test_a_driver_without_the_token_cannot_join(cluster: dict[str, str], tmp_path: Path) -> None:
    stranger = join(cluster, tmp_path, "disabled")
    assert stranger.returncode != 0
    assert "in" not in stranger.stdout.split()
    owner = join(cluster, Path(cluster["home"]), "token")
    assert owner.stdout.split() == ["in"], owner.stderr
