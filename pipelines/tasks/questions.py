"""Questions: a question in, its answer out, from memory: pairs of Natural Questions and WebQuestions without passages.

The one idea: nothing but the weights can hold an answer, so this measures what a model knows, and a small one knows next
to nothing. A model has to beat the most frequent answer; that it learns which *kind* of answer a question wants (a year,
a name, a place) is what F1 shows first.

Data: JSON lines of the sample `open_questions`, {"question", "answers"}. The first answer is learned, all count as right,
those too that a repeat of the question has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.tasks.examples import (
    SPLITS,
    Prepared,
    Response,
    divided,
    identifier,
    normalised,
    refuse_empty,
    summary,
    without_repeats,
)
from pipelines.tasks.prompts import folded, with_references
from pipelines.tasks.user_data import records

FORM = "response"
VERSION = 2  # the first took questions that differ in signs only for one, and lost the answers of a repeat
METRICS = {"exact_match": ("frequent", "retrieval"), "f1": ("frequent", "retrieval")}


def prepare(files: Sequence[Path], validation: float, test: float) -> Prepared:
    """Questions and answers of `files`, split by the question's words.

    ValueError names file, line and field of what cannot be used.
    """
    found = []
    for record in records(files):
        question, answers = record.text("question", "source"), record.field("answers", "source")
        if (
            not isinstance(answers, list)
            or not answers
            or not all(isinstance(one, str) and one.strip() for one in answers)
        ):
            raise ValueError(f"{record.place}: field 'answers' is {str(answers)[:60]!r}; it has to be a list of texts")
        answers = [one.strip() for one in answers]
        found.append(Response(identifier(question, answers[0]), question, answers[0], answers, normalised(question)))
    splits = with_references(divided(found, validation, test))
    unique, report = without_repeats(splits, lambda one: folded(one.prompt))
    refuse_empty(unique, files)
    return Prepared(unique, report | {"rows": len(found), "splits": {name: summary(unique[name]) for name in SPLITS}})
