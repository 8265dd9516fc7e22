"""`python -m setibl_ray.cv --folds 5`: cross-validate on Ray and write a run folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic_settings import SettingsConfigDict

from setibl_ray import cli
from setibl_ray.core import terminal
from setibl_ray.core.errors import ConfigError, RunFolderError, RunStoppedError
from setibl_ray.core.storage import Location
from setibl_ray.seti.config import Config
from setibl_ray.seti.planning.assume import Assume

if TYPE_CHECKING:
    from setibl_ray.core.run.session import CrossValidation
    from setibl_ray.core.task import Task

# What `cv` runs without --data: small enough for two CPU cores and a few minutes, with every real step.
DEMO = {
    "model": "efficientnet-nano",
    "weights": "none",
    "image_size": "91x85",
    "epochs": 7,
    "tta": 4,
}


class Flags(cli.Flags):
    """Flags of `cv` for any task, besides its config and the cluster."""

    data: Location | None = None
    """Path or URL (gs://, s3://) of the data."""
    out: Location | None = None
    """Run folder or URL to write [runs/DATE-TIME]."""
    config: str | None = None
    """YAML file with any of these fields; flags override it."""
    resume: bool = False
    """Continue the run in --out with its config and data: finished folds are kept."""


class Cv(cli.ClusterFlags, Config, Flags, cli.Command):
    """Train one model per fold on Ray; gather out-of-fold predictions; average test predictions over folds.

    Without --data it runs on an embedded demo set of simulated cadences.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.cv")

    data: Location | None = None
    """Folder or URL (gs://, s3://) of train*.tfrec and test*.tfrec; the demo set if left out."""
    on_bad_record: Literal["fail", "skip"] | None = None
    """Refuse data with unusable records, or skip such records and list them in manifest.json [fail]."""
    check_all: bool = False
    """Decode all images before training, instead of a sample of them."""
    plan: bool = False
    """Print the schedule, its makespan, memory, idle time and cost, without running anything."""
    rates: Location | None = None
    """Run folder with measured rates for --plan [--out, if a run is there]."""
    assume: Assume = Assume()


def main(options: Cv) -> int:
    demo = not (options.data or options.resume or options.assume.rows)
    config = cli.layered(options, Config, DEMO if demo else {})
    if not options.plan and (options.rates or options.assume.model_fields_set):
        raise ConfigError("--rates and --assume.… belong to --plan: add it, or leave them out")

    from setibl_ray.seti import task

    console = terminal.console()
    data = demo_data(console) if demo else options.data
    if options.plan:
        from setibl_ray.seti.planning.command import plan_run

        plan_run(
            config,
            data=data,
            out=options.out,
            rates=options.rates,
            assume=options.assume,
            where=options.where(),
            resume=options.resume,
            on_bad_record=options.on_bad_record,
            console=console,
        )
        return 0
    of_task: dict[str, Any] = {"on_bad_record": options.on_bad_record, "check_all": options.check_all or None}
    done = run(task.NAME, config, options, data, console, **of_task)
    again = f"python -m setibl_ray.report {done.folder}"
    try:
        from setibl_ray.report import write_report

        terminal.say(f"report: {write_report(done.folder, data, done.rows.content)}", console)
    except RunFolderError as error:
        raise RunStoppedError(f"{error} All else is there; write the report with: {again}") from error
    except Exception as error:  # a report that cannot be drawn must not make a whole run a failure
        terminal.say(f"no report ({terminal.one_line(error)}); try again with: {again}", console)
    terminal.say(f"everything lies in {done.folder}", console)
    return 0


def demo_data(console: Any) -> str:
    """The embedded demo set, made on first use."""
    from setibl_ray.seti.making.synth import demo_dataset

    terminal.say("no --data: running on the embedded demo set of simulated cadences", console)
    return str(demo_dataset())


def run(
    task: Task | str,
    config: Any,
    options: Any,
    data: str | None,
    console: Any,
    command: str = "python -m setibl_ray.cv",
    **of_task: Any,
) -> CrossValidation:
    """Cross-validate any task with the flags of the command line (`Flags`, `ClusterFlags`), and print the result."""
    from setibl_ray.core.jobs import load_task
    from setibl_ray.core.run.session import cross_validate

    out = options.out or time.strftime("runs/%Y%m%d-%H%M%S")
    terminal.say(f"resuming {out}" if options.resume else f"data {data}, run folder {out}", console)
    done = cross_validate(
        task,
        config,
        data=data,
        out=out,
        where=options.where(),
        resume=options.resume,
        options=of_task,
        command=command,
        console=console,
    )
    for line in load_task(task).summary(done.metrics):
        terminal.say(line, console)
    return done


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Cv, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
