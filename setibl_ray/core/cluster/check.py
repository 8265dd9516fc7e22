"""Validate cluster files offline, before a node is paid for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from setibl_ray.core.cluster.rules import Finding, Lock, kuberay, launcher, read_lock
from setibl_ray.core.errors import ConfigError
from setibl_ray.core.terminal import one_line


def check_file(path: Path, lock: Lock) -> list[Finding]:
    """Read one file, of `ray up` or of KubeRay, and apply the rules for its kind.

    Raises:
      ConfigError: the file cannot be read, or is not YAML mappings.
    """
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text()) if document is not None]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {one_line(error)}") from None
    if not documents or not all(isinstance(document, Mapping) for document in documents):
        raise ConfigError(f"{path}: expected a cluster file (a mapping of fields), got something else")
    return list(_findings(documents, lock))


LOCKS = ("requirements-current.lock", "requirements.lock")


def find_lock(path: Path) -> Path:
    """The lock of the project that contains a cluster file: the one that the file names, else requirements.lock.

    Raises:
      ConfigError: there is none in any folder above it.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError:  # reported where the file itself is read
        text = ""
    name = next((name for name in LOCKS if name in text), LOCKS[-1])
    for folder in path.absolute().parents:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"no {name} in a folder above {path}; name one with --lock")


def check_files(paths: list[Path], lock: Path | None) -> dict[Path, list[Finding]]:
    """Findings by file."""
    return {path: check_file(path, read_lock(lock or find_lock(path))) for path in paths}


def _findings(documents: list[Mapping], lock: Lock) -> Iterator[Finding]:
    objects = [document for document in documents if "apiVersion" in document or "kind" in document]
    if not objects:
        yield from launcher.findings(documents[0], lock)
        return
    for document in objects:
        yield from kuberay.findings(document, lock)
    if not any(document.get("kind") in kuberay.KINDS for document in objects):
        yield Finding("kind", f"one of {', '.join(kuberay.KINDS)}", "no object of Ray's")
