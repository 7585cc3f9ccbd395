"""Moving champion: always on record, never to a version that is not whole, and log and alias agree whoever raced."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from pipelines import promotion, promotion_log, registry
from pipelines.engine.record import Record
from pipelines.model_card import Card
from pipelines.package import PackageDamaged, build_package
from pipelines.promotion import PromotionRefused
from pipelines.registry import GateResult, ModelVersion
from pipelines.stages import register as register_stage
from tests.pipelines.tiny_exports import write_classifier


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three classifiers of one shape with different weights."""
    folder = tmp_path_factory.mktemp("packages")
    for seed in range(3):
        export = write_classifier(folder / f"export{seed}", seed)
        build_package(export, folder / f"package{seed}", Card("sentiment", "text-classification", "A test."))
    return [folder / f"package{seed}" for seed in range(3)]


def _versions(store: Path, name: str, packages: list[Path]) -> list[ModelVersion]:
    """Each package as a version; the first two became champion one after the other."""
    found = [registry.register(store, name, package, {}) for package in packages]
    for version in found[:2]:
        assert registry.promote(store, version, [])
    return found


def _champion(store: Path, name: str) -> int | None:
    return registry.alias_version(store, name, "champion")


def _moves(store: Path, name: str) -> list[tuple[str, int | None, int | None]]:
    return [(entry.by, entry.before, entry.to) for entry in promotion_log.read(store, name)]


def test_each_move_is_on_record_with_who_when_and_why(store: Path, packages: list[Path]) -> None:
    _versions(store, "told", packages)
    version, before = promotion.promote(store, "told@3", "the customer likes it")
    assert (version.version, before) == (3, 2)
    assert _moves(store, "told") == [("run", None, 1), ("run", 1, 2), ("promote", 2, 3)]
    last = promotion_log.read(store, "told")[-1]
    assert last.why == "the customer likes it" and "@" in last.who and last.at.startswith("20")
    assert (registry.version_tags(store, "told", 3) or {})["gptline.verified"] == version.digest


def test_rollbacks_go_back_one_promotion_after_another(store: Path, packages: list[Path]) -> None:
    _versions(store, "back", packages)
    promotion.promote(store, "back@3", "new")
    assert promotion.rollback(store, "back", "worse")[0].version == 2
    assert promotion.rollback(store, "back", "worse still")[0].version == 1
    assert _champion(store, "back") == 1
    with pytest.raises(PromotionRefused, match="no earlier champion"):
        promotion.rollback(store, "back", "and on")
    promotion.promote(store, "back@3", "mended")
    assert promotion.rollback(store, "back", "not so")[0].version == 1


def test_a_version_that_is_not_whole_never_becomes_champion(store: Path, packages: list[Path]) -> None:
    found = _versions(store, "rotten", packages)
    for version in (found[0], found[2]):
        with open(Path(version.source) / "model.safetensors", "r+b") as file:
            file.write(b"x")
    for move in (
        lambda: promotion.promote(store, "rotten@3", "why not"),
        lambda: promotion.rollback(store, "rotten", "back"),
        lambda: registry.promote(store, found[2], []),
    ):
        with pytest.raises(PackageDamaged, match="the manifest says"):
            move()
        assert _champion(store, "rotten") == 2
    assert len(_moves(store, "rotten")) == 2


def test_failed_gates_and_a_missing_reason_are_refused_unless_one_insists(store: Path, packages: list[Path]) -> None:
    found = _versions(store, "gates", packages)
    registry.promote(store, found[2], [GateResult("accuracy", False, "accuracy 0.6 is not at least 0.7")])
    with pytest.raises(PromotionRefused, match=r"did not pass: accuracy 0\.6"):
        promotion.promote(store, "gates@3", "please")
    with pytest.raises(PromotionRefused, match="say why"):
        promotion.promote(store, "gates@1", " ")
    promotion.promote(store, "gates@3", "please", anyway=True)
    assert _champion(store, "gates") == 3
    assert "anyway: accuracy 0.6" in promotion_log.read(store, "gates")[-1].why


