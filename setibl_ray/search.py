"""`python -m setibl_ray.search RUN --cadence A1,B,A2,C,A3,D | --list CSV --out DIR`: telescope files to candidates."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from setibl_ray import cli
from setibl_ray.core import terminal
from setibl_ray.core.errors import ConfigError
from setibl_ray.core.storage import Location, absolute
from setibl_ray.seti.search.settings import SearchSettings


class Flags(cli.Flags):
    """What is searched, with which run, and what a job takes."""

    run: CliPositionalArg[Location]
    """Folder or URL of a run that was trained on `data inject` shards."""
    cadence: tuple[Location, ...] = ()
    """Six .h5 or .fil files of one observation, separated by commas, or a glob of them in quotes."""
    list: Location | None = None
    """CSV with one line per observation: observation, session, band, file_1 … file_6."""
    out: Location | None = None
    """Folder or URL to write [searches/DATE-TIME]."""
    coarse_channels: Annotated[int, Field(ge=1)] | None = None
    """Coarse channels per file [as many of 2.93 MHz as fit evenly, else one]."""
    device: Literal["auto", "tpu", "gpu", "cpu"] = "auto"
    """What networks run on; auto takes the best device of the cluster."""
    devices_per_channel: Annotated[float, Field(gt=0)] | None = None
    """GPUs per coarse channel, or a fraction of one (0.1), or TPU chips [1 GPU, or all chips of a TPU VM]."""
    cpus_per_channel: Annotated[int, Field(ge=1)] = 1
    """CPU cores per coarse channel."""
    resume: bool = False
    """Go on with the search in --out."""


class Search(cli.ClusterFlags, SearchSettings, Flags, cli.Command):
    """Search observations for signals that show only in pointings at the target, with every fold of a finished run."""

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.search")


def main(options: Search) -> int:
    from setibl_ray.seti.observations.observation import find_files, open_observation, read_list
    from setibl_ray.seti.search.run import search

    if bool(options.cadence) == bool(options.list):
        raise ConfigError("expected either --cadence with six files or --list with a CSV (see --help)")
    # Workers may have another working folder.
    if options.list:
        observations = read_list(absolute(options.list), n_coarse=options.coarse_channels)
    else:
        files = [file for part in options.cadence for file in (find_files(part) if "*" in part else [part])]
        observations = [open_observation(list(map(absolute, files)), n_coarse=options.coarse_channels)]
    path = search(
        options.run,
        observations,
        options.out or time.strftime("searches/%Y%m%d-%H%M%S"),
        SearchSettings(**{name: getattr(options, name) for name in SearchSettings.model_fields}),
        where=options.where(),
        changes={
            "device": options.device,
            "devices_per_fold": options.devices_per_channel,
            "cpus_per_fold": options.cpus_per_channel,
        },
        resume=options.resume,
    )
    terminal.say(f"candidates: {path}")
    return 0


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Search, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
