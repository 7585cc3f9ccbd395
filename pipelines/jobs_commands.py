"""The commands about pipelines on a cluster: submit, logs, stop, jobs.

The one idea: a follower is only a reader. It may come and go; the job goes on until it is done or told to stop.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import submission
from pipelines.config import ConfigError
from pipelines.errors import StepInterrupted
from pipelines.options import AsJson, RecipeName, Settings, Until, Wait, WorkDir, configured, out, pairs
from pipelines.recipe_checks import check_together
from pipelines.results import Given
from pipelines.site_commands import SiteFolder

if TYPE_CHECKING:
    from cluster.jobs import Job, Jobs

_DETACHED = 130  # what a shell says of a command that Ctrl-C ended

Dashboard = Annotated[
    str | None,
    typer.Option(
        envvar="GPTLINE_DASHBOARD", help="address of a head's dashboard (http://host:port), instead of --site"
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option(envvar="GPTLINE_TOKEN_FILE", help="file with the token for --dashboard")
]
JobName = Annotated[str | None, typer.Argument(help="a job's id; the running one, or the last, if not given")]
Follow = Annotated[bool, typer.Option(help="go on until the job has ended, or leave at once")]


def submit(
    recipe: RecipeName = "default",
    work: WorkDir = "work",
    settings: Settings = None,
    until: Until = None,
    wait: Wait = True,
    retrain: Annotated[bool, typer.Option("--retrain", help="give `retrain` instead of `run`")] = False,
    follow: Follow = True,
    site: SiteFolder = "site",
    dashboard: Dashboard = None,
    token_file: TokenFile = None,
) -> None:
    """Run the pipeline on the cluster as a job and follow it; a running one is followed, not started twice."""
    if retrain and (until or not wait):
        raise ConfigError(
            "--retrain takes neither --until nor --no-wait: it runs whole, and leaves where another one is at work"
        )
    chosen = pairs(settings)
    if dashboard is None and not any(pair.startswith("execution.site=") for pair in chosen):
        chosen = (f"execution.site={site}", *chosen)  # the cluster's own registry, with its credentials
    made, execution = configured(recipe, work, list(chosen))
    check_together(made, execution)
    given = Given(recipe, work, chosen, "submit")
    command = submission.retrain_command() if retrain else submission.run_command(until, wait)
    wanted = submission.submission(made, execution, given, command)
    known = _jobs(execution.site or site, dashboard, token_file)
    job, started = submission.start_or_attach(known, wanted)
    _told_start(job, started, wanted)
    if not follow:
        out.print(f"next: make logs JOB={job.id}", markup=False)
        return
    with _detaching(job):
        raise typer.Exit(_followed(known, job, given))


def _told_start(job: Job, started: bool, wanted: submission.Submission) -> None:
    if started:
        out.print(f"job {job.id} started; it goes on when this terminal is closed", markup=False)
        return
    out.print(f"job {job.id} runs since {submission.since(job)}: attached to it", markup=False)
    if job.entrypoint != wanted.entrypoint:
        out.print(f"  it was submitted as: {job.entrypoint}", markup=False)


@contextmanager
def _detaching(job: Job) -> Iterator[None]:
    """Ctrl-C ends the follower, not the job."""
    try:
        yield
    except KeyboardInterrupt:
        out.print(f"\njob {job.id} goes on; next: make logs JOB={job.id}, or make stop JOB={job.id}", markup=False)
        raise typer.Exit(_DETACHED) from None


def _followed(known: Jobs, job: Job, given: Given) -> int:
    """Print what the job prints until it has ended; the pipeline's exit code. StepInterrupted if the head is lost."""
    from cluster.jobs import HeadAway, JobGone

    try:
        for piece in known.follow(job.id):
            out.print(piece, markup=False, end="")
        job = known.find(job.id)
    except (HeadAway, JobGone) as loss:
        raise StepInterrupted(
            f"job {job.id} is out of sight: {loss}\njobs die with their head node; what is finished is kept\n"
            f"next: look at the head node, and {given.again()} (it attaches to the job, or goes on)"
        ) from loss
    out.print(f"job {job.id} {submission.outcome(job)}", markup=False)
    return submission.exit_code(job)


