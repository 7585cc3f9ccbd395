"""verify: what is damaged, missing or nobody's is named; what is ours is not; a wrong path is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines.config import ConfigError
from pipelines.engine import sealed
from pipelines.engine.step import Attempt, Stage, Step
from pipelines.outbox import Outbox
from pipelines.verification import verify
from tests.faults.test_damage import delete, empty, flip, halve, make_a_folder, make_unreadable
from tests.pipelines.engine import toys


def test_what_is_whole_and_ours_is_not_reported(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    durable.write_bytes(tmp_path / "digests.json", sealed.seal({"files": {}}))
    Outbox(tmp_path / "outbox.json").keep([])
    report = verify(tmp_path)
    assert report.checked == 6
    assert (report.damaged, report.missing, report.unowned) == ([], [], [])


def test_damage_what_is_missing_and_a_strangers_file_are_named(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    first, second, third = sorted((tmp_path / "units").rglob("*.txt"))
    first.write_bytes(b"damaged")
    second.unlink()
    third.with_suffix(".json").write_text("{}")
    (tmp_path / "mine.txt").write_text("a stranger's")
    report = verify(tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in (first, third.with_suffix(".json"))]
    assert sorted(report.damaged) == sorted(names)
    assert report.missing == [str(second.relative_to(tmp_path))]
    assert report.unowned == ["mine.txt"]
    assert "next: make run WORK=w (" in list(report.lines("make run WORK=w"))[-1]


def test_a_damaged_record_is_damage_and_no_crash(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow()[:1])
    (record,) = tmp_path.glob("steps/*/record.json")
    record.write_text("{}")
    assert verify(tmp_path).damaged == [str(record.relative_to(tmp_path))]


def write_manifest(checkpoint: Path, file: dict[str, Any]) -> None:
    content = {"step": 1, "files": [file]}
    durable.write_json(checkpoint / "MANIFEST.json", content | {"sha256": durable.own_digest(content)})


@pytest.mark.parametrize("damage", [flip, halve, empty, delete, make_a_folder, make_unreadable])
@pytest.mark.parametrize("name", ["MANIFEST.json", "state/shard"])
def test_damage_in_a_checkpoint_of_an_unfinished_step_is_named(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    checkpoint = tmp_path / "steps/pretrain-0123456789ab/checkpoints/step-000001"
    (checkpoint / "state").mkdir(parents=True)
    (checkpoint / "state/shard").write_bytes(b"weights")
    file = {"path": "state/shard", "size": 7, "sha256": durable.sha256(checkpoint / "state/shard")}
    write_manifest(checkpoint, file)
    report = verify(tmp_path)
    assert (report.damaged + report.missing + report.unowned, report.checked) == ([], 1)
    damage(checkpoint / name)
    report = verify(tmp_path)
    assert report.damaged + report.missing == [str((checkpoint / name).relative_to(tmp_path))]


@pytest.mark.parametrize("damage", [flip, halve, empty, make_a_folder])
def test_a_damaged_outbox_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    toys.run(tmp_path, toys.flow())
    Outbox(tmp_path / "outbox.json").keep([])
    damage(tmp_path / "outbox.json")
    assert verify(tmp_path).damaged == ["outbox.json"]
    assert Outbox(tmp_path / "outbox.json").take() == [] and not (tmp_path / "outbox.json").exists()


def test_what_the_dead_left_of_a_finished_step_is_nobodys(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    folder = next(tmp_path.glob("steps/letters-*"))
    (folder / "attempts/000001-0123abcd").mkdir()
    (folder / "attempts/000001-0123abcd/draft").write_text("half")
    assert verify(tmp_path).unowned == [f"steps/{folder.name}/attempts/000001-0123abcd/draft"]
    (folder / "record.json").unlink()  # a step that goes on may need what lies there
    assert not [path for path in verify(tmp_path).unowned if "attempts" in path]


def keep_a_checkpoint(attempt: Attempt) -> dict[str, Any]:
    """A stage that leaves a temporary and a permanent checkpoint."""
    for folder in (attempt.checkpoints, attempt.folder / "permanent"):
        checkpoint = folder / "step-000001"
        checkpoint.mkdir(parents=True)
        durable.write_bytes(checkpoint / "state", b"state")
        file = {"path": "state", "size": 5, "sha256": durable.sha256(checkpoint / "state")}
        write_manifest(checkpoint, file)
    return {}


def test_permanent_checkpoints_outlive_the_step_and_are_ours(tmp_path: Path) -> None:
    toys.run(tmp_path, [Step("kept", Stage("kept", 1, f"{__name__}:keep_a_checkpoint"), {})])
    assert [path.parts[-3] for path in tmp_path.glob("steps/*/*/step-000001/state")] == ["permanent"]
    assert verify(tmp_path).unowned == []


def test_what_is_no_work_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        verify(tmp_path / "typo")
    with pytest.raises(ConfigError, match="no work directory"):
        verify(tmp_path)
