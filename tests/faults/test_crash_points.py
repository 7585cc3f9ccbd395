"""Killed at every point at which a command changes the disk: nothing half is visible, and a rerun gives the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.verification import verify
from tests.faults import injection
from tests.faults.injection import Injector, Point
from tests.pipelines.engine import toys

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def killed_everywhere(injector: Injector, points: list[Point], folder: Path, prepare: Callable[[Path], None] | None = None) -> Iterator[tuple[str, Path]]:
    """A work directory for each point, as a kill there leaves it: before the call, and with half of a write."""
    for number, point in enumerate(points):
        for cut in (False, True) if point.size > 1 else (False,):
            root = folder / f"{number}{'-cut' if cut else ''}"
            if prepare:
                prepare(root)
            if cut:
                injector.kill_amid(point, points[number + 1], root)
            else:
                injector.kill_before(point, root)
            yield f"killed {'in the middle of' if cut else 'before'} {point}", root
            shutil.rmtree(root)


def nothing_half(root: Path, where: str) -> None:
    """Whatever has its final name is whole."""
    if any((root / name).exists() for name in ("steps", "units", "digests.json")):
        report = verify(root)
        assert report.damaged + report.missing == [], where


def test_the_toy_flow_killed_at_every_point(tmp_path: Path) -> None:
    with injection.injector("tests.faults.commands:flow", tmp_path) as injector:
        points = injector.points(tmp_path / "reference")
        expected = toys.digests(tmp_path / "reference")
        seen = 0
        for where, root in killed_everywhere(injector, points, tmp_path):
            nothing_half(root, where)
            again = injector.undisturbed(root)
            assert again.code == 0, f"{where}: {again.said}"
            assert toys.digests(root) == expected, where
            nothing_half(root, where)
            seen += 1
    print(seen, len(points))
    assert {point.call for point in points} >= {"rename", "link", "fsync", "write", "mkdir", "unlink", "exit_group"}
