"""`python -m setibl_ray.cluster check`: the shipped files pass, and each planted mistake is found."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from setibl_ray.cluster import entry
from setibl_ray.core.cluster import check
from setibl_ray.core.cluster.rules import At, image, pinned_versions, read_lock, tpu
from setibl_ray.core.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
SHIPPED = [PROJECT / "cluster.yaml", *sorted((PROJECT / "clusters").glob("*.yaml"))]
LOCK = read_lock(PROJECT / "requirements.lock")

TPU_NODE = "available_node_types/tpu/node_config"
JOB_CLUSTER = "spec/rayClusterSpec"
WORKERS = f"{JOB_CLUSTER}/workerGroupSpecs/0"
POD = f"{WORKERS}/template/spec"


def put(path: str, value: Any) -> Callable[[dict], None]:
    return lambda config: operator.setitem(*_parent(config, path), value)


def drop(path: str) -> Callable[[dict], None]:
    return lambda config: operator.delitem(*_parent(config, path))


def swap(field: str, old: str, new: str) -> Callable[[dict], None]:
    """Replace text in a list of commands."""

    def change(config: dict) -> None:
        assert any(old in command for command in config[field]), f"{field} no longer holds {old!r}"
        config[field] = [command.replace(old, new) for command in config[field]]

    return change


def _parent(config: dict, path: str) -> tuple[Any, Any]:
    *parents, last = [int(part) if part.isdigit() else part for part in path.replace("//", "\0").split("/")]
    *parents, last = [part.replace("\0", "/") if isinstance(part, str) else part for part in (*parents, last)]
    return reduce(operator.getitem, parents, config), last


MISTAKES = [
    # file, mistake, field that the finding names
    ("cluster.yaml", drop("provider"), "provider.type"),
    ("cluster.yaml", put("max_worker", 5), "top level"),
    ("cluster.yaml", put("head_node_type", "hed"), "Ray's own check"),
    ("cluster.yaml", put("provider/use_internal_ips", False), "use_internal_ips"),
    ("cluster.yaml", put(f"{TPU_NODE}/acceleratorType", "v4-10"), "acceleratorType"),
    ("cluster.yaml", put(f"{TPU_NODE}/acceleratorType", "v4-16"), "acceleratorType"),
    ("cluster.yaml", put(f"{TPU_NODE}/acceleratorType", "tpu-v4"), "acceleratorType"),
    ("cluster.yaml", put(f"{TPU_NODE}/acceleratorType", "v6e-8"), "acceleratorType"),
    (
        "cluster.yaml",
        put(f"{TPU_NODE}/acceleratorConfig", {"type": "V4", "topology": "2x2x1"}),
        "node_config",
    ),
    ("cluster.yaml", put("available_node_types/tpu/resources/TPU", 1), "resources.TPU"),
    ("cluster.yaml", drop("available_node_types/tpu/resources/TPU"), "resources.TPU"),
    ("cluster.yaml", drop(f"{TPU_NODE}/runtimeVersion"), "runtimeVersion"),
    ("cluster.yaml", put(f"{TPU_NODE}/runtimeVersion", "tpu-vm-tf-2.16.1-pjrt"), "runtimeVersion"),
    ("cluster.yaml", drop(f"{TPU_NODE}/networkConfig/enableExternalIps"), "enableExternalIps"),
    ("cluster.yaml", drop(f"{TPU_NODE}/serviceAccounts"), "serviceAccounts"),
    ("cluster.yaml", put(f"{TPU_NODE}/serviceAccounts/0/scopes", ["x/cloud-platform"]), "serviceAccounts"),
    ("cluster.yaml", drop("available_node_types/head/node_config/networkInterfaces"), "networkInterfaces"),
    ("cluster.yaml", swap("head_start_ray_commands", "127.0.0.1", "0.0.0.0"), "head_start_ray_commands"),
    ("cluster.yaml", drop("head_start_ray_commands"), "head_start_ray_commands"),  # Ray's default is open
    ("cluster.yaml", swap("head_start_ray_commands", "RAY_AUTH_MODE=token", ""), "head_start_ray_commands"),
    (
        "cluster.yaml",
        swap("worker_start_ray_commands", "RAY_AUTH_MODE=token", ""),
        "worker_start_ray_commands",
    ),
    (
        "cluster.yaml",
        swap("worker_start_ray_commands", "ray start", "RAY_AUTH_TOKEN=x ray start"),
        "worker_start",
    ),
    ("cluster.yaml", drop("file_mounts/~//.ray//auth_token"), "file_mounts"),
    ("cluster.yaml", swap("setup_commands", "chmod 600", "chmod 644"), "setup_commands"),
    ("cluster.yaml", swap("setup_commands", " RAY_AUTH_MODE=token", ""), "setup_commands"),
    ("cluster.yaml", swap("setup_commands", "install.sh", "other.sh"), "setup_commands"),
    ("cluster.yaml", put("head_setup_commands", ["pip install ray==2.9.0"]), "head_setup_commands"),
    ("cluster.yaml", put("head_setup_commands", ["pip install -U ray"]), "head_setup_commands"),
    (
        "cluster.yaml",
        put("docker", {"image": "rayproject/ray:latest", "container_name": "ray"}),
        "docker.image",
    ),
    ("clusters/gcp-gpu.yaml", put("available_node_types/gpu/resources/GPU", 2), "resources.GPU"),
    ("clusters/gcp-gpu.yaml", drop("available_node_types/gpu/node_config/scheduling"), "scheduling"),
    ("clusters/on-premises.yaml", drop("provider/worker_ips"), "Ray's own check"),
    (
        "clusters/on-premises.yaml",
        swap("head_start_ray_commands", "RAY_enable_autoscaler_v2=0", ""),
        "head_start",
    ),
    ("clusters/kuberay-tpu.yaml", put("apiVersion", "ray.io/v1alpha1"), "apiVersion"),
    ("clusters/kuberay-tpu.yaml", put("kind", "RayJobs"), "kind"),
    ("clusters/kuberay-tpu.yaml", drop("spec/entrypoint"), "spec.entrypoint"),
    ("clusters/kuberay-tpu.yaml", drop("spec/shutdownAfterJobFinishes"), "shutdownAfterJobFinishes"),
    ("clusters/kuberay-tpu.yaml", put(f"{JOB_CLUSTER}/rayVersion", "2.52.0"), "rayVersion"),
    ("clusters/kuberay-tpu.yaml", drop(f"{JOB_CLUSTER}/authOptions"), "authOptions"),
    (
        "clusters/kuberay-tpu.yaml",
        put(f"{JOB_CLUSTER}/headGroupSpec/serviceType", "LoadBalancer"),
        "serviceType",
    ),
    ("clusters/kuberay-tpu.yaml", drop(f"{WORKERS}/numOfHosts"), "numOfHosts"),
    ("clusters/kuberay-tpu.yaml", put(f"{WORKERS}/maxReplicas", 2), "workerGroupSpecs[0]"),
    ("clusters/kuberay-tpu.yaml", put(f"{POD}/containers/0/image", "setibl/setibl-ray"), "image"),
    ("clusters/kuberay-tpu.yaml", put(f"{POD}/containers/0/image", "rayproject/ray:2.40.0-py310"), "image"),
    ("clusters/kuberay-tpu.yaml", put(f"{POD}/containers/0/resources/limits/google.com//tpu", "1"), "limits"),
    ("clusters/kuberay-tpu.yaml", drop(f"{POD}/nodeSelector/cloud.google.com//gke-tpu-topology"), "topology"),
    (
        "clusters/kuberay-tpu.yaml",
        drop(f"{POD}/nodeSelector/cloud.google.com//gke-tpu-accelerator"),
        "accelerator",
    ),
    (
        "clusters/kuberay-tpu.yaml",
        put(f"{POD}/nodeSelector/cloud.google.com//gke-tpu-topology", "2x2x2"),
        "topology",
    ),
    (
        "clusters/kuberay-tpu.yaml",
        put(f"{POD}/containers/0/env", [{"name": "RAY_AUTH_TOKEN", "value": "secret"}]),
        "env",
    ),
    ("clusters/kuberay-gpu.yaml", drop(f"{POD}/containers/0/resources/limits"), "nvidia.com/gpu"),
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_file_has_nothing_wrong(path: Path) -> None:
    assert check.check_file(path, LOCK) == []


@pytest.mark.parametrize(("name", "mistake", "field"), MISTAKES)
def test_a_planted_mistake_is_found(
    name: str, mistake: Callable[[dict], None], field: str, tmp_path: Path
) -> None:
    # Anchors of the shipped file would spread one change over several nodes.
    config = copy.deepcopy(yaml.safe_load((PROJECT / name).read_text()))
    mistake(config)
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(config, sort_keys=False))
    findings = check.check_file(broken, LOCK)
    assert any(field in finding.field for finding in findings), findings


def test_a_newer_lock_is_held_against_the_files() -> None:
    newer = {**LOCK, "ray": "2.99.0", "tensorflow": "2.99.0"}
    assert [f.field for f in check.check_file(PROJECT / "cluster.yaml", newer)] == [
        "available_node_types.tpu.node_config.runtimeVersion"
    ]
    assert [f.field for f in check.check_file(PROJECT / "clusters/kuberay-tpu.yaml", newer)] == [
        "spec.rayClusterSpec.rayVersion"
    ]


@pytest.mark.parametrize("lock", check.LOCKS)
def test_the_image_recipe_follows_both_locks(lock: str) -> None:
    recipe = (PROJECT / "clusters/Dockerfile").read_text()
    base = next(line.split()[1] for line in recipe.splitlines() if line.startswith("FROM rayproject/"))
    versions = read_lock(PROJECT / lock)
    assert [*pinned_versions(At(recipe), versions), *image(At(base), versions)] == []


def test_a_file_is_held_to_the_lock_that_it_names(tmp_path: Path) -> None:
    for name in check.LOCKS:
        (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    shipped = (PROJECT / "clusters/gcp-gpu.yaml").read_text()
    file = tmp_path / "cluster.yaml"
    file.write_text(shipped)
    assert check.find_lock(file).name == "requirements.lock"
    file.write_text(shipped.replace("requirements.lock", "requirements-current.lock"))
    assert check.find_lock(file).name == "requirements-current.lock"
    assert check.check_files([file], None) == {file: []}
    file.write_text(file.read_text().replace("install.sh cuda", "install.sh; pip install tensorflow==2.15.1"))
    (finding,) = check.check_files([file], None)[file]
    assert "tensorflow==2.21" in finding.expected


def test_both_locks_have_the_same_ray_and_their_own_tensorflow() -> None:
    current, first = (read_lock(PROJECT / name) for name in check.LOCKS)
    assert current["ray"] == first["ray"]
    assert (first["tensorflow"], first["numpy"].split(".")[0]) == ("2.15.1", "1")
    assert current["tf-keras"].rpartition(".")[0] == current["tensorflow"].rpartition(".")[0]
    assert int(current["numpy"].split(".")[0]) >= 2


@pytest.mark.parametrize(
    ("name", "chips", "per_host", "hosts"),
    [("v4-8", 4, 4, 1), ("v3-8", 4, 4, 1), ("v5litepod-8", 8, 8, 1), ("v5p-8", 4, 4, 1), ("v4-32", 16, 4, 4)],
)
def test_chips_and_hosts_of_an_accelerator_type(name: str, chips: int, per_host: int, hosts: int) -> None:
    piece = tpu.from_type(name)
    assert (piece.chips, piece.chips_per_host, piece.hosts) == (chips, per_host, hosts)
    assert piece.accelerator_type == name


def test_the_command_prints_a_table_and_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "cluster.yaml"
    broken.write_text((PROJECT / "cluster.yaml").read_text().replace('"TPU": 4', '"TPU": 1'))
    lock = ["--lock", str(PROJECT / "requirements.lock")]
    assert entry(["check", *lock, str(broken), str(PROJECT / "cluster.yaml")]) == 2
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("file", "field", "expected", "got"))
    assert entry(["check", str(PROJECT / "cluster.yaml")]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "no-such-file.yaml"], "no requirements.lock"),
        (["check", "no-such-file.yaml", "--lock", str(PROJECT / "pyproject.toml")], "found none"),
        (["check", "no-such-file.yaml", "--lock", str(PROJECT / "requirements.lock")], "No such file"),
        (["check", str(PROJECT / "pyproject.toml")], "not YAML"),
        ([], "expected a command"),
    ],
)
def test_an_unreadable_file_ends_with_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert entry(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_list_is_no_cluster_file(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="expected a cluster file"):
        check.check_file(tmp_path / "list.yaml", LOCK)
