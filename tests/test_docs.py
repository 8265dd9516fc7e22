"""Docs that are code: the task of docs/task.md runs, docs/api.md says what the docstrings say, commands are real."""

import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import pytest

import setibl_ray
from setibl_ray import api, cli

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]
MORE = (api.sweep, api.predict)


def test_the_shortest_task_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "task.md").read_text(), re.S)
    (tmp_path / "polynomial.py").write_text(code)
    arguments = ["--folds", "3", "--degree", "3", "--runner", "local", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "polynomial.py", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"out-of-fold rmse 0\.00\d+ \[", done.stdout), done.stdout
    assert (tmp_path / "run" / "oof.csv").exists()


def reference():
    """docs/api.md, from the docstrings of what the package exports."""
    lines = [
        "# From Python",
        "",
        "What `setibl_ray` exports, and `sweep` and `predict` of `setibl_ray.api`. `tests/test_docs.py` writes it from",
        "the docstrings (`WRITE_DOCS=1`) and compares it with them. How to write a task: [task.md](task.md).",
        "",
    ]
    for thing in [*(getattr(setibl_ray, name) for name in setibl_ray.__all__), *MORE]:
        lines += entry(thing, thing.__name__, "##")
        if inspect.isclass(thing) and thing.__name__ in ("Run", "Task"):
            for name, own in vars(thing).items():
                if name.startswith("_"):
                    continue
                if inspect.isfunction(own):
                    lines += entry(own, f"{thing.__name__}.{name}", "###")
                elif isinstance(own, cached_property):
                    lines += [f"### {thing.__name__}.{name}", "", "```", inspect.getdoc(own), "```", ""]
    return "\n".join(lines)


def entry(thing, name, level):
    if not inspect.isclass(thing):
        name += str(inspect.signature(thing)).replace("'", "")
    return [
        f"{level} {name.split('(')[0]}",
        "",
        "```",
        *wrapped(name),
        "",
        inspect.getdoc(thing) or "",
        "```",
        "",
    ]


def wrapped(signature):
    """A signature on one line, or a line an argument."""
    if len(signature) <= 110 or "(" not in signature:
        return [signature]
    name, rest = signature.split("(", 1)
    arguments, _, returns = rest.rpartition(")")
    return [
        f"{name}(",
        *(f"    {one.strip()}," for one in re.split(r", (?=\*|\w+[:=])", arguments)),
        f"){returns}",
    ]


def test_the_reference_says_what_the_docstrings_say():
    page, text = DOCS / "api.md", reference()
    if os.environ.get("WRITE_DOCS"):
        page.write_text(text)
    assert page.read_text() == text, "docstrings have changed: WRITE_DOCS=1 pytest tests/test_docs.py"


def test_links_of_the_docs_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def commands():
    """What indented lines of the docs type, by page: words of each, without comments and with joined lines."""
    for page in PAGES:
        text = re.sub(r"\\\n +", " ", page.read_text())
        for line in re.findall(
            r"^    ((?:[A-Z_]+=\S+ )*(?:python|make|ray|setibl-ray) .*)$", text, re.MULTILINE
        ):
            yield page, shlex.split(line.replace("…", ""), comments=True)


@pytest.mark.parametrize("page", sorted({page for page, _ in commands()}), ids=lambda page: page.name)
def test_documented_commands_take_their_flags(page, monkeypatch):
    """They are parsed, not run: what they do has tests of its own; clusters, clouds and GPUs are not here."""
    parsed = []
    monkeypatch.setattr(cli, "run", lambda command, main, argv: parsed.append(cli.parse(command, argv)) or 0)
    targets = re.findall(r"^([a-z-]+):", (DOCS.parent / "Makefile").read_text(), re.MULTILINE)
    for words in [words for where, words in commands() if where == page]:
        line = " ".join(words)
        program, *rest = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        ours = next((i for i, word in enumerate(rest) if re.fullmatch(r"setibl_ray\.\w+", word)), None)
        if program == "make":
            assert rest[0] in targets, line
        elif ours is not None:  # by itself, or after what Ray starts it with
            before = len(parsed)
            importlib.import_module(rest[ours]).entry(rest[ours + 1 :])
            assert len(parsed) == before + 1, line
        elif program == "python":
            assert (DOCS.parent / rest[0]).exists(), line
        else:
            assert program == "ray", line
