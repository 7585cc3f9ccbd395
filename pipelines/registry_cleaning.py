"""`gptline gc --registry`: the weights of old versions that no alias points at. Never by default, never a version itself.

The one idea: a version stays for ever with its number, its tags and its MANIFEST.json, which holds the lineage; what goes
are the other files of its package. It goes in two calls at least a day apart: the first marks the version, so that
whoever is promoting or pulling it right now is long done when the second one removes; an alias in between takes the
mark away again. Registering the same package anew makes the version whole.

Kept whole: what an alias points at, the newest `count` of each model, what is younger than the retention, the last
`count` champions in the promotion log (rollback goes there), and folders that another kept version shares.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines import promotion_log, registry, store, store_check
from pipelines.package import MANIFEST
from pipelines.registry import MARKED_TAG, REMOVED_TAG
from pipelines.retention import Retention, size_of

GRACE = datetime.timedelta(hours=20)  # between mark and removal: a nightly timer that is a little early still counts


@dataclass(frozen=True)
class OldVersion:
    """A version beyond the retention: `state` is what is to be done with it now: "mark", "wait", "remove" or "unmark"."""

    name: str
    version: int
    folder: Path
    bytes: int
    state: str
    why: str


def look(database: Path, retention: Retention, now: datetime.datetime) -> list[OldVersion]:
    """What `clean` would do now. Reads the local store with this database; imports no mlflow."""
    uri = f"{store.SQLITE}{database}"
    found: list[OldVersion] = []
    rows = store.select(uri, "select distinct name from registered_models order by name")
    for name in [str(row[0]) for row in rows]:
        versions = list(_versions(uri, database.parent, name))
        kept = _kept(uri, name, versions, retention, now)
        shared = {version.folder for version in versions if version.number in kept}
        for version in versions:
            state = version.state(version.number in kept or version.folder in shared, now)
            if state:
                why = kept.get(version.number) or f"made {(now - version.made).days} days ago, no alias"
                found.append(OldVersion(name, version.number, version.folder, version.bytes, state, why))
    return found


def clean(location: str, retention: Retention, now: datetime.datetime) -> list[OldVersion]:
    """Mark what is old, remove the weights of what was marked long enough; says what was done. One at a time.

    Beside the store's server, if it has one: a tag is one transaction of the database, which both wait for, and what the
    server's clients do meanwhile is what the day between mark and removal is for.
    """
    database = store_check.local_database(location)
    uri = f"{store.SQLITE}{database}"
    store.assert_readable(uri)
    client = store.client(uri)
    with store.lock(uri):
        found = look(database, retention, now)
        for old in found:
            _do(client, old, now)
    return found


@dataclass(frozen=True)
class _Version:
    number: int
    made: datetime.datetime
    folder: Path
    bytes: int
    marked: datetime.datetime | None
    removed: bool

    def state(self, kept: bool, now: datetime.datetime) -> str:
        if kept:
            return "unmark" if self.marked and not self.removed else ""
        if self.marked is None:
            return "mark"
        # Removed, and files are there: it was killed on the way.
        return ("remove" if now - self.marked >= GRACE else "wait") if self.bytes else ""


def _versions(uri: str, folder: Path, name: str) -> Iterator[_Version]:
    """The versions of one model that are ours, by number."""
    query = "select version, creation_time, source from model_versions where name = ? and current_stage != 'Deleted_Internal' order by version"
    roots = store_check.artifact_roots(uri)
    for number, made, source in store.select(uri, query, name):
        where = "where name = ? and version = ?"
        tags = dict(store.select(uri, f"select key, value from model_version_tags {where}", name, number))
        if registry.DIGEST_TAG not in tags:
            continue
        files = store_check.stored_at(source, folder, roots)
        marked = tags.get(MARKED_TAG)
        yield _Version(
            int(number),
            datetime.datetime.fromtimestamp(made / 1000, datetime.UTC),
            files,
            sum(size_of(path) for path in _weights(files)),
            datetime.datetime.fromisoformat(marked) if marked else None,
            REMOVED_TAG in tags,
        )


def _weights(folder: Path) -> list[Path]:
    """What is removed of a package: all but its manifest."""
    return [path for path in sorted(folder.iterdir()) if path.name != MANIFEST] if folder.is_dir() else []


def _kept(
    uri: str, name: str, versions: list[_Version], retention: Retention, now: datetime.datetime
) -> dict[int, str]:
    """The versions that stay whole, and why."""
    kept = {version.number: "one of the newest" for version in versions[-retention.count :]}
    kept |= {v.number: "young" for v in versions if now - v.made <= datetime.timedelta(days=retention.days)}
    champions = [entry.to for entry in promotion_log.read(uri, name) if entry.to is not None]
    latest = list(dict.fromkeys(reversed(champions)))[: retention.count + 1]
    kept |= dict.fromkeys(latest, "was champion lately")
    rows = store.select(uri, "select version, alias from registered_model_aliases where name = ?", name)
    return kept | {int(number): f"{name}@{alias}" for number, alias in rows}


def _do(client: Any, old: OldVersion, now: datetime.datetime) -> None:
    number = str(old.version)
    if old.state == "mark":
        client.set_model_version_tag(old.name, number, MARKED_TAG, now.isoformat(timespec="seconds"))
    elif old.state == "unmark":
        client.delete_model_version_tag(old.name, number, MARKED_TAG)
    elif old.state == "remove":
        # Said first: who finds files missing finds out why.
        client.set_model_version_tag(old.name, number, REMOVED_TAG, now.isoformat(timespec="seconds"))
        for path in _weights(old.folder):
            durable.remove(path)


def lines(found: list[OldVersion], done: bool) -> Iterator[str]:
    """For people: what happens to which version."""
    words = {
        "mark": "to be removed from tomorrow on",
        "wait": "marked; not yet",
        "remove": "weights",
        "unmark": "kept after all",
    }
    for old in found:
        yield f"  {old.bytes / 1e6:>10.1f} MB  version  {old.name}@{old.version}: {words[old.state]} ({old.why})"
    freed = [old for old in found if old.state == "remove"]
    yield (
        f"registry: {'freed' if done else 'would free'} {sum(old.bytes for old in freed) / 1e6:.1f} MB of {len(freed)} "
        f"versions, {'marked' if done else 'would mark'} {sum(old.state == 'mark' for old in found)}; "
        "their numbers, tags and lineage stay"
    )
