import pytest

from setibl_ray.cluster.placement import Node, Request, request_for, wait_for_placement
from setibl_ray.config import parse
from setibl_ray.errors import PlacementError


def cpu(n, name="cpu", **labels):
    return Node(name, {"CPU": n}, labels)


def gpu(n, cpus=16, kind="A100"):
    return Node("gpu", {"CPU": cpus, "GPU": n, f"accelerator_type:{kind}": 1.0})


def tpu(n, cpus=240):
    return Node("tpu", {"CPU": cpus, "TPU": n, "accelerator_type:TPU-V4": 1.0})


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
        ([cpu(4), tpu(4)], {"device": "cpu", "folds": 4}, Request("cpu", 61)),
    ],
)
def test_a_fold_takes(nodes, values, expected):
    assert request_for(parse(values), nodes) == expected


def test_slots_count_every_resource_and_label():
    assert Request("gpu", 4, gpus=1).slots(gpu(8, cpus=16)) == 4
    assert Request("cpu", 1, labels={"zone": "a"}).slots(cpu(8, zone="b")) == 0
    assert Request("tpu", 1, tpu_chips=4, accelerator_type="TPU-V5P").slots(tpu(4)) == 0


@pytest.mark.parametrize(
    ("nodes", "values", "options", "says"),
    [
        ([cpu(4)], {"device": "gpu"}, {}, "Nearest that fits: --device cpu"),
        ([cpu(4), gpu(2)], {"device": "tpu"}, {}, "Nearest that fits: --device gpu"),
        (
            [tpu(4)] * 4,
            {"device": "tpu", "devices_per_fold": 8},
            {},
            "Nearest that fits: --devices-per-fold 4",
        ),
        ([tpu(4)], {"devices_per_fold": 3}, {}, "1, 2, 4 or 8 TPU chips of one host; got 3"),
        ([cpu(4)], {"cpus_per_fold": 9}, {}, "Nearest that fits: --cpus-per-fold 4"),
        ([gpu(2, cpus=4)], {"cpus_per_fold": 9}, {}, "Nearest that fits: --cpus-per-fold 4"),
        ([gpu(2)], {}, {"accelerator_type": "H100"}, "drop --accelerator-type"),
        ([cpu(2)], {}, {"labels": {"zone": "a"}}, "drop --label"),
        ([], {}, {}, "The cluster has: no nodes"),
    ],
)
def test_an_impossible_request_is_refused_with_the_nearest_that_fits(nodes, values, options, says):
    with pytest.raises(PlacementError) as caught:
        request_for(parse(values), nodes, **options)
    assert says in str(caught.value)


def test_the_refusal_says_what_was_asked_and_what_there_is():
    with pytest.raises(PlacementError) as caught:
        request_for(parse({"device": "tpu", "devices_per_fold": 8}), [cpu(2), tpu(4), tpu(4)])
    assert "8 TPU chips, 1 CPU on one node" in str(caught.value)
    assert "1 x 2 CPU; 2 x 240 CPU + 4 TPU (TPU-V4)" in str(caught.value)


def test_waiting_ends_when_the_cluster_has_grown_or_time_is_up():
    answers = [PlacementError("no"), PlacementError("no"), Request("cpu", 1)]

    def ask():
        answer = answers.pop(0)
        if isinstance(answer, PlacementError):
            raise answer
        return answer

    said = []
    assert wait_for_placement(ask, 60, said.append, poll_s=0) == Request("cpu", 1)
    assert len(said) == 1
    answers[:] = [PlacementError("no")] * 2
    with pytest.raises(PlacementError, match="no"):
        wait_for_placement(ask, 0, said.append, poll_s=0)
