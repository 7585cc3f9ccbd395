"""Model versions and aliases in MLflow: which version is the one, what it is called, where its files are.

The one idea: MLflow cannot be fenced, so registration is *reconciled*. A version carries its package's digest as a
tag from the moment it exists; the lowest version with a digest is the one, whoever created how many. Registering
again finds it, completes its files if they are not whole, and creates nothing.

A store is a folder (`registry/`: sqlite database and artifacts) or a tracking server's http address.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import promotion_log, store
from pipelines.mlflow_runs import experiment_id as experiment_id
from pipelines.mlflow_runs import find_or_create_run as find_or_create_run
from pipelines.model_versions import DIGEST_TAG as DIGEST_TAG
from pipelines.model_versions import REMOVED_TAG as REMOVED_TAG
from pipelines.model_versions import ModelVersion as ModelVersion
from pipelines.model_versions import UnknownModel as UnknownModel
from pipelines.model_versions import resolve as resolve
from pipelines.package import PackageDamaged, verify_package
from pipelines.store import EXPERIMENT as EXPERIMENT
from pipelines.store import connect as connect
from pipelines.store import ensure_store as ensure_store
from pipelines.store import names_damage
from pipelines.store import tracking_uri as tracking_uri
from pipelines.upload import local_folder, upload

SLOT_TAG = "gptline.slot"  # the retraining slot that made a version
BASE_TAG = "gptline.base"  # on an adapter: the version that it is used on top of, name@version
GATES_TAG = "gptline.gates"  # how each gate came out, JSON
VERIFIED_TAG = "gptline.verified"  # the digest of the stored files when they were last hashed, before champion moved
COMPARISON, STILL_CHAMPION = "comparison", "still_champion"  # the gates of a challenger
MARKED_TAG = "gptline.gc.marked"  # since when `gc --registry` means to remove a version's weights
DOUBLE_TAG = "gptline.duplicate_of"  # on a version whose package an earlier one holds: no alias points at it


@dataclass(frozen=True)
class GateResult:
    """One condition for becoming champion, as it came out. `detail` says what was seen and what was asked."""

    metric: str
    passed: bool
    detail: str


def _nothing_to_confirm() -> None:
    """For callers that own nothing that could be taken over."""


@names_damage
def register(
    location: str | Path,
    name: str,
    package: Path,
    tags: Mapping[str, str],
    confirm: Callable[[], None] = _nothing_to_confirm,
) -> ModelVersion:
    """The one version of `name` that holds the package in this folder, created if it is new.

    Its files are kept with the run that has the tags `gptline.step` and `gptline.fingerprint` given here. `confirm`
    raises where the caller may not write any more; it is asked by whoever has the store's lock, before the first write.
    PackageDamaged if the folder is not what its manifest says.
    """
    manifest = verify_package(package)
    digest = str(manifest["digest"])
    client = connect(location)
    identity = {key: tags[key] for key in ("gptline.step", "gptline.fingerprint") if key in tags}
    run = find_or_create_run(client, identity or {DIGEST_TAG: digest}, f"register {name}")
    with store.lock(str(client.tracking_uri)):
        confirm()
        _ensure_name(client, name)
        found = _canonical(client, name, digest)
        run_id = (found and found.run_id) or str(run.info.run_id)
        source = upload(client, run_id, f"{name}-{digest[:12]}", package, manifest)
        if found is None:
            client.create_model_version(name, source, run_id=run_id, tags={**tags, DIGEST_TAG: digest})
            found = _canonical(client, name, digest)
        elif (version_tags(location, name, found.version) or {}).get(REMOVED_TAG):
            for tag in (REMOVED_TAG, MARKED_TAG):  # it is whole again
                client.delete_model_version_tag(name, str(found.version), tag)
        _mark_doubles(client, name, digest)
    if found is None:
        raise UnknownModel(
            f"{name}: the version just created in {location} is gone; is another tool deleting versions?"
        )
    return found


def promote(location: str | Path, version: ModelVersion, gates: Sequence[GateResult]) -> bool:
    """`release` by its gates alone; whether the version is champion now."""
    return all(gate.passed for gate in release(location, version, gates))


@names_damage
def release(
    location: str | Path,
    version: ModelVersion,
    gates: Sequence[GateResult],
    over: str | None = None,
    confirm: Callable[[], None] = _nothing_to_confirm,
    verified: bool = False,
) -> list[GateResult]:
    """Point `candidate` at the version, and `champion` too if all gates passed; the reason goes on the version.

    `over` is the package digest of the champion that a challenger was compared with: another champion by now is one
    more gate that failed, and nothing is taken away. Without it, a champion that fails (its gates were tightened) is one
    no longer. PackageDamaged before any alias moves if the stored package is not whole. The gates as they came out.
    `confirm` is that of `register`. `verified`: the caller has just had `verify_stored` look at it.
    """
    client, how = connect(location), "retrain" if over else "run"
    if not verified and all(gate.passed for gate in gates):
        verify_stored(location, version)
    with store.lock(str(client.tracking_uri)):
        confirm()
        found = [*gates, *_still_champion(location, version, over)]
        passed, reason = all(gate.passed for gate in found), reason_of(found)
        number, results = str(version.version), json.dumps([vars(gate) for gate in found], sort_keys=True)
        # The reason is written before the alias moves: no champion without one.
        client.set_model_version_tag(version.name, number, GATES_TAG, results)
        client.set_model_version_tag(version.name, number, "gptline.promotion", reason)
        client.set_registered_model_alias(version.name, "candidate", number)
        if passed:
            promotion_log.move(client, version.name, version.version, how, reason)
        elif over is None and alias_version(location, version.name, "champion") == version.version:
            promotion_log.move(client, version.name, None, how, reason)
    return found


def reason_of(gates: Sequence[GateResult]) -> str:
    """Why a version became champion or did not, in one line."""
    failed = "; ".join(gate.detail for gate in gates if not gate.passed)
    told = "".join(f"; {gate.detail}" for gate in gates if gate.metric == COMPARISON)
    return f"not promoted: {failed}" if failed else f"all {len(gates)} gates passed{told}"


def _still_champion(location: str | Path, version: ModelVersion, over: str | None) -> list[GateResult]:
    """A gate that fails if the champion is another one than the challenger was compared with."""
    present = alias_version(location, version.name, "champion") if over else None
    if present is None or present == version.version:
        return []
    digest = (version_tags(location, version.name, present) or {}).get(DIGEST_TAG)
    detail = f"{version.name}@champion moved to version {present} meanwhile, which this version was not compared with"
    return [] if digest == over else [GateResult(STILL_CHAMPION, False, detail)]


@names_damage
def verify_stored(location: str | Path, version: ModelVersion, patience: float = 0.0) -> None:
    """Hash the version's files as they are stored, and say on the version that they are whole. PackageDamaged.

    Files that have to be fetched are asked for again for `patience` seconds each.
    """
    folder = local_folder(version.source)
    if folder is not None:
        seen = str(verify_package(folder)["digest"])
        if seen != version.digest:
            raise PackageDamaged(
                f"{folder} holds package {seen}, version {version.version} of {version.name} is {version.digest}"
            )
    else:
        from pipelines.pull import pull

        with tempfile.TemporaryDirectory() as scratch:
            pull(location, f"{version.name}@{version.version}", Path(scratch) / "model", patience)
    connect(location).set_model_version_tag(version.name, str(version.version), VERIFIED_TAG, str(version.digest))


def download(location: str | Path, version: ModelVersion, file: str, folder: Path) -> Path:
    """Fetch one file of a version into `folder`, under its relative name. OSError or MLflow's error if it cannot."""
    store.set_up_mlflow()
    import mlflow.artifacts

    uri = tracking_uri(location)
    target = folder / file
    target.parent.mkdir(parents=True, exist_ok=True)
    mlflow.artifacts.download_artifacts(f"{version.source}/{file}", dst_path=str(target.parent), tracking_uri=uri)
    return target


