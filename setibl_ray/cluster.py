"""`python -m setibl_ray.cluster check FILE …`: validate cluster files offline."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from pydantic_settings import CliPositionalArg, CliSubCommand, SettingsConfigDict, get_subcommand

from setibl_ray import cli
from setibl_ray.core import terminal
from setibl_ray.core.errors import ConfigError


class Check(BaseModel):
    """Check cluster files (for `ray up` or KubeRay) without a cloud account or a network."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    files: CliPositionalArg[list[Path]]
    """Files to check."""
    lock: Path | None = None
    """Lock file with the expected versions [from a folder above: the one that the file names, or requirements.lock]."""


class Cluster(cli.Command):
    """Check files that describe clusters."""

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.cluster")

    check: CliSubCommand[Check]
    """Check cluster files offline."""


def main(options: Cluster) -> int:
    from rich.table import Table

    from setibl_ray.core.cluster.check import check_files

    command = get_subcommand(options, is_required=False)
    if not isinstance(command, Check):
        raise ConfigError("expected a command: check FILE …")
    logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)
    findings = check_files(command.files, command.lock)
    if not any(findings.values()):
        for path in findings:
            terminal.say(f"{path}: nothing wrong found")
        return 0
    table = Table("file", "field", "expected", "got")
    for column in table.columns:
        column.overflow = "fold"
    for path, found in findings.items():
        for finding in found:
            table.add_row(str(path), finding.field, finding.expected, finding.got)
    terminal.console().print(table)
    return 2


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Cluster, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
