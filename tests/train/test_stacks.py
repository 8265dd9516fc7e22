"""Both stacks read each other's weights, states and run folders; SETIBL_RAY_OTHER_PYTHON names the other's Python."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from datasets import cadence_shards

OTHER = os.environ.get("SETIBL_RAY_OTHER_PYTHON")
CODE = """
import sys
from types import SimpleNamespace
import numpy as np
from setibl_ray.seti.config import parse
from setibl_ray.seti.train import keras2
from setibl_ray.seti.train.device import acquire
from setibl_ray.seti.train.trainer import FoldState, Trainer
import tensorflow as tf
act, folder = sys.argv[1:]
config = parse(dict(model="efficientnet-nano", weights="none", batch_size=8))
work = SimpleNamespace(config=config, files={})
trainer = Trainer(work, config.for_fold(0), (40, 36, 3), acquire("cpu", 1), {})
rng = np.random.default_rng(0)
images, targets = rng.normal(size=(32, 40, 36, 3)).astype("f4"), rng.integers(2, size=(32, 1)).astype("f4")
batches = tf.data.Dataset.from_tensor_slices((images, targets)).batch(8)
if act == "write":
    trainer.train_epoch(batches, learning_rate=1e-2, key=1)
    state = FoldState(1, *trainer.capture(), [], 0.5, 0, np.empty(0, np.float32))
    open(f"{folder}/state", "wb").write(state.to_bytes())
    open(f"{folder}/weights.h5", "wb").write(keras2.weights_file(trainer.model))
else:
    keras2.load_weights_file(trainer.model, open(f"{folder}/weights.h5", "rb").read())
pred = [trainer.predict(batches.map(lambda image, _: image), 32)]
trainer.restore(FoldState.from_bytes(open(f"{folder}/state", "rb").read()))
trainer.train_epoch(batches, learning_rate=1e-2, key=2)
pred.append(trainer.predict(batches.map(lambda image, _: image), 32))
np.save(f"{folder}/{act}.npy", np.stack(pred))
"""


def command(python, name, *arguments):
    words = [python, "-m", f"setibl_ray.{name}", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]


def run(python, act, folder):
    done = subprocess.run([python, "-c", CODE, act, str(folder)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(folder / f"{act}.npy")


pytestmark = pytest.mark.skipif(
    not OTHER, reason="SETIBL_RAY_OTHER_PYTHON names no Python with the other stack"
)
both_ways = pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "the other's first"])


@both_ways
def test_weights_and_states_of_one_stack_go_on_in_the_other(tmp_path, ours_first):
    writer, reader = (sys.executable, OTHER) if ours_first else (OTHER, sys.executable)
    wrote, read = run(writer, "write", tmp_path), run(reader, "read", tmp_path)
    np.testing.assert_allclose(read[0], wrote[0], atol=1e-6)  # the same weights
    np.testing.assert_allclose(read[1], wrote[1], atol=1e-4)  # the same next epoch, added up in another order
    assert np.abs(wrote[1] - wrote[0]).max() > 1e-3


@both_ways
def test_a_run_of_one_stack_is_reported_and_predicts_in_the_other(tmp_path, ours_first):
    writer, reader = (sys.executable, OTHER) if ours_first else (OTHER, sys.executable)
    shards, first, again = cadence_shards(tmp_path / "shards"), tmp_path / "run", tmp_path / "again"
    flags = "--model efficientnet-nano --weights none --image-size 40x36 --batch-size 8 --folds 2 --epochs 1 --tta 1"
    command(writer, "cv", *flags.split(), "--runner", "local", "--data", shards, "--out", first)
    command(reader, "predict", first, "--runner", "local", "--data", shards, "--out", again)
    ours, theirs = (pd.read_csv(folder / "submission.csv") for folder in (first, again))
    assert ours["id"].equals(theirs["id"])
    np.testing.assert_allclose(ours["target"], theirs["target"], atol=1e-5)
    (first / "report.html").unlink()
    command(reader, "report", first)
    assert (first / "report.html").exists()
