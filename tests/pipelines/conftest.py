"""One real MLflow store for all tests here: making one takes ten seconds. Tests use names of their own in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sqlite store, made by two processes that both came first."""
    folder = tmp_path_factory.mktemp("mlflow") / "registry"
    code = f"from pipelines.registry import ensure_store; print(ensure_store({str(folder)!r}))"
    command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT)}
    makers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {maker.communicate(timeout=240)[0].strip() for maker in makers}
    assert [maker.returncode for maker in makers] == [0, 0]
    assert answers == {f"sqlite:///{folder}/mlflow.db"}
    return folder
