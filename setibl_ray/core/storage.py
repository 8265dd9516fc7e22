"""Locations of data and results: a local path, or a URL of an object store."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import filelock
from pydantic import AfterValidator

from setibl_ray.core.errors import ConfigError, SetiblError
from setibl_ray.core.terminal import one_line

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}
_CLIENTS = {"aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "google"}


def without_credentials(url: str) -> str:
    """`url` itself, if it may be shown and written down.

    Raises:
      ValueError: it contains a password, a key or a token; the message does not repeat it.
    """
    _, is_url, rest = url.partition("://")
    if is_url and (":" in rest.split("/")[0].rpartition("@")[0] or "?" in rest):
        raise ValueError(
            "expected a URL without credentials (KEY:SECRET@…, …?token=…): a URL is recorded in manifest.json, in logs "
            "and in the list of processes. Put them where the store's own tools look, such as ~/.aws/credentials."
        )
    return url


Location = Annotated[str, AfterValidator(without_credentials)]
"""A path or URL that a command takes."""


def location(name: str, given: object) -> str:
    """A path or URL as a string.

    Args:
      name: of the argument, for the error.
      given: a string, or a path.

    Raises:
      ConfigError: it is something else, or carries credentials.
    """
    if not isinstance(given, str | os.PathLike) or isinstance(text := os.fspath(given), bytes) or not text:
        what = "nothing" if given is None or isinstance(given, str) else type(given).__name__
        raise ConfigError(f"{name}: expected a folder or URL, as a string or a path; got {what}")
    try:
        return without_credentials(text)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def absolute(place: str) -> str:
    """A path made absolute, to hold in any working folder; a URL as it is."""
    return place if "://" in place else os.path.abspath(place)


def temporary_folder() -> str:
    """This process's folder for temporary files.

    Raises:
      ConfigError: there is none that can be written.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ConfigError(
            f"TMPDIR: {error.strerror or error}. Set TMPDIR to a folder that can be written."
        ) from None


def can_be_written(folder: str | os.PathLike[str]) -> bool:
    """Whether a file can be made in a local folder; permissions alone do not tell, least of all for root."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def file_lock(path: str | os.PathLike[str], timeout_s: float = -1) -> Iterator[None]:
    """Hold a lock file between the processes of a node, waiting for it as long as need be or for `timeout_s`.

    Raises:
      TimeoutError: another process holds it.
    """
    with warnings.catch_warnings():
        # Without flock, the mere existence of the file is the lock, which is good enough.
        warnings.filterwarnings("ignore", message="flock not supported")
        lock = filelock.FileLock(path, timeout=timeout_s)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def filesystem(location: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a location, and its path there, without a slash at the end.

    Raises:
      ConfigError: no such protocol, a package that it needs is missing, or the URL carries credentials.
    """
    import fsspec

    try:
        without_credentials(location)
        if "\0" in location:
            raise ValueError(f"a path cannot hold a NUL: {location!r}")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        fs, path = fsspec.core.url_to_fs(location)
    except ImportError as error:
        extra = _EXTRAS.get(location.split(":")[0])
        what = (
            f"needs another package: pip install 'setibl-ray[{extra}]'"
            if extra
            else f"cannot be opened: {error}"
        )
        raise ConfigError(f"{location} {what}") from None
    except ValueError as error:  # fsspec's error for an unknown protocol
        raise ConfigError(f"{location}: {error}. Expected a local path, gs:// or s3://.") from None
    return fs, path.rstrip("/")


@contextmanager
def reaching(location: str, what: str, error: type[SetiblError]) -> Iterator[None]:
    """Turn errors of a disk or an object store into one line.

    Clients of object stores have their own errors besides OSError, for missing keys or a network that is down; they
    are recognised by their packages.

    Args:
      location: what is read or written, as a user would type it.
      what: "read" or "written".
      error: what to raise.
    """
    try:
        yield
    except Exception as problem:
        if not isinstance(problem, OSError) and type(problem).__module__.split(".")[0] not in _CLIENTS:
            raise
        reason = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
        raise error(f"{location} could not be {what}: {one_line(reason)}") from problem