def test_two_promotions_at_once_are_both_in_the_log_and_the_last_one_holds(store: Path, packages: list[Path]) -> None:
    _versions(store, "raced", packages)
    racers = [
        threading.Thread(target=promotion.promote, args=(store, f"raced@{number}", f"racer {number}"))
        for number in (1, 3)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    log = promotion_log.read(store, "raced")
    assert {entry.why for entry in log} >= {"racer 1", "racer 3"}
    assert _champion(store, "raced") == log[-1].to


def test_a_move_that_raced_on_a_server_ends_where_the_log_ends(store: Path, packages: list[Path]) -> None:
    """Without a lock: the other's entry and alias come between ours, as they may on a server."""
    _versions(store, "between", packages)
    client = registry.connect(store)

    class Interleaved:
        """A client whose first pointing of the alias is preceded by a whole promotion of somebody else."""

        raced = False

        def __getattr__(self, name: str) -> object:
            return getattr(client, name)

        def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
            if not self.raced:
                self.raced = True
                promotion_log.move(client, name, 1, "promote", "the other")
            client.set_registered_model_alias(name, alias, version)

    promotion_log.move(Interleaved(), "between", 3, "promote", "we")
    log = promotion_log.read(store, "between")
    assert [entry.why for entry in log[-2:]] == ["we", "the other"]
    assert _champion(store, "between") == log[-1].to == 1


def test_a_kill_between_entry_and_alias_is_made_good_and_told_once(store: Path, packages: list[Path]) -> None:
    found = _versions(store, "halfway", packages)
    client = registry.connect(store)

    class Killed:
        def __getattr__(self, name: str) -> object:
            if name == "set_registered_model_alias":
                raise KeyboardInterrupt
            return getattr(client, name)

    with pytest.raises(KeyboardInterrupt):
        promotion_log.move(Killed(), "halfway", 3, "run", "all 0 gates passed")
    assert _champion(store, "halfway") == 2
    assert registry.promote(store, found[2], [])
    assert _champion(store, "halfway") == 3
    assert _moves(store, "halfway") == [("run", None, 1), ("run", 1, 2), ("run", 2, 3)]


def test_a_challenger_does_not_replace_a_champion_that_it_was_not_compared_with(
    store: Path, packages: list[Path]
) -> None:
    found = _versions(store, "moved-on", packages)
    better = GateResult(registry.COMPARISON, True, "better than version 1")
    gates = registry.release(store, found[2], [better], over=found[0].digest)
    assert [gate.passed for gate in gates] == [True, False] and "moved to version 2 meanwhile" in gates[1].detail
    assert _champion(store, "moved-on") == 2
    assert all(gate.passed for gate in registry.release(store, found[2], [better], over=found[1].digest))
    assert _champion(store, "moved-on") == 3 and _moves(store, "moved-on")[-1] == ("retrain", 2, 3)


def test_a_challenger_that_lost_takes_nothing_away(store: Path, packages: list[Path]) -> None:
    found = _versions(store, "lost", packages)
    promotion.promote(store, "lost@3", "by hand")
    worse = GateResult(registry.COMPARISON, False, "worse")
    assert not all(gate.passed for gate in registry.release(store, found[2], [worse], over=found[1].digest))
    assert _champion(store, "lost") == 3


def test_a_run_leaves_an_alias_where_retraining_or_a_person_put_it(store: Path, packages: list[Path]) -> None:
    found = _versions(store, "kept", packages)
    uri = registry.tracking_uri(store)
    metrics = {"name": "kept", "version": 2, "digest": found[1].digest, "registry": uri, "alias": "champion"}
    record = Record("register", "register-task", 1, "f", {}, {}, [], metrics, {}, {}, {}, "", "", 0.0, "")
    execution = {"registry": str(store)}
    assert register_stage.check(record, execution) is None
    promotion.promote(store, "kept@3", "by hand")
    assert register_stage.check(record, execution) is None
    registry.promote(store, found[0], [])  # another recipe's run
    assert "kept@champion points at version 1" in str(register_stage.check(record, execution))


def test_the_log_survives_what_people_write(store: Path, packages: list[Path]) -> None:
    _versions(store, "words", packages)
    why = 'she said "no"; 100 % 🙂\n' + "x" * 5000
    promotion.promote(store, "words@3", why)
    assert promotion_log.read(store, "words")[-1].why == why.strip()[:2000]
    assert json.dumps(promotion_log.read(store, "words")[-1].as_json())
