"""The MLflow server of a head node: its command, its environment, and its users. Does not import mlflow.

The one idea: it never listens without authentication. The administrator's password exists, at random, before the
server starts for the first time; its database's address, which may hold a password, reaches it by its environment.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from model import durable
from pipelines import credentials
from pipelines.config import ConfigError
from pipelines.credentials import Credentials
from pipelines.site_files import SiteSettings
from pipelines.store import DATABASE, SQLITE

# A user has this on everything: may read it and neither change nor create anything.
_DEFAULT_PERMISSION = "READ"
_DRIVER = ("postgresql://", "postgresql+psycopg2://")


def address(asked: SiteSettings) -> str:
    """Where the server is reached."""
    return f"http://{asked.host}:{asked.mlflow_port}"


def command(asked: SiteSettings) -> list[str]:
    """`mlflow server` in the foreground. Nothing secret is in it."""
    # A server behind a proxy has other names: whoever sets it up so says which, in MLflow's own variable.
    names = dict.fromkeys([asked.host, "localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn()])
    known = ",".join(f"{name}:{asked.mlflow_port}" for name in names)
    allowed = os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS") or known
    return [
        sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", asked.host,
        "--port", str(asked.mlflow_port), "--workers", str(asked.mlflow_workers),
        "--artifacts-destination", asked.artifacts or str(Path(asked.registry) / "artifacts"),
        "--allowed-hosts", allowed,
    ]  # fmt: skip


def environment(site: Path, asked: SiteSettings) -> dict[str, str]:
    """What the server needs to know and nobody else: the database's address and the key of its forms."""
    return {
        "MLFLOW_BACKEND_STORE_URI": database(site, asked),
        "MLFLOW_AUTH_CONFIG_PATH": str(site / "basic_auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": (site / "flask_key").read_text(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # we run nothing in it, and nobody else shall
        # With workspaces, and a default permission that does not say "use", users cannot even create things of their own.
        "MLFLOW_ENABLE_WORKSPACES": "true",
    }


def database(site: Path, asked: SiteSettings) -> str:
    """The address of the server's database, with its password if it has one."""
    given = site / "database"
    return given.read_text().strip() if given.exists() else f"{SQLITE}{Path(asked.registry) / DATABASE}"


def keep_database(site: Path, given: str | None) -> None:
    """Keep the address of a database in a file of the site. ConfigError if it is not one of PostgreSQL."""
    if given:
        durable.write_private(site / "database", _with_driver(given).encode())


def is_another_database(site: Path, asked: SiteSettings, given: str) -> bool:
    """Whether an address names another database than the server has now. ConfigError if it is not one of PostgreSQL."""
    return _with_driver(given) != database(site, asked).replace(*_DRIVER, 1)


def _with_driver(given: str) -> str:
    """The address with its driver named: which one is the default differs between versions of SQLAlchemy."""
    if not given.startswith(_DRIVER):
        raise ConfigError(  # not shown: it may hold a password
            "MLFLOW_DB is not the address of a PostgreSQL database, postgresql://user:password@host:5432/name; "
            "without MLFLOW_DB, MLflow's database is an sqlite file in the registry folder"
        )
    return given.replace(*_DRIVER, 1)


def prepare(site: Path, asked: SiteSettings) -> None:
    """Write the server's settings of authentication: it makes the administrator from them when it first starts."""
    admin = credentials.read(site / "admin")
    registry = Path(asked.registry)
    registry.mkdir(parents=True, exist_ok=True)
    users = database(site, asked) if (site / "database").exists() else f"{SQLITE}{registry / 'users.db'}"
    values = {
        "default_permission": _DEFAULT_PERMISSION,
        "grant_default_workspace_access": "true",
        "database_uri": users,
        "admin_username": admin.user,
        "admin_password": admin.password,
        # Checking a password takes a good part of a second of a core, by design; once a minute and process will do.
        "auth_cache_ttl_seconds": "60",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    lines = [f"{name} = {value.replace('%', '%%')}" for name, value in values.items()]
    durable.write_private(site / "basic_auth.ini", "\n".join(["[mlflow]", *lines, ""]).encode())


def request(
    server: str, path: str, who: Credentials | None, method: str = "GET", body: dict[str, Any] | None = None
) -> tuple[int, dict[str, Any]]:
    """(status, answer) of one question to the server. ConnectionError if it does not answer."""
    asked = urllib.request.Request(
        f"{server}/api/2.0/mlflow/{path}", method=method, data=json.dumps(body).encode() if body is not None else None
    )
    asked.add_header("Content-Type", "application/json")
    if who is not None:
        asked.add_header("Authorization", who.header())
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return int(answer.status), dict(json.loads(answer.read() or b"{}"))
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        try:
            return error.code, dict(json.loads(said))
        except ValueError:
            return error.code, {"message": said[:200]}
    except OSError as error:
        raise ConnectionError(f"{server} cannot be reached ({error}); is it up? make status says") from error


def add_reader(server: str, admin: Credentials, name: str, file: Path) -> bool:
    """A user who may read everything and change nothing, with credentials in `file`; whether it was not there before.

    ConfigError if the server has the name and no file of ours is right; ConnectionError if it says neither.
    """
    draft = _draft(file)
    for known in (file, draft):  # a draft is there if we never heard the server's answer
        if known.exists() and _takes(server, known):
            if known == draft:
                durable.rename(draft, file)
            return False
    who = Credentials(name, secrets.token_urlsafe(24))
    credentials.write(draft, who)  # first: a user whose password nobody has would be no use
    status, said = request(server, "users/create", admin, "POST", {"username": name, "password": who.password})
    if status == 200:
        durable.rename(draft, file)
        return True
    if status >= 500:
        raise _trouble(server, status, said, f"whether there is a user {name} now is not known")
    durable.remove(draft)
    raise ConfigError(
        f"{server} did not make the user {name} ({status}: {said.get('message', '')}); "
        f"if it exists and its file is lost: make user NAME={name} REMOVE=1, and again"
    )


def _takes(server: str, file: Path) -> bool:
    """Whether the server takes these credentials. ConnectionError if it answers neither yes nor no."""
    status, said = request(server, "users/current", credentials.read(file))
    if status not in (200, 401):
        raise _trouble(server, status, said, f"whether {file} is right is not known, and it was left as it is")
    return status == 200


def remove_user(server: str, admin: Credentials, name: str, file: Path) -> None:
    """Take a user's access away. ConfigError if there is no such user; ConnectionError if the server does not do it."""
    status, said = request(server, "users/delete", admin, "DELETE", {"username": name})
    unknown = said.get("error_code") == "RESOURCE_DOES_NOT_EXIST"
    if status != 200 and not unknown:
        raise _trouble(server, status, said, f"the user {name} was not removed, and {file} was left as it is")
    for path in (file, _draft(file)):
        durable.remove(path)
    if unknown:
        raise ConfigError(f"{server} has no user {name}")


def _draft(file: Path) -> Path:
    """Where credentials lie until the server has said that it takes them. No user has such a name."""
    return file.with_name(f".{file.name}.new")


def _trouble(server: str, status: int, said: dict[str, Any], left: str) -> ConnectionError:
    return ConnectionError(
        f"{server} answers with an error ({status}: {said.get('message', '')}): {left}; "
        "next: look into its log (make status says where), and give the same command again"
    )
