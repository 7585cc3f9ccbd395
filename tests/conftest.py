"""What tests of a process share, because it takes long to make: a local Ray, a Ray head, an empty MLflow store, a server; and the order of files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.mlflow_server import MlflowServer
from tests.ray_head import Head, head

ROOT = Path(__file__).parents[1]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GPTLINE_MODEL_CACHE", "")  # no test fills this user's cache of models
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # ten processes a server, for nothing


# `make test` hands out files to three processes. Those that share what takes long to make go to the same one.
TOGETHER = {
    "an MLflow server under fire": (
        "faults/test_mlflow_cuts.py",
        "faults/test_mlflow_away.py",
        "pipelines/test_registry_server.py",
    ),
    "ranks under torchrun": ("model/test_train.py", "model/test_checkpoint.py", "model/test_saving.py"),
    "a site": (
        "site/test_site.py",
        "site/test_registry_access.py",
        "site/test_secrets.py",
        "site/test_used_before.py",
    ),
    "a Ray of this process": ("cluster/test_gang.py", "cluster/test_ray_map.py"),
    "a head of Ray": ("cluster/test_jobs.py", "pipelines/test_jobs_commands.py"),
    "an MLflow server": (
        "pipelines/test_pull_cut.py",
        "pipelines/test_registry_docs.py",
        "pipelines/test_lineage.py",
        "pipelines/test_hostile_packages.py",
        "examples/test_examples.py",
    ),
}
# The longest first, or one of the processes ends long after the others; the rest in the order of their paths.
LONGEST = (
    "cluster/test_recovery.py",
    "test_end_to_end.py",
    "an MLflow server under fire",
    "a site",
    "a Ray of this process",
    "cluster/test_apart.py",
    "pipelines/retraining/test_retrain.py",
    "hosts/test_training.py",
    "ranks under torchrun",
    "faults/test_crash_points.py",
    "model/test_world_sizes.py",
    "a head of Ray",
    "faults/test_disk_errors.py",
    "faults/test_two_at_once.py",
    "faults/test_mlflow_store.py",
    "an MLflow server",
)
_GROUP = {file: group for group, files in TOGETHER.items() for file in files}


def group(file: str) -> str:
    """The group that this file's tests are run with, or the file itself; `file` is relative to tests/."""
    return _GROUP.get(file, file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of LONGEST first, in that order; the others as they are."""
    order = {name: position for position, name in enumerate(LONGEST)}
    tests = ROOT / "tests"
    items.sort(key=lambda item: order.get(group(str(item.path.relative_to(tests))), len(order)))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, but for groups of files."""
    from xdist.scheduler import LoadFileScheduling

    class LoadGroups(LoadFileScheduling):
        """Files that share something are one unit of work."""

        def _split_scope(self, nodeid: str) -> str:
            return group(super()._split_scope(nodeid).removeprefix("tests/"))

    return LoadGroups(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: Any) -> None:
    """Say at once which test took its process with it: xdist may fail to replace that process, and then says nothing."""
    print(f"\na process of the tests died in {crashitem}", file=sys.stderr, flush=True)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A real local Ray with room for two tasks or ranks, or four on bigger machines."""
    from cluster import services

    services.connect("local", 4)
    yield
    services.disconnect()


@pytest.fixture(scope="session")
def ray_apart() -> Iterator[None]:
    """What stages that need Ray start for themselves is ended with the tests."""
    from cluster import apart

    yield
    apart.end()


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    """One real head with a dashboard and token authentication, for all tests of jobs: it takes 12 seconds."""
    with head() as started:
        yield started


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sqlite store, which all processes of the tests share. To be copied, not to be used."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "empty-store"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            _make_store(shared / "registry")
    return shared / "registry"


def _make_store(folder: Path) -> None:
    """By two processes that both come first."""
    code = f"from pipelines.registry import ensure_store; print(ensure_store({str(folder)!r}))"
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT)}
    makers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {maker.communicate(timeout=240)[0].strip() for maker in makers}
    assert [maker.returncode for maker in makers] == [0, 0]
    assert answers == {f"sqlite:///{folder}/mlflow.db"}


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sqlite store for the tests of one file. Tests use names of their own in it."""
    folder = tmp_path_factory.mktemp("store") / "registry"
    shutil.copytree(empty_store, folder)
    (folder / "artifacts" / "gptline").mkdir(parents=True, exist_ok=True)
    from pipelines import store

    store.settle(store.tracking_uri(folder))  # it was moved
    return folder


@pytest.fixture(scope="session")
def shared_server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """The server of `mlflow_server`; it may be down."""
    server = MlflowServer(empty_store, tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def mlflow_server(shared_server: MlflowServer) -> MlflowServer:
    """The MLflow server that all tests share, up. Tests may kill it and start it again; they use names of their own."""
    shared_server.ensure_up()
    return shared_server
