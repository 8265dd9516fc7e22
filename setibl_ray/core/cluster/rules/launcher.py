"""Rules for the files of `ray up`: Ray's schema, TPU and GPU nodes of GCP, and access control."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from setibl_ray.core.cluster.rules import At, Finding, Lock, image, pinned_versions, tpu

TOKEN_PATH = "~/.ray/auth_token"
_DASHBOARD_HOST = re.compile(r"--dashboard-host[=\s]+(\S+)")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BROAD_SCOPES = ("cloud-platform", "compute", "compute.full_control")


def findings(config: Mapping[str, Any], lock: Lock) -> Iterator[Finding]:
    """Everything that is wrong in one file."""
    prepared, refusal = _prepared(At(config))
    if refusal is not None:
        yield refusal
        return
    provider = config["provider"].get("type")
    yield from _access(prepared)
    yield from _versions(At(config), lock)
    if provider == "local":
        head = prepared["head_start_ray_commands"]
        if "RAY_enable_autoscaler_v2=0" not in _text(head):
            reason = "(version 2 never starts workers of this provider)"
            yield head.wrong(f"RAY_enable_autoscaler_v2=0 {reason}", "the default")
    if provider == "gcp":
        yield from _gcp(prepared, lock)


def _prepared(config: At) -> tuple[At, Finding | None]:
    """The config as `ray up` completes it with its defaults, or why Ray would refuse it."""
    import click
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    if config["provider"]["type"].value is None:
        return config, config["provider"]["type"].wrong("gcp, local, aws, … (or a ray.io/v1 object)")
    try:
        # Ray prints remarks here, about containers even if there are none; real errors are raised.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            prepared = prepare_config(dict(config.value))
        validate_config(prepared)
    except jsonschema.ValidationError as error:
        at = At(error.instance, ".".join(str(part) for part in error.absolute_path) or "(top level)")
        return config, at.wrong(f"what Ray's schema allows: {error.message[:200]}", str(error.instance)[:80])
    except (click.ClickException, ValueError, RuntimeError, AssertionError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}"[:200]
        return config, Finding("(Ray's own check)", "a file that Ray accepts", said)
    return At(prepared), None


def _text(commands: At) -> str:
    return "\n".join(map(str, commands.value)) if isinstance(commands.value, list) else ""


def _commands(config: At) -> list[At]:
    """Every list of commands as one text."""
    lists = [config[field] for field in config.value if field.endswith("commands")]
    return [At(_text(commands), commands.field) for commands in lists]


def _access(config: At) -> Iterator[Finding]:
    """The dashboard, the token, and secrets in plain text."""
    head, workers, setup = (
        config[f"{name}_commands"] for name in ("head_start_ray", "worker_start_ray", "setup")
    )
    for host in _DASHBOARD_HOST.findall(_text(head)):
        if host not in _LOOPBACK:
            yield head.wrong("--dashboard-host=127.0.0.1 (open, it runs anyone's code)", host)
    if "--autoscaling-config" not in _text(head):
        yield head.wrong("--autoscaling-config=~/ray_bootstrap_config.yaml", "nothing")
    for commands in (head, workers):
        if "RAY_AUTH_MODE=token" not in _text(commands):
            yield commands.wrong("RAY_AUTH_MODE=token before `ray start`", "no token authentication")
    if TOKEN_PATH not in (config["file_mounts"].value or {}):
        yield config["file_mounts"].wrong(f"{TOKEN_PATH}: {TOKEN_PATH}", "no token on the nodes")
    if not re.search(rf"chmod 0?600 {re.escape(TOKEN_PATH)}", _text(setup)):
        yield setup.wrong(f"chmod 600 {TOKEN_PATH}", "a token that others on the node may read")
    if "RAY_AUTH_MODE=token" not in _text(setup):
        yield setup.wrong("RAY_AUTH_MODE=token for login shells", "`ray stop` and `ray exec` without it")
    for commands in _commands(config):
        if "RAY_AUTH_TOKEN=" in commands.value:
            yield commands.wrong("the token in a file only", "RAY_AUTH_TOKEN=… in a command line")


def _versions(config: At, lock: Lock) -> Iterator[Finding]:
    """Installed versions must be those of the lock."""
    commands = _commands(config)
    for text in commands:
        yield from pinned_versions(text, lock)
        for line in text.value.splitlines():
            yield from _unpinned(At(line, text.field))
    if not any(word in text.value for text in commands for word in ("install.sh", "requirements")):
        expected = "clusters/install.sh, or pip with a lock"
        yield config["setup_commands"].wrong(expected, "no locked install")
    for field in ("image", "head_image", "worker_image"):
        name = config["docker"][field]
        if name.value is not None:
            yield from image(name, lock)


def _unpinned(line: At) -> Iterator[Finding]:
    _, found, arguments = line.value.partition("pip install ")
    if not found:
        return
    try:
        words = shlex.split(re.split(r"[;&|]", arguments)[0], comments=True)
    except ValueError:  # an unclosed quote: the shell will report it
        return
    skip = False
    for word in words:
        if skip or word.startswith("-"):
            skip = word in ("-r", "--requirement", "-c", "--constraint", "-e", "--editable", "-f")
        elif "==" not in word and not re.search(r"[/~$]|\.whl$|^\.$", word):
            yield line.wrong(f"{word}==VERSION, or a line in the lock", f"pip install {word}")


def _gcp(config: At, lock: Lock) -> Iterator[Finding]:
    yield from config["provider"]["use_internal_ips"].must_be(True)
    for name in config["available_node_types"].value:
        node_type = config["available_node_types"][name]
        node, resources = node_type["node_config"], node_type["resources"]
        if "machineType" in node.value:
            yield from _gpu_node(node, resources)
            # Without an interface in the file, Ray gives the node a public address.
            interfaces = node["networkInterfaces"]
            for interface in At(interfaces.value or [{}], interfaces.field):
                if "subnetwork" not in interface.value or "accessConfigs" in interface.value:
                    yield interface.wrong("a subnetwork and no accessConfigs", "a public address")
        elif "acceleratorType" in node.value or "acceleratorConfig" in node.value:
            yield from _tpu_node(node, resources, lock)
        else:
            yield node.wrong("machineType, or a TPU's acceleratorType", ", ".join(node.value))
        if name != config["head_node_type"].value:
            yield from _scopes(node["serviceAccounts"])


def _scopes(accounts: At) -> Iterator[Finding]:
    if not accounts.value:
        yield accounts.wrong("an account of its own with narrow scopes", "the default")
    for account in accounts:
        for scope in account["scopes"]:
            if scope.value.rpartition("/")[2] in _BROAD_SCOPES:
                yield accounts.wrong("scopes for storage and logs", scope.value)


def _gpu_node(node: At, resources: At) -> Iterator[Finding]:
    attached = sum(int(gpu["acceleratorCount"].value or 0) for gpu in node["guestAccelerators"])
    if attached != (resources["GPU"].value or 0):
        yield resources["GPU"].wrong(f"{attached} (guestAccelerators)")
    if attached and node["scheduling"]["onHostMaintenance"].value != "TERMINATE":
        yield node["scheduling"].wrong("{onHostMaintenance: TERMINATE} (GCP refuses a GPU without)")


def _tpu_node(node: At, resources: At, lock: Lock) -> Iterator[Finding]:
    named, shaped = node["acceleratorType"], node["acceleratorConfig"]
    if named.value is not None and shaped.value is not None:
        yield node.wrong("acceleratorType or acceleratorConfig", "both")
        return
    try:
        if named.value is not None:
            source = named
            piece = tpu.from_type(str(named.value))
        else:
            generation, topology = (str(shaped[name].value) for name in ("type", "topology"))
            source = At(f"{generation} {topology}", shaped.field)
            piece = tpu.from_topology(generation.lower().replace("v5lite_pod", "v5litepod"), topology)
    except ValueError as error:
        yield source.wrong(str(error))
        return
    if piece.generation not in tpu.TENSORFLOW_GENERATIONS:
        yield source.wrong(f"one of {', '.join(tpu.TENSORFLOW_GENERATIONS)} (they run TensorFlow)")
    if piece.hosts > 1:
        hosts = f"{source.value}: {piece.hosts} hosts"
        yield source.wrong("a slice on one host (a fold takes one TPU VM)", hosts)
    chips = f", the chips of a {piece.accelerator_type} host (fewer: Ray hides the rest)"
    if resources["TPU"].value != piece.chips_per_host:
        yield resources["TPU"].wrong(f"{piece.chips_per_host}{chips}")
    yield from node["runtimeVersion"].must_be(f"tpu-vm-tf-{lock['tensorflow']}-pjrt", "(the lock)")
    yield from node["networkConfig"]["enableExternalIps"].must_be(False, "(left out, Ray sets true)")
