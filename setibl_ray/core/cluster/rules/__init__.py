"""What a cluster file must satisfy before money is spent on it; each rule reads a file and yields findings.

`launcher` knows the files of `ray up`, `kuberay` those of KubeRay, `tpu` the shapes of TPU slices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setibl_ray.core.errors import ConfigError

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
_PIN_IN_COMMAND = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([0-9][\w.!+*]*)")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong in a file."""

    field: str
    expected: str
    got: str


Lock = Mapping[str, str]
"""Versions by normalised package name."""


def read_lock(path: Path) -> Lock:
    """The versions of a requirements.lock.

    Raises:
      ConfigError: the file cannot be read or pins nothing.
    """
    try:
        pins = _PIN.findall(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--lock {path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    lock = {_normalised(name): version for name, version in pins}
    for needed in ("ray", "tensorflow"):
        if needed not in lock:
            raise ConfigError(
                f"--lock {path}: expected a line {needed}==VERSION, found none; is it the lock?"
            )
    return lock


def pinned_versions(field: str, text: str, lock: Lock) -> Iterator[Finding]:
    """Every `package==version` in a command or image recipe must be the lock's."""
    for name, version in _PIN_IN_COMMAND.findall(text):
        locked = lock.get(_normalised(name))
        if locked is None:
            yield Finding(field, "a package of requirements.lock", f"{name}=={version}")
        elif locked != version:
            yield Finding(field, f"{name}=={locked} (requirements.lock)", f"{name}=={version}")


def image(field: str, name: Any, lock: Lock) -> Iterator[Finding]:
    """A container image must have a fixed tag, and Ray's own images the lock's version."""
    repository, _, tag = str(name or "").rpartition(":")
    if not repository or "/" in tag or tag == "latest":
        yield Finding(field, "an image with a version tag", str(name))
    elif repository == "rayproject/ray" and tag.split("-")[0] != lock["ray"]:
        yield Finding(field, f"rayproject/ray:{lock['ray']}-… (requirements.lock)", str(name))


def show(value: Any) -> str:
    """A value of a YAML file in a table cell."""
    return "nothing" if value is None or value == "" else str(value)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
