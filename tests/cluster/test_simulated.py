"""Where folds go on a cluster of declared TPUs, GPUs and CPUs: nine raylets on one machine, no hardware."""

import time
from collections import Counter

import png_shards
import pytest
import ray
from ray.cluster_utils import Cluster
from raylets import until_it_starts
from tasks import Made, spec_of, zeros
from waiting import wait_for

from setibl_ray import cv
from setibl_ray.core.cluster import connect
from setibl_ray.core.cluster.placement import Ask, cluster_nodes, request_for
from setibl_ray.core.cluster.runner import RayRunner
from setibl_ray.core.jobs import Job, Started
from setibl_ray.core.task import Needs
from setibl_ray.core.where import Where
from setibl_ray.seti.config import parse

TPU_HOST = {"num_cpus": 8, "resources": {"TPU": 4, "accelerator_type:TPU-V4": 1}}
GPU_HOST = {"num_cpus": 4, "num_gpus": 2}
CPU_HOST = {"num_cpus": 4}
IN_ZONE_B = {"num_cpus": 4, "labels": {"zone": "b"}}


@pytest.fixture(scope="module")
def nine_nodes(own_ray):
    """Eight nodes beside the one of the tests' own Ray: 4 x 4 TPU chips, 2 x 2 GPUs, 3 x CPUs only."""
    cluster = Cluster()
    cluster.head_node = ray._private.worker._global_node
    cluster.redis_address = cluster.head_node.redis_address
    with connect._loopback_only():
        for options in [TPU_HOST] * 4 + [GPU_HOST] * 2 + [CPU_HOST, IN_ZONE_B]:
            until_it_starts(cluster.add_node, **options, wait=False)
    wait_for(lambda: len(cluster_nodes()) == 9, 240)
    yield
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)
    wait_for(lambda: len(cluster_nodes()) == 1, 240)


def idle():
    total, free = ray.cluster_resources(), ray.available_resources()
    return all(free.get(name, 0) == total[name] for name in ("CPU", "GPU", "TPU"))


def places(meeting, values, at_once, **options):
    """Where each fold of a run ran: fold -> place.

    Args:
      meeting: an empty folder; the first `at_once` folds go on only when they have all met there.
      values, options: what `request_for` takes.
    """
    config = parse({"weights": "none", **values})

    def fit(work):
        (meeting / str(work.fold)).touch()
        deadline = time.monotonic() + 120
        while len(list(meeting.iterdir())) < at_once and time.monotonic() < deadline:
            time.sleep(0.02)
        yield from zeros(work)

    # What the test before held: a raylet hears late that another's GPUs are free, and passes it by.
    wait_for(idle, 240)
    request = request_for(Ask.of(config, Needs(), Where(**options)), cluster_nodes())
    share = {"devices_per_fold": config.devices_per_fold}
    runner = RayRunner(spec_of(Made(fit), folds=config.folds, **share), request)
    for fold in range(config.folds):
        runner.submit(Job(fold))
    found = {event.fold: event.place for event in runner.events() if isinstance(event, Started)}
    assert sorted(found) == list(range(config.folds))
    return request, found


def per_node(found):
    """How many folds ran on each node that had any."""
    return sorted(Counter(place.node_id for place in found.values()).values())


@pytest.mark.usefixtures("nine_nodes")
def test_tpu_folds_take_a_whole_host_each_in_a_process_of_their_own(tmp_path):
    request, found = places(tmp_path, {"folds": 5}, at_once=4, accelerator_type="TPU-V4")
    assert (request.device, request.tpu_chips) == ("tpu", 4)
    assert per_node(found) == [1, 1, 1, 2]  # the fifth waited for its turn
    assert len({place.pid for place in found.values()}) == 5
    for place in found.values():
        # All four chips: either named, or not masked at all.
        assert place.visible.get("TPU_VISIBLE_CHIPS", "0,1,2,3").split(",") == ["0", "1", "2", "3"]
        assert not place.visible.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.usefixtures("nine_nodes")
def test_gpu_folds_spread_over_nodes_and_see_their_own_gpu(tmp_path):
    request, found = places(tmp_path, {"folds": 4, "device": "gpu"}, at_once=4)
    assert request.gpus == 1
    assert per_node(found) == [2, 2]
    gpus = {(place.node_id, place.visible["CUDA_VISIBLE_DEVICES"]) for place in found.values()}
    assert len(gpus) == 4
    assert {gpu for _, gpu in gpus} == {"0", "1"}


@pytest.mark.usefixtures("nine_nodes")
def test_a_fold_on_two_gpus_has_both_of_one_node(tmp_path):
    _, found = places(tmp_path, {"folds": 2, "device": "gpu", "devices_per_fold": 2}, at_once=2)
    assert {place.visible["CUDA_VISIBLE_DEVICES"] for place in found.values()} == {"0,1"}
    assert per_node(found) == [1, 1]


@pytest.mark.usefixtures("nine_nodes")
def test_folds_share_gpus_two_on_each(tmp_path):
    request, found = places(tmp_path, {"folds": 5, "device": "gpu", "devices_per_fold": 0.4}, at_once=5)
    assert request.gpus == 0.4
    assert str(request) == "0.4 GPU, 1 CPU on one node"
    shared = Counter((place.node_id, place.visible["CUDA_VISIBLE_DEVICES"]) for place in found.values())
    assert max(shared.values()) <= 2
    assert {gpu for _, gpu in shared} <= {"0", "1"}
    assert {place.share for place in found.values()} == {0.4}


@pytest.mark.usefixtures("nine_nodes")
def test_fewer_folds_than_gpus_go_to_different_nodes(tmp_path):
    _, found = places(tmp_path, {"folds": 2, "device": "gpu"}, at_once=2)
    assert per_node(found) == [1, 1]


@pytest.mark.usefixtures("nine_nodes")
def test_cpu_folds_spread_and_see_no_accelerator(tmp_path):
    _, found = places(tmp_path, {"folds": 9, "device": "cpu", "cpus_per_fold": 2}, at_once=9)
    assert per_node(found) == [1] * 9
    assert not any(place.visible.get("CUDA_VISIBLE_DEVICES") for place in found.values())


@pytest.mark.usefixtures("nine_nodes")
def test_folds_go_where_the_label_is(tmp_path):
    request, found = places(tmp_path, {"folds": 2}, at_once=2, labels={"zone": "b"})
    assert (request.device, request.cpus) == ("cpu", 2)
    (labelled,) = [node.node_id for node in cluster_nodes() if node.labels.get("zone") == "b"]
    assert {place.node_id for place in found.values()} == {labelled}


@pytest.mark.usefixtures("nine_nodes")
def test_an_impossible_request_ends_at_once_with_the_nearest_that_fits(tmp_path, capsys):
    png_shards.write(tmp_path / "data", train_shards=5, test_shards=1, per_shard=8)
    run = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--weights", "none"]
    run += ["--batch-size", "8", "--device", "tpu"]
    assert cv.entry([*run, "--devices-per-fold", "8"]) == 2
    said = capsys.readouterr().err
    assert "8 TPU chips" in said
    assert "4 x 8 CPU + 4 TPU (TPU-V4)" in said
    assert "Nearest that fits: --devices-per-fold 4." in said
    assert cv.entry([*run, "--accelerator-type", "TPU-V5P"]) == 2
    assert "Nearest that fits: --accelerator-type TPU-V4." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
