"""`python -m setibl_ray.predict RUN --data SHARDS`: apply a finished run's folds to other cadences."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from setibl_ray import cli
from setibl_ray.core import terminal
from setibl_ray.core.storage import Location

if TYPE_CHECKING:
    from setibl_ray.core.task import Task


class Flags(cli.Flags):
    """Flags of `predict` for any task."""

    run: CliPositionalArg[Location]
    """Folder or URL of a finished run."""
    data: Location
    """Path or URL (gs://, s3://) of the data; training rows in it are ignored."""
    out: Location | None = None
    """Folder or URL to write [predictions/DATE-TIME]."""
    device: Literal["auto", "tpu", "gpu", "cpu"] = "auto"
    """What to predict on; auto takes the best device of the cluster."""
    devices_per_fold: Annotated[float, Field(gt=0)] | None = None
    """GPUs per fold, or a fraction of one (0.2), or TPU chips [1 GPU, or all chips of a TPU VM]."""
    cpus_per_fold: Annotated[int, Field(ge=1)] | None = None
    """CPU cores per fold [an equal share of the cores]."""
    resume: bool = False
    """Continue the predictions in --out."""


class Predict(cli.ClusterFlags, Flags, cli.Command):
    """Predict the test shards of a data set with every fold of a run, and average the folds as the run does."""

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.predict")

    data: Location
    """Folder or URL (gs://, s3://) of test*.tfrec; training shards in it are ignored."""
    tta: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Views averaged; 0 predicts the image as it is [as in the run]."""
    cache: Literal["auto", "memory", "disk", "off"] | None = None
    """Where a node keeps decoded panels [as in the run]."""
    on_bad_record: Literal["fail", "skip"] | None = None
    """Refuse data with unusable records [the default], or skip such records and list them in manifest.json."""


def main(options: Predict) -> int:
    from setibl_ray.seti import task

    named = {name: getattr(options, name) for name in ("tta", "cache") if getattr(options, name) is not None}
    of_task = {"on_bad_record": options.on_bad_record}
    run(task.NAME, options, terminal.console(), changes=named, of_task=of_task)
    return 0


def run(
    task: Task | str,
    options: Any,
    console: Any,
    command: str = "python -m setibl_ray.predict",
    changes: dict[str, Any] | None = None,
    of_task: dict[str, Any] | None = None,
) -> str:
    """Predict with a run of any task, as the flags say, and return the path of the predictions."""
    from setibl_ray.core.run.prediction import predict

    placed = {
        name: getattr(options, name)
        for name in ("device", "devices_per_fold", "cpus_per_fold")
        if name in options.model_fields_set
    }
    path = predict(
        task,
        options.run,
        data=options.data,
        out=options.out or time.strftime("predictions/%Y%m%d-%H%M%S"),
        where=options.where(),
        changes=placed | (changes or {}),
        resume=options.resume,
        options=of_task,
        command=command,
        console=console,
    )
    terminal.say(f"predictions: {path}", console)
    return path


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Predict, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
