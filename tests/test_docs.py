"""Docs that are code: the task of docs/task.md runs, and docs/api.md says what the docstrings say."""

import inspect
import os
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path

import setibl_ray
from setibl_ray import api

DOCS = Path(__file__).parents[1] / "docs"
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
        "the docstrings (`WRITE_DOCS=1`) and holds it against them. How to write a task: [task.md](task.md).",
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
        *(f"    {one.strip()}," for one in re.split(r", (?=[\w*])", arguments)),
        f"){returns}",
    ]


def test_the_reference_says_what_the_docstrings_say():
    page, text = DOCS / "api.md", reference()
    if os.environ.get("WRITE_DOCS"):
        page.write_text(text)
    assert page.read_text() == text, "docstrings have changed: WRITE_DOCS=1 pytest tests/test_docs.py"


def test_links_of_the_docs_lead_somewhere():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
