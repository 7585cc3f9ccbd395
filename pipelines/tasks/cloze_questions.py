"""Questions made of sentences: an answer is blanked, and what is left is turned into something that asks for it.

The one idea: a rough guess of what an answer is (a date, a number, a person, a place, a thing) from its letters and the
word before it decides the question word; the clause around the blank becomes the question, with a verb moved to the
front where it has an auxiliary one (after Lewis, Denoyer and Riedel 2019, "Unsupervised question answering by cloze
translation"). English only; regular expressions and nothing learned, so equal text gives equal questions for ever.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["date", "number", "person", "place", "name", "phrase"]
_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = re.compile(
    rf"\b(?:{_MONTH} \d{{1,2}}(?:, \d{{4}})?|\d{{1,2}} {_MONTH}(?:,? \d{{4}})?|{_MONTH},? \d{{4}}|(?:1\d|20)\d\ds?"
    r"|\d+(?:st|nd|rd|th) centur(?:y|ies)|\d+ BC)\b"
)
_SMALL = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundreds|thousands|dozens"
)
_NUMBER = re.compile(
    rf"(?:[$£€])?\b(?:\d[\d,]*(?:\.\d+)?|{_SMALL})(?: (?:hundred|thousand|million|billion|percent|per cent))*\b%?"
)
_WORD = r"[A-Z][\w’'-]*\w|[A-Z]\."
_NAME = re.compile(rf"(?:{_WORD})(?: (?:(?:of|of the|de|von|van|der|and the|for) )?(?:{_WORD}))*")
_LETTERS = re.compile(r"[\w’'-]+")
_LITTLE = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these those he she it they we i you his her its their our my your him them us me who whom whose which what "
        "when where why how there here and or but nor so yet if then than as of in on at by for with from to into onto over under "
        "between among through during before after since until about against without within along across behind beyond near upon "
        "is are was were be been being am has have had do does did will would can could may might shall should must not no also only "
        "however although though while because since most many some any each every both all few several such other another more "
        "one first second new early later once even just very",
    )
)
_TITLE = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Sir|Lord|Lady|President|King|Queen|Prince|Princess|Emperor|Pope|Captain|General|Colonel|Major|Professor|"
    r"Senator|Governor|Saint|St|director|actor|actress|author|writer|philosopher|wife|husband|son|daughter|brother|sister|named"
    r"|friend|father|mother|detective|painter|minister|[a-z]+(?:ist|ian|eer|tor))\.?$"
)  # fmt: skip
_GIVEN = frozenset(
    re.findall(
        r"\w+",
        "John James William George Charles Henry Robert Thomas Edward Joseph David Richard Mary Elizabeth Anne Anna Margaret Jack "
        "Peter Paul Michael Daniel Alexander Albert Arthur Abraham Andrew Andrei Benjamin Frank Frederick Harry Isaac Jane Johann Karl Louis "
        "Max Martin Otto Samuel Sarah Simon Stephen Tom Walter Alice Ayn Aldous Aristotle Plato Lincoln Einstein",
    )
)
_SAID = re.compile(
    r"^ (?:was born|said|wrote|died|argued|believed|married|tells|told|decides|decided|who|himself|herself|thought|claimed|"
    r"finds|falls|wants|tries|becomes|discovers|meets|takes|returns)\b"
)  # fmt: skip
_WHERE = re.compile(r"\b(?:in|from|near|at|across|throughout|outside|inside|to|toward|towards) (?:the )?$")
_WHEN = re.compile(r"(?:^|\s)(?:in|on|at|from|by|since|during|near|around|until|of|the|early|late|about|c\.)$", re.I)
_AUXILIARY = re.compile(r"\b(?:is|are|was|were|has|have|had|can|could|will|would|did|does|do|may|must|should)\b")
_PHRASE = re.compile(r"\b(?:a|an|the|his|her|their|its) ((?:[a-z][a-z-]+ ){0,2}[a-z][a-z-]+)\b")
_CLAUSE = re.compile(r"[,;:–—()]| - | (?:and|but|which|while|although|because|where|when|who) ")
_LONGEST_ANSWER = 6  # words
_FEWEST, _MOST = 5, 14  # words of a question beside what asks


@dataclass(frozen=True)
class Answer:
    """A stretch of a text that a question can ask for."""

    start: int
    end: int
    kind: Kind


def answers(sentence: str) -> Iterator[Answer]:
    """What can be asked for in a sentence, each stretch once: dates before numbers before names before phrases."""
    taken: list[tuple[int, int]] = []
    for kind, found in (
        ("date", _DATE.finditer(sentence)),
        ("name", _NAME.finditer(sentence)),
        ("number", _NUMBER.finditer(sentence)),
        ("phrase", _PHRASE.finditer(sentence)),
    ):
        for match in found:
            start, end = match.span(1) if kind == "phrase" else match.span()
            start = _without_little(sentence, start, end) if kind == "name" else start
            end = _before_little(sentence, start, end) if kind == "phrase" else end
            if start == end or any(start < last and first < end for first, last in taken):
                continue
            if kind == "phrase" and not _is_phrase(sentence, start, end):
                continue
            if len(sentence[start:end].split()) <= _LONGEST_ANSWER and end - start > 1:
                taken.append((start, end))
                yield Answer(start, end, _named(sentence, start, end) if kind == "name" else kind)  # type: ignore[arg-type]


def _without_little(sentence: str, start: int, end: int) -> int:
    """Where a name begins without the little words before it ("The", "In") and, at a sentence's begin, a single word: any has a capital there."""
    for word in _LETTERS.finditer(sentence, start, end):
        if word.group().lower() not in _LITTLE and word.group() not in ("May", "March"):
            alone = word.end() == end and not sentence[: word.start()].strip(' "“(')
            return end if alone and word.group() not in _GIVEN else word.start()
    return end


