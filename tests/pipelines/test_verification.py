"""verify: what is damaged, missing or nobody's is named; what is ours is not; a wrong path is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines.config import ConfigError
from pipelines.engine.step import Attempt, Stage, Step
from pipelines.verification import verify
from tests.pipelines.engine import toys


def test_what_is_whole_and_ours_is_not_reported(tmp_path: Path) -> None:
    toys.run(tmp_path, toys.flow())
    for name in ("outbox.json", "digests.json"):
        durable.write_json(tmp_path / name, {})
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


def keep_a_checkpoint(attempt: Attempt) -> dict[str, Any]:
    """A stage that leaves a temporary and a permanent checkpoint."""
    for folder in (attempt.checkpoints, attempt.folder / "permanent"):
        (folder / "step-000001").mkdir(parents=True)
        durable.write_bytes(folder / "step-000001" / "state", b"state")
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
