"""Questions about a passage, made of the passage itself: no label is needed to learn to find answers in a text.

The one idea: in a sentence of a passage an answer (a date, a number, a name, a noun phrase) is blanked and the clause
around it becomes a question (cloze_questions.py). Where the same answer stands in another sentence of the passage too,
the sentence that was asked from is taken out of it half of the time, so that words alone do not lead to the answer.
Each document is on one side of the split, and everything is a function of the passage's text.

Data: documents of English prose, plain text or records with a `text` column. `benchmark_files` are questions in SQuAD's
form that nothing is ever trained on: a passage that shares eight words in a row with one of their contexts or questions
is left out of the training data.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.contamination import runs
from pipelines.sentences import split
from pipelines.sources import known_format
from pipelines.tasks import span_metrics
from pipelines.tasks.cloze_questions import Answer, answers, asked
from pipelines.tasks.examples import SPLITS, Prepared, Span, divided, identifier, refuse_empty, summary, without_repeats
from pipelines.tasks.spans import benchmark, words_of
from pipelines.tasks.spans import questions as read_questions
from pipelines.tasks.user_data import records

FORM = "span"
METRICS = dict.fromkeys(
    ("exact_match", "f1", "exact_match_benchmark", "f1_benchmark"), span_metrics.BASELINES
)  # of the table
LANGUAGE = "en"
_SHARED = 8  # words in a row
_FEWEST_WORDS = 40  # of a passage
_DROPPED = 0.1  # of a question's words, so that not every one is found in the passage
_ELSEWHERE = 0.5  # of the answers that stand in other sentences too are asked for without their own
# How often each kind of answer is asked for, as people ask (SQuAD's question words).
_WEIGHTS = {"date": 2.0, "number": 2.0, "person": 2.0, "place": 2.0, "name": 1.5, "phrase": 1.0}


def prepare(
    files: Sequence[Path],
    validation: float,
    test: float,
    passage_words: int = 120,
    questions_per_passage: int = 2,
    text_column: str = "text",
    benchmark_files: Sequence[Path] = (),
    benchmark_questions: int = 2000,
    benchmark_left_out: int = 0,
) -> Prepared:
    """Questions about the passages of `files`, split by document. ValueError names file and line of what cannot be read.

    Of the benchmark `benchmark_questions` are asked, the first by a hash; the `benchmark_left_out` articles that come first
    by theirs are left out: for whoever looks at answers while the making of questions is changed.
    """
    known = _known(benchmark_files)
    found: list[Span] = []
    counts = Counter({"passages": 0, "passages_like_the_benchmark": 0, "passages_without_question": 0})
    for document in _documents(files, text_column):
        group = identifier(document)
        for passage in passages(document, passage_words):
            counts["passages"] += 1
            if known & runs(passage, _SHARED):
                counts["passages_like_the_benchmark"] += 1
                continue
            made = questions(passage, group, questions_per_passage)
            counts["passages_without_question"] += not made
            found += made
    unique, report = without_repeats(divided(found, validation, test), words_of)
    refuse_empty(unique, files)
    report |= {"rows": len(found), **counts, "splits": {name: summary(unique[name]) for name in SPLITS}}
    held, account = benchmark(benchmark_files, benchmark_questions, benchmark_left_out)
    return Prepared(unique, report | account, benchmark=held)


def _known(files: Sequence[Path]) -> set[int]:
    """The stretches of words of all questions and contexts of a benchmark, also of those that are not asked."""
    texts = {text for one in read_questions(files, moved=lambda place: None) for text in (one.question, one.context)}
    return {gram for text in texts for gram in runs(text, _SHARED)}


def _documents(files: Sequence[Path], column: str) -> Iterator[str]:
    for path in files:
        if known_format(path) in ("txt", "md"):
            try:
                yield path.read_bytes().decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: not UTF-8 ({error}); convert the file to UTF-8") from error
        else:
            yield from (record.text(column, "text_column") for record in records([path]))


def passages(document: str, most: int) -> Iterator[str]:
    """Stretches of whole sentences of a document, of at most `most` words, none over a paragraph's end; short ones are left out."""
    for paragraph in re.split(r"\n\s*\n", document):
        taken: list[str] = []
        for sentence in split(" ".join(paragraph.split())):
            if taken and len(" ".join([*taken, sentence]).split()) > most:
                yield from _whole(taken, most)
                taken = []
            taken.append(sentence)
        yield from _whole(taken, most)


def _whole(sentences: list[str], most: int) -> Iterator[str]:
    text = " ".join(sentences)
    if _FEWEST_WORDS <= len(text.split()) <= 2 * most:
        yield text


def questions(passage: str, group: str, most: int) -> list[Span]:
    """At most `most` questions about a passage, each of another sentence: a function of its text."""
    chance = random.Random(identifier(passage))
    sentences = split(passage)
    possible = [(one, answer) for one in sentences for answer in answers(one)]
    made: list[Span] = []
    while possible and len(made) < most:
        ((sentence, answer),) = chance.choices(possible, [_WEIGHTS[answer.kind] for _, answer in possible])
        example = _example(passage, sentences, sentence, answer, group, chance)
        made += [example] if example else []
        possible = [one for one in possible if one[0] != sentence or (example is None and one[1] != answer)]
    return made


def _example(
    passage: str, sentences: Sequence[str], sentence: str, answer: Answer, group: str, chance: random.Random
) -> Span | None:
    """The question of one answer; None if the sentence gives none."""
    text, question = sentence[answer.start : answer.end], asked(sentence, answer, chance)
    if not question:
        return None
    question = _fewer(question, chance)
    others = " ".join(one for one in sentences if one != sentence)
    elsewhere = _places(text, others)
    if elsewhere and answer.kind != "phrase" and chance.random() < _ELSEWHERE:
        context, places = others, elsewhere
    else:
        context, places = passage, [passage.index(sentence) + answer.start]
    found = [{"text": text, "start": place} for place in places]
    return Span(identifier(question, context), question, context, found, group)


def _places(text: str, context: str) -> list[int]:
    """Where a text stands in another, as whole words."""
    return [match.start() for match in re.finditer(rf"(?<!\w){re.escape(text)}(?!\w)", context)]


def _fewer(question: str, chance: random.Random) -> str:
    """The question without some of its words, but for those that ask."""
    first, *rest = question.split()
    kept = [word for word in rest[1:] if chance.random() >= _DROPPED]
    return " ".join([first, *rest[:1], *kept]).rstrip("?") + "?"
