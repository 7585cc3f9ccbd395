"""Jobs on a real head: what Ray promises, which the commands build on."""

from __future__ import annotations

import sys
import time

import pytest

from cluster.jobs import HeadAway, Job, JobGone, Jobs
from pipelines import submission
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
def jobs(ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """The jobs of a head on which two were started: they take their time side by side."""
    script = tmp_path_factory.mktemp("job") / "slow.py"
    script.write_text(SLOW_TO_LEAVE)
    found = Jobs(ray_head.dashboard, ray_head.token_file)
    assert found.start("slow", f"exec {sys.executable} {script}", {}, 20)
    assert found.start("speaks", "echo one; sleep 1.5; echo two; exit 3", {"color": "blue"}, 5)
    return found


def test_a_stopped_job_has_the_time_it_was_promised_to_save(jobs: Jobs) -> None:
    following = jobs.follow("slow")
    assert next(following) == "ready\n"
    begun = time.monotonic()
    jobs.stop("slow")
    assert "".join(following) == "saved\n"
    job = jobs.find("slow")
    assert job.state == "STOPPED" and submission.exit_code(job) == 75 and time.monotonic() - begun < 20


def test_a_job_says_what_it_prints_and_its_exit_code(jobs: Jobs) -> None:
    assert "".join(jobs.follow("speaks")) == "one\ntwo\n" == jobs.log("speaks")
    job = jobs.find("speaks")
    assert not job.running and submission.exit_code(job) == 3 and job.metadata["color"] == "blue"


def test_an_id_is_given_once(jobs: Jobs) -> None:
    assert not jobs.start("speaks", "echo again", {}, 5)
    assert [job.id for job in jobs.all() if job.id in ("slow", "speaks")] == ["slow", "speaks"]


@pytest.mark.parametrize(("state", "code", "said"), [("SUCCEEDED", 0, 0), ("FAILED", -9, 137), ("FAILED", None, 1)])
def test_an_exit_code_is_said_as_a_shell_says_it(state: str, code: int | None, said: int) -> None:
    assert submission.exit_code(Job("x-1", state, 0.0, 1.0, "true", {}, code, "")) == said


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
    with pytest.raises(HeadAway, match=r"127\.0\.0\.1:9"):
        Jobs("http://127.0.0.1:9")
