"""Alerts: a person hears of failures and of staleness, not every minute, and an alert that fails hides nothing."""

from __future__ import annotations

import datetime
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import alerts, retrain, retrain_commands, slots, upkeep_commands
from pipelines.config import ConfigError
from pipelines.execution import Execution
from pipelines.slots import Slot

DAY = datetime.timedelta(days=1)
START = datetime.datetime(2026, 1, 1, 3, tzinfo=datetime.UTC)


class Line:
    """A model's slots in a work directory, and an alert command that writes what it gets to a file."""

    def __init__(self, work: Path) -> None:
        self.work, self.number, self.heard_file = work / "work", 0, work / "heard"
        (slots.folder(self.work, "toy") / "attempt").mkdir(parents=True)
        program = f"import json, os, sys; open({str(self.heard_file)!r}, 'a').write(json.dumps([json.load(sys.stdin), os.environ['GPTLINE_ALERT']]) + chr(10))"
        self.command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"

    def slot(self, day: int, outcome: str, reason: str = "", **more: Any) -> None:
        self.number += 1
        when = (START + day * DAY).isoformat()
        slot = Slot("toy", self.number, "tiny", when, "timer", outcome, reason, closed=when, **more)  # type: ignore[arg-type]
        slots.write(self.work, slot, slots.folder(self.work, "toy") / "attempt")

    def after(self, day: float, command: str | None = None, stale: float = 14) -> list[str]:
        execution = Execution(alert_command=self.command if command is None else command, stale_after_days=stale)
        return alerts.after(self.work, "toy", START + day * DAY, execution)

    def heard(self) -> list[Any]:
        return (
            [json.loads(line) for line in self.heard_file.read_text().splitlines()] if self.heard_file.exists() else []
        )


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def test_a_failed_slot_is_told_with_what_is_the_matter_and_without_secrets(line: Line) -> None:
    line.slot(0, "promoted")
    assert line.after(0) == []
    line.slot(1, "failed", "http://me:secret@mlflow:5000 cannot be reached", sources="s")
    text = "toy: slot 2 failed: http://***@mlflow:5000 cannot be reached"
    assert line.after(1) == [f"alert: {text}"]
    [[event, said]] = line.heard()
    assert (
        said == event["text"] == text and event["kind"] == "failed" and event["slot"] == 2 and event["model"] == "toy"
    )
    assert "secret" not in line.heard_file.read_text()


def test_the_same_trouble_is_told_once_a_day_for_a_week_and_then_once_a_week(line: Line) -> None:
    line.slot(0, "failed", "bad data", sources="s")
    for day in range(60):
        line.slot(day, "blocked", "bad data", sources="s")
        for hour in (0, 1, 12):
            line.after(day + hour / 24, stale=0)
    days = [event["when"][:10] for event, _ in line.heard()]
    assert len(days) == len(set(days)) == 8 + 7, days
    line.slot(60, "failed", "other data, other trouble", sources="t")
    assert len(line.after(60, stale=0)) == 1
    line.slot(61, "nothing new")
    line.slot(62, "failed", "bad data again", sources="t")
    line.after(61, stale=0)
    assert json.loads(json.dumps(alerts._told(line.work, "toy")))


def test_trouble_that_went_and_came_again_is_new(line: Line) -> None:
    line.slot(0, "failed", "bad", sources="s")
    assert len(line.after(0)) == 1
    line.slot(0, "promoted")
    assert line.after(0.1) == []
    line.slot(0, "failed", "bad", sources="s")
    assert len(line.after(0.2)) == 1


def test_no_new_version_for_too_long_is_stale_whatever_the_reason(line: Line) -> None:
    line.slot(0, "kept")
    for day in range(1, 14):
        line.slot(day, "nothing new", "the sources are the champion's")
        assert line.after(day) == []
    line.slot(14, "nothing new", "the sources are the champion's")
    [said] = line.after(14)
    assert "no new version for 14 days" in said and "the sources are the champion's" in said
    assert line.after(14.5) == []
    line.slot(15, "promoted")
    assert line.after(15) == []


def test_a_model_that_never_had_a_version_is_stale_from_its_first_slot_on(line: Line) -> None:
    assert line.after(100) == []
    line.slot(0, "open")
    assert line.after(13) == [] and "there was never one" in line.after(14)[0]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (f"{shlex.quote(sys.executable)} -c 'import sys; sys.exit(\"no route\")'", "ended with 1 (no route)"),
        ("/no/such/program", "No such file"),
        ("mail 'unclosed", "No closing quotation"),
    ],
)
def test_an_alert_command_that_fails_is_said_with_what_it_should_have_told_and_tried_again(
    line: Line, command: str, why: str
) -> None:
    line.slot(0, "failed", "bad data")
    [said] = line.after(0, command)
    assert why in said and "untold: toy: slot 1 failed: bad data" in said
    assert len(line.after(0.01)) == len(line.heard()) == 1, "it is told as soon as that is possible"


def test_without_an_alert_command_nothing_is_called(line: Line) -> None:
    line.slot(0, "failed", "bad data")
    assert line.after(0, command="") == []


def test_retrain_calls_it_where_a_slot_ends_and_keeps_its_own_error_and_exit_code(line: Line, tmp_path: Path) -> None:
    settings = [
        'shard.sources=[{"path":"/no/such/corpus"}]',
        f"execution.registry={tmp_path / 'registry'}",
        f"execution.alert_command={line.command}",
    ]
    given = [part for setting in settings for part in ("--set", setting)]
    for command, heard in (("retrain", 1), ("retrain", 1), ("alerts", 1)):
        recipe = ["-r", "tiny"] if command == "retrain" else []
        done = subprocess.run(
            [sys.executable, "-m", "pipelines", command, *recipe, "-w", str(line.work), *given],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == (1 if command == "retrain" else 0), done.stderr
        assert command != "retrain" or "/no/such/corpus" in done.stderr
        assert len(line.heard()) == heard
    [[event, _]] = line.heard()
    assert event["kind"] == "failed" and event["model"] == "sentiment" and "/no/such/corpus" in event["text"]


def test_retrain_that_comes_to_no_slot_is_heard_of_and_so_is_staleness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that is down after a boot: what failed in no slot is told as any other trouble is."""
    line = Line(tmp_path)
    line.slot(0, "kept")
    monkeypatch.setattr(retrain, "model_of", lambda recipe: "toy")
    settings = [f"execution.site={tmp_path / 'none'}", "execution.site_patience=0"]
    settings += [f"execution.alert_command={line.command}"]
    for _ in range(2):
        with pytest.raises(ConfigError, match="is not up"):
            retrain_commands.retrain("tiny", str(line.work), settings)
        upkeep_commands.alerts(str(line.work), settings)  # a watch in between knows nothing of it, and forgets nothing
    stale, failed = (event for event, _ in line.heard())
    assert failed["kind"] == "failed" and failed["slot"] is None and "failed outside of a slot: site" in failed["text"]
    assert stale["kind"] == "stale" and len(slots.of_model(line.work, "toy")) == 1
    with pytest.raises(Exception, match="no such recipe"):
        retrain_commands.retrain("nonsense", str(line.work), settings)
    assert line.heard()[-1][0]["model"] == "nonsense"


def test_a_damaged_slot_is_heard_of(line: Line) -> None:
    line.slot(0, "kept")
    path = slots.folder(line.work, "toy") / "slots" / "000001.json"
    path.write_bytes(b"{}")
    said = line.after(1)
    assert "cannot be looked after" in said[0] and line.heard()[0][0]["kind"] == "failed"
    assert "000001.json" in line.heard()[0][1]
