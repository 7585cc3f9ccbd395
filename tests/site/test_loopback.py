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


def listening(one: psutil.Process) -> set[str]:
    """The addresses at which a process listens; none if it has ended."""
    try:
        return {found.laddr.ip for found in one.net_connections(kind="inet") if found.status == psutil.CONN_LISTEN}
    except psutil.NoSuchProcess:
        return set()


def test_without_host_nothing_listens_outside_loopback(alone: Path, tmp_path: Path) -> None:
    ray, mlflow = sites.read(alone).ray, sites.read(alone).mlflow
    assert ray is not None and mlflow is not None
    assert work_on(ray, tmp_path, 1) == ["127.0.0.1"]
    seen = {one.pid: (one.name(), listening(one)) for one in running.members(alone)}
    assert sum(len(addresses) for _, addresses in seen.values()) >= 5, (
        "its control store, its node, its agent, its dashboard and MLflow's server listen somewhere"
    )
    for pid, (name, addresses) in seen.items():
        for address in addresses:
            plain = ipaddress.ip_address(address.removeprefix("::ffff:"))
            assert plain.is_loopback, f"{name} ({pid}) listens at {address}"
