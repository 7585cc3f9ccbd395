"""Words of scripts whose vowels are marks are whole, everywhere; those of other texts are what they were."""

from __future__ import annotations

import bz2
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pipelines import contamination, flow, recipes, words
from pipelines.config import Source
from pipelines.stages import shard
from pipelines.tasks import answer_baselines, examples, labelled, metrics
from pipelines.tasks.sentiment import prepare
from tests.pipelines.data_attempts import SHARD, attempt, corpus, rows

SYLLABLES = ["कि", "का", "की", "के", "कु", "को", "कै"]
PAIRS = [f"{first} {second}" for first in SYLLABLES for second in SYLLABLES]
ENGLISH = [
    "It's a well-made film_noir, isn't it? 10/10 ❤️ and 3.5 \N{KEYCAP TEN}",
    "Der Äffchen-Käfig über Wörter: naïve café, ¿qué?",
    "漢字かな交じり文。한국어 텍스트 \u200d x\ufe0fy",
    "İ is no i, ß no ss; ﬁ 1\ufe0f\u20e3",
]


def test_words_with_marks_are_whole_and_others_what_they_were() -> None:
    assert words.word().findall(" ".join(SYLLABLES)) == SYLLABLES
    assert words.word().findall("தமிழ், ภาษาไทย, cafe\u0301s; \u093f \U00011103\U00011127") == [
        "தமிழ்", "ภาษาไทย", "cafe\u0301s", "\U00011103\U00011127",
    ]  # fmt: skip
    for text in ENGLISH:
        assert words.word().findall(text) == re.findall(r"\w+", text)
        assert not words.have_marks([text])
        assert contamination.words(text) == contamination._unmarked(text) or "İ" in text
    beyond = [code for code in range(0x20000, 0x110000) if unicodedata.category(chr(code)).startswith("M")]
    assert beyond and all("VARIATION SELECTOR" in unicodedata.name(chr(code)) for code in beyond)


def reviews(tmp_path: Path, texts: list[str]) -> Path:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": "ab"[n % 2]}) + "\n" for n, text in enumerate(texts)))
    return path


def test_own_data_whose_words_differ_in_their_vowel_signs_alone_are_kept(tmp_path: Path) -> None:
    prepared = labelled.prepare([reviews(tmp_path, PAIRS)], 0.2, 0.2)
    assert sum(map(len, prepared.splits.values())) == len(PAIRS)
    assert examples.normalised("कि, का!") == examples.normalised("कि का")


def test_the_baselines_tell_such_words_apart_and_of_english_know_the_same_terms() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, labels = ["की का", "कि के"] * 8, [0, 1] * 8
    predicted, setting = metrics.tfidf_predictions((texts, labels), (texts, labels), ["का की", "के कि"])
    assert predicted == [0, 1] and setting["terms"] == 6  # four words and two pairs
    pairs = [("की का", "one"), ("कि के", "two")]
    assert answer_baselines.retrieval(pairs, ["कि", "की"]) == ["two", "one"]
    assert answer_baselines.spaced(answer_baselines.words("कि का, don't 'x-y' …")) == "कि का, don't 'x-y' …"
    for text in ENGLISH:
        usual = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").build_tokenizer()
        assert TfidfVectorizer(token_pattern=words.word().pattern).build_tokenizer()(text) == usual(text)
        assert answer_baselines.words(text) == re.findall(r"[\w'’-]+|[^\w\s]", text)


def test_the_default_tasks_examples_are_what_they_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = [f"a {adjective} film no. {n}, isn't it?" for n in range(60) for adjective in ("good", "bad")]
    table = "".join(f'{n},"{text}",film {n // 4},{("fresh", "rotten")[n % 2]}\n' for n, text in enumerate(lines))
    source = tmp_path / "reviews.csv.bz2"
    source.write_bytes(bz2.compress(f"index,text,movie_name,category\n{table}".encode()))
    ours = prepare([source], 0.1, 0.1)
    monkeypatch.setattr(examples, "word", lambda: re.compile(r"\w+"))
    assert prepare([source], 0.1, 0.1) == ours


