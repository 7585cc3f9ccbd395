"""User and password for an MLflow server, out of a file that only its owner can read.

The one idea: a secret is in a file of mode 0600, and commands are given the file's path. The format is MLflow's own
(`~/.mlflow/credentials`), so the same file serves people who have only MLflow. Nothing is put into the environment,
which child processes would inherit, and nothing on a command line, which everybody can read.
"""

from __future__ import annotations

import base64
import configparser
import os
import stat
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from model import durable
from pipelines.config import ConfigError

_USUAL = "~/.mlflow/credentials"  # where MLflow itself looks
_ADVICE = (
    f"next: execution.credentials=FILE (mode 0600, in the format of {_USUAL}; the server's operator makes one for readers: "
    "make user NAME=team), or SITE=folder where the server runs"
)
_files: dict[str, Path] = {}  # server -> the file that was given for it


class Rejected(ConfigError):
    """A server does not take our credentials."""

    def __init__(self, server: str, status: int) -> None:
        held = (
            "takes no request without credentials, and there are none" if of(server) is None else "does not take ours"
        )
        super().__init__(
            f"{server} {held} ({status}); next: execution.credentials=FILE (mode 0600, the format of {_USUAL}; "
            "the server's operator makes one: make user NAME=team), or execution.site=FOLDER where the server runs"
        )


@dataclass(frozen=True)
class Credentials:
    """A user of an MLflow server. Its text form does not show the password."""

    user: str
    password: str = field(repr=False)

    def header(self) -> str:
        """The value of the Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def use(location: str, file: str | None) -> None:
    """Answer the server at `location` with the credentials in `file`, from now on, in this process.

    ConfigError if others can read the file, if it is no such file, or if the address itself holds a password.
    """
    if urllib.parse.urlsplit(location).password:
        raise ConfigError(
            "execution.registry holds a password, which would get into logs: give the address without it, and "
            "execution.credentials=FILE (mode 0600)"
        )
    if file and location.startswith("http"):
        read(Path(file))
        _files[_server(location)] = Path(file)


def of(uri: str) -> Credentials | None:
    """The credentials for a server: from the environment as MLflow reads it, the file given to `use`, or MLflow's own file."""
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return Credentials(user, password)
    if file := _files.get(_server(uri)):
        return read(file)
    usual = Path(_USUAL).expanduser()
    return read(usual) if usual.is_file() and not os.environ.get("MLFLOW_TRACKING_TOKEN") else None


def of_request(url: str) -> Credentials | None:
    """The credentials for the server that a request goes to, if a file was given for it."""
    return next((read(file) for server, file in _files.items() if url.startswith(f"{server}/")), None)


def given(uri: str) -> bool:
    """Whether a file was given to `use` for this server, and the environment does not overrule it."""
    return _server(uri) in _files and not os.environ.get("MLFLOW_TRACKING_USERNAME")


def refusal(error: BaseException) -> str | None:
    """What to say of MLflow's own exception if the server refused us; None for any other error."""
    status = error.get_http_status_code() if hasattr(error, "get_http_status_code") else 0
    if status not in (401, 403):
        return None
    what = "takes no request without the right credentials" if status == 401 else "lets this user not do that"
    return f"the MLflow server {what} ({status}: {str(error).splitlines()[0]}); {_ADVICE}"


def read(file: Path) -> Credentials:
    """The credentials in a file. ConfigError if others can read it, or it holds none."""
    assert_private(file)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text())
        found = parser["mlflow"]
        return Credentials(found["mlflow_tracking_username"], found["mlflow_tracking_password"])
    except (configparser.Error, KeyError) as error:  # the parser's own message would show the line
        raise ConfigError(
            f"{file} holds no credentials ({type(error).__name__}); it should be\n[mlflow]\n"
            "mlflow_tracking_username = ...\nmlflow_tracking_password = ..."
        ) from None


def write(file: Path, credentials: Credentials) -> None:
    """Keep credentials in a file of mode 0600."""
    text = (
        f"[mlflow]\nmlflow_tracking_username = {credentials.user}\nmlflow_tracking_password = {credentials.password}\n"
    )
    durable.write_private(file, text.encode())


def assert_private(file: Path) -> None:
    """ConfigError if a file that holds a secret is not there, or is open to others than its owner."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise ConfigError(f"there is no file {file}; it should hold a secret, with mode 0600") from None
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"{file} can be read by others (mode {stat.S_IMODE(mode):04o}) and holds a secret; "
            f"next: chmod 600 {file}, and if others use this machine, have the secret replaced"
        )


def _server(uri: str) -> str:
    return uri.rstrip("/")
