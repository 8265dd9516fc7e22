"""What every command shares: flags derived from a model's fields, and errors as one line with an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pydantic
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError

from setibl_ray import interrupts
from setibl_ray.config import explain
from setibl_ray.errors import ConfigError, Interrupted, SetiblError


class Command(BaseSettings):
    """A command's options: one flag per field, help from the docstring below it, nothing from the environment."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: Any, init_settings: Any, *_: Any, **__: Any
    ) -> tuple[Any, ...]:
        return (init_settings,)


C = TypeVar("C", bound=Command)


def run(command: type[C], main: Callable[[C], int], argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, call `main`, and return the exit code; a SetiblError becomes one line on stderr."""
    try:
        with interrupts.as_keyboard_interrupt():
            return main(parse(command, argv))
    except SetiblError as error:
        print(f"{_program(command)}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{_program(command)}: interrupted", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # `… | head` went away: not this command's failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse(command: type[C], argv: Sequence[str] | None = None) -> C:
    """Raises:
    ConfigError: a flag is unknown or its value is wrong.
    """
    try:
        return CliApp.run(command, cli_args=list(sys.argv[1:] if argv is None else argv))
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error)) from None
    except SettingsError as error:
        raise ConfigError(f"{str(error).removeprefix('error parsing CLI: ')} (see --help)") from None


def _program(command: type[Command]) -> str:
    return command.model_config.get("cli_prog_name") or "setibl_ray"
