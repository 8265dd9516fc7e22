"""Rules for KubeRay objects (RayJob, RayCluster), by their structure: versions, access, TPU and GPU groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from setibl_ray.core.cluster.rules import At, Finding, Lock, image, pinned_versions, tpu

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
    """Everything that is wrong in one object; objects that are not Ray's are ignored."""
    top = At(document)
    kind, version = top["kind"], top["apiVersion"]
    if kind.value not in KINDS and not str(version.value).startswith("ray.io/"):
        return
    yield from version.must_be(API_VERSION)
    if kind.value not in KINDS:
        yield kind.wrong(" or ".join(KINDS))
        return
    spec = top["spec"]
    if kind.value == "RayJob":
        if not spec["entrypoint"].value:
            yield spec["entrypoint"].wrong("the command to run")
        yield from spec["shutdownAfterJobFinishes"].must_be(True, "(else accelerators are paid for ever)")
        yield from pinned_versions(spec["entrypoint"], lock)
        spec = spec["rayClusterSpec"]
    yield from _cluster(spec, lock)


def _cluster(spec: At, lock: Lock) -> Iterator[Finding]:
    yield from spec["rayVersion"].must_be(lock["ray"], "(the lock)")
    yield from spec["authOptions"]["mode"].must_be("token", "(KubeRay 1.5.1 or newer)")
    head, groups = spec["headGroupSpec"], spec["workerGroupSpecs"]
    if head["serviceType"].value is not None:
        yield from head["serviceType"].must_be("ClusterIP", "(no open dashboard)")
    if head["enableIngress"].value:
        yield head["enableIngress"].wrong("false (no open dashboard)")
    if not groups.value:
        yield groups.wrong("at least one group", "nothing")
    for group in (head, *groups):
        yield from _pod(group, lock)
    for group in groups:
        yield from _replicas(group)
        yield from _tpu_group(group)
        yield from _gpu_group(group)


def _pod(group: At, lock: Lock) -> Iterator[Finding]:
    containers = group["template"]["spec"]["containers"]
    if not containers.value:
        yield containers.wrong("one Ray container", "nothing")
    for container in containers:
        yield from image(container["image"], lock)
        for variable in container["env"]:
            if variable["name"].value == "RAY_AUTH_TOKEN" and variable["value"].value is not None:
                yield container["env"].wrong("RAY_AUTH_TOKEN from a Secret", "the token itself")


def _replicas(group: At) -> Iterator[Finding]:
    counts = [group[name].value for name in ("minReplicas", "replicas", "maxReplicas")]
    if not all(isinstance(count, int) for count in counts) or counts != sorted(counts):
        yield group.wrong("minReplicas <= replicas <= maxReplicas", ", ".join(map(str, counts)))


def _tpu_group(group: At) -> Iterator[Finding]:
    limits, requests = (_resources(group, kind)["google.com/tpu"] for kind in ("limits", "requests"))
    selector = group["template"]["spec"]["nodeSelector"]
    accelerator, topology = selector[_ACCELERATOR], selector[_TOPOLOGY]
    chips = _amount(limits)
    if not chips and accelerator.value is None and topology.value is None:
        return
    generation = _GENERATION.get(str(accelerator.value))
    if generation is None:
        yield accelerator.wrong(f"one of {', '.join(_GENERATION)} (they run TensorFlow)")
        return
    try:
        piece = tpu.from_topology(generation, str(topology.value))
    except ValueError as error:
        yield topology.wrong(str(error))
        return
    if chips != piece.chips_per_host:
        yield limits.wrong(f"{piece.chips_per_host}, the chips of a host of topology {topology.value}")
    if _amount(requests) not in (None, chips):
        yield requests.wrong("the same as limits", "another number")
    if piece.hosts > 1:
        hosts = f"{topology.value}: {piece.hosts} hosts"
        yield topology.wrong("a slice on one host (a fold takes one TPU host)", hosts)
    yield from group["numOfHosts"].must_be(piece.hosts, "for this topology")


def _gpu_group(group: At) -> Iterator[Finding]:
    gpus = _resources(group, "limits")["nvidia.com/gpu"]
    selector = group["template"]["spec"]["nodeSelector"]
    if selector["cloud.google.com/gke-accelerator"].value is not None and not _amount(gpus):
        yield gpus.wrong("at least 1", "nothing")


def _resources(group: At, kind: str) -> At:
    """Resources that the group's first container requests."""
    containers = group["template"]["spec"]["containers"]
    first = next(iter(containers), At(None, f"{containers.field}[0]"))
    return first["resources"][kind]


def _amount(resource: At) -> int | None:
    """A number, which may be quoted."""
    return int(str(resource.value)) if str(resource.value).isdigit() else None
