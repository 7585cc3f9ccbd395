"""The MLflow store: where it is, how it is made, and asked without importing mlflow.

The one idea: a store is a folder (`registry/`: sqlite database and artifacts) or a tracking server's http address.
A folder's database is made once, whole, by one rename. One that is there and cannot be read is damage, and is never
made anew or mended in silence: it cannot be rebuilt, only put back from a backup.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import logging
import os
import sqlite3
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from model import durable
from pipelines import credentials
from pipelines.file_lock import locked

EXPERIMENT = "gptline"
SQLITE = "sqlite:///"
DATABASE = "mlflow.db"
_AUTH = "gptline"  # our name among MLflow's ways of authentication
DELETED = "Deleted_Internal"  # the stage that MLflow gives to a version that was deleted
_LONGEST_WRITER = 600.0  # seconds for which a local store's lock is waited for: a package of GBs is copied under it
_DAMAGED = ("malformed", "not a database", "no such table", "no such column")  # in sqlite's words

_server = threading.RLock()  # between the threads of this process: a server's other clients cannot be locked out
Given = ParamSpec("Given")
Answer = TypeVar("Answer")


class StoreDamaged(RuntimeError):
    """The store's database cannot be read. The message names it, and its newest backup."""


def tracking_uri(location: str | Path) -> str:
    """MLflow's address of a store given as a folder, or as that address already. Touches nothing."""
    if str(location).startswith(("http://", "https://", SQLITE)):
        return str(location)
    return f"{SQLITE}{Path(location).absolute() / DATABASE}"


def database(uri: str) -> Path:
    """The database file of a local store."""
    return Path(uri.removeprefix(SQLITE))


def ensure_store(location: str | Path) -> str:
    """The tracking URI of `location`; a folder gets its database, once, whoever else asks at the same time.

    The migrations take seconds and would race; the finished database appears by one rename. StoreDamaged if the
    database is there and is none: MLflow would fill an empty file with empty tables, and all models would be gone.
    """
    uri = tracking_uri(location)
    if uri.startswith(SQLITE):
        path = database(uri)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with lock(uri):
                if not path.exists():
                    _create_database(path)
        assert_readable(uri)
    return uri


def assert_readable(location: str | Path) -> None:
    """StoreDamaged if the database of a local store is there and cannot be read; in milliseconds. Says nothing of servers."""
    uri = tracking_uri(location)
    if uri.startswith(SQLITE):
        with damage_named(uri):
            select(uri, "select version_num from alembic_version")


def connect(location: str | Path) -> Any:
    """An MlflowClient of the store. Imports mlflow: seconds, the first time. StoreDamaged."""
    uri = ensure_store(location)
    settle(uri)
    return client(uri)


def client(uri: str) -> Any:
    """An MlflowClient of the store as it is. Of one that a server owns it can read and tag; files are the server's."""
    set_up_mlflow()
    if credentials.given(uri):
        _answer_with_credentials()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def settle(uri: str) -> None:
    """Let a local store that was moved find its artifacts again; one that is not there stays so. StoreDamaged.

    ConfigError if a server owns it.
    """
    from pipelines.moved_store import follow_the_move
    from pipelines.served_store import assert_direct

    if uri.startswith(SQLITE) and database(uri).exists():
        with lock(uri), damage_named(uri):
            follow_the_move(database(uri))
            assert_direct(database(uri))


def backups(folder: Path) -> list[Path]:
    """The finished backups of the store in this folder, oldest first: by default they lie beside it."""
    beside = folder.absolute().with_name(f"{folder.absolute().name}-backups")
    return sorted(path.parent for path in beside.glob("*/BACKUP.json"))


@contextlib.contextmanager
def damage_named(location: str | Path) -> Iterator[None]:
    """Whatever fails in here because a local store's database is damaged is StoreDamaged, in clear words."""
    uri = tracking_uri(location)
    try:
        yield
    except StoreDamaged:
        raise
    except Exception as error:
        said = str(error)
        if not uri.startswith(SQLITE) or not ("sqlite3" in said or isinstance(error, sqlite3.Error)):
            raise
        path = database(uri)
        reason = next((words for words in _DAMAGED if words in said), None)
        if reason is None:
            if not isinstance(error, sqlite3.Error):
                raise
            raise ConnectionError(f"{path} cannot be read now ({error}); is another program holding it?") from error
        kept = backups(path.parent)
        advice = (
            f"the newest backup is {kept[-1]}: set {path.parent} aside and copy the backup to its place"
            if kept
            else f"there is no backup beside {path.parent}; if the folder is set aside, the next run begins an empty store"
        )
        raise StoreDamaged(
            f"the MLflow store's database {path} is damaged (sqlite says: {reason}); nothing was changed.\nnext: {advice}"
        ) from error


