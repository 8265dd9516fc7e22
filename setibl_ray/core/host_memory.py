"""How much memory this process may still take, given the machine and every control group that it is in.

A batch system (SLURM, systemd, Kubernetes) gives a job its memory as the limit of a control group above the job's own,
in the unified hierarchy (version 2) or the memory controller's (version 1). All of these limits apply at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_NO_LIMIT = 1 << 60  # version 1 writes the largest number of pages for "none"
# limit, usage and the line of memory.stat that says how much of it is file cache, which the kernel gives up first
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def available(root: Path = Path("/")) -> int:
    """Bytes that may be taken without swapping or being killed; 2 ** 60 if no limit is known.

    Args:
      root: where proc and sys are mounted.
    """
    room = _NO_LIMIT
    with suppress(OSError, AttributeError):
        total = re.search(r"^MemAvailable: *(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
        room = int(total[1]) << 10  # type: ignore[index]
    for limit, used in _groups(root):
        room = min(room, limit - used)
    return max(room, 0)


def limit(root: Path = Path("/")) -> int | None:
    """The smallest limit of the control groups that this process is in, in bytes; None without any."""
    return min((limit for limit, _ in _groups(root)), default=None)


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and usage of every control group with a limit, from this process's own up to the top."""
    for top, own, (limit_name, usage_name, cache) in _hierarchies(root):
        # In a container the path may be the host's, of which only the top is mounted.
        inner = top / own.lstrip("/")
        for group in (inner, *inner.parents):
            with suppress(OSError, ValueError):  # "max" means none
                limit = int((group / limit_name).read_text())
                used = int((group / usage_name).read_text())
                with suppress(OSError):
                    found = re.search(rf"^{cache} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
                    used -= int(found[1]) if found else 0
                if limit < _NO_LIMIT:
                    yield limit, max(used, 0)
            if group == top:
                break


def _hierarchies(root: Path) -> Iterator[tuple[Path, str, tuple[str, str, str]]]:
    """Of each hierarchy that accounts for memory: mount point, path of this process's group below it, file names."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, own = line.split(":", 2)
            if number == "0" and not controllers:
                yield root / "sys/fs/cgroup", own, _V2
                yield root / "sys/fs/cgroup/unified", own, _V2
            elif "memory" in controllers.split(","):
                yield root / "sys/fs/cgroup/memory", own, _V1
