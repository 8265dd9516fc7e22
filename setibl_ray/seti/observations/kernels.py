"""How this folder compiles: one thread, without the interpreter lock; parallelism belongs to the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, or load what an earlier process compiled; without a writable cache, compile anew."""
    try:
        return numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"}, cache=True)(
            function
        )
    except (RuntimeError, OSError):  # no cache folder, or one that cannot be written
        return numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})(function)
