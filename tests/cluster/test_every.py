"""Expressions of times: the same times for cron, for systemd and for ourselves."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess

import pytest

from cluster.every import BadSchedule, parse

NOW = datetime.datetime(2026, 11, 25, 2, 30, tzinfo=datetime.UTC)  # a Wednesday


@pytest.mark.parametrize(
    ("text", "cron", "calendars"),
    [
        ("hourly", "0 * * * *", ["*-*-* *:00:00"]),
        ("hourly :15", "15 * * * *", ["*-*-* *:15:00"]),
        ("daily 03:00", "0 3 * * *", ["*-*-* 03:00:00"]),
        ("daily", "0 0 * * *", ["*-*-* 00:00:00"]),
        ("weekly mon 3:05", "5 3 * * 1", ["Mon *-*-* 03:05:00"]),
        ("weekly Sunday 23:59", "59 23 * * 0", ["Sun *-*-* 23:59:00"]),
        ("monthly 1 03:00", "0 3 1 * *", ["*-*-01 03:00:00"]),
        ("@weekly", "0 0 * * 0", ["Sun *-*-* 00:00:00"]),
        ("0 3 * * 1-5", "0 3 * * 1,2,3,4,5", ["Mon,Tue,Wed,Thu,Fri *-*-* 03:00:00"]),
        ("30 2 1,15 jan-mar fri", "30 2 1,15 1,2,3 5", ["*-01,02,03-01,15 02:30:00", "Fri *-01,02,03-* 02:30:00"]),
        ("*/30 0 * * 7", "0,30 0 * * 0", ["Sun *-*-* 00:00,30:00"]),
    ],
)  # fmt: skip
def test_words_and_cron_say_the_same_to_cron_and_to_systemd(text: str, cron: str, calendars: list[str]) -> None:
    every = parse(text)
    assert every.cron() == cron and every.calendars() == calendars
    assert parse(every.cron()) == every


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "EVERY is empty"), ("tomorrow", "no schedule"), ("daily 3 am", "no schedule"), ("daily 24:00", "'24' is no hour"),
        ("weekly 03:00", "'03:00' is no day of the week"), ("60 3 * * *", "'60' is no minute"), ("0 3 * *", "no schedule"),
        ("0 3 31 2 *", "not in any year"), ("5-1 * * * *", "'5-1' is no minute"), ("*/0 * * * *", "is no minute"),
        ("0 3 * * ;rm", "is no day of the week"), ("hourly 03:00", "no schedule"), ("0 3 */2 * mon", "crons differ"),
    ],
)  # fmt: skip
def test_what_says_no_times_is_refused_with_what_can_be_written(text: str, said: str) -> None:
    with pytest.raises(BadSchedule, match=re.escape(said)):
        parse(text)


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("daily 03:00", "2026-11-24 03:00"), ("daily 02:30", "2026-11-25 02:30"), ("hourly :45", "2026-11-25 01:45"),
        ("weekly thu 03:00", "2026-11-19 03:00"), ("0 3 29 2 *", "2024-02-29 03:00"), ("0 3 24 * sun", "2026-11-24 03:00"),
    ],
)  # fmt: skip
def test_when_it_was_due_last(text: str, due: str) -> None:
    found = parse(text).last_due(NOW)
    assert found == datetime.datetime.fromisoformat(due).replace(tzinfo=datetime.UTC)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize(
    "text", ["daily 03:00", "*/20 8-18 * * mon-fri", "0 3 */2 * *", "15 4 1,15 * mon", "weekly sun 23:59"]
)
def test_systemd_elapses_when_cron_would(text: str) -> None:
    """systemd's own reading of our translation, against the times that cron's rules give minute for minute."""
    every = parse(text)
    base = f"{NOW:%Y-%m-%d %H:%M:%S} UTC"
    done = subprocess.run(
        ["systemd-analyze", "calendar", f"--base-time={base}", "--iterations=12", *every.calendars()],
        capture_output=True, text=True, check=True, env={"TZ": "UTC", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    stamps = re.findall(r"(?:Next elapse|Iter\. #\d+): \w{3} ([\d-]+ [\d:]+) UTC", done.stdout)
    theirs = sorted({datetime.datetime.fromisoformat(f"{stamp}+00:00") for stamp in stamps})[:12]
    ours, minute = [], NOW
    while len(ours) < 12:
        minute += datetime.timedelta(minutes=1)
        if every.last_due(minute) == minute:
            ours.append(minute)
    assert theirs == ours
