"""Spans: the pieces in which a fold predicts the test set, so that all free places for jobs share its rows."""

from __future__ import annotations

import numpy as np

from setibl_ray.core.task import Span

SPAN_S = 60.0  # a process on an accelerator takes about 20 s to start and compile: more than a shorter span


def span_rows(n_test: int, seconds: float, slots: int, batch: int) -> int:
    """Rows per span, so that a span takes about `SPAN_S`, there is at most one per slot, and cuts are between batches.

    Args:
      seconds: of the whole test set on one slot.
      batch: rows that must stay together.
    """
    n_spans = int(np.clip(round(seconds / SPAN_S), 1, slots))
    return -(-n_test // (n_spans * batch)) * batch


def cut(n_test: int, rows: int) -> list[Span]:
    return [(start, min(start + rows, n_test)) for start in range(0, n_test, rows)]


def fit_goes_on(device: str, seconds: float) -> bool:
    """Whether the process of a fit also predicts the test set: on an accelerator, if it is one span.

    An accelerator's next job is a new process, which takes longer to start and build the model than one span takes. On
    a CPU the process is used again, and spans fill slots for which no fold is left to fit.

    Args:
      device: `cpu`, `gpu`, `tpu`, or `auto` if a task finds its own.
      seconds: of the whole test set.
    """
    return device in ("gpu", "tpu") and round(seconds / SPAN_S) <= 1
