"""`python -m setibl_ray.sweep --trials 20 --folds 5`: search for a better config with Ray Tune."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import SettingsConfigDict

from setibl_ray import cli, cv
from setibl_ray.core import terminal
from setibl_ray.core.config import load_yaml
from setibl_ray.core.storage import Location
from setibl_ray.seti.config import Config

if TYPE_CHECKING:
    from setibl_ray.core.task import Task
    from setibl_ray.core.tuning.results import Results


def _names(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Flags(cli.Flags):
    """Flags of `sweep` for any task, besides its config and the cluster."""

    trials: Annotated[int, Field(ge=1)] = 20
    """Number of trials, including the base config."""
    data: Location | None = None
    """Path or URL (gs://, s3://) of the data."""
    out: Location | None = None
    """Folder to write [sweeps/DATE-TIME]."""
    config: str | None = None
    """YAML file with config fields; flags override it."""
    space: str | None = None
    """YAML file of fields and Tune distributions [the task's own default space]."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    """optuna (TPE), random, or grid over lists."""
    stopping: Literal["asha", "none"] = "asha"
    """asha stops trials that are behind others after the same folds and epochs; none runs each trial to its end."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """At each rung, ASHA continues only the best 1/N of the trials; N is this number."""
    grace_epochs: Annotated[int, Field(ge=1)] | None = None
    """Epochs that every trial runs of its first folds before it may be stopped [all epochs / --reduction-factor]."""
    folds_at_once: Annotated[int, Field(ge=1)] | None = None
    """Folds that a trial runs at once [the most that fit and divide the number of folds]."""
    trials_at_once: Annotated[int, Field(ge=1)] | None = None
    """At most this many trials at once [as many as fit]."""
    time_budget_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds after which the sweep ends with what is finished; --resume continues it."""
    confirm: bool = False
    """Afterwards, repeat the best trial and the base config with other seeds."""
    confirm_seeds: Annotated[int, Field(ge=1)] = 2
    """How many other seeds --confirm takes."""
    predict_test: bool = False
    """Also predict the test set in every trial."""
    keep_weights: bool = False
    """Keep every fold's weights."""
    log_to: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """mlflow, wandb or both, comma-separated: also log there, besides TensorBoard."""
    resume: bool = False
    """Continue the sweep in --out: finished trials, folds and epochs are kept."""


class Sweep(cli.NodeFlags, Config, Flags, cli.Command):
    """Search for a better config: each trial is a whole cross-validation on Ray; bad trials are stopped early.

    Trial 0 is the config as the flags give it; the others vary what --space names. Without --data it runs on the
    embedded demo set.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.sweep")

    data: Location | None = None
    """Folder or URL (gs://, s3://) of train*.tfrec and test*.tfrec; the demo set if left out."""
    space: str | None = None
    """YAML file of fields and Tune distributions [schedule.lr-max, augment.dropout-size, augment.strength]."""


def main(options: Sweep) -> int:
    demo = options.data is None and not options.resume
    base = cli.layered(options, Config, cv.DEMO if demo else {})

    from setibl_ray.seti import task

    console = terminal.console()
    data = cv.demo_data(console) if demo else options.data
    run(task.NAME, base, options, data, console)
    return 0


def run(
    task: Task | str,
    base: Any,
    options: Any,
    data: str | None,
    console: Any,
    command: str = "python -m setibl_ray.sweep",
) -> Results:
    """Sweep over any task with the flags of the command line."""
    space = load_yaml(options.space, "--space") if options.space else None

    from setibl_ray.core.tuning.engine import Options, sweep

    names = [own.name for own in fields(Options) if own.name in options.model_fields_set]
    given = {name: getattr(options, name) for name in names}
    given.pop("confirm_seeds", None)  # used only with --confirm, which has a default of its own
    if options.confirm:
        given["confirm_seeds"] = options.confirm_seeds
    return sweep(
        task,
        base,
        space,
        data=data,
        out=options.out or time.strftime("sweeps/%Y%m%d-%H%M%S"),
        options=given,
        where=options.where(),
        resume=options.resume,
        command=command,
        console=console,
    )


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Sweep, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