def test_only_own_data_are_prepared_again() -> None:
    """And their corpus is cleaned again, and what overlaps with their questions is found again."""

    def marked(recipe: Any, task: str) -> list[str]:
        own = recipe.task.model_copy(update={"name": task, "source": Source(path="own.jsonl"), "options": {}})
        made = flow.build(recipe.model_copy(update={"task": own}), lambda source: [])
        return [step.name for step in made if step.config.get("words") == "with marks"]

    default, cloze = recipes.default(), recipes.load("cloze")
    assert not [step for step in flow.build(default, lambda source: []) if "words" in step.config]
    assert marked(default, "labelled") == ["prepare_task", "shard"]
    assert marked(cloze, "spans") == ["prepare_task", "evaluate-task"]


TEST = {"id": "1", "prompt": "How do you do today?", "response": "very well thank you", "group": "g"}
OTHER = "I am fine and so are you"


def cleaned(tmp_path: Path, name: str, example: dict[str, Any], texts: list[str], **config: Any) -> list[str]:
    """The documents that are left of `texts` where an example is held out."""
    folder = tmp_path / name
    (folder / "examples").mkdir(parents=True)
    (folder / "examples" / "test.jsonl").write_text(json.dumps(example) + "\n")
    source = folder / "corpus.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    work = attempt(
        tmp_path, SHARD | {"decontaminate_min_words": 4} | config, corpus(source), {"test": folder / "examples"}
    )
    shard.run(work)
    left = [row["text"] for split in ("train", "heldout") for row in rows(tmp_path, work.outputs, split)]
    return [text for text in texts if text in left]


FILLING = [f"Line {n} is of nothing that is asked" for n in range(40)]


def test_every_right_answer_of_a_test_prompt_is_taken_out_of_the_corpus(ray_apart: None, tmp_path: Path) -> None:
    texts = [*FILLING, f"She said: {OTHER}.", "he is Very well, thank you!"]
    assert cleaned(tmp_path, "all", TEST | {"references": [TEST["response"], OTHER]}, texts) == FILLING
    assert cleaned(tmp_path, "one", TEST | {"references": [TEST["response"]]}, texts) == texts[:-1]


def test_units_of_a_corpus_stay_where_no_example_has_marks_or_other_answers(tmp_path: Path) -> None:
    def searched(example: dict[str, Any], **config: Any) -> tuple[dict[str, str], str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "test.jsonl").write_text(json.dumps(example) + "\n")
        work = attempt(tmp_path, SHARD | config, inputs={"test": folder})
        return contamination.evaluation_inputs(work.inputs)[1], shard._piece(work, []).key

    plain, key = searched(TEST | {"references": [TEST["response"]]})
    assert plain.keys() == {"test"} and searched(TEST | {"references": [TEST["response"]]}, references=True)[1] == key
    assert searched(TEST | {"references": [TEST["response"]]}, words="with marks")[1] == key
    assert searched(TEST | {"references": [OTHER]})[0].keys() == {"test", "references"}
    assert searched({"id": "1", "text": "कि का", "label": 0, "group": "g"})[0].keys() == {"test", "words"}


def test_a_corpus_is_cleaned_of_an_example_with_marks_and_of_no_other(tmp_path: Path) -> None:
    known = contamination.Contamination([" ".join(SYLLABLES)], 4)
    assert known.contains(f"राम: {', '.join(SYLLABLES)}!")
    assert not known.contains(" ".join(["कि"] * 7)), "all vowel signs alike"
    assert contamination.Contamination(["को"] * 3, 4).ignored == 3, "a word is one word"


@pytest.mark.parametrize("held", ["test", "validation", "benchmark"])
def test_every_kind_of_held_out_file_is_searched_for(held: str, tmp_path: Path) -> None:
    (tmp_path / f"{held}.jsonl").write_text(json.dumps(TEST) + "\n")
    paths, digests = contamination.evaluation_inputs(attempt(tmp_path, SHARD, inputs={held: tmp_path}).inputs)
    assert paths == (str(tmp_path / f"{held}.jsonl"),) and digests.keys() == {held}
