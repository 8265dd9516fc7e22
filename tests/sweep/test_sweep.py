"""Whole sweeps on a real Ray, with toy folds in the place of training: placement, pruning, resume, failures."""

import importlib.util
import io
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import toys
import yaml
from datasets import cadence_shards
from rich.console import Console

from setibl_ray.api import main
from setibl_ray.core.config import load_yaml, merge
from setibl_ray.core.errors import ConfigError, FoldFailedError, Interrupted, PlacementError, RunFolderError
from setibl_ray.core.run.folder import RunFolder
from setibl_ray.core.run.manifest import Manifest
from setibl_ray.core.tuning import desk, engine
from setibl_ray.core.tuning.engine import sweep
from setibl_ray.core.tuning.ledger import Ledger, Trial
from setibl_ray.seti.config import parse
from setibl_ray.seti.formats.shards import read_index
from setibl_ray.seti.task import CadenceTask

SPACE = {"augment.strength": {"uniform": [0, 2]}, "augment.dropout-size": {"uniform": [0, 0.2]}}
BASE = {
    "folds": 3, "epochs": 3, "model": "efficientnet-nano", "weights": "none", "image_size": "40x36", "batch_size": 8,
    "tta": 0, "cpus_per_fold": 1, "schedule": {"lr_max": toys.BEST["schedule.lr-max"]},
    "augment": {"strength": 0.2},
}  # fmt: skip
DEADLINE = pytest.mark.timeout(240)  # none of these may hang; they take seconds on an idle machine


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return str(cadence_shards(tmp_path_factory.mktemp("sweep-shards") / "cadences"))


@pytest.fixture
def run(shards, tmp_path, own_ray):
    """A sweep with toy folds under `tmp_path`."""

    def go(task=None, base=None, space=SPACE, out="out", resume=False, **options):
        return sweep(
            task or toys.toy_task(tmp_path / "journal"),
            merge(BASE, base or {}),
            space,
            data=shards,
            out=out if "://" in out else str(tmp_path / out),
            options={"trials": 4, **options},
            resume=resume,
            console=console(),
        )

    return go


def console():
    return Console(file=io.StringIO(), force_terminal=False, width=200)


# One trial after another: which trials are stopped does not depend on timing.
WHOLE = {"trials": 5, "trials_at_once": 1}
_whole = []


@pytest.fixture
def whole(shards, own_ray, tmp_path_factory):
    """(folder with `out` and `journal`, results) of one sweep that ran undisturbed, the same for all tests."""
    if not _whole:
        folder = tmp_path_factory.mktemp("whole")
        task = toys.toy_task(folder / "journal")
        options = {**WHOLE, "confirm_seeds": 2}
        results = sweep(
            task, BASE, SPACE, data=shards, out=str(folder / "out"), options=options, console=console()
        )
        _whole.append((folder, results))
    return _whole[0]


def journal(folder: Path) -> Counter:
    """How often each `strength fold epoch` was worked on."""
    return Counter((folder / "journal").read_text().splitlines())


@DEADLINE
def test_a_sweep_leaves_everything_that_was_promised(whole):
    out, results = whole[0] / "out", whole[1]
    table = pd.read_csv(out / "trials.csv")
    assert list(table["trial"]) == list(range(5))
    assert set(table["state"]) == {"done", "stopped"}
    assert table["state"][0] == "done"
    done = table[table["state"] == "done"]
    assert (done["folds_done"] == 3).all()
    assert (done["fold_epochs"] == 9).all()
    assert done["auc"].between(done["auc_low"], done["auc_high"]).all()
    stopped = table[table["state"] == "stopped"]
    assert (stopped["fold_epochs"] < 9).all()

    assert parse(load_yaml(out / "best.yaml")) == results.config
    assert results.best.score == pytest.approx(done["auc"].max())
    assert results.verdict() in (out / "sweep.html").read_text()
    assert any(
        name.startswith("events.out.tfevents") for _, _, names in os.walk(out / "tune") for name in names
    )
    for trial in done["trial"]:  # a finished trial is a run folder, without test predictions and weights
        folder = out / "trials" / f"{trial:03d}"
        assert (folder / "metrics.json").exists()
        assert json.loads((folder / "manifest.json").read_text())["command"] == shlex.join(sys.argv)
        assert not (folder / "submission.csv").exists()
        assert not list(folder.glob("fold-*/weights.h5"))
    for trial in stopped["trial"]:
        assert not list((out / "trials" / f"{trial:03d}").glob("fold-*/state-*"))
    assert results.best.number != 0
    assert "corrected for 4 trials" in results.verdict()
    assert len(pd.read_csv(out / "confirm.csv")) == 2
    assert results.confirmed.n_seeds == 2
    assert len(results.lines()) <= 20


