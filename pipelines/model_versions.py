"""Which version of a model a name means, and where its files are: asked in milliseconds, without importing mlflow.

The one idea: an alias is read once, and everything that is fetched afterwards belongs to the version that it meant
then. So whoever pulls while an alias moves gets one version or the other, whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import store

DIGEST_TAG = "gptline.digest"
REMOVED_TAG = "gptline.gc.removed"  # when `gc --registry` removed its weights: only MANIFEST.json is stored


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


def parsed(spec: str) -> tuple[str, str]:
    """The name, and the alias or number, of `name@alias`, `name@3` or `name/3`. UnknownModel."""
    name, _, which = spec.replace("/", "@", 1).partition("@")
    if not name or not which:
        raise UnknownModel(f"{spec!r} is not name@alias or name@version, such as sentiment@champion or sentiment@3")
    return name, which


@store.names_damage
def resolve(location: str | Path, spec: str) -> ModelVersion:
    """The version that `name@alias`, `name@3` or `name/3` means. UnknownModel lists what there is.

    ConnectionError if a server cannot be asked.
    """
    name, which = parsed(spec)
    uri = store.tracking_uri(location)
    if uri.startswith(store.SQLITE):
        store.settle(uri)
    found = (_over_http if uri.startswith("http") else _in_sqlite)(uri, name, which)
    if found is None:
        raise UnknownModel(_what_there_is(location, name, which))
    version, tags = found
    if removed := tags.get(REMOVED_TAG):
        raise UnknownModel(
            f"{name}@{version.version} has no weights any more: `gc --registry` removed them at {removed}; its tags and "
            "lineage are kept, and registering the same model again brings it back"
        )
    return version


_Tagged = tuple["ModelVersion", Mapping[str, str]]


def _over_http(uri: str, name: str, which: str) -> _Tagged | None:
    number = {"version": which} if which.isdigit() else {"alias": which}
    found = store.ask(uri, "model-versions/get" if which.isdigit() else "registered-models/alias", name=name, **number)
    if found is None:
        return None
    tags = {tag["key"]: tag["value"] for tag in found.get("tags", [])}
    return _version(found, tags), tags


def _in_sqlite(uri: str, name: str, which: str) -> _Tagged | None:
    if not which.isdigit():
        query = "select version from registered_model_aliases where name = ? and alias = ?"
        which = next((str(row[0]) for row in store.select(uri, query, name, which)), "")
    query = f"select source, run_id from model_versions where name = ? and version = ? and current_stage != '{store.DELETED}'"
    rows = store.select(uri, query, name, int(which)) if which else []
    if not rows:
        return None
    query = "select key, value from model_version_tags where name = ? and version = ?"
    tags = dict(store.select(uri, query, name, int(which)))
    return _version({"name": name, "version": which, "source": rows[0][0], "run_id": rows[0][1]}, tags), tags


@dataclass(frozen=True)
class Listed:
    """A registered version with its tags and the aliases that point at it."""

    version: ModelVersion
    tags: Mapping[str, str]
    aliases: tuple[str, ...]


@store.names_damage
def all_versions(location: str | Path) -> list[Listed]:
    """Every version of every model, by name and number. ConnectionError if a server cannot be asked."""
    uri = store.tracking_uri(location)
    if uri.startswith(store.SQLITE):
        store.settle(uri)
    found = list((_all_over_http if uri.startswith("http") else _all_in_sqlite)(uri))
    return sorted(found, key=lambda listed: (listed.version.name, listed.version.version))


def _all_over_http(uri: str) -> Iterator[Listed]:
    pointing = _pointing(uri)
    for found in _pages(uri, "model-versions/search", "model_versions"):
        tags = {tag["key"]: tag["value"] for tag in found.get("tags", [])}
        version = _version(found, tags)
        yield Listed(version, tags, tuple(sorted(pointing.get((version.name, version.version), []))))


def aliases(uri: str) -> Iterator[tuple[str, str, int]]:
    """(model, alias, version) of every alias in a registry. ConnectionError if a server cannot be asked."""
    if uri.startswith("http"):
        for model in _pages(uri, "registered-models/search", "registered_models"):
            for alias in model.get("aliases", []):
                yield model["name"], alias["alias"], int(alias["version"])
    else:
        for name, alias, version in store.select(uri, "select name, alias, version from registered_model_aliases"):
            yield name, alias, int(version)


def _pointing(uri: str) -> dict[tuple[str, int], list[str]]:
    """The aliases of each version that has some, by name and number."""
    found: dict[tuple[str, int], list[str]] = {}
    for name, alias, version in aliases(uri):
        found.setdefault((name, version), []).append(alias)
    return found


def _pages(uri: str, what: str, answer: str) -> Iterator[dict[str, Any]]:
    token = ""
    while True:
        found = store.ask_whole(uri, what, max_results=200, **({"page_token": token} if token else {})) or {}
        yield from found.get(answer, [])
        token = found.get("next_page_token", "")
        if not token:
            return


def _all_in_sqlite(uri: str) -> Iterator[Listed]:
    tags: dict[tuple[str, int], dict[str, str]] = {}
    for name, number, key, value in store.select(uri, "select name, version, key, value from model_version_tags"):
        tags.setdefault((name, int(number)), {})[key] = value
    pointing = _pointing(uri)
    query = f"select name, version, source, run_id from model_versions where current_stage != '{store.DELETED}'"
    for name, number, source, run in store.select(uri, query):
        known = (name, int(number))
        version = _version({"name": name, "version": number, "source": source, "run_id": run}, tags.get(known, {}))
        yield Listed(version, tags.get(known, {}), tuple(sorted(pointing.get(known, []))))


def run_tags(location: str | Path, run: str) -> dict[str, str]:
    """The tags of an MLflow run; none if there is no such run. ConnectionError if a server cannot be asked."""
    uri = store.tracking_uri(location)
    if not uri.startswith("http"):
        return dict(store.select(uri, "select key, value from tags where run_uuid = ?", run))
    found = store.ask(uri, "runs/get", "run", run_id=run)
    return {tag["key"]: tag["value"] for tag in found["data"].get("tags", [])} if found else {}


def _version(found: Mapping[str, Any], tags: Mapping[str, str]) -> ModelVersion:
    source, run = str(found.get("source", "")), found.get("run_id")
    return ModelVersion(str(found["name"]), int(found["version"]), source, tags.get(DIGEST_TAG), run or None)


def _what_there_is(location: str | Path, name: str, which: str) -> str:
    """The answer to an unknown name; this once, MLflow itself is asked."""
    if not _is_there(location):
        return f"no model {name!r} in {location}: there is no store; run the pipeline first, or name another registry"
    client = store.connect(location)
    names = {model.name: model for model in client.search_registered_models(max_results=1000)}
    if name not in names:
        return (
            f"no model {name!r} in {location}; there is: {', '.join(sorted(names)) or 'none, run the pipeline first'}"
        )
    versions = client.search_model_versions(f"name = '{name}'", max_results=10_000)
    known = [f"@{alias} (version {version})" for alias, version in sorted(dict(names[name].aliases).items())]
    known += [f"@{number}" for number in sorted(int(version.version) for version in versions)]
    return f"no {name}@{which} in {location}; there is: {', '.join(known) or 'no version'}"


def _is_there(location: str | Path) -> bool:
    uri = store.tracking_uri(location)
    return not uri.startswith(store.SQLITE) or store.database(uri).exists()
