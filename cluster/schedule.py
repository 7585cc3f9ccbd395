"""Timers: a systemd timer where systemd runs, else lines in the user's crontab.

The one idea: everything that is installed carries a name made from what it is for, so that installing again replaces it,
removing removes it and nothing else, and several stand beside each other. Texts are made here; the units' files are written
by the caller, and every other line of a crontab is left byte for byte.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from string import Template

from cluster.every import Every

_HERE = Path(__file__).parent
BOOTED = Path("/run/systemd/system")  # as sd_booted(3) asks


class ScheduleError(RuntimeError):
    """A timer cannot be installed or removed. The message says what was seen and what to do."""


@dataclass(frozen=True)
class Job:
    """What is to be done when: commands one after the other in `folder`, each only if the one before went well.

    `after_boot` is what makes up for times that were missed, where the scheduler does not do it itself (cron).
    """

    name: str
    title: str
    every: Every
    text: str
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    after_boot: tuple[str, ...]
    log: Path
    lock: Path
    grace: int = 180  # seconds from SIGTERM to SIGKILL


def units(job: Job) -> dict[str, str]:
    """The systemd units of a job: file name -> text."""
    values = {
        "name": job.name,
        "title": _plain(job.title),
        "every": _plain(job.text),
        "folder": str(job.folder).replace("%", "%%"),
        "grace": str(job.grace),
        "commands": "\n".join("ExecStart=" + " ".join(map(_quoted, command)) for command in job.commands),
        "calendars": "\n".join(f"OnCalendar={calendar}" for calendar in job.every.calendars()),
    }
    return {
        f"{job.name}.{kind}": Template((_HERE / f"retrain.{kind}.in").read_text()).substitute(values)
        for kind in ("service", "timer")
    }


def _plain(text: str) -> str:
    """A text for a unit's description and comments: one line, no specifiers."""
    return " ".join(text.split()).replace("%", "%%")


def _quoted(word: str) -> str:
    """A word of a command line in a unit: systemd expands percent signs and dollars, and reads C escapes in quotes."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$").replace("\n", "\\n")
    return f'"{escaped}"'


def check_units(files: list[Path], every: Every) -> None:
    """ScheduleError with systemd's own words if it does not accept the units or their times. Nothing where it is not installed."""
    if shutil.which("systemd-analyze") is None:
        return
    for arguments in (["calendar", *every.calendars()], ["verify", *map(str, files)]):
        done = _run(["systemd-analyze", *arguments])
        if done.returncode:
            raise ScheduleError(f"systemd does not accept this: {done.stderr.decode(errors='replace').strip()}")


def start_timer(name: str, user: bool) -> None:
    """Have the running systemd take the timer up. ScheduleError."""
    for arguments in (["daemon-reload"], ["enable", "--now", f"{name}.timer"], ["restart", f"{name}.timer"]):
        _systemctl(arguments, user)


def stop_timer(name: str, user: bool) -> None:
    """Have the running systemd let the timer go; a service at work goes on to its end. ScheduleError."""
    _systemctl(["disable", "--now", f"{name}.timer"], user)


def reload(user: bool) -> None:
    """Have the running systemd read its units again. ScheduleError."""
    _systemctl(["daemon-reload"], user)


def _systemctl(arguments: list[str], user: bool) -> None:
    command = ["systemctl", *(["--user"] if user else []), *arguments]
    done = _run(command)
    if done.returncode:
        raise ScheduleError(f"{shlex.join(command)}: {done.stderr.decode(errors='replace').strip()}")


def cron_block(job: Job) -> bytes:
    """The job's lines for a crontab, between its marks. ScheduleError where cron cannot say it."""
    if shutil.which("flock") is None:
        raise ScheduleError("there is no `flock`, which keeps two slots from overlapping; install util-linux")
    together = " && ".join(shlex.join(command) for command in job.commands)
    lines = [
        _begin(job.name),
        f"# {' '.join(job.text.split())}: made by `gptline schedule`; `make unschedule` removes it",
        f"{job.every.cron()} {_cron_command(job, together)}",
        f"@reboot {_cron_command(job, shlex.join(job.after_boot))}",
        _end(job.name),
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _cron_command(job: Job, command: str) -> str:
    """A command of a crontab: in its folder, under its lock, into its log. Busy is no failure."""
    locked = f"flock -n -E 0 {shlex.quote(str(job.lock))} sh -c {shlex.quote(command)}"
    whole = f"cd {shlex.quote(str(job.folder))} && {locked} >> {shlex.quote(str(job.log))} 2>&1"
    if "\n" in whole:
        raise ScheduleError("a crontab's line cannot hold a line break: give SET on one line")
    return whole.replace("%", "\\%")  # cron makes a line break of a bare percent sign


def _begin(name: str) -> str:
    return f"# {name}: begin"


def _end(name: str) -> str:
    return f"# {name}: end"


def with_block(crontab: bytes, name: str, block: bytes) -> bytes:
    """The crontab with the block called `name` put in the place of an earlier one, or at the end. ScheduleError."""
    before, after = _around(crontab, name)
    if before and not before.endswith(b"\n"):
        before += b"\n"
    return before + block + after


def without_block(crontab: bytes, name: str) -> bytes:
    """The crontab without the block called `name`, every other line as it is. ScheduleError."""
    return b"".join(_around(crontab, name))


def _around(crontab: bytes, name: str) -> tuple[bytes, bytes]:
    """What stands before and after the block called `name`; all and nothing if there is none."""
    lines = crontab.splitlines(keepends=True)
    marks = [line.strip() for line in lines]
    begins = [index for index, mark in enumerate(marks) if mark == _begin(name).encode()]
    ends = [index for index, mark in enumerate(marks) if mark == _end(name).encode()]
    if not begins and not ends:
        return crontab, b""
    if len(begins) != 1 or len(ends) != 1 or ends[0] < begins[0]:
        raise ScheduleError(
            f"the marks of {name} in the crontab were changed by hand; remove its lines with `crontab -e`"
        )
    return b"".join(lines[: begins[0]]), b"".join(lines[ends[0] + 1 :])


def has_cron() -> bool:
    """Whether this machine has crontabs."""
    return shutil.which("crontab") is not None


def read_crontab() -> bytes:
    """The user's crontab; empty if there is none. ScheduleError without cron."""
    if not has_cron():
        raise ScheduleError(
            "systemd does not run here and there is no `crontab` command; install cron (Debian: apt install cron; "
            "Fedora: dnf install cronie), or call `make retrain` from a scheduler of your own"
        )
    done = _run(["crontab", "-l"])
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.decode(errors="replace").strip()
    if "no crontab for" in said.lower():
        return b""
    raise ScheduleError(f"`crontab -l` ended with {done.returncode}: {said}; nothing was changed")


def write_crontab(content: bytes) -> None:
    """Replace the user's crontab, and see that it is there. ScheduleError."""
    done = _run(["crontab", "-"], content)
    if done.returncode:
        raise ScheduleError(f"cron did not accept the crontab: {done.stderr.decode(errors='replace').strip()}")
    if read_crontab() != content:
        raise ScheduleError("the crontab is not what was written: did somebody else change it? look with `crontab -l`")


def _run(command: list[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=given, capture_output=True, check=False)