@names_damage
def version_exists(location: str | Path, name: str, version: int, digest: str | None = None) -> bool:
    """Whether the registry holds this version (with this package digest, if given). Does not import mlflow.

    For planning, in milliseconds. ConnectionError if a server cannot be asked.
    """
    tags = version_tags(location, name, version)
    return tags is not None and (digest is None or tags.get(DIGEST_TAG) == digest)


@names_damage
def version_tags(location: str | Path, name: str, version: int) -> dict[str, str] | None:
    """The tags of a version, None if there is none. Does not import mlflow. ConnectionError if a server cannot be asked."""
    uri = tracking_uri(location)
    return (_tags_over_http if uri.startswith("http") else _tags_in_sqlite)(uri, name, version)


@names_damage
def alias_version(location: str | Path, name: str, alias: str) -> int | None:
    """The version that `name@alias` means, None if there is none. Does not import mlflow.

    For planning, in milliseconds. ConnectionError if a server cannot be asked.
    """
    uri = tracking_uri(location)
    if uri.startswith("http"):
        found = store.ask(uri, "registered-models/alias", name=name, alias=alias)
        return int(found["version"]) if found else None
    rows = store.select(uri, "select version from registered_model_aliases where name = ? and alias = ?", name, alias)
    return int(rows[0][0]) if rows else None


def _tags_in_sqlite(uri: str, name: str, version: int) -> dict[str, str] | None:
    where = "where name = ? and version = ?"
    alive = (
        f"{where} and current_stage != '{store.DELETED}'"  # MLflow keeps the rows of a deleted version, and its tags
    )
    if not store.select(uri, f"select 1 from model_versions {alive}", name, version):
        return None
    return dict(store.select(uri, f"select key, value from model_version_tags {where}", name, version))


def _tags_over_http(uri: str, name: str, version: int) -> dict[str, str] | None:
    found = store.ask(uri, "model-versions/get", name=name, version=version)
    return None if found is None else {tag["key"]: tag["value"] for tag in found.get("tags", [])}


def _ensure_name(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _canonical(client: Any, name: str, digest: str) -> ModelVersion | None:
    """The lowest version of `name` that carries the digest."""
    found = _with_digest(client, name, digest)
    return _model_version(found[0]) if found else None


def _with_digest(client: Any, name: str, digest: str) -> list[Any]:
    """MLflow's versions of `name` that carry the digest, the lowest first."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{DIGEST_TAG}` = '{digest}'", max_results=1000)
    return sorted(found, key=lambda version: int(version.version))


def _mark_doubles(client: Any, name: str, digest: str) -> None:
    """Say on versions that a lost or late request made once more which one they repeat. Deleting could hurt a reader."""
    one, *others = _with_digest(client, name, digest) or [None]
    for other in others:
        if other.tags.get(DOUBLE_TAG) != str(one.version):
            client.set_model_version_tag(name, str(other.version), DOUBLE_TAG, str(one.version))


def _model_version(found: Any) -> ModelVersion:
    return ModelVersion(found.name, int(found.version), found.source, found.tags.get(DIGEST_TAG), found.run_id or None)
