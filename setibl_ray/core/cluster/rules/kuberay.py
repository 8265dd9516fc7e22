"""Rules for KubeRay objects (RayJob, RayCluster), by their structure: versions, access, TPU and GPU groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from setibl_ray.core.cluster.rules import Finding, Lock, image, pinned_versions, show, tpu

API_VERSION = "ray.io/v1"
KINDS = ("RayJob", "RayCluster")
_ACCELERATOR, _TOPOLOGY = "cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology"
_GENERATION = {
    "tpu-v4-podslice": "v4",
    "tpu-v5-lite-podslice": "v5litepod",
    "tpu-v5-lite-device": "v5litepod",
    "tpu-v5p-slice": "v5p",
}


def findings(document: Mapping[str, Any], lock: Lock) -> Iterator[Finding]:
    """Everything wrong in one object; objects that are not Ray's pass."""
    kind, version = document.get("kind"), str(document.get("apiVersion"))
    if kind not in KINDS and not version.startswith("ray.io/"):
        return
    if version != API_VERSION:
        yield Finding("apiVersion", API_VERSION, version)
    if kind not in KINDS:
        yield Finding("kind", " or ".join(KINDS), show(kind))
        return
    spec = _mapping(document.get("spec"))
    field = "spec"
    if kind == "RayJob":
        if not spec.get("entrypoint"):
            yield Finding("spec.entrypoint", "the command to run", "nothing")
        if spec.get("shutdownAfterJobFinishes") is not True:
            yield Finding(
                "spec.shutdownAfterJobFinishes",
                "true (else accelerators are paid for ever)",
                show(spec.get("shutdownAfterJobFinishes")),
            )
        yield from pinned_versions("spec.entrypoint", str(spec.get("entrypoint")), lock)
        field = "spec.rayClusterSpec"
        spec = _mapping(spec.get("rayClusterSpec"))
    yield from _cluster(field, spec, lock)


def _cluster(field: str, spec: Mapping[str, Any], lock: Lock) -> Iterator[Finding]:
    if str(spec.get("rayVersion")) != lock["ray"]:
        yield Finding(
            f"{field}.rayVersion", f"{lock['ray']} (requirements.lock)", show(spec.get("rayVersion"))
        )
    mode = _mapping(spec.get("authOptions")).get("mode")
    if mode != "token":
        yield Finding(f"{field}.authOptions.mode", "token (KubeRay 1.5.1 or newer)", show(mode))
    head = _mapping(spec.get("headGroupSpec"))
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        yield Finding(
            f"{field}.headGroupSpec.serviceType", "ClusterIP (no open dashboard)", head["serviceType"]
        )
    if head.get("enableIngress"):
        yield Finding(f"{field}.headGroupSpec.enableIngress", "false (no open dashboard)", "true")
    groups = spec.get("workerGroupSpecs") or []
    if not groups:
        yield Finding(f"{field}.workerGroupSpecs", "at least one group", "nothing")
    yield from _pod(f"{field}.headGroupSpec", head, lock)
    for number, group in enumerate(groups):
        name = f"{field}.workerGroupSpecs[{number}]"
        yield from _pod(name, group, lock)
        yield from _replicas(name, group)
        yield from _tpu_group(name, group)
        yield from _gpu_group(name, group)


def _pod(field: str, group: Mapping[str, Any], lock: Lock) -> Iterator[Finding]:
    containers = _pod_spec(group).get("containers") or []
    if not containers:
        yield Finding(f"{field}.template.spec.containers", "one Ray container", "nothing")
    for number, container in enumerate(containers):
        here = f"{field}.template.spec.containers[{number}]"
        yield from image(f"{here}.image", container.get("image"), lock)
        for variable in container.get("env") or ():
            if variable.get("name") == "RAY_AUTH_TOKEN" and "value" in variable:
                yield Finding(f"{here}.env", "RAY_AUTH_TOKEN from a Secret", "the token itself")


def _replicas(field: str, group: Mapping[str, Any]) -> Iterator[Finding]:
    counts = [group.get(name) for name in ("minReplicas", "replicas", "maxReplicas")]
    numbers = [count for count in counts if isinstance(count, int)]
    if len(numbers) < len(counts) or numbers != sorted(numbers):
        yield Finding(field, "minReplicas <= replicas <= maxReplicas", ", ".join(map(str, counts)))


def _tpu_group(field: str, group: Mapping[str, Any]) -> Iterator[Finding]:
    chips = _amount(group, "google.com/tpu")
    selector = _mapping(_pod_spec(group).get("nodeSelector"))
    if not chips and _ACCELERATOR not in selector and _TOPOLOGY not in selector:
        return
    here = f"{field}.template.spec"
    generation = _GENERATION.get(str(selector.get(_ACCELERATOR)))
    if generation is None:
        yield Finding(
            f"{here}.nodeSelector.{_ACCELERATOR}",
            f"one of {', '.join(_GENERATION)} (they run TensorFlow)",
            show(selector.get(_ACCELERATOR)),
        )
        return
    try:
        piece = tpu.from_topology(generation, str(selector.get(_TOPOLOGY)))
    except ValueError as error:
        yield Finding(f"{here}.nodeSelector.{_TOPOLOGY}", str(error), show(selector.get(_TOPOLOGY)))
        return
    if chips != piece.chips_per_host:
        yield Finding(
            f"{here}.containers[0].resources.limits.google.com/tpu",
            f"{piece.chips_per_host}, the chips of a host of topology {selector[_TOPOLOGY]}",
            show(chips or None),
        )
    if _amount(group, "google.com/tpu", "requests") not in (None, chips):
        yield Finding(
            f"{here}.containers[0].resources.requests.google.com/tpu", "the same as limits", "another number"
        )
    if piece.hosts > 1:
        yield Finding(
            f"{here}.nodeSelector.{_TOPOLOGY}",
            "a slice on one host (a fold takes one TPU host)",
            f"{selector[_TOPOLOGY]}: {piece.hosts} hosts",
        )
    if group.get("numOfHosts") != piece.hosts:
        yield Finding(
            f"{field}.numOfHosts", f"{piece.hosts} for this topology", show(group.get("numOfHosts"))
        )


def _gpu_group(field: str, group: Mapping[str, Any]) -> Iterator[Finding]:
    selector = _mapping(_pod_spec(group).get("nodeSelector"))
    wants = "cloud.google.com/gke-accelerator" in selector
    if wants and not _amount(group, "nvidia.com/gpu"):
        yield Finding(
            f"{field}.template.spec.containers[0].resources.limits.nvidia.com/gpu", "at least 1", "nothing"
        )


def _amount(group: Mapping[str, Any], resource: str, kind: str = "limits") -> int | None:
    """The group's first container's amount of a resource, as a number."""
    containers = _pod_spec(group).get("containers") or [{}]
    value = _mapping(_mapping(containers[0].get("resources")).get(kind)).get(resource)
    return int(str(value)) if str(value).isdigit() else None


def _pod_spec(group: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(_mapping(group.get("template")).get("spec"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
