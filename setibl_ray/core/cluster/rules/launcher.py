"""Rules for the files of `ray up`: Ray's schema, TPU and GPU nodes of GCP, and what keeps strangers out."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from setibl_ray.core.cluster.rules import Finding, Lock, image, pinned_versions, show, tpu

TOKEN_PATH = "~/.ray/auth_token"
_DASHBOARD_HOST = re.compile(r"--dashboard-host[=\s]+(\S+)")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BROAD_SCOPES = ("cloud-platform", "compute", "compute.full_control")


def findings(config: Mapping[str, Any], lock: Lock) -> Iterator[Finding]:
    """Everything wrong in one file, in the order of reading."""
    prepared, refusal = _prepared(config)
    if refusal is not None:
        yield refusal
        return
    provider = config["provider"].get("type")
    yield from _access(prepared)
    yield from _versions(config, lock)
    if provider == "local":
        yield from _local(prepared)
    if provider == "gcp":
        yield from _gcp(prepared, lock)


def _prepared(config: Mapping[str, Any]) -> tuple[dict[str, Any], Finding | None]:
    """The config as `ray up` completes it with its defaults, or why Ray would refuse it."""
    import click
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    if not isinstance(config.get("provider"), Mapping) or "type" not in config["provider"]:
        return {}, Finding("provider.type", "gcp, local, aws, … (or a ray.io/v1 object)", "nothing")
    try:
        # Ray prints its remarks here (about containers, where there are none); what matters it raises.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            prepared = prepare_config(dict(config))
        validate_config(prepared)
    except jsonschema.ValidationError as error:
        field = ".".join(str(part) for part in error.absolute_path) or "(top level)"
        return {}, Finding(
            field, f"what Ray's schema allows: {error.message[:200]}", show(error.instance)[:80]
        )
    except (click.ClickException, ValueError, RuntimeError, AssertionError, KeyError, TypeError) as error:
        return {}, Finding(
            "(Ray's own check)", "a file that Ray accepts", f"{type(error).__name__}: {error}"[:200]
        )
    return prepared, None


def _access(config: Mapping[str, Any]) -> Iterator[Finding]:
    """The dashboard, the token, and secrets in plain sight."""
    for role in ("head", "worker"):
        field = f"{role}_start_ray_commands"
        text = "\n".join(config.get(field) or ())
        if role == "head":
            for host in _DASHBOARD_HOST.findall(text):
                if host not in _LOOPBACK:
                    yield Finding(field, "--dashboard-host=127.0.0.1 (open, it runs anyone's code)", host)
            if "--autoscaling-config" not in text:
                yield Finding(field, "--autoscaling-config=~/ray_bootstrap_config.yaml", "nothing")
        if "RAY_AUTH_MODE=token" not in text:
            yield Finding(field, "RAY_AUTH_MODE=token before `ray start`", "no token authentication")
    if TOKEN_PATH not in (config.get("file_mounts") or {}):
        yield Finding("file_mounts", f"{TOKEN_PATH}: {TOKEN_PATH}", "no token on the nodes")
    setup = "\n".join(config.get("setup_commands") or ())
    if not re.search(rf"chmod 0?600 {re.escape(TOKEN_PATH)}", setup):
        yield Finding("setup_commands", f"chmod 600 {TOKEN_PATH}", "a token that others on the node may read")
    if "RAY_AUTH_MODE=token" not in setup:
        yield Finding(
            "setup_commands", "RAY_AUTH_MODE=token for login shells", "`ray stop` and `ray exec` without it"
        )
    for field, commands in _commands(config):
        if "RAY_AUTH_TOKEN=" in commands:
            yield Finding(field, "the token in a file only", "RAY_AUTH_TOKEN=… in a command line")


def _versions(config: Mapping[str, Any], lock: Lock) -> Iterator[Finding]:
    """What gets installed must be what the lock says."""
    texts = dict(_commands(config))
    for field, text in texts.items():
        yield from pinned_versions(field, text, lock)
        for line in text.splitlines():
            yield from _unpinned(field, line)
    if not any(
        word in text
        for text in texts.values()
        for word in ("install.sh", "requirements.lock", "requirements-current.lock")
    ):
        yield Finding(
            "setup_commands", "clusters/install.sh, or pip with requirements.lock", "no locked install"
        )
    docker = config.get("docker") or {}
    for field in ("image", "head_image", "worker_image"):
        if field in docker:
            yield from image(f"docker.{field}", docker[field], lock)


def _unpinned(field: str, line: str) -> Iterator[Finding]:
    _, found, arguments = line.partition("pip install ")
    if not found:
        return
    try:
        words = shlex.split(re.split(r"[;&|]", arguments)[0], comments=True)
    except ValueError:  # a quote left open: the shell will say so
        return
    skip = False
    for word in words:
        if skip or word.startswith("-"):
            skip = word in ("-r", "--requirement", "-c", "--constraint", "-e", "--editable", "-f")
        elif "==" not in word and not re.search(r"[/~$]|\.whl$|^\.$", word):
            yield Finding(field, f"{word}==VERSION, or a line in requirements.lock", f"pip install {word}")


def _commands(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field, value in config.items():
        if field.endswith("commands") and isinstance(value, list):
            yield field, "\n".join(map(str, value))


def _local(config: Mapping[str, Any]) -> Iterator[Finding]:
    text = "\n".join(config["head_start_ray_commands"])
    if "RAY_enable_autoscaler_v2=0" not in text:
        yield Finding(
            "head_start_ray_commands",
            "RAY_enable_autoscaler_v2=0 (version 2 never starts workers of this provider)",
            "the default",
        )


def _gcp(config: Mapping[str, Any], lock: Lock) -> Iterator[Finding]:
    internal = config["provider"].get("use_internal_ips") is True
    if not internal:
        yield Finding("provider.use_internal_ips", "true", show(config["provider"].get("use_internal_ips")))
    for name, node_type in config["available_node_types"].items():
        field = f"available_node_types.{name}"
        node, resources = node_type["node_config"], node_type["resources"]
        is_head = name == config["head_node_type"]
        if "machineType" in node:
            yield from _gpu_node(field, node, resources)
            for number, interface in enumerate(node.get("networkInterfaces") or [{}]):
                # Without an interface of its own Ray gives the node a public address.
                if "subnetwork" not in interface or "accessConfigs" in interface:
                    yield Finding(
                        f"{field}.node_config.networkInterfaces[{number}]",
                        "a subnetwork and no accessConfigs",
                        "a public address",
                    )
        elif "acceleratorType" in node or "acceleratorConfig" in node:
            yield from _tpu_node(field, node, resources, lock)
        else:
            yield Finding(f"{field}.node_config", "machineType, or a TPU's acceleratorType", ", ".join(node))
        if not is_head:
            yield from _scopes(field, node)


def _scopes(field: str, node: Mapping[str, Any]) -> Iterator[Finding]:
    accounts = node.get("serviceAccounts")
    if not accounts:
        yield Finding(
            f"{field}.node_config.serviceAccounts", "an account of its own with narrow scopes", "the default"
        )
    for account in accounts or ():
        for scope in account.get("scopes", ()):
            if scope.rpartition("/")[2] in _BROAD_SCOPES:
                yield Finding(f"{field}.node_config.serviceAccounts", "scopes for storage and logs", scope)


def _gpu_node(field: str, node: Mapping[str, Any], resources: Mapping[str, int]) -> Iterator[Finding]:
    attached = sum(int(gpu.get("acceleratorCount", 0)) for gpu in node.get("guestAccelerators") or ())
    if attached != resources.get("GPU", 0):
        yield Finding(f"{field}.resources.GPU", f"{attached} (guestAccelerators)", show(resources.get("GPU")))
    scheduling = node.get("scheduling") or {}
    if attached and (
        not isinstance(scheduling, Mapping) or scheduling.get("onHostMaintenance") != "TERMINATE"
    ):
        yield Finding(
            f"{field}.node_config.scheduling",
            "{onHostMaintenance: TERMINATE} (GCP refuses a GPU without)",
            show(scheduling or None),
        )


def _tpu_node(
    field: str, node: Mapping[str, Any], resources: Mapping[str, int], lock: Lock
) -> Iterator[Finding]:
    where = f"{field}.node_config"
    if "acceleratorType" in node and "acceleratorConfig" in node:
        yield Finding(where, "acceleratorType or acceleratorConfig", "both")
        return
    if "acceleratorType" in node:
        source = f"{where}.acceleratorType"
        got = str(node["acceleratorType"])
        read = lambda: tpu.from_type(got)  # noqa: E731
    else:
        source = f"{where}.acceleratorConfig"
        accelerator = node["acceleratorConfig"]
        got = f"{accelerator.get('type')} {accelerator.get('topology')}"
        generation = str(accelerator.get("type")).lower().replace("v5lite_pod", "v5litepod")
        read = lambda: tpu.from_topology(generation, str(accelerator.get("topology")))  # noqa: E731
    try:
        piece = read()
    except ValueError as error:
        yield Finding(source, str(error), got)
        return
    if piece.generation not in tpu.TENSORFLOW_GENERATIONS:
        yield Finding(source, f"one of {', '.join(tpu.TENSORFLOW_GENERATIONS)} (they run TensorFlow)", got)
    if piece.hosts > 1:
        yield Finding(source, "a slice on one host (a fold takes one TPU VM)", f"{got}: {piece.hosts} hosts")
    if resources.get("TPU") != piece.chips_per_host:
        yield Finding(
            f"{field}.resources.TPU",
            f"{piece.chips_per_host}, the chips of a {piece.accelerator_type} host (fewer: Ray hides the rest)",
            show(resources.get("TPU")),
        )
    version = f"tpu-vm-tf-{lock['tensorflow']}-pjrt"
    if node.get("runtimeVersion") != version:
        yield Finding(
            f"{where}.runtimeVersion", f"{version} (requirements.lock)", show(node.get("runtimeVersion"))
        )
    if (node.get("networkConfig") or {}).get("enableExternalIps") is not False:
        yield Finding(
            f"{where}.networkConfig.enableExternalIps",
            "false (left out, Ray sets true)",
            show((node.get("networkConfig") or {}).get("enableExternalIps")),
        )
