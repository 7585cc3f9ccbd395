"""The log of all batches: one JSON line for each thing at the moment it happens, and the tables made from it.

The one idea: a kill is written down when it has happened, before anything else is done, so that the sums are true
however the harness itself ends. Whoever reads counts lines; nothing is carried over in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Ledger:
    """Appends events of one batch to a JSONL file."""

    def __init__(self, path: Path, **batch: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._id = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        self.events: list[Event] = []
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            with open(path, "a") as file:
                file.write("\n")  # a harness was killed while it wrote: what it wrote stands for itself
        self.add("batch", **batch)

    def add(self, event: str, **facts: Any) -> Event:
        """Write one event down, on the disk before this returns."""
        line = {"event": event, "batch": self._id, "time": round(time.time(), 2)} | facts
        self.events.append(line)
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return line


def read(path: Path) -> list[Event]:
    """All events of a log; a line that a kill cut off is passed over."""
    found = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def sums(events: list[Event]) -> dict[str, int]:
    """What a set of events adds up to. Kills in rounds that never finished are counted apart: nothing was compared."""
    finished = {(event["batch"], event["round"]) for event in events if event["event"] == "round"}
    kills = [event for event in events if event["event"] == "kill"]
    rounds = [event for event in events if event["event"] == "round"]
    return {
        "kills": len(kills),
        "kills in unfinished rounds": sum((kill["batch"], kill["round"]) not in finished for kill in kills),
        "restarts": sum(event["event"] == "restart" for event in events),
        "files": sum(event["files"] for event in rounds),
        "differences": sum(len(event["differences"]) for event in rounds)
        + sum(event["event"] in ("broken", "torn") for event in events),
        "broken promises": sum(event["event"] == "broken" for event in events),
        "rounds": len(rounds),
        "batches": sum(event["event"] == "batch" for event in events),
    }


def verdict(events: list[Event]) -> str:
    """The last line of a batch."""
    found = sums(events)
    return "{kills} kills, {restarts} restarts, {files} files compared, {differences} differences".format(**found)


def table(events: list[Event]) -> Iterator[str]:
    """Kills by stage and victim; beside them, as median and largest, the seconds of work lost and those until work went on."""
    kills = [event for event in events if event["event"] == "kill"]
    backs = {(event["batch"], event["round"], event["kill"]): event for event in events if event["event"] == "back"}
    cells = Counter((kill["stage"], kill["victim"]) for kill in kills)
    victims = [name for name in _VICTIMS if any(kill["victim"] == name for kill in kills)]
    yield (
        f"{'stage':<16}"
        + "".join(f"{name:>8}" for name in [*victims, "all"])
        + f"{'lost, s':>14}{'again after, s':>18}"
    )
    for stage in dict.fromkeys([*_ORDER, *(kill["stage"] for kill in kills), "all"]):
        own = [kill for kill in kills if stage in (kill["stage"], "all")]
        if own:
            row = [
                sum(cells[kill["stage"], name] for kill in {k["stage"]: k for k in own}.values()) for name in victims
            ]
            found = [back for kill in own if (back := backs.get((kill["batch"], kill["round"], kill["number"])))]
            lost, after = _spread([back["lost_s"] for back in found]), _spread([back["after_s"] for back in found])
            yield (
                f"{stage:<16}" + "".join(f"{count or '-':>8}" for count in [*row, len(own)]) + f"{lost:>14}{after:>18}"
            )
    yield from _losses(events)


_ORDER = ("start", "prepare_task", "shard", "train_tokenizer", "tokenize", "pretrain", "evaluate", "register", "pull", "finetune", "between", "end")  # fmt: skip
_VICTIMS = ("driver", "worker", "rank0", "rank", "raylet", "gcs", "apart", "server", "power")


def _losses(events: list[Event]) -> Iterator[str]:
    back = [event for event in events if event["event"] == "back"]
    steps = [event["lost_steps"] for event in back if event["lost_steps"] is not None]
    redone = sum(event["units_redone"] for event in back)
    yield (
        f"training steps done again: {sum(steps)} after {len(steps)} kills inside the training loop, at most "
        f"{max(steps, default=0)} after one; finished units made again: {redone}"
    )


def _spread(values: list[float]) -> str:
    """Median and maximum."""
    return f"{statistics.median(values):.1f} / {max(values):.1f}" if values else "-"


def report(path: Path) -> Iterator[str]:
    """The tables over all batches of a log, and the sums, by commit."""
    events = read(path)
    for batch in [event for event in events if event["event"] == "batch"]:
        own = [event for event in events if event["batch"] == batch["batch"]]
        ended = "" if any(event["event"] == "end" for event in own) else " (the batch was interrupted)"
        yield f"{batch['batch']}  {batch['commit'][:12]}{batch['commit'][40:]}  seed {batch['seed']}: {verdict(own)}{ended}"
    yield ""
    yield from table(events)
    found = sums(events)
    yield f"{found['batches']} batches, {found['rounds']} rounds finished and compared, {found['broken promises']} broken promises, {found['kills in unfinished rounds']} kills in rounds that were not finished"
    yield verdict(events)
