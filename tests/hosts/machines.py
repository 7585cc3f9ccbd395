"""Hosts on one machine: each with its own network, processes, host name, /tmp and shared memory, and one file system.

The one idea: a host is a set of kernel namespaces that live as long as its process number 1. Killing that process is
pulling the plug: the kernel kills everything on the host at one moment. It reads a pipe of ours and ends with it, so
nothing stays behind whatever becomes of the tests; and because even the switch between the hosts lives in a
namespace, runs on one machine cannot meet, and the machine's own network is not touched.

    with switch() as network:
        head, worker = Host(network, 1), Host(network, 2)
        worker.run("ping", "-c1", head.address)
        worker.cut()          # the cable is pulled out
        worker.plug()
        worker.kill()         # power off
        worker.boot()         # and on again
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Process number 1: children whose parents are gone end without leaving zombies, and the end of the pipe is its own.
_INIT = "import signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print('up', flush=True); sys.stdin.read()"
_TOOLS = ("ip", "unshare", "nsenter", "mount")


def refusal() -> str | None:
    """Why there can be no hosts here; None if there can."""
    if os.geteuid():
        return "network namespaces need root"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not found: install iproute2 and util-linux"
    tried = subprocess.run(
        ["unshare", "-n", "-m", "-u", "-p", "-f", "true"], capture_output=True, text=True, check=False
    )
    return f"this machine allows no namespaces: {tried.stderr.strip()}" if tried.returncode else None


def _begun(*namespaces: str) -> subprocess.Popen[str]:
    """A process number 1 in new namespaces, up."""
    command = ["unshare", *namespaces, "--pid", "--fork", "--kill-child=KILL", sys.executable, "-S", "-c", _INIT]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "up\n"
    return process


def _inside(process: subprocess.Popen[str], *namespaces: str) -> list[str]:
    """The command's beginning that runs the rest in the namespaces of `process`."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return ["nsenter", "-t", child, *namespaces, "--"]


class Switch:
    """What the hosts are plugged into: a bridge in a network namespace of its own."""

    def __init__(self) -> None:
        self.init = _begun("--net")
        self.plugged: list[Host] = []
        self.ip("link", "add", "br0", "type", "bridge")
        self.ip("link", "set", "br0", "up")

    def ip(self, *arguments: str) -> None:
        """Run `ip` inside."""
        subprocess.run([*_inside(self.init, "-n"), "ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def switch() -> Iterator[Switch]:
    """A new network; at its end it is gone with everything that was plugged in and still runs."""
    made = Switch()
    try:
        yield made
    finally:
        for host in made.plugged:
            host.kill()
        made.init.kill()
        made.init.wait()


class Host:
    """Host `number` on a network, switched on.

    `hidden` is a folder that it has not mounted: it sees an empty one. Of the folder `stale` it sees a copy as old as the host.
    """

    def __init__(self, network: Switch, number: int, hidden: Path | None = None, stale: Path | None = None) -> None:
        self._network, self._hidden, self._stale = network, hidden, stale
        self.name, self.address = f"gp{number}", f"10.77.0.{number}"
        self._port = f"port{number}"
        network.plugged.append(self)
        self.boot()

    def boot(self) -> None:
        """Switch the host on: plug it in and give it a name, a /tmp/ray and shared memory of its own."""
        self._init = _begun("--net", "--mount", "--uts", "--ipc", "--mount-proc")
        outer, inner = self._port, "eth0"
        pid = _inside(self._init)[2]
        self._network.ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", f"/proc/{pid}/ns/net")
        self._network.ip("link", "set", outer, "master", "br0", "up")
        self.run("hostname", self.name)
        for device, setting in (("lo", "127.0.0.1/8"), (inner, f"{self.address}/24")):
            if device != "lo":
                self.run("ip", "address", "add", setting, "dev", device)
            self.run("ip", "link", "set", device, "up")
        Path("/tmp/ray").mkdir(exist_ok=True)
        for own in ("/dev/shm", "/tmp/ray", *([str(self._hidden)] if self._hidden else [])):
            self.run("mount", "-t", "tmpfs", self.name, own)
        if self._stale:
            self.run("sh", "-c", 'cp -a "$0" /tmp/ray/stale && mount --bind /tmp/ray/stale "$0"', str(self._stale))

    @property
    def prefix(self) -> list[str]:
        """The beginning of a command that runs on this host."""
        return _inside(self._init, "-n", "-m", "-u", "-i", "-p")

    def run(self, *command: str, **how: Any) -> str:
        """Run a command on the host and wait for it; what it printed."""
        done = subprocess.run([*self.prefix, *command], capture_output=True, text=True, check=False, **how)
        assert done.returncode == 0, f"{' '.join(command)} on {self.name}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *command: str, log: Path, **how: Any) -> subprocess.Popen[bytes]:
        """Start a command on the host, its output at the end of `log`."""
        with open(log, "ab") as file:
            return subprocess.Popen(
                [*self.prefix, *command], stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, **how
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL everything on the host at one moment."""
        self._init.kill()
        self._init.wait()

    def cut(self) -> None:
        """Pull the cable out: not a packet gets through, and nobody is told."""
        self._network.ip("link", "set", self._port, "down")

    def plug(self) -> None:
        """Plug the cable in again."""
        self._network.ip("link", "set", self._port, "up")