def names_damage(
    function: Callable[Concatenate[str | Path, Given], Answer],
) -> Callable[Concatenate[str | Path, Given], Answer]:
    """Decorate a function whose first argument is a store's location: see `damage_named`."""

    @functools.wraps(function)
    def guarded(location: str | Path, /, *args: Given.args, **named: Given.kwargs) -> Answer:
        with damage_named(location):
            return function(location, *args, **named)

    return guarded


def select(uri: str, query: str, *values: Any) -> list[Any]:
    """Rows of a local store's database; none if there is no database.

    Opened for writing where that is allowed: the transaction of a writer that was killed can only be undone so.
    """
    path = database(uri)
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=20)) as opened:
        return opened.execute(query, values).fetchall()


def ask(uri: str, what: str, answer: str = "model_version", **values: Any) -> dict[str, Any] | None:
    """The model version (or what else `answer` names) that a tracking server answers with; None if it has none.

    ConnectionError if it is away or in trouble, Rejected.
    """
    found = ask_whole(uri, what, **values)
    if found is not None and answer not in found:
        raise ConnectionError(f"{uri} answers {what} without {answer}; is it an MLflow server?")
    return None if found is None else dict(found[answer])


def ask_whole(uri: str, what: str, **values: Any) -> dict[str, Any] | None:
    """`ask`, the whole answer."""
    try:
        with open_url(uri, f"api/2.0/mlflow/{what}?{urllib.parse.urlencode(values)}") as answered:
            return dict(json.load(answered))
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        if error.code == 404 or (error.code == 400 and "not found" in said):  # an unknown alias is a 400 to MLflow
            return None
        raise ConnectionError(
            f"{uri} answered {error.code} to a question for {', '.join(map(str, values.values()))}: {error.reason}"
        ) from error
    except (ConnectionError, credentials.Rejected):
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:  # half an answer, or somebody else's
        raise ConnectionError(f"{uri} cannot be understood ({error}); is it an MLflow server?") from error


def open_url(uri: str, path: str, headers: Mapping[str, str] | None = None, timeout: float = 10.0) -> Any:
    """GET `path` below a tracking server's address, as this user: the open answer. The one place that sends credentials.

    `timeout` is in seconds without a byte. Rejected, ConnectionError; HTTPError for any other status than 2xx.
    """
    request = urllib.request.Request(f"{uri.rstrip('/')}/{path}", headers=dict(headers or {}))
    # Unredirected: a server that sends us elsewhere does not send our password along.
    if who := credentials.of(uri):
        request.add_unredirected_header("Authorization", who.header())
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise credentials.Rejected(uri, error.code) from error
        raise
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{uri} cannot be reached ({error}); is the MLflow server up?") from error


@contextlib.contextmanager
def lock(uri: str) -> Iterator[None]:
    """One writer at a time in a local store. A server has many clients anyway: there, reconciling must do.

    ConnectionError if another process holds it for longer than any upload takes: it is stopped, or hangs.
    """
    if not uri.startswith(SQLITE):
        with _server:
            yield
        return
    store = database(uri)
    with locked(
        store.with_name(".lock"), _LONGEST_WRITER, lambda: f"another process writes to the MLflow store {store.parent}"
    ):
        yield


def set_up_mlflow() -> None:
    """Import mlflow our way: it calls nobody, it does not repeat requests by itself, it logs no chatter."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A request that MLflow repeats by itself can create a thing twice; we repeat by looking first.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _answer_with_credentials() -> None:
    """Have MLflow's requests carry the credentials that were given for their server, and no other server's."""
    from mlflow.tracking.request_auth import registry
    from requests import PreparedRequest
    from requests.auth import AuthBase

    class FromFile(AuthBase):
        """Asked by MLflow for each request: its plugin for authentication, by the name in MLFLOW_TRACKING_AUTH."""

        def get_name(self) -> str:
            return _AUTH

        def get_auth(self) -> AuthBase:
            return self

        def __call__(self, request: PreparedRequest) -> PreparedRequest:
            if who := credentials.of_request(request.url or ""):
                request.headers["Authorization"] = who.header()
            return request

    if os.environ.get("MLFLOW_TRACKING_AUTH") != _AUTH or not any(
        provider.get_name() == _AUTH for provider in registry._request_auth_provider_registry
    ):
        os.environ["MLFLOW_TRACKING_AUTH"] = _AUTH
        registry._request_auth_provider_registry.register(FromFile)


def _create_database(path: Path) -> None:
    set_up_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    artifacts = path.parent / "artifacts"
    with durable.writing(path) as draft:
        store = SqlAlchemyStore(f"{SQLITE}{draft}", str(artifacts))
        store.create_experiment(EXPERIMENT, artifact_location=str(artifacts / EXPERIMENT))
        store.engine.dispose()