@DEADLINE
def test_trials_use_the_processes_of_earlier_ones(whole):
    manifests = (whole[0] / "out" / "trials").glob("*/manifest.json")
    pids = [
        attempt.pid
        for path in manifests
        for fold in Manifest.load(RunFolder(str(path.parent))).folds.values()
        for attempt in fold.attempts
    ]
    assert len(pids) >= 9
    assert len(set(pids)) == 1, "one fold at once needs one process"


@DEADLINE
def test_resume_adds_trials_and_trains_no_fold_twice(run, whole, tmp_path):
    with pytest.raises(RunFolderError, match="holds no sweep"):
        run(resume=True)
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    with pytest.raises(RunFolderError, match="Add --resume"):
        run()
    with pytest.raises(RunFolderError, match=r"space\.augment\.dropout-size"):
        run(resume=True, space={"augment.strength": {"uniform": [0, 2]}})
    run(trials=6, resume=True)
    before, table = (pd.read_csv(folder / "out" / "trials.csv") for folder in (whole[0], tmp_path))
    pd.testing.assert_frame_equal(table[:5], before)
    assert table["state"][5] in ("done", "stopped")
    old, new = journal(whole[0]), journal(tmp_path)  # best and base config twice more each, with other seeds
    assert {line: new[line] for line in old} == old
    assert set((new - old).values()) == {1}


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import toys
from ray._private import ray_constants
ray_constants.ENABLE_RAY_CLUSTER = not {joins}  # else one that listens on loopback is not found
from setibl_ray import cli, sweep as command
from setibl_ray.core.tuning.engine import sweep
from setibl_ray.core.where import Where
task = toys.toy_task(Path({journal!r}), epoch_s={epoch_s})
sys.exit(cli.run(command.Sweep, lambda options: bool(sweep(
    task, {base!r}, {space!r}, data={data!r}, out={out!r}, options={options!r},
    where=Where(address=options.address), resume=options.resume)) * 0))
"""


@pytest.fixture
def start(shards, tmp_path):
    """Begin a toy sweep as a command of its own, under `tmp_path`."""
    begun = []

    def go(*flags, epoch_s=0.1):
        here = Path(__file__).parent
        code = SCRIPT.format(
            paths=[str(here), str(here.parent)], journal=str(tmp_path / "journal"), out=str(tmp_path / "out"),
            base=BASE, space=SPACE, data=shards, options=WHOLE, epoch_s=epoch_s, joins="--address" in flags,
        )  # fmt: skip
        process = subprocess.Popen([sys.executable, "-c", code, *flags], stdout=subprocess.PIPE, text=True)
        begun.append(process)
        return process

    yield go
    for process in begun:
        process.kill()
        process.wait()
        process.stdout.close()


def cut(process, after, tmp_path, number):
    """Send a signal once so many lines stand in the journal, one of them by this process; gives the exit code."""
    path = tmp_path / "journal"

    def n_lines():
        return len(path.read_text().splitlines()) if path.exists() else 0

    after = max(after, n_lines() + 1)  # before its first line it may not even listen to signals yet
    while n_lines() < after:
        assert process.poll() is None, "it ended before it was cut"
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(60)


def finished_folds(tmp_path) -> dict:
    """How often every line was worked on of the folds that the sweep's folder calls done."""
    found = set()
    for path in tmp_path.glob("out/trials/*/manifest.json"):
        strength = yaml.safe_load((path.parent / "config.yaml").read_text())["augment"]["strength"]
        manifest = Manifest.load(RunFolder(str(path.parent)))
        found |= {(f"{strength:.6f}", str(fold)) for fold in manifest.states("done")}
    return {line: count for line, count in journal(tmp_path).items() if tuple(line.split()[:2]) in found}


