"""Any file of a finished work directory, damaged in any way: noticed, said, made again with the same bytes, never a traceback."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.verification import verify
from tests.faults import commands
from tests.faults.forkserver import outcome
from tests.pipelines.engine import toys


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_unreadable(path: Path) -> None:
    """The system answers EIO to who reads it, as a disk does that fails there."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


DAMAGES = [flip, halve, empty, delete, make_a_folder]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy flow: every kind of file that the engine keeps."""
    root = tmp_path_factory.mktemp("finished") / "work"
    commands.flow(root)
    time.sleep(0.1)  # until the files are old enough for the cache of digests
    commands.flow(root)
    assert (root / "digests.json").exists()
    return root


def damaged(finished: Path, root: Path, damage: Callable[[Path], None]) -> list[tuple[str, Path]]:
    """For each file of `finished` a copy in which it is damaged: the file's name, and the copy."""
    copies = []
    names = sorted(str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file())
    for number, name in enumerate(names):
        shutil.copytree(finished, root / str(number), copy_function=shutil.copy2)
        damage(root / str(number) / name)
        copies.append((name, root / str(number)))
    assert len(copies) > 10
    return copies


def undetectable(name: str, damage: Callable[[Path], None]) -> bool:
    """What no look can tell from a work directory that is in order, and why it does no harm."""
    if name == "digests.json":
        return damage is delete  # a cache: what is not there is hashed again
    if name.endswith(".released"):
        return damage is not make_a_folder  # only its name counts; without it the owner is looked up, and is dead
    # A unit's data is named by the record too; a certificate that is gone only means that the unit would be made again.
    return damage is delete and name.startswith("units/") and name.endswith(".json")


@pytest.mark.parametrize("damage", [*DAMAGES, make_unreadable])
def test_verify_names_every_damaged_file(finished: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    for name, root in damaged(finished, tmp_path, damage):
        report = verify(root)
        if damage is delete and name.endswith("record.json"):
            # Without its record a step is not done, and what it made is nobody's.
            assert any(path.startswith(str(Path(name).parent)) for path in report.unowned), name
        elif not undetectable(name, damage):
            assert report.damaged + report.missing == [name], name


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_next_run_says_what_it_found_and_gives_the_same_bytes(
    finished: Path, tmp_path: Path, damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    for name, root in damaged(finished, tmp_path, damage):
        code = outcome(lambda root=root: commands.flow(root))
        said = capfd.readouterr().err
        assert code == 0, f"{name}: {said}"
        # Nobody reads the certificate of a unit that a record lists: it is made again with its unit, see below.
        unread = {name} if name.startswith("units/") and name.endswith(".json") else set()
        expected = {path: digest for path, digest in toys.digests(finished).items() if path not in unread}
        assert {path: digest for path, digest in toys.digests(root).items() if path not in unread} == expected, name
        if "/outputs/" in name or name.endswith(".txt") or (name.endswith("record.json") and damage is not delete):
            assert "rebuilding: " in said and Path(name).name in said, f"{name}: {said}"


def test_an_output_or_unit_that_the_disk_cannot_read_is_made_again(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, root in damaged(finished, tmp_path, make_unreadable):
        if "/outputs/" in name or name.endswith(".txt"):
            code = outcome(lambda root=root: commands.flow(root))
            said = capfd.readouterr().err
            assert code == 0 and "rebuilding: " in said and "cannot be read (Input/output error)" in said, said
            assert toys.digests(root) == toys.digests(finished), name


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_that_makes_every_step_again_leaves_nothing_damaged(
    finished: Path, tmp_path: Path, damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    for name, root in damaged(finished, tmp_path, damage):
        for record in root.glob("steps/*/record.json"):
            shutil.rmtree(record) if record.is_dir() else record.unlink()
        assert outcome(lambda root=root: commands.flow(root)) == 0, f"{name}: {capfd.readouterr().err}"
        assert toys.digests(root) == toys.digests(finished), name
        report = verify(root)
        assert report.damaged + report.missing + report.unowned == [], name
