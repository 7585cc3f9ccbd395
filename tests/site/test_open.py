"""A service that answers somebody without its secret must not run: it is ended, and `make status` says what it is."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import processes
from cluster import site as sites
from cluster.site import MlflowService, RayService
from pipelines import credentials, site_files, site_health, site_life, site_status
from pipelines.credentials import Credentials

NODES = {"data": {"summary": [{"raylet": {"state": "ALIVE"}}]}}


@contextmanager
def service(stranger: int) -> Iterator[str]:
    """The address of one that answers whoever has a secret as both services do, and a stranger with this status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.headers["Authorization"] else stranger)
            self.end_headers()
            self.wfile.write(json.dumps([] if self.path.startswith("/api/jobs") else NODES).encode())

        def log_message(self, *what: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """The supervisor that the site names."""
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield started
    started.kill()
    started.wait()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = site_files.folder(tmp_path / "site")
    (folder / "token").write_text("a token")
    credentials.write(folder / "admin", Credentials("admin", "a password"))
    return folder


def recorded(site: Path, name: str, address: str, process: subprocess.Popen[bytes]) -> RayService | MlflowService:
    ours, log = processes.known(process.pid), str(site / "logs" / f"{name}.log")
    made: RayService | MlflowService = (
        RayService("head", "127.0.0.1:1", "127.0.0.1", address, str(site / "token"), log, "temp", ours, "open-test")
        if name == "head"
        else MlflowService(address, str(site / "admin"), log, ours, "open-test")
    )
    site_files.record_service(site, {"head": "ray", "mlflow": "mlflow"}[name], made)
    return made


@pytest.mark.parametrize("name", ["head", "mlflow"])
def test_a_service_that_answers_a_stranger_is_ended(
    site: Path, name: str, process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    with service(stranger=200) as address:
        known = recorded(site, name, address, process)
        with pytest.raises(site_health.Open, match=f"{address} answers without a"):
            site_life._answers(name)(known)
        [state] = [one["state"] for one in site_status.describe(site, tmp_path)["services"]]
        assert state.startswith("IS OPEN, end it (make down): ")
        with pytest.raises(site_life.NotUp, match=f"the {name} was ended, for it was open: .*{address}"):
            site_life._await(site, name, None)
    assert process.poll() is not None or not processes.known(process.pid).alive()
    assert sites.read(site) == sites.Site(site), "nothing runs there any more"


@pytest.mark.parametrize("name", ["head", "mlflow"])
def test_a_service_is_up_when_it_refuses_strangers_and_not_before_it_does(
    site: Path, name: str, process: subprocess.Popen[bytes]
) -> None:
    with service(stranger=401) as address:
        assert site_life._answers(name)(recorded(site, name, address, process))
        assert " was up; log " in site_life._await(site, name, None)
    with service(stranger=500) as address:
        assert not site_life._answers(name)(recorded(site, name, address, process)), "it has not refused"
    assert process.poll() is None
