"""Your own conversations: records whose `messages` are turns, each {"role", "content"}, as chat data are written.

The one idea: a conversation is whole or an error: turns alternate, and there is at least one reply to learn. It is often
stored several times while it goes on; all that begin alike, up to the first reply to a user, are on one side of the split.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.tasks.examples import (
    KEEP_ORDER,
    SPLITS,
    Dialogue,
    Prepared,
    identifier,
    normalised,
    refuse_empty,
    summary,
    without_repeats,
)
from pipelines.tasks.user_data import Record, parsed, records
from pipelines.tasks.user_splits import placed

LANGUAGE = ""  # who gives the data knows
FORM = "dialogue"
VERSION = 2  # the first put what begins alike, as a conversation that is stored as it grows, on several sides
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
    """Conversations of `files`, split by the group column (without one, by the turns up to the first reply to a user).

    ValueError names file, line and turn of what cannot be used.
    """

    def read(part: Sequence[Path]) -> list[Dialogue]:
        found = []
        for record in records(part):
            turns = _turns(record, messages_column)
            group = record.name(group_column, "group_column") if group_column else _beginning(turns)
            found.append(Dialogue(identifier(*(turn["content"] for turn in turns)), turns, group))
        return found

    own = {"train": files, "validation": validation_files, "test": test_files}
    splits = placed(own, read, lambda example: str(example.group), validation, test)
    unique, report = without_repeats(splits, lambda one: "\n".join(_words(_learned(one.messages))))
    refuse_empty(unique, files)
    for name, part in unique.items():
        if name != "validation" and not any(turn["role"] == "assistant" for one in part for turn in one.messages[1:]):
            raise ValueError(
                f"{files[0]}: no reply of the {name} split has a turn before it, so that there is nothing to ask a model; "
                "give conversations in which the assistant answers"
            )
    # Turns alternate, so what nobody replied to is one turn: it stays in the example, and nothing is learned or asked of it.
    report["turns_after_the_last_reply"] = sum(
        one.messages[-1]["role"] != "assistant" for part in unique.values() for one in part
    )
    report["replies_across_splits"] = _replies_across(unique)
    report |= {"rows": sum(map(len, splits.values())), "splits": {name: summary(unique[name]) for name in SPLITS}}
    return Prepared(unique, report)


def _learned(messages: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
    """The turns of a conversation up to its last reply: the turn that nobody replied to teaches nothing."""
    return messages if messages[-1]["role"] == "assistant" else messages[:-1]


def _words(turns: Sequence[Mapping[str, str]]) -> list[str]:
    return [normalised(turn["content"]) for turn in turns]


def _beginning(turns: Sequence[Mapping[str, str]]) -> str:
    """What conversations share that are one: the words up to the first reply to a user, or to the last one if none is."""
    return next(_answered(turns), None) or identifier(*_words(_learned(turns)))


def _answered(turns: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Each reply to a user with all turns before it, as a hash of their words."""
    words = _words(turns)
    for place, (before, turn) in enumerate(itertools.pairwise(turns), 1):
        if (before["role"], turn["role"]) == ("user", "assistant"):
            yield identifier(*words[: place + 1])


def _replies_across(splits: Mapping[str, Sequence[Dialogue]]) -> int:
    """How many held-out replies stand, after the same turns, on a side nearer to training too: of groups or files that share them."""
    nearer, across = set[str](), 0
    for name in reversed(KEEP_ORDER):
        found = [reply for one in splits[name] for reply in _answered(one.messages)]
        across += sum(reply in nearer for reply in found)
        nearer |= {*found}
    return across


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
    if not isinstance(turn, dict) or "content" not in turn:
        raise ValueError(
            f"{record.place}: field {column!r}, turn {number} is {str(turn)[:60]!r}; a turn is an object with role and content"
        )
    if turn.get("role") not in _ROLES:
        raise ValueError(
            f"{record.place}: field {column!r}, turn {number}: role is {turn.get('role')!r}; expected one of {', '.join(_ROLES)}"
        )
    # A record of its own: what text is, and what is said of what is none, is the same for every field.
    content = Record(f"{record.place}: field {column!r}, turn {number}", turn).text("content", "messages_column")
    return {"role": turn["role"], "content": content}
