"""A pipeline as a job of a cluster: which job it is, what its command is, what its end means.

The one idea: a job is named by what it makes, `<recipe>-<digest>-<n>`, and the cluster gives a name once. Whoever
submits a pipeline that is running is attached to it; of two who submit it at the same moment one starts it and both
follow it. Should two run all the same (two clusters on one work directory), the steps' leases make that harmless.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.config import ConfigError, Recipe
from pipelines.engine.fingerprint import digest
from pipelines.errors import FAILED, INTERRUPTED
from pipelines.execution import Execution
from pipelines.results import Given

if TYPE_CHECKING:
    from cluster.jobs import Job, Jobs

PIPELINE, RECIPE, WORK, GRACE = (f"gptline.{name}" for name in ("pipeline", "recipe", "work", "grace_seconds"))
TO_LEAVE = 30  # seconds that a driver has after its ranks have saved, to close MLflow's runs and give its leases back
_SECRET = re.compile(r"://[^/\s\"']*:[^/\s\"'@]*@")  # https://user:password@host


@dataclass(frozen=True)
class Submission:
    """What to submit: the pipeline's digest, the command that makes it, and the seconds that it has after a stop."""

    recipe: str
    work: str
    pipeline: str
    entrypoint: str
    grace_seconds: float

    @property
    def stop_seconds(self) -> int:
        """Seconds between SIGTERM and SIGKILL: for the ranks to save, and for the driver to leave."""
        return int(self.grace_seconds) + 1 + TO_LEAVE

    @property
    def metadata(self) -> dict[str, str]:
        """What is written on the job. Anybody who sees the dashboard reads it."""
        values = {PIPELINE: self.pipeline, RECIPE: self.recipe, WORK: self.work}
        return values | {GRACE: f"{self.grace_seconds:g}"}

    def id(self, number: int) -> str:
        """The name of the `number`-th job of this pipeline."""
        return f"{self.recipe}-{self.pipeline[:12]}-{number}"


def submission(recipe: Recipe, execution: Execution, given: Given, command: list[str]) -> Submission:
    """The job that gives `command` for `recipe`. ConfigError where what was given holds a password: a job's command is no secret."""
    _refuse_secrets(given, recipe)
    work = os.path.realpath(execution.work)
    # Whether to wait for others is no part of what is made.
    made = {"recipe": recipe.model_dump(mode="json"), "command": [word for word in command if word != "--no-wait"]}
    pipeline = digest(made | {"work": work, "registry": execution.registry})
    return Submission(recipe.name, work, pipeline, _entrypoint(given, command), execution.grace_seconds)


def run_command(until: str | None, wait: bool) -> list[str]:
    """`run` as a job's command: on the Ray of the job."""
    return ["run", "--submitted", *(["--until", until] if until else []), *([] if wait else ["--no-wait"])]


def retrain_command() -> list[str]:
    """`retrain` as a job's command: on the Ray of the job."""
    return ["retrain", "--set", "execution.ray_address=auto"]


def _refuse_secrets(given: Given, recipe: Recipe) -> None:
    for text in (*given.settings, recipe.model_dump_json()):
        if found := _SECRET.search(text):
            raise ConfigError(
                f"a password in an address ({found[0].partition('://')[0]}://...) would be seen in the cluster's dashboard: "
                "leave it out, and put it where the head node's services read it from (a file of mode 0600)"
            )


def _entrypoint(given: Given, command: list[str]) -> str:
    """The shell command: the same folder, the same Python, the same words. `exec`: the signal reaches Python itself."""
    words = [sys.executable, "-m", "pipelines", *command, "--recipe", given.recipe, "--work", given.work]
    words += [word for setting in given.settings for word in ("--set", setting)]
    return f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(words)}"


def start_or_attach(jobs: Jobs, wanted: Submission) -> tuple[Job, bool]:
    """The running job of this pipeline, and whether this call has started it."""
    while True:
        known = [job for job in jobs.all() if job.metadata.get(PIPELINE) == wanted.pipeline]
        if running := [job for job in known if job.running]:
            return running[0], False
        id = wanted.id(1 + max((number_of(job.id) for job in known), default=0))
        if jobs.start(id, wanted.entrypoint, wanted.metadata, wanted.stop_seconds):
            return jobs.find(id), True
        # Somebody was faster: their job is the one, or has ended already and its number is taken.


def number_of(id: str) -> int:
    """The number at the end of a job's name."""
    end = id.rpartition("-")[2]
    return int(end) if end.isdigit() else 0


def ours(jobs: Jobs) -> list[Job]:
    """The jobs that are pipelines, in the order of their start."""
    return [job for job in jobs.all() if PIPELINE in job.metadata]


def exit_code(job: Job) -> int:
    """The exit code of the pipeline in a job that has ended: as a shell says it, where a signal ended it."""
    if job.state == "SUCCEEDED":
        return 0
    if job.state == "STOPPED":
        return INTERRUPTED
    if job.exit_code is None:
        return FAILED
    return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code


def outcome(job: Job) -> str:
    """How a job ended, in words."""
    if job.state == "FAILED" and job.exit_code is None:
        return f"failed: {job.message.strip().splitlines()[0] if job.message.strip() else 'Ray does not say why'}"
    words = {"SUCCEEDED": "is done", "STOPPED": "was stopped; what is finished is kept", "FAILED": "failed"}
    killed = f" (killed by signal {-job.exit_code})" if job.exit_code is not None and job.exit_code < 0 else ""
    return f"{words.get(job.state, job.state.lower())}{killed}, exit code {exit_code(job)}"


def as_json(job: Job) -> dict[str, Any]:
    """A job for programs."""
    known = {"id": job.id, "state": job.state, "started": job.started, "ended": job.ended}
    named = {"recipe": job.metadata[RECIPE], "work": job.metadata[WORK], "pipeline": job.metadata[PIPELINE]}
    return known | named | {"exit_code": None if job.running else exit_code(job)}


def since(job: Job) -> str:
    """When a job was started, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(job.started)) if job.started else "not yet"
