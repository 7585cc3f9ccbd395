"""Retraining at its times: which commands, under which name, installed where.

The one idea: a schedule is for a recipe in a work directory. Its name holds their digest, so scheduling again (other times,
other settings) replaces it, and any number of them stand beside each other.
"""

from __future__ import annotations

import datetime
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster import every, schedule
from cluster.schedule import Job
from model import durable
from pipelines.engine.fingerprint import digest
from pipelines.execution import Execution

Kind = Literal["auto", "systemd", "cron"]


@dataclass(frozen=True)
class Wanted:
    """What is to be scheduled: a recipe in a work directory, with settings."""

    recipe: str
    execution: Execution
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its timer or its lines."""
        which = digest({"recipe": _whole(self.recipe), "work": self.execution.work})[:10]
        return f"gptline-{re.sub(r'[^A-Za-z0-9]+', '-', Path(self.recipe).name).strip('-')}-{which}"


def _whole(recipe: str) -> str:
    """A recipe's name, a file's path made absolute: the timer's folder may be another one."""
    file, colon, function = recipe.partition(":")
    return f"{Path(file).absolute()}:{function}" if colon else recipe


def job(wanted: Wanted, text: str, since: datetime.datetime, clean: bool) -> Job:
    """What the timer does: retrain, then (with `clean`) gc. BadSchedule if `text` says no times."""
    work = Path(wanted.execution.work)
    python = (sys.executable, "-m", "pipelines")
    given = (
        "--recipe", _whole(wanted.recipe), "--work", str(work), *(part for pair in wanted.settings for part in ("--set", pair))
    )  # fmt: skip
    retrain, gc = (*python, "retrain", *given), (*python, "gc", "--yes", "--if-idle", *given[2:])
    return Job(
        name=wanted.name,
        title=f"{wanted.recipe} in {work}",
        every=every.parse(text),
        text=text,
        folder=Path.cwd(),
        commands=(retrain, gc) if clean else (retrain,),
        after_boot=(*python, "catch-up", text, "--since", since.isoformat(timespec="seconds"), *given),
        log=work.with_name(f"{work.name}.retrain.log"),
        lock=work.with_name(f".{wanted.name}.lock"),
        grace=round(wanted.execution.grace_seconds) + 150,
    )


def install(wanted: Wanted, job: Job, kind: Kind, units: Path | None) -> Iterator[str]:
    """Install the job, in place of an earlier one of its name; yields what was done. ScheduleError.

    `units` is a folder for the units of systemd: they are written and checked there, and systemd is not spoken to.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    if _is_systemd(kind, units):
        folder, user = _unit_folder(units)
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for name, text in schedule.units(job).items():
            durable.write_bytes(folder / name, text.encode())
            files.append(folder / name)
        try:
            schedule.check_units(files, job.every)
        except schedule.ScheduleError:
            for file in files:
                durable.remove(file)
            raise
        if units is None:
            schedule.start_timer(job.name, user)
        yield f"{'written' if units else 'installed'}: {files[0]} and {files[1].name} ({', '.join(job.every.calendars())})"
        if units is None:
            scope = " --user" if user else ""
            yield f"next: systemctl{scope} list-timers {job.name}.timer; its log: journalctl{scope} -u {job.name}"
            if user:
                yield "a user's timers run only while that user is logged in, unless: loginctl enable-linger"
        return
    before = schedule.read_crontab()
    schedule.write_crontab(schedule.with_block(before, job.name, schedule.cron_block(job)))
    yield f"installed: {job.every.cron()} in the crontab, as {job.name} (see crontab -l)"
    yield f"its log: {job.log}. cron itself makes up for nothing: the @reboot line does, when cron is started again"


def remove(wanted: Wanted, kind: Kind, units: Path | None) -> Iterator[str]:
    """Remove the job of `wanted`, from systemd and from the crontab; yields what was done. ScheduleError."""
    folder, user = _unit_folder(units)
    files = [folder / f"{wanted.name}.{suffix}" for suffix in ("timer", "service")]
    if _is_systemd(kind, units) or any(file.exists() for file in files):
        yield from _remove_units(wanted.name, [file for file in files if file.exists()], user, spoken_to=units is None)
        if kind == "systemd" or units is not None:
            return
    if kind == "auto" and not schedule.has_cron():
        return
    before = schedule.read_crontab()
    after = schedule.without_block(before, wanted.name)
    if after != before:
        schedule.write_crontab(after)
        yield f"removed: the lines of {wanted.name} from the crontab"


def _remove_units(name: str, files: list[Path], user: bool, spoken_to: bool) -> Iterator[str]:
    if not files:
        return
    if spoken_to and schedule.BOOTED.is_dir():
        schedule.stop_timer(name, user)
    for file in files:
        durable.remove(file)
        yield f"removed: {file}"
    if spoken_to and schedule.BOOTED.is_dir():
        schedule.reload(user)


def _is_systemd(kind: Kind, units: Path | None) -> bool:
    return units is not None or kind == "systemd" or (kind == "auto" and schedule.BOOTED.is_dir())


def _unit_folder(units: Path | None) -> tuple[Path, bool]:
    """Where units lie, and whether they are a user's and not the system's."""
    user = os.geteuid() != 0
    if units is not None:
        return units.absolute(), user
    if not user:
        return Path("/etc/systemd/system"), False
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user", True


def missed(
    text: str, since: datetime.datetime, opened: list[datetime.datetime], now: datetime.datetime
) -> datetime.datetime | None:
    """The latest time that was due after `since` and saw no slot; None if none was missed.

    One, however many were missed: a slot looks at the sources as they are, so one makes up for all. Times in `now`'s zone.
    """
    due = every.parse(text).last_due(now)
    if due is None or due < since or any(slot >= due for slot in opened):
        return None
    return due
