"""A head that is up for months, and workers whose head was away: without Ray, with what the head says of itself made up."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import head_facts, shared_folder
from cluster.shared_folder import STAMPS, NotShared, check
from pipelines import site_files, site_services, versions
from pipelines.site_files import SiteSettings
from pipelines.site_services import Refused
from pipelines.stamps import stamp
from tests.site import running

MONTH = 31 * 24 * 3600


def passing(monkeypatch: pytest.MonkeyPatch, *events: Callable[[], Any]) -> None:
    """What happens while the services sleep: one of the events each time."""
    left = iter(events)
    monkeypatch.setattr(site_services.time, "sleep", lambda seconds: next(left)())


def test_a_month_after_a_head_came_up_its_stamp_is_there_and_a_work_directory_that_was_cleaned_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living, told, stamps = [True], [], tmp_path / STAMPS

    def a_month_passes() -> None:
        old = (stamps / told[0]).stat().st_mtime - MONTH
        os.utime(stamps / told[0], (old, old))

    def a_run_begins() -> None:
        stamp(tmp_path)
        check(tmp_path, told[0], patience=0)
        shutil.rmtree(stamps)

    passing(monkeypatch, a_month_passes, a_run_begins, living.clear)
    monkeypatch.setattr(site_services, "_RENEWED", 0)
    monkeypatch.setattr(head_facts, "publish", lambda address, facts, ask: told.append(facts["stamp"]))
    site_services._keep_told(SiteSettings(work=str(tmp_path)), "head:1", {}, lambda: bool(living))
    assert len(told) == 2, "it was told once, and once more"
    check(tmp_path, told[1], patience=0)


@pytest.fixture
def admitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Ask as a worker does before it starts its Ray, of a head that gives these answers one after the other."""
    begun = versions.ours()
    monkeypatch.setattr(shared_folder, "check", functools.partial(check, patience=0))

    def ask(*answers: dict[str, Any] | None) -> None:
        left = iter(answers)

        def read(address: str, environment: Any) -> dict[str, Any]:
            answer = next(left)
            if answer is None:
                raise head_facts.HeadAway(f"no Ray head answers at {address}")
            return {"versions": versions.ours(), "work": None} | answer

        monkeypatch.setattr(head_facts, "read", read)
        passing(monkeypatch, *[lambda: None] * answers.count(None))
        site_services._admitted(tmp_path, SiteSettings(role="worker", head="head:1"), begun)
        assert list(left) == []

    yield ask


def test_a_worker_waits_for_a_head_that_is_away_and_joins_the_one_that_came_back(
    admitted: Callable[..., None], tmp_path: Path
) -> None:
    admitted(None, None, {"work": str(tmp_path), "stamp": stamp(tmp_path)})


def test_a_worker_that_does_not_fit_the_head_that_came_back_says_why(
    admitted: Callable[..., None], tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=r"ray: \S+ here, 9.9.9 on the head"):
        admitted(None, {"versions": versions.ours() | {"ray": "9.9.9"}})
    stamp(tmp_path)
    with pytest.raises(NotShared, match="an older state of this one"):
        admitted(None, {"work": str(tmp_path), "stamp": "0" * 16})


def test_a_worker_whose_checkout_was_brought_to_the_new_heads_begins_again_with_it(
    admitted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[bool] = []
    monkeypatch.setattr(site_services, "_begin_again", lambda: again.append(True))
    admitted({})
    assert not again, "nothing changed"
    monkeypatch.setattr(versions, "code_digest", lambda: "a-day-newer")
    admitted(None, {})
    assert again


AGAIN = """
import os, sys
from pathlib import Path
from pipelines import site_files, site_services
site = Path(sys.argv[1])
lock = site_files.the_only(site, "worker")
with open(site / "starts", "a") as starts:
    print(os.getpid(), *sys.argv[1:], file=starts)
if len((site / "starts").read_text().splitlines()) == 1:
    site_services._begin_again()
"""


def test_who_begins_again_is_the_same_process_with_the_same_arguments_and_has_the_lock_anew(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", AGAIN, str(tmp_path), "a b"], check=True, cwd=running.ROOT, timeout=60)
    first, second = (tmp_path / "starts").read_text().splitlines()
    assert first == second and first.endswith(f" {tmp_path} a b")
    site_files.the_only(tmp_path, "worker").release()
