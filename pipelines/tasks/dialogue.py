"""Dialogue: a conversation so far in, the next reply out, from conversations of two people.

The one idea: either of the two may be the one who is learned, so each conversation is two examples, one from each side:
every turn but the first is a reply exactly once. Both belong to one group, and a split never parts them.

Data: JSON lines of the sample `chitchat`, {"conversation", "turns"}. Conversations of fewer than four turns are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.tasks.examples import (
    SPLITS,
    Dialogue,
    Prepared,
    divided,
    identifier,
    normalised,
    refuse_empty,
    summary,
    without_repeats,
)
from pipelines.tasks.user_data import records

FORM = "dialogue"


def prepare(files: Sequence[Path], validation: float, test: float, least_turns: int = 4) -> Prepared:
    """Conversations of at least `least_turns` turns, split by conversation.

    ValueError names file, line and field of what cannot be used.
    """
    found, short, rows = [], 0, 0
    for record in records(files):
        rows += 1
        name, turns = record.text("conversation", "source"), record.field("turns", "source")
        if not isinstance(turns, list) or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise ValueError(f"{record.place}: field 'turns' is {str(turns)[:60]!r}; it has to be a list of texts")
        if len(turns) < least_turns:
            short += 1
            continue
        views = (_seen(name, turns), _seen(name, turns[1:]))
        found += [view for view in views if view.messages]  # of two turns the second alone answers nothing
    unique, report = without_repeats(
        divided(found, validation, test), lambda one: "\n".join(normalised(turn["content"]) for turn in one.messages)
    )
    refuse_empty(unique, files)
    report["dropped"]["short"] = short
    return Prepared(unique, report | {"rows": rows, "splits": {name: summary(unique[name]) for name in SPLITS}})


def _seen(name: str, turns: Sequence[str]) -> Dialogue:
    """A conversation as the one sees it who answers its first turn. What follows the last reply answers nothing."""
    heard = turns[: len(turns) // 2 * 2]
    messages = [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(heard)]
    return Dialogue(identifier(*heard), messages, name)
