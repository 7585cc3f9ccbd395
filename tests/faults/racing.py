"""Runs and cleaners of one work directory, as fast as they can: what tests of `gc` start as processes.

    python -m tests.faults.racing run WORK REGISTRY ROUNDS SEED      run a line that changes each round
    python -m tests.faults.racing gc WORK REGISTRY HOST              clean until WORK/../stop is there

HOST other than "here" makes the cleaner one that can look up no process, as on another host. With GPTLINE_UNMARKED set
runs do not say that they use the work directory: what the tests must find out.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
import sys
import time
from pathlib import Path

from pipelines import cleaning, run
from pipelines.aliased import aliased
from pipelines.engine import lease as leases
from pipelines.engine import using
from pipelines.engine.lease import Busy
from pipelines.retention import Retention
from tests.pipelines import nightly

SECONDS = 6.0  # without a sign of life


def runs(root: Path, registry: str, rounds: int, seed: int) -> None:
    """A line that comes back to what it had earlier, so that it plans on what gc is after. Says what it lost.

    For so many rounds, and until the cleaner has removed something and has been kept out often enough.
    """
    chance = random.Random(seed)
    lost: list[str] = []
    deadline, done = time.monotonic() + 120, 0
    try:
        while (done < rounds or not (root.parent / "enough").exists()) and time.monotonic() < deadline:
            if lost or (root.parent / "lost").exists():
                break
            done += 1
            files = [f"{seed} {chance.randrange(4)}", *(f"shared {number}" for number in range(8))]
            space = nightly.workspace(root, nightly.flow(files), registry, SECONDS)
            for outcome in run.run(space, run.unwatched, lambda owner: None, lost.append):
                time.sleep(chance.random() / 100)
                for file in outcome.record.outputs:  # what this run plans with stays until it ends
                    if not (root / file.path).exists():
                        lost.append(f"{file.path} of {outcome.planned.step.name}")
            time.sleep(chance.random() / 20)
    except BaseException as error:
        lost.append(f"ended by {error!r}")
    if lost:
        (root.parent / "lost").touch()  # the others need not go on
    print(json.dumps({"lost": lost, "rounds": done}))


def cleans(root: Path, registry: str, host: str) -> None:
    """Keep as little as can be; says how often that was possible, and what it removed."""
    if host != "here":
        leases._process_space = lambda: f"{host} pid:[1]"
    counts = {"cleaned": 0, "busy": 0, "removed": 0}
    while not (root.parent / "stop").exists():
        now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
        try:
            found = cleaning.collect(root, Retention(0, 1), now, lambda: aliased(root, registry), SECONDS)
            counts["cleaned"] += 1
            counts["removed"] += len(found.doomed)
        except Busy:
            counts["busy"] += 1
        if counts["removed"] >= 10 and counts["busy"] >= 5:
            (root.parent / "enough").touch()
        time.sleep(0.005)
    print(json.dumps(counts))


@contextlib.contextmanager
def unmarked(root: Path, *others: object) -> object:  # type: ignore[misc]
    """Use without a mark."""
    yield type("Use", (), {"confirm": lambda self, scratch: None})()


if __name__ == "__main__":
    if os.environ.get("GPTLINE_UNMARKED"):
        using.using = unmarked  # type: ignore[assignment]
    role, root, registry, *rest = sys.argv[1:]
    if role == "run":
        runs(Path(root), registry, int(rest[0]), int(rest[1]))
    else:
        cleans(Path(root), registry, rest[0])
