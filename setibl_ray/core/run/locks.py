"""One driver for each run folder: a lock that the kernel releases on a local disk, a lock object elsewhere.

A local lock is an flock on `.lock` and ends with its process, however that ends. Object stores have no flock, nor have
file systems mounted without it (some Lustre and NFS): there the owner writes its name and the time to `.lock`, and
again every `REFRESH_S`. A lock not written for `ABANDONED_S` counts as abandoned; one of a process of this host that is
gone does so at once. Limits: hosts' clocks must agree to within a minute, and where a store cannot refuse to create an
object that exists, two drivers that start in the same second may both go on.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

from setibl_ray.core.errors import RunFolderError
from setibl_ray.core.storage import reaching

NAME = ".lock"
REFRESH_S = 30.0
ABANDONED_S = 180.0
NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of flock on a file system without it."""


@contextmanager
def local(folder: Path, shown: str) -> Iterator[None]:
    """Hold `folder`'s lock, creating the folder if it does not exist.

    Raises:
      RunFolderError: another process has it, or the folder cannot be written.
    """
    path = folder / NAME
    while True:
        with reaching(shown, "written", RunFolderError):
            folder.mkdir(parents=True, exist_ok=True)
            without_flock = not _has_flock(folder)
        if without_flock:
            with remote(fsspec.filesystem("file"), str(folder), shown):
                yield
            return
        with reaching(shown, "written", RunFolderError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(_refusal(shown, _parsed(os.pread(descriptor, 4096, 0)))) from None
            if os.fstat(descriptor).st_nlink == 0:  # its owner removed it between our open and our flock
                continue
            try:
                with suppress(OSError):  # the name is only information; the flock itself works on a full disk
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(_owner()).encode(), 0)
                yield
            finally:
                with suppress(OSError):
                    path.unlink()
            return
        finally:
            os.close(descriptor)


def _has_flock(folder: Path) -> bool:
    """Whether flock works here; tried on the folder itself, as a file made for it could be taken for a lock object."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_FLOCK
    finally:
        os.close(descriptor)
    return True


@contextmanager
def remote(fs: fsspec.AbstractFileSystem, folder: str, shown: str) -> Iterator[None]:
    """Hold the lock object of a folder in an object store.

    Raises:
      RunFolderError: another driver has it and has refreshed it, or the place cannot be written.
    """
    path = f"{folder}/{NAME}"
    owner = _owner()
    with reaching(shown, "written", RunFolderError):
        _claim(fs, path, owner, shown)
    done = threading.Event()

    def refresh() -> None:
        while not done.wait(REFRESH_S):
            # If the store is gone for good, the driver's own writes will fail.
            with suppress(RunFolderError), reaching(shown, "written", RunFolderError):
                fs.pipe_file(path, json.dumps(owner | {"time_s": time.time()}).encode())

    thread = threading.Thread(target=refresh, name="run folder lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=REFRESH_S)
        with suppress(RunFolderError), reaching(shown, "written", RunFolderError):
            fs.rm_file(path)


def _claim(fs: fsspec.AbstractFileSystem, path: str, owner: dict[str, Any], shown: str) -> None:
    mine, found = json.dumps(owner).encode(), _found(fs, path)
    try:
        # Checked first: a store, or a version of its client, that ignores "create" would overwrite a live lock.
        if found is None:
            fs.pipe_file(path, mine, mode="create")
    except FileExistsError:
        found = _found(fs, path)
    if found is not None:
        if not _abandoned(found):
            raise RunFolderError(_refusal(shown, found))
        fs.pipe_file(path, mine)
    there = _parsed(fs.cat_file(path))
    if there.get("id") != owner["id"]:  # another driver claimed it at the same moment, and later
        raise RunFolderError(_refusal(shown, there))


def _found(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """What the lock says; None where there is none."""
    fs.invalidate_cache()
    try:
        return _parsed(fs.cat_file(path))
    except FileNotFoundError:
        return None


def _owner() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "time_s": time.time(), "id": uuid4().hex}


def _parsed(text: str | bytes) -> dict[str, Any]:
    with suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return {}


def _abandoned(there: dict[str, Any]) -> bool:
    try:
        if there["host"] == socket.gethostname():
            os.kill(there["pid"], 0)
        return time.time() - there["time_s"] > ABANDONED_S
    except ProcessLookupError:
        return True
    except (KeyError, TypeError, OSError):
        return False


def _refusal(shown: str, there: dict[str, Any]) -> str:
    text = f"{shown} is in use by process {there.get('pid', '?')} on {there.get('host', '?')}"
    if "time_s" in there:
        text += f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(there['time_s']))}"
    return (
        f"{text}. Wait for it or stop it; two drivers on one run folder would overwrite each other's files."
    )
