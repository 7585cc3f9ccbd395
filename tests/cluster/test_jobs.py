"""Jobs on a real head: what Ray promises, which the commands build on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.jobs import HeadAway, JobGone, Jobs
from tests.ray_head import Head

# Saves for longer than Ray's own three seconds after SIGTERM.
SLOW_TO_LEAVE = """
import signal, sys, time
def leave(number, frame):
    time.sleep(4)
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def jobs(ray_head: Head) -> Iterator[Jobs]:
    yield Jobs(ray_head.dashboard, ray_head.token_file)


def test_a_job_says_what_it_prints_and_its_exit_code(jobs: Jobs) -> None:
    assert jobs.start("speaks", "echo one; sleep 1.5; echo two; exit 3", {"color": "blue"}, 5)
    assert "".join(jobs.follow("speaks")) == "one\ntwo\n" == jobs.log("speaks")
    ended = jobs.find("speaks")
    assert (ended.running, ended.exit_code, ended.metadata["color"]) == (False, 3, "blue")


def test_an_id_is_given_once(jobs: Jobs) -> None:
    assert jobs.start("once", "true", {}, 5)
    assert not jobs.start("once", "echo again", {}, 5)
    assert jobs.wait("once", 30).exit_code == 0
    assert not jobs.start("once", "echo again", {}, 5)
    assert "once" in [job.id for job in jobs.all()]


def test_a_stopped_job_has_the_time_it_was_promised_to_save(jobs: Jobs, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_TO_LEAVE)
    jobs.start("slow", f"exec {sys.executable} {script}", {}, 20)
    following = jobs.follow("slow")
    assert next(following) == "ready\n"
    begun = time.monotonic()
    jobs.stop("slow")
    assert "".join(following) == "saved\n"
    assert jobs.find("slow").state == "STOPPED" and time.monotonic() - begun < 20


def test_an_unknown_job_is_said_to_be_gone(jobs: Jobs) -> None:
    for ask in (jobs.find, jobs.log, lambda id: next(jobs.follow(id))):
        with pytest.raises(JobGone):
            ask("never-was")


def test_who_has_no_token_or_another_is_refused(ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> None:
    wrong = tmp_path_factory.mktemp("token") / "token"
    wrong.write_text("guessed")
    for token_file in (None, wrong):
        with pytest.raises(HeadAway, match="refuses the token"):
            Jobs(ray_head.dashboard, token_file)


def test_a_head_that_is_not_there_is_named() -> None:
    with pytest.raises(HeadAway, match="127.0.0.1:9"):
        Jobs("http://127.0.0.1:9")
