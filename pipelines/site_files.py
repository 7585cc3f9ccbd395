"""The files of a site: what was asked of it, its secrets, and what runs there.

    settings.json   what `up` or `join` was asked for; the next one need not be told again
    token           Ray's, the same on every node of the cluster
    admin           user and password of the MLflow server's administrator, as MLflow writes credentials
    basic_auth.ini  the MLflow server's own settings of authentication
    flask_key       what the MLflow server signs its forms with
    database        the address of MLflow's database, if it is not the registry folder's own
    users/NAME      user and password of a team that reads the registry
    services.json   what runs, and where (see `cluster/site.py`): no secret
    logs/           of the services; ray/ (or `temp`): Ray's own

The one idea: the folder is open to its owner only, and so is every file in it that holds a secret; these are made once,
at random, and handed on as paths.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cluster import site as sites
from cluster.ray_node import LOOPBACK, RayNode
from model import durable
from model.config import Config
from pipelines import credentials
from pipelines.config import ConfigError
from pipelines.credentials import Credentials
from pipelines.settings import validated

SETTINGS = "settings.json"


class SiteSettings(Config):
    """What a node was asked to be. Kept in the site's folder, and holds no secret."""

    node: str = Field("", description="name of the host whose site this is")
    role: Literal["head", "worker"] = Field("head", description="what this node is")
    host: str = Field(
        LOOPBACK, description="address at which this node's services are reached; loopback: not from outside"
    )
    head: str | None = Field(None, description="host:port of the head to join; none on the head")
    ray_port: int = Field(6379, ge=1024, le=65535, description="of the head's Ray")
    dashboard_port: int = Field(
        8265, ge=1024, le=65535, description="of Ray's dashboard and Jobs API, always on loopback"
    )
    client_port: int = Field(10001, ge=1024, le=65535, description="of Ray's client server, which we do not use")
    worker_ports: str = Field(
        "0-0", pattern=r"^\d+-\d+$", description="low-high: ports of Ray's workers, for a firewall; 0-0: any"
    )
    cpus: int | None = Field(None, ge=0, description="CPUs that this node gives; all if none")
    gpus: int | None = Field(None, ge=0, description="GPUs that this node gives; all if none")
    temp: str = Field("", description="folder for Ray's own files; short, for it holds sockets")
    mlflow: bool = Field(True, description="whether the head runs an MLflow server")
    mlflow_port: int = Field(5000, ge=1024, le=65535, description="of the MLflow server")
    mlflow_workers: int = Field(2, ge=1, description="processes of the MLflow server that answer")
    registry: str = Field("registry", description="folder of the MLflow store: its sqlite database, its artifacts")
    artifacts: str | None = Field(None, description="folder or bucket for artifacts, if not the registry folder")
    autoscaling: str | None = Field(None, description="file of Ray's cluster launcher, if that one starts the workers")
    work: str | None = Field(None, description="shared work directory, which every node that joins must see")


def folder(site: str | Path) -> Path:
    """The absolute folder of a site, made if need be, open to its owner only."""
    path = Path(site).expanduser().absolute()
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    for below in (path / "logs", path / "users"):
        below.mkdir(exist_ok=True, mode=0o700)
    return path


def assert_ours(site: Path) -> None:
    """ConfigError if the site is another host's: on a shared file system each node needs a folder of its own."""
    theirs = settings(site).node
    if theirs and theirs != socket.gethostname():
        raise ConfigError(
            f"the site {site} is that of host {theirs}, and this is {socket.gethostname()}; next: give each node a folder "
            f"of its own, best on a local disk: SITE=/var/lib/gptline (or, if the host was renamed, remove {site / SETTINGS})"
        )


def settings(site: Path) -> SiteSettings:
    """What the site was asked for before; the defaults if nothing was."""
    try:
        found = durable.read_json(site / SETTINGS)
    except FileNotFoundError:
        found = {}
    read: SiteSettings = validated(SiteSettings, found, str(site / SETTINGS))
    return read


