"""When something is due: words or cron's five fields, understood once, as times for cron, for systemd and for ourselves.

The one idea: every expression becomes the sets of minutes, hours, days, months and weekdays of cron, spelled out. Then the
translations are exact, also where cron and systemd read the same signs differently (`*/2` days; a day of the month *or* of
the week, which systemd takes as *and*). Times are the machine's local ones, as with both.

    hourly            daily 03:00            weekly mon 03:00            monthly 1 03:00            */20 8-18 * * mon-fri
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LIMITS = {"minute": (0, 59), "hour": (0, 23), "day of the month": (1, 31), "month": (1, 12), "day of the week": (0, 7)}
_WORDS = {
    "@hourly": "hourly",
    "@daily": "daily",
    "@midnight": "daily",
    "@weekly": "weekly sun",
    "@monthly": "monthly 1",
}
_FORMS = "hourly, daily 03:00, weekly mon 03:00, monthly 1 03:00, or cron's five fields such as */20 8-18 * * mon-fri"
_YEARS = 9  # within which every date comes at least once: 29 February, also around 2100


class BadSchedule(ValueError):
    """An expression that says no times. The message says what was seen and what can be written."""


@dataclass(frozen=True)
class Every:
    """When something is due: the values of cron's five fields; `days` and `weekdays` are None where any day will do."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...] | None
    months: tuple[int, ...]
    weekdays: tuple[int, ...] | None  # Sunday is 0

    def cron(self) -> str:
        """The five fields for a line of cron."""
        days, weekdays = self.days or range(1, 32), self.weekdays or range(7)
        fields = [
            (self.minutes, range(60)),
            (self.hours, range(24)),
            (days, range(1, 32)),
            (self.months, range(1, 13)),
            (weekdays, range(7)),
        ]
        return " ".join("*" if len(values) == len(all_) else ",".join(map(str, values)) for values, all_ in fields)

    def calendars(self) -> list[str]:
        """systemd's OnCalendar expressions: due when one of them is."""
        time = f"{_listed(self.hours, 24)}:{_listed(self.minutes, 60)}:00"
        months = _listed(self.months, 12)
        found = []
        if self.days is not None or self.weekdays is None:
            found.append(f"*-{months}-{_listed(self.days or tuple(range(1, 32)), 31)} {time}")
        if self.weekdays is not None:
            found.append(f"{','.join(_DAYS[day].title() for day in self.weekdays)} *-{months}-* {time}")
        return found

    def last_due(self, now: datetime.datetime) -> datetime.datetime | None:
        """The latest time at or before `now`, in its time zone, that was due; None if there is none in nine years."""
        for back in range(366 * _YEARS):
            day = (now - datetime.timedelta(days=back)).date()
            if not self._is_due_on(day):
                continue
            for hour in reversed(self.hours):
                for minute in reversed(self.minutes):
                    due = datetime.datetime.combine(day, datetime.time(hour, minute), now.tzinfo)
                    if due <= now:
                        return due
        return None

    def _is_due_on(self, day: datetime.date) -> bool:
        in_month = self.days is not None and day.day in self.days
        in_week = self.weekdays is not None and day.isoweekday() % 7 in self.weekdays
        any_day = self.days is None and self.weekdays is None
        return day.month in self.months and (any_day or in_month or in_week)


def parse(text: str) -> Every:
    """The times that `text` says. BadSchedule."""
    words = _WORDS.get(text.strip().lower(), text).lower().split()
    if not words:
        raise BadSchedule(f"EVERY is empty; write {_FORMS}")
    if words[0] in ("hourly", "daily", "weekly", "monthly"):
        words = _fields(words, text)
    if len(words) != 5:
        raise BadSchedule(f"EVERY={text!r} is no schedule; write {_FORMS}")
    every = _every(words, text)
    # 2000 was a leap year, and nine years before any day hold each date: what is not due then never is.
    if every.last_due(datetime.datetime(2001, 1, 1)) is None:
        raise BadSchedule(f"EVERY={text!r} names a date that there is not in any year")
    return every


def _fields(words: list[str], text: str) -> list[str]:
    """Cron's fields for a phrase."""
    word, *rest = words
    wanted = {"hourly": 0, "daily": 0, "weekly": 1, "monthly": 1}[word]
    which = rest[:wanted]
    time = rest[wanted:] or (["00:00"] if word != "hourly" else [":00"])
    clock = re.fullmatch(r"(\d{1,2})?:(\d{2})", time[0])
    if len(which) < wanted or len(time) != 1 or clock is None or (clock[1] is None) != (word == "hourly"):
        raise BadSchedule(f"EVERY={text!r} is no schedule; write {_FORMS}")
    hour = "*" if word == "hourly" else str(int(clock[1]))
    day, weekday = (which[0], "*") if word == "monthly" else ("*", which[0] if which else "*")
    return [str(int(clock[2])), hour, day, "*", weekday]


def _every(words: list[str], text: str) -> Every:
    sets = [
        _values(word, name, low, high, text) for word, (name, (low, high)) in zip(words, _LIMITS.items(), strict=True)
    ]
    weekdays = tuple(sorted({value % 7 for value in sets[4]}))
    # As cron has it: a field that begins with a star leaves the choice of the day to the other one.
    if any(words[i].startswith("*/") and words[j] != "*" for i, j in ((2, 4), (4, 2))):
        raise BadSchedule(
            f"EVERY={text!r}: crons differ in whether both days have to be right here; list the days instead"
        )
    any_day, any_weekday = (
        words[2].startswith("*") and len(sets[2]) == 31,
        words[4].startswith("*") and len(weekdays) == 7,
    )
    return Every(sets[0], sets[1], None if any_day else sets[2], sets[3], None if any_weekday else weekdays)


def _values(word: str, name: str, low: int, high: int, text: str) -> tuple[int, ...]:
    """The values of one field: `*`, `5`, `1-5`, `*/10`, `1-30/2`, names of months and days, and lists of these."""
    found: set[int] = set()
    for part in word.split(","):
        match = re.fullmatch(r"(\*|\w+)(?:-(\w+))?(?:/(\d+))?", part)
        if not match or (match[1] == "*" and match[2]):
            raise BadSchedule(f"EVERY={text!r}: {part!r} is no {name}; write {_FORMS}")
        if match[1] == "*":
            first, last = low, min(high, 6) if name == "day of the week" else high
        else:
            first = _number(match[1], name, text)
            last = _number(match[2], name, text) if match[2] else (high if match[3] else first)
        step = int(match[3] or 1)
        if not (low <= first <= last <= high and step > 0):
            raise BadSchedule(f"EVERY={text!r}: {part!r} is no {name} from {low} to {high}")
        found |= set(range(first, last + 1, step))
    return tuple(sorted(found))


def _number(word: str, name: str, text: str) -> int:
    names = {"month": _MONTHS, "day of the week": _DAYS}.get(name, ())
    if word[:3] in names:
        return names.index(word[:3]) + (name == "month")
    if not word.isdigit():
        raise BadSchedule(f"EVERY={text!r}: {word!r} is no {name}; write {_FORMS}")
    return int(word)


def _listed(values: tuple[int, ...], everything: int) -> str:
    return "*" if len(values) == everything else ",".join(f"{value:02d}" for value in values)
