"""Model versions and aliases in MLflow: which version is the one, what it is called, where its files are.

The one idea: MLflow cannot be fenced, so registration is *reconciled*. A version carries its package's digest as a
tag from the moment it exists; the lowest version with a digest is the one, whoever created how many. Registering
again finds it, completes its files if they are not whole, and creates nothing.

A store is a folder (`registry/`: sqlite database and artifacts) or a tracking server's http address.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines.package import verify_package
from pipelines.upload import upload

DIGEST_TAG = "gptline.digest"
EXPERIMENT = "gptline"
_SQLITE = "sqlite:///"


class UnknownModel(LookupError):
    """No such registered model, version or alias. The message lists what there is."""


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. `source` is the address of its files, `digest` that of its package."""

    name: str
    version: int
    source: str
    digest: str | None
    run_id: str | None


@dataclass(frozen=True)
class GateResult:
    """One condition for becoming champion, as it came out. `detail` says what was seen and what was asked."""

    metric: str
    passed: bool
    detail: str


def tracking_uri(location: str | Path) -> str:
    """MLflow's address of a store given as a folder, or as that address already. Touches nothing."""
    if str(location).startswith(("http://", "https://", _SQLITE)):
        return str(location)
    return f"{_SQLITE}{Path(location).absolute() / 'mlflow.db'}"


def ensure_store(location: str | Path) -> str:
    """The tracking URI of `location`; a folder gets its database, once, whoever else asks at the same time.

    The migrations take seconds and would race; the finished database appears by one rename.
    """
    uri = tracking_uri(location)
    if uri.startswith(_SQLITE) and not _database(uri).exists():
        _database(uri).parent.mkdir(parents=True, exist_ok=True)
        with _lock(uri):
            if not _database(uri).exists():
                _create_database(_database(uri))
    return uri


def connect(location: str | Path) -> Any:
    """An MlflowClient of the store. Imports mlflow: seconds, the first time."""
    uri = ensure_store(location)
    _set_up_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: Any, name: str = EXPERIMENT) -> str:
    """The id of the experiment `name`, created if need be. Its artifacts lie beside a sqlite database."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        uri = str(client.tracking_uri)
        place = str(_database(uri).parent / "artifacts" / name) if uri.startswith(_SQLITE) else None
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException:  # somebody else was faster: then it is there
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def find_or_create_run(client: Any, identity: Mapping[str, str], name: str, experiment: str = EXPERIMENT) -> Any:
    """The MLflow run whose tags are `identity`: the earliest there is, or a new one of that name."""
    with _lock(str(client.tracking_uri)):
        found = find_run(client, identity, experiment)
        number = experiment_id(client, experiment)
        return found or client.create_run(number, tags={**identity, "mlflow.runName": name})


def find_run(client: Any, identity: Mapping[str, str], experiment: str = EXPERIMENT) -> Any | None:
    """The earliest MLflow run whose tags are `identity`, or None."""
    where = " and ".join(f"tags.`{key}` = '{value}'" for key, value in sorted(identity.items()))
    number = experiment_id(client, experiment)
    found = client.search_runs([number], where, max_results=1, order_by=["attributes.start_time ASC"])
    return found[0] if found else None


def register(location: str | Path, name: str, package: Path, tags: Mapping[str, str]) -> ModelVersion:
    """The one version of `name` that holds the package in this folder, created if it is new.

    Its files are kept with the run that has the tags `gptline.step` and `gptline.fingerprint` given here.
    PackageDamaged if the folder is not what its manifest says.
    """
    manifest = verify_package(package)
    digest = str(manifest["digest"])
    client = connect(location)
    identity = {key: tags[key] for key in ("gptline.step", "gptline.fingerprint") if key in tags}
    run = find_or_create_run(client, identity or {DIGEST_TAG: digest}, f"register {name}")
    with _lock(str(client.tracking_uri)):
        _ensure_name(client, name)
        found = _canonical(client, name, digest)
        run_id = (found and found.run_id) or str(run.info.run_id)
        source = upload(client, run_id, f"{name}-{digest[:12]}", package, manifest)
        if found is None:
            client.create_model_version(name, source, run_id=run_id, tags={**tags, DIGEST_TAG: digest})
            found = _canonical(client, name, digest)
    if found is None:
        raise UnknownModel(
            f"{name}: the version just created in {location} is gone; is another tool deleting versions?"
        )
    return found


def promote(location: str | Path, version: ModelVersion, gates: Sequence[GateResult]) -> bool:
    """Point `candidate` at the version, and `champion` too if all gates passed; the reason goes on the version.

    A champion that fails (its gates were tightened) is one no longer.
    """
    passed = all(gate.passed for gate in gates)
    failed = "; ".join(gate.detail for gate in gates if not gate.passed)
    reason = f"all {len(gates)} gates passed" if passed else f"not promoted: {failed}"
    client = connect(location)
    results = json.dumps([vars(gate) for gate in gates], sort_keys=True)
    # The reason is written before the alias moves: no champion without one.
    client.set_model_version_tag(version.name, str(version.version), "gptline.gates", results)
    client.set_model_version_tag(version.name, str(version.version), "gptline.promotion", reason)
    for alias in ("candidate", "champion") if passed else ("candidate",):
        client.set_registered_model_alias(version.name, alias, str(version.version))
    if not passed and alias_version(location, version.name, "champion") == version.version:
        client.delete_registered_model_alias(version.name, "champion")
    return passed


def resolve(location: str | Path, spec: str) -> ModelVersion:
    """The version that `name@alias`, `name@3` or `name/3` means. UnknownModel lists what there is."""
    name, _, which = spec.replace("/", "@", 1).partition("@")
    if not name or not which:
        raise UnknownModel(f"{spec!r} is not name@alias or name@version, such as sentiment@champion or sentiment@3")
    client = connect(location)
    names = {model.name: model for model in client.search_registered_models(max_results=1000)}
    if name not in names:
        raise UnknownModel(
            f"no model {name!r} in {location}; there is: {', '.join(sorted(names)) or 'none, run the pipeline first'}"
        )
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'", max_results=10_000)}
    aliases = dict(names[name].aliases)
    number = which if which.isdigit() else str(aliases.get(which))
    if number not in versions:
        known = [f"@{alias} (version {version})" for alias, version in sorted(aliases.items())]
        known += [f"@{version}" for version in sorted(versions, key=int)]
        raise UnknownModel(f"no {name}@{which} in {location}; there is: {', '.join(known) or 'no version'}")
    return _model_version(versions[number])


def download(location: str | Path, version: ModelVersion, file: str, folder: Path) -> Path:
    """Fetch one file of a version into `folder`, under its relative name. OSError or MLflow's error if it cannot."""
    _set_up_mlflow()
    import mlflow.artifacts

    uri = tracking_uri(location)
    target = folder / file
    target.parent.mkdir(parents=True, exist_ok=True)
    mlflow.artifacts.download_artifacts(f"{version.source}/{file}", dst_path=str(target.parent), tracking_uri=uri)
    return target


