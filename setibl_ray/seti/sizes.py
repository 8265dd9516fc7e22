"""Sizes of a model, for estimates: from a table or, for a user's own model, from the model itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from setibl_ray.core.errors import ConfigError
from setibl_ray.seti.cadence import LAYOUTS
from setibl_ray.seti.config import Config
from setibl_ray.seti.models import Backbone, with_head

PREDICT_SPEEDUP = 3.0  # rate of prediction over that of training: a forward pass without a backward pass

# In a separate process: a driver has no TensorFlow, and should not hold its memory.
_MEASURE = "from setibl_ray.seti.train.measure import main; main()"


def sizes(config: Config, fold: int, code: Mapping[str, Callable[..., Any]]) -> Backbone:
    """Sizes of a fold's model. A user's own is measured once for each image shape, whatever the other settings: a sweep
    asks for dozens, and an answer takes seconds.

    Raises:
      ConfigError: a user's model cannot be built, or is not what a fold needs.
    """
    own = config.for_fold(fold)
    if ":" not in own.model:
        return with_head(own.model, own.head)
    shape = LAYOUTS[config.layout or "all6"].image_shape(own.image_size)
    function = code.get(own.model)
    if (own.model, shape, function) not in _measured:
        relevant = config.model_copy(
            update={"device": "cpu", "cpus_per_fold": None, "devices_per_fold": None}
        )
        _measured[own.model, shape, function] = _measure(own.model, shape, relevant.to_yaml(), fold, function)
    return _measured[own.model, shape, function]


_measured: dict[tuple[Any, ...], Backbone] = {}


def _measure(
    name: str, shape: tuple[int, int, int], config: str, fold: int, function: Callable[..., Any] | None
) -> Backbone:
    from ray import cloudpickle  # a function from a notebook or a script exists here only

    request = cloudpickle.dumps((name, shape, config, fold, function))
    path = os.pathsep.join(filter(None, (os.getcwd(), *sys.path)))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE],
        input=request,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"model: {name} could not be measured: {last}") from None
    if "error" in answer:
        raise ConfigError(answer["error"])
    return Backbone(name, **answer)
