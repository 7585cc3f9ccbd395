"""Builds with a planted fault, which the harness has to catch: or its silence would mean nothing.

The one idea: the code is copied and one durable act in it is made torn, with the same bytes at the end, so that only
a kill at the wrong moment shows it. The window is held open, as a slow disk would, and aimed at.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.site import ROOT


@dataclass(frozen=True)
class Fault:
    """A function that is defined anew at the end of a file of the copy, and the kill that shows it."""

    file: str
    function: str
    torn: str
    until: str
    aim: str
    seen: str  # what the harness has to say of it


FAULTS = {
    "the record is written before the outputs": Fault(
        "pipelines/engine/step.py", "def _commit(record: Record, attempt: Attempt) -> None:",
        """
    draft = attempt.scratch / records.RECORD
    durable.write_bytes(draft, records.to_json(record))
    durable.link(draft, attempt.folder / records.RECORD)
    time.sleep(0.5)
    durable.publish_folder(attempt.outputs, attempt.folder / "outputs")
""",
        "prepare_task", "prepare_task,record,0,driver", "which is missing",
    ),
    "a link is a copy in two parts": Fault(
        "model/durable.py", "def link(source: Path, target: Path) -> None:",
        """
    import time
    data = source.read_bytes()
    with open(target, "xb", buffering=0) as copy:
        copy.write(data[: len(data) // 2])
        time.sleep(0.5)
        copy.write(data[len(data) // 2 :])
""",
        "prepare_task", "prepare_task,record,0,driver", "published and not whole",
    ),
    "a checkpoint appears file by file": Fault(
        "model/durable.py", "def publish_folder(staging: Path, target: Path) -> None:",
        """
    import time
    target.mkdir()
    for path in sorted(staging.rglob("*")):
        there = target / path.relative_to(staging)
        there.mkdir() if path.is_dir() else shutil.copyfile(path, there)
        time.sleep(0.1)
    shutil.rmtree(staging)
""",
        "pretrain", "pretrain,checkpoint,10,power", "step-000010",
    ),
}  # fmt: skip


@contextlib.contextmanager
def build(fault: Fault) -> Iterator[Path]:
    """A copy of the code with the fault in it."""
    with tempfile.TemporaryDirectory(prefix="planted", dir="/tmp") as folder:
        tree = Path(folder)
        for name in ("pipelines", "model", "cluster"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        file = tree / fault.file
        text = file.read_text()
        if fault.function not in text:
            raise RuntimeError(
                f"{fault.file} has no {fault.function!r} any more: the planted fault has to be written anew"
            )
        file.write_text(f"{text}\n\n{fault.function}{fault.torn}")
        yield tree


def batch(fault: Fault, tree: Path, log: Path) -> subprocess.CompletedProcess[str]:
    """The batch that aims at the fault, on the code in `tree`."""
    given = [
        "--tree",
        str(tree),
        "--reference",
        str(ROOT),
        "--until",
        fault.until,
        "--aim",
        fault.aim,
        "--kills",
        "1",
        "--log",
        str(log),
    ]
    return subprocess.run(
        [sys.executable, "-m", "tests.chaos", *given, "--served", "0"], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip


def self_test() -> int:
    """Each fault has to be caught, and the same kills have to change nothing in the sound build; 0 if so."""
    wrong = 0
    for name, fault in FAULTS.items():
        with build(fault) as tree, tempfile.TemporaryDirectory() as logs:
            for kind, code, expected in (("sound build", ROOT, 0), (name, tree, 1)):
                done = batch(fault, code, Path(logs) / "log.jsonl")
                right = done.returncode == expected and (fault.seen in done.stdout) == bool(expected)
                wrong += not right
                print(f"{'caught' if expected and right else 'sound' if right else 'WRONG'}: {kind}, {fault.aim}: {done.stdout.splitlines()[-1:]}", flush=True)  # fmt: skip
                if not right:
                    print(done.stdout + done.stderr, flush=True)
    return 1 if wrong else 0
