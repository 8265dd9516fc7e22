"""Where folds go on a cluster of declared TPUs, GPUs and CPUs: nine raylets on one machine, no hardware."""

import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from setibl_ray.cluster import connect
from setibl_ray.cluster.placement import cluster_nodes, request_for
from setibl_ray.cluster.runner import RayRunner
from setibl_ray.config import parse
from setibl_ray.contract import FoldResult, Job, Place, Started
from setibl_ray.errors import PlacementError

TPU_HOST = {"num_cpus": 8, "resources": {"TPU": 4, "accelerator_type:TPU-V4": 1}}
GPU_HOST = {"num_cpus": 4, "num_gpus": 2}
CPU_HOST = {"num_cpus": 4}


@pytest.fixture(scope="module")
def nine_nodes(own_ray):
    """Eight nodes beside the one of the tests' own Ray: 4 x 4 TPU chips, 2 x 2 GPUs, 3 x CPUs only."""
    cluster = Cluster()
    cluster.head_node = ray._private.worker._global_node
    cluster.redis_address = cluster.head_node.redis_address
    with connect._loopback_only():
        for options in [TPU_HOST] * 4 + [GPU_HOST] * 2 + [CPU_HOST] * 2:
            cluster.add_node(**options, wait=False)
    _until(lambda: len(cluster_nodes()) == 9)
    yield
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)
    _until(lambda: len(cluster_nodes()) == 1)


def _until(done):
    deadline = time.monotonic() + 240
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def places(meeting, values, at_once, **options):
    """Where each fold of a run ran: fold -> place.

    Args:
      meeting: an empty folder; the first `at_once` folds go on only when they have all met there.
      values, options: what `request_for` takes.
    """
    config = parse({"weights": "none", **values})

    def task(plan, job):
        yield Started(job.fold, Place.here("any", 1, 1))
        (meeting / str(job.fold)).touch()
        deadline = time.monotonic() + 120
        while len(list(meeting.iterdir())) < at_once and time.monotonic() < deadline:
            time.sleep(0.02)
        yield FoldResult(job.fold, *[np.zeros(1, np.float32)] * 2, 0, [], b"", {}, 0)

    request = request_for(config, cluster_nodes(), **options)
    runner = RayRunner(task, SimpleNamespace(), request)
    for fold in range(config.folds):
        runner.submit(Job(fold))
    found = {}
    for event in runner.events():
        if isinstance(event, Started):
            found[event.fold] = event.place
            if len(found) == at_once:
                assert {path.name for path in meeting.iterdir()} <= {str(fold) for fold in found}
    assert sorted(found) == list(range(config.folds))
    return request, found


def per_node(found):
    """How many folds ran on each node that had any."""
    return sorted(Counter(place.node_id for place in found.values()).values())


@pytest.mark.usefixtures("nine_nodes")
def test_tpu_folds_take_a_whole_host_each_in_a_process_of_their_own(tmp_path):
    request, found = places(tmp_path, {"folds": 5}, at_once=4)
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
def test_cpu_folds_spread_and_see_no_accelerator(tmp_path):
    _, found = places(tmp_path, {"folds": 9, "device": "cpu", "cpus_per_fold": 2}, at_once=9)
    assert per_node(found) == [1] * 9
    assert not any(place.visible.get("CUDA_VISIBLE_DEVICES") for place in found.values())


@pytest.mark.usefixtures("nine_nodes")
def test_an_impossible_request_ends_at_once_with_the_nearest_that_fits():
    with pytest.raises(PlacementError) as caught:
        request_for(parse({"device": "tpu", "devices_per_fold": 8}), cluster_nodes())
    said = str(caught.value)
    assert "8 TPU chips" in said
    assert "4 x 8 CPU + 4 TPU (TPU-V4)" in said
    assert "--devices-per-fold 4" in said
    with pytest.raises(PlacementError, match="TPU-V5P"):
        request_for(parse({}), cluster_nodes(), accelerator_type="TPU-V5P")
