"""A user's file and the server's user stay together, whatever the server answers: with a server made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines import credentials, mlflow_server
from pipelines.config import ConfigError
from pipelines.credentials import Credentials

ADMIN = Credentials("admin", "of the test")


class Server:
    """Users as MLflow keeps them. `trouble` is what it answers instead; `lost`: after it has done what was asked."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        self.trouble: int | None = None
        self.lost = False

    def request(self, server: str, path: str, who: Credentials, method: str = "GET", body: Any = None) -> Any:
        if self.trouble is not None:
            return self.trouble, {"message": "database is locked"}
        answer = self._do(path, who, body)
        if self.lost:
            raise TimeoutError("the answer was lost")
        return answer

    def _do(self, path: str, who: Credentials, body: Any) -> Any:
        if path == "users/current":
            known = self.users.get(who.user) == who.password
            return (200, {}) if known else (401, {"message": "You are not authenticated."})
        name = body["username"]
        if path == "users/create" and name in self.users:
            return 400, {"error_code": "RESOURCE_ALREADY_EXISTS", "message": f"User (username={name}) already exists."}
        if path == "users/delete" and name not in self.users:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"{name} not found"}
        if path == "users/create":
            self.users[name] = body["password"]
        else:
            del self.users[name]
        return 200, {}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(mlflow_server, "request", made.request)
    return made


def add(file: Path) -> bool:
    return mlflow_server.add_reader("http://server", ADMIN, "team", file)


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_server_in_trouble_costs_no_file(server: Server, tmp_path: Path, status: int) -> None:
    file = tmp_path / "team"
    assert add(file) and not add(file)
    held = file.read_text()
    server.trouble = status
    for command in (add, lambda file: mlflow_server.remove_user("http://server", ADMIN, "team", file)):
        with pytest.raises(ConnectionError, match=rf"{status}: database is locked.* left as it is"):
            command(file)
    assert file.read_text() == held
    server.trouble = None
    assert not add(file)
    mlflow_server.remove_user("http://server", ADMIN, "team", file)
    assert not server.users and list(tmp_path.iterdir()) == []


def test_a_file_whose_password_is_not_the_servers_stays_where_no_other_user_could_be_made(
    server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "team"
    add(file)
    held = file.read_text()
    server.users["team"] = "another one"
    with pytest.raises(ConfigError, match=r"400: .* already exists.*REMOVE=1, and again"):
        add(file)
    assert file.read_text() == held and list(tmp_path.iterdir()) == [file]
    del server.users["team"]
    assert add(file) and server.users["team"] == credentials.read(file).password


def test_a_user_whose_making_was_not_heard_of_has_its_password_the_next_time(server: Server, tmp_path: Path) -> None:
    file, server.lost = tmp_path / "team", True
    with pytest.raises(TimeoutError):
        add(file)
    server.lost, server.trouble = False, 502
    with pytest.raises(ConnectionError):
        add(file)
    server.trouble = None
    add(file)
    assert server.users["team"] == credentials.read(file).password and list(tmp_path.iterdir()) == [file]


def test_a_user_that_the_server_does_not_have_has_no_file_either(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "team"
    credentials.write(file, Credentials("team", "of a server that was before"))
    with pytest.raises(ConfigError, match="has no user team"):
        mlflow_server.remove_user("http://server", ADMIN, "team", file)
    assert not file.exists()


def test_a_server_that_is_not_there_is_named_and_costs_no_file(tmp_path: Path) -> None:
    file = tmp_path / "reader"
    credentials.write(file, Credentials("reader", "old"))
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9 cannot be reached .*make status"):
        mlflow_server.add_reader("http://127.0.0.1:9", ADMIN, "reader", file)
    assert credentials.read(file).password == "old"
