"""When two prompts are the same one, which takes two answers: one for a leak, another for what is asked.

The one idea: a prompt's *side* is decided by its words, so that nothing a model learned from is asked of it in other
punctuation. What a prompt *is* counts its signs too: "Who made C?" and "Who made C++?", or 1 + 2 and 1 - 2, share all
their words, are on one side, and are two prompts with answers of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from pipelines.tasks.examples import KEEP_ORDER, SPLITS, Response, normalised

T = TypeVar("T")  # an example


def folded(text: str) -> str:
    """What two prompts must share to be the same one: all but case and white space."""
    return " ".join(text.lower().split())


def prompt_words(one: Response) -> str:
    """What decides the side of a prompt."""
    return normalised(one.prompt)


def on_one_side(splits: Mapping[str, Sequence[T]], words: Callable[[T], str]) -> dict[str, list[T]]:
    """The examples without those whose `words` are those of an example on a side further from training."""
    side: dict[str, str] = {}
    for name in KEEP_ORDER:
        for one in splits[name]:
            side.setdefault(words(one), name)
    return {name: [one for one in splits[name] if side[words(one)] == name] for name in SPLITS}


def with_references(splits: Mapping[str, Sequence[Response]]) -> dict[str, list[Response]]:
    """The examples, each with all that is right for its prompt as references, on whichever side it stands."""
    given: dict[str, set[str]] = defaultdict(set)
    for part in splits.values():
        for one in part:
            given[folded(one.prompt)] |= set(one.references)
    return {
        name: [replace(one, references=sorted(given[folded(one.prompt)])) for one in part]
        for name, part in splits.items()
    }


def once(part: Sequence[Response]) -> list[Response]:
    """The first example of each prompt."""
    first: dict[str, Response] = {}
    for one in part:
        first.setdefault(folded(one.prompt), one)
    return list(first.values())
