"""How this package compiles with Numba: one thread, without the interpreter lock; callers run several threads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba


def compiled(
    function: Callable[..., Any], signature: Any = None, *, fastmath: bool | set[str] = False
) -> Callable[..., Any]:
    """Compile at once for a signature, otherwise at the first call; or load what an earlier process compiled.

    Without a writable cache, compile anew in every process.
    """
    njit = partial(numba.njit, signature, nogil=True, error_model="numpy", fastmath=fastmath)
    try:
        return njit(cache=True)(function)
    except (RuntimeError, OSError):  # no cache folder, or one that cannot be written
        return njit()(function)


jit = partial(compiled, fastmath={"contract", "nsz", "arcp"})
