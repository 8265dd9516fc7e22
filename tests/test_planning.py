"""Plans: the simulated schedule against a naive one and by hand, rates read back from runs, what `cv --plan` prints."""

import inspect
import itertools
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from datasets import TINY
from hypothesis import given

from setibl_ray import cv
from setibl_ray.core.errors import ConfigError, RunFolderError
from setibl_ray.core.run.folder import FORMAT
from setibl_ray.seti.config import parse
from setibl_ray.seti.feeding import panels
from setibl_ray.seti.memory import fold_bytes
from setibl_ray.seti.models import MODELS, with_head
from setibl_ray.seti.planning import assume
from setibl_ray.seti.planning.forecast import Host, Rows, Store, bills, cost_of, forecast, places_of
from setibl_ray.seti.planning.rates import NAMES, Rates, Share, assumed, flop, measure
from setibl_ray.seti.planning.simulate import FoldCost, simulate
from setibl_ray.seti.sizes import sizes

CORE = Share("cpu", "CPU", 1, 1)
V4 = Share("tpu", "TPU-V4", 4, 240)


def cost(fold, **changes):
    plain = FoldCost(
        fold, start_s=10, build_s=20, open_s=5, train_s=100, views_s=4, build_test_s=8, open_test_s=2, spans_s=(30,)
    )  # fmt: skip
    return replace(plain, **changes)


def table(jobs):
    return [(job.fold, job.span, job.slot, job.start_s, job.end_s) for job in jobs]


def test_three_cpu_folds_on_two_slots_of_a_node():
    # Fold 1 waits for the panels that fold 0 decodes; fold 2 finds process, model and panels; spans take the slot left.
    jobs = simulate([cost(fold) for fold in range(3)], [0, 0], keep_processes=True)
    assert table(jobs) == [
        (0, None, 0, 0, 139),
        (1, None, 1, 0, 139),
        (2, None, 0, 139, 243),
        (0, 0, 1, 139, 171),
        (1, 0, 1, 171, 201),
        (2, 0, 0, 243, 273),
    ]
    assert jobs[1].laps == (("start", 10), ("wait", 5), ("build", 20), ("train", 100), ("views", 4))
    assert jobs[2].laps == (("wait", 0), ("train", 100), ("views", 4))


def test_accelerators_take_a_process_for_each_job_and_panels_once_a_node():
    jobs = simulate([cost(fold) for fold in range(3)], [0, 1], keep_processes=False)
    assert table(jobs) == [
        (0, None, 0, 0, 139),
        (1, None, 1, 0, 139),
        (2, None, 0, 139, 273),
        (0, 0, 1, 139, 189),
        (1, 0, 1, 189, 237),
        (2, 0, 0, 273, 323),
    ]


def test_a_plain_loop_predicts_with_each_fold_once_it_is_trained():
    jobs = simulate([cost(0), cost(1)], [0], keep_processes=True, training_first=False)
    assert [(job.fold, job.span) for job in jobs] == [(0, None), (0, 0), (1, None), (1, 0)]


def test_a_trained_fold_has_only_its_test_set_left():
    jobs = simulate([cost(0, trained=True), cost(1)], [0], keep_processes=True)
    assert [(job.fold, job.span) for job in jobs] == [(1, None), (0, 0), (1, 0)]


