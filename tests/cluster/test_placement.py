import re

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from setibl_ray.core.cluster.placement import Ask, Node, Request, request_for, wait_for_placement, with_memory
from setibl_ray.core.errors import PlacementError
from setibl_ray.core.task import Needs
from setibl_ray.core.where import Where
from setibl_ray.seti.config import parse


def ask(config, accelerator_type=None, labels=None):
    return Ask.of(config, Needs(), Where(accelerator_type=accelerator_type, labels=labels or {}))


def cpu(n, name="cpu", **labels):
    return Node(name, {"CPU": n}, labels)


def gpu(n, cpus=16, kind="A100"):
    return Node("gpu", {"CPU": cpus, "GPU": n, f"accelerator_type:{kind}": 1.0})


def tpu(n, cpus=240, kind="V4", **labels):
    return Node("tpu", {"CPU": cpus, "TPU": n, f"accelerator_type:TPU-{kind}": 1.0}, labels)


def slice_host(pod_type):
    return Node("slice", {"CPU": 240, "TPU": 4}, {"ray.io/tpu-pod-type": pod_type})


@pytest.mark.parametrize(
    ("nodes", "values", "expected"),
    [
        ([cpu(2)], {}, Request("cpu", 1)),
        ([cpu(64)], {}, Request("cpu", 12)),
        ([cpu(4), cpu(4), cpu(4)], {"folds": 2}, Request("cpu", 4)),
        ([cpu(8)], {"cpus_per_fold": 3}, Request("cpu", 3)),
        ([cpu(4), gpu(2), gpu(2)], {}, Request("gpu", 8, gpus=1)),
        ([gpu(4)], {"devices_per_fold": 2}, Request("gpu", 8, gpus=2)),
        ([cpu(4), gpu(4), tpu(4)], {}, Request("tpu", 240, tpu_chips=4)),
        ([tpu(8)], {}, Request("tpu", 240, tpu_chips=8)),
        ([tpu(4), tpu(4), tpu(8)], {}, Request("tpu", 120, tpu_chips=4)),
        ([cpu(4), tpu(4)], {"device": "cpu", "folds": 4}, Request("cpu", 60)),
        ([cpu(8), cpu(2)], {"folds": 2}, Request("cpu", 4)),
        ([cpu(2), cpu(2)], {"folds": 20}, Request("cpu", 1)),
        ([slice_host("v4-8")], {}, Request("tpu", 240, tpu_chips=4)),
    ],
)
def test_a_fold_takes(nodes, values, expected):
    assert request_for(ask(parse(values)), nodes) == expected


