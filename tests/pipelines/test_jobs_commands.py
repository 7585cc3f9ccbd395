"""`submit`, `logs`, `stop` and `jobs`, as a user gives them, on a real head.

A pipeline that waits for a step that this test owns stands for a long one: it can be stopped at any time, and goes on
when the step is given back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from model import durable
from pipelines import recipes, run
from pipelines.engine import lease as leases
from pipelines.execution import Execution
from tests.ray_head import ROOT, Head, head


@dataclass(frozen=True)
class Site:
    """A head, a work directory, and the command line on them."""

    head: Head
    work: Path

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "pipelines", *words]

    def submit(self, *words: str) -> list[str]:
        registry = f"execution.registry={self.work.parent / 'registry'}"
        options = ["--recipe", "tiny", "--work", str(self.work), "--until", "prepare_task", "--set", registry]
        return self.command("submit", *options, *words)

    def __call__(self, words: list[str], expect: int = 0) -> str:
        done = subprocess.run(
            words, cwd=ROOT, env=self.head.environment, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def begin(self, words: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, cwd=ROOT, env=self.head.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=_as_in_a_terminal,
        )  # fmt: skip

    def jobs(self) -> list[dict[str, object]]:
        """The jobs of this work directory."""
        listed = json.loads(self(self.command("jobs", "--json")))["jobs"]
        return [job for job in listed if job["work"] == str(self.work)]


def _as_in_a_terminal() -> None:
    """Tests that run in the background of a shell, or under nohup, are started with these signals ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def site(ray_head: Head, tmp_path: Path) -> Site:
    return Site(ray_head, tmp_path / "work")


def own_first_step(site: Site) -> leases.Lease:
    workspace = run.open_workspace(recipes.tiny(), Execution(work=str(site.work)), fetch=True)
    folder = run.plan(workspace)["prepare_task"].folder
    assert folder is not None
    return leases.acquire(folder, 30)


@pytest.fixture
def owned(site: Site) -> Iterator[leases.Lease]:
    """The first step of the pipeline, owned by this process."""
    lease = own_first_step(site)
    yield lease
    if not lease._stop.is_set():
        lease.release()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What the process printed up to the line with these words."""
    assert process.stdout
    told = ""
    for line in process.stdout:
        told += line
        if words in line:
            return told
    raise AssertionError(f"ended without {words!r}: {told}")


def test_a_running_pipeline_is_attached_to_outlives_its_terminals_and_stops_to_be_gone_on_with(
    site: Site, owned: leases.Lease
) -> None:
    first, second = (site.begin(site.submit()) for _ in range(2))
    told = [read_until(process, "is at work on this step") for process in (first, second)]
    assert sorted("attached" in text for text in told) == [False, True], told

    first.send_signal(signal.SIGHUP)
    second.send_signal(signal.SIGINT)
    assert first.wait(120) == -signal.SIGHUP and second.wait(120) == 130
    assert second.stdout and "goes on" in second.stdout.read()

    # Where and how it runs makes no other pipeline of it, but it is said.
    other = site.begin(site.submit("--set", "execution.workers=1"))
    told = [read_until(other, "is at work on this step")]
    assert "attached" in told[0] and "it was submitted as" in told[0]
    stopped = site(site.command("stop"))
    assert "30 s to save" in stopped and "was stopped" in stopped
    rest = other.communicate(timeout=120)[0]
    assert other.returncode == 75 and "stopped by a signal" in rest and "next: make submit RECIPE=tiny" in rest

    owned.release()
    assert "1 of 1 steps done now" in site(site.submit())
    assert [job["exit_code"] for job in site.jobs()] == [75, 0], "one job for the three, another one for the last"
    assert "1 of 1 steps done now" in site(site.command("logs", "--no-follow"))


def test_a_password_is_not_written_on_a_job(site: Site) -> None:
    told = site(site.submit("--set", "execution.registry=https://me:hunter2@mlflow.example"), expect=2)
    assert "password" in told and "hunter2" not in told
    assert all("hunter2" not in json.dumps(job) for job in site.jobs())


def test_where_nothing_is_up_the_next_command_is_named(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pipelines", "jobs", "--site", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "make up" in done.stderr


@pytest.mark.thorough
def test_a_job_stopped_in_training_goes_on_and_ends_with_the_bytes_of_a_local_run(site: Site, tmp_path: Path) -> None:
    def line(verb: str, folder: str) -> list[str]:
        registry = f"execution.registry={tmp_path / folder / 'registry'}"
        options = ["--recipe", "tiny", "--work", str(tmp_path / folder), "--set", registry]
        return site.command(verb, *options, "--set", "execution.threads=1", "--set", "pretrain.max_steps=400")

    follower = site.begin(line("submit", "cluster"))
    read_until(follower, "pretrain ...")
    progress = tmp_path / "cluster" / "steps"
    while not list(progress.glob("pretrain-*/attempts/*/metrics.jsonl")) and follower.poll() is None:
        time.sleep(0.1)
    assert "was stopped" in site(site.command("stop"))
    rest = follower.communicate(timeout=120)[0]
    assert follower.returncode == 75, rest
    assert site(line("submit", "cluster")).endswith("is done, exit code 0\n")
    site(line("run", "local"))
    made = [
        {
            record["step"]: {output["path"]: output["sha256"] for output in record["outputs"]}
            for record in map(durable.read_json, (tmp_path / folder).glob("steps/*/record.json"))
            if not record["step"].startswith("register")
        }
        for folder in ("cluster", "local")
    ]
    assert len(made[0]) >= 8 and made[0] == made[1]


@pytest.mark.thorough
def test_who_follows_a_job_whose_head_is_lost_is_told_and_the_same_submit_goes_on_on_another(
    tmp_path: Path,
) -> None:
    with head() as first:
        site = Site(first, tmp_path / "work")
        lease = own_first_step(site)
        follower = site.begin(site.submit())
        read_until(follower, "is at work on this step")
        os.killpg(first.process.pid, signal.SIGKILL)
        rest = follower.communicate(timeout=120)[0]
        assert follower.returncode == 75 and "out of sight" in rest and "next:" in rest, rest
    lease.release()
    with head() as second:
        again = Site(second, tmp_path / "work")
        assert "1 of 1 steps done now" in again(again.submit())