def naive(costs, nodes, keep_processes):
    """The same rules, told as a story: look at every slot at every moment at which something ends."""
    slots = [{"node": node, "until": 0.0, "built": None, "doing": None, "order": 0} for node in nodes]
    folds, spans, ready, told, now = list(costs), [], {}, [], 0.0
    while True:
        for slot in sorted(slots, key=lambda slot: slot["order"]):
            if slot["doing"] and slot["until"] <= now:
                fold, span = slot["doing"]
                slot["doing"] = None
                if span is None:
                    spans += [(fold, number) for number in range(len(fold.spans_s))]
        while (folds or spans) and any(not slot["doing"] for slot in slots):
            fold, span = (folds.pop(0), None) if folds else spans.pop(0)
            busy = [slot["node"] for slot in slots if slot["doing"]]
            idle = [slot for slot in slots if not slot["doing"]]
            least = min(busy.count(slot["node"]) for slot in idle)
            idle = [slot for slot in idle if busy.count(slot["node"]) == least]
            best = next((slot for slot in idle if slot["built"] == [fold.model]), idle[0])
            at = now
            if best["built"] is None or not keep_processes:
                at += fold.start_s
            panels_of = best["node"], span is None, fold.panels
            if panels_of not in ready:
                ready[panels_of] = at + (fold.open_s if span is None else fold.open_test_s)
            at = max(at, ready[panels_of])
            if best["built"] != [fold.model] or not keep_processes:
                at += fold.build_s if span is None else fold.build_test_s
            at += fold.train_s + fold.views_s if span is None else fold.spans_s[span]
            best |= {"built": [fold.model], "until": at, "doing": (fold, span), "order": len(told)}
            told.append((fold.fold, span, slots.index(best), now, at))
        running = [slot["until"] for slot in slots if slot["doing"]]
        if not running:
            return told
        now = min(running)


seconds = st.integers(0, 200).map(float)
costs = st.lists(
    st.builds(
        FoldCost, st.just(0), seconds, seconds, seconds, st.integers(1, 200).map(float), seconds, seconds, seconds,
        st.lists(seconds, max_size=3).map(tuple), st.sampled_from("ab"), st.sampled_from("xy"),
    ),
    min_size=1, max_size=7,
).map(lambda some: [replace(one, fold=fold) for fold, one in enumerate(some)])  # fmt: skip
clusters = st.lists(st.integers(0, 2), min_size=1, max_size=5)


@given(costs, clusters, st.booleans())
def test_the_schedule_is_the_naive_one(some, nodes, keep):
    assert table(simulate(some, nodes, keep_processes=keep)) == naive(some, nodes, keep)


@given(costs, clusters, st.booleans())
def test_what_holds_for_every_schedule(some, nodes, keep):
    jobs = simulate(some, nodes, keep_processes=keep)
    makespan = max(job.end_s for job in jobs)
    assert makespan >= max(job.length_s for job in jobs)
    assert makespan * len(nodes) >= sum(job.length_s for job in jobs)
    training = {job.fold: job for job in jobs if job.span is None}
    assert sorted(training) == [one.fold for one in some]
    for one in some:
        spans = [job for job in jobs if job.fold == one.fold and job.span is not None]
        assert [dict(job.laps)["test"] for job in spans] == list(one.spans_s)
        assert all(job.start_s >= training[one.fold].end_s for job in spans)
    for slot in range(len(nodes)):
        ours = [job for job in jobs if job.slot == slot]
        assert all(one.end_s <= other.start_s for one, other in itertools.pairwise(ours))
    last = max(job.start_s for job in training.values())
    assert all(job.start_s >= last for job in jobs if job.span is not None)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2), st.booleans())
def test_more_slots_are_never_slower_for_folds_that_are_alike(n_folds, n_slots, n_nodes, keep):
    def makespan(slots):
        jobs = simulate([cost(fold, spans_s=()) for fold in range(n_folds)], slots, keep_processes=keep)
        return max(job.end_s for job in jobs)

    slots = [slot % (n_nodes + 1) for slot in range(n_slots + 1)]
    assert makespan(slots) <= makespan(slots[:-1])


HOST = Host("a", 2, 16e9, {"memory": 8e9, "disk": 50e9})
KNOWN = Rates(train=90, predict=400, cadences=250, epoch_s=0.5, start_s=7, build_s=30, build_test_s=4)


def config(**fields):
    plain = {"model": "efficientnet-nano", "weights": "none", "image_size": "91x85", "batch_size": 16}
    return parse({**plain, "layout": "all6", "device": "cpu", "cpus_per_fold": 1, **fields})