def settle(site: Path, given: dict[str, Any]) -> SiteSettings:
    """What is asked for now: what was `given`, else what was asked before, else the defaults. ConfigError.

    A head that was a worker before begins with the defaults: its address then was open to others.
    """
    before = settings(site)
    before = before if before.role == given["role"] else SiteSettings()
    asked = {**before.model_dump(), **{name: value for name, value in given.items() if value is not None}}
    asked["node"], asked["host"] = socket.gethostname(), address(asked["host"])
    # Sockets have short names: Ray's folder is not below the site's, whose path may be long.
    asked["temp"] = asked["temp"] or f"/tmp/gptline-{os.getuid()}-{hashlib.sha256(str(site).encode()).hexdigest()[:8]}"
    asked["registry"] = str(Path(asked["registry"]).absolute())
    made: SiteSettings = validated(SiteSettings, asked, "the site's settings")
    durable.write_json(site / SETTINGS, made.model_dump())
    return made


def address(host: str) -> str:
    """The address that a host's name means: Ray takes no names. ConfigError if it means none."""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise ConfigError(f"HOST={host}: this name means no address here ({error.strerror or error})") from error


def ensure_secrets(site: Path, asked: SiteSettings) -> None:
    """Make what secrets are missing. The token is the head's to make: a worker is given it. ConfigError if others can read one."""
    if asked.role == "head":
        _once(site / "token", secrets.token_hex(32))
        if asked.mlflow:
            _once(site / "flask_key", secrets.token_hex(32))
            if not (site / "admin").exists():
                credentials.write(site / "admin", Credentials("admin", secrets.token_urlsafe(24)))
    for name in ("token", "flask_key", "admin", "database", "basic_auth.ini"):
        if (site / name).exists():
            credentials.assert_private(site / name)


def take_token(site: Path, file: Path) -> None:
    """Keep a copy of the head's token, in place of an older one. ConfigError if others can read the file."""
    credentials.assert_private(file)
    durable.write_private(site / "token", file.read_bytes().strip())


def is_another_token(site: Path, file: Path) -> bool:
    """Whether a file holds another token than the site. ConfigError if others can read one of them."""
    for one in (file, site / "token"):
        credentials.assert_private(one)
    return file.read_bytes().strip() != (site / "token").read_bytes().strip()


def _once(path: Path, secret: str) -> None:
    if not path.exists():
        durable.write_private(path, secret.encode())


def ray_node(site: Path, asked: SiteSettings) -> RayNode:
    """The Ray of this node. Its folder lies in one that is open to its owner only, since Ray opens its own to everybody."""
    return RayNode(
        asked.host, asked.ray_port, asked.head, asked.dashboard_port, asked.client_port, f"{asked.temp}/ray",
        str(site / "token"), asked.cpus, asked.gpus, asked.worker_ports, asked.autoscaling,
    )  # fmt: skip


def record_service(site: Path, name: str, service: sites.RayService | sites.MlflowService | None) -> None:
    """Say in services.json that a service runs, or, with None, that it does not any more."""
    with _locked(site):
        known: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            known = durable.read_json(site / sites.SERVICES)
        known.pop(name, None)
        durable.write_json(site / sites.SERVICES, known | ({name: asdict(service)} if service else {}))


@contextlib.contextmanager
def _locked(site: Path) -> Iterator[None]:
    from filelock import FileLock

    with FileLock(site / ".services.lock", mode=0o600):
        yield


def the_only(site: Path, service: str) -> Any:
    """A lock that the supervisor of a service holds while it lives. ConfigError if another one does."""
    from filelock import FileLock, Timeout

    lock = FileLock(site / f".{service}.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"the {service} of site {site} runs already; `make down SITE={site}` ends it") from None
    return lock


# What a service, and the jobs that it starts, must not inherit from whoever started it: secrets, and make's own
# variables, which repeat what was given to make.
_OURS = ("MLFLOW_DB", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "RAY_AUTH_TOKEN",
         "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "RAY_ADDRESS")  # fmt: skip


def environment() -> dict[str, str]:
    """This process's environment without secrets, for what is started."""
    return {name: value for name, value in os.environ.items() if name not in _OURS}
