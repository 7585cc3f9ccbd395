"""Is the MLflow store whole, and does it tell the truth? Asked of its files, without mlflow.

The one idea: what a store cannot make again is checked against what is known of it: the database against sqlite's own
check, each version's files against their manifest and the digest on the version, each alias against the rule that it
points at the canonical version. What is merely untidy (runs whose process is gone) is a remark.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines import store
from pipelines.config import ConfigError
from pipelines.mlflow_runs import KEY_TAG, OWNER_TAG, PARENT_TAG, is_orphan
from pipelines.package import PackageDamaged, verify_package
from pipelines.registry import DIGEST_TAG, DOUBLE_TAG, REMOVED_TAG


@dataclass
class Report:
    """What was found. `damaged` needs somebody; `remarks` do not."""

    folder: str
    versions: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)

    def elsewhere(self, folder: Path) -> Report:
        """The report on a folder that is to be renamed."""
        there = [[line.replace(self.folder, str(folder)) for line in lines] for lines in (self.damaged, self.remarks)]
        return Report(str(folder), self.versions, self.bytes, *there)

    def lines(self) -> Iterator[str]:
        """The report for people."""
        yield from (f"damaged: {what}" for what in self.damaged)
        yield from (f"remark: {what}" for what in self.remarks)
        yield (
            f"{self.folder}: database and {self.versions} model versions ({self.bytes / 1e6:.1f} MB) checked, "
            f"{len(self.damaged)} damaged, {len(self.remarks)} remarks"
        )
        if self.damaged:
            kept = store.backups(Path(self.folder))
            yield (
                f"next: copy what is damaged back from the newest backup, {kept[-1]}"
                if kept
                else "next: there is no backup; a damaged package is mended by registering it again"
            )


def local_database(location: str) -> Path:
    """The database of a local store. ConfigError for a server, or where there is none."""
    uri = store.tracking_uri(location)
    if not uri.startswith(store.SQLITE):
        raise ConfigError(
            f"execution.registry={location} is a server; give the folder in which its database lies, on its machine: "
            "--set execution.registry=FOLDER"
        )
    if not store.database(uri).exists():
        raise ConfigError(f"execution.registry={location}: no MLflow store there ({store.database(uri)} is missing)")
    return store.database(uri)


def check(database: Path) -> Report:
    """Check the store with this database, reading every byte of every registered package."""
    report, uri = Report(str(database.parent)), f"{store.SQLITE}{database}"
    try:
        said = [str(row[0]) for row in store.select(uri, "pragma integrity_check")]
        report.damaged += [f"{database.name}: {line}" for line in said if line != "ok"]
        digests = _check_versions(uri, database.parent, report)
        _check_aliases(uri, digests, report)
        _check_runs(uri, report)
    except sqlite3.Error as error:
        report.damaged.append(f"{database.name} cannot be read: {error}")
    return report


def _check_versions(uri: str, folder: Path, report: Report) -> dict[str, dict[int, str]]:
    """Check each version's files; the digest of each version by model."""
    digests: dict[str, dict[int, str]] = {}
    roots, removed = artifact_roots(uri), 0
    for name, version, source in store.select(
        uri, "select name, version, source from model_versions where current_stage != 'Deleted_Internal'"
    ):
        where = "where name = ? and version = ?"
        tags = dict(store.select(uri, f"select key, value from model_version_tags {where}", name, version))
        report.versions += 1
        if DIGEST_TAG not in tags:
            report.remarks.append(f"{name} version {version} was not registered by gptline and is not checked")
            continue
        digests.setdefault(name, {})[version] = tags[DIGEST_TAG]
        if DOUBLE_TAG in tags:
            report.remarks.append(f"{name} version {version} repeats version {tags[DOUBLE_TAG]}; no alias points at it")
        if REMOVED_TAG in tags:
            removed += 1
            continue
        if found := _damage(stored_at(source, folder, roots), tags[DIGEST_TAG], report):
            report.damaged.append(f"{name} version {version}: {found}")
    if removed:
        report.remarks.append(f"{removed} versions have no weights any more: `gc --registry` removed them")
    return digests


def _damage(package: Path, digest: str, report: Report) -> str:
    """What is wrong with the files of a version, '' if nothing."""
    try:
        manifest = verify_package(package)
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except PackageDamaged as error:
        return str(error)
    report.bytes += sum(file["size"] for file in manifest["files"].values())
    seen = manifest["digest"]
    return "" if seen == digest else f"{package} holds package {seen[:12]}, the version is of {digest[:12]}"


def artifact_roots(uri: str) -> list[str]:
    """The folders of artifacts as the database names them: of a backup, or a moved store, they are elsewhere."""
    named = [str(row[0]) for row in store.select(uri, "select artifact_location from experiments")]
    return [name.rpartition("/")[0] for name in named if name.startswith("/")]


def stored_at(source: str, folder: Path, roots: list[str]) -> Path:
    """Where the files at `source` lie, if the store is the one in `folder`."""
    if source.startswith("mlflow-artifacts:"):  # served by a server from a folder below, whatever its name
        inside = source.partition(":")[2].lstrip("/")
        return next((below / inside for below in folder.iterdir() if (below / inside).is_dir()), folder / inside)
    beside = [folder / "artifacts" / source.removeprefix(f"{root}/") for root in roots if source.startswith(f"{root}/")]
    return next((path for path in beside if path.is_dir()), Path(source))


def _check_aliases(uri: str, digests: dict[str, dict[int, str]], report: Report) -> None:
    for name, alias, version in store.select(uri, "select name, alias, version from registered_model_aliases"):
        known = digests.get(name, {})
        if version not in known:
            report.damaged.append(f"{name}@{alias} points at version {version}, which is not there or not ours")
        elif (one := min(number for number, digest in known.items() if digest == known[version])) != version:
            report.damaged.append(f"{name}@{alias} points at version {version}, which repeats version {one}")


def _check_runs(uri: str, report: Report) -> None:
    """RUNNING runs of pipelines whose process is gone, or of which nobody can tell."""
    where = "where status = 'RUNNING' and lifecycle_stage = 'active'"
    running = dict(store.select(uri, f"select run_uuid, name from runs {where}"))
    for run, name in running.items():
        tags = dict(store.select(uri, "select key, value from tags where run_uuid = ?", run))
        if KEY_TAG in tags and (is_orphan(tags) or OWNER_TAG not in tags):
            report.remarks.append(
                f"run {name} ({run}) says RUNNING and its process is gone; the next run in its work directory ends it"
            )
        elif KEY_TAG not in tags and tags.get(PARENT_TAG) not in running:
            report.remarks.append(f"run {name} ({run}) says RUNNING and the pipeline that it belongs to does not")