def test_what_a_fold_costs():
    own = config(folds=5, epochs=3, tta=4)
    found = cost_of(own, rows_of(1000, 700, 5), CORE, 0, KNOWN, n_slots=2)
    assert found.train_s == pytest.approx(3 * (800 / 90 + 200 / 400 + 0.5))
    assert found.views_s == pytest.approx(4 * 200 / 400)
    assert (found.open_s, found.open_test_s) == (4, 2.8)
    # 5 views of 700 cadences at three times the speed of training take 13 s: one span.
    assert found.spans_s == pytest.approx([5 * 700 / 400])
    # Ten times as many take 130 s: two spans, cut between batches of 32.
    found = cost_of(own, rows_of(1000, 7000, 5), CORE, 0, KNOWN, n_slots=2)
    assert found.spans_s == pytest.approx([5 * 3520 / 400, 5 * 3480 / 400])
    assert cost_of(own, rows_of(1000, 0, 5), CORE, 0, KNOWN, n_slots=2).spans_s == ()
    assert cost_of(own, rows_of(1000, 7, 5), CORE, 0, KNOWN, n_slots=2, epochs_done=3).trained


def rows_of(n_train, n_test, folds):
    return Rows.of(np.arange(n_train) % folds, n_test)


def run_as_planned(folder, values, rows, share=CORE):
    """The folder of a run that went exactly as planned with `KNOWN` rates, five seconds of each building in tracing."""
    own = config(**values)
    plan = forecast(own, rows, [HOST], share, dict.fromkeys(range(own.folds), KNOWN))
    (folder / "config.yaml").write_text(own.to_yaml())
    folds = [fold for fold, n in rows.valid.items() for _ in range(n)]
    pd.DataFrame({"image_id": range(len(folds)), "fold": folds}).to_csv(folder / "folds.csv", index=False)
    entries = {str(fold): {"state": "done", "attempts": [], "predictions": []} for fold in range(own.folds)}
    for job in plan.assignments:
        laps, entry = dict(job.laps), entries[str(job.fold)]
        traced = 5.0 if "build" in laps else 0.0
        attempt = {
            "node": "a", "device": share.kind, "n_replicas": 1, "cpus": 1, "outcome": "done", "attempt": 0,
            "pid": job.slot if share.kind == "cpu" else job.fold,  # whose process goes on with its test set
            "started_s": 1000 + job.start_s + laps.get("start", 0), "ended_s": 1000 + job.end_s,
        }  # fmt: skip
        timings = {
            "open_s": laps.get("open", laps.get("wait")),
            "build_s": laps.get("build", traced) - traced,
        }
        if job.span is not None:
            timings["predict_s"] = laps["test"] + traced
            entry["predictions"].append(attempt | {"rows": [0, rows.test], "timings": timings})
            continue
        images = (rows.train - rows.valid[job.fold]) // 16 * 16
        history = pd.DataFrame({"duration_s": [images / KNOWN.train] * own.for_fold(job.fold).epochs})
        history.loc[0, "duration_s"] += traced
        (folder / f"fold-{job.fold}").mkdir()
        history["images_per_s"] = images / history["duration_s"]
        history.to_csv(folder / f"fold-{job.fold}/history.csv", index=False)
        timings |= {"train_s": laps["train"] + traced, "predict_valid_s": laps["views"]}
        entry["attempts"].append(attempt | {"from_step": 0})
        entry["timings"] = timings
    data = {"n_train": rows.train, "root": "none", "options": {"on_bad_record": "fail"}}
    content = {
        "format": FORMAT,
        "command": "cv",
        "resumed": [],
        "started_s": 1000.0,
        "data": data,
        "folds": entries,
    }
    (folder / "manifest.json").write_text(json.dumps(content))
    return own


