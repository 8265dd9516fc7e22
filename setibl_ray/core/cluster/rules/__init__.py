"""Rules that a cluster file must satisfy before money is spent on it; each reads a file and yields findings.

`launcher` checks files for `ray up`, `kuberay` those for KubeRay; `tpu` has the shapes of TPU slices.
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


@dataclass(frozen=True)
class At:
    """A place in a file; `value` is None if nothing is there."""

    value: Any
    field: str = ""

    def __getitem__(self, key: str) -> At:
        inside = self.value.get(key) if isinstance(self.value, Mapping) else None
        return At(inside, f"{self.field}.{key}" if self.field else key)

    def __iter__(self) -> Iterator[At]:
        """The items of a list."""
        for number, item in enumerate(self.value if isinstance(self.value, list) else ()):
            yield At(item, f"{self.field}[{number}]")

    def must_be(self, expected: Any, why: str = "") -> Iterator[Finding]:
        """A finding unless exactly this value is here; `why` follows the value in the finding."""
        if type(self.value) is not type(expected) or self.value != expected:
            text = str(expected).lower() if isinstance(expected, bool) else str(expected)
            yield self.wrong(f"{text} {why}".strip())

    def wrong(self, expected: str, got: str | None = None) -> Finding:
        """A finding; by default, `got` is the value here."""
        shown = "nothing" if self.value is None or self.value == "" else str(self.value)
        return Finding(self.field, expected, shown if got is None else got)


Lock = Mapping[str, str]
"""Versions by normalised package name."""


def read_lock(path: Path) -> Lock:
    """The versions of a lock file.

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


def pinned_versions(command: At, lock: Lock) -> Iterator[Finding]:
    """Every `package==version` in a command or image recipe must be the lock's."""
    for name, version in _PIN_IN_COMMAND.findall(str(command.value)):
        locked = lock.get(_normalised(name))
        if locked is None:
            yield command.wrong("a package of the lock", f"{name}=={version}")
        elif locked != version:
            yield command.wrong(f"{name}=={locked} (the lock)", f"{name}=={version}")


def image(name: At, lock: Lock) -> Iterator[Finding]:
    """A container image must have a fixed tag, and Ray's own images the lock's version."""
    repository, _, tag = str(name.value or "").rpartition(":")
    if not repository or "/" in tag or tag == "latest":
        yield name.wrong("an image with a version tag")
    elif repository == "rayproject/ray" and tag.split("-")[0] != lock["ray"]:
        yield name.wrong(f"rayproject/ray:{lock['ray']}-… (the lock)")


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
