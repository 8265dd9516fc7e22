"""Whole sweeps on a real Ray, with toy folds in the place of training: placement, pruning, resume, failures."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import toys
import yaml
from datasets import cadence_shards
from rich.console import Console

from setibl_ray.config import load_yaml, parse
from setibl_ray.errors import ConfigError, FoldFailedError, PlacementError, RunFolderError
from setibl_ray.tuning import desk
from setibl_ray.tuning.engine import sweep
from setibl_ray.tuning.ledger import Ledger

SPACE = {"augment.strength": {"uniform": [0, 2]}, "augment.dropout-size": {"uniform": [0, 0.2]}}
BASE = {
    "folds": 3, "epochs": 3, "model": "efficientnet-nano", "weights": "none", "image_size": "40x36", "batch_size": 8,
    "tta": 0, "cpus_per_fold": 1, "schedule": {"lr_max": toys.BEST["schedule.lr-max"]},
}  # fmt: skip
DEADLINE = pytest.mark.timeout(240)  # none of these may hang; they take seconds on an idle machine


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return str(cadence_shards(tmp_path_factory.mktemp("sweep-shards") / "cadences"))


@pytest.fixture
def run(shards, tmp_path, own_ray):
    """A sweep with toy folds under `tmp_path`."""
    console = Console(file=io.StringIO(), force_terminal=False, width=200)

    def go(task=None, base=None, space=SPACE, out="out", resume=False, **plan):
        task = task or toys.toy_task(tmp_path / "journal")
        return sweep(
            {**BASE, **(base or {})},
            space,
            data=shards,
            out=str(tmp_path / out),
            plan={"trials": 4, **plan},
            resume=resume,
            task=task,
            console=console,
        )

    return go


def journal(folder: Path) -> Counter:
    """How often each `strength fold epoch` was worked on."""
    return Counter((folder / "journal").read_text().splitlines())


@DEADLINE
def test_a_sweep_leaves_everything_that_was_promised(run, tmp_path):
    results = run(trials=6, confirm_seeds=2, search="random")
    out = tmp_path / "out"
    table = pd.read_csv(out / "trials.csv")
    assert list(table["trial"]) == list(range(6))
    assert set(table["state"]) <= {"done", "stopped"}
    assert table["state"][0] == "done"
    done = table[table["state"] == "done"]
    assert (done["folds_done"] == 3).all()
    assert (done["fold_epochs"] == 9).all()
    assert done["auc"].between(done["auc_low"], done["auc_high"]).all()
    stopped = table[table["state"] == "stopped"]
    assert (stopped["fold_epochs"] < 9).all()

    assert parse(load_yaml(out / "best.yaml")) == results.config
    assert results.best.auc == done["auc"].max()
    page = (out / "sweep.html").read_text()
    assert "plotly" in page
    assert "<script src" not in page
    assert any(
        name.startswith("events.out.tfevents") for _, _, names in os.walk(out / "tune") for name in names
    )
    for trial in done["trial"]:  # a finished trial is a run folder, without test predictions and weights
        folder = out / "trials" / f"{trial:03d}"
        assert (folder / "metrics.json").exists()
        assert not (folder / "submission.csv").exists()
        assert not list(folder.glob("fold-*/weights.h5"))
    for trial in stopped["trial"]:
        assert not list((out / "trials" / f"{trial:03d}").glob("fold-*/state-*"))
    if results.best.number != 0:
        confirm = pd.read_csv(out / "confirm.csv")
        assert len(confirm) == 2
        assert results.confirmed.n_seeds == 2
        assert "corrected for 5 trials" in str(results.against_base)


@DEADLINE
def test_trials_use_the_processes_of_earlier_ones(run, tmp_path):
    run(trials=4, stopping="none")
    manifests = (tmp_path / "out" / "trials").glob("*/manifest.json")
    pids = [
        attempt["pid"]
        for path in manifests
        for fold in json.loads(path.read_text())["folds"].values()
        for attempt in fold["attempts"]
    ]
    assert len(pids) == 12
    assert len(set(pids)) <= 4, "two at once: 12 folds must not need 12 processes"


@DEADLINE
def test_resume_adds_trials_and_trains_no_fold_twice(run, tmp_path):
    with pytest.raises(RunFolderError, match="holds no sweep"):
        run(resume=True)
    run(trials=2, stopping="none")
    with pytest.raises(RunFolderError, match="Add --resume"):
        run(trials=2, stopping="none")
    with pytest.raises(RunFolderError, match=r"space\.augment\.dropout-size"):
        run(trials=2, stopping="none", resume=True, space={"augment.strength": {"uniform": [0, 2]}})
    run(trials=4, resume=True)
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert list(table["state"]) == ["done"] * 4
    assert set(journal(tmp_path).values()) == {1}


SCRIPT = """
import sys, functools
from pathlib import Path
sys.path[:0] = {paths!r}
import toys
from setibl_ray.tuning import desk
from setibl_ray.tuning.engine import sweep
from setibl_ray import cli, sweep as command
task = toys.toy_task(Path({journal!r}), epoch_s=0.2)
sys.exit(cli.run(command.Sweep, lambda options: bool(sweep(
    {base!r}, {space!r}, data={data!r}, out={out!r}, plan=dict(trials=5, trials_at_once=1, search="optuna"),
    resume=options.resume, task=task)) * 0))
