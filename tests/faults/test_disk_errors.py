"""A disk that fails at any call: one clear line, exit code 1, nothing wrong published, and the same command finishes after."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from model import durable
from pipelines import errors
from pipelines.engine import sealed
from pipelines.engine.digests import Digests
from pipelines.engine.step import Attempt
from pipelines.engine.units import UnitStore
from pipelines.narrate import _failures_told
from pipelines.stages.budget import last_line
from tests.faults import injection
from tests.faults.injection import Point
from tests.faults.test_crash_points import finishes, nothing_half
from tests.full_disk import full_disk
from tests.pipelines.engine import toys

SHA256 = durable.sha256
STRACE = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

# What a disk answers to each call: full, quota, read-only, not permitted, too many files, broken.
ERRORS = {
    "fsync": ["EIO", "ENOSPC", "EDQUOT"],
    "write": ["ENOSPC", "EDQUOT", "EIO"],
    "openat": ["EMFILE", "EACCES", "EROFS", "EIO", "ENFILE"],
    "link": ["EMLINK", "EIO", "ENOSPC", "EROFS"],
    "rename": ["EIO", "ENOSPC", "EROFS", "EACCES"],
    "mkdir": ["ENOSPC", "EROFS", "EACCES", "EDQUOT"],
    "unlink": ["EIO", "EROFS", "EACCES"],
    "unlinkat": ["EIO", "EROFS", "EACCES"],
    "rmdir": ["EIO", "EROFS", "EACCES"],
}


def errors_at(points: list[Point]) -> list[tuple[Point, str]]:
    """An error for each point: those of its kind of call in turn, so that all meet many places."""
    met: dict[str, int] = {}
    found = []
    for point in points:
        if point.call in ERRORS:
            met[point.call] = met.get(point.call, -1) + 1
            found.append((point, ERRORS[point.call][met[point.call] % len(ERRORS[point.call])]))
    return found


@STRACE
def test_an_error_of_the_disk_at_every_point(tmp_path: Path) -> None:
    with injection.injector("tests.faults.commands:flow", tmp_path) as injector:
        points = injector.points(tmp_path / "reference", reads=True)
        expected = toys.digests(tmp_path / "reference")
        assert {point.call for point in points} - {"exit_group"} <= set(ERRORS), "a call that no error is given for"
        every = 1 if os.environ.get("GPTLINE_CUTS") == "all" else 2
        rare = {call for call in ERRORS if [point.call for point in points].count(call) < 4}
        for number, (point, error) in enumerate(errors_at(points)):
            if number % every and point.call not in rare:
                continue
            root, where = tmp_path / str(number), f"{error} at {point}"
            ended = injection.until_hit(partial(injector.fail_at, point, error), root)
            assert ended.code == errors.FAILED, f"{where}: {ended.code} {ended.said}"
            said = [line for line in ended.said.splitlines() if line.startswith("gptline: ")]
            assert len(said) == 1 and "Traceback" not in ended.said, f"{where}: {ended.said}"
            assert any(path in injection.stable(said[0]) for path in point.paths), f"{where}: {said[0]}"
            assert errors._ADVICE[getattr(errno, error)] in said[0], f"{where}: {said[0]}"
            nothing_half(root, where)
            finishes(injector, root, expected, where)
            shutil.rmtree(root)


@STRACE
@pytest.mark.parametrize(
    ("command", "folder"),
    [("commands:corpus", "corpus/folder"), ("checkpoint_command:train", "checkpoints"), ("commands:flow", "outputs")],
)
def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path, command: str, folder: str) -> None:
    """A smaller corpus, training from scratch, a record that lacks outputs: each would be said by nobody."""
    with injection.injector(f"tests.faults.{command}", tmp_path) as injector:
        points = injector.points(tmp_path / "reference", reads=True)
        listed = [point for point in points if point.call == "openat" and point.paths[0].endswith(folder)]
        assert listed
        for number, point in enumerate(listed):
            ended = injection.until_hit(partial(injector.fail_at, point, "EACCES"), tmp_path / str(number))
            assert ended.code == errors.FAILED, f"{point}: {ended.code} {ended.said}"
            (said,) = [line for line in ended.said.splitlines() if line.startswith("gptline: ")]
            assert f"{folder}: Permission denied; " in said or re.search(rf"Permission denied: '\S+{folder}'", said), (
                said
            )


@STRACE
def test_a_heartbeat_that_the_disk_refuses_ends_nothing(tmp_path: Path) -> None:
    with injection.injector("tests.faults.commands:beating", tmp_path) as injector:
        ended = injector.run(tmp_path / "work", "utimensat:error=EIO", threads=True)
        assert ended.code == 0, ended.said
        assert sum("utimensat" in line and "INJECTED" in line for line in ended.lines) > 3


@pytest.mark.parametrize("number", sorted(errors._ADVICE))
def test_what_the_machines_owner_can_mend_is_said_with_the_file_and_what_to_do(number: int) -> None:
    error = OSError(number, "what was seen", "/work/units/file")
    message = errors.told(error)
    assert message is not None and message.startswith("/work/units/file: what was seen; ") and "\n" not in message
    assert errors.exit_code(error) == errors.FAILED


def test_any_other_error_of_the_system_is_a_bug_and_keeps_its_traceback() -> None:
    assert errors.told(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None
    assert errors.told(ValueError("x")) is None


def test_a_steps_failure_on_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    attempt = Attempt("letters", {}, {}, {}, tmp_path, tmp_path, tmp_path, UnitStore(tmp_path), {"site": ""}, "f", {})
    with pytest.raises(
        errors.StepFailed, match=r"step letters failed: OSError: /w/f: full; the disk is full: make room"
    ):
        with _failures_told(attempt):
            raise OSError(errno.ENOSPC, "full", "/w/f")


def log_of(path: Path) -> Callable[[bytes], None]:
    return durable.Log(path, b"").append


def appended_to(path: Path) -> Callable[[bytes], None]:
    return partial(durable.append, path)


@pytest.mark.parametrize("opened", [log_of, appended_to])
def test_half_a_line_on_a_full_disk_is_an_error_and_readers_pass_over_it(
    tmp_path: Path, opened: Callable[[Path], Callable[[bytes], None]]
) -> None:
    path = tmp_path / "progress.jsonl"
    append, line = opened(path), b'{"step": %d}\n'
    append(line % 1)
    with full_disk(17), pytest.raises(OSError, match=re.escape(f"File too large: '{path}'")):
        append(line % 2)
    append(line % 3)
    assert path.read_bytes() == b'{"step": 1}\n{"ste' + b'{"step": 3}\n'
    assert last_line(path) == {"step": 1}
    append(line % 4)
    assert last_line(path) == {"step": 4}


def test_a_cache_of_digests_is_not_believed_while_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with times that lie ahead may be changed once more and get the same times."""
    file, cache = tmp_path / "file", tmp_path / "digests.json"
    file.write_bytes(b"old bytes")
    status = file.stat()
    # The file was changed since it was hashed, and its signature is what it was.
    signature = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    cache.write_bytes(sealed.seal({"files": {str(file): [*signature, "0" * 64]}}))
    now = status.st_ctime_ns + 10**9
    monkeypatch.setattr("pipelines.engine.digests.time.time_ns", lambda: now)
    assert Digests(cache).of(file) == "0" * 64, "the cache is not used at all: this test shows nothing"
    now = status.st_ctime_ns - 3600 * 10**9  # the clock is set back by an hour
    digests = Digests(cache)
    assert digests.of(file) == SHA256(file)
    digests.save()
    assert sealed.unseal(cache)["files"][str(file)][-1] == "0" * 64, "nothing is learned from such a file either"


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.engine import digests as module

    monkeypatch.setattr(module, "_TICK_NS", -(10**18))  # as if the hashing had taken long
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def hashed_and_changed(path: Path) -> str:
        found = SHA256(path)
        path.write_bytes(b"newer")
        return found

    digests = Digests(tmp_path / "digests.json")
    monkeypatch.setattr(module.durable, "sha256", hashed_and_changed)
    digests.of(file)
    monkeypatch.setattr(module.durable, "sha256", SHA256)
    assert digests.of(file) == SHA256(file)


def test_drafts_of_a_cache_are_swept_when_nobody_can_be_writing_them(tmp_path: Path) -> None:
    cache = tmp_path / "digests.json"
    old, young = durable.temporary(cache), durable.temporary(cache)
    for draft in (old, young):
        draft.write_text("half")
    os.utime(old, (1e9, 1e9))
    cache.write_text("damaged")  # it is written anew
    Digests(cache).save()
    assert not old.exists() and young.exists()
