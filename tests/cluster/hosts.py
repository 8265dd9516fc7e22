"""Several hosts on one machine, for trying `ray up` and a lost host for real.

A host is one process tree in its own network, pid, mount, uts and ipc namespaces, with its own /tmp, /run,
/dev/shm and home, a host name, an address and an sshd on port 22. What it writes dies with it, and it dies with
this process, however that ends; the machine's own home, Ray folders and processes are out of its reach. A switch
(a bridge in a namespace of its own) joins the hosts, so that the machine's network gets neither an address nor a
route and several sets of hosts can run at once.

    with make_hosts(["operator", "head", "worker"], shared=[data]) as hosts:
        hosts["operator"].run(["ssh", hosts["head"].address, "true"])
        hosts["worker"].power_off()

Needs root, Linux with overlayfs, and the programs in `REQUIRED_PROGRAMS` (Debian: iproute2 openssh-server
rsync).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIRED_PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "sshd", "ssh-keygen", "rsync")
BOOT_DEADLINE_S = 60
PROJECT = Path(__file__).resolve().parents[2]
HOME = "/root"
ENVIRONMENT = f"{HOME}/setibl-env"
"""Where clusters/install.sh keeps a node's Python environment."""

# Everything is mounted on fresh tmpfs, so it goes away with the namespace. What lies under /tmp and has to
# stay visible (interpreter, data) is set aside before /tmp is covered. $ENV is the test's own environment
# under an overlay: a node may install into it, and nobody else sees that.
BOOT = r"""
set -eu
hostname "$NAME"
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd /run/set-aside /run/over
n=0
for path in $SHARED; do n=$((n+1)); mkdir /run/set-aside/$n; mount --bind "$path" /run/set-aside/$n; done
mount -t tmpfs -o mode=1777 tmpfs /tmp
n=0
for path in $SHARED; do n=$((n+1)); mkdir -p "$path"; mount --bind /run/set-aside/$n "$path"; done
for target in "$HOME" "$ENV"; do
  work=/run/over/$(echo "$target" | tr / -); mkdir -p "$work/upper" "$work/work"
  mount -t overlay overlay -o "lowerdir=$target,upperdir=$work/upper,workdir=$work/work" "$target"
done
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount --bind "$SET/hosts" /etc/hosts
[ -L /etc/resolv.conf ] || mount --bind /dev/null /etc/resolv.conf
rm -rf "$HOME/.ssh" "$HOME/.ray" "$HOME/setibl-env"
ln -s "$ENV" "$HOME/setibl-env"
exec "$SSHD" -D -e -f "$SET/sshd_config"
"""


@dataclass
class Host:
    """One running host; `power_off` ends it as a pulled plug would."""

    name: str
    address: str
    key: str
    """Private key that logs in to every host of the set."""
    process: subprocess.Popen[bytes]

    @property
    def init_pid(self) -> int:
        """Process 1 of the host, as the machine numbers it."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def command(self, argv: Sequence[str], **environment: str) -> list[str]:
        """The command line that runs `argv` inside the host, in a clean environment."""
        inside = {
            "HOME": HOME,
            "USER": "root",
            "LANG": "C.UTF-8",
            "PATH": f"{ENVIRONMENT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            **environment,
        }
        enter = ["nsenter", "-t", str(self.init_pid), "-m", "-u", "-i", "-n", "-p", "--wd=" + os.getcwd()]
        return [*enter, "env", "-i", *(f"{name}={value}" for name, value in inside.items()), *argv]

    def run(
        self, argv: Sequence[str], timeout_s: float = 180, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and capture what it prints (stderr with stdout).

        Raises:
          AssertionError: it failed and `check` is set; the message holds its output.
        """
        done = subprocess.run(
            self.command(argv, **environment),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        )
        assert not check or done.returncode == 0, (
            f"{self.name}: `{shlex.join(argv)}` ended with {done.returncode}:\n{done.stdout}"
        )
        return done

    def processes(self) -> dict[int, str]:
        """Command lines of the processes inside, by the machine's pid; zombies left out."""
        inside = os.readlink(f"/proc/{self.init_pid}/ns/pid")
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # ended since it was listed
                if os.readlink(folder / "ns/pid") == inside:
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    found |= {int(folder.name): line} if line else {}
        return found

    def power_off(self) -> None:
        """Pull the network cable, then the plug: peers see silence, not a closed connection."""
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("link", "set", "eth0", "down", inside=self.process)
        self.process.kill()  # takes process 1 along (unshare --kill-child), and that takes all the others
        self.process.wait(timeout=30)


