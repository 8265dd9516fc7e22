"""`python -m setibl_ray.report RUN…`: one run's report.html, or a comparison of several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic_settings import CliPositionalArg, SettingsConfigDict

from setibl_ray import cli
from setibl_ray.core.errors import ConfigError, DataError
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.storage import Location
from setibl_ray.core.terminal import say
from setibl_ray.seti.evaluation.finished import load_run

if TYPE_CHECKING:
    from setibl_ray.seti.formats.shards import DataIndex


class Report(cli.Command):
    """Write RUN/report.html, a self-contained page; for several runs, a comparison of them."""

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.report")

    runs: CliPositionalArg[list[Location]]
    """Run folders or URLs."""
    out: str | None = None
    """HTML file to write [RUN/report.html, or ./comparison.html]."""
    data: Location | None = None
    """Where the shards are now, for pictures [where the run read them]."""


def write_report(folder: str, data: str | None = None, index: DataIndex | None = None) -> str:
    """Write a finished run's report.html into its folder.

    Args:
      folder: run folder or URL.
      data: where its shards are now; by default where they were. Without them, the report has no waterfalls and
        says so.
      index: of those shards, if the caller has read it already; otherwise shards without a stored index are scanned
        again.

    Returns:
      Path of the report.
    """
    run_folder = RunFolder(folder)
    run_folder.write("report.html", _page(folder, data, index))
    return run_folder.path("report.html")


def _page(folder: str, data: str | None, index: DataIndex | None = None) -> str:
    from setibl_ray.seti.evaluation.pixels import open_pixels
    from setibl_ray.seti.reporting import build

    run = load_run(folder)
    try:
        pixels, reason = open_pixels(run, data, index), ""
    except DataError as error:
        if data is not None:  # explicitly given, so its absence is an error
            raise
        pixels, reason = None, f"No pictures: {error} Give the shards' place with --data."
    return build.single(run, pixels, reason)


def main(options: Report) -> int:
    if not options.runs:
        raise ConfigError("expected at least one run folder: python -m setibl_ray.report RUN")
    if len(options.runs) == 1 and options.out is None:
        say(write_report(options.runs[0], options.data))
        return 0
    if len(options.runs) == 1:
        text = _page(options.runs[0], options.data)
    else:
        from setibl_ray.seti.reporting import build

        text = build.comparison([load_run(run) for run in options.runs])
    place, _, name = (options.out or "comparison.html").rpartition("/")
    RunFolder(place or ".").write(name, text)
    say(options.out or "comparison.html")
    return 0


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Report, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
