"""Bring a site up, add this node to one, and take it down again.

The one idea: each of these says what should be so, does what is missing, and waits until it is so; giving the command
again does nothing more.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster import control_store, head_facts, processes, ray_node
from cluster import site as sites
from cluster.site import MlflowService, RayService
from pipelines import mlflow_server, site_files, site_health, site_services
from pipelines.config import ConfigError
from pipelines.site_files import SiteSettings

_PATIENCE = 180.0  # seconds for a service to answer: MLflow's first start makes its database
_POLL = 0.25


class NotUp(ConnectionError):
    """A service did not come up; the message has the end of its log."""


def up(site: Path, given: dict[str, Any], database: str | None, start: bool = True) -> Iterator[str]:
    """Make this node a head with its services; yields what was done. ConfigError, NotUp."""
    asked = _settled(site, {**given, "role": "head"}, database=database)
    site_files.ensure_secrets(site, asked)
    if asked.work:
        Path(asked.work).mkdir(parents=True, exist_ok=True)
    if not start:
        yield f"the site {site} is prepared; nothing was started"
        return
    wanted = ["head", *(["mlflow"] if asked.mlflow else [])]
    begun = {name: _begin(site, asked, name) for name in wanted}
    for name in wanted:
        yield _await(site, name, begun[name])


def join(site: Path, given: dict[str, Any], token: Path | None, start: bool = True) -> Iterator[str]:
    """Make this node a worker of a head; yields what was done. ConfigError, NotUp, ConnectionError say why not."""
    asked = _settled(site, {**given, "role": "worker"}, token=token)
    if not (site / "token").exists():
        raise ConfigError(
            f"there is no token in {site}/token; next: copy the file site/token from the head {asked.head} there "
            "(scp, mode 0600), or name a copy of it: TOKEN=file"
        )
    site_files.ensure_secrets(site, asked)
    _fits(site, asked)
    if not start:
        yield f"this node fits the head {asked.head}; the site {site} is prepared, nothing was started"
        return
    yield _await(site, "worker", _begin(site, asked, "worker"))


def own_address(head: str) -> str:
    """This node's address on the way to the head."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
        try:
            probe.connect((head, 9))
        except OSError as error:
            raise ConfigError(f"HEAD={head}: this node finds no way to it ({error.strerror})") from error
        return str(probe.getsockname()[0])


def _fits(site: Path, asked: SiteSettings) -> None:
    end = time.monotonic() + 20  # a head that has just come up has not said yet what it is
    while True:
        try:
            return site_services.check_head(site, asked)
        except head_facts.TokenRefused as error:
            raise ConfigError(
                f"{error}\nnext: copy the head's site/token to {site}/token; it is the same on all nodes of a cluster"
            ) from error
        except head_facts.HeadAway as error:
            if time.monotonic() > end:
                raise NotUp(
                    f"{error}\nnext: is it up (`make status` there), at another address than loopback "
                    f"(`make up HOST=its-address`), and is its port open to this node?"
                ) from error
            time.sleep(1)


def _settled(site: Path, given: dict[str, Any], database: str | None = None, token: Path | None = None) -> SiteSettings:
    """The settings asked for now, with what is given beside them in its files. ConfigError if services run under others."""
    before, running = site_files.settings(site), _running(sites.read(site))
    if running:
        changed = [name for name, value in given.items() if value is not None and getattr(before, name) != value]
        if database and mlflow_server.is_another_database(site, before, database):
            changed.append("database")
        if token is not None and site_files.is_another_token(site, token):
            changed.append("token")
        if changed:
            names = ", ".join(changed)
            raise ConfigError(f"site {site} is up with another {names}; next: make down SITE={site}, and again")
        return before
    mlflow_server.keep_database(site, database)
    asked = site_files.settle(site, given)
    if token is not None:
        site_files.take_token(site, token)
    return asked


def _running(site: sites.Site) -> dict[str, RayService | MlflowService]:
    found = {"ray": site.ray, "mlflow": site.mlflow}
    return {name: service for name, service in found.items() if service and service.process.alive()}


