"""What a work directory keeps and lets go, and that it says why."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model import durable
from pipelines import cleaning, slots, upkeep_commands
from pipelines.aliased import aliased
from pipelines.engine import record as records
from pipelines.engine import sealed
from pipelines.engine.using import using
from pipelines.retention import Retention, Survey, survey
from tests.pipelines import nightly

NOW = datetime.datetime.now(datetime.UTC)
LATER = NOW + datetime.timedelta(days=10)


@pytest.fixture
def registry(tmp_path: Path) -> str:
    return nightly.registry(tmp_path / "registry")


@pytest.fixture
def root(tmp_path: Path, registry: str) -> Path:
    """Four nights, the first one's version is champion; each night replaces the only unit."""
    for number in range(4):
        files = [str(file) for file in range(number + 1)]
        nightly.go(tmp_path / "work", nightly.flow(files, champion=number == 0), registry)
    return tmp_path / "work"


def surveyed(root: Path, registry: str, days: float, count: int) -> Survey:
    return survey(root, Retention(days, count), LATER, aliased(root, registry))


def doomed(found: Survey, kind: str) -> list[str]:
    return [thing.name.rpartition("-")[0] or thing.name for thing in found.doomed if thing.kind == kind]


def folder(root: Path, step: str, night: int) -> Path:
    """The folder of a step of one night, by the order of their records."""
    found = sorted(
        root.glob(f"steps/{step}-*"), key=lambda path: json.loads((path / "record.json").read_text())["finished"]
    )
    return found[night]


def test_what_was_finished_within_the_retention_is_kept_with_all_that_it_stands_on(root: Path, registry: str) -> None:
    found = surveyed(root, registry, days=11, count=1)
    assert found.doomed == [] and len(found.kept) == 13


def test_beyond_it_the_newest_of_each_step_and_the_champions_run_are_kept(root: Path, registry: str) -> None:
    found = surveyed(root, registry, days=5, count=1)
    assert sorted(doomed(found, "step")) == ["pretrain", "pretrain", "register-task", "register-task", "shard", "shard"]
    assert {found.kept[folder(root, "register-task", night).name] for night in (0, 3)} == {
        "toy@champion is its version",
        "toy@candidate is its version",
    }
    assert found.kept[folder(root, "shard", 0).name] == "pretrain stands on it"
    assert len(doomed(found, "unit")) == 2, "those of the second and third night"
    assert found.bytes == sum(thing.bytes for thing in found.doomed) > 0


def test_what_stands_on_a_step_goes_before_it(root: Path, registry: str) -> None:
    order = doomed(surveyed(root, registry, days=5, count=1), "step")
    assert order.index("register-task") < order.index("pretrain") < order.index("shard")


def test_an_alias_that_moves_takes_its_protection_along(root: Path, registry: str) -> None:
    nightly.go(root, nightly.flow(["0", "1"], champion=True), registry)  # the second night's becomes champion
    found = surveyed(root, registry, days=5, count=1)
    assert folder(root, "pretrain", 0).name not in found.kept and folder(root, "pretrain", 1).name in found.kept


def test_a_registry_that_does_not_answer_stops_it_and_every_registry_of_the_records_is_asked(
    root: Path, tmp_path: Path
) -> None:
    other = nightly.registry(tmp_path / "other")
    assert set(aliased(root, other)) == {("toy", 1), ("toy", 4)}, "the records name the first registry"
    with pytest.raises(ConnectionError):
        aliased(root, "http://127.0.0.1:1")