@contextlib.contextmanager
def make_hosts(names: Sequence[str], shared: Sequence[Path] = ()) -> Iterator[dict[str, Host]]:
    """Boot hosts, and remove every trace of them at the end.

    Args:
      names: one host each, with addresses 10.77.0.2, 10.77.0.3, … in this order. Whoever has
        a host's `key` may log in to any of them as root.
      shared: folders that all hosts see at the same path, as a shared disk.

    Yields:
      the hosts by name.
    """
    # One folder for keys and configuration; under /tmp like anything, so it is shared with the hosts too.
    folder = Path(tempfile.mkdtemp(prefix="setibl-hosts-"))
    addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, start=2)}
    hosts: dict[str, Host] = {}
    switch = _namespaces(["--net"], ["sleep", "infinity"])
    try:
        _write_ssh_files(folder, addresses)
        _ip("link", "add", "bridge0", "type", "bridge", inside=switch)
        _ip("link", "set", "bridge0", "up", inside=switch)
        for number, (name, address) in enumerate(addresses.items()):
            hosts[name] = _boot(name, address, folder, shared)
            _plug_in(hosts[name], switch, number)
        for host in hosts.values():
            _wait_for_ssh(host)
        yield hosts
    finally:
        for host in hosts.values():
            host.power_off()
        switch.kill()
        switch.wait(timeout=30)
        shutil.rmtree(folder)


def why_not() -> str | None:
    """The reason why hosts cannot be made here, or None."""
    if sys.platform != "linux":
        return f"namespaces need Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "namespaces need root"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [program for program in REQUIRED_PROGRAMS if shutil.which(program, path=path) is None]:
        return f"{', '.join(missing)} not installed (Debian: iproute2 openssh-server rsync)"
    probe = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True)
    return None if probe.returncode == 0 else f"namespaces are refused here: {probe.stderr.decode().strip()}"


def _namespaces(kinds: Sequence[str], command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command in namespaces of its own, once they are there; it is killed when this process ends."""
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", *kinds, *command], **options)
    deadline = time.monotonic() + BOOT_DEADLINE_S
    while os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        assert process.poll() is None, f"`{shlex.join(command)[:60]}` ended with {process.returncode}"
        assert time.monotonic() < deadline, f"no namespaces after {BOOT_DEADLINE_S} s"
        time.sleep(0.01)
    return process


def _ip(*arguments: str, inside: subprocess.Popen[bytes]) -> None:
    enter = ["nsenter", "-t", str(inside.pid), "-n"]
    subprocess.run([*enter, "ip", *arguments], check=True, capture_output=True, timeout=30)


def _write_ssh_files(folder: Path, addresses: dict[str, str]) -> None:
    for key in ("host_key", "id_ed25519"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True, timeout=30
        )
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    (folder / "sshd_config").write_text(
        f"Port 22\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/id_ed25519.pub\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "PidFile none\nUseDNS no\nMaxStartups 100\n"
    )


def _boot(name: str, address: str, folder: Path, shared: Sequence[Path]) -> Host:
    seen = (PROJECT, Path(sys.base_prefix), Path(sys.prefix), folder, *shared)
    under_tmp = [path for path in seen if path.is_relative_to("/tmp")]
    kinds = ["--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child"]
    with (folder / f"{name}.log").open("wb") as log:
        process = _namespaces(
            kinds,
            ["bash", "-c", BOOT],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME": HOME,
                "NAME": name,
                "ENV": sys.prefix,
                "SET": str(folder),
                "SHARED": " ".join(str(path) for path in under_tmp),
                "SSHD": shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or "sshd",
            },
        )
    return Host(name, address, str(folder / "id_ed25519"), process)


def _plug_in(host: Host, switch: subprocess.Popen[bytes], number: int) -> None:
    port = f"port{number}"
    veth = ["link", "add", port, "type", "veth", "peer", "eth0", "netns", str(host.process.pid)]
    _ip(*veth, inside=switch)
    _ip("link", "set", port, "master", "bridge0", "up", inside=switch)
    _ip("addr", "add", f"{host.address}/24", "dev", "eth0", inside=host.process)
    _ip("link", "set", "eth0", "up", inside=host.process)
    _ip("link", "set", "lo", "up", inside=host.process)
    # Leads nowhere; Ray finds a node's own address by asking for the way out.
    _ip("route", "add", "default", "via", "10.77.0.1", inside=host.process)


def _wait_for_ssh(host: Host) -> None:
    deadline = time.monotonic() + BOOT_DEADLINE_S
    while not any("sshd: " in line or "sshd -D" in line for line in host.processes().values()):
        assert host.process.poll() is None, f"{host.name} ended while booting, with {host.process.returncode}"
        assert time.monotonic() < deadline, f"{host.name}: no sshd after {BOOT_DEADLINE_S} s"
        time.sleep(0.1)
