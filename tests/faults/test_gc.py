"""`gc` killed at every point, and at the same time as runs: every record that is there has all of its outputs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines import run
from pipelines.verification import verify
from tests.faults import commands, injection
from tests.faults.test_crash_points import killed_everywhere, nothing_half
from tests.pipelines import nightly


def needed(root: Path, prepared: Path) -> None:
    """The champion's night and the latest one are planned as done."""
    registry = f"sqlite:///{prepared}-registry/mlflow.db"
    for files, champion in ((commands.NIGHTS[0], True), (commands.NIGHTS[-1], False)):
        planned = run.plan(nightly.workspace(root, nightly.flow(files, champion), registry))
        assert all(step.done for step in planned.values()), planned


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_gc_killed_at_every_point_leaves_whole_records_and_the_next_one_finishes(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    commands.nights(prepared)
    shutil.copytree(prepared, tmp_path / "reference", copy_function=shutil.copy2)
    with injection.injector("tests.faults.commands:gc", tmp_path) as injector:
        points = injector.points(tmp_path / "reference")
        expected = set(injection.tree(tmp_path / "reference", without=("gc", "digests.json")))
        for where, root in killed_everywhere(injector, points, tmp_path, prepared):
            nothing_half(root, where)
            needed(root, prepared)
            again = injector.undisturbed(root)
            assert again.code == 0, f"{where}: {again.said}"
            assert set(injection.tree(root, without=("gc", "digests.json"))) == expected, where
            nothing_half(root, where)
            left = [path for path in (root / "gc").rglob("*") if path.is_file() and path.parent.name != "lease"]
            assert [path for path in left if path.parent.name != "attempts"] == [], where  # there only tombstones stay
    assert 30 < len(points) < 200
    places = " ".join(path for point in points for path in point.paths)
    for place in ("steps/shard-*", "units/text", "gc/trash"):
        assert place in places, f"gc has no point at {place}: what does this test show?"
    gone = set(injection.tree(prepared)) - expected
    assert any(path.endswith("record.json") for path in gone) and any(path.startswith("units/") for path in gone)
    assert verify(tmp_path / "reference").unowned == []


def race(folder: Path, rounds: int, host: str, marked: bool = True) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Two lines that share units, and a cleaner, at once: what each of the lines says, and the cleaner."""
    root, registry = folder / "work", nightly.registry(folder / "registry")
    nightly.go(root, nightly.flow(["first"], champion=True), registry)
    environment = os.environ | ({} if marked else {"GPTLINE_UNMARKED": "1"})

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.faults.racing", arguments[0], str(root), registry, *arguments[1:]]
        return subprocess.Popen(command, cwd=injection.ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    with start("gc", host) as cleaner, start("run", str(rounds), "1") as one, start("run", str(rounds), "2") as two:
        said = [json.loads(process.communicate()[0]) for process in (one, two)]
        (folder / "stop").touch()
        cleaned = json.loads(cleaner.communicate()[0])
    return said, cleaned


@pytest.mark.parametrize(
    ("host", "rounds"),
    [("here", 8), ("elsewhere", 4)]
    + [pytest.param(host, 150, marks=pytest.mark.thorough) for host in ("here", "elsewhere")],
)
def test_runs_lose_nothing_that_they_planned_with_while_gc_works_all_the_time(
    tmp_path: Path, host: str, rounds: int
) -> None:
    said, cleaned = race(tmp_path, rounds, host)
    assert [line["lost"] for line in said] == [[], []]
    assert cleaned["removed"] >= 10 and cleaned["busy"] >= 5, cleaned
    report = verify(tmp_path / "work")
    assert report.missing == report.damaged == report.unowned == []


def test_runs_that_do_not_say_so_do_lose_what_they_planned_with(tmp_path: Path) -> None:
    """The test above can fail."""
    said, cleaned = race(tmp_path, 10_000, "here", marked=False)
    assert any(line["lost"] for line in said), (said, cleaned)