def _before_little(sentence: str, start: int, end: int) -> int:
    """Where the first little word of a stretch begins, without the blank before it; the stretch's end if it has none."""
    words = _LETTERS.finditer(sentence, start, end)
    return next((max(start, word.start() - 1) for word in words if word.group() in _LITTLE), end)


def _is_phrase(sentence: str, start: int, end: int) -> bool:
    """Whether a few small words are a noun phrase, as far as can be told: a little word or a stop comes right after them."""
    after = _LETTERS.match(sentence, end + 1)
    closed = end >= len(sentence) or sentence[end] in ".,;:)" or (after is not None and after.group() in _LITTLE)
    return closed and end - start > 3


def _named(sentence: str, start: int, end: int) -> Kind:
    """Whether a name is a person's, a place's or something else's, by its words and those around it."""
    name = sentence[start:end]
    if name.split()[0] in _GIVEN or _TITLE.search(sentence[:start].rstrip()) or _SAID.match(sentence[end:]):
        return "person"
    return "place" if _WHERE.search(sentence[:start]) else "name"


def asked(sentence: str, answer: Answer, chance: random.Random) -> str:
    """A question about `sentence` that `answer` answers; "" where too little is left to ask with."""
    before, after = _clause(sentence, answer)
    before, after = before.strip(" ,;:()\"“”"), after.strip(" ,;:.()\"“”!?")  # fmt: skip
    wh, after = _question_word(sentence[answer.start : answer.end], answer.kind, after, chance)
    if answer.kind in ("date", "place"):
        while (shorter := _WHEN.sub("", before)) != before:
            before = shorter.rstrip()
    if answer.kind in ("phrase", "name", "person"):
        before = re.sub(r"(?:^|\s)(?:a|an|the|his|her|their|its)$", "", before, flags=re.I)
    words = [*before.split(), *after.split()]
    if len(words) < _FEWEST - 1:
        return ""
    return " ".join(_ordered(wh, before, after).split()).rstrip(" ,;:") + "?"


def _clause(sentence: str, answer: Answer) -> tuple[str, str]:
    """What stands before and after the answer in its clause; of a short clause in those beside it, of a long one the nearest words."""
    cuts = [0, *(match.start() for match in _CLAUSE.finditer(sentence)), len(sentence)]
    first = max(place for place, cut in enumerate(cuts) if cut <= answer.start)
    last = min(place for place, cut in enumerate(cuts) if cut >= answer.end)
    while len(sentence[cuts[first] : cuts[last]].split()) < _FEWEST + 3 and (first > 0 or last < len(cuts) - 1):
        if first > 0:
            first -= 1
        else:
            last += 1
    before = sentence[cuts[first] : answer.start].split()
    after = sentence[answer.end : cuts[last]].split()
    while len(before) + len(after) > _MOST:
        if len(before) >= len(after):
            before.pop(0)
        else:
            after.pop()
    text = " ".join(before)
    return re.sub(r"^(?:and|but|which|while|although|because|where|when|who) ", "", text), " ".join(after)


def _question_word(text: str, kind: Kind, after: str, chance: random.Random) -> tuple[str, str]:
    """What asks for an answer, and what is left after it: of a number what is counted moves to the front."""
    if kind == "number":
        if text.endswith(("%", "percent", "per cent")):
            return "what percentage", after
        if text[0] in "$£€":
            return "how much", after
        counted = re.match(r"(?:[a-z-]+ ){0,1}[a-z-]+s\b", after)
        return (f"how many {counted.group()}", after[counted.end() :]) if counted else ("how many", after)
    asks = {
        "date": ("when", "when", "in what year" if re.fullmatch(r"\d{4}", text) else "when"),
        "person": ("who",),
        "place": ("where", "where", "what place"),
        "name": ("what", "what", "who", "which"),
        "phrase": ("what",),
    }[kind]
    return chance.choice(asks), after


def _ordered(wh: str, before: str, after: str) -> str:
    """The question word, the auxiliary verb if there is one, and the rest in its order."""
    if not before:
        return f"{wh} {after}"
    verb = _AUXILIARY.search(before)
    if verb and verb.start():
        return f"{wh} {verb.group()} {before[: verb.start()]} {before[verb.end() :]} {after}"
    if wh.startswith(("when", "where", "in what")):
        return f"{wh} did {before} {after}"
    return f"{wh} {before} {after}" if verb else f"{wh} did {before} {after}"
