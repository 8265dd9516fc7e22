"""A cluster that starts without accelerators: the run waits, Ray's autoscaler starts nodes for it, and folds run there.

The nodes are the autoscaler's own fakes, raylets without machines; what they declare is what cluster.yaml does.
They live on a host of their own (hosts.py), where stopping all Ray stops nobody else's.
"""

from __future__ import annotations

import json
from pathlib import Path

import hosts
import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

PROJECT = Path(__file__).resolve().parents[2]
_reason = hosts.why_not()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(_reason is not None, reason=f"cannot make hosts here: {_reason}"),
]
AUTOSCALER_V2 = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
FOLDS = 3
DRIVER = f"""
import json, sys, time
sys.path.insert(0, {str(PROJECT / "tests")!r})
from tasks import Made, spec_of, zeros
from setibl_ray.core.cluster import connect, placement
from setibl_ray.core.cluster.runner import RayRunner
from setibl_ray.core.jobs import Job, Started
from setibl_ray.core.task import Needs
from setibl_ray.core.where import Where
from setibl_ray.seti.config import parse

def fit(work):
    time.sleep(15)  # for longer than two more nodes take
    yield from zeros(work)

said = []
config = parse({{"device": "tpu", "folds": {FOLDS}}})
with connect.connected("auto"):
    ask = placement.Ask.of(config, Needs(), Where(accelerator_type="TPU-V4"))
    request = placement.wait_for_placement(ask, 180, said.append)
    request = placement.with_memory(request, 10**9, placement.cluster_nodes())
    runner = RayRunner(spec_of(Made(fit), folds={FOLDS}), request)
    for fold in range({FOLDS}):
        runner.submit(Job(fold))
    nodes = {{event.fold: event.place.node_id for event in runner.events() if isinstance(event, Started)}}
print(json.dumps({{"said": said, "request": str(request), "nodes": nodes}}))
"""


def fake_cluster() -> dict:
    """A head without a core and up to three of cluster.yaml's TPU nodes, none at first."""
    declared = yaml.safe_load((PROJECT / "cluster.yaml").read_text())["available_node_types"]["tpu"][
        "resources"
    ]
    commands = ["initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"]
    return {
        "cluster_name": "fake",
        "provider": {"type": "fake_multinode", "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID},
        "max_workers": FOLDS,
        "upscaling_speed": 5.0,
        "idle_timeout_minutes": 1,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
            "tpu": {"resources": declared, "node_config": {}, "min_workers": 0, "max_workers": FOLDS},
        },
        **{f"{name}_commands": [] for name in commands},
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
    }


def test_a_run_waits_for_nodes_that_the_autoscaler_starts_for_it(tmp_path: Path) -> None:
    config, driver = tmp_path / "fake.json", tmp_path / "driver.py"
    config.write_text(json.dumps(fake_cluster()))
    driver.write_text(DRIVER)
    with hosts.make_hosts(["head"], shared=[tmp_path]) as machine:
        head = machine["head"]
        # The provider reads its defaults from a file that Ray's wheel lacks; the host's environment is its own.
        defaults = Path(ray.__file__).parent / "autoscaler/_private/fake_multi_node/example.yaml"
        head.run(["cp", str(config), str(defaults)])
        start = ["ray", "start", "--head", "--num-cpus=0", "--include-dashboard=false"]
        head.run([*start, f"--autoscaling-config={config}"], **AUTOSCALER_V2)
        found = json.loads(head.run(["python", str(driver)], timeout_s=300).stdout.splitlines()[-1])
    assert len(found["said"]) == 1
    assert found["said"][0].startswith(
        "waiting up to 180 s for the cluster to grow: a fold asks for 4 TPU chips"
    )
    assert found["request"] == "4 TPU chips, 240 CPU, accelerator type TPU-V4 on one node"
    assert len(set(found["nodes"].values())) == FOLDS
