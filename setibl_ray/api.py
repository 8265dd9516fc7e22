"""The commands as Python functions: `cross_validate`, `sweep`, `predict`, for any task; `main` is for scripts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from rich.console import Console

import setibl_ray.predict as predict_command
import setibl_ray.sweep as sweep_command
from setibl_ray import cli, cv
from setibl_ray.core import terminal
from setibl_ray.core.config import config_of
from setibl_ray.core.run import prediction, session
from setibl_ray.core.task import Task
from setibl_ray.core.where import Where
from setibl_ray.results import Run
from setibl_ray.seti import task as cadences

Model = Callable[..., Any] | str


def cross_validate(
    config: Any = None,
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str],
    task: Task | str | None = None,
    model: Model | None = None,
    where: Where | Mapping[str, Any] | None = None,
    resume: bool = False,
    on_bad_record: Literal["fail", "skip"] | None = None,
    check_all: bool = False,
    console: Console | None = None,
) -> Run:
    """Train every fold, write out-of-fold and test predictions to a run folder, and return that folder, opened.

    It works in notebooks, threads and scripts, which need no `__main__` guard. A Ray that the caller has started
    (`ray.init`) is used and left running. Ctrl-C, or the notebook's stop button, raises `Interrupted` and keeps what
    is finished: the same call with `resume=True` continues.

    Args:
      task: your own; None for networks on cadences.
      model: (image_shape, config, fold_config) -> uncompiled Keras model with one sigmoid output, instead of a backbone
        of the config's; or its name, `module:function`.
      on_bad_record: refuse cadences with unusable records [the default], or skip such records and list them in
        manifest.json.
      check_all: decode all images before training, instead of a sample of them.
      config: a `Config` or a mapping of its fields.
      data: folder or URL of shards; for a task of your own, what its `open` reads.
      out: run folder or URL to write.
      where: a `Where` or a mapping of its fields.
      resume: continue the run at `out`.
      console: where progress is shown.
    """
    task, config = _with_model(task, config, model)
    done = session.cross_validate(
        task,
        config,
        data=data,
        out=out,
        where=where,
        resume=resume,
        options={"on_bad_record": on_bad_record, "check_all": check_all or None},
        command="",
        console=console,
    )
    return Run(done.folder)


def sweep(
    config: Any = None,
    space: Any = None,
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str],
    task: Task | str | None = None,
    model: Model | None = None,
    **more: Any,
) -> Any:
    """Search for a better config.

    The other arguments are those of `setibl_ray.core.tuning.engine.sweep`: `options`, `where`, `resume`, `console`.
    """
    from setibl_ray.core.tuning import engine

    task, config = _with_model(task, config, model)
    return engine.sweep(task, config, space, data=data, out=out, command="", **more)


def predict(
    run: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    task: Task | str | None = None,
    model: Model | None = None,
    **more: Any,
) -> str:
    """Apply a finished run's folds to other rows: see `setibl_ray.core.run.prediction.predict` for the other arguments.

    Args:
      model: the function that the run was made with, where it has no module that could be imported.
    """
    task, _ = _with_model(task, None, model)
    return prediction.predict(task, run, data=data, out=out, command="", **more)


def _with_model(task: Task | str | None, config: Any, model: Model | None) -> tuple[Task | str, Any]:
    """The task, and the config that names the model."""
    if model is None:
        return task or cadences.NAME, config
    if isinstance(config, BaseModel):
        config = config.model_dump(exclude_unset=True)
    values = {} if config is None else config
    if isinstance(model, str):
        return cadences.NAME, values | {"model": model}
    name = f"{model.__module__}:{model.__qualname__}"
    return cadences.CadenceTask({name: model}), values | {"model": name}


def main(task: Task, argv: Sequence[str] | None = None, *, data: str | None = None, **defaults: Any) -> int:
    """A command line for a task: `cv` (which may be left out), `sweep` and `predict`, with flags of its settings.

    Args:
      argv: what the user typed, without the script's name.
      data: default place of the data.
      defaults: values of config fields that flags and --config may change.

    Returns:
      The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments[:1] in (["cv"], ["sweep"], ["predict"]) else "cv"
    script = os.path.relpath(sys.argv[0]) if sys.argv[0] else "script.py"
    program = f"python {script}" + (f" {name}" if name != "cv" else "")
    console = terminal.console()

    kind = config_of(task.Settings)
    fields: Sequence[type[BaseModel]] = {  # type: ignore[assignment]  # their metaclass hides them from mypy
        "cv": (cli.ClusterFlags, cli.fields_of(kind), cv.Flags),
        "sweep": (cli.NodeFlags, cli.fields_of(kind), sweep_command.Flags),
        "predict": (cli.ClusterFlags, predict_command.Flags),
    }[name]

    def do(options: Any) -> int:
        if name == "predict":
            predict_command.run(task, options, console, program)
            return 0
        # A resumed run already has its config, including values of fields without a default.
        config = cli.values(options, kind) if options.resume else cli.layered(options, kind, defaults)
        place = options.data or (None if options.resume else data)
        if name == "sweep":
            sweep_command.run(task, config, options, place, console, program)
            return 0
        done = cv.run(task, config, options, place, console, program)
        terminal.say(f"everything lies in {done.folder}", console)
        return 0

    return cli.run(cli.command_of(*fields, doc=type(task).__doc__, program=program), do, arguments)