@pytest.mark.parametrize("share", [CORE, Share("gpu", "GPU", 1, 1)])
@pytest.mark.parametrize("values", [{"folds": 5, "epochs": 2, "tta": 3}, {"folds": 4, "epochs": 3, "tta": 0}])
def test_a_run_gives_back_the_rates_that_it_went_by(values, share, tmp_path):
    own = run_as_planned(tmp_path, values, rows_of(1000, 96, values["folds"]), share)
    found = measure(str(tmp_path)).of(own, 0, share)
    hidden = {"build_test_s"}  # no process here begins with predicting
    if share.kind != "cpu":
        # Without a fold in a warm process, what comes between epochs cannot be told from building.
        hidden |= {"epoch_s", "build_s"}
    for name in set(NAMES) - hidden:
        assert getattr(found, name) == pytest.approx(getattr(KNOWN, name), rel=0.01), name
        assert found.source[name] == f"measured in {tmp_path}"


def test_rates_of_another_backbone_go_by_flop_and_of_other_cores_by_their_number(tmp_path):
    own = run_as_planned(tmp_path, {"folds": 5, "epochs": 2}, rows_of(1000, 0, 5))
    other = config(model="efficientnet-b0", image_size="182x170", batch_size=8)
    found = measure(str(tmp_path)).of(other, 0, replace(CORE, count=2, cpus=2))
    assert found.train == pytest.approx(KNOWN.train * 2 * flop(own, 0) / flop(other, 0), rel=0.01)
    measured = f"measured in {tmp_path} at batch size 16"
    assert found.source["start_s"] == measured
    by = "scaled by cores from 1 to 2 and by FLOP from efficientnet-nano at 91x85"
    assert found.source["train"] == f"{measured}, {by}"


def test_a_run_without_a_trained_fold_has_no_rates(tmp_path):
    run_as_planned(tmp_path, {"folds": 2, "epochs": 1}, rows_of(100, 0, 2))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for entry in manifest["folds"].values():
        entry["attempts"][0]["outcome"] = "running"
        del entry["attempts"][0]["ended_s"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="no fold was trained there from its first epoch to its last"):
        measure(str(tmp_path))


def test_assumed_rates_are_the_peak_times_utilisation_over_flop():
    b6 = config(model="efficientnet-b6", image_size="273x256")
    found = assumed(b6, 0, V4, assume.Assume())
    assert found.predict == pytest.approx(4 * 275e12 * 0.05 / (2 * 19e9 * 273 * 256 / 528**2), rel=0.01)
    assert found.train == pytest.approx(found.predict / 3)
    assert assumed(b6, 0, V4, assume.Assume(peak_tflops=550)).train == pytest.approx(2 * found.train)
    stacked = config(model="efficientnet-b6", image_size="273x256", layout="on_stack")
    assert assumed(stacked, 0, V4, assume.Assume()).train == pytest.approx(found.train / 3)


def test_a_device_that_nothing_is_known_of_needs_its_numbers():
    lacking = r"nothing is known about H100.*--assume\.utilisation, --assume\.build-s"
    with pytest.raises(ConfigError, match=lacking):
        assume.device_of(assume.Assume(peak_tflops=60), "H100")
    known = assume.device_of(assume.Assume(peak_tflops=60, utilisation=0.1, build_s=9), "H100")
    assert (known.peak_tflops, known.utilisation, known.build_s) == (60, 0.1, 9)


def test_help_states_what_is_assumed_of_each_device():
    fields = {name: name for name in ("peak_tflops", "utilisation", "build_s", "price")}
    fields |= {"cpus_per_node": "cpus", "memory_gb_per_node": "memory_gb"}
    for flag, field in fields.items():
        said = dict(re.findall(r"(TPU-V4|L4|CPU) ([\d.]+)", assume.Assume.model_fields[flag].description))
        for name, device in assume.DEVICES.items():
            value = getattr(device, field)
            assert float(said[name]) == value if value is not None else name not in said


