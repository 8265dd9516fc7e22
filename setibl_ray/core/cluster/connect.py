"""Start Ray on this machine, or join a running cluster."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray._common import utils as ray_utils
from ray._private import ray_constants, services, worker
from ray._private.utils import detect_fate_sharing_support_linux

from setibl_ray.core import host_memory
from setibl_ray.core.cluster import surroundings
from setibl_ray.core.errors import ConfigError, PlacementError
from setibl_ray.core.storage import can_be_written, temporary_folder
from setibl_ray.core.terminal import one_line
from setibl_ray.core.where import Where

ATTEMPTS = 3  # at starting Ray here
_is_own = False


@contextmanager
def connected(
    address: str | None, *, n_cpus: int | None = None, timeout_s: float = Where.connect_timeout_s
) -> Iterator[str]:
    """Ray for the duration of a `with` block; yields a line that says which Ray it is.

    Args:
      address: a cluster's address, `auto` for the one this machine belongs to, or None: then RAY_ADDRESS (which `ray
        job submit` sets), otherwise a new Ray for this process. A bare `ray.init()` would join any Ray left running.
      n_cpus: cores of a Ray started here; None for all of this machine.
      timeout_s: how long to wait for a cluster to answer.

    Raises:
      ConfigError: nothing answers at `address`, it refuses this client, or Ray cannot start on this machine.
    """
    global _is_own
    if ray.is_initialized():  # a caller's Ray, from Python: use it and leave it running
        joined = ray.get_runtime_context().gcs_address
        if address and "://" not in address and address not in ("auto", joined):
            raise ConfigError(
                f"address: this process has joined the Ray at {joined}; got {address}. Leave address out, or call "
                "ray.shutdown() first."
            )
        try:
            yield "joined the Ray of this process"
        except PlacementError as error:
            raise PlacementError(
                f"{error} This is the Ray of this process: start it with more, as in ray.init(num_cpus=4), or call "
                "ray.shutdown(), and one with all cores is started."
            ) from None
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    # The driver retries and counts; Ray's own retries for lack of memory have no limit.
    os.environ.setdefault("RAY_task_oom_retries", "0")
    # Ray ends a process that was idle for a second; the next fold or trial would build and trace its model again.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "300000")
    # Without an agent that collects metrics, each process would complain on this one's terminal.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    # Tracebacks reach the driver as values; other output of workers (TensorFlow's start-up) is not useful.
    options: dict = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        _check_address(address, timeout_s)
    else:
        surroundings.check_home()
        surroundings.check_temporary_folder()
        options |= {"include_dashboard": False, "num_cpus": n_cpus, **_memory()}
    with _own_sigterm():
        _init(address, options)
    try:
        if address:
            nodes = sum(node["Alive"] for node in ray.nodes())
            yield f"joined the Ray cluster at {address}, {nodes} nodes"
        else:
            _is_own = True
            yield "started Ray on this machine"
    finally:
        _is_own = False
        ray.shutdown()


def is_own() -> bool:
    """Whether the connected Ray was started here, so that nobody else uses it."""
    return _is_own


def lost() -> str:
    """Which essential process of the Ray started here has ended; empty if none has.

    Ray then ends the driver, too, without a message: a moment after its raylet (which ends with either of its agents)
    or 60 s after its gcs, and sooner if Ray is asked anything.
    """
    started: dict[str, Any] = worker._global_node.all_processes if worker._global_node else {}
    for name in ("gcs_server", "raylet"):
        if any(each.process.poll() is not None for each in started.get(name, ())):
            return name
    return ""


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the caller's SIGTERM handler: `ray.init` replaces it by one that exits silently."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before not in (signal.SIG_DFL, None) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _init(address: str | None, options: dict) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if address:
                ray.init(address=address, **options)
            else:
                private_token()
                with _loopback_only(), _in_its_own_session():
                    ray.init(address="local", **options)
            return
        # Ray raises bare Exceptions when a busy machine takes over 30 s to start its raylet; the next try mostly works.
        except Exception as error:
            ray.shutdown()
            if address or attempt == ATTEMPTS:
                what = (
                    f"no Ray cluster answers at {address}" if address else "Ray did not start on this machine"
                )
                raise ConfigError(f"address: {what}: {one_line(error)}") from error


def _check_address(address: str, timeout_s: float) -> None:
    """Check that the head answers: Ray itself would try for many minutes, with its log on the terminal."""
    try:
        place = address if "://" in address else str(services.canonicalize_bootstrap_address(address))
        url = urlsplit(place if "://" in place else f"ray://{place}")
        host, port = url.hostname, url.port
    except (ValueError, OSError) as error:  # such as: `auto` finds no cluster
        raise ConfigError(
            f"address: expected auto or HOST:PORT of a Ray head, got {address!r}: {one_line(error)}"
        ) from None
    if not host or not port:
        raise ConfigError(f"address: expected auto or HOST:PORT of a Ray head, got {address!r}")
    surroundings.check_answer(address, host, port, timeout_s)


def _memory() -> dict[str, Any]:
    """Limits for Ray's memory where its defaults would be wrong: Ray does not see a batch job's share of a machine, and
    if shared memory has too little room it takes as much of a disk, however small the disk is.

    Raises:
      ConfigError: there is no room for the smallest object store.
    """
    limit, total = host_memory.limit(), ray_utils.get_system_memory()
    share = min(limit or total, total)
    wanted = min(int(0.3 * share), ray_constants.DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES)
    shared, disk = str(surroundings.SHARED_MEMORY), temporary_folder()
    places = [shared, disk] if can_be_written(shared) else [disk]
    # Half of the space is left for what tasks keep there, and for other programs.
    room = {place: shutil.disk_usage(place).free // 2 for place in places}
    home = places[0] if room[places[0]] >= wanted else max(room, key=lambda place: room[place])
    if home == shared and room[home] >= wanted and share == total:
        return {}
    least = ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES
    if room[home] < least:
        found = " and ".join(f"{2 * free / 1e6:.0f} MB in {place}" for place, free in room.items())
        raise ConfigError(
            f"TMPDIR: Ray's object store needs {2 * least / 1e6:.0f} MB of free space, but there are only {found}. "
            "Free some, or set TMPDIR to a larger disk."
        )
    options: dict[str, Any] = {"object_store_memory": max(min(wanted, room[home]), least)}
    if share < total:
        options["_memory"] = int(0.7 * share)
    if home != shared:
        options["_plasma_directory"] = home
    return options


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Ray started here listens on 127.0.0.1 only.

    On Linux it would listen on every interface, whatever address it is given. On macOS and Windows, Ray itself uses
    this constant to stay on loopback. tests/cluster/test_token.py fails if that changes.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _in_its_own_session() -> Iterator[None]:
    """Keep signals to this process's whole group from reaching the Ray started here.

    `timeout`, batch systems and a closing terminal signal the group. Without raylet and gcs, the driver could not stop
    anything in an orderly way and would wait a minute for them. The kernel still ends them with the driver.
    """
    before = services.ConsolePopen
    if detect_fate_sharing_support_linux():
        services.ConsolePopen = partial(before, start_new_session=True)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        services.ConsolePopen = before  # type: ignore[misc]


def private_token() -> None:
    """Ray's token file, created before Ray writes one that every user of this machine can read."""
    path = Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists():
        handle, name = tempfile.mkstemp(dir=path.parent)  # mode 0600
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # another run was faster: use its token
            os.link(name, path)
        os.unlink(name)
    path.chmod(0o600)
