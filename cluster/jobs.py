"""The jobs of a Ray cluster: started, found, followed, stopped. The only file that talks to Ray's Jobs API.

The one idea: a job is a command that Ray's head node runs as the head's own user, in the head's own environment.
Nothing is uploaded: the command's paths are the head's. Ray keeps an id once and for all, so of two who start the same
id at the same moment one is refused; whoever names jobs by what they do gets one job for one thing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATIENCE = 20.0  # seconds in which a dashboard that does not answer has to be there again
_ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")  # would override the address that a caller asks for
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class HeadAway(ConnectionError):
    """The head's dashboard does not answer, or not to this token."""


class JobGone(RuntimeError):
    """The head knows no such job: it was started again since, or there never was one."""


@dataclass(frozen=True)
class Job:
    """One job as its head sees it. Times are seconds since 1970; `exit_code` is that of its command, if it has ended by itself."""

    id: str
    state: str
    started: float | None
    ended: float | None
    entrypoint: str
    metadata: Mapping[str, str]
    exit_code: int | None
    message: str

    @property
    def running(self) -> bool:
        """Whether it is on its way, be it only about to start."""
        return self.state not in _ENDED


class Jobs:
    """The jobs of the cluster whose head's dashboard is at the address `dashboard`; `token_file` holds its token, if it asks for one."""

    def __init__(self, dashboard: str, token_file: Path | None = None) -> None:
        self.dashboard = dashboard
        with _asked():
            self._client = _client(dashboard, token_file)

    def all(self) -> list[Job]:
        """Every job that was submitted, running ones and others, in the order of their start."""
        with _asked():
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(map(_job, found), key=lambda job: job.started or 0)

    def find(self, id: str) -> Job:
        """The job of this id. JobGone if there is none."""
        with _asked():
            return _job(self._client.get_job_info(id))

    def start(self, id: str, entrypoint: str, metadata: dict[str, str], stop_seconds: int) -> bool:
        """Start a job, or return False if its id is taken. After `stop` it has `stop_seconds` to end by itself.

        Everything given here can be read in the dashboard: no secrets.
        """
        # The job's supervisor looks for its own patience in its environment; Ray's default is three seconds.
        runtime_env = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_seconds)}}
        try:
            with _asked():
                self._client.submit_job(
                    submission_id=id, entrypoint=entrypoint, metadata=metadata, runtime_env=runtime_env
                )
        except RuntimeError as error:
            if "already exists" not in str(error):
                raise
            return False
        return True

    def stop(self, id: str) -> None:
        """Send SIGTERM to a job's processes; who is still there after its `stop_seconds` is killed."""
        with _asked():
            self._client.stop_job(id)

    def wait(self, id: str, seconds: float) -> Job:
        """The job when it has ended, or as it is after `seconds`."""
        end = time.monotonic() + seconds
        while (job := self.find(id)).running and time.monotonic() < end:
            time.sleep(0.5)
        return job

    def log(self, id: str) -> str:
        """What a job has printed so far. JobGone if there is no such job."""
        with _asked():
            return "".join(_own_words(id, iter([self._client.get_job_logs(id)])))

    def follow(self, id: str) -> Iterator[str]:
        """What a job has printed and prints, piece by piece, until it has ended. HeadAway when the head is gone for good."""
        yield from _own_words(id, self._pieces(id))

    def _pieces(self, id: str) -> Iterator[str]:
        """The log from its beginning, taken up again where it broke off."""
        seen, lost_at = 0, None
        with asyncio.Runner() as runner:  # it ends what is under way when Ctrl-C comes
            while True:
                try:
                    if not self.find(id).running:
                        with _asked():
                            yield self._client.get_job_logs(id)[seen:]
                        return
                    with _asked():
                        for piece in _steps(runner, self._client.tail_job_logs(id), skip=seen):
                            seen, lost_at = seen + len(piece), None
                            yield piece
                except HeadAway:
                    lost_at = lost_at or time.monotonic()
                    if time.monotonic() - lost_at > _PATIENCE:
                        raise
                time.sleep(0.5)


def _client(dashboard: str, token_file: Path | None) -> Any:
    """Ray's client for exactly this address, with the token in a header: neither depends on this process's environment."""
    hidden = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)

        headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"} if token_file else {}
        return JobSubmissionClient(dashboard, headers=headers)
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _asked() -> Iterator[None]:
    """Ray's many ways to say that the head is away or knows no such job, in two kinds of error."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except (requests.exceptions.ConnectionError, aiohttp.ClientError, ConnectionError, TimeoutError) as error:
        raise HeadAway(f"the cluster's dashboard does not answer ({error})") from error
    except AuthenticationError as error:
        raise HeadAway(f"the cluster's dashboard refuses the token ({str(error).splitlines()[0]})") from error
    except RuntimeError as error:
        if "does not exist" in str(error) or "status code 404" in str(error):
            raise JobGone(str(error)) from error
        if "WebSocket" in str(error):
            raise HeadAway(f"the cluster's dashboard hung up ({error})") from error
        raise


def _steps(runner: asyncio.Runner, pieces: Any, skip: int) -> Iterator[str]:
    """An asynchronous iterator of text as a plain one, without its first `skip` characters."""

    async def following() -> str | None:
        return await anext(pieces, None)

    while (piece := runner.run(following())) is not None:
        if piece[skip:]:
            yield piece[skip:]
        skip = max(0, skip - len(piece))


def _own_words(id: str, pieces: Iterator[str]) -> Iterator[str]:
    """The text of a job's log without the lines in which Ray says what it runs; they may come after the job's first ones."""
    ray = re.compile(rf"\S+ \S+\tINFO job_manager\.py|Running entrypoint for job {re.escape(id)}: ")
    rest = ""
    for piece in pieces:
        lines = (rest + piece).splitlines(keepends=True)
        rest = lines.pop() if lines and not lines[-1].endswith("\n") else ""
        if told := "".join(line for line in lines if not ray.match(line)):
            yield told
    if rest:
        yield rest


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        state=details.status.value,
        started=details.start_time and details.start_time / 1000,
        ended=details.end_time and details.end_time / 1000,
        entrypoint=details.entrypoint,
        metadata=dict(details.metadata or {}),
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )
