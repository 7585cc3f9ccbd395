"""The commands of a site: up, join, down, serve, user.

The one idea: what is given is kept in the site's folder, so the next command needs nothing but the folder; and no
command takes a secret on its command line, where everybody on the machine could read it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import site as sites
from pipelines.config import ConfigError
from pipelines.execution import Execution
from pipelines.options import out

SiteFolder = Annotated[str, typer.Option("--site", help="folder of this node's site: settings, secrets, logs")]
Host = Annotated[str | None, typer.Option(help="address to listen at; 127.0.0.1 if never given: not from outside")]
Cpus = Annotated[int | None, typer.Option(help="CPUs that this node gives; all if none")]
Gpus = Annotated[int | None, typer.Option(help="GPUs that this node gives; all if none")]
Temp = Annotated[str | None, typer.Option(help="folder for Ray's own files; its path must be short")]
Ports = Annotated[str | None, typer.Option(help="low-high: ports of Ray's workers, for a firewall; any if none")]
Prepare = Annotated[bool, typer.Option("--prepare", help="write the site's files and start nothing: systemd will")]


def up(
    site: SiteFolder = "site",
    host: Host = None,
    work: Annotated[str | None, typer.Option(help="shared work directory that every joining node must see")] = None,
    registry: Annotated[str | None, typer.Option(help="folder of the MLflow store")] = None,
    artifacts: Annotated[str | None, typer.Option(help="folder or bucket for MLflow's artifacts")] = None,
    ray_port: Annotated[int | None, typer.Option(help="of Ray's head")] = None,
    dashboard_port: Annotated[int | None, typer.Option(help="of Ray's dashboard, on loopback")] = None,
    client_port: Annotated[int | None, typer.Option(help="of Ray's client server")] = None,
    mlflow_port: Annotated[int | None, typer.Option(help="of the MLflow server")] = None,
    mlflow_workers: Annotated[int | None, typer.Option(help="processes of the MLflow server that answer")] = None,
    mlflow: Annotated[bool | None, typer.Option(help="run an MLflow server, too")] = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    temp: Temp = None,
    worker_ports: Ports = None,
    autoscaling: Annotated[
        str | None,
        typer.Option(help="file of Ray's cluster launcher (ray_bootstrap_config.yaml), which starts workers"),
    ] = None,
    prepare: Prepare = False,
) -> None:
    """Start this node's Ray head and MLflow server, and wait until they answer. MLflow's database: MLFLOW_DB, in the environment."""
    from pipelines import site_files, site_life

    folder = _own(site)
    given = {
        "host": host and site_files.address(host), "registry": _absolute(registry), "artifacts": _absolute(artifacts), "ray_port": ray_port, "cpus": cpus,
        "dashboard_port": dashboard_port, "client_port": client_port, "mlflow_port": mlflow_port, "gpus": gpus, "temp": temp,
        "mlflow_workers": mlflow_workers, "mlflow": mlflow, "worker_ports": worker_ports, "work": _absolute(work),
        "autoscaling": _absolute(autoscaling),
    }  # fmt: skip
    for line in site_life.up(folder, given, os.environ.get("MLFLOW_DB"), start=not prepare):
        out.print(line, markup=False)
    if prepare:
        out.print("next: the units in cluster/systemd start its services (docs/operations.md)", markup=False)
        return
    asked = site_files.settings(folder)
    if asked.mlflow:
        out.print(f"MLflow's administrator: {folder / 'admin'} (user and password, mode 0600)", markup=False)
    out.print(f"next: make run SITE={site}" + (f" WORK={asked.work}" if asked.work else ""), markup=False)
    if asked.host != "127.0.0.1":
        out.print(
            f"on a worker: copy {folder / 'token'} to its site/token, then make join HEAD={asked.host}:{asked.ray_port}",
            markup=False,
        )


def join(
    head: Annotated[str, typer.Argument(help="host or host:port of the head")],
    site: SiteFolder = "site",
    host: Host = None,
    token: Annotated[
        str | None, typer.Option(help="file with the head's token, if the site's folder has none or an old one")
    ] = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    temp: Temp = None,
    worker_ports: Ports = None,
    prepare: Prepare = False,
) -> None:
    """Make this node a worker of the head, if it fits: same versions, same token, same work directory."""
    from pipelines import site_files, site_life

    folder = _own(site)
    name, _, port = head.partition(":")
    given = {
        "head": f"{name}:{port or 6379}", "host": site_files.address(host) if host else site_life.own_address(name), "cpus": cpus, "gpus": gpus,
        "temp": temp, "worker_ports": worker_ports,
    }  # fmt: skip
    if given["host"] == "127.0.0.1":
        raise ConfigError(
            f"HEAD={head} is on loopback, and can be reached from nowhere else; next: make up HOST=address on the head, "
            "then make join HEAD=address"
        )
    for line in site_life.join(folder, given, Path(token) if token else None, start=not prepare):
        out.print(line, markup=False)


def down(site: SiteFolder = "site") -> None:
    """End what `up` or `join` started on this node, and nothing else."""
    from pipelines import site_life

    ended = list(site_life.down(_own(site)))
    for line in ended or [f"nothing of site {site} runs"]:
        out.print(line, markup=False)


def serve(service: Annotated[str, typer.Argument(help="head, worker or mlflow")], site: SiteFolder = "site") -> None:
    """Run one service of a prepared site in the foreground, for systemd: what `up` and `join` start."""
    from pipelines import site_services

    if service not in site_services.SERVICES:
        raise ConfigError(f"serve {service}: no such service; there are {', '.join(site_services.SERVICES)}")
    site_services.serve(_own(site), service)


def user(
    name: Annotated[str, typer.Argument(help="of the team")],
    site: SiteFolder = "site",
    remove: Annotated[bool, typer.Option(help="take the user's access away")] = False,
) -> None:
    """Make a user who can read the registry and change nothing; prints the path of its credentials."""
    from pipelines import credentials, mlflow_server, site_files

    folder = site_files.folder(site)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name) or name == "admin":
        raise ConfigError(f"user {name!r}: letters, digits, '-', '_' and '.' make a name, and admin is taken")
    found = sites.read(folder).mlflow
    if found is None or not found.process.alive():
        raise ConfigError(f"no MLflow server of site {folder} runs here; next: make up SITE={site}, on the head")
    file, admin = folder / "users" / name, credentials.read(Path(found.credentials))
    if remove:
        mlflow_server.remove_user(found.address, admin, name, file)
        out.print(f"user {name} is removed", markup=False)
        return
    made = mlflow_server.add_reader(found.address, admin, name, file)
    out.print(
        f"user {name} {'can' if made else 'could already'} read {found.address}; credentials: {file}", markup=False
    )
    out.print(
        "next: hand the file over safely; it serves as ~/.mlflow/credentials, and as execution.credentials",
        markup=False,
    )


def _own(site: str) -> Path:
    """The folder of this node's site. ConfigError if it is another node's."""
    from pipelines import site_files

    folder = site_files.folder(site)
    site_files.assert_ours(folder)
    return folder


def store_folder(execution: Execution) -> str:
    """The registry folder of the execution, or that of its site, whose server keeps its database there. ConfigError."""
    from pipelines import site_files

    if not execution.site or not execution.registry.startswith("http"):
        return execution.registry
    if (Path(execution.site) / "database").exists():
        raise ConfigError(
            f"the database of site {execution.site} is a PostgreSQL server's: back it up and check it with its own tools "
            "(pg_dump), together with the folder or bucket of artifacts"
        )
    return site_files.settings(Path(execution.site)).registry


def state(execution: Execution) -> dict[str, Any] | None:
    """How the site stands that the execution names, or the one in `site`; None if nothing was ever started there."""
    from pipelines import site_status

    folder = Path(execution.site or "site").absolute()
    return site_status.describe(folder, Path(execution.work)) if (folder / sites.SERVICES).exists() else None


def _absolute(path: str | None) -> str | None:
    return str(Path(path).expanduser().absolute()) if path and "://" not in path else path
