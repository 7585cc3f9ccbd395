"""Crashes and disk errors from outside: every system call by which a command changes the disk is a point to hit.

The one idea: the disk changes only by a short list of system calls. One undisturbed run under strace gives them in
order; killing before each of them in turn (and after the last) meets every state that the disk ever has between two
calls. A write may also be cut: that state is made by killing right after it and truncating what it wrote to half.
Nothing in the product knows of any of this.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_CALLS = (
    "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "fsync", "fdatasync", "unlink",
    "unlinkat", "rmdir", "mkdir", "mkdirat", "open", "openat", "creat", "write", "pwrite64", "writev", "truncate",
    "ftruncate", "utimensat", "sendfile", "copy_file_range", "fallocate", "exit_group",
)  # fmt: skip
_LINE = re.compile(r"^(\w+)\((.*?)(?:\) += (-?\d+|\?).*| <unfinished.*|\) += \?.*)?$")
_RANDOM = (
    (r"\.[0-9a-f]{12}\.tmp", ".*.tmp"),
    (r"-[0-9a-f]{12}(?![0-9a-f])", "-*"),
    (r"(\d{6})-[0-9a-f]{8}", r"\1-*"),
    (r"-[0-9a-f]{4}\.fenced", "-*.fenced"),
)


@dataclass(frozen=True)
class Point:
    """The `number`-th call of `call` in the command's main thread, or in the one thread that is looked at; `paths` are below the root, random parts as '*'."""

    call: str
    number: int
    paths: tuple[str, ...]
    size: int = field(default=0, compare=False)  # bytes written, by a write; a longer work directory writes more

    def __str__(self) -> str:
        return f"{self.call} number {self.number} ({' -> '.join(self.paths)})"


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: a signal), what it said, and the calls it made that strace saw."""

    code: int
    said: str
    calls: list[Point]
    lines: list[str]


class Missed(AssertionError):
    """The command made other calls than the reference did: libraries count a file more or less now and then."""


def until_hit(tries: Callable[[Path], Ended], root: Path, prepared: Path | None = None) -> Ended:
    """What `tries` gives on `root`, begun as `prepared`; again, from the beginning, after a miss: three times at most."""
    for _ in range(2):
        try:
            return tries(_begun(root, prepared))
        except Missed:
            shutil.rmtree(root, ignore_errors=True)
    return tries(_begun(root, prepared))


def _begun(root: Path, prepared: Path | None) -> Path:
    if prepared:
        shutil.copytree(prepared, root, copy_function=shutil.copy2)
    return root


class Injector:
    """Runs one command, again and again, under injection. `of_a_thread`: at the calls of a thread beside the main one."""

    def __init__(self, server: subprocess.Popen[str], command: str, scratch: Path, of_a_thread: bool = False) -> None:
        self._server, self._command, self._scratch, self._of_a_thread = server, command, scratch, of_a_thread
        self.trace = scratch / f"trace-{server.pid}"

    def run(self, root: Path, *inject: str, reads: bool = False, threads: bool = False) -> Ended:
        """The command on `root`, under strace with these injections; `threads` for all its threads and children.

        With `reads`, opening a file to read it counts as a call too.
        """
        calls = ",".join(f"?{call}" for call in _CALLS)
        options = [
            "-y",
            "-s",
            "0",
            "-o",
            str(self.trace),
            "-e",
            f"trace={calls}",
            *(["-f"] if threads or self._of_a_thread else []),
        ]
        for injection in inject:
            options += ["-e", f"inject={injection}"]
        code, said = self._ask(root, options)
        lines = self.trace.read_text().splitlines()
        if self._of_a_thread:
            lines = _of_a_thread(lines, self.pid(), root)
        return Ended(code, said, list(_points(lines, root, reads)), lines)

    def undisturbed(self, root: Path) -> Ended:
        """The command on `root`, with nobody looking."""
        code, said = self._ask(root, [])
        return Ended(code, said, [], [])

    def pid(self) -> int:
        """The process id of the command that runs now, or ran last."""
        return int((self._scratch / f"pid-{self._server.pid}").read_text())

    def _ask(self, root: Path, strace: list[str]) -> tuple[int, str]:
        log = self._scratch / f"log-{self._server.pid}"
        request: dict[str, Any] = {"command": self._command, "root": str(root), "strace": strace, "log": str(log)}
        request["pid"] = str(self._scratch / f"pid-{self._server.pid}")
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the fork server died; its traceback is above"
        return json.loads(answer)["code"], log.read_text()

    def points(self, root: Path, reads: bool = False) -> list[Point]:
        """What the command does to the disk below `root`, in order, and its end. It runs, on `root`."""
        ended = self.run(root, reads=reads)
        assert ended.code == 0, ended.said
        return ended.calls

    def kill_before(self, point: Point, root: Path) -> Ended:
        """Run on `root` up to the point: the call is not made, the process is gone. Missed if another call was hit."""
        ended = self.run(root, f"{point.call}:signal=KILL:when={point.number}")
        # strace counts calls, we planned a place: a run that does other things than the reference did is no proof.
        if ended.code != -9 or ended.calls[-1:] != [point]:
            last = ended.calls[-1] if ended.calls else "no call"
            raise Missed(f"{point} was planned; the command ended with {ended.code} after {last} {ended.said}")
        return ended

    def fail_at(self, point: Point, error: str, root: Path) -> Ended:
        """Run on `root`, where the disk answers the call at `point` with `error`. Missed if another call was answered so."""
        ended = self.run(root, f"{point.call}:error={error}:when={point.number}", reads=True)
        answered = [line for line in ended.lines if "(INJECTED)" in line]
        if len(answered) != 1 or point.paths[0] not in stable(answered[0]):
            raise Missed(f"{error} was planned for {point}; met: {answered}")
        return ended

    def kill_amid(self, point: Point, after: Point, root: Path) -> Ended:
        """Leave half of what the write at `point` writes; `after` is the point after it."""
        ended = self.kill_before(after, root)
        written = [Path(path) for line in ended.lines for path in _paths(line) if line.startswith(f"{point.call}(")]
        (path,) = {path for path in written[-1:] if path.is_file()}
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - (point.size + 1) // 2)
        return ended


@contextmanager
def injector(command: str, scratch: Path, *modules: str, of_a_thread: bool = False) -> Iterator[Injector]:
    """An Injector of "module:function", a function of the work directory, in a fork server that has imported `modules`."""
    imports = [command.partition(":")[0], *modules]
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.forkserver", *imports],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield Injector(server, command, scratch, of_a_thread)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()


def _of_a_thread(lines: list[str], main: int, root: Path) -> list[str]:
    """The lines of the one thread beside the main one that works below the root, as if there were no other."""
    by_thread: dict[str, list[str]] = {}
    for line in lines:
        thread, _, call = line.partition(" ")
        by_thread.setdefault(thread, []).append(call.lstrip())
    found = [
        calls
        for thread, calls in by_thread.items()
        if int(thread) != main and any(f"{root}/" in call for call in calls)
    ]
    assert len(found) <= 1, f"{len(found)} threads work below {root}: the points of one are planned"
    return found[0] if found else []


def _points(lines: list[str], root: Path, reads: bool) -> Iterator[Point]:
    """The calls in a trace that change something below `root` (or read a file of it), and the end of the process."""
    made: dict[str, int] = {}
    for line in lines:
        found = _LINE.match(line)
        if not found:
            continue
        call, arguments, result = found[1], found[2], found[3]
        made[call] = made.get(call, 0) + 1
        if call == "exit_group":
            yield Point(call, made[call], ())
            continue
        paths = tuple(stable(path[len(str(root)) + 1 :]) for path in _paths(line) if path.startswith(f"{root}/"))
        failed = result is not None and result.startswith("-")
        reading = call in ("open", "openat") and not re.search("O_CREAT|O_TRUNC", arguments)
        if not paths or failed or (reading and not reads):
            continue
        size = re.search(r", (\d+)\)? *(?:=|$)", line)
        yield Point(call, made[call], paths, int(size[1]) if call == "write" and size else 0)


def _paths(line: str) -> list[str]:
    """The absolute paths in a line of strace's output: of names, or else of the descriptor."""
    named = re.findall(r'"(/[^"]+)"', line)
    return named or re.findall(r"\(\d+<(/[^>]+)>", line)


def stable(path: str) -> str:
    """A path, or a text with paths, with '*' for what is random in it."""
    for pattern, instead in _RANDOM:
        path = re.sub(pattern, instead, path)
    return path


def tree(root: Path, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every file below `root` with its bytes, but for those that have a part of `without` in their path."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in files
        if not any(part in path.relative_to(root).parts for part in without)
    }
