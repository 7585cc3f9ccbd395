"""How the steps of a recipe stand, who works at them, and what they measured: `gptline status`.

The one idea: it only looks. Everything is read from records, leases and slots, beside runs that go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines import run as runs
from pipelines import site_status, slots
from pipelines.engine import lease as leases
from pipelines.results import Given, figure
from pipelines.run import Workspace


def status(
    workspace: Workspace, out: Console, as_json: bool, given: Given, site: Mapping[str, Any] | None = None
) -> None:
    """What is made, what is being made and by whom, what it measured; and how the site stands, if there is one."""
    rows: list[dict[str, Any]] = []
    for name, planned in runs.plan(workspace).items():
        owner = leases.current_owner(planned.folder) if planned.folder else None
        state = f"being made by {owner}" if owner else "done" if planned.done else "to do"
        record = planned.record
        rows.append(
            {"step": name, "state": state, "why": list(planned.reasons), "finished": record and record.finished,
             "seconds": record and record.seconds, "figure": figure(record) if record else "", "metrics": record and record.metrics}
        )  # fmt: skip
    latest = {slot.model: slot for slot in slots.read_all(workspace.root)}
    if as_json:
        said = {"recipe": workspace.recipe.name, "work": str(workspace.root), "steps": rows}
        said["retraining"] = [slots.as_json(slot) for slot in latest.values()]
        sys.stdout.write(json.dumps(said | {"site": site}, indent=1) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("step", "state", "finished", "time", "key figure"):
        table.add_column(title)
    for row in rows:
        finished = str(row["finished"])[:19].replace("T", " ") if row["finished"] else ""
        table.add_row(
            row["step"], row["state"], finished, f"{row['seconds']:.1f} s" if row["seconds"] else "", row["figure"]
        )
    out.print(table)
    for slot in latest.values():
        owner = leases.current_owner(slots.folder(workspace.root, slot.model))
        state = f"being worked on by {owner}" if owner else slot.outcome
        out.print(
            f"retraining {slot.model}: slot {slot.number} of {slot.opened[:19]}, {slot.why}, {state}", markup=False
        )
    out.print(f"work directory {_size(workspace.root)}", markup=False)
    for line in site_status.lines(site) if site else ():
        out.print(line, markup=False)
    out.print(f"next: {given.make('plan')} (why), {given.make('run')} (do it)", markup=False)


def _size(root: Path) -> str:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # somebody is at work here: files come and go
                total += os.stat(os.path.join(folder, name)).st_size
    return f"{root}: {total / 1e6:.1f} MB"
