"""`python -m setibl_ray.sweep --trials 20 --folds 5`: search for a better config with Ray Tune."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import SettingsConfigDict

from setibl_ray import cli, cv
from setibl_ray.core.errors import ConfigError
from setibl_ray.core.storage import Location
from setibl_ray.seti.config import Config, load_yaml, parse


def _names(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Sweep(Config, cli.Command):
    """Search for a better config: each trial is a whole cross-validation on Ray, bad ones end early.

    Trial 0 is the config as the flags give it; the others vary what --space names. Without --data it runs on the
    embedded demo set.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.sweep")

    trials: Annotated[int, Field(ge=1)] = 20
    """How many trials, the base config among them."""
    data: Location | None = None
    """Folder or URL (gs://, s3://) of train*.tfrec and test*.tfrec; the demo set if left out."""
    out: Location | None = None
    """Folder to write [sweeps/DATE-TIME]."""
    config: str | None = None
    """YAML file with config fields; flags come before it."""
    space: str | None = None
    """YAML file of fields and Tune distributions [schedule.lr-max, augment.dropout-size, augment.strength]."""
    search: Literal["optuna", "random", "grid"] = "optuna"
    """optuna for its TPE, random, or grid over lists."""
    stopping: Literal["asha", "none"] = "asha"
    """asha ends trials early that fall behind at the same folds and epochs; none runs each to its end."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """ASHA lets the best one in so many past a rung."""
    grace_epochs: Annotated[int, Field(ge=1)] | None = None
    """Epochs of its first folds that every trial gets [one in --reduction-factor of them]."""
    folds_at_once: Annotated[int, Field(ge=1)] | None = None
    """Folds that a trial runs at once [the most that fit and divide the folds]."""
    trials_at_once: Annotated[int, Field(ge=1)] | None = None
    """At most this many trials at once [as many as fit]."""
    time_budget_s: Annotated[float, Field(gt=0)] | None = None
    """End after this time, with what is finished; --resume goes on."""
    confirm: bool = False
    """Afterwards repeat the best trial and the base config with other seeds."""
    confirm_seeds: Annotated[int, Field(ge=1)] = 2
    """How many other seeds."""
    predict_test: bool = False
    """Predict the test set in every trial too."""
    keep_weights: bool = False
    """Keep every fold's weights."""
    log_to: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """mlflow, wandb: log there too, besides TensorBoard (commas)."""
    resume: bool = False
    """Go on with the sweep in --out: finished trials, folds and epochs are kept."""
    address: str | None = None
    """Ray cluster to join (`auto` for this machine's); without it, Ray is started here."""
    connect_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """How long to wait for the cluster at --address to answer; one that refuses is not waited for."""
    accelerator_type: str | None = None
    """Ray's name of an accelerator generation, such as TPU-V4."""
    placement_timeout_s: Annotated[float, Field(ge=0)] = 0.0
    """How long to wait for a cluster to grow before an impossible request is refused."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """Retries of a fold whose worker or node died."""


OWN_FIELDS = frozenset(Sweep.model_fields) - frozenset(Config.model_fields)


PLAN_FIELDS = (
    "trials", "search", "stopping", "reduction_factor", "grace_epochs", "folds_at_once", "trials_at_once",
    "time_budget_s", "predict_test", "keep_weights", "log_to",
)  # fmt: skip


def main(options: Sweep) -> int:
    if options.resume and not options.out:
        raise ConfigError("--resume needs --out, the sweep folder to go on with")
    demo = options.data is None and not options.resume
    base = parse(cv.layered(options, OWN_FIELDS, cv.DEMO if demo else {}))
    space = load_yaml(options.space, "--space") if options.space else None
    plan = {name: getattr(options, name) for name in PLAN_FIELDS if name in options.model_fields_set}
    if options.confirm:
        plan["confirm_seeds"] = options.confirm_seeds

    from setibl_ray.core import terminal
    from setibl_ray.core.tuning.engine import sweep
    from setibl_ray.core.where import Where
    from setibl_ray.seti.making.synth import demo_dataset

    console = terminal.console()
    data = options.data
    if demo:
        terminal.say("no --data: running on the embedded demo set of simulated cadences", console)
        data = str(demo_dataset())
    sweep(
        base,
        space,
        data=data,
        out=options.out or time.strftime("sweeps/%Y%m%d-%H%M%S"),
        plan=plan,
        where=Where(
            address=options.address,
            connect_timeout_s=options.connect_timeout_s,
            accelerator_type=options.accelerator_type,
            placement_timeout_s=options.placement_timeout_s,
            max_retries=options.max_retries,
        ),
        resume=options.resume,
        console=console,
    )
    return 0


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Sweep, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
