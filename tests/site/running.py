"""Sites on this machine, brought up and asked by the real command line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil

from cluster import processes
from cluster import site as sites

ROOT = Path(__file__).parents[2]
HEAD, WORKER = "127.0.0.2", "127.0.0.3"  # loopback too, but for Ray addresses like any other


def gptline(*arguments: str, code: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """One command as a user gives it, of the code in this folder."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments], cwd=code, capture_output=True, text=True, check=False,
        timeout=400, env={**os.environ, "PYTHONPATH": str(code), **environment},
    )  # fmt: skip


def done(*arguments: str, **environment: str) -> str:
    """What a command says that must succeed."""
    result = gptline(*arguments, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def down(site: Path) -> str:
    """Take a site down, and Ray's files away, which lie elsewhere; what `down` said."""
    said = gptline("down", "--site", str(site)).stdout
    temp = json.loads((site / "settings.json").read_text())["temp"]
    shutil.rmtree(temp, ignore_errors=True)
    return said


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def head_options(folder: Path, host: str) -> list[str]:
    """Options of `up` for a head of its own in this folder: free ports, little room."""
    ray, dashboard, client, mlflow = map(str, free_ports(4))
    return [
        "--site", str(folder / "site"), "--host", host, "--work", str(folder / "work"),
        "--registry", str(folder / "registry"), "--ray-port", ray, "--dashboard-port", dashboard,
        "--client-port", client, "--mlflow-port", mlflow, "--mlflow-workers", "1", "--cpus", "1",
    ]  # fmt: skip


def members(folder: Path) -> list[psutil.Process]:
    """Every process of the services of the site in this folder."""
    found = sites.read(folder)
    services = [service for service in (found.ray, found.mlflow) if service]
    return [one for service in services for one in processes.family(service.process, service.mark)]


def still_alive(left: list[psutil.Process]) -> list[str]:
    """Which of these processes are there still, a moment later."""
    return [str(one) for one in psutil.wait_procs(left, timeout=30)[1]]


def secrets_of(folder: Path) -> Mapping[str, str]:
    """Every secret of a site, by what it is."""
    from pipelines import credentials

    found = {name: (folder / name).read_text().strip() for name in ("token", "flask_key")}
    people = {path.name: credentials.read(path).password for path in (folder / "users").iterdir()}
    return found | {"admin": credentials.read(folder / "admin").password} | people
