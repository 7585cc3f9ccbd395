"""Killed at every point of publishing checkpoints: each that has its name is whole, and training gets to the same ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults import injection
from tests.faults.test_crash_points import killed_everywhere

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def test_checkpoints_killed_at_every_point(tmp_path: Path) -> None:
    from model import checkpoint

    with injection.injector("tests.faults.checkpoint_command:train", tmp_path) as injector:
        points = injector.points(tmp_path / "reference")
        expected = injection.tree(tmp_path / "reference" / "checkpoints")
        for where, root in killed_everywhere(injector, points, tmp_path):
            published = checkpoint.published(root / "checkpoints")
            good = [checkpoint.verified(folder).step for folder in published]
            again = injector.undisturbed(root)
            assert again.code == 0, f"{where}: {again.said}"
            # One too old may stay until the next is published, or the step is done.
            made = injection.tree(root / "checkpoints")
            assert {path: made[path] for path in expected if path in made} == expected, where
            # Of the steps that were published, none is lost: the next start goes on from the newest.
            assert not good or max(good) >= len(published) - 1, where
    assert sum("MANIFEST" in path for point in points for path in point.paths) > 3
