"""Joining a Ray that is not there, or that dies meanwhile: an answer or a clear error within minutes, and nothing left behind."""

from __future__ import annotations

import re
import socket
import threading
import time

import psutil
import pytest

from cluster import apart, services
from cluster.processes import session
from tests.ray_head import Head, head


def nobody() -> str:
    """An address at which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def test_where_no_ray_answers_it_is_waited_for_and_then_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    address = nobody()
    monkeypatch.setattr(services, "_PATIENCE", 0.2)
    with pytest.raises(ConnectionError, match=rf"no Ray answers at {address}; .*make up.* execution.ray_address"):
        services._join(address)
    assert f"no Ray answers at {address}; waiting" in caplog.text


def part(of: Head, name: str) -> psutil.Process:
    """The head's process of that name, which may come up after the dashboard."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for process in psutil.Process(of.process.pid).children(recursive=True):
            if process.name().startswith(name):
                return process
        time.sleep(0.1)
    raise AssertionError(f"the head has no {name}")


@pytest.mark.thorough  # a minute each: so long a head that died is waited for
@pytest.mark.parametrize("victim", ["gcs_server", "raylet"])
@pytest.mark.parametrize("after", [1.0, 2.0, 3.0, 4.0, 6.0])
def test_a_head_that_is_killed_while_it_is_joined_gives_the_answer_or_a_clear_error(victim: str, after: float) -> None:
    with head() as joined:
        port = re.search(r"gcs_server_port=(\d+)", " ".join(part(joined, "gcs_server").cmdline()))
        assert port
        threading.Timer(after, part(joined, victim).kill).start()
        began = time.monotonic()
        apart.connect(f"127.0.0.1:{port[1]}", 2, str(joined.token_file))
        child = apart._children[0].process.pid
        try:
            assert answer() == [1, 4, 9]
        except ConnectionError as error:
            assert f"127.0.0.1:{port[1]}" in str(error)
        finally:
            apart.end()
        assert time.monotonic() - began < 200
        assert session(child) == []


def answer() -> list[int]:
    """Three squares, however often the process that uses Ray is lost."""
    while True:
        try:
            found = dict(apart.each("cluster.ray_map:map_units", "tests.cluster.jobs:square", [1, 2, 3], in_flight=1))
            return [found[index] for index in range(3)]
        except apart.Lost:
            continue
