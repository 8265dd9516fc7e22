"""`python -m setibl_ray.predict RUN --data SHARDS`: a finished run's folds applied to other cadences."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from setibl_ray import cli
from setibl_ray.core.storage import Location


class Predict(cli.ClusterFlags, cli.Command):
    """Predict the test shards of a data set with every fold of a run, and average the folds as the run does."""

    model_config = SettingsConfigDict(cli_prog_name="python -m setibl_ray.predict")

    run: CliPositionalArg[Location]
    """Folder or URL of a finished run."""
    data: Location
    """Folder or URL (gs://, s3://) of test*.tfrec; training shards in it are left alone."""
    out: Location | None = None
    """Folder or URL to write [predictions/DATE-TIME]."""
    tta: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Views averaged; 0 predicts the image as it is [the run's]."""
    device: Literal["auto", "tpu", "gpu", "cpu"] = "auto"
    """What to predict on; auto takes the best that there is."""
    devices_per_fold: Annotated[int, Field(ge=1)] | None = None
    """GPUs, or TPU chips, of a fold [1 GPU, or all chips of a TPU VM]."""
    cpus_per_fold: Annotated[int, Field(ge=1)] | None = None
    """CPU cores, and TensorFlow threads, of a fold [its even share of the cores]."""
    resume: bool = False
    """Go on with the predictions in --out."""
    on_bad_record: Literal["fail", "skip"] = "fail"
    """Refuse data with an unusable record, or leave such records out and list them in manifest.json."""


def main(options: Predict) -> int:
    from setibl_ray.core import terminal
    from setibl_ray.core.errors import ConfigError
    from setibl_ray.core.run.prediction import predict

    if options.resume and not options.out:
        raise ConfigError("--resume needs --out, the predictions to go on with")
    console = terminal.console()
    changes = {name: getattr(options, name) for name in ("device", "devices_per_fold", "cpus_per_fold")}
    if options.tta is not None:
        changes["tta"] = options.tta
    path = predict(
        options.run,
        data=options.data,
        out=options.out or time.strftime("predictions/%Y%m%d-%H%M%S"),
        where=options.where(),
        changes=changes,
        resume=options.resume,
        on_bad_record=options.on_bad_record,
        console=console,
    )
    terminal.say(f"predictions: {path}", console)
    return 0


def entry(argv: Sequence[str] | None = None) -> int:
    return cli.run(Predict, main, argv)


if __name__ == "__main__":
    sys.exit(entry())
