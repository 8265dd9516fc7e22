"""`setibl-ray completion bash`: a script that lets a shell complete commands and their flags."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Sequence
from inspect import isclass
from typing import Literal

from pydantic_settings import CliPositionalArg, SettingsConfigDict

from setibl_ray import cli
from setibl_ray.__main__ import COMMANDS

SCRIPT = """\
_setibl_ray() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} typed="${{COMP_WORDS[*]:1:$((COMP_CWORD - 1))}} " words
  case $typed in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _setibl_ray setibl-ray
"""


class Completion(cli.Command):
    """Print what a shell needs to complete commands and flags.

    For bash: setibl-ray completion bash > ~/.local/share/bash-completion/completions/setibl-ray
    For zsh, write the output of setibl-ray completion zsh to FILE, and add to ~/.zshrc, after compinit: source FILE
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.completion")

    shell: CliPositionalArg[Literal["bash", "zsh"]]
    """Which shell."""


def script(shell: str) -> str:
    # Longer patterns first: `data synth` before `data`.
    known = sorted(_words().items(), key=lambda item: -len(item[0]))
    cases = "\n".join(f'    "{typed} "*) words="{" ".join(words)}";;' for typed, words in known)
    cases += f'\n    *) words="{" ".join(COMMANDS)}";;'
    return "autoload -U +X bashcompinit && bashcompinit\n" * (shell == "zsh") + SCRIPT.format(cases=cases)


def _words() -> dict[str, list[str]]:
    """Completions by what was typed: `data` -> synth, …; `data synth` -> --train, …."""
    found = {}
    for name in COMMANDS:
        module = importlib.import_module(f"setibl_ray.{name}")
        (command,) = (
            own
            for own in vars(module).values()
            if isclass(own) and issubclass(own, cli.Command) and own.__module__ == module.__name__
        )
        subcommands, _ = found[name] = _offered(command)
        for subcommand in subcommands:
            found[f"{name} {subcommand}"] = _offered(command, subcommand)
    return {typed: subcommands or flags for typed, (subcommands, flags) in found.items()}


def _offered(command: type[cli.Command], *subcommand: str) -> tuple[list[str], list[str]]:
    """Subcommands and flags that the help of a command shows."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        cli.parse(command, [*subcommand, "--help"])
    listed = re.search(r"^subcommands:\s+\{([\w,]+)\}", said.getvalue(), re.MULTILINE)
    flags = re.findall(r"^  (?:-h, )?(--[\w.-]+)", said.getvalue(), re.MULTILINE)
    return listed[1].split(",") if listed else [], flags


def main(options: Completion) -> int:
    print(script(options.shell), end="")
    return 0


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Completion, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