"""


def finished_folds(out):
    """(strength, fold) as the toy's journal writes them, of every fold that the sweep's folder calls done."""
    found = set()
    for path in out.glob("trials/*/manifest.json"):
        strength = yaml.safe_load((path.parent / "config.yaml").read_text())["augment"]["strength"]
        folds = json.loads(path.read_text())["folds"]
        found |= {(f"{strength:.6f}", fold) for fold, entry in folds.items() if entry["state"] == "done"}
    return found


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_table(shards, tmp_path, signal_number):
    here = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

    def start(name, *flags):
        code = SCRIPT.format(
            paths=here, journal=str(tmp_path / f"journal-{name}"), base=BASE, space=SPACE, data=shards,
            out=str(tmp_path / name),
        )  # fmt: skip
        return subprocess.Popen([sys.executable, "-c", code, *flags], stdout=subprocess.PIPE, text=True)

    plain = start("plain")
    assert plain.wait(200) == 0
    lines = len((tmp_path / "journal-plain").read_text().splitlines())
    process, flags, kept = start("cut"), [], {}
    for cut in (lines // 4, lines // 2):
        journal = tmp_path / "journal-cut"
        while not journal.exists() or len(journal.read_text().splitlines()) < cut:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal_number)
        code = process.wait(60)
        if signal_number == signal.SIGINT:
            assert code == 130
            said = process.stdout.read()
            assert "best config" in said or "no trial is finished" in said
        done = finished_folds(tmp_path / "cut")
        work = Counter(journal.read_text().splitlines())
        kept = {line: count for line, count in work.items() if tuple(line.split()[:2]) in done}
        flags = ["--resume"]
        process = start("cut", *flags)
    assert process.wait(200) == 0
    work = Counter((tmp_path / "journal-cut").read_text().splitlines())
    assert kept, "no fold was finished at the last cut"
    assert {line: work[line] for line in kept} == kept, "a finished fold was trained again"
    columns = ["trial", "state", "auc", "augment.strength", "augment.dropout-size", "folds_done"]
    one, other = (pd.read_csv(tmp_path / name / "trials.csv")[columns] for name in ("plain", "cut"))
    pd.testing.assert_frame_equal(one, other)


@DEADLINE
def test_a_trial_that_fails_is_a_line_and_the_rest_is_kept(run, tmp_path):
    with pytest.raises(
        FoldFailedError, match=r"of 5 trials failed, the first \(trial \d\): fold \d: ValueError: this model"
    ):
        run(toys.toy_task(tmp_path / "journal", trouble="code"), search="random", trials=5)
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert (table["state"] == "failed").sum() == (table["augment.strength"] > 1).sum() > 0
    assert (tmp_path / "out" / "best.yaml").exists()
    run(search="random", trials=5, resume=True)  # the fault is mended: the failed trials get another go
    assert "failed" not in set(pd.read_csv(tmp_path / "out" / "trials.csv")["state"])


@DEADLINE
@pytest.mark.parametrize(
    ("trouble", "says", "most"),
    [
        ("all", "trials in a row failed, the last one: fold 0: ValueError: this model cannot be built", 6),
        ("data", "every trial would meet: fold 0: shard train03-5.tfrec: record 2 is truncated", 2),
    ],
)
def test_when_all_trials_fail_the_sweep_ends_early_and_says_why(run, tmp_path, trouble, says, most):
    with pytest.raises(FoldFailedError) as caught:
        run(toys.toy_task(tmp_path / "journal", trouble=trouble), trials=12)
    assert says in str(caught.value)
    assert "--resume" in str(caught.value)
    ledger = Ledger(str(tmp_path / "out"))
    ledger.load()
    assert 0 < sum(trial.state == "failed" for trial in ledger.trials.values()) <= most
    assert ledger.best is None


@DEADLINE
def test_a_diverged_trial_is_worth_nothing_but_is_no_failure(run, tmp_path):
    run(toys.toy_task(tmp_path / "journal", trouble="nan"), search="random", stopping="none", trials=5)
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert set(table["state"]) == {"done"}
    wild = table["augment.strength"] > 1
    assert wild.any()
    assert (table.loc[wild, "auc"] == 0).all()


@DEADLINE
def test_a_killed_fold_goes_on_within_its_trial(run, tmp_path):
    run(toys.toy_task(tmp_path / "journal", trouble="kill"), trials=2, stopping="none")
    assert set(pd.read_csv(tmp_path / "out" / "trials.csv")["state"]) == {"done"}
    # The epoch after which it was killed may have died with it; what came after was trained once.
    assert all(count == 1 for name, count in journal(tmp_path).items() if not name.endswith(" 0"))


@DEADLINE
def test_more_folds_than_slots_and_slots_that_leave_a_rest(run, tmp_path):
    run(base={"folds": 5}, trials=2, stopping="none", folds_at_once=2)
    reports = pd.read_csv(tmp_path / "out" / "trials" / "001" / "reports.csv")
    assert list(reports["fold_epochs"]) == [2, 4, 6, 8, 10, 12, 13, 14, 15]


@DEADLINE
@pytest.mark.parametrize(
    ("base", "plan", "error", "says"),
    [
        (
            {"cpus_per_fold": 8},
            {},
            PlacementError,
            "a fold asks for 8 CPU on one node, but no node has that much",
        ),
        (
            {},
            {"folds_at_once": 3},
            PlacementError,
            "a trial asks for 3 x 1 CPU on one node, but the cluster's nodes hold 2",
        ),
        ({"device": "gpu"}, {}, PlacementError, "--device cpu"),
        ({"folds": 40}, {}, ConfigError, "40 folds need at least 40 training shards"),
        ({}, {"search": "grid"}, ConfigError, "--search grid needs a list"),
        ({}, {"log_to": ["mlflow"]}, ConfigError, 'pip install "setibl-ray[mlflow]"'),
        ({}, {"log_to": ["comet"]}, ConfigError, "expected mlflow or wandb"),
    ],
)
def test_what_cannot_work_is_refused_before_any_trial(run, tmp_path, base, plan, error, says):
    if plan.get("log_to") == ["mlflow"]:
        try:
            import mlflow  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("mlflow is installed here")
    with pytest.raises(error) as caught:
        run(base=base, **plan)
    assert says in str(caught.value)
    assert not (tmp_path / "out" / "trials").exists()


@DEADLINE
def test_a_time_budget_ends_the_sweep_and_resume_takes_it_up(run, tmp_path):
    slow = toys.toy_task(tmp_path / "journal", epoch_s=0.5)
    run(slow, trials=40, stopping="none", time_budget_s=8)
    ledger = Ledger(str(tmp_path / "out"))
    ledger.load()
    states = Counter(trial.state for trial in ledger.trials.values())
    assert states["unfinished"] >= 1
    assert sum(states.values()) < 40
    run(slow, trials=sum(states.values()), resume=True)
    assert set(pd.read_csv(tmp_path / "out" / "trials.csv")["state"]) == {"done"}
    assert all(count == 1 for name, count in journal(tmp_path).items() if name.endswith("done"))


def test_a_cluster_that_can_hold_no_trial_any_more_ends_the_sweep(tmp_path, monkeypatch):
    def gone():
        raise PlacementError("a trial asks for 2 x 1 CPU, but the cluster's nodes hold 0")

    room = [lambda: None, gone]
    said = io.StringIO()
    ledger = Ledger(str(tmp_path))
    table = desk.Desk(ledger, [], 3, 3, lambda: room.pop(0)(), Console(file=said, width=200))
    assert not table.must_end()
    monkeypatch.setattr(desk, "STUCK_S", -1.0)
    assert not table.must_end()
    assert "others use it" in said.getvalue()
    assert table.must_end()
    assert isinstance(table.ends_because, PlacementError)


def test_the_command_refuses_in_one_line(tmp_path, capsys, shards):
    from setibl_ray import sweep as command

    (tmp_path / "space.yaml").write_text("augment.strenght: {uniform: [0, 1]}\n")
    arguments = ["--data", shards, "--out", str(tmp_path / "out"), "--space", str(tmp_path / "space.yaml")]
    assert command.entry([*arguments, "--weights", "none", "--model", "efficientnet-nano"]) == 2
    assert capsys.readouterr().err.startswith(
        "python -m setibl_ray.sweep: space: unknown field 'augment.strenght'"
    )
    assert command.entry(["--resume"]) == 2
    assert "--resume needs --out" in capsys.readouterr().err