def test_a_registry_that_records_name_and_that_is_gone_for_good_is_named_and_can_be_left_out(
    root: Path, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address was another HOST's; only `gc` could remove the records that name it."""
    known, gone = aliased(root, registry), "http://127.0.0.1:1"
    monkeypatch.setattr("pipelines.aliased._registries", lambda root: [(gone, "register-7")])
    way_out = r"steps/register-7 has registered(.|\n)*execution\.retired_registries=http://127\.0\.0\.1:1$"
    with pytest.raises(ConnectionError, match=way_out):
        aliased(root, registry)
    assert aliased(root, registry, [f"{gone}/"]) == known
    with pytest.raises(ConnectionError, match="cannot be reached"):
        aliased(root, gone, [gone])  # the one in use is asked in any case
    settings = [f"execution.registry={registry} execution.retired_registries={gone} {gone}0"]
    upkeep_commands.gc(str(root), settings)


def test_an_interrupted_step_stays_until_it_is_old_and_a_later_one_is_finished(root: Path, registry: str) -> None:
    with nightly.crashing(root), pytest.raises(nightly.Crash):
        nightly.go(root, nightly.flow(["new"]), registry)
    latest = max(root.glob("steps/pretrain-*"), key=lambda path: path.stat().st_ctime)
    assert not (latest / "record.json").exists()
    assert (
        surveyed(root, registry, days=0, count=1).kept[latest.name]
        == "interrupted, and nothing of its name was finished since"
    )
    nightly.go(root, nightly.flow(["newer"]), registry)
    assert latest.name not in surveyed(root, registry, days=0, count=1).kept
    assert surveyed(root, registry, days=11, count=1).kept[latest.name] == "worked on within 11 days"


def test_units_that_no_record_lists_yet_stay_as_long_as_they_are_young(root: Path, registry: str) -> None:
    killed = root / "units" / "text" / "ab" / ("ab" * 32 + ".txt")
    killed.parent.mkdir(exist_ok=True)
    killed.write_bytes(b"by a run that was killed")
    assert doomed(surveyed(root, registry, days=11, count=1), "unit") == []
    os.utime(killed, (0, 0))
    assert doomed(surveyed(root, registry, days=11, count=1), "unit") == ["text/" + "ab" * 6]


def test_what_a_kill_left_beside_a_record_goes(root: Path, registry: str) -> None:
    step = folder(root, "pretrain", 3)
    durable.write_bytes(step / "record.tmp", b"")
    (step / "checkpoints").mkdir()
    (step / "attempts" / "000009-aaaaaaaa").mkdir()
    found = surveyed(root, registry, days=11, count=1)
    assert [thing.name for thing in found.doomed] == [
        f"{step.name}/attempts/000009-aaaaaaaa",
        f"{step.name}/checkpoints",
    ]


def test_a_record_that_does_not_name_what_it_was_made_from_keeps_all_that_was_there(root: Path, registry: str) -> None:
    """Records of before `parents` was written."""
    latest = folder(root, "pretrain", 3)
    content = sealed.unseal(latest / records.RECORD)
    content["parents"] = {}
    durable.write_bytes(latest / records.RECORD, sealed.seal(content))
    assert "shard" not in doomed(surveyed(root, registry, days=5, count=1), "step")


def test_pulled_champions_of_closed_slots_go_but_for_the_latest(root: Path, registry: str) -> None:
    model = slots.folder(root, "toy")
    (model / "attempt").mkdir(parents=True)
    for number, (digest, outcome) in enumerate([("a", "kept"), ("b", "open"), ("c", "promoted")], 1):
        (model / "champions" / f"toy-{digest}").mkdir(parents=True)
        champion = {"name": "toy", "version": number, "digest": digest}
        slot = slots.Slot("toy", number, "tiny", NOW.isoformat(), "new", outcome, champion=champion)  # type: ignore[arg-type]
        slots.write(root, slot, model / "attempt")
    assert [thing.name for thing in surveyed(root, registry, 11, 1).doomed] == ["toy/champions/toy-a"]


def test_collecting_removes_exactly_what_looking_said_and_looking_writes_nothing(root: Path, registry: str) -> None:
    retention = Retention(5, 1)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    files = [path for path in before if path.is_file()]
    said = cleaning.look(root, retention, LATER, aliased(root, registry))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    done = cleaning.collect(root, retention, LATER, lambda: aliased(root, registry), 2.0)
    assert said == done
    gone = {path for path in files if not path.exists()}
    paths = [path for thing in said.doomed for path in thing.paths]
    assert all(any(path == top or top in path.parents for top in paths) for path in gone)
    assert not any(path.exists() for path in paths)
    assert cleaning.look(root, retention, LATER, aliased(root, registry)).doomed == []
    words = list(cleaning.lines(said, False, retention))
    assert any("pretrain" in line and "no alias" in line for line in words) and words[-1].startswith("would free: ")


def test_a_folder_that_is_no_work_directory_is_refused(tmp_path: Path) -> None:
    from pipelines.config import ConfigError

    with pytest.raises(ConfigError, match="no work directory"):
        cleaning.look(tmp_path, Retention(), NOW, {})


def test_the_command_says_what_would_go_does_it_with_yes_and_leaves_where_somebody_is_at_work(
    root: Path, registry: str
) -> None:
    def gc(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "pipelines",
            "gc",
            "-w",
            str(root),
            "--keep-days",
            "0",
            "--keep",
            "1",
            *arguments,
        ]
        setting = f"execution.registry={registry.removeprefix('sqlite:///').removesuffix('/mlflow.db')}"
        return subprocess.run([*command, "--set", setting], capture_output=True, text=True, check=False)

    dry = gc()
    assert dry.returncode == 0 and "would free" in dry.stdout and "next: the same with YES=1" in dry.stdout
    with using(root, 2.0, lambda owner: None):
        refused, left = gc("--yes"), gc("--yes", "--if-idle")
    assert (refused.returncode, left.returncode) == (1, 0)
    assert "nothing was removed" in refused.stderr and "nothing was removed" in left.stdout
    before = json.loads(gc("--json").stdout)
    done = json.loads(gc("--json", "--yes").stdout)
    assert done["done"] and done["removed"] == before["removed"] != []
    assert json.loads(gc("--json").stdout)["removed"] == []
