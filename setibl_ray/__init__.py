"""Ray-distributed cross-validation, and the search for radio technosignatures built on it.

from setibl_ray import cross_validate
run = cross_validate({"folds": 5, "model": "efficientnet-b0"}, data="shards", out="runs/b0")
run.oof, run.metrics, run.plot_roc()      # and later, or elsewhere: Run("runs/b0")

To fit another model to other data, write a `Task` and call `cross_validate(..., task=TASK)`, or end a script with
`main(TASK)`. `setibl_ray.api` also has `sweep` and `predict`.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from setibl_ray.core import interrupts

# Run as a command (`python -m` imports the package before it knows the module's path), not imported as a library.
if os.path.basename((getattr(sys, "argv", None) or [""])[0]) in ("-m", "setibl-ray"):
    interrupts.end_at_once()

if TYPE_CHECKING:
    from setibl_ray.api import cross_validate, main
    from setibl_ray.core.task import Fitted, Needs, Prediction, Rows, Score, Step, Task, Work
    from setibl_ray.core.where import Where
    from setibl_ray.results import Run
    from setibl_ray.seti.config import Config

__all__ = [
    "Config", "Fitted", "Needs", "Prediction", "Rows", "Run", "Score", "Step", "Task", "Where", "Work",
    "cross_validate", "main",
]  # fmt: skip

_HOMES = {
    "Config": "setibl_ray.seti.config",
    "Where": "setibl_ray.core.where",
    "Run": "setibl_ray.results",
    **dict.fromkeys(("cross_validate", "main"), "setibl_ray.api"),
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that a command's --help and a worker need not load pandas and the driver.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "setibl_ray.core.task")), name)