def logs(
    job: JobName = None,
    follow: Follow = True,
    site: SiteFolder = "site",
    dashboard: Dashboard = None,
    token_file: TokenFile = None,
) -> None:
    """Print what a job has printed, and go on printing while it runs."""
    known = _jobs(site, dashboard, token_file)
    chosen = _chosen(known, job, "logs")
    if chosen is None:
        out.print("no job was submitted since the head node started; next: make submit", markup=False)
        return
    if not follow:
        out.print(known.log(chosen.id), markup=False, end="")
        return
    with _detaching(chosen):
        for piece in known.follow(chosen.id):
            out.print(piece, markup=False, end="")
    out.print(f"job {chosen.id} {submission.outcome(known.find(chosen.id))}", markup=False)


def stop(
    job: JobName = None,
    site: SiteFolder = "site",
    dashboard: Dashboard = None,
    token_file: TokenFile = None,
) -> None:
    """Ask a job to save and leave, as SIGTERM does, and wait until it has."""
    known = _jobs(site, dashboard, token_file)
    chosen = _chosen(known, job, "stop")
    if chosen is None or not chosen.running:
        out.print("no job is running: nothing to stop; next: make jobs", markup=False)
        return
    grace = chosen.metadata.get(submission.GRACE, "0")
    known.stop(chosen.id)
    out.print(f"asked job {chosen.id} to stop; its ranks have {grace} s to save", markup=False)
    ended = known.wait(chosen.id, float(grace) + 3 * submission.TO_LEAVE)
    if ended.running:
        raise ConnectionError(f"job {ended.id} has not ended; look at it with: make logs JOB={ended.id}")
    out.print(f"job {ended.id} {submission.outcome(ended)}\nnext: make submit (goes on)", markup=False)


def jobs(
    as_json: AsJson = False, site: SiteFolder = "site", dashboard: Dashboard = None, token_file: TokenFile = None
) -> None:
    """List the pipelines that were submitted since the head node started."""
    found = submission.ours(_jobs(site, dashboard, token_file))
    if as_json:
        sys.stdout.write(json.dumps({"jobs": [submission.as_json(job) for job in found]}, indent=1) + "\n")
        return
    for job in found:
        state = "running" if job.running else submission.outcome(job)
        out.print(f"  {job.id:<36} {submission.since(job)}  {state}", markup=False)
    out.print("next: make logs JOB=..., make stop JOB=..." if found else "no jobs; next: make submit", markup=False)


def _jobs(site: str, dashboard: str | None, token_file: Path | None) -> Jobs:
    """The jobs of the head at `dashboard`, or of the one that `make up` started in this site. HeadAway if there is none."""
    from cluster.jobs import HeadAway, Jobs

    if dashboard is None:
        dashboard, token_file = _head(site)
    try:
        return Jobs(dashboard, token_file)
    except HeadAway as error:
        raise HeadAway(f"{error}\nnext: make up on the head node, or say where it is with --dashboard") from error


def _head(site: str) -> tuple[str, Path]:
    from cluster import site as sites

    ray = sites.read(site).ray
    if ray is None:
        raise ConnectionError(f"no cluster is up here: {Path(site).absolute()} names no Ray; next: make up")
    if ray.dashboard is None:
        raise ConnectionError(f"this node is a worker of the head at {ray.address}: give the command on the head node")
    return ray.dashboard, Path(ray.token_file)


def _chosen(known: Jobs, id: str | None, verb: str) -> Job | None:
    """The job of this id, or the one that runs, or the last. ConfigError if several run and none is named."""
    from cluster.jobs import JobGone

    if id is not None:
        try:
            return known.find(id)
        except JobGone as error:
            raise ConfigError(f"JOB={id}: the cluster knows no such job; make jobs lists them") from error
    found = submission.ours(known)
    running = [job for job in found if job.running]
    if len(running) > 1:
        names = "\n".join(f"  make {verb} JOB={job.id}" for job in running)
        raise ConfigError(f"{len(running)} jobs run, say which:\n{names}")
    return next(reversed(running or found), None)
