"""Recovery: how long from the death of a process until training makes its next step.

The one idea: the tiny recipe is pre-trained by the command line, as a user runs it, and its processes are killed with
SIGKILL: one of two ranks again and again, with warm standbys and without, and the raylet of the driver's own Ray. The
clock stops at the time that rank 0 writes beside the first step of the next start.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from benchmarks import contender
from benchmarks.report import Figure, Options, median, number, say

RANK_GOAL, RAYLET_GOAL = 12.0, 40.0  # seconds
TURNS = 5
_PATIENCE = 180.0  # seconds in which anything that is waited for has to happen
_STAMP = r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) "
# What rank 0's log says on the way from its process to its first step, by the name of the part that ends there.
PARTS = {
    "noticed, others killed, ranks placed": r"rank 0 of 2 is process",
    "imports, joining, engine": r"resuming from",
}
LAST_PART = "loading, first step"


def run(options: Options) -> list[Figure]:
    """Kill ranks and raylets of a long pre-training of the tiny recipe; seconds."""
    turns = 1 if options.small else TURNS
    with _training(options, standby=True) as line:
        warm = [_killed(line, "a rank", _rank(turn % 2), standbys=True) for turn in range(turns)]
        raylet = [_killed(line, "the raylet", _raylet) for _ in range(1 if options.small else 3)]
    with _training(options, standby=False) as line:
        cold = [_killed(line, "a rank, without standbys", _rank(turn % 2)) for turn in range(turns)]
    ours, other = median(warm), median(cold)
    beside = "the same without standbys"
    goals = f"<= {RANK_GOAL:g} s", f"<= {RAYLET_GOAL:g} s"
    return [
        Figure("one of two ranks killed -> next step", "s", ours, beside, other, goals[0], ours <= RANK_GOAL),
        Figure("the driver's raylet killed -> next step", "s", median(raylet), "", None, goals[1], median(raylet) <= RAYLET_GOAL),
    ]  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A running pre-training: its driver, and the folder of its attempt."""

    driver: psutil.Popen
    attempt: Path
    log: Path  # what the driver prints

    def last_step(self) -> float:
        """The time of the newest step."""
        lines = (self.attempt / "progress.jsonl").read_bytes().split(b"\n")[:-1]
        return float(json.loads(lines[-1])["time"])

    def ranks(self) -> list[psutil.Process]:
        """The processes of the running ranks, rank 0 first."""
        log = [(self.attempt / "logs" / f"rank-{rank}.log").read_text() for rank in range(2)]
        return [psutil.Process(int(re.findall(r"is process (\d+)", text)[-1])) for text in log]

    def standbys(self) -> int:
        """Standbys that are warm: an actor that is busy has a method's name in its title."""
        return sum(_title(child) == "ray::_Rank" for child in self.driver.children(recursive=True))

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`. ContenderFailed if it does not come, or if the driver ends."""
        end = time.time() + _PATIENCE
        while not ready():
            if time.time() > end or self.driver.poll() is not None:
                raise contender.ContenderFailed(f"{what} did not come within {_PATIENCE:.0f} s; {_end(self.log)}")
            time.sleep(0.02)


def _end(log: Path) -> str:
    return f"the driver's last words:\n{log.read_text()[-3000:]}"


def _title(process: psutil.Process) -> str:
    """What a process calls itself, nothing once it has ended."""
    try:
        return "".join(process.cmdline()[:1]).strip()
    except psutil.NoSuchProcess:
        return ""


def _rank(number: int) -> Callable[[Line], psutil.Process]:
    return lambda line: line.ranks()[number]


def _raylet(line: Line) -> psutil.Process:
    return next(child for child in line.driver.children(recursive=True) if child.name().startswith("raylet"))


def _killed(line: Line, what: str, victim: Callable[[Line], psutil.Process], standbys: bool = False) -> float:
    """Seconds from the death of a process to the first step of the next start."""
    came = time.time()
    line.wait("a step", lambda: line.last_step() > came)
    if standbys:
        line.wait("the standbys", lambda: line.standbys() == 2)
    time.sleep(1)
    log = line.attempt / "logs" / "rank-0.log"
    seen = log.stat().st_size
    died = time.time()
    victim(line).kill()
    line.wait("the next start", lambda: "is process" in log.read_text()[seen:])
    started = _times(log.read_text()[seen:], died)["noticed, others killed, ranks placed"] + died
    line.wait("the first step", lambda: line.last_step() > started)
    first = next(_steps_after(line, started))
    parts = _times(log.read_text()[seen:], died) | {LAST_PART: first - died}
    before, said = 0.0, []
    for name, at in parts.items():
        said.append(f"{name} {number(at - before)} s")
        before = at
    say(f"{what} killed -> next step: {first - died:.2f} s ({', '.join(said)})")
    return first - died


def _steps_after(line: Line, moment: float) -> Iterator[float]:
    """The times of the steps after a moment."""
    for text in (line.attempt / "progress.jsonl").read_bytes().split(b"\n")[:-1]:
        if (at := float(json.loads(text)["time"])) > moment:
            yield at


def _times(log: str, since: float) -> dict[str, float]:
    """When each part had ended, in seconds after `since`, by the first line of the log that says so."""
    found = {}
    for name, pattern in PARTS.items():
        if match := re.search(_STAMP + ".*" + pattern, log, re.M):
            found[name] = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f").timestamp() - since
    return found


@contextmanager
def _training(options: Options, standby: bool) -> Iterator[Line]:
    """A pre-training of the tiny recipe that lasts until it is killed here."""
    work = options.folder / f"work-{standby}"
    settings = {
        "execution.registry": options.folder / "registry", "execution.cache": options.cache,
        "execution.standby": str(standby).lower(), "execution.ranks": 2, "execution.checkpoint_every": 50,
        "execution.max_failures": 1000, "pretrain.max_steps": 1_000_000,
    }  # fmt: skip
    given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "pipelines", "run", "--recipe", "tiny", "--work", str(work), *given]
    environment = contender.environment(2)
    data = subprocess.run(
        [*command, "--until", "tokenize"], cwd=contender.ROOT, env=environment, capture_output=True, text=True
    )
    if data.returncode:
        raise contender.ContenderFailed(data.stdout + data.stderr)
    path = options.folder / "driver.log"
    with path.open("a") as log:
        driver = psutil.Popen(
            [*command, "--until", "pretrain"], cwd=contender.ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            yield _started(driver, work, path)
        finally:
            if driver.poll() is None:
                driver.terminate()
            driver.wait(60)


def _started(driver: psutil.Popen, work: Path, log: Path) -> Line:
    """The line of a driver, when it has made its first steps."""
    end = time.time() + _PATIENCE
    while not (found := list(work.glob("steps/pretrain-*/attempts/*/progress.jsonl"))):
        if time.time() > end or driver.poll() is not None:
            raise contender.ContenderFailed(f"training made no first step; {_end(log)}")
        time.sleep(0.1)
    line = Line(driver, found[0].parent, log)
    line.wait("a checkpoint", lambda: bool(list(work.glob("steps/pretrain-*/checkpoints/step-*"))))
    return line
