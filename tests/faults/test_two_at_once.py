"""Several runs of one work directory at the same time, as real processes: one works, and only the owner publishes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread

import pytest

from pipelines import errors, run
from pipelines.engine import lease as leases
from pipelines.options import configured
from pipelines.verification import verify
from tests.faults import commands, injection
from tests.faults.injection import ROOT, Ended, Injector, Point
from tests.pipelines.engine import toys


@contextmanager
def running(command: str, root: Path) -> Iterator[subprocess.Popen[str]]:
    """A command of `commands` in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.commands", command, str(root)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(seen: Callable[[], bool]) -> None:
    """Wait for what is going to be seen."""
    deadline = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def at_work(root: Path) -> bool:
    """Whether somebody has begun with the units of the first step."""
    return bool(list(root.glob("steps/letters-*/attempts/*/a.draft")))


@contextmanager
def frozen_at_work(process: subprocess.Popen[str], root: Path) -> Iterator[None]:
    """Within the block the process stands still in its first step: it cannot end before another one has even begun."""
    until(lambda: at_work(root))
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def ended(process: subprocess.Popen[str]) -> str:
    """What a process that ends well has said."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return said


def undisturbed(folder: Path, command: Callable[[Path], None]) -> dict[str, str]:
    command(folder)
    return toys.digests(folder)


def test_of_two_equal_runs_one_works_and_the_other_waits_and_has_nothing_to_do(tmp_path: Path) -> None:
    root = tmp_path / "work"
    with running("slow", root) as first:
        with ExitStack() as stack:
            with frozen_at_work(first, root):
                second = stack.enter_context(running("slow", root))
                assert second.stderr is not None
                said = second.stderr.readline().rstrip("\n")
            assert ended(first).splitlines() == ["2 of 2 steps done now"]
            *waited, told = [said, *ended(second).splitlines()]
    assert waited, "once, and on the second step again where it comes to it while the first process is there"
    for line in waited:
        assert line.startswith(f"waiting: process {first.pid} on ") and line.endswith("is at work on this step")
    assert told == "0 of 2 steps done now"
    assert toys.digests(root) == undisturbed(tmp_path / "alone", commands.slow)


def test_who_does_not_wait_leaves_with_the_owners_name_and_touches_nothing(tmp_path: Path) -> None:
    root = tmp_path / "work"
    with running("slow", root) as first:
        with frozen_at_work(first, root), running("impatient", root) as second:
            _, said = second.communicate(timeout=120)
            assert second.returncode == errors.FAILED
            assert f"is being worked on by process {first.pid} on " in said and "Traceback" not in said
        assert ended(first).splitlines() == ["2 of 2 steps done now"]


def test_two_flows_that_share_units_both_finish(tmp_path: Path) -> None:
    root = tmp_path / "work"
    root.mkdir()
    with running("slow_abc", root) as first, running("slow_bcd", root) as second:
        assert ended(first).splitlines()[-1] == "2 of 2 steps done now"
        assert ended(second).splitlines()[-1] == "2 of 2 steps done now"
    alone = undisturbed(tmp_path / "alone", commands.slow_abc) | undisturbed(tmp_path / "alone", commands.slow_bcd)
    assert toys.digests(root) == alone
    assert sum(path.startswith("units/") and path.endswith(".txt") for path in alone) == 4
    report = verify(root)
    assert report.damaged + report.missing + report.unowned == []


def test_of_six_that_start_at_once_exactly_one_works_on_each_step(tmp_path: Path) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(running("rounds", tmp_path)) for _ in range(6)]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for number in range(3):
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{number}\n")
                process.stdin.flush()
            for process in processes:
                assert process.stdout is not None and process.stdout.readline() == "done\n"
        said = [process.communicate(timeout=120)[1].splitlines() for process in processes]
    worked = [[int(line.split()[0]) for line in lines if line.endswith("steps done now")] for lines in said]
    assert [sum(counts) for counts in zip(*worked, strict=True)] == [2] * 3  # two steps, each done by one of the six
    expected = undisturbed(tmp_path / "alone", lambda root: commands.flow(root, seconds=0.2))
    assert all(toys.digests(tmp_path / str(number)) == expected for number in range(3))


def test_a_frozen_owner_on_this_host_looks_alive_until_its_lease_is_over(tmp_path: Path) -> None:
    root = tmp_path / "work"
    with running("frail", root) as first, running("frail", root) as second:
        until(lambda: at_work(root))
        owner = next(process for process in (first, second) if str(process.pid) in lease(root))
        other = second if owner is first else first
        os.kill(owner.pid, signal.SIGSTOP)
        said = ended(other).splitlines()
        assert said[0].startswith(f"waiting: process {owner.pid} on ") and said[-1] == "2 of 2 steps done now"
        published = made(root)
        os.kill(owner.pid, signal.SIGCONT)
        _, late = owner.communicate(timeout=120)
    assert owner.returncode == errors.FAILED
    assert "was taken over by process " + str(other.pid) in late and "Traceback" not in late
    assert made(root) == published


def made(root: Path) -> dict[str, bytes]:
    """All that the steps have made. What is left out says who is at work, or is a cache."""
    files = injection.tree(root, without=("attempts", "lease"))
    return {path: data for path, data in files.items() if "digests.json" not in path}


def lease(root: Path) -> str:
    return "".join(path.read_text() for path in root.glob("steps/letters-*/lease/*.json"))


def frozen_after(injector: Injector, point: Point, root: Path) -> tuple[Thread, list[Ended]]:
    """A run that is frozen right after the call at `point`: its thread, and where its end will be."""
    found: list[Ended] = []
    injector.trace.unlink(missing_ok=True)
    thread = Thread(target=lambda: found.append(injector.run(root, f"{point.call}:signal=STOP:when={point.number}")))
    thread.start()
    until(lambda: injector.trace.exists() and "stopped by SIGSTOP" in injector.trace.read_text())
    return thread, found


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_frozen_at_every_point_overtaken_and_woken_nobody_publishes(tmp_path: Path) -> None:
    """Whatever the owner was about to do when it froze: its winner's work is complete, and stays as it is."""
    overtaken = 0
    with (
        injection.injector("tests.faults.commands:hasty", tmp_path) as frozen,
        injection.injector("tests.faults.commands:hasty", tmp_path) as winner,
    ):
        points = frozen.points(tmp_path / "reference")
        expected = toys.digests(tmp_path / "reference")
        every = 1 if os.environ.get("GPTLINE_CUTS") == "all" else 3
        for number, point in enumerate(points[:-1:every]):
            root = tmp_path / str(number)
            thread, late = frozen_after(frozen, point, root)
            won = winner.undisturbed(root)
            assert won.code == 0 and toys.digests(root) == expected, f"frozen after {point}: {won.said}"
            published = made(root)
            os.kill(frozen.pid(), signal.SIGCONT)
            thread.join()
            assert late[0].code in (0, errors.FAILED), f"frozen after {point}: {late[0].said}"
            if late[0].code:
                assert "was taken over by process " in late[0].said, f"frozen after {point}: {late[0].said}"
                overtaken += 1
            assert made(root) == published, f"frozen after {point}"
            shutil.rmtree(root)
    assert overtaken > 10 / every


