"""Shared by all commands: flags derived from a model's fields, and errors as one line with an exit code."""

from __future__ import annotations

import argparse
import copy
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, Optional, TypeVar

import pydantic
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, SettingsConfigDict, SettingsError

from setibl_ray.core import interrupts, terminal
from setibl_ray.core.config import C as AnyConfig
from setibl_ray.core.config import explain, load_yaml, merge, spelt
from setibl_ray.core.config import parse as parse_config
from setibl_ray.core.errors import ConfigError, Interrupted, SetiblError
from setibl_ray.core.where import Where


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
        str_min_length=1,
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: Any, init_settings: Any, *_: Any, **__: Any
    ) -> tuple[Any, ...]:
        return (init_settings,)


def _labels(value: Any) -> Any:
    parts = [value] if isinstance(value, str) else value
    for part in parts if isinstance(parts, list | tuple) else ():
        if "=" not in str(part):
            raise ValueError(f"expected key=value, got {part!r}")
    return parts


class Flags(pydantic.BaseModel):
    """A group of a command's flags; its help shows those of its last base class first."""

    model_config = pydantic.ConfigDict(use_attribute_docstrings=True)


class NodeFlags(Flags):
    """Flags of commands that run folds on Ray: which nodes to use, how often to retry. They do not affect results."""

    address: str | None = None
    """Ray cluster to join (`auto` for this machine's); without it, Ray is started here."""
    connect_timeout_s: Annotated[float, pydantic.Field(gt=0)] = 60.0
    """Seconds to wait for the cluster at --address to answer; a refused connection fails at once."""
    accelerator_type: str | None = None
    """Ray's name for an accelerator generation, such as TPU-V4."""
    label: Annotated[tuple[str, ...], pydantic.BeforeValidator(_labels)] = ()
    """Label key=value that a fold's node must have; may be repeated."""
    placement_timeout_s: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Seconds to wait for the cluster to grow before refusing a request that does not fit. If more than 0, also how
    long to wait for resources in use by others before giving up."""
    max_retries: Annotated[int, pydantic.Field(ge=0)] = 3
    """Retries of a fold after failures that may pass (a lost worker or node, lack of memory, an unreachable store, a
    time limit) without finishing an epoch in between."""
    fold_timeout_s: Annotated[float, pydantic.Field(gt=0)] | None = None
    """Seconds after which an attempt at a fold is stopped and tried again on another node [no limit]."""

    def where(self) -> Where:
        values = self.model_dump(include=set(ClusterFlags.model_fields))  # those of NodeFlags among them
        labels = dict(label.split("=", 1) for label in values.pop("label"))
        return Where(**values, labels=labels)


class ClusterFlags(NodeFlags):
    """The same, plus the runner and the number of folds at once."""

    runner: Literal["ray", "local"] = "ray"
    """ray, or local for a plain loop in this process."""
    workers: Annotated[int, pydantic.Field(ge=1)] | None = None
    """At most this many folds at once [as many as fit]."""


def command_of(*fields: type[pydantic.BaseModel], doc: str | None, program: str) -> type[Command]:
    """A command of the fields of some models."""
    settings: Any = SettingsConfigDict(cli_prog_name=program)
    return type(
        "TaskCommand", (*fields, Command), {"__doc__": doc, "model_config": settings, "__module__": __name__}
    )


def fields_of(kind: type[AnyConfig]) -> type[pydantic.BaseModel]:
    """A config's fields as flags, all optional because a resumed run already has its values.

    Validators of the whole config run later, in `layered`, when all fields are known; those of single fields run here.
    """
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if field.is_required():
            flag: Any = copy.copy(field)
            flag.default, flag.description = None, f"{field.description or ''} (required)".strip()
            fields[name] = (Optional[field.annotation], flag)  # noqa: UP045  (an annotation in a variable)
    handled = classmethod(lambda cls, value, handler: handler(value))
    passes = pydantic.model_validator(mode="wrap")(handled)  # type: ignore[arg-type]  # a decorator, called
    later: dict[str, Any] = dict.fromkeys(kind.__pydantic_decorators__.model_validators, passes)
    return pydantic.create_model(kind.__name__, __base__=kind, __validators__=later, **fields)


def layered(options: Any, kind: type[AnyConfig], lowest: dict[str, Any]) -> AnyConfig:
    """The config of a command: `lowest`, below --config, below flags.

    Args:
      options: a command with the fields of `kind` and `config`, a YAML file.
      kind: of config.
      lowest: values that only override the defaults.

    Raises:
      ConfigError: the file has a flag that is not a field of a config, or a value is wrong.
    """
    return parse_config(kind, merge(lowest, values(options, kind)))


def values(options: Any, kind: type[AnyConfig]) -> dict[str, Any]:
    """Values of a config's fields from --config and from flags, which override it."""
    given = options.model_dump(exclude_unset=True)
    flags = {name: value for name, value in given.items() if name in kind.model_fields}
    file = spelt(load_yaml(options.config)) if options.config else {}
    for name in file.keys() & type(options).model_fields.keys() - kind.model_fields.keys():
        flag = name.replace("_", "-")
        raise ConfigError(f"--config {options.config}: {flag} is not a config field; give it as --{flag}")
    return merge(file, flags)


