"""Decontamination: documents that contain evaluation examples are found, so that they can be left out.

The one idea: both sides are reduced to their words (case folded, punctuation and layout gone, a character of a
script without spaces is a word) and the examples are searched for all at once, with an Aho-Corasick automaton,
in one pass over each document. An example too long to be whole in one document is searched for by windows.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.words import have_marks, word

# Words; longer examples are searched for by windows of so many. Of 64 words and more, two windows share no word, so one
# cut between documents leaves a window whole. In a shorter example a cut may go through all windows and hide it.
WINDOW = 32
# Kana, Han and Hangul are written without spaces (or with few): each character counts as a word.
_ALONE = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_LETTER = rf"[^\W_{_ALONE}]"
_UNMARKED = re.compile(f"[{_ALONE}]|{_LETTER}+")


def words(text: str) -> list[str]:
    """The words of a text as they are compared."""
    return _marked().findall(text.casefold())


def runs(text: str, size: int) -> set[int]:
    """Hashes of the stretches of `size` words of a text. Of ints, whose hash is the same in every process."""
    found = [int.from_bytes(one.encode()[:12], "big") for one in words(text)]
    return {hash(tuple(found[place : place + size])) for place in range(len(found) - size + 1)}


@functools.cache
def _marked() -> re.Pattern[str]:
    return re.compile(f"[{_ALONE}]|{word(_LETTER).pattern}")


def _unmarked(text: str) -> list[str]:
    """The words of a text, each cut at its marks: how all were compared once."""
    return _UNMARKED.findall(text.casefold())


def patterns(examples: Iterable[str], min_words: int, cut: Callable[[str], list[str]] = words) -> tuple[set[str], int]:
    """What to search for, and how many examples have fewer than `min_words` words and are not searched for."""
    found: set[str] = set()
    ignored = 0
    for example in examples:
        sequence = cut(example)
        if len(sequence) < min_words:
            ignored += 1
            continue
        starts = [*range(0, len(sequence) - WINDOW, WINDOW), max(len(sequence) - WINDOW, 0)]
        found.update(f" {' '.join(sequence[start : start + WINDOW])} " for start in starts)
    return found, ignored


class Contamination:
    """The examples of evaluation files, ready to be searched for. Built once a process, see `load`."""

    def __init__(self, examples: Sequence[str], min_words: int) -> None:
        self.examples = len(examples)
        self._cut = words if _any_marks(examples) else _unmarked
        found, self.ignored = patterns(examples, min_words, self._cut)
        self._automaton = _automaton(found) if found else None

    def contains(self, document: str) -> bool:
        """Whether the document contains an example."""
        if self._automaton is None:
            return False
        return next(self._automaton.iter(f" {' '.join(self._cut(document))} "), None) is not None


def _automaton(found: Iterable[str]) -> Any:
    import ahocorasick

    automaton = ahocorasick.Automaton(ahocorasick.STORE_LENGTH)
    for pattern in found:
        automaton.add_word(pattern)
    automaton.make_automaton()
    return automaton


def read_examples(paths: Iterable[Path | str]) -> list[str]:
    """The texts of evaluation examples, one JSON object a line: what is asked and what is answered, each by itself."""
    return [text for example in _examples(paths) for text in _texts(example)]


def _examples(paths: Iterable[Path | str]) -> Iterator[dict[str, Any]]:
    # Not splitlines(): it also splits at U+2028, which JSON may hold as it is.
    lines = (line for path in paths for line in Path(path).read_text("utf-8").split("\n"))
    return (json.loads(line) for line in lines if line)


def _texts(example: dict[str, Any]) -> list[str]:
    """What of an example must not stand in the training text, in any of the forms (pipelines/tasks/examples.py)."""
    named = [example[field] for field in ("text", "prompt", "response", "question", "context") if field in example]
    return named + _other_answers(example) + [turn["content"] for turn in example.get("messages", ())]


def _other_answers(example: dict[str, Any]) -> list[str]:
    """What counts as right beside the response that is learned."""
    return [text for text in example.get("references", ()) if text != example["response"]]


def _any_marks(examples: Iterable[str]) -> bool:
    return have_marks(text.casefold() for text in examples)


@functools.lru_cache(maxsize=2)
def load(paths: tuple[str, ...], digest: str, min_words: int) -> Contamination:
    """The examples of `paths`; `digest` names their content, so that a worker builds each automaton once."""
    return Contamination(read_examples(paths), min_words)


def evaluation_inputs(inputs: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """The evaluation files among a step's inputs, named "test", "validation" and "benchmark"; the digest of each, and how
    they are searched for, which together are what a unit depends on."""
    names = [name for name in ("test", "validation", "benchmark") if name in inputs]
    paths, digests = (
        tuple(str(inputs[name].path(f"{name}.jsonl")) for name in names),
        {name: inputs[name].digest for name in names},
    )
    return paths, digests | _came_later(paths, tuple(digests.values()))


@functools.lru_cache(maxsize=2)
def _came_later(paths: tuple[str, ...], digests: tuple[str, ...]) -> dict[str, str]:
    """What is done to these examples that once was not, where they have what it is about: text cleaned of others stays."""
    found = {"words": "with marks"} if _any_marks(read_examples(paths)) else {}
    return found | ({"references": "all"} if any(map(_other_answers, _examples(paths))) else {})
