"""`--resume`: what is taken over, what is trained again, what is refused; and that nothing is written twice or left."""

import shutil
import signal

import pytest
import yaml
from harness import RUN, leftovers, manifest, same_results, start
from standin import StandIn
from waiting import wait_for

from setibl_ray.report import write_report


class Killed(BaseException):
    """Ends a driver in this process as `kill -9` would: nobody catches it."""


def dies_after(fold, epoch):
    def around(work, steps):
        for number, step in enumerate(steps, work.step):
            yield step
            if (work.fold, number) == (fold, epoch):
                raise Killed

    return StandIn(around=around)


@pytest.fixture
def killed(local_cv, tmp_path):
    """A run folder whose driver died after fold 2's third epoch."""
    out = tmp_path / "run"
    with pytest.raises(Killed):
        local_cv(out, task=dies_after(2, 2))
    return out


def test_only_what_is_missing_is_trained(killed, local_cv, undisturbed):
    assert len(list((killed / "fold-2").glob("state-*"))) == 2
    assert local_cv(killed, "--resume") == 0
    same_results(undisturbed, killed)
    folds = manifest(killed)["folds"]
    assert [len(folds[str(fold)]["attempts"]) for fold in range(5)] == [1, 1, 2, 1, 1]
    assert [a["outcome"] for a in folds["2"]["attempts"]] == ["interrupted", "done"]
    assert folds["2"]["attempts"][1]["from_step"] == 3
    assert write_report(str(killed)).endswith("report.html")  # attempts that ended badly and all
    assert leftovers(killed) == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "both"])
def test_a_damaged_state_falls_back_to_the_one_before(killed, local_cv, undisturbed, damage, capsys):
    before, newest = sorted((killed / "fold-2").glob("state-*"))
    newest.write_bytes(newest.read_bytes()[:-7] if damage != "flipped" else newest.read_bytes()[:-1] + b"?")
    if damage == "both":
        before.write_bytes(b"")
    assert local_cv(killed, "--resume") == 0
    assert f"{newest.name} is damaged" in capsys.readouterr().out
    same_results(undisturbed, killed)
    assert manifest(killed)["folds"]["2"]["attempts"][1]["from_step"] == (0 if damage == "both" else 2)
    assert leftovers(killed) == []


def test_a_finished_fold_with_damaged_test_predictions_makes_them_again(
    killed, local_cv, undisturbed, capsys
):
    path = killed / "fold-1" / "test.csv"
    path.write_text(path.read_text().replace("0.", "0.1", 1))
    assert local_cv(killed, "--resume") == 0
    assert (
        "fold-1/test.csv is missing or changed since: its test set is predicted again"
        in capsys.readouterr().out
    )
    same_results(undisturbed, killed)
    assert len(manifest(killed)["folds"]["1"]["attempts"]) == 1
    assert len(manifest(killed)["folds"]["1"]["predictions"]) == 2


@pytest.mark.parametrize("file", ["weights.h5", "oof.csv"])
def test_a_finished_fold_with_a_damaged_file_is_trained_again(killed, local_cv, undisturbed, file, capsys):
    path = killed / "fold-1" / file
    if file == "weights.h5":
        path.unlink()
    else:
        path.write_text(path.read_text().replace("0.", "0.1", 1))
    assert local_cv(killed, "--resume") == 0
    assert f"fold 1  was trained, but fold-1/{file} missing or changed" in capsys.readouterr().out
    same_results(undisturbed, killed)
    assert [a["outcome"] for a in manifest(killed)["folds"]["1"]["attempts"]] == ["discarded", "done"]


def test_a_finished_run_is_only_gathered_again(killed, local_cv, undisturbed):
    assert local_cv(killed, "--resume") == 0
    (killed / "oof.csv").unlink()
    assert local_cv(killed, "--resume", run=()) == 0
    same_results(undisturbed, killed)
    assert len(manifest(killed)["resumed"]) == 2


def test_cores_and_device_are_the_runs_own(local_cv, tmp_path, shards, monkeypatch):
    run = [*RUN[: RUN.index("--cpus-per-fold")], "--data", str(shards)]  # nor --device
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(15)))
    with pytest.raises(Killed):
        local_cv(tmp_path / "run", task=dies_after(0, 0), run=run)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["cpus_per_fold"] == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert local_cv(tmp_path / "run", "--resume", run=run) == 0
    assert manifest(tmp_path / "run")["folds"]["0"]["attempts"][1]["cpus"] == 3


def test_what_is_refused(killed, local_cv, shards, tmp_path, capsys):
    def refused(*more, run=(*RUN, "--data", str(shards))):
        content = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
        assert local_cv(killed, *more, run=run) == 2
        assert content == {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
        return capsys.readouterr().err

    assert "holds a run already. Add --resume" in refused()
    said = refused("--resume", "--seed", 7, "--augment.strength", 0.5)
    assert "augment.strength was 0.3, now 0.5; seed was 42, now 7" in said

    other = tmp_path / "other"
    shutil.copytree(shards, other)
    shard = sorted(other.glob("test00-*"))[0]
    shutil.copy(shard, other / shard.name.replace("test00", "test02"))
    shard.unlink()
    (other / "test02-7.tfrec").rename(shard)  # the same bytes again: nothing has changed
    (other / "dataset.json").unlink()
    sorted(other.glob("test01-*"))[0].unlink()
    assert "was made from other data: fingerprint" in refused("--resume", run=("--data", str(other)))

    folds = (killed / "folds.csv").read_text()
    (killed / "folds.csv").write_text(folds.replace(",0\n", ",1\n", 1))
    assert "divides the rows otherwise" in refused("--resume")


def test_a_fold_that_always_fails(local_cv, tmp_path, undisturbed, capsys):
    broken = tmp_path / "broken"
    broken.write_text("3")
    out = tmp_path / "run"
    assert local_cv(out, task=StandIn(broken=str(broken))) == 1
    said = capsys.readouterr().err
    assert "1 of 5 folds failed (fold 3: ZeroDivisionError: broken on purpose in epoch 0)" in said
    assert f"Resume with: python -m setibl_ray.cv --resume --out {out} --runner local" in said
    assert "broken on purpose" in (out / "fold-3" / "error.txt").read_text()
    assert [manifest(out)["folds"][str(fold)]["state"] for fold in range(5)] == ["done"] * 3 + [
        "failed",
        "done",
    ]
    assert not (out / "oof.csv").exists()

    broken.unlink()
    assert local_cv(out, "--resume", task=StandIn(broken=str(broken))) == 0
    same_results(undisturbed, out)
    assert [len(manifest(out)["folds"][str(fold)]["attempts"]) for fold in range(5)] == [1, 1, 1, 2, 1]
    assert not (out / "fold-3" / "error.txt").exists()


def test_a_driver_that_is_killed_and_one_that_comes_too_early(
    shards, tmp_path, undisturbed, capsys, local_cv
):
    out = tmp_path / "run"
    first = start(*RUN, "--data", shards, "--out", out, "--runner", "local", epoch_s=0.4)
    wait_for(lambda: list(out.glob("fold-1/state-*")))
    assert local_cv(out, "--resume") == 2
    assert f"{out} is in use by process {first.pid} on " in capsys.readouterr().err
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=10)
    first.stdout.close()
    (out / "fold-1" / "oof.csv.tmp-0123abcd").write_text("half a fi")
    assert local_cv(out, "--resume", run=()) == 0
    same_results(undisturbed, out)
    assert leftovers(out) == []