def test_chips_are_those_of_hosts_of_the_kind_that_is_asked_for():
    nodes = [tpu(4), tpu(4), tpu(4), tpu(8, kind="V5LITEPOD", zone="b")]
    assert request_for(ask(parse({}), accelerator_type="TPU-V5LITEPOD"), nodes).tpu_chips == 8
    assert request_for(ask(parse({}), labels={"zone": "b"}), nodes).tpu_chips == 8


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(2, 12))
def test_cpu_folds_leave_no_room_for_larger_ones_that_all_run_at_once(cores, folds):
    nodes = [cpu(n) for n in cores]
    share = request_for(ask(parse({"folds": folds})), nodes).cpus
    at_once = sum(n // share for n in cores)
    assert at_once >= folds or share == 1
    assert sum(n // (share + 1) for n in cores) < folds


def test_a_host_of_a_slice_of_several_is_left_alone():
    nodes = [cpu(2), slice_host("v4-16"), slice_host("v4-8")]
    request = request_for(ask(parse({})), nodes)
    assert [request.slots(node) for node in nodes] == [0, 0, 1]
    assert request.options()["label_selector"] == {"ray.io/tpu-pod-type": "!in(v4-16)"}
    assert request_for(ask(parse({})), nodes[:2]).device == "cpu"
    with pytest.raises(PlacementError) as caught:
        request_for(ask(parse({"device": "tpu"})), nodes[:2])
    assert "1 x 240 CPU + 4 TPU (one host of a v4-16 slice)" in str(caught.value)


def test_slots_count_every_resource_and_label():
    assert Request("gpu", 4, gpus=1).slots(gpu(8, cpus=16)) == 4
    assert Request("cpu", 1, labels={"zone": "a"}).slots(cpu(8, zone="b")) == 0
    assert Request("tpu", 1, tpu_chips=4, accelerator_type="TPU-V5P").slots(tpu(4)) == 0


@pytest.mark.parametrize(
    ("nodes", "values", "options", "says"),
    [
        ([cpu(4)], {"device": "gpu"}, {}, "Nearest that fits: --device cpu"),
        ([cpu(4)], {"device": "gpu", "devices_per_fold": 0.2}, {}, "Nearest that fits: --device cpu"),
        ([cpu(4), gpu(2)], {"device": "gpu", "devices_per_fold": 3}, {}, "fits: --devices-per-fold 2"),
        ([cpu(4), gpu(2)], {"device": "tpu"}, {}, "Nearest that fits: --device gpu."),
        ([cpu(4)], {"device": "tpu", "devices_per_fold": 8}, {}, "Nearest that fits: --device cpu."),
        (
            [tpu(4)] * 4,
            {"device": "tpu", "devices_per_fold": 8},
            {},
            "Nearest that fits: --devices-per-fold 4",
        ),
        ([tpu(4)], {"devices_per_fold": 3}, {}, "1, 2, 4 or 8 TPU chips of one host; got 3"),
        ([cpu(4)], {"cpus_per_fold": 9}, {}, "Nearest that fits: --cpus-per-fold 4"),
        ([gpu(2, cpus=4)], {"cpus_per_fold": 9}, {}, "Nearest that fits: --cpus-per-fold 4"),
        ([gpu(2)], {}, {"accelerator_type": "H100"}, "Nearest that fits: --accelerator-type A100"),
        ([cpu(2)], {}, {"accelerator_type": "H100"}, "Nearest that fits: no --accelerator-type"),
        ([cpu(2)], {}, {"labels": {"zone": "a"}}, "Nearest that fits: no --label zone"),
        (
            [cpu(2), cpu(4, zone="b")],
            {"cpus_per_fold": 4},
            {"labels": {"zone": "a"}},
            "The cluster has: 1 x 2 CPU; 1 x 4 CPU (zone=b). Nearest that fits: --label zone=b.",
        ),
        ([cpu(0), gpu(2)], {"device": "tpu"}, {}, "Nearest that fits: --device gpu."),
        (
            [cpu(64), gpu(2)],
            {"devices_per_fold": 4, "device": "gpu", "cpus_per_fold": 20},
            {},
            "Nearest that fits: --devices-per-fold 2, --cpus-per-fold 16.",
        ),
        ([], {}, {}, "The cluster has: no nodes. Nodes that an autoscaler has yet to start"),
        (
            [cpu(0)],
            {"device": "tpu"},
            {},
            "The cluster has: 1 x nothing. Nodes that an autoscaler has yet to start",
        ),
    ],
)
def test_an_impossible_request_is_refused_with_the_nearest_that_fits(nodes, values, options, says):
    with pytest.raises(PlacementError) as caught:
        request_for(ask(parse(values), **options), nodes)
    assert says in str(caught.value)


def test_the_refusal_says_what_was_asked_and_what_there_is():
    with pytest.raises(PlacementError) as caught:
        request_for(ask(parse({"device": "tpu", "devices_per_fold": 8})), [cpu(2), tpu(4), tpu(4)])
    assert "8 TPU chips, 1 CPU on one node" in str(caught.value)
    assert "1 x 2 CPU; 2 x 240 CPU + 4 TPU (TPU-V4)" in str(caught.value)


def test_memory_is_asked_for_only_where_it_decides_something():
    """An autoscaler starts no node for a request that names what the cluster file does not: memory, mostly."""
    host = Node("tpu", {"CPU": 240, "TPU": 4, "memory": 300e9})
    request = request_for(ask(parse({})), [host])
    assert with_memory(request, int(50e9), [host]).memory_bytes == 0
    shared = Node("gpu", {"CPU": 16, "GPU": 4, "memory": 100e9})
    request = request_for(ask(parse({})), [shared])
    assert with_memory(request, int(20e9), [shared]).memory_bytes == 0
    assert with_memory(request, int(30e9), [shared]).slots(shared) == 3


NODES = st.lists(
    st.builds(
        lambda cpus, kind, count, zone: Node(
            "node",
            {"CPU": cpus} | ({kind: count, f"accelerator_type:{kind}-{count}": 1} if kind else {}),
            {"zone": zone} if zone else {},
        ),
        st.integers(0, 9),
        st.sampled_from(["", "GPU", "TPU"]),
        st.sampled_from([1, 4, 8]),
        st.sampled_from(["", "a", "b"]),
    ),
    min_size=1,
    max_size=4,
)


@given(
    NODES,
    st.sampled_from(["auto", "tpu", "gpu", "cpu"]),
    st.sampled_from([None, 1, 2, 4, 8]),
    st.sampled_from([None, 1, 5, 12]),
    st.sampled_from([None, "GPU-4", "TPU-8", "H100"]),
    st.sampled_from([{}, {"zone": "a"}, {"zone": "c"}]),
)
def test_what_is_said_to_fit_fits(nodes, device, devices, cpus, accelerator_type, labels):
    values = {"device": device, "devices_per_fold": devices, "cpus_per_fold": cpus}
    try:
        request_for(ask(parse(values), accelerator_type, labels), nodes)
    except PlacementError as error:
        said = re.search(r"Nearest that fits: (.*)\.", str(error))
        if not said:
            assert not any(node.total("CPU") for node in nodes)
            return
        for change in said[1].split(", "):
            flag, _, value = change.removeprefix("no ").partition(" ")
            if flag == "--label":
                key, _, value = value.partition("=")
                labels = {k: v for k, v in labels.items() if k != key} | ({key: value} if value else {})
            elif flag == "--accelerator-type":
                accelerator_type = value or None
            else:
                values[flag[2:].replace("-", "_")] = value
        assert any(
            request_for(ask(parse(values), accelerator_type, labels), nodes).slots(node) for node in nodes
        )


class Growing:
    """A cluster that has one more node each time that it is looked at."""

    def __init__(self, *nodes):
        self.nodes, self.looks = nodes, 0

    def __call__(self):
        self.looks += 1
        return self.nodes[: self.looks - 1]


@pytest.mark.usefixtures("own_ray")
def test_waiting_ends_when_the_cluster_has_grown_or_time_is_up():
    said = []
    config = parse({"device": "tpu", "cpus_per_fold": 1})
    look = Growing(cpu(2), gpu(1), tpu(4))
    found = wait_for_placement(ask(config), 60, said.append, look=look, poll_s=0)
    assert found == Request("tpu", 1, tpu_chips=4)
    assert look.looks == 4
    assert [text.partition(":")[0] for text in said] == ["waiting up to 60 s for the cluster to grow"]
    with pytest.raises(PlacementError, match=r"\(waited 0.01 s for the cluster to grow\)"):
        wait_for_placement(ask(config), 0.01, said.append, look=Growing(cpu(2)), poll_s=0)
    with pytest.raises(PlacementError) as caught:
        wait_for_placement(ask(config), 0, said.append, look=Growing(), poll_s=0)
    assert "(waited" not in str(caught.value)
    assert len(said) == 2


@pytest.mark.usefixtures("own_ray")
def test_what_is_waited_for_stands_in_rays_queue_where_an_autoscaler_sees_it():
    from ray.autoscaler.v2.sdk import get_cluster_status

    seen = []

    def look():
        gcs = ray.get_runtime_context().gcs_address
        demands = get_cluster_status(gcs).resource_demands.ray_task_actor_demand
        seen.append([request.bundle for demand in demands for request in demand.bundles_by_count])
        return [tpu(4, zone="a")] if any(seen) else []

    config = parse({"device": "tpu"})
    wait_for_placement(ask(config, labels={"zone": "a"}), 30, lambda text: None, look=look, poll_s=0.1)
    assert seen[-1] == [{"CPU": 1.0, "TPU": 1.0}]
    while any(seen[-1]):  # and leaves it with the wait
        look()
