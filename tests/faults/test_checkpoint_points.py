"""Killed at every point of publishing checkpoints: each that has its name is whole, and training gets to the same ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.faults import injection
from tests.faults.injection import Injector, Point
from tests.faults.test_crash_points import killed_everywhere

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def goes_on_from_the_newest(injector: Injector, points: list[Point], folder: Path, every: int = 1) -> None:
    """Killed at the points: what is published is whole, the next start goes on from the newest of it to the same bytes."""
    from model import checkpoint

    expected = injection.tree(folder / "reference" / "checkpoints")
    for where, root in killed_everywhere(injector, points, folder, every=every):
        good = [checkpoint.verified(path).step for path in root.glob("checkpoints/step-*")]
        again = injector.undisturbed(root)
        assert again.code == 0, f"{where}: {again.said}"
        assert f"resumed from {max(good, default=0)}" in again.said.splitlines(), f"{where}: {good} {again.said}"
        # One too old may stay until the next is published, or the step is done.
        made = injection.tree(root / "checkpoints")
        assert {path: made[path] for path in expected if path in made} == expected, where


def test_checkpoints_killed_at_every_point(tmp_path: Path) -> None:
    with injection.injector("tests.faults.checkpoint_command:train", tmp_path) as injector:
        points = injector.points(tmp_path / "reference")
        goes_on_from_the_newest(injector, points, tmp_path)
    assert sum("MANIFEST" in path for point in points for path in point.paths) > 3


def test_checkpoints_that_a_thread_writes_killed_while_it_does(tmp_path: Path) -> None:
    """`saving.Saver` as a rank has it: killed at the calls of its thread."""
    every = 1 if os.environ.get("GPTLINE_CUTS") == "all" else 8
    command = "tests.faults.checkpoint_command:train_beside"
    with injection.injector(command, tmp_path, of_a_thread=True) as injector:
        points = injector.points(tmp_path / "reference")
        goes_on_from_the_newest(injector, points, tmp_path, every)
    assert {point.call for point in points} >= {"openat", "write", "fsync", "rename"}
    assert sum("state/shard" in path for point in points for path in point.paths) > 3
