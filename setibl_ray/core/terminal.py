"""Output for people on a terminal: text from data, files and other programs is shown, never interpreted.

An image_id may hold rich markup, a kind the escape sequence that clears a screen, a message of Ray or TensorFlow colour
codes and fifty lines. Everything that is printed goes through `say`, `console` or `visible`.
"""

from __future__ import annotations

import io
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LINE = 300  # characters of a foreign message that go into a line of ours

_CODES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")
_LOCATION = re.compile(r"\s.*|.*most recent call last.*|<stack traces unavailable>|(?:ray::|Node: ).*")


def prepare() -> None:
    """Replace characters that the output's encoding lacks: a latin-1 or ASCII terminal must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def visible(text: object) -> str:
    """`text` with each control character, except line ends and tabs, as its backslash escape.

    That covers terminal escapes, marks that reverse the direction of writing, and lone surrogates.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs"):
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()


def one_line(message: object, limit: int = LINE) -> str:
    """A foreign message as one line: without colour codes, white space run together, cut at `limit` characters."""
    text = visible(" ".join(_CODES.sub("", str(message)).split()))
    return text if len(text) <= limit else f"{text[: limit - 2].rstrip()} …"


def headline(message: object) -> str:
    """The first meaningful line of a long foreign message: no stack trace; a heading only with what follows it."""
    lines = _CODES.sub("", str(message)).splitlines()
    telling = [line for line in lines if line and not _LOCATION.fullmatch(line)] or [str(message)]
    head = telling[0]
    for line in telling[1:]:
        if not head.rstrip().endswith(":"):
            break
        head = f"{head} {line}"
    return one_line(head)


def console(*, stderr: bool = False) -> Console:
    """A console that prints text literally, in tables too: no markup, no emoji names, no control characters.

    For a coloured cell, pass `rich.text.Text(visible(text), colour)`. In a notebook it prints plain lines, not rich's
    HTML.
    """
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text), **options)

    # Jupyter sets FORCE_COLOR, and runs a cell's `!command` on a terminal whose codes it does not follow.
    terminal = False if in_notebook() or "JPY_PARENT_PID" in os.environ else None
    return Plain(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        force_jupyter=False,
        force_terminal=terminal,
    )


def say(text: object, on: Console | None = None) -> None:
    """Print lines of text, on any console."""
    (on or console()).print(visible(text), markup=False, highlight=False, emoji=False, soft_wrap=True)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel: Jupyter, Colab and others that show HTML."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


class Cell:
    """An output of a notebook cell that is replaced by what `get` returns: rich's `Live`, without its thread.

    A notebook attributes what a thread shows to whichever cell runs at that moment.
    """

    def __init__(self, get: Callable[[], Any], every_s: float = 0.25) -> None:
        self._get, self._every_s = get, every_s
        self._last_s = 0.0

    def start(self) -> None:
        from IPython.display import display

        self._shown = display(self._get(), display_id=True)

    def refresh(self) -> None:
        if time.monotonic() - self._last_s >= self._every_s:
            self._last_s = time.monotonic()
            self._shown.update(self._get())

    def stop(self) -> None:
        self._shown.update(self._get())
