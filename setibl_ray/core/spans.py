"""Spans: the pieces in which a fold predicts the test set, so that all free places for jobs share its rows."""

from __future__ import annotations

import numpy as np

from setibl_ray.core.task import Span

SPAN_S = 60.0  # a process on an accelerator takes about 20 s to start and compile: more than a shorter span


def span_rows(n_test: int, seconds: float, slots: int, batch: int) -> int:
    """Rows of a span: as many spans as take about `SPAN_S` each, at most one for each slot, cut between batches.

    Args:
      seconds: of the whole test set on one slot.
      batch: rows that must stay together.
    """
    n_spans = int(np.clip(round(seconds / SPAN_S), 1, slots))
    return -(-n_test // (n_spans * batch)) * batch


def cut(n_test: int, rows: int) -> list[Span]:
    return [(start, min(start + rows, n_test)) for start in range(0, n_test, rows)]


def fit_goes_on(device: str, seconds: float) -> bool:
    """Whether the process of a fit predicts the test set, too: one span, on an accelerator.

    An accelerator's next job is another process, which starts and builds the model for longer than one span takes. On a
    CPU a process is used again, and spans fill the places where no fold is left to fit.

    Args:
      device: `cpu`, `gpu`, `tpu`, or `auto` where a task finds its own.
      seconds: of the whole test set.
    """
    return device in ("gpu", "tpu") and round(seconds / SPAN_S) <= 1
