"""`gptline gc`: remove what nobody needs any more from a work directory, alone in it, and killed at any moment.

The one idea: a step goes by one rename of its whole folder, so its record and its outputs go together; units go after the
records that listed them, each unit's certificate before its files. Everything moves into the cleaner's own folder first
(see `engine/using.py`), and is deleted when others may already be at work again.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model import durable
from pipelines.config import ConfigError
from pipelines.engine import using
from pipelines.engine.digests import Digests
from pipelines.engine.lease import Owner
from pipelines.retention import Aliased, Doomed, Retention, Survey, size_of, survey


def look(root: Path, retention: Retention, now: datetime.datetime, aliased: Aliased) -> Survey:
    """What `collect` would remove now. Takes no lock and writes nothing. ConfigError if `root` is no work directory."""
    _assert_work_directory(root)
    found = survey(root, retention, now, aliased)
    found.doomed += [
        Doomed("trash", str(path.relative_to(root)), (path,), size_of(path), "left by a gc that was killed")
        for path in using.left_in_trash(root)
    ]
    return found


def collect(
    root: Path,
    retention: Retention,
    now: datetime.datetime,
    aliased: Callable[[], Aliased],
    seconds: float,
    on_wait: Callable[[Owner], None] = lambda owner: None,
) -> Survey:
    """Remove what is neither kept nor reached; says what that was. Busy if anybody uses the work directory.

    `aliased` is asked when nobody else is in the work directory; if the registry does not answer, nothing is removed.
    `seconds` without a sign of life make a user on another host count as dead.
    """
    _assert_work_directory(root)
    with using.cleaning(root, seconds, on_wait) as trash:
        found = survey(root, retention, now, aliased())
        _move(found.doomed, trash)
        Digests(root / "digests.json").forget_the_gone()
    using.empty_trash(root)
    return found


def _assert_work_directory(root: Path) -> None:
    if not any((root / name).exists() for name in ("steps", "units", "digests.json")):
        raise ConfigError(
            f"WORK={root}: {'no work directory' if root.exists() else 'there is no such folder'}; check the path"
        )


def _move(doomed: list[Doomed], trash: Path) -> None:
    """Records before units, certificates before their files; the disk has each before the next begins."""
    steps = [path for thing in doomed if thing.kind != "unit" for path in thing.paths]
    units = [thing.paths for thing in doomed if thing.kind == "unit"]
    certificates, files = [unit[0] for unit in units], [path for unit in units for path in unit[1:]]
    for name, paths in (("steps", steps), ("certificates", certificates), ("units", files)):
        (trash / name).mkdir()
        durable.gather(paths, trash / name)
    for folder in {path.parent for path in files}:
        with contextlib.suppress(OSError):  # other units are in it
            folder.rmdir()


def lines(found: Survey, done: bool, retention: Retention, most: int = 40) -> Iterator[str]:
    """The survey for people: the biggest things first, then the sums."""
    ordered = sorted(found.doomed, key=lambda doomed: -doomed.bytes)
    for doomed in ordered[:most]:
        yield f"  {doomed.bytes / 1e6:>10.1f} MB  {doomed.kind:<8} {doomed.name}: {doomed.why}"
    if len(ordered) > most:
        rest = sum(doomed.bytes for doomed in ordered[most:])
        yield f"  {rest / 1e6:>10.1f} MB  and {len(ordered) - most} smaller ones (all of them: --json)"
    reasons: dict[str, int] = {}
    for reason in found.kept.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    kept = "; ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:6])
    yield f"kept: {len(found.kept)} steps ({kept or 'none'}), {found.kept_bytes / 1e6:.1f} MB with their units"
    yield (
        f"{'freed' if done else 'would free'}: {found.bytes / 1e6:.1f} MB in {len(found.doomed)} things "
        f"(retention: {retention.days:g} days, the newest {retention.count} of each step)"
    )


def as_json(found: Survey, done: bool, root: Path) -> dict[str, Any]:
    """The survey as plain data, paths relative to the work directory."""
    doomed = [
        asdict(thing) | {"paths": [str(path.relative_to(root)) for path in thing.paths]} for thing in found.doomed
    ]
    return {
        "work": str(root),
        "done": done,
        "bytes": found.bytes,
        "kept_bytes": found.kept_bytes,
        "removed": doomed,
        "kept": found.kept,
    }
