"""`make docs`: the pages of docs/, the README, and a reference made from the code, as a site in build/site.

The pages are written for whoever reads them in the repository. What only the site has is made here: its table of
contents, the help of every command, and the docstrings of everything that the package exports.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import cached_property
from inspect import isclass, isfunction
from pathlib import Path

from sphinx.cmd.build import main as sphinx

import setibl_ray
from setibl_ray import api
from setibl_ray.__main__ import COMMANDS

REPOSITORY = Path(__file__).parents[2]
SOURCE, SITE = REPOSITORY / "build/site-source", REPOSITORY / "build/site"
CONTENTS = {
    "Tutorials": [
        "notebooks/ten-minutes",
        "notebooks/your-data",
        "notebooks/your-task",
        "notebooks/candidates",
    ],
    "How to": ["data", "telescope-files", "sweeps", "evaluation", "task", "examples", "cluster", "gpu"],
    "Reference": ["commands", "api", "bad-input", "security"],
    "Explanation": ["reliability", "input-pipeline", "performance", "results", "science"],
    "Project": ["contributing", "changes"],
}
# Pages that have other places on the site.
MOVED = {
    "docs/search.md": "telescope-files.md",  # search.html is Sphinx's own
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "benchmarks/results.md": "results.md",
    "examples": "examples.md",
}
DATA_COMMANDS = ("synth", "pack", "inject", "simulate", "verify")


def gather() -> None:
    """Everything that Sphinx reads, with links as they are on the site."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(REPOSITORY / "docs", SOURCE, ignore=shutil.ignore_patterns("site"))
    (SOURCE / "search.md").unlink()
    for page in [*SOURCE.glob("*.md"), *SOURCE.glob("*/*.ipynb")]:
        page.write_text(linked(page.read_text(), f"docs/{page.parent.relative_to(SOURCE)}"))
    for path, name in MOVED.items():
        if path != "examples":
            text = linked((REPOSITORY / path).read_text(), str(Path(path).parent))
            (SOURCE / name).write_text(text + contents() * (name == "index.md"))
    (SOURCE / "examples.md").write_text(examples())
    (SOURCE / "commands.md").write_text(commands())
    (SOURCE / "api.md").write_text(exported())


def linked(text: str, folder: str) -> str:
    """A page of `folder` with its relative links as they are on the site, where pages outside docs/ lie at the top."""
    here = os.path.relpath(folder, "docs") if folder.startswith("docs") else "."

    def place(found: re.Match) -> str:
        target, anchor = found[1], found[2] or ""
        path = os.path.normpath(os.path.join(folder, target))
        there = MOVED.get(path) or os.path.relpath(path, "docs")
        return f"]({os.path.relpath(there, here)}{anchor})"

    return re.sub(r"\]\(([^)#:]+)(#[^)]*)?\)", place, text)


def contents() -> str:
    parts = []
    for caption, names in CONTENTS.items():
        parts += ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```"]
    return "\n".join(parts) + "\n"


def examples() -> str:
    parts = [
        "# Finished tasks",
        "",
        "Each file runs as it is; [Your own task](task.md) explains the parts.",
        "",
    ]
    for path in sorted((REPOSITORY / "examples").glob("*.py")):
        parts += [f"## {path.name}", "", "```python", path.read_text().rstrip(), "```", ""]
    return "\n".join(parts)


def commands() -> str:
    """The help of every command, which is made from its fields."""
    parts = ["# Commands", "", "`python -m setibl_ray.NAME` and `setibl-ray NAME` are the same.", ""]
    environment = {**os.environ, "COLUMNS": "88"}
    for name, what in COMMANDS.items():
        parts += [f"## {name}", "", f"{what[0].upper()}{what[1:]}.", ""]
        for more in ([], *([part] for part in DATA_COMMANDS if name == "data")):
            arguments = [name, *more, "--help"]
            command = [sys.executable, "-m", f"setibl_ray.{name}", *arguments[1:]]
            said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
            parts += [f"### {' '.join(arguments[:-1])}"] * bool(more)
            parts += ["", "```text", said.rstrip(), "```", ""]
    return "\n".join(parts)


def exported() -> str:
    """Directives for everything that the package exports."""
    parts = ["# From Python", "", "```{eval-rst}"]
    for name in setibl_ray.__all__:
        thing = getattr(setibl_ray, name)
        if not isclass(thing):
            parts += [f".. autofunction:: setibl_ray.{name}", ""]
            continue
        parts += [f".. autoclass:: setibl_ray.{name}"]
        own = [
            key
            for key, value in vars(thing).items()
            if not key.startswith("_") and isinstance(value, cached_property) | isfunction(value)
        ]
        if name in ("Run", "Task"):
            parts += [f"   :members: {', '.join(own)}"]
        parts += [""]
    for function in (api.sweep, api.predict):
        parts += [f".. autofunction:: setibl_ray.api.{function.__name__}", ""]
    return "\n".join([*parts, "```", ""])


if __name__ == "__main__":
    gather()
    shutil.rmtree(SITE, ignore_errors=True)
    strictly = ["-c", str(Path(__file__).parent), "-W", "--keep-going", "-q"]
    sys.exit(sphinx([*strictly, str(SOURCE), str(SITE)]))
