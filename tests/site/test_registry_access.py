"""Who may do what at a site's MLflow server: nobody without a password, a team only read, the pipeline all it needs."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import site as sites
from pipelines import credentials, mlflow_server, registry
from pipelines.config import ConfigError
from pipelines.credentials import Credentials
from pipelines.model_card import Card
from pipelines.package import build_package
from pipelines.pull import pull
from tests.pipelines.tiny_exports import write_classifier
from tests.site import running


@pytest.fixture
def server(head: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the site's MLflow server. What this process knows of credentials is forgotten after the test."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", os.environ.get("MLFLOW_TRACKING_AUTH", ""))
    mlflow = sites.read(head).mlflow
    assert mlflow is not None
    yield mlflow.address
    credentials._files.clear()


@pytest.fixture(scope="session")
def registered(head: Path, tmp_path_factory: pytest.TempPathFactory) -> registry.ModelVersion:
    """A champion that the pipeline registered, with the administrator's credentials from the site's file."""
    mlflow = sites.read(head).mlflow
    assert mlflow is not None
    folder = tmp_path_factory.mktemp("package")
    build_package(write_classifier(folder / "export"), folder / "package", Card("m", "text-classification", "A test."))
    credentials.use(mlflow.address, mlflow.credentials)
    version = registry.register(mlflow.address, "m", folder / "package", {"a": "b"})
    assert registry.promote(mlflow.address, version, [])
    credentials._files.clear()
    del os.environ["MLFLOW_TRACKING_AUTH"]
    return version


@pytest.mark.parametrize(
    "who",
    [None, Credentials("admin", "password1234"), Credentials("admin", "password"), Credentials("team", "x")],
    ids=str,
)
def test_strangers_and_default_passwords_get_nothing(server: str, who: Credentials | None) -> None:
    for path in ("experiments/search?max_results=1", "registered-models/search", "users/list"):
        assert mlflow_server.request(server, path, who)[0] == 401, path


OPEN = ["/health", "/static-files/index.html", "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info"]
CLOSED = [
    "/", "/version", "/metrics", "/graphql", "/signup", "/api/2.0/mlflow/experiments/search", "/gateway/1/mlflow/invocations",
    "/ajax-api/2.0/mlflow/users/list", "/api/2.0/mlflow-artifacts/artifacts", "/get-artifact", "/v1/traces",
]  # fmt: skip


def test_the_paths_that_ask_for_no_password_are_those_that_the_documentation_names(server: str) -> None:
    said = (running.ROOT / "docs" / "security.md").read_text()
    for path in [*OPEN, *CLOSED]:
        try:
            with urllib.request.urlopen(server + path, timeout=20) as answer:
                status = answer.status
        except urllib.error.HTTPError as refused:
            status = refused.code
        assert status == (200 if path in OPEN else 401), path
    for path in ("/health", "/static-files/", "/api/3.0/mlflow/server-info", "/ajax-api"):
        assert f"`{path}`" in said


def test_a_team_pulls_with_its_file_and_its_password_is_in_no_environment(
    server: str, registered: registry.ModelVersion, team: Path, tmp_path: Path
) -> None:
    with pytest.raises(credentials.Rejected, match=r"execution.credentials=FILE"):
        registry.alias_version(server, "m", "champion")
    credentials.use(server, str(team))
    assert registry.alias_version(server, "m", "champion") == registered.version
    assert pull(server, "m@champion", tmp_path / "model").digest == registered.digest
    assert credentials.read(team).password not in str(dict(os.environ))


READ_ONLY: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "registered-models/create", {"name": "mine"}),
    ("POST", "registered-models/alias", {"name": "m", "alias": "champion", "version": "1"}),
    ("DELETE", "registered-models/alias", {"name": "m", "alias": "champion"}),
    ("DELETE", "registered-models/delete", {"name": "m"}),
    ("PATCH", "registered-models/update", {"name": "m", "description": "x"}),
    ("POST", "registered-models/rename", {"name": "m", "new_name": "n"}),
    ("POST", "model-versions/create", {"name": "m", "source": "mlflow-artifacts:/1/x"}),
    ("POST", "model-versions/set-tag", {"name": "m", "version": "1", "key": "gptline.digest", "value": "0"}),
    ("DELETE", "model-versions/delete", {"name": "m", "version": "1"}),
    ("POST", "experiments/create", {"name": "mine"}),
    ("POST", "users/create", {"username": "other", "password": "a long password 1"}),
    ("PATCH", "users/update-admin", {"username": "team", "is_admin": True}),
]


@pytest.mark.parametrize(
    ("method", "path", "body"), READ_ONLY, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_team_changes_nothing(
    server: str, registered: registry.ModelVersion, team: Path, method: str, path: str, body: dict[str, Any]
) -> None:
    who = credentials.read(team)
    assert mlflow_server.request(server, "registered-models/get?name=m", who)[0] == 200
    assert mlflow_server.request(server, path, who, method, body)[0] == 403


def test_a_team_cannot_put_replace_or_delete_files(server: str, registered: registry.ModelVersion, team: Path) -> None:
    inside = registered.source.removeprefix("mlflow-artifacts:/").lstrip("/")
    for method in ("PUT", "DELETE"):
        for place in (f"{inside}/model.safetensors", "1/evil/artifacts/x", "evil"):
            url = f"{server}/api/2.0/mlflow-artifacts/artifacts/{place}"
            asked = urllib.request.Request(url, method=method, data=b"evil" if method == "PUT" else None)
            asked.add_header("Authorization", credentials.read(team).header())
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(asked, timeout=20)
            assert refused.value.code == 403, (method, place)


def test_a_file_with_secrets_that_others_can_read_is_refused(team: Path, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.write_text(team.read_text())
    loose.chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by others \(mode 0640\).*chmod 600") as refused:
        credentials.read(loose)
    assert credentials.read(team).password not in str(refused.value)
    with pytest.raises(ConfigError, match="holds a password"):
        credentials.use("http://me:secret@localhost:5000", None)


def test_a_removed_user_has_no_access(server: str, head: Path) -> None:
    running.done("user", "leaver", "--site", str(head))
    file = head / "users" / "leaver"
    who = credentials.read(file)
    assert mlflow_server.request(server, "registered-models/search", who)[0] == 200
    running.done("user", "leaver", "--site", str(head), "--remove")
    assert mlflow_server.request(server, "registered-models/search", who)[0] == 401 and not file.exists()
