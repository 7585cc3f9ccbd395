"""The services of a site in the foreground: `gptline serve head|worker|mlflow`, under `up`, `join` or systemd.

The one idea: whoever starts a service starts this same supervisor. It says in services.json that it runs, keeps one
command running (see `cluster/supervise.py`), and takes its name off when it is told to end.
"""

from __future__ import annotations

import functools
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster import head_facts, processes, ray_node, shared_folder, supervise
from cluster.site import MlflowService, RayService
from model import durable
from pipelines import mlflow_server, served_store, site_files, versions
from pipelines.config import ConfigError
from pipelines.site_files import SiteSettings
from pipelines.stamps import renew, stamp
from pipelines.store import DATABASE

SERVICES = ("head", "worker", "mlflow")
RECORDED = {"head": "ray", "worker": "ray", "mlflow": "mlflow"}  # under which name services.json has it
_SESSIONS = 3  # of Ray, whose logs are kept
_RENEWED = 3600.0  # seconds between two renewals of the head's stamp, which any run removes when it is a month old
log = logging.getLogger(__name__)


class Refused(ConfigError):
    """This node cannot join the cluster as it is. The message says what differs, with both values."""


def serve(site: Path, service: str) -> None:
    """Run one service of the site until SIGTERM. Refused where a worker does not fit its head any more."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    asked = site_files.settings(site)
    lock = site_files.the_only(site, service)
    run: Callable[[Path, SiteSettings, str], None] = {"head": _head, "worker": _worker, "mlflow": _mlflow}[service]
    try:
        run(site, asked, secrets.token_hex(8))
    except supervise.DiedYoung as error:  # said in one line: what the command itself said stands above it in the log
        log.error("%s", error)
        raise SystemExit(1) from None
    finally:
        site_files.record_service(site, RECORDED[service], None)
        lock.release()


def _head(site: Path, asked: SiteSettings, mark: str) -> None:
    _record_ray(site, asked, mark)
    node = site_files.ray_node(site, asked)
    ask = dict(ray_node.environment(node.token_file, node.host))

    supervise.supervise(
        ray_node.command(node), _environment(mark) | ask, after=functools.partial(_keep_told, asked, node.address, ask)
    )


def _keep_told(asked: SiteSettings, address: str, ask: Mapping[str, str], alive: Callable[[], bool]) -> None:
    """Tell the head what it is, once; and keep the stamp that it was told while it lives, or tell it another one."""
    facts: dict[str, Any] = {"versions": versions.ours(), "work": asked.work}
    work, told = Path(asked.work) if asked.work else None, False
    while alive():
        try:
            if not told or (work and not renew(work, facts["stamp"])):
                told = False
                if work:
                    facts["stamp"] = stamp(work)
                head_facts.publish(address, facts, ask)
                told = True
        except (ConnectionError, OSError) as error:
            log.info("the stamp was not renewed: %s" if told else "not told to the head yet: %s", error)
        end = time.monotonic() + (_RENEWED if told else 0)
        time.sleep(1)
        while alive() and time.monotonic() < end:
            time.sleep(1)


def _worker(site: Path, asked: SiteSettings, mark: str) -> None:
    _record_ray(site, asked, mark)
    node = site_files.ray_node(site, asked)
    supervise.supervise(
        ray_node.command(node),
        _environment(mark) | dict(ray_node.environment(node.token_file, node.host)),
        before=functools.partial(_admitted, site, asked, versions.ours()),
    )


def _admitted(site: Path, asked: SiteSettings, begun: Mapping[str, str]) -> None:
    """Wait until the head answers, however long it is away, and check that this node still fits it.

    `begun` are the versions with which this process began: where others fit by now, it begins again with them.
    """
    while True:
        try:
            check_head(site, asked)
        except head_facts.HeadAway as error:
            log.info("waiting: %s", error)
            time.sleep(2)
            continue
        if versions.ours() != begun:
            log.info("beginning again: what this process runs was replaced since it began")
            _begin_again()
        return


def _begin_again() -> None:
    """This same process, with the code that is on the disk now. Its locks are given back, its signals are as at first."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def check_head(site: Path, asked: SiteSettings) -> None:
    """Whether this node may join its head. Refused, TokenRefused, NotShared say why not; HeadAway if nobody answers."""
    node = site_files.ray_node(site, asked)
    facts = head_facts.read(node.address, ray_node.environment(node.token_file, node.host))
    differences = list(versions.skew(versions.ours(), facts["versions"]))
    if differences:
        raise Refused(
            f"this node does not fit the head {asked.head}:\n  " + "\n  ".join(differences) + "\n"
            "next: bring this node to the head's versions (the same checkout, then `make setup`), and join again"
        )
    if facts["work"]:
        shared_folder.check(facts["work"], facts["stamp"])


def _mlflow(site: Path, asked: SiteSettings, mark: str) -> None:
    mlflow_server.prepare(site, asked)
    if not (site / "database").exists() and asked.artifacts is None:
        served_store.name_by_address(Path(asked.registry) / DATABASE)
    log_file = str(site / "logs" / "mlflow.log")
    ours = processes.known(os.getpid())
    site_files.record_service(
        site,
        "mlflow",
        MlflowService(mlflow_server.address(asked), str(site / "admin"), log_file, ours, mark),
    )
    supervise.supervise(mlflow_server.command(asked), _environment(mark) | mlflow_server.environment(site, asked))


def _record_ray(site: Path, asked: SiteSettings, mark: str) -> None:
    node, ours = site_files.ray_node(site, asked), processes.known(os.getpid())
    _private_folder(Path(asked.temp))
    for old in sorted(Path(node.temp).glob("session_2*"))[:-_SESSIONS]:
        durable.discard(old)
    log_file = str(site / "logs" / f"{asked.role}.log")
    site_files.record_service(
        site,
        "ray",
        RayService(
            asked.role, node.address, node.host, node.dashboard, node.token_file, log_file, node.temp, ours, mark
        ),
    )


def _private_folder(path: Path) -> None:
    """Make a folder that only its owner can enter. ConfigError if it is another user's."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid() or path.is_symlink():
        raise ConfigError(f"{path} belongs to another user; name another folder: --temp FOLDER")
    path.chmod(0o700)


def _environment(mark: str) -> dict[str, str]:
    return site_files.environment() | {processes.MARK: mark, "PYTHONUNBUFFERED": "1"}
