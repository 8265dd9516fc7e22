"""Joining and starting Ray where that cannot work: said at once, in one line that names what to set."""

import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from setibl_ray.core import host_memory
from setibl_ray.core.cluster import connect, surroundings
from setibl_ray.core.errors import ConfigError

GIGABYTE = 1 << 30


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect.ray, "init", lambda **_: pytest.fail("Ray was asked"))


def refused(address=None, **options):
    with pytest.raises(ConfigError) as caught, connect.connected(address, **options):
        pass
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    return said


@pytest.fixture
def listener():
    """A socket that takes connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_is_gone(listener, form):
    port = listener.getsockname()[1]
    listener.close()
    began = time.monotonic()
    assert "Connection refused. Start its head" in refused(form.format(port))
    assert time.monotonic() - began < 10


def test_another_address_than_that_of_the_ray_of_this_process(monkeypatch):
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: True)
    here = SimpleNamespace(gcs_address="127.0.0.1:6379")
    monkeypatch.setattr(connect.ray, "get_runtime_context", lambda: here)
    assert "this process has joined the Ray at 127.0.0.1:6379; got 10.0.0.1:6379" in refused("10.0.0.1:6379")
    for same in (None, "auto", "127.0.0.1:6379"):
        with connect.connected(same) as greeting:
            assert greeting == "joined the Ray of this process"


def test_the_address_in_the_environment(listener, monkeypatch):
    port = listener.getsockname()[1]
    listener.close()
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert f"no Ray cluster answers at 127.0.0.1:{port}" in refused()
    assert f"no Ray cluster answers at 127.0.0.1:{port}" in refused("auto").replace(
        "at auto", f"at 127.0.0.1:{port}"
    )


def test_a_head_that_is_silent(listener, monkeypatch):
    monkeypatch.setattr(connect.services, "canonicalize_bootstrap_address", lambda address: address)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert f"no answer from {address} within 0.2 s (--connect-timeout-s)" in refused(address, timeout_s=0.2)


def test_something_else_than_ray(listener, monkeypatch):
    monkeypatch.setattr(connect.services, "canonicalize_bootstrap_address", lambda address: address)

    def answer():
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    assert "is no Ray cluster" in refused(f"127.0.0.1:{listener.getsockname()[1]}")
    thread.join()


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "ray://"])
def test_no_address_at_all(address):
    assert refused(address).startswith("address: ")


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    assert f"HOME: '{tmp_path}/absent' is no folder, and Ray keeps its token there. Set HOME" in refused()
    monkeypatch.setenv("HOME", "/proc")  # which nobody can write to
    assert "HOME: '/proc' cannot be written" in refused()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")  # then nothing is kept there
    surroundings.check_home()


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_the_temporary_folder(monkeypatch, tmp_path, variable):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    for folder, what in (
        ("/tmp/é", "is not ASCII"),
        ("/tmp/" + 40 * "x", "has 45 characters"),
        ("/proc", "is no folder"),
    ):
        monkeypatch.setenv(variable, folder)
        said = refused()
        assert said.startswith(f"{variable}: ")
        assert what in said
        assert f"Set {variable} to a short path such as /tmp." in said
    monkeypatch.setenv(variable, "/tmp")
    surroundings.check_temporary_folder()


def test_the_longest_temporary_folder_that_ray_takes():
    from ray._private.utils import validate_socket_filepath

    room = surroundings._SOCKET_PATH - len(surroundings._SESSION)
    validate_socket_filepath("/" + (room - 1) * "x" + surroundings._SESSION)
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath("/" + room * "x" + surroundings._SESSION)


def test_ray_takes_no_more_than_a_jobs_share(monkeypatch, tmp_path):
    assert connect._memory() == {} or host_memory.limit()
    monkeypatch.setattr(host_memory, "limit", lambda: 2 * GIGABYTE)
    monkeypatch.setattr(connect.ray_utils, "get_system_memory", lambda: 64 * GIGABYTE)
    options = connect._memory()
    assert options["_memory"] == int(1.4 * GIGABYTE)
    assert options["object_store_memory"] <= 0.3 * 2 * GIGABYTE
    assert "_plasma_directory" not in options


@pytest.mark.parametrize("there", [True, False])
def test_ray_without_shared_memory_that_can_be_written(monkeypatch, tmp_path, there):
    monkeypatch.setattr(host_memory, "limit", lambda: None)
    monkeypatch.setattr(surroundings, "SHARED_MEMORY", Path("/proc" if there else tmp_path / "shm"))
    options = connect._memory()
    assert os.path.isdir(options["_plasma_directory"])
    assert options["object_store_memory"] > 0
    assert "_memory" not in options


def _with_room(monkeypatch, shared, disk):
    monkeypatch.setattr(host_memory, "limit", lambda: None)
    monkeypatch.setattr(connect.ray_utils, "get_system_memory", lambda: 10 * GIGABYTE)
    free = {str(surroundings.SHARED_MEMORY): shared}
    monkeypatch.setattr(
        connect.shutil, "disk_usage", lambda place: SimpleNamespace(free=free.get(str(place), disk))
    )


@pytest.mark.parametrize(("shared", "disk", "store", "on_disk"), [
    (8, 1, None, False),  # Ray's own default, 30 % of the memory, fits
    (1 / 16, 40, 3, True),
    (1 / 16, 1, 1 / 2, True),  # Ray would ask for 3 GB of a disk with one
    (2, 1, 1, False),
])  # fmt: skip
def test_ray_asks_for_no_more_than_there_is_room_for(monkeypatch, shared, disk, store, on_disk):
    _with_room(monkeypatch, int(shared * GIGABYTE), disk * GIGABYTE)
    options = connect._memory()
    assert options.get("object_store_memory") == (store and int(store * GIGABYTE))
    assert ("_plasma_directory" in options) == on_disk


def test_no_room_for_any_object_store(monkeypatch):
    _with_room(monkeypatch, 64_000_000, 20_000_000)
    assert (
        "object store needs 157 MB of free space, but there are only 64 MB in /dev/shm and 20 MB in"
        in refused()
    )


@pytest.fixture(scope="module")
def head(own_ray):
    return connect.ray.get_runtime_context().gcs_address


def test_a_head_that_is_there(head):
    host, _, port = head.rpartition(":")
    surroundings.check_answer("auto", host, int(port), 10)