@pytest.mark.parametrize(
    ("text", "nodes", "kind"),
    [
        ("5 x TPU-V4:4", (5, "TPU-V4", 4), "tpu"),
        ("2xL4", (2, "L4", 1), "gpu"),
        ("3 x cpu:32", (3, "CPU", 32), "cpu"),
    ],
)
def test_nodes_are_a_number_a_device_and_a_count(text, nodes, kind):
    parsed = assume.parse_nodes(text)
    assert (tuple(parsed), parsed.kind) == (nodes, kind)


def test_the_bill_is_nodes_from_set_up_to_idling_and_a_head():
    own = config(folds=3, tta=0, epochs=1)
    rates = replace(KNOWN, train=1, predict=1e12, cadences=1e12, epoch_s=0, start_s=0, build_s=0)
    hosts = [replace(HOST, n_slots=1), replace(HOST, name="b", n_slots=1)]
    plan = forecast(own, rows_of(300, 0, 3), hosts, V4, dict.fromkeys(range(3), rates))
    # Three full batches of 4 x 16 a fold; node a has two folds.
    assert plan.makespan_s == pytest.approx(2 * 192)
    on_demand, preemptible = bills(plan, assume.Assume(setup_s=60, idle_s=40), 4)
    hours = (2 * 192 + 192 + 2 * 100) / 3600
    assert (on_demand.nodes, preemptible.nodes) == pytest.approx((13 * hours, 5 * hours))
    assert on_demand.head == pytest.approx(0.2 * (2 * 192 + 100) / 3600)
    (own_price,) = bills(plan, assume.Assume(setup_s=60, idle_s=40, price=2), 4)
    assert own_price.nodes == pytest.approx(2 * hours)


