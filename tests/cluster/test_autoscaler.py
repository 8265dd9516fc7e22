"""Ray's autoscaler, asked offline: does it start the nodes of the shipped files for the folds of a run?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator

from setibl_ray.core.cluster.placement import Ask, Node, Request, request_for, with_memory

PROJECT = Path(__file__).resolve().parents[2]


def autoscaling(name: str) -> AutoscalingConfig:
    """What the autoscaler makes of a file."""
    content = yaml.safe_load((PROJECT / name).read_text())
    if content.get("kind") == "RayJob":
        cluster = {
            "metadata": {"name": "run", "namespace": "default"},
            "spec": content["spec"]["rayClusterSpec"],
        }
        content = _derive_autoscaling_config_from_ray_cr(cluster)
    return AutoscalingConfig(content, skip_content_hash=True)


def live_node(config: AutoscalingConfig, name: str) -> Node:
    """A node of the file as Ray reports it once it runs: what is declared, and what it finds by itself."""
    found = {"memory": 40e9, "object_store_memory": 20e9, "node:10.0.0.3": 1.0}
    return Node(name, found | config.get_node_resources(name), config.get_node_labels(name))


def started(
    config: AutoscalingConfig, request: Request, folds: int, avoid: tuple[str, ...] = ()
) -> dict[str, int]:
    """How many nodes of which type the autoscaler starts for folds that wait."""
    options: dict[str, Any] = request.options(avoid=avoid)
    selectors = [
        (key, LabelSelectorOperator.LABEL_OPERATOR_NOT_IN, value[4:-1].split(","))
        if value.startswith("!in(")
        else (key, LabelSelectorOperator.LABEL_OPERATOR_IN, [value])
        for key, value in options.get("label_selector", {}).items()
    ]
    fold = ResourceRequestUtil.make(request.resources, label_selectors=[selectors] if selectors else None)
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs() or {},
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([fold] * folds),
        )
    )
    assert not reply.infeasible_resource_requests
    counts: Counter[str] = Counter()
    for launch in reply.to_launch:
        counts[launch.instance_type] += launch.count
    return dict(counts)


FILES = [
    ("cluster.yaml", "tpu", "tpu", "TPU-V4"),
    ("clusters/gcp-gpu.yaml", "gpu", "gpu", "L4"),
    ("clusters/kuberay-tpu.yaml", "v4", "tpu", None),
    ("clusters/kuberay-gpu.yaml", "l4", "gpu", None),
]


@pytest.mark.parametrize(("file", "node_type", "device", "accelerator_type"), FILES)
def test_five_folds_start_five_nodes(
    file: str, node_type: str, device: str, accelerator_type: str | None
) -> None:
    config = autoscaling(file)
    node = live_node(config, node_type)
    for typed in {None, accelerator_type}:
        request = with_memory(
            request_for(Ask(device=device, folds=5, accelerator_type=typed), [node]), int(30e9), [node]
        )
        assert request.slots(node) == 1
        assert started(config, request, 5).get(node_type) == 5
        assert started(config, request, 5, avoid=("0" * 56,)).get(node_type) == 5
