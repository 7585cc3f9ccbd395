"""`make schedule` and `make unschedule`: a crontab with other people's lines, units that systemd accepts, missed times."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import processes
from cluster.site import MlflowService, RayService
from pipelines import options, site_files, upkeep_commands
from pipelines.config import ConfigError
from pipelines.execution import Execution
from pipelines.scheduling import missed

ROOT = Path(__file__).parents[2]
THEIRS = b'# mine, with \xff bytes\nMAILTO=me\n\n 5 4 * * *\techo "100\\%"  \n# gptline-other-0: begin\n# gptline-other-0: end\n'
# A crontab program as cron's: it keeps one file, and refuses what is no crontab.
PROGRAM = """#!/bin/sh
file=$CRONTAB_FILE
case "$1" in
-l) if [ -e "$file" ]; then cat "$file"; else echo "no crontab for $USER" >&2; exit 1; fi;;
-) cat > "$file.new"; if grep -q '^bad' "$file.new"; then echo 'errors in crontab file, cannot install.' >&2; exit 1; fi; mv "$file.new" "$file";;
esac
"""


class Machine:
    """A user with a crontab of his own, on a machine where systemd does not run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.crontab = folder, folder / "crontab"
        (folder / "bin").mkdir()
        (folder / "bin" / "crontab").write_text(PROGRAM)
        (folder / "bin" / "crontab").chmod(0o755)

    def gptline(self, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PATH": path or f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "CRONTAB_FILE": str(self.crontab),
        }
        return subprocess.run(
            [sys.executable, "-m", "pipelines", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )  # fmt: skip

    def scheduled(self, every: str, *more: str, work: str = "work") -> str:
        done = self.gptline(
            "schedule", "--with", "cron", "-r", "tiny", "-w", str(self.folder / work), *more, "--", every
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def unscheduled(self, work: str = "work") -> str:
        done = self.gptline("unschedule", "--with", "cron", "-r", "tiny", "-w", str(self.folder / work))
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_scheduling_leaves_every_other_line_and_unscheduling_gives_the_crontab_back(machine: Machine) -> None:
    machine.crontab.write_bytes(THEIRS)
    machine.scheduled("daily 03:00")
    first = machine.crontab.read_bytes()
    assert first.startswith(THEIRS) and first.count(b"\n0 3 * * * cd ") == 1 and first.count(b"\n@reboot cd ") == 1
    machine.scheduled("weekly mon 04:00", work="other")
    machine.scheduled("weekly mon 04:00")  # in place of the first
    both = machine.crontab.read_bytes()
    assert both.count(b"\n0 4 * * 1 cd ") == 2 and b"0 3 * * *" not in both and both.startswith(THEIRS)
    assert machine.unscheduled().startswith("removed: ")
    assert machine.unscheduled().startswith("nothing is scheduled")
    machine.unscheduled("other")
    assert machine.crontab.read_bytes() == THEIRS


def test_a_first_crontab_is_made_and_marks_changed_by_hand_are_refused(machine: Machine) -> None:
    machine.scheduled("hourly")
    lines = machine.crontab.read_bytes().splitlines(keepends=True)
    broken = b"".join(lines[:-1])
    machine.crontab.write_bytes(broken)
    for command in (["schedule", "hourly"], ["unschedule"]):
        done = machine.gptline(*command, "--with", "cron", "-r", "tiny", "-w", str(machine.folder / "work"))
        assert done.returncode == 1 and "changed by hand" in done.stderr
    assert machine.crontab.read_bytes() == broken


def test_a_machine_without_cron_says_what_to_install(machine: Machine) -> None:
    done = machine.gptline("schedule", "--with", "cron", "-r", "tiny", "hourly", path=str(machine.folder))
    assert done.returncode == 1 and "install cron" in done.stderr and "Traceback" not in done.stderr


def test_the_line_runs_what_was_given_once_at_a_time_and_into_the_log(machine: Machine) -> None:
    """The line as cron's shell runs it, with quotes, spaces, dollars and percent signs; `python` says what it was given."""
    setting = 'shard.sources=[{"path":"/data/my $HOME 100%/it\'s"}]'
    machine.scheduled("daily 03:00", "--set", setting, "--set", "execution.keep_days=7")
    line = next(line for line in machine.crontab.read_text().splitlines() if line.startswith("0 3 * * * "))
    command = (
        line.removeprefix("0 3 * * * ").replace("\\%", "%").replace(sys.executable, str(machine.folder / "python"))
    )
    (machine.folder / "python").write_text("#!/bin/sh\nprintf '<%s>' \"$@\"; echo; sleep 0.3\n")
    (machine.folder / "python").chmod(0o755)
    both = [subprocess.Popen(["/bin/sh", "-c", command]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    work = machine.folder / "work"
    given = f"<--recipe><tiny><--work><{work}><--set><{setting}><--set><execution.keep_days=7>"
    retrain, gc = (
        f"<-m><pipelines><retrain>{given}",
        f"<-m><pipelines><gc><--yes><--if-idle>{given.removeprefix('<--recipe><tiny>')}",
    )
    assert (machine.folder / "work.retrain.log").read_text().splitlines() == [retrain, gc], (
        "the second found the lock taken"
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("every", ["daily 03:00", "30 2 1,15 * fri"])
def test_systemd_accepts_the_units_and_they_are_removed_again(tmp_path: Path, every: str) -> None:
    units, given = (
        tmp_path / "units",
        ["-r", "tiny", "-w", str(tmp_path / "my $work 100%"), "--units", str(tmp_path / "units")],
    )
    machine = Machine(tmp_path)
    for _ in range(2):  # again is the same
        done = machine.gptline("schedule", *given, "--set", 'shard.sources=[{"path":"/a \\"b\\""}]', "--", every)
        assert done.returncode == 0, done.stderr
    service, timer = sorted(units.iterdir())
    checked = subprocess.run(["systemd-analyze", "verify", service, timer], capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and checked.stderr == "", checked.stderr
    assert "Persistent=true" in timer.read_text() and "Type=oneshot" in service.read_text()
    assert machine.gptline("unschedule", *given).stdout.count("removed: ") == 2
    assert list(units.iterdir()) == [] and not machine.crontab.exists()


@pytest.mark.skipif(shutil.which("crontab") is None, reason="cron is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="a crontab of its own needs a mount namespace, and so root")
def test_crons_own_crontab_takes_the_lines(tmp_path: Path) -> None:
    """The real program, on a spool folder of its own: nobody's crontab is touched."""
    schedule = f"{sys.executable} -m pipelines {{}} --with cron -r tiny -w {tmp_path / 'work'}"
    script = f"""
set -e
mount -t tmpfs none /var/spool/cron && mkdir -m 1730 /var/spool/cron/crontabs && chgrp crontab /var/spool/cron/crontabs
{schedule.format("schedule '*/5 * * * *'")} && crontab -l
printf '7 7 * * * true\\n' > {tmp_path / "theirs"} && crontab {tmp_path / "theirs"}
{schedule.format("schedule 'daily 03:00'")} && crontab -l | tail -n 5
{schedule.format("unschedule")} && crontab -l | cmp - {tmp_path / "theirs"}
"""
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "\n0 3 * * * cd " in done.stdout and done.stdout.count("\n@reboot cd ") == 2


SINCE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("opened", "now", "found"),
    [
        ([], "2026-01-01 02:00", None),  # nothing was due yet
        ([], "2026-01-05 12:00", "2026-01-05 03:00"),  # five were missed: one makes up for them
        (["2026-01-05 03:00"], "2026-01-05 12:00", None),
        (["2026-01-04 03:01"], "2026-01-05 12:00", "2026-01-05 03:00"),
        (["2026-01-05 11:00"], "2026-01-05 12:00", None),  # made up for already
    ],
)  # fmt: skip
def test_missed_times_are_caught_up_once(opened: list[str], now: str, found: str | None) -> None:
    at = [datetime.datetime.fromisoformat(f"{moment}+00:00") for moment in (*opened, now)]
    due = missed("daily 03:00", SINCE, at[:-1], at[-1])
    assert due == (datetime.datetime.fromisoformat(f"{found}+00:00") if found else None)


def test_after_a_boot_retrain_waits_for_what_the_site_is_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for one service of two: with Ray alone, the registry would be another one."""
    site, ours, said, slept = site_files.folder(tmp_path / "site"), processes.known(os.getpid()), [], []
    mlflow = MlflowService("http://127.0.0.1:1", "", "", ours, "")
    ray = RayService("head", "127.0.0.1:2", "127.0.0.1", None, "", "", "", ours, "")

    def sleep(seconds: float) -> None:
        name, service = [("ray", ray), ("mlflow", mlflow)][len(slept)]
        slept.append(seconds)
        site_files.record_service(site, name, service)

    monkeypatch.setattr("time.sleep", sleep)
    options.await_site(Execution(site=str(site)), said.append)
    assert len(slept) == 2 and len(said) == 1 and "waiting for Ray and MLflow at site" in said[0]
    options.await_site(Execution(site=str(site)), said.append)
    options.await_site(Execution(site=str(tmp_path / "other"), site_patience=0), said.append)
    assert len(slept) == 2 and len(said) == 1, "it is up; and who has no patience goes on"


def test_what_was_missed_is_caught_up_although_the_site_is_not_up_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, command: began.append(command))
    settings = [f"execution.site={tmp_path / 'none'}"]
    upkeep_commands.catch_up("daily 03:00", "2026-01-01T00:00:00+00:00", "tiny", str(tmp_path / "work"), settings)
    assert began and began[0][3] == "retrain", "which waits for the site"


def test_a_command_does_not_go_on_with_another_registry_where_the_sites_own_is_not_running(tmp_path: Path) -> None:
    site, ours = site_files.folder(tmp_path / "site"), processes.known(os.getpid())
    execution = Execution(site=str(site))
    with pytest.raises(ConfigError, match=r"is not up; next: make up SITE="):
        options.at_site(execution, set())
    site_files.record_service(site, "ray", RayService("head", "127.0.0.1:2", "127.0.0.1", None, "", "", "", ours, ""))
    with pytest.raises(ConfigError, match=r"has no MLflow running, which it was set up to run; next: make up"):
        options.at_site(execution, set())
    assert options.at_site(execution, set(), only_looks=True).ray_address == "127.0.0.1:2"
    assert options.at_site(execution, {"registry"}).ray_address == "127.0.0.1:2", "another registry was given"