@pytest.mark.parametrize("policy", ["auto", "memory", "disk", "off"])
@pytest.mark.parametrize(("memory", "disk"), [(0, 0), (5, 5), (5, 25), (15, 25), (25, 5), (25, 25)])
def test_panels_go_where_open_store_puts_them(policy, memory, disk, tmp_path, monkeypatch):
    free = {"memory": memory * 1000, "disk": disk * 1000}
    monkeypatch.setattr(panels, "SHARED_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(panels, "_available", lambda home: free["memory" if "shm" in home.parts else "disk"])
    index = SimpleNamespace(train=pd.DataFrame(index=range(10)), fingerprint="f", panel_shape=(50, 20))
    try:
        opened = panels.open_store(
            index, "train", (0,), (50, 20), False, policy=policy, folder=tmp_path / "disk", threads=1,
            read=lambda index, split, rows, positions: np.zeros((len(rows), 50, 20, 1), np.uint8),
        )  # fmt: skip
    except ConfigError:
        found = "refused"
    else:
        found = "nowhere" if opened.path is None else "memory" if "shm" in opened.path.parts else "disk"
    assert places_of(policy, [Store("train", (50, 20), 10_000)], free) == [found]


def test_panels_of_a_node_take_each_others_room():
    stores = [Store("train", (91, 85), 10), Store("test", (91, 85), 10)]
    assert places_of("auto", stores, {"memory": 25, "disk": 50}) == ["memory", "disk"]
    assert places_of("auto", stores, {"memory": 25}) == ["memory", "disk?"]


def test_every_backbone_has_its_sizes():
    assert all(min(sizes) > 0 for _, *sizes in map(MODELS.get, set(MODELS) - {"none"}))
    assert min(with_head("none", "on-off")[1:]) > 0


PLAN = [*TINY, "--folds", "3", "--epochs", "2", "--tta", "2", "--device", "cpu", "--plan"]


def files(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.usefixtures("own_ray")
def test_a_plan_runs_nothing_and_writes_nothing(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = files(shards)
    assert cv.entry([*PLAN, "--data", str(shards), "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "3 folds, 2 epochs, 2 views; efficientnet-nano at 40x36, all6" in out
    assert "60 training and 14 test cadences" in out
    assert "2 slots of 1 core" in out
    assert "makespan" in out
    assert files(tmp_path) == []
    assert files(shards) == before


def test_what_is_left_of_a_run_is_planned_with_its_own_rates(shards, tmp_path, capsys):
    run_as_planned(tmp_path, {"folds": 4, "epochs": 3}, rows_of(60, 14, 4))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["folds"]["1"] |= {"state": "trained", "predictions": []}
    manifest["folds"]["2"] |= {"state": "waiting", "attempts": [], "predictions": []}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "fold-2" / f"state-001-{'0' * 32}.bin").write_bytes(b"")
    before = files(tmp_path)
    arguments = ["--resume", "--out", str(tmp_path), "--data", str(shards), "--runner", "local", "--plan"]
    assert cv.entry(arguments) == 0
    out = capsys.readouterr().out
    assert "2 folds, 3 epochs" in out
    assert "before" in next(line for line in out.splitlines() if line.strip().startswith("1 "))
    assert "Only what is left of the run is planned." in out
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--image-size", "8x8"], "image-size: expected HEIGHTxWIDTH"),
        (["--folds", "7"], "7 folds need at least 7 training shards"),
        (["--rates", "nowhere"], "nowhere/manifest.json is missing"),
        (["--assume.rows", "100+10"], "leave out --data"),
        (["--assume.nodes", "5 v4-8"], "assume.nodes: expected NODES x DEVICE:COUNT"),
        (["--assume.nodes", "2 x H100:8", "--device", "gpu"], "nothing is known of a node with H100"),
        (["--assume.nodes", "2 x L4:1", "--device", "tpu"], "Nearest that fits: --device gpu"),
    ],
)
def test_what_a_plan_refuses(arguments, says, shards, capsys):
    assert cv.entry([*PLAN, "--data", str(shards), *arguments]) == 2
    assert says in capsys.readouterr().err


DOCS = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()


def between(name):
    """What stands in docs/cluster.md between two marks, without its fences."""
    text = re.search(rf"<!-- {name} -->(.*?)<!-- end of", DOCS, re.DOTALL).group(1)
    return text.strip().strip("`").strip("\n")


def printed(arguments, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert cv.entry(arguments) == 0
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.rstrip("\n").splitlines())


def test_the_documented_plan_is_what_its_command_prints(capsys, monkeypatch):
    command = re.search(r"^    python -m setibl_ray\.cv (.*--assume\.rows.*)$", DOCS, re.MULTILINE).group(1)
    assert between("plan") == printed(shlex.split(command), capsys, monkeypatch)
    rows = re.findall(r"^\| (\d x [^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", DOCS, re.MULTILINE)
    assert len(rows) == 4
    for nodes, *values in rows:
        out = printed(
            ["--plan", "--assume.rows", "60000+39995", "--assume.nodes", nodes], capsys, monkeypatch
        )
        labels = "makespan", "bill, on demand", "bill, preemptible"
        found = [
            re.search(rf"^{label} +(\$[\d.]+|[\d.]+ \S+)", out, re.MULTILINE).group(1) for label in labels
        ]
        assert [nodes, *values] == [nodes, *found]


def test_the_documented_formulas_are_those_of_the_code():
    for docstring in (assume.__doc__, cost_of.__doc__, bills.__doc__):
        lines = inspect.cleandoc(docstring).splitlines()
        first = next(i for i, line in enumerate(lines) if " = " in line)
        formulas = itertools.takewhile(lambda line: line.strip(), lines[first:])
        assert "\n".join(formulas) in between("formulas")


def test_documented_memory_is_the_estimate_and_no_fold_took_more():
    text = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    rows = re.findall(
        r"^\| (\S+) \| (\d+x\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE
    )
    assert len(rows) >= 9
    for model, image_size, batch_size, estimated, peak, ratio in rows:
        fields = {"model": model, "image_size": image_size, "batch_size": int(batch_size), "layout": "all6"}
        config = parse({"folds": 2, "weights": "none", **fields})
        assert f"{fold_bytes(config, 0, 'cpu', 2, sizes(config, 0, {})) / 1e9:.1f}" == estimated, model
        assert float(peak) <= float(estimated), model
        assert float(ratio) <= 1, model
