"""A stand-in for a run's networks: as a line in the middle of ON panels and none in OFF panels would score."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from ray import cloudpickle
from runs import write_run

from setibl_ray.core.errors import DataError
from setibl_ray.seti.observations import windows
from setibl_ray.seti.observations.conditioning import definition
from setibl_ray.seti.observations.simulating import DF_HZ, DT_S

WIDTH = 32
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def score(cuts: np.ndarray) -> np.ndarray:
    """(n, 2): high where all ON panels are bright in the middle column, and no OFF panel is."""
    middle = (
        cuts[..., WIDTH // 2 - 2 : WIDTH // 2 + 3].astype(float).mean(axis=2).max(axis=-1) - windows.ABSENT
    )
    on, off = middle[:, ::2].min(axis=1), middle[:, 1::2].max(axis=1)
    value = 1 / (1 + np.exp(-(on - 1.5 * off) / 10))
    return np.column_stack([value, value**2]).astype(np.float32)


ONCE = ""  # a file; while it is there, the process that scores removes it and dies
calls = []


def scorer(config, weights):
    """As `train.scoring.folds_scorer`."""
    assert len(weights) == config.folds
    calls.append("built")
    return lambda cuts: calls.append("scored") or score(cuts)


def _at_the_second(error):
    def own(cuts):
        calls.append("scored")
        if len(calls) == 2:
            raise error
        return score(cuts)

    return own


def interrupted_at_the_second(config, weights):
    return _at_the_second(KeyboardInterrupt())


def refused_at_the_second(config, weights):
    return _at_the_second(DataError("file.h5: torn"))


def dies_once(config, weights):
    def own(cuts):
        if os.path.exists(ONCE):
            os.unlink(ONCE)
            os.kill(os.getpid(), signal.SIGKILL)
        return score(cuts)

    return own


def trained_run(path: Path, **changes) -> Path:
    """A run folder that says it was trained on what `data inject` makes; its weights are none."""
    write_run(path, folds=2, n_train=40, n_test=0)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["data"] |= {
        "panel_shape": [16, WIDTH], "df_hz": DF_HZ, "dt_s": DT_S, "conditioning": definition(),
        "windows": windows.definition(WIDTH),
    } | changes  # fmt: skip
    for fold in "01":
        sum_ = hashlib.sha256((path / f"fold-{fold}" / "weights.h5").read_bytes()).hexdigest()
        manifest["folds"][fold]["files"] = {f"fold-{fold}/weights.h5": sum_}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path
