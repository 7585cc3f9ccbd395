"""A site over PostgreSQL, and one whose processes are killed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import processes
from cluster import site as sites
from pipelines import credentials, mlflow_server, site_health
from tests.site import running
from tests.site.test_secrets import files_below, holders

POSTGRES = Path("/usr/lib/postgresql/15/bin")
PLANTED = "planted%40secret-9f3c"  # a password with a character that addresses and settings escape
pytestmark = pytest.mark.thorough


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """The address of a PostgreSQL server of this test's own, with a password."""
    if not (POSTGRES / "initdb").exists():
        pytest.skip(f"no PostgreSQL server in {POSTGRES}")
    root = os.getuid() == 0
    user = next((name for name in ("postgres", "nobody") if root and _known(name)), None)
    if root and user is None:
        pytest.skip("PostgreSQL does not run as root, and there is no other user to run it as")
    folder = Path(f"/tmp/gptline-postgres-{os.getpid()}")
    folder.mkdir(mode=0o700)
    (folder / "password").write_text("planted@secret-9f3c")
    if user is not None:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    [port] = running.free_ports(1)
    as_user = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"] if user else []
    data = str(folder / "data")

    def run(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, cwd=folder, capture_output=True, text=True)

    run(str(POSTGRES / "initdb"), "-D", data, "-U", "gptline", "-A", "scram-sha-256", f"--pwfile={folder}/password")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    try:
        run(str(POSTGRES / "pg_ctl"), "-D", data, "-w", "-l", f"{folder}/log", "-o", options, "start")
        yield f"postgresql://gptline:{PLANTED}@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [*as_user, str(POSTGRES / "pg_ctl"), "-D", data, "-m", "immediate", "stop"], check=False, cwd=folder
        )
        shutil.rmtree(folder)


def _known(name: str) -> bool:
    try:
        return bool(pwd.getpwnam(name))
    except KeyError:
        return False


def test_a_site_over_postgresql_keeps_its_password_to_itself_and_its_models_over_a_restart(
    database: str, tmp_path: Path
) -> None:
    options, site = running.head_options(tmp_path, running.HEAD), tmp_path / "site"
    try:
        running.done("up", *options, MLFLOW_DB=database)
        mlflow = sites.read(site).mlflow
        assert mlflow is not None
        admin = credentials.read(site / "admin")
        created = mlflow_server.request(mlflow.address, "registered-models/create", admin, "POST", {"name": "kept"})
        assert created[0] == 200
        running.done("user", "team", "--site", str(site))
        team = credentials.read(site / "users" / "team")
        refused = mlflow_server.request(mlflow.address, "registered-models/create", team, "POST", {"name": "mine"})
        assert refused[0] == 403
        for secret in (PLANTED, "planted@secret-9f3c"):
            assert set(holders(files_below(tmp_path), secret)) <= {str(site / "database"), str(site / "basic_auth.ini")}
            for one in running.members(site):
                assert secret not in " ".join(one.cmdline()), one
        ray = sites.read(site).ray
        assert ray is not None
        for one in processes.family(ray.process, ray.mark):
            assert PLANTED not in str(one.environ()), f"{one} needs no database"
        left = running.members(site)
        running.done("down", "--site", str(site))
        assert running.still_alive(left) == [], "nothing is left"
        running.done("up", "--site", str(site))
        assert mlflow_server.request(mlflow.address, "registered-models/get?name=kept", team)[0] == 200
    finally:
        running.down(site)


def test_a_killed_server_comes_back_by_itself_and_killed_supervisors_are_replaced_by_up(tmp_path: Path) -> None:
    options, site = running.head_options(tmp_path, running.HEAD), tmp_path / "site"
    try:
        running.done("up", *options)
        mlflow, ray = sites.read(site).mlflow, sites.read(site).ray
        assert mlflow is not None and ray is not None
        for service in (mlflow, ray):
            for one in processes.family(service.process, service.mark):
                if one.pid != service.process.pid:
                    one.kill()
        end = time.monotonic() + 120
        while not (site_health.mlflow_answers(mlflow) and site_health.head_answers(ray)):
            assert time.monotonic() < end, (site / "logs" / "mlflow.log").read_text()[-3000:]
            time.sleep(0.5)
        assert sites.read(site).mlflow == mlflow, "under the same supervisor"
        before = running.members(site)
        for service in (mlflow, ray):
            os.kill(service.process.pid, signal.SIGKILL)
        running.done("up", "--site", str(site))
        assert running.still_alive(before) == [], "what the dead supervisors had started is gone"
        after = sites.read(site)
        assert after.mlflow is not None and after.mlflow.process != mlflow.process
    finally:
        running.down(site)
