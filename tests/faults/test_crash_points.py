"""Killed at every point at which a command changes the disk: nothing half is visible, and a rerun gives the same bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from model import durable
from pipelines.package import MANIFEST, verify_package
from pipelines.verification import verify
from tests.faults import commands, injection
from tests.faults.injection import Injector, Point
from tests.pipelines.engine import toys

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def killed_everywhere(
    injector: Injector, points: list[Point], folder: Path, prepared: Path | None = None, every: int = 1
) -> Iterator[tuple[str, Path]]:
    """A folder for each point, as a kill there leaves it: before the call, and with half of a write. Begun as `prepared`.

    With `every`, for every so manieth point.
    """
    for number, point in list(enumerate(points))[::every]:
        for cut in (False, True) if point.size > 1 else (False,):
            root = folder / f"{number}{'-cut' if cut else ''}"
            after = points[number + 1] if cut else point
            kill = partial(injector.kill_amid, point, after) if cut else partial(injector.kill_before, point)
            injection.until_hit(kill, root, prepared)
            yield f"killed {'in the middle of' if cut else 'before'} {point}", root
            shutil.rmtree(root)


def nothing_half(root: Path, where: str, but: str = "") -> None:
    """Whatever has its final name is whole, but for a file that was damaged before."""
    if any((root / name).exists() for name in ("steps", "units", "digests.json")):
        report = verify(root)
        assert [path for path in report.damaged + report.missing if Path(path).name != but] == [], where


def nothing_left(root: Path, where: str) -> None:
    """All is whole, and nothing lies about but a draft of the cache, which is swept when it is old."""
    nothing_half(root, where)
    assert [path for path in verify(root).unowned if not path.startswith(".digests.json.")] == [], where


def finishes(injector: Injector, root: Path, expected: dict[str, str], where: str) -> None:
    """The same command, undisturbed, gives what it would have given."""
    again = injector.undisturbed(root)
    assert again.code == 0, f"{where}: {again.said}"
    assert toys.digests(root) == expected, where
    nothing_left(root, where)


def test_the_toy_flow_killed_at_every_point(tmp_path: Path) -> None:
    with injection.injector("tests.faults.commands:flow", tmp_path) as injector:
        points = injector.points(tmp_path / "reference")
        expected = toys.digests(tmp_path / "reference")
        for where, root in killed_everywhere(injector, points, tmp_path):
            nothing_half(root, where)
            finishes(injector, root, expected, where)
    assert {point.call for point in points} >= {"rename", "link", "fsync", "write", "mkdir", "unlink", "exit_group"}
    places = " ".join(path for point in points for path in point.paths)
    for place in ("lease/000001.json", "lease/000001.released", "units/toy", "record.json", "outputs", "digests.json"):
        assert place in places, f"the flow has no point at {place}: what does this test show?"


def half_done(injector: Injector, root: Path) -> None:
    """A first owner, killed with its outputs in place and without a record."""
    points = injector.points(root.with_name("whole"))
    commit = next(point for point in points if point.call == "link" and point.paths[-1].endswith("record.json"))
    injector.kill_before(commit, root)


def damaged(injector: Injector, root: Path) -> None:
    """A finished flow with a bit flipped in an output."""
    injector.points(root)
    next(root.glob("steps/letters-*/outputs/other.json")).write_bytes(b"damaged")


@pytest.mark.parametrize("begin", [half_done, damaged])
def test_taking_over_killed_at_every_point(tmp_path: Path, begin: Callable[[Injector, Path], None]) -> None:
    """The dead owner is fenced, and what it or a damaged step left goes aside: killed on the way, again and again."""
    with injection.injector("tests.faults.commands:flow", tmp_path) as injector:
        prepared = tmp_path / "prepared"
        begin(injector, prepared)
        shutil.copytree(prepared, tmp_path / "reference", copy_function=shutil.copy2)
        points = injector.points(tmp_path / "reference")
        expected = toys.digests(tmp_path / "reference")
        cleared = next(number for number, point in enumerate(points) if point.paths[-1].endswith("000002-*/outputs"))
        for where, root in killed_everywhere(injector, points[: cleared + 1], tmp_path, prepared):
            nothing_half(root, where, but="other.json" if begin is damaged else "")
            finishes(injector, root, expected, where)
            # Whoever was overtaken cannot come back, wherever its winner was killed: a file stands in the place of its folder.
            dead = list(prepared.glob("steps/letters-*/attempts/*"))
            assert all((root / attempt.relative_to(prepared)).is_file() for attempt in dead), where
    assert cleared > 8 and bool(list(prepared.glob("steps/letters-*/attempts/*"))) == (begin is half_done)


def test_what_is_let_go_after_the_record_killed_at_every_point(tmp_path: Path) -> None:
    """Done, and killed before checkpoints, attempt and lease were let go: the next run does, whoever kills that too."""
    with injection.injector("tests.faults.commands:flow", tmp_path) as injector:
        whole = injector.points(tmp_path / "whole")
        expected = toys.digests(tmp_path / "whole")
        record = next(
            number for number, point in enumerate(whole) if point.call == "link" and "record" in point.paths[-1]
        )
        injector.kill_before(whole[record + 1], tmp_path / "prepared")
        shutil.copytree(tmp_path / "prepared", tmp_path / "reference", copy_function=shutil.copy2)
        points = injector.points(tmp_path / "reference")
        swept = next(number for number, point in enumerate(points) if point.paths[-1].endswith("000002.released"))
        for where, root in killed_everywhere(injector, points[: swept + 1], tmp_path, tmp_path / "prepared"):
            nothing_half(root, where)
            finishes(injector, root, expected, where)


def test_packaging_killed_at_every_point_and_packaged_again(tmp_path: Path) -> None:
    with injection.injector("tests.faults.commands:package", tmp_path, "yaml") as injector:
        points = injector.points(tmp_path / "reference")
        expected = injection.tree(tmp_path / "reference" / "attempt-0")
        for where, root in killed_everywhere(injector, points, tmp_path):
            for manifest in root.glob(f"attempt-*/package/{MANIFEST}"):
                verify_package(manifest.parent)  # who finds a manifest finds all that it lists
            again = injector.undisturbed(root)
            assert again.code == 0, f"{where}: {again.said}"
            assert injection.tree(max(root.glob("attempt-*"))) == expected, where
    assert len(points) > 20


def lasting(root: Path) -> dict[str, bytes]:
    """What a pull leaves; not what the cache remembers with a date, locks, and drafts of a few KB that are swept when old.

    A file of the cache is what its name says.
    """
    for path in (root / "cache").glob("?" * 64):
        assert durable.sha256(path) == path.name
    found = injection.tree(root, without=("resolved", "locks"))
    return {path: data for path, data in found.items() if not (path.startswith("cache/") and path.endswith(".tmp"))}


def test_pulling_over_an_earlier_pull_killed_at_every_point(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    commands.packages(prepared)
    shutil.copytree(prepared / "package-1", prepared / "pulled" / "model")
    shutil.copytree(prepared, tmp_path / "reference")
    with injection.injector("tests.faults.commands:pulled", tmp_path, "yaml", "filelock") as injector:
        points = injector.points(tmp_path / "reference")
        expected = lasting(tmp_path / "reference")
        every = 1 if os.environ.get("GPTLINE_CUTS") == "all" else 4  # it has hundreds, alike for each file
        for where, root in killed_everywhere(injector, points, tmp_path, prepared, every):
            if (root / "pulled" / "model").exists():
                verify_package(root / "pulled" / "model")
            again = injector.undisturbed(root)
            assert again.code == 0, f"{where}: {again.said}"
            assert lasting(root) == expected, where
    assert len(points) > 20
    assert any(path.startswith("cache/") for path in expected)


def test_a_careless_write_is_caught(tmp_path: Path) -> None:
    """The method itself: a command that writes a record in place is found out."""
    with injection.injector("tests.faults.commands:careless", tmp_path) as injector:
        points = injector.points(tmp_path / "reference")
        expected = toys.digests(tmp_path / "reference")
        caught = []
        for where, root in killed_everywhere(injector, points, tmp_path):
            try:
                nothing_half(root, where)
                finishes(injector, root, expected, where)
            except AssertionError:
                caught.append(where)
    assert any("in the middle of write" in where for where in caught)
