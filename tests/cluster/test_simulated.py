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


@pytest.fixture(scope="module")
def nine_nodes():
    ray.shutdown()  # the Ray of tests that ran before; those that come after start another
    connect.private_token()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for options in [TPU_HOST] * 4 + [{"num_cpus": 4, "num_gpus": 2}] * 2 + [{"num_cpus": 4}] * 2:
        cluster.add_node(**options, wait=False)
    cluster.wait_for_nodes(timeout=240)
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()


def places(values, **options):
    """Where each fold of a run ran: fold -> (node, visibility variables, process)."""
    config = parse({"weights": "none", **values})

    def task(plan, job):
        yield Started(job.fold, Place.here("any", 1, 1))
        time.sleep(1.0)  # long enough that folds which fit side by side are side by side
        yield FoldResult(job.fold, *[np.zeros(1, np.float32)] * 2, 0, [], b"", {}, 0)

    request = request_for(config, cluster_nodes(), **options)
    runner = RayRunner(task, SimpleNamespace(), request)
    for fold in range(config.folds):
        runner.submit(Job(fold))
    found = {event.fold: event.place for event in runner.events() if isinstance(event, Started)}
    assert sorted(found) == list(range(config.folds))
    return request, found


@pytest.mark.usefixtures("nine_nodes")
def test_tpu_folds_take_a_whole_host_each_in_a_process_of_their_own():
    request, found = places({"folds": 4})
    assert (request.device, request.tpu_chips) == ("tpu", 4)
    assert len({place.node_id for place in found.values()}) == 4
    assert len({place.pid for place in found.values()}) == 4
    for place in found.values():
        # All four chips: either named, or not masked at all.
        assert place.visible.get("TPU_VISIBLE_CHIPS", "0,1,2,3").split(",") == ["0", "1", "2", "3"]
        assert not place.visible.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.usefixtures("nine_nodes")
def test_more_tpu_folds_than_hosts_wait_their_turn():
    _, found = places({"folds": 5, "device": "tpu"})
    assert max(Counter(place.node_id for place in found.values()).values()) == 2
    assert len({place.pid for place in found.values()}) == 5


@pytest.mark.usefixtures("nine_nodes")
def test_gpu_folds_spread_over_nodes_and_see_their_own_gpu():
    request, found = places({"folds": 4, "device": "gpu"})
    assert request.gpus == 1
    gpus = {(place.node_id, place.visible["CUDA_VISIBLE_DEVICES"]) for place in found.values()}
    assert len(gpus) == 4
    assert {gpu for _, gpu in gpus} == {"0", "1"}

    _, found = places({"folds": 2, "device": "gpu", "devices_per_fold": 2})
    assert {place.visible["CUDA_VISIBLE_DEVICES"] for place in found.values()} == {"0,1"}
    assert len({place.node_id for place in found.values()}) == 2


@pytest.mark.usefixtures("nine_nodes")
def test_cpu_folds_spread_and_see_no_accelerator():
    _, found = places({"folds": 6, "device": "cpu", "cpus_per_fold": 2})
    assert len({place.node_id for place in found.values()}) >= 4
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