def check_same_end(whole, tmp_path):
    """The sweep that was cut short ended as the undisturbed one did."""
    columns = ["trial", "state", "auc", "auc_low", *SPACE, "folds_done"]
    one, other = (pd.read_csv(folder / "out" / "trials.csv")[columns] for folder in (whole[0], tmp_path))
    pd.testing.assert_frame_equal(one, other)
    for path in whole[0].glob("out/trials/*/oof.csv"):
        assert path.read_bytes() == (tmp_path / path.relative_to(whole[0])).read_bytes()
    assert (whole[0] / "out" / "best.yaml").read_bytes() == (tmp_path / "out" / "best.yaml").read_bytes()


@DEADLINE
def test_killed_then_interrupted_and_resumed_it_ends_with_the_same_table(
    whole, run, start, tmp_path, monkeypatch
):
    import ray

    process = start("--address", ray.get_runtime_context().gcs_address)
    cut(process, 7, tmp_path, signal.SIGKILL)  # fold 0 is done, fold 1 is under way
    kept = finished_folds(tmp_path)
    assert kept, "no fold was finished when it was killed"

    # As Ctrl-C reaches a notebook, which keeps the traceback, and with it all that Tune had in hand.
    interrupt = KeyboardInterrupt()

    def show(self, record, line):
        if "1 of 3 folds done" in line and record.number == 1:
            raise interrupt

    with monkeypatch.context() as patched:
        patched.setattr(desk.Desk, "_show", show)
        with pytest.raises(Interrupted, match="--resume"):
            run(resume=True, **WHOLE)
    groups = ray.util.placement_group_table().values()
    assert {group["state"] for group in groups} == {"REMOVED"}, "the next sweep would wait for their cores"
    assert pd.read_csv(tmp_path / "out" / "trials.csv")["state"].tolist() == ["done", "unfinished"]
    assert finished_folds(tmp_path).items() >= kept.items(), "a finished fold was trained again"
    kept = finished_folds(tmp_path)

    run(resume=True, **WHOLE)
    assert finished_folds(tmp_path).items() >= kept.items(), "a finished fold was trained again"
    check_same_end(whole, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_cut_at_random_moments_and_resumed_it_ends_with_the_same_table(whole, start, tmp_path, number):
    kept, flags = {}, []
    for after in sorted(random.sample(range(2, 24), 3)):
        code = cut(process := start(*flags, epoch_s=0.2), after, tmp_path, number)
        if number == signal.SIGINT:
            assert code == 130
            said = process.stdout.read()
            assert "best.yaml" in said or "no trial is finished" in said
        assert finished_folds(tmp_path).items() >= kept.items(), "a finished fold was trained again"
        kept, flags = finished_folds(tmp_path), ["--resume", "--out", str(tmp_path / "out")]
    assert start(*flags).wait(200) == 0
    assert finished_folds(tmp_path).items() >= kept.items(), "a finished fold was trained again"
    check_same_end(whole, tmp_path)


@DEADLINE
def test_trials_that_fail_or_diverge_are_a_line_and_the_rest_is_kept(run, tmp_path):
    options = {"search": "random", "trials": 5, "stopping": "none"}
    with pytest.raises(
        FoldFailedError,
        match=r"^2 of 5 trials failed, the first \(trial 1\): fold \d: ValueError: this model",
    ):
        run(toys.toy_task(tmp_path / "journal", trouble="mixed"), **options)
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert table["state"].tolist() == ["done", "failed", "failed", "done", "done"]
    assert (table["augment.strength"][1:3] > 1.4).all()
    assert table["auc"].tolist()[4] == 0, "a diverged trial is worth nothing, but no failure"
    assert (tmp_path / "out" / "best.yaml").exists()
    run(resume=True, **options)  # the fault is mended: the failed trials get another go
    assert set(pd.read_csv(tmp_path / "out" / "trials.csv")["state"]) == {"done"}


@DEADLINE
def test_a_base_that_diverges_is_not_compared_with(run, tmp_path):
    task = toys.toy_task(tmp_path / "journal", trouble="mixed")
    options = {"search": "random", "trials": 2, "stopping": "none", "confirm_seeds": 1}
    results = run(task, {"augment": {"strength": 1.2}}, {"augment.dropout-size": {"uniform": [0, 0.2]},
                  "augment.strength": {"uniform": [0, 1]}}, **options)  # fmt: skip
    assert results.table["auc"][0] == 0
    assert results.best.number == 1
    assert "the base config predicts no numbers" in results.verdict()
    assert not (tmp_path / "out" / "confirm").exists()
    assert (tmp_path / "out" / "sweep.html").exists()


@DEADLINE
def test_trials_read_no_file_that_the_driver_has_read(run, tmp_path, shards):
    """Where a trial runs, files may be elsewhere; and a sweep is resumed with the same ones."""
    ids = read_index(shards).train["image_id"]
    split = tmp_path / "folds.csv"
    pd.DataFrame({"image_id": ids, "fold": np.arange(len(ids)) % 3}).to_csv(split, index=False)
    options = {"trials": 2, "search": "random", "stopping": "none"}

    class Once(toys.ToyTask):
        """Removes the split file before the first trial reads anything."""

        def needs(self, config, fold):
            if (tmp_path / "out" / "sweep.json").exists():
                split.unlink(missing_ok=True)
            return super().needs(config, fold)

    content = split.read_text()
    run(Once(tmp_path / "journal", 0.0, ""), {"split": str(split)}, **options)
    assert not split.exists()
    folds = [pd.read_csv(tmp_path / "out" / "trials" / name / "folds.csv")["fold"] for name in ("000", "001")]
    assert (folds[0] == np.arange(len(ids)) % 3).all()
    assert (folds[0] == folds[1]).all()
    split.write_text(content.replace(",0\n", ",x\n").replace(",1\n", ",0\n").replace(",x\n", ",1\n"))
    with pytest.raises(RunFolderError, match="divide the rows otherwise than when it was begun"):
        run(base={"split": str(split)}, resume=True, **options)


def test_a_row_of_failures_ends_with_a_trial_that_was_stopped(tmp_path):
    ledger = Ledger(str(tmp_path), CadenceTask.score)
    table = desk.Desk(ledger, {}, 20, 3, lambda: None, console())
    result = {"score": 0.5, "folds_done": 1, "spent": 3, "complete": False}
    for number in range(2 * desk.MAX_FAILURES_IN_A_ROW):
        ledger.save(Trial(number, {}, "stopped" if number % 2 else "running"))
        told = result if number % 2 else {"failed": "no", "fatal": False}
        table.on_trial_result(0, [], SimpleNamespace(config={"trial": number}), told)
    assert table.ends_because is None


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
    ledger = Ledger(str(tmp_path / "out"), CadenceTask.score)
    ledger.load()
    assert 0 < sum(trial.state == "failed" for trial in ledger.trials.values()) <= most
    assert ledger.best is None


@DEADLINE
@pytest.mark.parametrize("killed", ["fold", "trial"])
def test_a_killed_process_goes_on_and_slots_may_leave_a_rest(run, tmp_path, killed):
    task = toys.toy_task(tmp_path / "journal", trouble=killed)
    run(task, base={"folds": 5}, trials=1, folds_at_once=2)
    assert set(pd.read_csv(tmp_path / "out" / "trials.csv")["state"]) == {"done"}
    reports = pd.read_csv(tmp_path / "out" / "trials" / "000" / "reports.csv")
    assert list(reports["fold_epochs"]) == [2, 4, 6, 8, 10, 12, 13, 14, 15]
    again = [name.split()[1:] for name, count in journal(tmp_path).items() if count > 1]
    if killed == "fold":  # the epoch after which it died may have died with it
        assert all(epoch == "0" for _, epoch in again)
    else:  # what the two folds that ran then had not handed over yet
        assert all(fold in ("0", "1") for fold, _ in again)


@DEADLINE
@pytest.mark.parametrize(
    ("base", "options", "error", "says"),
    [
        (
            {"cpus_per_fold": 8},
            {},
            PlacementError,
            "a fold asks for 8 CPU on one node, but no node has that.",
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
        ({}, {"out": "s3://bucket/sweep"}, ConfigError, "a sweep writes to a local folder"),
    ],
)
def test_what_cannot_work_is_refused_before_any_trial(run, tmp_path, base, options, error, says):
    if options.get("log_to") == ["mlflow"]:
        try:
            import mlflow  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("mlflow is installed here")
    with pytest.raises(error) as caught:
        run(base=base, **options)
    assert says in str(caught.value)
    assert not (tmp_path / "out" / "trials").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_other_loggers_are_tunes_own(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is an extra, not installed here")
    _, added = engine._loggers([name])
    assert name in type(added).__module__


@DEADLINE
def test_a_time_budget_ends_the_sweep_and_resume_takes_it_up(run, tmp_path):
    slow = toys.toy_task(tmp_path / "journal", epoch_s=0.1)
    run(slow, trials=40, stopping="none", time_budget_s=3, confirm_seeds=1)
    assert not (tmp_path / "out" / "confirm").exists(), "nothing is begun once the time is over"
    ledger = Ledger(str(tmp_path / "out"), CadenceTask.score)
    ledger.load()
    states = Counter(trial.state for trial in ledger.trials.values())
    assert states["unfinished"] >= 1
    assert sum(states.values()) < 40
    run(slow, trials=sum(states.values()), resume=True, confirm_seeds=0)
    assert set(pd.read_csv(tmp_path / "out" / "trials.csv")["state"]) == {"done"}
    assert all(count == 1 for name, count in journal(tmp_path).items() if name.endswith("done"))


def test_a_cluster_that_can_hold_no_trial_any_more_ends_the_sweep(tmp_path, monkeypatch):
    def gone():
        raise PlacementError("a trial asks for 2 x 1 CPU, but the cluster's nodes hold 0")

    room = [lambda: None, gone]
    said = io.StringIO()
    ledger = Ledger(str(tmp_path), CadenceTask.score)
    table = desk.Desk(ledger, {}, 3, 3, lambda: room.pop(0)(), Console(file=said, width=200))
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


SLOPES = {"slope": {"grid_search": [1.0, 0.5, 2.5]}}


@pytest.fixture
def lines(tmp_path, own_ray):
    """A sweep over slopes, of which the lowest error is the best."""

    def go(space=SLOPES, base=None, resume=False, **options):
        return sweep(
            toys.LineTask(),
            {"folds": 3, "device": "cpu", "cpus_per_fold": 1, **(base or {})},
            space,
            data=None if resume else "points",
            out=str(tmp_path / "out"),
            options={"search": "grid", "trials": 4, "trials_at_once": 1, "folds_at_once": 1, **options},
            resume=resume,
            console=console(),
        )

    return go


@DEADLINE
def test_a_score_to_be_minimised_is(lines, tmp_path):
    results = lines()
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert table["state"].tolist() == ["done", "done", "stopped", "stopped"]
    assert table["rmse"].idxmin() == results.best.number == 1
    done = table[:2]
    assert done["rmse"].between(done["rmse_low"], done["rmse_high"]).all()
    assert results.best.score == pytest.approx(done["rmse"].min())
    assert load_yaml(tmp_path / "out" / "best.yaml")["slope"] == results.config.slope == 1.0
    found = results.against_base
    assert found.high < 0
    assert found.is_better
    assert results.verdict().startswith("Trial 1 beats the base config beyond noise: -")
    reports = pd.read_csv(tmp_path / "out/trials/001/reports.csv", float_precision="round_trip")
    metrics = json.loads((tmp_path / "out" / "trials" / "001" / "metrics.json").read_text())
    assert reports["score"].iloc[-1] == metrics["score"]["oof"] == results.best.score
    assert metrics["score"]["direction"] == "minimize"
    assert (reports["score"][:2] > reports["score"].iloc[-1]).all()
    ranked = [line.split()[0] for line in results.lines()[1:3]]
    assert ranked == ["1", "0"]
    lines(resume=True)  # where the data are the sweep knows, though the task does not say
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "trials.csv"), table)


@DEADLINE
def test_predictions_that_are_no_numbers_are_the_worst_where_less_is_better(lines, tmp_path):
    results = lines(space={"slope": {"grid_search": [9.0]}}, trials=2, stopping="none")
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert table["state"].tolist() == ["done", "done"]
    assert table["rmse"][1] == float("inf")
    assert results.best.number == 0
    assert "No finished trial is better than the base config" in results.verdict()


@DEADLINE
@pytest.mark.usefixtures("own_ray")
def test_flags_about_nodes_and_time_reach_the_folds(tmp_path, capsys):
    (tmp_path / "space.yaml").write_text("slope: {grid_search: [1.0]}\n")
    common = [
        "sweep",
        "--out",
        str(tmp_path / "out"),
        "--space",
        str(tmp_path / "space.yaml"),
        "--folds",
        "2",
    ]
    common += ["--search", "grid", "--trials", "2", "--cpus-per-fold", "1", "--device", "cpu", "--hang"]

    assert main(toys.LineTask(), [*common, "--label", "zone=nowhere"], data="points") == 2
    said = capsys.readouterr().err
    assert "label zone=nowhere on one node, but no node has that" in said
    assert "Nearest that fits: no --label zone." in said
    assert not (tmp_path / "out" / "trials").exists()

    flags = ["--fold-timeout-s", "1", "--max-retries", "0"]
    assert main(toys.LineTask(), [*common, *flags], data="points") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 2 trials failed" in said
    assert "not done after 1 s (--fold-timeout-s)" in said
    manifest = json.loads((tmp_path / "out" / "trials" / "000" / "manifest.json").read_text())
    attempts = [attempt for entry in manifest["folds"].values() for attempt in entry["attempts"]]
    assert "time-limit" in {attempt.get("cause") for attempt in attempts}


LABELLED = """
import sys
sys.path[:0] = {paths!r}
import ray
from ray.cluster_utils import Cluster
import toys
from raylets import until_it_starts
from setibl_ray.core.cluster.connect import private_token
from setibl_ray.core.tuning.engine import sweep
from setibl_ray.core.where import Where
private_token()
cluster = until_it_starts(Cluster, initialize_head=True, head_node_args={{"num_cpus": 2, "include_dashboard": False}})
until_it_starts(cluster.add_node, num_cpus=1, labels={{"zone": "b"}})
try:
    sweep(toys.LineTask(), {{"folds": 2, "device": "cpu", "cpus_per_fold": 1}}, {{"slope": {{"grid_search": [1.0]}}}},
          data="points", out={out!r}, options={{"search": "grid", "trials": 2}},
          where=Where(address=cluster.address, labels={{"zone": "b"}}))
finally:
    cluster.shutdown()
"""


@DEADLINE
def test_trials_have_their_place_where_the_labels_are(tmp_path):
    here = Path(__file__).parent
    code = LABELLED.format(paths=[str(here), str(here.parent)], out=str(tmp_path / "out"))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
    assert pd.read_csv(tmp_path / "out" / "trials.csv")["state"].tolist() == ["done", "done"]
