"""A year of nightly retraining on a fake clock: the disk does not fill, and nothing that is needed is ever gone."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import cleaning, run
from pipelines.aliased import aliased
from pipelines.engine import record as records
from pipelines.retention import Retention, size_of
from pipelines.verification import verify
from tests.pipelines import nightly

NIGHTS = 365
RETENTION = Retention(days=3, count=2)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: a year waits for the disk 40,000 times, and no power is cut here."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def test_a_year_of_nights_does_not_fill_the_disk_and_keeps_what_is_needed(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, registry = memory / "work", nightly.registry(memory / "registry")
    now = datetime.datetime(2025, 1, 1, 3, 0, tzinfo=datetime.UTC)
    monkeypatch.setattr(records, "now", lambda: now.isoformat(timespec="milliseconds"))
    sizes, files = [], []
    champion: list[nightly.Step] = []
    for night in range(NIGHTS):
        now += datetime.timedelta(days=1)
        files.append(f"night {night}: " + "text " * 20)
        if night % 5 == 4:
            files.pop(0)  # the corpus moves on: so its size, and that of the newest units, is bounded
        files = files[-20:]
        line = nightly.flow(files, champion=night % 40 == 0)
        if night % 10 == 7:  # killed in training, cleaned, gone on with
            with nightly.crashing(root), pytest.raises(nightly.Crash):
                nightly.go(root, line, registry)
            nightly.as_of(root, now)
            collect(root, registry, now)
        outcomes = {outcome.planned.step.name: outcome for outcome in nightly.go(root, line, registry)}
        assert outcomes["pretrain"].record.metrics["went_on_from"] == (1 if night % 10 == 7 else 0)
        assert outcomes["train_tokenizer"].done_now == (night == 0), "made once, kept for ever"
        champion = line if night % 40 == 0 else champion
        nightly.as_of(root, now)
        collect(root, registry, now)
        for needed in (champion, line) if night % 3 == 0 or night > NIGHTS - 10 else ():
            assert all(planned.done for planned in run.plan(nightly.workspace(root, needed, registry)).values()), night
        if night % 5 == 0:
            sizes.append(size_of(root))
    report = verify(root)
    assert report.damaged == report.missing == report.unowned == []
    # After the corpus and the retention have filled it stays as it is: the second half of the year adds nothing.
    assert max(sizes[36:]) <= 1.05 * max(sizes[12:36]), sizes
    assert len(list((root / "steps").iterdir())) < 60


def collect(root: Path, registry: str, now: datetime.datetime) -> None:
    cleaning.collect(root, RETENTION, now, lambda: aliased(root, registry), seconds=2.0)
