"""The weights of old versions go, in two calls a day apart; versions, lineage, champions and rollback stay. A real store."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

import pytest

from pipelines import promotion, registry, registry_cleaning, served_store, store_check
from pipelines.aliased import aliased
from pipelines.config import ConfigError
from pipelines.model_card import Card
from pipelines.package import MANIFEST, build_package
from pipelines.registry import GateResult, UnknownModel
from pipelines.retention import Retention

RETENTION = Retention(days=30, count=1)
LATER = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=60)
DAY = datetime.timedelta(days=1)


def package(folder: Path, name: str, number: int) -> Path:
    """A package of `number`'s weights, as far as the registry looks at it."""
    export = folder / f"export-{number}"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(b"weights" * (1000 + number))
    build_package(export, folder / f"package-{number}", Card(name, "text-classification", "A test."))
    return folder / f"package-{number}"


def versions(store: Path, folder: Path, name: str, champions: tuple[int, ...]) -> list[Path]:
    """Six versions of a model; those named became champion, one after the other, each replacing the one before."""
    packages = [package(folder, name, number) for number in range(1, 7)]
    for number, made in enumerate(packages, 1):
        version = registry.register(store, name, made, {})
        over = "another" if number not in champions and number > 1 else None
        registry.release(store, version, [GateResult("toy", number in champions, "toy")], over)
    return packages


def states(found: list[registry_cleaning.OldVersion], name: str) -> dict[int, str]:
    return {old.version: old.state for old in found if old.name == name}


def test_old_versions_lose_their_weights_a_day_after_they_were_marked(store: Path, tmp_path: Path) -> None:
    packages = versions(store, tmp_path, "old", champions=(1, 2, 3))
    database = store_check.local_database(str(store))

    def clean(when: datetime.datetime) -> dict[int, str]:
        said = states(registry_cleaning.look(database, RETENTION, when), "old")
        assert said == states(registry_cleaning.clean(str(store), RETENTION, when), "old"), "what was said is done"
        return said

    assert clean(LATER - 40 * DAY) == {}, "all are young"
    # Version 3 is champion, 2 was before it (rollback goes there), 6 is candidate and the newest.
    assert clean(LATER) == {1: "mark", 4: "mark", 5: "mark"}
    assert clean(LATER) == {1: "wait", 4: "wait", 5: "wait"}
    promotion.promote(store, "old@4", "we need it after all", anyway=True)
    # Two champions are kept: 4 and 3, which was before it; now 2 is older than that.
    assert clean(LATER + DAY) == {1: "remove", 2: "mark", 4: "unmark", 5: "remove"}
    assert clean(LATER + DAY) == {2: "wait"}
    with pytest.raises(UnknownModel, match="no weights any more"):
        registry.resolve(store, "old@1")
    assert registry.version_exists(store, "old", 1), "numbers and tags stay"
    assert promotion.rollback(store, "old", "that was wrong")[0].version == 3
    removed = next(old.folder for old in _all(database) if old.number == 1)
    assert [path.name for path in removed.iterdir()] == [MANIFEST], "lineage stays"
    report = store_check.check(database)
    assert [line for line in report.damaged if line.startswith("old")] == []
    assert "2 versions have no weights any more: `gc --registry` removed them" in report.remarks
    # The same model registered again is whole, under its old number.
    assert registry.register(store, "old", packages[0], {}).version == 1
    assert registry.resolve(store, "old@1").version == 1
    registry.verify_stored(store, registry.resolve(store, "old@1"))


def _all(database: Path) -> list[registry_cleaning._Version]:
    return list(registry_cleaning._versions(f"sqlite:///{database}", database.parent, "old"))


def test_the_aliases_that_a_work_directory_must_not_lose_are_those_of_the_store(store: Path, tmp_path: Path) -> None:
    version = registry.register(store, "aliased", package(tmp_path, "aliased", 1), {})
    registry.release(store, version, [])
    found = aliased(tmp_path / "no-work", store)
    assert found[("aliased", 1)] == "aliased@candidate, aliased@champion is its version"


def test_old_versions_of_a_store_that_a_server_owns_lose_their_weights_too(empty_store: Path, tmp_path: Path) -> None:
    """Beside its server: the folder is given, and nothing is asked that only the server answers."""
    folder = tmp_path / "served"
    shutil.copytree(empty_store, folder)
    (folder / "artifacts" / "gptline").mkdir(parents=True)
    for number in (1, 2, 3):
        registry.register(folder, "served", package(tmp_path, "served", number), {})
    database = store_check.local_database(str(folder))
    served_store.name_by_address(database)
    with pytest.raises(ConfigError, match="belongs to an MLflow server"):
        registry.connect(folder)
    for when, done in ((LATER, {1: "mark", 2: "mark"}), (LATER + DAY, {1: "remove", 2: "remove"})):
        assert states(registry_cleaning.look(database, RETENTION, when), "served") == done
        assert states(registry_cleaning.clean(str(folder), RETENTION, when), "served") == done
    left = [path.name for path in (folder / "artifacts").rglob("*") if path.is_file()]
    assert left.count("model.safetensors") == 1 and left.count(MANIFEST) == 3
