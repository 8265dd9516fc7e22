"""Text from data, files and other programs: shown, never obeyed, on any terminal; in one line where one is promised."""

import io
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from setibl_ray.core import terminal

MARKUP = [
    "[/red]",
    "[bold]x",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "[link=http://x]y[/link]",
    ":boom:",
    "a\rb",
    "\u202eab",
]


@given(st.text())
def test_nothing_that_is_shown_steers_a_terminal(text):
    for shown in (terminal.visible(text), terminal.one_line(text), terminal.headline(text)):
        assert all(character in "\n\t" or character >= " " for character in shown)
        assert "\x7f" not in shown
        shown.encode()  # no lone surrogates
    assert len(terminal.one_line(text).splitlines()) <= 1
    assert len(terminal.one_line(text, 20)) <= 20


@pytest.mark.parametrize("text", MARKUP)
@pytest.mark.parametrize("console", [terminal.console, Console])
def test_markup_is_printed_as_it_stands(text, console):
    plain = terminal.visible(text)
    on = console()
    on.file = io.StringIO()
    terminal.say(text, on)
    assert on.file.getvalue() == f"{plain}\n"


@pytest.mark.parametrize("text", MARKUP)
def test_so_it_is_in_tables(text):
    on = terminal.console()
    on.file = io.StringIO()
    table = Table(text)
    table.add_row(text)
    on.print(table)
    assert on.file.getvalue().count(terminal.visible(text)) == 2


GRAPH = """Graph execution error:

Detected at node model/dense/MatMul defined at (most recent call last):
  File "fold.py", line 3, in fit

Out of memory while trying to allocate 7 bytes.
\t [[{{node model/dense/MatMul}}]] [Op:__inference_step]"""
RAY = (
    '\x1b[36mray::run_job()\x1b[39m (pid=7, ip=127.0.0.1)\n  File "x.py", line 1, in f\nValueError: 3 is odd'
)


def test_the_first_line_that_says_something():
    assert (
        terminal.headline(GRAPH) == "Graph execution error: Out of memory while trying to allocate 7 bytes."
    )
    assert terminal.headline(RAY) == "ValueError: 3 is odd"
    assert terminal.headline("Task was killed\nMemory on the node was 9 GB") == "Task was killed"
    assert terminal.headline("  indented only") == "indented only"
    assert terminal.headline("") == ""
    assert terminal.one_line("\x1b[1ma\x1b[0m\n\n  b") == "a b"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_what_a_terminal_lacks_is_replaced(encoding):
    script = (
        "import sys; from setibl_ray import data; from setibl_ray.core import terminal\n"
        "terminal.prepare(); terminal.say('5 – 7 …'); print('Ω', file=sys.stderr)\n"
        "sys.exit(data.entry(['verify', 'nowhere-Ω']))"
    )
    environment = {"PYTHONIOENCODING": encoding, "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, encoding="latin-1"
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == "5 ? 7 ?\n"
    assert "nowhere-? is not a folder" in done.stderr