def test_the_command_leaves_with_the_owners_name_when_it_may_not_wait(tmp_path: Path) -> None:
    settings = [
        "--recipe",
        "tiny",
        "--work",
        str(tmp_path / "work"),
        "--set",
        f"execution.registry={tmp_path}/registry",
    ]
    workspace = run.open_workspace(*configured("tiny", str(tmp_path / "work"), settings[-1:]), fetch=True)
    folder = run.plan(workspace)["prepare_task"].folder
    assert folder is not None
    held = leases.acquire(folder, 60.0)
    try:
        command = [sys.executable, "-m", "pipelines", "run", "--no-wait", *settings]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        held.release()
    assert done.returncode == errors.FAILED
    assert f"is being worked on by process {os.getpid()} on " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_an_owner_whose_process_cannot_be_seen_is_overtaken_when_it_makes_no_sign_of_life(tmp_path: Path) -> None:
    """On another host, or in another container: the process id says nothing, only the lease does."""
    root = tmp_path / "work"
    alone = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        sys.executable,
        "-m",
        "tests.faults.commands",
        "frail",
        str(root),
    ]
    busy = os.environ | {"TOY_SECONDS": "60"}
    first = subprocess.Popen(alone, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=busy)
    try:
        with frozen_at_work(first, root), running("impatient", root) as second:
            _, said = second.communicate(timeout=120)
            assert second.returncode == errors.FAILED and "is being worked on by process " in said
    finally:
        first.kill()
        first.communicate()
    with running("frail", root) as second:
        said = ended(second)
    assert said.startswith("waiting: process ") and said.endswith("2 of 2 steps done now\n")
    assert toys.digests(root) == undisturbed(tmp_path / "alone", commands.slow)
