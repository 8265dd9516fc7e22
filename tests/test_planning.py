"""Plans: the simulated schedule against a naive one and by hand, rates read back from runs, what `cv --plan` prints."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from datasets import cadence_shards
from hypothesis import given

from setibl_ray import cv
from setibl_ray.backbones import BACKBONES
from setibl_ray.config import MODELS, parse
from setibl_ray.data import panels
from setibl_ray.errors import ConfigError, RunFolderError
from setibl_ray.planning import assume
from setibl_ray.planning.forecast import Host, Rows, Store, bills, forecast, places_of
from setibl_ray.planning.rates import Rates, Share, assumed, flop, measure
from setibl_ray.planning.simulate import PART_S, Work, n_parts, simulate

CORE = Share("cpu", "CPU", 1, 1)


def work(fold, **changes):
    plain = Work(fold, start_s=10, build_s=20, open_s=5, train_s=100, views_s=4, open_test_s=2, test_s=30)
    return replace(plain, **changes)


def table(spans):
    """What stands in a schedule: fold, part, slot, start, end."""
    return [(span.fold, span.part, span.slot, span.start_s, span.end_s) for span in spans]


def test_three_cpu_folds_on_two_slots_of_a_node():
    # Fold 1 waits for the panels that fold 0 builds; fold 2 finds process, model and panels; parts fill the slot left.
    spans = simulate([work(fold) for fold in range(3)], [0, 0], keep_processes=True)
    assert table(spans) == [
        (0, None, 0, 0, 139),
        (1, None, 1, 0, 139),
        (2, None, 0, 139, 139 + 104),
        (0, 0, 1, 139, 139 + 32),
        (1, 0, 1, 171, 171 + 30),
        (2, 0, 0, 243, 273),
    ]
    assert dict(spans[1].laps)["wait"] == 5
    assert dict(spans[2].laps) == {"wait": 0, "train": 100, "views": 4}


def test_accelerators_take_a_process_for_each_task_and_panels_once_a_node():
    spans = simulate([work(0), work(1), work(2)], [0, 1], keep_processes=False)
    assert table(spans) == [
        (0, None, 0, 0, 139),
        (1, None, 1, 0, 139),
        (2, None, 0, 139, 139 + 134),
        (0, 0, 1, 139, 139 + 62),
        (1, 0, 1, 201, 201 + 60),
        (2, 0, 0, 273, 273 + 62),
    ]


def test_long_test_predictions_are_shared_by_idle_slots():
    spans = simulate([work(0, test_s=4 * PART_S)], [0, 0, 1], keep_processes=True)
    parts = {(span.part, span.slot): span for span in spans if span.part is not None}
    assert {part for part, _ in parts} == {0, 1, 2}
    assert all(dict(span.laps)["test"] == 80 for span in parts.values())
    assert {slot for _, slot in parts} == {0, 1, 2}
    on_warm_slot = next(span for span in parts.values() if span.slot == 0)
    assert {lap for lap, _ in on_warm_slot.laps} <= {"open", "wait", "test"}


@given(st.floats(0, 1e5), st.integers(1, 50))
def test_parts_are_about_a_minute_and_at_most_as_many_as_slots(test_s, n_slots):
    n = n_parts(test_s, n_slots)
    assert n == 0 if test_s == 0 else 1 <= n <= n_slots
    if 1 < n < n_slots:
        assert PART_S / 1.5 <= test_s / n <= PART_S * 1.5


def naive(works, nodes, keep_processes):
    """The same rules, told as a story: look at every slot at every moment at which something ends."""
    slots = [{"node": node, "until": 0.0, "process": False, "model": None, "ends": None} for node in nodes]
    waiting = [(item, None) for item in works]
    tests, ready, told, now = [], {}, [], 0.0
    while True:
        for slot in sorted(slots, key=lambda slot: slot.get("order", 0)):
            if slot["ends"] is not None and slot["until"] <= now:
                item, part = slot["ends"]
                slot["ends"] = None
                if part is None:
                    of = n_parts(item.test_s, len(slots))
                    tests += [(item, (number, of)) for number in range(of)]
        while (waiting or tests) and any(slot["ends"] is None for slot in slots):
            item, part = waiting.pop(0) if waiting else tests.pop(0)
            busy = {slot["node"]: 0 for slot in slots}
            for slot in slots:
                busy[slot["node"]] += slot["ends"] is not None
            best = None
            for slot in slots:
                if slot["ends"] is None:
                    rank = (busy[slot["node"]], not (slot["process"] and slot["model"] == item.model))
                    if best is None or rank < best[0]:
                        best = rank, slot
            slot = best[1]
            at = now
            if not (slot["process"] and keep_processes):
                at += item.start_s
            panels_of = (slot["node"], part is None, item.panels)
            if panels_of not in ready:
                ready[panels_of] = at + (item.open_s if part is None else item.open_test_s)
            at = max(at, ready[panels_of])
            if not (slot["process"] and keep_processes and slot["model"] == item.model):
                at += item.build_s
            at += item.train_s + item.views_s if part is None else item.test_s / part[1]
            slot |= {
                "process": True,
                "model": item.model,
                "until": at,
                "ends": (item, part),
                "order": len(told),
            }
            told.append((item.fold, part and part[0], slots.index(slot), now, at))
        running = [slot["until"] for slot in slots if slot["ends"] is not None]
        if not running:
            return told
        now = min(running)


seconds = st.integers(0, 200).map(float)
works = st.lists(
    st.builds(
        Work, st.just(0), seconds, seconds, seconds, seconds.map(lambda s: s + 1), seconds, seconds, seconds,
        st.sampled_from("ab"), st.sampled_from("xy"),
    ),
    min_size=1, max_size=7,
).map(lambda some: [replace(one, fold=fold) for fold, one in enumerate(some)])  # fmt: skip
clusters = st.lists(st.integers(0, 2), min_size=1, max_size=5)


@given(works, clusters, st.booleans())
def test_the_schedule_is_the_naive_one(some, nodes, keep):
    told = [
        (*what, pytest.approx(start), pytest.approx(end)) for *what, start, end in naive(some, nodes, keep)
    ]
    assert table(simulate(some, nodes, keep)) == told


@given(works, clusters, st.booleans())
def test_what_holds_for_every_schedule(some, nodes, keep):
    spans = simulate(some, nodes, keep)
    makespan = max(span.end_s for span in spans)
    assert makespan >= max(span.length_s for span in spans)
    assert makespan >= sum(span.length_s for span in spans) / len(nodes) - 1e-9
    folds = {span.fold: span for span in spans if span.part is None}
    assert sorted(folds) == [one.fold for one in some]
    for one in some:
        parts = [span for span in spans if span.fold == one.fold and span.part is not None]
        assert sum(dict(span.laps)["test"] for span in parts) == pytest.approx(one.test_s)
        assert all(span.start_s >= folds[one.fold].end_s for span in parts)
    for slot in range(len(nodes)):
        ours = [span for span in spans if span.slot == slot]
        assert all(one.end_s <= other.start_s for one, other in zip(ours, ours[1:]))
    # Training goes first: nothing but folds starts before the last of them.
    last = max(span.start_s for span in folds.values())
    assert all(span.start_s >= last for span in spans if span.part is not None)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2), st.booleans())
def test_more_slots_are_never_slower_for_folds_that_are_alike(n_folds, n_slots, n_nodes, keep):
    def makespan(slots):
        spans = simulate([work(fold, test_s=0) for fold in range(n_folds)], slots, keep)
        return max(span.end_s for span in spans)

    slots = [slot % (n_nodes + 1) for slot in range(n_slots + 1)]
    assert makespan(slots) <= makespan(slots[:-1])


GROUND = [Host("a", 2, 16e9, {"memory": 8e9, "disk": 50e9})]
KNOWN = Rates(90.0, 400.0, 250.0, 7.0, 30.0, 0.5, {})


def config(**fields):
    plain = {"model": "efficientnet-nano", "weights": "none", "image_size": "91x85", "batch_size": 16}
    return parse({**plain, "layout": "all6", "device": "cpu", "cpus_per_fold": 1, **fields})


def run_as_planned(folder, values, rows, hosts=GROUND):
    """The folder of a run that went exactly as planned with `KNOWN` rates."""
    own = config(**values)
    plan = forecast(own, rows, hosts, CORE, dict.fromkeys(range(own.folds), KNOWN))
    (folder / "config.yaml").write_text(own.to_yaml())
    folds = [fold for fold, n in rows.valid.items() for _ in range(n)]
    pd.DataFrame({"image_id": range(len(folds)), "fold": folds}).to_csv(folder / "folds.csv", index=False)
    entries = {}
    for span in plan.spans:
        if span.part is not None:
            continue
        laps, epochs = dict(span.laps), own.for_fold(span.fold).epochs
        n_valid = rows.valid[span.fold]
        images = (rows.train - n_valid) // 16 * 16
        duration = [
            images / KNOWN.train + (laps.get("build", 0) - 5 if e == 0 and "build" in laps else 0)
            for e in range(epochs)
        ]
        history = pd.DataFrame({"epoch": range(epochs), "duration_s": duration})
        history["images_per_s"] = images / history["duration_s"]
        (folder / f"fold-{span.fold}").mkdir()
        history.to_csv(folder / f"fold-{span.fold}/history.csv", index=False)
        traced = sum(duration) - epochs * images / KNOWN.train
        entries[str(span.fold)] = {
            "state": "done",
            "timings": {
                "open_s": laps.get("open", laps.get("wait")),
                "build_s": 5.0 if "build" in laps else 0.0,
                "train_s": laps["train"] + traced,
                "predict_valid_s": laps["views"],
            },
            "attempts": [
                {
                    "attempt": 0, "node": "a", "pid": span.slot, "device": "cpu", "n_replicas": 1, "threads": 1,
                    "from_epoch": 0, "outcome": "done", "started_s": 1000 + span.start_s + laps.get("start", 0),
                    "ended_s": 1000 + span.end_s,
                }
            ],
        }  # fmt: skip
    content = {"started_s": 1000.0, "data": {"n_train": rows.train}, "folds": entries}
    (folder / "manifest.json").write_text(json.dumps(content))
    return own


@pytest.mark.parametrize("values", [{"folds": 5, "epochs": 2, "tta": 3}, {"folds": 4, "epochs": 3, "tta": 0}])
def test_a_run_gives_back_the_rates_that_it_went_by(tmp_path, values):
    own = run_as_planned(tmp_path, values, Rows.evenly(1000, 0, values["folds"]))
    measured = measure(str(tmp_path))
    for fold in range(own.folds):
        found = measured.of(own, fold, CORE)
        for name in ("train", "predict", "cadences", "start_s", "build_s", "epoch_s"):
            known = getattr(KNOWN, name)
            if values["tta"] == 0 and name in ("predict", "epoch_s"):
                continue  # without views, what an epoch predicts cannot be told from what else it does
            assert getattr(found, name) == pytest.approx(known, rel=0.01), name
            assert found.source[name] == f"measured in {tmp_path}"


def test_rates_of_another_backbone_go_by_flop_and_of_other_cores_by_number(tmp_path):
    own = run_as_planned(tmp_path, {"folds": 5, "epochs": 2}, Rows.evenly(1000, 0, 5))
    measured = measure(str(tmp_path))
    other = config(model="efficientnet-b0", image_size="182x170")
    found = measured.of(other, 0, replace(CORE, count=2, cpus=2))
    assert found.train == pytest.approx(KNOWN.train * 2 * flop(own, 0) / flop(other, 0), rel=0.01)
    assert found.source["train"].endswith(
        "scaled by cores from 1 to 2 and by FLOP from efficientnet-nano at 91x85"
    )
    assert found.source["start_s"] == f"measured in {tmp_path}"


def test_a_run_without_a_finished_fold_has_no_rates(tmp_path):
    run_as_planned(tmp_path, {"folds": 2, "epochs": 1}, Rows.evenly(100, 0, 2))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for entry in manifest["folds"].values():
        entry["state"] = "running"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFolderError, match="no fold has been trained from start to end"):
        measure(str(tmp_path))


def test_assumed_rates_are_the_peak_times_utilisation_over_flop():
    found = assumed(
        config(model="efficientnet-b6", image_size="273x256"),
        0,
        Share("tpu", "TPU-V4", 4, 240),
        assume.Assume(),
    )
    forward = 2 * 19e9 * 273 * 256 / 528**2
    assert found.predict == pytest.approx(4 * 275e12 * 0.05 / forward, rel=1e-3)
    assert found.train == pytest.approx(found.predict / 3)
    given_peak = assume.Assume(peak_tflops=550)
    twice = assumed(
        config(model="efficientnet-b6", image_size="273x256"), 0, Share("tpu", "TPU-V4", 4, 240), given_peak
    )
    assert twice.train == pytest.approx(2 * found.train)


def test_a_device_that_nothing_is_known_of_needs_its_numbers():
    with pytest.raises(ConfigError, match="nothing is known of H100.*--assume.utilisation, --assume.build-s"):
        assume.device_of(assume.Assume(peak_tflops=60), "H100")
    known = assume.device_of(assume.Assume(peak_tflops=60, utilisation=0.1, build_s=9), "H100")
    assert (known.tflops, known.utilisation, known.build_s) == (60, 0.1, 9)


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
    tpu = Share("tpu", "TPU-V4", 4, 240)
    own = config(folds=3, tta=0, epochs=1)
    rates = Rates(1.0, 1e9, 1e9, 0.0, 0.0, 0.0, {})
    plan = forecast(
        own,
        Rows.evenly(300, 0, 3),
        [Host("a", 1, 1e12, {}), Host("b", 1, 1e12, {})],
        tpu,
        dict.fromkeys(range(3), rates),
    )
    assert plan.makespan_s == pytest.approx(2 * 192)  # three full batches of 4 x 16, three folds on two nodes
    demand, spot = bills(plan, assume.Assume(setup_s=60, idle_s=40), 4)
    hours = (192 + 2 * 192 + 2 * 100) / 3600
    assert (demand.nodes, spot.nodes) == pytest.approx((13 * hours, 5 * hours))
    assert demand.head == pytest.approx(0.2 * (2 * 192 + 100) / 3600)
    (given_price,) = bills(plan, assume.Assume(setup_s=60, idle_s=40, price=2), 4)
    assert given_price.nodes == pytest.approx(2 * hours)


@pytest.mark.parametrize("policy", ["auto", "memory", "disk", "off"])
@pytest.mark.parametrize(("memory", "disk"), [(0, 0), (5, 5), (5, 25), (15, 25), (25, 5), (25, 25)])
def test_panels_go_where_open_store_puts_them(policy, memory, disk, tmp_path, monkeypatch):
    free = {"memory": memory * 1000, "disk": disk * 1000}
    stores = [Store("train", (50, 20), 10_000)]
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
    assert places_of(policy, stores, free) == [found]


def test_every_backbone_has_its_sizes():
    assert set(BACKBONES) == set(MODELS)
    assert all(min(backbone) > 0 for backbone in BACKBONES.values())