C = TypeVar("C", bound=Command)


def run(command: type[C], main: Callable[[C], int], argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, call `main`, and return the exit code; a SetiblError becomes one line on stderr."""
    terminal.prepare()
    try:
        with interrupts.as_keyboard_interrupt():
            return main(parse(command, argv))
    except SetiblError as error:
        print(f"{_program(command)}: {' '.join(terminal.visible(error).splitlines())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{_program(command)}: interrupted", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # `… | head` closed the pipe, which is not this command's failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse(command: type[C], argv: Sequence[str] | None = None) -> C:
    """Raises:
    ConfigError: a flag is unknown, its value is wrong, or --resume has no --out.
    """
    try:
        source: CliSettingsSource = CliSettingsSource(command, formatter_class=Help)
        arguments = list(sys.argv[1:] if argv is None else argv)
        options = CliApp.run(command, cli_args=arguments, cli_settings_source=source)
    except pydantic.ValidationError as error:
        raise ConfigError(explain(error)) from None
    except SettingsError as error:
        text = str(error).removeprefix("error parsing CLI: ")
        raise ConfigError(f"{text} ({_similar(command, text)}see --help)") from None
    if getattr(options, "resume", False) and not getattr(options, "out", None):
        raise ConfigError("--resume needs --out, the folder to go on with")
    return options


class Help(argparse.RawDescriptionHelpFormatter):
    """Help without clutter: lists with commas as users type them, no list of flags in the usage, no default None."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        actions = list(actions)
        positional = [action for action in actions if not action.option_strings]
        names = [f" {self._format_args(action, action.dest.upper())}" for action in positional]
        if len(positional) < len(actions):
            names.insert(0, " [options]")
        super().add_usage(usage or f"%(prog)s{''.join(names)}", actions, groups, prefix)

    def _metavar_formatter(
        self, action: argparse.Action, default_metavar: str
    ) -> Callable[[int], tuple[str, ...]]:
        items = re.fullmatch(r"tuple\[(.+)\]", str(action.metavar))
        if items:
            return lambda size: (items[1].replace(",...", "[,…]"),) * size
        return super()._metavar_formatter(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = (action.help or "").replace(" (default: None)", "").replace(" (default: ())", "")
        return re.sub(r"\(default: \((.*?),?\)\)", lambda found: f"(default: {_bare(found[1])})", text)


def _bare(items: str) -> str:
    return items.replace("'", "").replace(", ", ",")


def _similar(command: type[pydantic.BaseModel], complaint: str) -> str:
    """Flags that may have been meant by the one that `complaint` is about."""
    flag = re.search(r"unrecognized arguments: (--[\w.-]+)", complaint)
    close = difflib.get_close_matches(flag[1], _flags(command)) if flag else ()
    return f"did you mean {' or '.join(close)}? " if close else ""


def _flags(model: type[pydantic.BaseModel], prefix: str = "--") -> list[str]:
    flags = []
    for name, field in model.model_fields.items():
        flag = prefix + name.replace("_", "-")
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
            flags += _flags(kind, f"{flag}.")
        else:
            flags.append(flag)
    return flags


def _program(command: type[Command]) -> str:
    return command.model_config.get("cli_prog_name") or "setibl_ray"
