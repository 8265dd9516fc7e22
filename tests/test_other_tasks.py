"""Tasks that know nothing of cadences: the examples, and one of steps; killed, resumed, swept, predicted with."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydantic
import pytest
import walk
import yaml
from ray import cloudpickle

from setibl_ray import main
from setibl_ray.core.jobs import Stepped
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import Manifest
from setibl_ray.core.run.progress import Progress

EXAMPLES = Path(__file__).parents[1] / "examples"
ONE_CORE = ["--folds", "4", "--cpus-per-fold", "1", "--device", "cpu"]


def example(name):
    """The module of an example; its classes travel to workers by value."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cloudpickle.register_pickle_by_value(module)
    return module


forest = example("forest")
TASKS = {
    "walk": (walk.Walk(), {"data": "40+10"}, ["--split", "group"]),
    "forest": (forest.Forest(), {"data": "diabetes", "split": "group"}, ["--trees", "20"]),
}


def run(name, *arguments):
    task, defaults, flags = TASKS[name]
    return main(task, [*ONE_CORE, *flags, *map(str, arguments)], **defaults)


def results(out):
    return {
        name: (out / name).read_bytes() for name in ("oof.csv", "submission.csv") if (out / name).exists()
    }


def attempts(out, fold):
    return Manifest.load(RunFolder(str(out))).folds[fold].attempts


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Run folders of the plain loop, by task."""
    folder = tmp_path_factory.mktemp("plain")
    for name in TASKS:
        assert run(name, "--out", folder / name, "--runner", "local") == 0
    return folder


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("name", TASKS)
def test_ray_gives_the_bytes_of_the_plain_loop_and_lines_for_whoever_watches(plain, name, tmp_path, capsys):
    assert run(name, "--out", tmp_path / "run") == 0
    assert results(tmp_path / "run") == results(plain / name)
    said = capsys.readouterr().out
    assert "out-of-fold rmse" in said
    if name == "walk":
        assert "fold 0  step 2/4  rmse 1.2500 / 1.2500  ETA" in said
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    oof = pd.read_csv(tmp_path / "run" / "oof.csv")
    pred = oof["pred_0" if name == "walk" else "pred"]
    assert metrics["score"]["oof"] == pytest.approx(np.sqrt(np.mean((oof["target"] - pred) ** 2)))
    low, high = metrics["score"]["interval"]
    assert low < metrics["score"]["oof"] < high
    groups = pd.read_csv(tmp_path / "run" / "records.csv").groupby("group")["fold"].nunique()
    assert (groups == 1).all()


@pytest.mark.usefixtures("own_ray")
def test_a_killed_worker_goes_on_from_its_last_step(plain, tmp_path, monkeypatch):
    on, killed = Progress.on, []

    def kill_once(self, event, answer):
        on(self, event, answer)
        if isinstance(event, Stepped) and (event.fold, event.step) == (1, 1) and not killed:
            killed.append(attempts(tmp_path / "run", 1)[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(Progress, "on", kill_once)
    assert run("walk", "--out", tmp_path / "run", "--step-s", 0.2) == 0
    assert results(tmp_path / "run") == results(plain / "walk")
    first, second = attempts(tmp_path / "run", 1)
    assert (first.outcome, first.cause, second.outcome) == ("failed", "worker-died", "done")
    assert second.from_step >= 2


@pytest.mark.usefixtures("own_ray")
def test_a_killed_worker_of_a_fit_without_steps_begins_anew(plain, tmp_path):
    """The forest's worker is killed from outside, as soon as the manifest says where it is."""
    code = (
        "import pathlib, sys, time, os, signal, json\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "while not path.exists(): time.sleep(0.005)\n"
        "os.kill(json.loads(path.read_text())['attempts'][0]['pid'], signal.SIGKILL)\n"
    )
    out = tmp_path / "run"
    killer = subprocess.Popen([sys.executable, "-c", code, str(out / "fold-2" / "fold.json")])
    assert run("forest", "--out", out, "--trees", "400") == 0
    assert killer.wait(timeout=10) == 0
    assert [attempt.outcome for attempt in attempts(out, 2)][-1] == "done"
    reference = tmp_path / "reference"
    assert run("forest", "--out", reference, "--trees", "400", "--runner", "local") == 0
    assert results(out) == results(reference)


@pytest.mark.parametrize("name", TASKS)
def test_a_killed_driver_is_followed_by_one_that_resumes(plain, name, tmp_path):
    out = tmp_path / "run"
    script = {"walk": Path(walk.__file__), "forest": EXAMPLES / "forest.py"}[name]
    slow = {"walk": ["--step-s", "0.3"], "forest": ["--trees", "20"]}[name]
    command = [
        sys.executable,
        script,
        *ONE_CORE,
        "--split",
        "group",
        "--out",
        out,
        "--runner",
        "local",
        *slow,
    ]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    waits_for = "fold-1/state-*.bin" if name == "walk" else "fold-0/oof.csv"
    while not list(out.glob(waits_for)) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    task, _, _ = TASKS[name]
    assert main(task, ["--resume", "--out", str(out), "--runner", "local"]) == 0
    assert results(out) == results(plain / name)
    if name == "walk":
        assert len(attempts(out, 0)) == 1
        assert attempts(out, 1)[-1].from_step >= 1


