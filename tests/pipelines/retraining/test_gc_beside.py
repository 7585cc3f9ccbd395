"""`gc` again and again beside real retraining commands: what comes out is what comes out without it, byte for byte.

Minutes: `make thorough`. Everything is the real command line; one slot is killed in training, so that `gc` also meets a
slot that is open and owned by nobody.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines import slots
from pipelines.verification import verify
from tests.chaos import disk, outcome
from tests.pipelines.retraining.scene import ROOT, shakespeare

pytestmark = pytest.mark.thorough
RECIPE = """
from pathlib import Path
from tests.pipelines.retraining.scene import small

def nightly():
    return small(Path({corpus!r}), "cleaned")
"""
KEEP = ["--keep-days", "0", "--keep", "1"]


@dataclass
class Cleaner:
    """What a `gc` in a loop has said: the calls that went through, those that were kept out, and what each took for lost."""

    through: list[str] = field(default_factory=list)
    kept_out: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """A corpus that others share, and a work directory and a registry of its own."""

    folder: Path
    corpus: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def command(self, verb: str, *arguments: str) -> list[str]:
        chosen = {"registry": self.folder / "registry", "ranks": 1, "workers": 2, "threads": 1, "standby": False}
        settings = [part for name, value in chosen.items() for part in ("--set", f"execution.{name}={value}")]
        return [sys.executable, "-m", "pipelines", verb, *arguments, "--work", str(self.work), *settings]

    def begin(self, verb: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(verb, *arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def give(self, verb: str, *arguments: str, code: int = 0) -> str:
        process = self.begin(verb, *arguments)
        said = process.communicate(timeout=300)[0]
        assert process.returncode == code, said
        return said

    def retrain(self) -> str:
        return self.give("retrain", "--recipe", self.recipe())

    def recipe(self) -> str:
        file = self.folder / "recipe.py"
        file.write_text(RECIPE.format(corpus=str(self.corpus)))
        return f"{file}:nightly"

    def killed_in_training(self) -> None:
        """A retraining that is killed when its pre-training has begun, and is not awaited by anybody."""
        before = set(self.work.glob("steps/pretrain-*/attempts/*/logs"))
        driver = self.begin("retrain", "--recipe", self.recipe())
        end = time.monotonic() + 200
        while not set(self.work.glob("steps/pretrain-*/attempts/*/logs")) - before:
            assert driver.poll() is None, driver.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()

    @contextmanager
    def cleaning(self) -> Iterator[Cleaner]:
        """`gc --yes` without a pause meanwhile. Whatever it finds published has to be whole at each moment between."""
        told, enough, whole = Cleaner(), threading.Event(), disk.Wholeness()

        def clean() -> None:
            while not self.work.is_dir() and not enough.wait(0.1):
                pass  # before, there is nothing to clean, and gc says so
            while not enough.is_set():
                process = self.begin("gc", "--yes", *KEEP)
                said = process.communicate()[0]
                kept_out = process.returncode == 1 and "nothing was removed" in said
                kinds = {True: told.kept_out, False: told.through if process.returncode == 0 else told.wrong}
                kinds[kept_out].append(said)
                if process.returncode == 0:  # a run's commit is none of gc's doing: looked at again
                    told.wrong += list(whole.problems(self.work)) and list(whole.problems(self.work))

        cleaner = threading.Thread(target=clean)
        cleaner.start()
        try:
            yield told
        finally:
            enough.set()
            cleaner.join()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.txt").write_text(shakespeare(index * 20_000, (index + 1) * 20_000))
    return folder


def line(tmp_path: Path, name: str, corpus: Path) -> Line:
    (tmp_path / name).mkdir()
    return Line(tmp_path / name, corpus)


def compared(one: Line) -> outcome.Facts:
    """All that is left in the work directory and the registry, but for runs of MLflow and what only tells of a start."""
    found = outcome.facts(one.work, one.folder / "registry")
    how = ("run ", "file retrain/", "file gc/", "file outbox", "file champions/", "record register", "record compare")
    kept = {name: value for name, value in found.items() if not name.startswith(how)}
    return {name: value for name, value in kept.items() if "latency" not in name}


def test_retraining_beside_gc_that_never_rests_gives_the_bytes_of_one_without(corpus: Path, tmp_path: Path) -> None:
    quiet, disturbed = line(tmp_path, "quiet", corpus), line(tmp_path, "disturbed", corpus)
    new, text = corpus / "new.txt", shakespeare(200_000, 220_000)
    quiet.retrain()
    new.write_text(text)
    quiet.retrain()
    new.unlink()
    with disturbed.cleaning() as first:
        disturbed.retrain()
    new.write_text(text)
    with disturbed.cleaning() as killed:
        disturbed.killed_in_training()
        opened = slots.of_model(disturbed.work, "cleaned")[-1]
        assert opened.outcome == "open"
        begun, end = len(killed.through), time.monotonic() + 200
        while len(killed.through) < begun + 3:  # nobody is there, and the slot is open
            assert time.monotonic() < end, killed
            time.sleep(0.1)
        disturbed.retrain()
    assert first.wrong == killed.wrong == []
    assert len(first.kept_out) > 5 and len(killed.kept_out) > 5, "gc came while somebody was at work"
    seen = slots.of_model(disturbed.work, "cleaned")
    assert [slot.outcome for slot in seen] == [slot.outcome for slot in slots.of_model(quiet.work, "cleaned")]
    assert seen[-1].number == opened.number == 2 and [one.how for one in seen[-1].tries] == ["killed", "done"]
    for one in (quiet, disturbed):
        assert "freed: " in one.give("gc", "--yes", *KEEP)
        report = verify(one.work)
        assert (report.damaged, report.missing, report.unowned) == ([], [], [])
    expected, found = compared(quiet), compared(disturbed)
    assert len([name for name in expected if name.startswith("file steps/")]) > 20, sorted(expected)
    assert outcome.differences(expected, found) == []
    shutil.rmtree(tmp_path / "quiet")
