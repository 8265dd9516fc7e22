"""`python -m setibl_ray.cv --folds 5`: cross-validate on Ray and write a run folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from pydantic_settings import SettingsConfigDict

from setibl_ray import cli
from setibl_ray.core.errors import ConfigError, RunFolderError, RunStoppedError
from setibl_ray.core.storage import Location
from setibl_ray.seti.config import Config, load_yaml, merge, parse, spelt
from setibl_ray.seti.planning.assume import Assume

# What `cv` runs without --data: small enough for two CPU cores and a few minutes, real in every step.
DEMO = {
    "model": "efficientnet-nano",
    "weights": "none",
    "image_size": "91x85",
    "batch_size": 16,
    "epochs": 15,
    "augment": {"strength": 0.3},
}


class Cv(Config, cli.ClusterFlags, cli.Command):
    """Train one model per fold on Ray; gather out-of-fold predictions; average test predictions over folds.

    Without --data it runs on an embedded demo set of simulated cadences.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.cv")

    data: Location | None = None
    """Folder or URL (gs://, s3://) of train*.tfrec and test*.tfrec; the demo set if left out."""
    out: Location | None = None
    """Run folder or URL to write [runs/DATE-TIME]."""
    config: str | None = None
    """YAML file with any of these fields; flags come before it."""
    resume: bool = False
    """Go on with the run in --out, whose config and data hold: finished folds are kept, others continue."""
    on_bad_record: Literal["fail", "skip"] | None = None
    """Refuse data with an unusable record, or leave such records out and list them in manifest.json [fail]."""
    check_all: bool = False
    """Decode every image before anything is trained, not only some of them."""
    plan: bool = False
    """Print the schedule, its makespan, memory and idle time, and run nothing."""
    rates: Location | None = None
    """Run folder whose measured rates --plan takes [those of --out, if a run is there]."""
    assume: Assume = Assume()


RUN_FIELDS = frozenset(Cv.model_fields) - frozenset(Config.model_fields)


def resolve(options: Cv) -> Config:
    """What the flags say of the config; a resumed run has its own below them, not the demo's."""
    demo = not (options.data or options.resume or options.assume.rows)
    return parse(layered(options, RUN_FIELDS, DEMO if demo else {}))


def layered(options: Any, own_fields: frozenset[str], lowest: dict[str, Any]) -> dict[str, Any]:
    """Config values of a command: `lowest`, below --config, below flags.

    Args:
      options: a command with `config`.
      own_fields: its fields that are not the config's.
      lowest: what stands above the defaults.
    """
    flags = {
        name: value
        for name, value in options.model_dump(exclude_unset=True).items()
        if name not in own_fields
    }
    file = spelt(load_yaml(options.config)) if options.config else {}
    for name in file.keys() & own_fields:
        flag = name.replace("_", "-")
        raise ConfigError(f"--config {options.config}: {flag} is no field of a config; give it as --{flag}")
    return merge(lowest, file, flags)


def main(options: Cv) -> int:
    config = resolve(options)
    if not options.plan and (options.rates or options.assume.model_fields_set):
        raise ConfigError("--rates and --assume.… belong to --plan: add it, or leave them out")

    from setibl_ray.core import terminal
    from setibl_ray.core.run.driver import cross_validate
    from setibl_ray.report import write_report
    from setibl_ray.seti.evaluation.summary import summary_lines
    from setibl_ray.seti.making.synth import demo_dataset

    console = terminal.console()
    say = partial(terminal.say, on=console)
    if options.resume and not options.out:
        raise ConfigError("--resume needs --out, the run folder to go on with")
    data = options.data
    if data is None and not options.resume and options.assume.rows is None:
        say("no --data: running on the embedded demo set of simulated cadences")
        data = str(demo_dataset())
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
    out = options.out or time.strftime("runs/%Y%m%d-%H%M%S")
    say(f"resuming {out}" if options.resume else f"data {data}, run folder {out}")
    done = cross_validate(
        config,
        data=data,
        out=out,
        where=options.where(),
        resume=options.resume,
        on_bad_record=options.on_bad_record,
        check_all=options.check_all,
        console=console,
    )
    for line in summary_lines(done.metrics):
        say(line)
    again = f"python -m setibl_ray.report {done.folder}"
    try:
        say(f"report: {write_report(done.folder, data, done.index)}")
    except RunFolderError as error:
        raise RunStoppedError(f"{error} All else is there; write the report with: {again}") from error
    except Exception as error:  # a picture that cannot be drawn must not call a whole run a failure
        say(f"no report ({terminal.one_line(error)}); try again with: {again}")
    say(f"everything lies in {done.folder}")
    return 0


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Cv, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