class Sloped(walk.Settings):
    slope: float  # without a default
    size: tuple[int, int] = (1, 1)

    @pydantic.field_validator("size", mode="before")
    @classmethod
    def _by(cls, value):
        return value[0].split("x") if isinstance(value, list) and len(value) == 1 else value

    @pydantic.model_validator(mode="after")
    def _rises(self):
        if self.slope < 0:
            raise ValueError("slope: expected one that rises")
        return self


class Needy(walk.Walk):
    """A task with a setting that must be given."""

    Settings = Sloped


def test_a_run_that_is_resumed_knows_settings_that_have_no_default(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), "--runner", "local"]
    again = ["--resume", *out]
    assert main(Needy(), [*out], data="40+10") == 2
    assert "slope: expected, but not given" in capsys.readouterr().err
    assert main(Needy(), ["--slope=-1", *out], data="40+10") == 2
    assert "slope: expected one that rises" in capsys.readouterr().err
    assert main(Needy(), ["--slope", "1.5", "--size", "3x4", *out], data="40+10") == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["size"] == [3, 4]
    assert main(Needy(), again, data="40+10") == 0
    assert main(Needy(), [*again, "--slope", "1.7"], data="40+10") == 2
    assert "slope was 1.5, now 1.7" in capsys.readouterr().err
    assert main(Needy(), ["--resume", "--runner", "local"], data="40+10") == 2
    assert "--resume needs --out" in capsys.readouterr().err


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("walk", {"slope": {"uniform": [0.0, 4.0]}}),
        ("forest", {"leaf": {"choice": [2, 200]}}),
    ],
)
def test_a_sweep_of_four_trials_finds_less_error(name, space, tmp_path):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    task, defaults, flags = TASKS[name]
    fixed = ["--slope", "0"] if name == "walk" else ["--leaf", "200"]
    arguments = ["sweep", *ONE_CORE, *flags, *fixed, "--trials", "4", "--space", tmp_path / "space.yaml"]
    assert main(task, [*map(str, arguments), "--out", str(tmp_path / "sweep")], **defaults) == 0
    trials = pd.read_csv(tmp_path / "sweep" / "trials.csv")
    done = trials[trials["state"] == "done"].set_index("trial")["rmse"]
    assert done.idxmin() != 0
    best = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    (field,) = space
    assert best[field] == pytest.approx(trials.set_index("trial")[field][done.idxmin()])
    assert "rmse" in (tmp_path / "sweep" / "sweep.html").read_text().lower()


@pytest.mark.usefixtures("own_ray")
def test_a_run_predicts_other_rows(plain, tmp_path):
    new = forest.load_diabetes(as_frame=True, scaled=False).frame.drop(columns="target")[:7]
    new.assign(id=[f"n{i}" for i in range(7)]).to_csv(tmp_path / "new.csv", index=False)
    arguments = ["predict", plain / "forest", "--data", tmp_path / "new.csv", "--out", tmp_path / "new"]
    assert main(forest.Forest(), list(map(str, arguments))) == 0
    submission = pd.read_csv(tmp_path / "new" / "submission.csv")
    folds = [pd.read_csv(tmp_path / "new" / f"fold-{fold}" / "test.csv")["pred"] for fold in range(4)]
    assert submission["id"].tolist() == [f"n{i}" for i in range(7)]
    assert submission["target"].to_numpy() == pytest.approx(np.mean(folds, axis=0))

    arguments = ["predict", plain / "walk", "--data", "0+10", "--out", tmp_path / "same"]
    assert main(walk.Walk(), list(map(str, arguments))) == 0
    same = (tmp_path / "same" / "submission.csv").read_bytes()
    assert same == (plain / "walk" / "submission.csv").read_bytes()


class Sites(walk.Walk):
    """Rows with a column of text that looks like numbers."""

    def open(self, data, config):
        rows = super().open(data, config)
        return replace(rows, table=rows.table.assign(site="007"))

    def finish_test(self, config, oof, test):
        assert set(oof["site"]) == {"007"}
        return super().finish_test(config, oof, test)


def test_a_tasks_own_columns_of_text_are_text_when_a_run_predicts(tmp_path):
    for arguments in (
        ["--out", tmp_path / "run"],
        ["predict", tmp_path / "run", "--out", tmp_path / "again"],
    ):
        assert main(Sites(), [*map(str, arguments), "--data", "40+10", "--runner", "local"]) == 0
    again, own = (tmp_path / name / "submission.csv" for name in ("again", "run"))
    assert again.read_bytes() == own.read_bytes()


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize(
    ("name", "packages"), [("digits_torch", ["torch"]), ("digits_keras", ["keras", "jax"])]
)
def test_the_other_examples_learn(name, packages, tmp_path):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; the example needs it")
    if name == "digits_keras":
        import keras

        if not keras.__version__.startswith("3"):
            pytest.skip(f"the example needs Keras 3; this environment has {keras.__version__}")
    module = example(name)
    out = tmp_path / "run"
    assert (
        main(
            module.Digits(),
            [*ONE_CORE, "--epochs", "2", "--out", str(out)],
            data="digits",
            split="stratified",
        )
        == 0
    )
    assert json.loads((out / "metrics.json").read_text())["score"]["oof"] > 0.8


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 60
