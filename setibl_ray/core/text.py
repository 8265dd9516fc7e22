"""Numbers as people read them, on terminals and on pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_BLOCKS = "▁▂▃▄▅▆▇█"
_UNITS = (("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172800.0), ("days", 86400.0, float("inf")))


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"  # no line break before the sign


def spread(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """An interval; nothing where none is known."""
    return "" if bounds is None else f"[{bounds[0]:.{digits}f},\u00a0{bounds[1]:.{digits}f}]"


def gained(effect: Mapping[str, Any], digits: int = 4) -> str:
    """A paired difference with its interval: `difference` and `interval` of `effect`, each None where unknown."""
    gain, bounds = effect["difference"], effect["interval"]
    if gain is None:
        return "–"
    shown = f" [{bounds[0]:+.{digits}f},\u00a0{bounds[1]:+.{digits}f}]" if bounds else ""
    return f"{gain:+.{digits}f}{shown}"


def counted(n: int, name: str) -> str:
    """`1 fold`, `1,200 folds`."""
    return f"{n:,} {name}{'s' * (n != 1)}"


def three_digits(value: float) -> str:
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.{max(0, 3 - len(str(int(value))))}f}"


def size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def in_one_unit(longest_s: float) -> Callable[[float], str]:
    """A format for times up to `longest_s`, all in the same unit."""
    name, factor, _ = next(unit for unit in _UNITS if longest_s < unit[2])
    digits = 0 if name == "s" else 1
    return lambda seconds: f"{seconds / factor:.{digits}f} {name}" if seconds else "0"


def duration(seconds: float) -> str:
    return in_one_unit(seconds)(seconds)


def sparkline(values: Sequence[float | None], low: float | None = None, high: float | None = None) -> str:
    """One block character per value, from `low` to `high` or over the values' range; a space for None."""
    known = [value for value in values if value is not None]
    if not known:
        return " " * len(values)
    low, high = min(known) if low is None else low, max(known) if high is None else high
    span = high - low or 1.0
    top = len(_BLOCKS) - 1
    return "".join(
        " " if value is None else _BLOCKS[min(top, max(0, round((value - low) / span * top)))]
        for value in values
    )
