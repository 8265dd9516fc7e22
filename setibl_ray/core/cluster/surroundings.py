"""Checks of what Ray needs from this machine and a head: Ray itself would complain only minutes later, less clearly."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from setibl_ray.core.errors import ConfigError
from setibl_ray.core.storage import can_be_written

SHARED_MEMORY = Path("/dev/shm")
_SOCKET_PATH = 107  # bytes that the path of a Unix socket may have
# What Ray appends to its temporary folder to name its longest socket.
_SESSION = "/ray/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
# An HTTP/2 client's greeting and empty settings: a gRPC server answers with settings of its own, other servers do not.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4


def check_home() -> None:
    """Raises:
    ConfigError: Ray could not keep its token in HOME.
    """
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    home = os.path.expanduser("~")
    what = ""
    if not os.path.isdir(home):
        what = "is no folder"
    elif not can_be_written(f"{home}/.ray" if os.path.isdir(f"{home}/.ray") else home):
        what = "cannot be written"
    if what:
        raise ConfigError(
            f"HOME: {home!r} {what}, and Ray keeps its token there. Set HOME to a folder that can be."
        )


def check_temporary_folder() -> None:
    """Raises:
    ConfigError: Ray's sockets could not lie in the folder for temporary files.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "TMPDIR")
    folder = os.environ.get(name, "/tmp")
    room = _SOCKET_PATH - len(_SESSION)
    what = ""
    if not folder.isascii():
        what = "is not ASCII"
    elif len(folder) > room:
        what = f"has {len(folder)} characters, of which Ray's sockets leave room for {room}"
    elif os.path.exists(folder) and not can_be_written(folder):
        what = "is no folder that can be written"
    if what:
        raise ConfigError(f"{name}: {folder!r} {what}. Set {name} to a short path such as /tmp.")


def check_answer(address: str, host: str, port: int, timeout_s: float) -> None:
    """Wait for a Ray head to answer.

    Args:
      address: as the user gave it.
      host, port: what it stands for.
      timeout_s: how long to wait for an answer; a refused connection fails at once.

    Raises:
      ConfigError: it refuses, does not answer, or is not Ray.
    """
    try:
        ends = time.monotonic() + timeout_s
        with socket.create_connection((host, port), timeout_s) as connection:
            if "RAY_USE_TLS" in os.environ:  # it would not answer in plain text
                return
            connection.settimeout(max(ends - time.monotonic(), 0.1))
            connection.sendall(_GREETING)
            answer = connection.recv(9)
    except TimeoutError:
        raise ConfigError(
            f"address: no answer from {address} within {timeout_s:g} s (--connect-timeout-s). Is its head alive?"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"address: no Ray cluster answers at {address}: {error.strerror or error}. Start its head, or give another "
            "--address (RAY_ADDRESS)."
        ) from None
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise ConfigError(
            f"address: what answers at {address} is no Ray cluster. Give the address of its head."
        )