def version_exists(location: str | Path, name: str, version: int, digest: str | None = None) -> bool:
    """Whether the registry holds this version (with this package digest, if given). Does not import mlflow.

    For planning, in milliseconds. ConnectionError if a server cannot be asked.
    """
    uri = tracking_uri(location)
    ask = _tags_over_http if uri.startswith("http") else _tags_in_sqlite
    tags = ask(uri, name, version)
    return tags is not None and (digest is None or tags.get(DIGEST_TAG) == digest)


def alias_version(location: str | Path, name: str, alias: str) -> int | None:
    """The version that `name@alias` means, None if there is none. Does not import mlflow.

    For planning, in milliseconds. ConnectionError if a server cannot be asked.
    """
    uri = tracking_uri(location)
    if uri.startswith("http"):
        found = _ask(uri, "registered-models/alias", name=name, alias=alias)
        return int(found["version"]) if found else None
    rows = _select(uri, "select version from registered_model_aliases where name = ? and alias = ?", name, alias)
    return int(rows[0][0]) if rows else None


def _tags_in_sqlite(uri: str, name: str, version: int) -> dict[str, str] | None:
    where = "where name = ? and version = ?"
    if not _select(uri, f"select 1 from model_versions {where}", name, version):
        return None
    return dict(_select(uri, f"select key, value from model_version_tags {where}", name, version))


def _select(uri: str, query: str, *values: Any) -> list[Any]:
    """Rows of a local store's database; none if there is no database."""
    path = _database(uri)
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=20)) as database:
        return database.execute(query, values).fetchall()


def _tags_over_http(uri: str, name: str, version: int) -> dict[str, str] | None:
    found = _ask(uri, "model-versions/get", name=name, version=version)
    return None if found is None else {tag["key"]: tag["value"] for tag in found.get("tags", [])}


def _ask(uri: str, what: str, **values: Any) -> dict[str, Any] | None:
    """The model version that a tracking server answers with; None if it has no such thing."""
    query = urllib.parse.urlencode(values)
    request = urllib.request.Request(f"{uri.rstrip('/')}/api/2.0/mlflow/{what}?{query}")
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(json.load(answer)["model_version"])
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        if error.code == 404 or (error.code == 400 and "not found" in said):  # an unknown alias is a 400 to MLflow
            return None
        raise ConnectionError(
            f"{uri} answered {error.code} to a question for {', '.join(map(str, values.values()))}: {error.reason}"
        ) from error
    except OSError as error:
        raise ConnectionError(f"{uri} cannot be reached ({error}); is the MLflow server up?") from error


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE))


@contextlib.contextmanager
def _lock(uri: str) -> Iterator[None]:
    """One writer at a time in a local store. A server has many clients anyway: there, reconciling must do."""
    if not uri.startswith(_SQLITE):
        yield
        return
    from filelock import FileLock

    with FileLock(_database(uri).with_name(".lock")):
        yield


def _set_up_mlflow() -> None:
    """Import mlflow our way: it calls nobody, it does not repeat requests by itself, it logs no chatter."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A request that MLflow repeats by itself can create a thing twice; we repeat by looking first.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow  # noqa: F401

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _create_database(database: Path) -> None:
    _set_up_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    artifacts = database.parent / "artifacts"
    with durable.writing(database) as draft:
        store = SqlAlchemyStore(f"{_SQLITE}{draft}", str(artifacts))
        store.create_experiment(EXPERIMENT, artifact_location=str(artifacts / EXPERIMENT))
        store.engine.dispose()


def _ensure_name(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _canonical(client: Any, name: str, digest: str) -> ModelVersion | None:
    """The lowest version of `name` that carries the digest."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{DIGEST_TAG}` = '{digest}'", max_results=1000)
    return min(map(_model_version, found), key=lambda version: version.version, default=None)


def _model_version(found: Any) -> ModelVersion:
    return ModelVersion(found.name, int(found.version), found.source, found.tags.get(DIGEST_TAG), found.run_id or None)
