"""What docs/registry.md tells people to do works where only mlflow is installed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import registry
from tests.mlflow_server import MlflowServer
from tests.pipelines import big_packages
from tests.pipelines.big_packages import contents

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "registry.md").read_text()
# As where only mlflow is installed, whatever this environment has: importing anything of ours fails.
ALONE = """
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pipelines", "model", "cluster", "tests", "torch", "transformers"):
            raise ModuleNotFoundError(f"{name} is not installed here")
sys.meta_path.insert(0, NotInstalled())
"""


def snippet() -> str:
    return TEXT.split("<!-- snippet", 1)[1].split("```python\n", 1)[1].split("```", 1)[0]


def followed(uri: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    command = [sys.executable, "-I", "-c", ALONE + snippet()]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_snippet_downloads_and_checks_and_finds_damage(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    package = big_packages.write_package(tmp_path / "made", 1000)
    version = registry.register(mlflow_server.uri, "sentiment", package, {})
    registry.promote(mlflow_server.uri, version, [])
    done = followed(mlflow_server.uri, tmp_path)
    assert done.returncode == 0, done.stderr
    found = contents(tmp_path / "sentiment")
    assert {name: data for name, data in found.items() if name != "registered_model_meta"} == contents(package)
    stored = mlflow_server.folder / "kept" / version.source.partition(":/")[2].lstrip("/") / "config.json"
    stored.write_text("{}")
    (tmp_path / "again").mkdir()
    done = followed(mlflow_server.uri, tmp_path / "again")
    assert done.returncode == 1 and "damaged, missing or not listed: {'config.json'}" in done.stderr


def test_the_snippet_is_short() -> None:
    assert len(ast.parse(snippet()).body) <= 12


@pytest.mark.parametrize("page", ["registry.md", "security-packages.md"])
def test_what_the_pages_name_is_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    for name in re.findall(r"`((?:tests|examples)/[\w/]+\.py)`", text) + re.findall(
        r"\]\((?:\.\./)?([\w/]+\.(?:py|md))\)", text
    ):
        assert (ROOT / name).exists() or (ROOT / "docs" / name).exists(), name