def _begin(site: Path, asked: SiteSettings, name: str) -> subprocess.Popen[bytes] | None:
    """Start the supervisor of a service, apart from this process; None if it runs already. ConfigError if a port is taken."""
    known = sites.read(site)
    recorded = getattr(known, site_services.RECORDED[name])
    if recorded is not None:
        if recorded.process.alive():
            return None
        processes.end(recorded.process, recorded.mark, 0)  # what its supervisor left when it was killed
    ports = {
        "head": [("RAY_PORT", asked.host, asked.ray_port), ("DASHBOARD_PORT", ray_node.LOOPBACK, asked.dashboard_port)],
        "mlflow": [("MLFLOW_PORT", asked.host, asked.mlflow_port)],
    }
    for variable, host, port in ports.get(name, []):
        if control_store.listens(f"{host}:{port}", timeout=1.0):
            raise ConfigError(
                f"somebody else listens at {host}:{port}, which is the {name}'s; next: end it, or choose another port: "
                f"{variable}={port + 1}"
            )
    command = [sys.executable, "-m", "pipelines", "serve", name, "--site", str(site)]
    return processes.start_apart(command, site / "logs" / f"{name}.log", site_files.environment())


def _await(site: Path, name: str, started: subprocess.Popen[bytes] | None) -> str:
    """Wait until a service answers. NotUp with the end of its log if it does not, or if it had to be ended: it was open."""
    log, began = site / "logs" / f"{name}.log", time.monotonic()
    while True:
        service = getattr(sites.read(site), site_services.RECORDED[name])
        try:
            answers = service is not None and service.process.alive() and _answers(name)(service)
        except site_health.Open as error:
            processes.end(service.process, service.mark, _GRACE)
            site_files.record_service(site, site_services.RECORDED[name], None)
            raise NotUp(
                f"the {name} was ended, for it was open: {error}; next: look into {log} and its settings"
            ) from error
        if answers:
            seconds = f"came up in {time.monotonic() - began:.0f} s" if started else "was up"
            return f"{name:<7} {_where(name, service)} {seconds}; log {log}"
        ended = started is not None and started.poll() is not None
        if ended or time.monotonic() - began > _PATIENCE:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else "(no log)"
            what = "ended" if ended else f"does not answer after {_PATIENCE:.0f} s"
            raise NotUp(f"the {name} {what}; the end of {log}:\n{tail}")
        time.sleep(_POLL)


def _answers(name: str) -> Callable[[Any], bool]:
    answers: dict[str, Callable[[Any], bool]] = {
        "head": site_health.head_answers, "mlflow": site_health.mlflow_answers, "worker": _worker_answers
    }  # fmt: skip
    return answers[name]


def _worker_answers(ray: RayService) -> bool:
    """Whether this node's raylet runs and the head counts it among its nodes."""
    if not processes.has_one_called(ray.process, ray.mark, "raylet"):
        return False
    try:
        return ray.node in head_facts.nodes(ray.address, ray_node.environment(ray.token_file, ray.node))
    except ConnectionError:
        return False


def _where(name: str, service: Any) -> str:
    if name == "mlflow":
        return f"at {service.address}"
    return f"at {service.address}, dashboard {service.dashboard}" if name == "head" else f"joined {service.address}"


def down(site: Path) -> Iterator[str]:
    """End what was started here, and all that it started; yields what was ended."""
    known = sites.read(site)
    found: dict[str, RayService | MlflowService | None] = {"mlflow": known.mlflow, "ray": known.ray}
    services = {name: service for name, service in found.items() if service is not None}
    had = {name: len(processes.family(service.process, service.mark)) for name, service in services.items()}
    for service in services.values():
        processes.tell(service.process)  # all of them first: they end at the same time
    for name, service in services.items():
        processes.end(service.process, service.mark, _GRACE)
        site_files.record_service(site, name, None)
        yield f"{name}: {had[name]} processes ended"


_GRACE = 60.0  # seconds for a supervisor to end its service in
