"""Your own conversations: records whose `messages` are turns, each {"role", "content"}, as chat data are written.

The one idea: a conversation is whole or an error: turns alternate, and there is at least one reply to learn.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.tasks.examples import SPLITS, Dialogue, Prepared, identifier, normalised, summary, without_repeats
from pipelines.tasks.user_data import Record, parsed, records
from pipelines.tasks.user_splits import placed

LANGUAGE = ""  # who gives the data knows
FORM = "dialogue"
_ROLES = ("system", "user", "assistant")


def prepare(
    files: Sequence[Path],
    validation: float,
    test: float,
    messages_column: str = "messages",
    group_column: str = "",
    validation_files: Sequence[Path] = (),
    test_files: Sequence[Path] = (),
) -> Prepared:
    """Conversations of `files`, split by the group column (by the conversation, without one).

    ValueError names file, line and turn of what cannot be used.
    """

    def read(part: Sequence[Path]) -> list[Dialogue]:
        found = []
        for record in records(part):
            turns = _turns(record, messages_column)
            identity = identifier(*(turn["content"] for turn in turns))
            group = record.name(group_column, "group_column") if group_column else identity
            found.append(Dialogue(identity, turns, group))
        return found

    own = {"train": files, "validation": validation_files, "test": test_files}
    splits = placed(own, read, lambda example: str(example.group), validation, test)
    unique, report = without_repeats(
        splits, lambda one: "\n".join(normalised(turn["content"]) for turn in one.messages)
    )
    for name, part in unique.items():
        if not part:
            raise ValueError(
                f"{files[0]}: the {name} split is empty; give more data or other shares (task.validation_fraction, task.test_fraction)"
            )
    # Turns alternate, so what nobody replied to is one turn: it stays in the example, and nothing is learned or asked of it.
    report["turns_after_the_last_reply"] = sum(
        one.messages[-1]["role"] != "assistant" for part in unique.values() for one in part
    )
    report |= {"rows": sum(map(len, splits.values())), "splits": {name: summary(unique[name]) for name in SPLITS}}
    return Prepared(unique, report)


def _turns(record: Record, column: str) -> list[dict[str, str]]:
    """The turns of a record: a list, or (in CSV) a list written as JSON. ValueError names the turn that is none."""
    value = record.field(column, "messages_column")
    if isinstance(value, str):
        try:
            value = parsed(value, record.place)
        except json.JSONDecodeError as error:
            raise ValueError(f"{record.place}: field {column!r} is text and no JSON ({error})") from error
    if not isinstance(value, list) or not value:
        raise ValueError(f"{record.place}: field {column!r} has to be a list of turns, it is {str(value)[:60]!r}")
    turns = [_turn(record, column, number, turn) for number, turn in enumerate(value, 1)]
    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
    if "system" in [turn["role"] for turn in turns[1:]] or any(one == two for one, two in itertools.pairwise(spoken)):
        raise ValueError(
            f"{record.place}: field {column!r}: roles are {', '.join(turn['role'] for turn in turns)}; user and assistant "
            "have to alternate, a system turn may only come first"
        )
    if "assistant" not in spoken:
        raise ValueError(
            f"{record.place}: field {column!r} has no turn of the assistant; there is nothing to learn in it"
        )
    return turns


def _turn(record: Record, column: str, number: int, turn: Any) -> dict[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or not turn["content"].strip():
        raise ValueError(
            f"{record.place}: field {column!r}, turn {number} is {str(turn)[:60]!r}; a turn is an object with role and content"
        )
    if turn.get("role") not in _ROLES:
        raise ValueError(
            f"{record.place}: field {column!r}, turn {number}: role is {turn.get('role')!r}; expected one of {', '.join(_ROLES)}"
        )
    return {"role": turn["role"], "content": turn["content"].strip()}
