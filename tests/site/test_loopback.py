"""A head without HOST: everything of it stays on loopback, and this machine can still work on it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import site as sites
from tests.site import running
from tests.site.test_site import work_on


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a site that is up with the default address."""
    folder = tmp_path_factory.mktemp("alone")
    options = running.head_options(folder, running.HEAD)
    at = options.index("--host")
    try:
        running.done("up", *options[:at], *options[at + 2 :])
        yield folder / "site"
    finally:
        running.down(folder / "site")


def listening(one: psutil.Process) -> tuple[str, set[str]]:
    """What a process is called and the addresses at which it listens; none if it has ended, as a worker of Ray's may."""
    try:
        found = one.net_connections(kind="inet")
        return one.name(), {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return "ended", set()


def test_without_host_nothing_listens_outside_loopback(alone: Path, tmp_path: Path) -> None:
    ray, mlflow = sites.read(alone).ray, sites.read(alone).mlflow
    assert ray is not None and mlflow is not None
    assert work_on(ray, tmp_path, 1) == ["127.0.0.1"]
    seen = {one.pid: listening(one) for one in running.members(alone)}
    assert sum(len(addresses) for _, addresses in seen.values()) >= 5, (
        "its control store, its node, its agent, its dashboard and MLflow's server listen somewhere"
    )
    for pid, (name, addresses) in seen.items():
        for address in addresses:
            plain = ipaddress.ip_address(address.removeprefix("::ffff:"))
            assert plain.is_loopback, f"{name} ({pid}) listens at {address}"
