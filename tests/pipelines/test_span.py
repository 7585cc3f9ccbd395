"""Questions about a text: what is read, what is refused, how they are made, measured and tokenised."""

from __future__ import annotations

import ast
import json
import random
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from model import durable
from model.examples import Examples
from pipelines import flow, recipes
from pipelines.config import ConfigError
from pipelines.engine.step import Attempt
from pipelines.forms import span
from pipelines.settings import override
from pipelines.stages import compare, evaluate, prepare_task
from pipelines.tasks import cloze, cloze_questions, examples, span_metrics, spans
from pipelines.tasks.examples import SPLITS, Span
from tests.model.training_runs import finish, start
from tests.pipelines import data_attempts

NAMES = ["Ada Brook", "John Hill", "Mary Stone", "Otto Lake", "Anna Field", "Karl Wood"]
THINGS = ["bridge", "tower", "mill", "harbour", "school", "road"]


def paragraph(chance: random.Random) -> tuple[str, list[dict[str, Any]]]:
    """Who built something and when, between sentences that say less, and questions about it."""
    thing, *others = chance.sample(THINGS, 4)
    name, year = chance.choice(NAMES), str(chance.randint(1700, 1999))
    sentences = [f"Beside the {one} it was quiet all day. " for one in others]
    sentences.insert(chance.randrange(4), f"The {thing} was built by {name} in {year}. ")
    text = "".join(sentences)
    pairs = ((f"Who built the {thing}?", name), (f"When was the {thing} built?", year))
    return text, [
        {"id": "q", "question": question, "answers": [{"text": answer, "answer_start": text.index(answer)}]}
        for question, answer in pairs
    ]


def squad(path: Path, articles: int = 40, seed: int = 0) -> Path:
    """Invented questions in SQuAD's form."""
    chance = random.Random(seed)
    data = []
    for number in range(articles):
        made = [paragraph(chance) for _ in range(2)]
        data.append({"title": f"T{number}", "paragraphs": [{"context": text, "qas": asked} for text, asked in made]})
    durable.write_bytes(path, json.dumps({"version": "1.1", "data": data}).encode())
    return path


def test_squads_form_and_records_and_columns_give_the_same_questions(tmp_path: Path) -> None:
    path = squad(tmp_path / "mine.json")
    prepared = spans.prepare([path], 0.1, 0.1)
    every = [one for name in SPLITS for one in prepared.splits[name]]
    assert all(one.context[a["start"] :].startswith(a["text"]) for one in every for a in one.answers)
    sides = [{one.group for one in prepared.splits[name]} for name in SPLITS]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert set.union(*sides) == {f"T{number}" for number in range(40)}, "an article is on one side"
    for form in ("objects", "columns"):
        lines = []
        for one in every:
            answers: Any = [{"text": a["text"], "answer_start": a["start"]} for a in one.answers]
            if form == "columns":
                answers = {name: [a[name] for a in answers] for name in ("text", "answer_start")}
            lines.append({"question": one.question, "context": one.context, "answers": answers, "title": one.group})
        durable.write_bytes(tmp_path / f"{form}.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        again = spans.prepare([tmp_path / f"{form}.jsonl"], 0.1, 0.1).splits
        assert {name: set(map(str, again[name])) for name in SPLITS} == {
            name: set(map(str, prepared.splits[name])) for name in SPLITS
        }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": []}, r"bad.jsonl:1: field 'answers' is '\[\]'; it has to be a list of answers"),
        ({"answers": [{"text": "Ada"}]}, r"bad.jsonl:1: field 'answers' holds .* object with text and answer_start"),
        (
            {"answers": [{"text": "Ada", "answer_start": 3}]},
            r"bad.jsonl:1: field 'answers': 'Ada' does not stand at character 3 of the context, there is 'Bro'",
        ),
        ({"question": " "}, "bad.jsonl:1: field 'question' is empty"),
        ({"context": None}, "bad.jsonl:1: field 'context' is null; it has to be text"),
    ],
)
def test_what_cannot_be_used_is_named_by_file_line_and_field(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    record = {"question": "Who?", "context": "By Brown.", "answers": [{"text": "Brown", "answer_start": 3}]}
    durable.write_bytes(tmp_path / "bad.jsonl", (json.dumps(record | change) + "\n").encode())
    with pytest.raises(ValueError, match=said):
        spans.prepare([tmp_path / "bad.jsonl"], 0.1, 0.1)


def test_a_wrong_place_in_squads_form_is_named_by_the_way_to_it_and_mended_only_in_a_benchmark(tmp_path: Path) -> None:
    path = squad(tmp_path / "mine.json")
    content = durable.read_json(path)
    content["data"][1]["paragraphs"][0]["qas"][1]["answers"][0]["answer_start"] += 1
    durable.write_bytes(path, json.dumps(content).encode())
    with pytest.raises(ValueError, match=r"mine.json: data\[1\].paragraphs\[0\].qas\[1\]: field 'answers': .* mend"):
        spans.prepare([path], 0.1, 0.1)
    held, account = spans.benchmark([path], most=50, left_out=4)
    assert len(held) == 50 == account["benchmark"]["examples"] and account["benchmark"]["answers_moved"] == 1
    assert not {one.group for one in held} & set(account["benchmark"]["left_out"])
    durable.write_bytes(path, b'{"data": [{"paragraphs": []}]}')
    with pytest.raises(ValueError, match=r"data\[0\]: 'paragraphs' has to be a list of objects that is not empty"):
        spans.prepare([path], 0.1, 0.1)


STORY = (
    "In 1888 the engineer Ada Brook built a stone bridge over the river Lune in Lancaster, which was opened by Queen Mary. "
    "The long bridge carried about 300 wagons on each day of its first summer, and the town grew quickly beside it. "
    "When Ada Brook died in 1921, the council named a small square near the harbour after her and planted twelve trees there."
)


def corpus(folder: Path, documents: int = 60) -> Path:
    lines = [
        {"text": STORY.replace("1888", str(1700 + place)).replace("300", str(200 + place))}
        for place in range(documents)
    ]
    durable.write_bytes(folder / "corpus.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    return folder / "corpus.jsonl"


def test_a_sentence_becomes_questions_of_the_kind_that_the_answer_wants() -> None:
    sentence = "In 1888 the engineer Ada Brook built a stone bridge over the river Lune in Lancaster."
    kinds = {sentence[one.start : one.end]: one for one in cloze_questions.answers(sentence)}
    assert {text: kinds[text].kind for text in ("1888", "Ada Brook", "Lancaster", "stone bridge")} == {
        "1888": "date", "Ada Brook": "person", "Lancaster": "place", "stone bridge": "phrase",
    }  # fmt: skip
    asked = {text: cloze_questions.asked(sentence, one, random.Random(0)) for text, one in kinds.items()}
    assert asked["1888"].startswith(("when", "in what year")) and asked["Ada Brook"].startswith("who")
    assert all(question.endswith("?") and text not in question for text, question in asked.items() if question)


def test_cloze_questions_are_a_function_of_the_text_and_their_answers_stand_in_it(tmp_path: Path) -> None:
    prepared, again = (cloze.prepare([corpus(tmp_path)], 0.2, 0.2) for _ in range(2))
    assert prepared == again
    every = [one for name in SPLITS for one in prepared.splits[name]]
    assert len(every) > 60
    assert all(one.context[a["start"] :].startswith(a["text"]) for one in every for a in one.answers)
    without = [one for one in every if one.answers[0]["text"] == "Ada Brook" and one.context not in STORY]
    assert any(len(one.context) < 300 for one in without), "some are asked without the sentence that they were made of"
    assert not {one.group for one in prepared.splits["train"]} & {one.group for one in prepared.splits["test"]}


def test_a_passage_that_a_benchmark_has_too_is_never_trained_on(tmp_path: Path) -> None:
    context = "Somebody wrote: In 1703 the engineer Ada Brook built a mill."  # eight words of one passage
    question = {"question": "Who?", "id": "x", "answers": [{"text": "Somebody", "answer_start": 0}]}
    content = {"data": [{"title": "A", "paragraphs": [{"context": context, "qas": [question]}]}]}
    durable.write_bytes(tmp_path / "held.json", json.dumps(content).encode())
    prepared = cloze.prepare([corpus(tmp_path, 20)], 0.2, 0.2, benchmark_files=[tmp_path / "held.json"])
    every = [one for name in SPLITS for one in prepared.splits[name]]
    assert prepared.report["passages_like_the_benchmark"] == 1 and prepared.report["passages"] == 20
    assert not any("In 1703" in one.context for one in every) and any("In 1704" in one.context for one in every)
    assert [one.question for one in prepared.benchmark] == ["Who?"]


def test_the_metrics_are_squads_and_the_baselines_are_simple() -> None:
    asked = [
        Span(
            "1", "Who built the bridge?", "It rains. The bridge was built by Ada.", [{"text": "Ada", "start": 33}], "a"
        ),
        Span(
            "2",
            "What fell?",
            "The old mill fell.",
            [{"text": "The old mill", "start": 0}, {"text": "mill", "start": 8}],
            "b",
        ),
    ]
    assert span_metrics.scores(["ada!", "a mill"], asked, "exact_match") == [1.0, 1.0]
    assert span_metrics.scores(["by Ada", "old mill"], asked) == [pytest.approx(2 / 3), 1.0]
    report = span_metrics.report(["by Ada", "rain"], asked)
    assert report["exact_match"] == 0 and report["f1"] == pytest.approx(1 / 3, abs=1e-6) and report["groups"] == 2
    simple = span_metrics.baselines(asked, asked)
    assert (
        simple["overlap"] == ["The bridge was built by Ada.", "The old mill fell."]
        and len(set(simple["frequent"])) == 1
    )
    assert span_metrics.by_question_word(["Ada", "x"], asked)["who"]["exact_match"] == 1


def test_a_benchmark_is_measured_and_cleaned_of_and_changes_no_other_step() -> None:
    made = {step.name: step for step in flow.build(recipes.load("cloze"), lambda source: [])}
    assert "benchmark" in made["evaluate-task"].inputs and "benchmark" not in made["finetune"].inputs
    assert "benchmark_source" not in made["prepare_task"].config
    plain = recipes.load("tiny")
    assert all("benchmark" not in step.inputs for step in flow.build(plain, lambda source: []))
    with pytest.raises(ConfigError, match=r"has no benchmark_source"):
        override(plain, {"task": '{"name":"sentiment","source":{"path":"a"},"benchmark_source":{"path":"b"}}'})
    with pytest.raises(ConfigError, match=r"finds answers in a text, which model.family='gpt2' cannot"):
        override(plain, {"task": '{"name":"spans","source":{"path":"a.json"}}'})


SETTINGS = {"sequence_length": 32, "long_texts": "windows", "window_stride": 8}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared questions with a benchmark, and a small WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("span")
    sources = {
        "labelled": [source(squad(folder / "mine.json", 100))],
        "labelled_benchmark": [source(squad(folder / "held.json", 6, seed=9))],
    }
    config = {"name": "spans", "validation_fraction": 0.1, "test_fraction": 0.2, "max_examples": None}
    made = data_attempts.attempt(folder, config, sources)
    assert prepare_task.run(made)["benchmark_examples"] == 24
    return {"examples": made.outputs, "tokenizer": word_tokenizer(folder / "tokenizer"), "root": folder}


def source(path: Path) -> dict[str, Any]:
    return {"path": str(path), "sha256": durable.sha256(path), "label": "x", "size": 1, "format": "json"}


def word_tokenizer(folder: Path) -> Path:
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing

    tokenizer = BertWordPieceTokenizer()
    texts = [paragraph(random.Random(place))[0] + " who when built ?" for place in range(50)]
    tokenizer.train_from_iterator(texts, vocab_size=200, show_progress=False)
    marks = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = BertProcessing(
        *marks
    )  # what plain `transformers` puts around a question and its context
    folder.mkdir()
    durable.write_bytes(folder / "tokenizer.json", tokenizer.to_str().encode())
    special = {
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "unk_token": "[UNK]",
    }
    names = {"eos_token": "[SEP]", "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    durable.write_json(folder / "tokenizer_config.json", kind | special | names)
    return folder


def test_questions_are_tokenised_in_windows_or_cut_and_counted(prepared: dict[str, Path], tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    train = prepared["examples"] / "train.jsonl"
    counts = span.encode(train, prepared["tokenizer"], SETTINGS, tmp_path / "w.arrow")
    asked = {one.id: one for one in examples.read(train, "span")}
    rows, decoder = Examples(tmp_path / "w.arrow"), Tokenizer.from_file(str(prepared["tokenizer"] / "tokenizer.json"))
    assert counts["windows"] == len(rows) > counts["examples"] == len(asked) and counts["answers_cut"] == 0
    assert rows.spans is not None and (rows.spans[:, 1] == 0).sum() == counts["windows_without_answer"] > 0
    for place in range(len(rows)):
        first, last, _ = rows.spans[place]
        if last:
            text = decoder.decode(rows.tokens(place)[first : last + 1].tolist())
            assert text.replace(" ", "") == asked[rows[place].id].answers[0]["text"].lower().replace(" ", "")
    cut = span.encode(train, prepared["tokenizer"], {"sequence_length": 32}, tmp_path / "c.arrow")
    assert cut["answers_cut"] > 0 and cut["windows"] + cut["answers_cut"] == cut["examples"]


def test_a_question_of_more_than_half_a_window_is_cut_and_counted(prepared: dict[str, Path], tmp_path: Path) -> None:
    """[CLS] question [SEP] has at most half of the 32 tokens: 14 of the question are read, of 15 one is cut."""
    one = examples.read(prepared["examples"] / "train.jsonl", "span")[0]
    asked = [replace(one, id=str(words), question=" ".join(["who"] * words)) for words in (14, 15)]
    durable.write_bytes(tmp_path / "two.jsonl", "".join(json.dumps(asdict(one)) + "\n" for one in asked).encode())
    counts = span.encode(tmp_path / "two.jsonl", prepared["tokenizer"], SETTINGS, tmp_path / "q.arrow")
    assert counts["questions_cut"] == 1


def test_questions_need_no_mask_token(prepared: dict[str, Path], tmp_path: Path) -> None:
    """What stands around a text is what tokenizer_config.json says, as evaluation reads it."""
    folder, train = word_tokenizer(tmp_path / "plain"), prepared["examples"] / "train.jsonl"
    before = span.encode(train, folder, SETTINGS, tmp_path / "a.arrow")
    state = (folder / "tokenizer.json").read_text().replace("[MASK]", "mask").replace("[CLS]", "<s>")
    durable.write_bytes(folder / "tokenizer.json", state.encode())
    settings = durable.read_json(folder / "tokenizer_config.json")
    settings.pop("mask_token")
    with pytest.raises(ValueError, match=r"tokenizer.json has no token \[CLS\]; use a tokenizer that has \[CLS\] and"):
        span.encode(train, folder, SETTINGS, tmp_path / "b.arrow")
    durable.write_json(folder / "tokenizer_config.json", settings | {"cls_token": {"content": "<s>"}})
    assert span.encode(train, folder, SETTINGS, tmp_path / "b.arrow") == before
    rows = [Examples(tmp_path / f"{name}.arrow") for name in "ab"]
    assert all(rows[0].tokens(place).tolist() == rows[1].tokens(place).tolist() for place in range(len(rows[0])))


@pytest.fixture(scope="module")
def trained(prepared: dict[str, Path]) -> Path:
    """A small BERT that learned to find the answers: the outputs of its training, `export` among them."""
    made = attempt(
        prepared["root"], {"model": {"family": "bert"}, "train": SETTINGS}, {"examples": prepared["examples"]}
    )
    shape = {"family": "bert", "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
    made.config["model"] |= shape
    job, _ = span.training(made, prepared["tokenizer"], SETTINGS)
    from pipelines.stages.training import shape as known

    (made.scratch / "outputs").rmdir()
    (made.scratch / "checkpoints").mkdir()
    recipe = {
        "max_steps": 100,
        "global_batch_size": 32,
        "sequence_length": 32,
        "learning_rate": 5e-3,
        "warmup_steps": 10,
    }
    whole = {"tokenizer": str(prepared["tokenizer"])} | job | {
        "model": known(made, prepared["tokenizer"]) | job["model"], "train": recipe, "attempt": str(made.scratch),
        "outputs": str(made.scratch / "outputs"), "checkpoints": str(made.scratch / "checkpoints"), "threads": 2,
        "micro_batch_size": 32,
    }  # fmt: skip
    results, _ = finish(start([whole], ranks=1))
    assert results[0]["export_difference"] <= 1e-4
    return made.scratch / "outputs"


def attempt(root: Path, config: dict[str, Any], inputs: dict[str, Path]) -> Attempt:
    made = data_attempts.attempt(root, config, {}, inputs)
    made.execution = data_attempts.EXECUTION | {"device": "cpu", "threads": 2}
    return made


def test_what_learned_to_find_answers_beats_the_baselines_on_both_sets(
    prepared: dict[str, Path], trained: Path, ray_apart: None
) -> None:
    inputs = {"export": trained} | dict.fromkeys((*SPLITS, "benchmark"), prepared["examples"])
    config = {"kind": "span", "window": 32, "stride": 8, "plain": True}
    made = attempt(prepared["root"], config, inputs)
    metrics = evaluate.run(made)
    for suffix in ("", "_benchmark"):
        assert metrics[f"f1{suffix}"] > metrics[f"overlap_f1{suffix}"] and metrics[f"windowed{suffix}"] > 0
        assert metrics[f"plain_f1{suffix}"] > metrics[f"overlap_f1{suffix}"]
        assert metrics[f"f1{suffix}_low"] <= metrics[f"f1{suffix}"] <= metrics[f"f1{suffix}_high"]
    windows, plain = made.outputs / "predictions.jsonl", made.scratch / "test_plain.jsonl"
    assert windows.read_text() != plain.read_text(), "in one piece stretches have other scores"
    assert metrics["examples_benchmark"] == 24
    said = list(span.told(metrics))
    assert len(said) == 6 and "never trained on" in said[3]
    lines = [json.loads(line) for line in (made.outputs / "predictions.jsonl").read_text().splitlines()]
    contexts = {one.id: one.context for one in examples.read(prepared["examples"] / "test.jsonl", "span")}
    assert all(contexts[line["id"]][line["start"] :].startswith(line["predicted"]) for line in lines)

    theirs = {"champion": trained, "predictions": made.outputs, "test": prepared["examples"]}
    found = span.compare(attempt(prepared["root"], config, theirs), trained / "export")
    assert (found["gain"], found["low"], found["high"]) == (0, 0, 0) and not compare.decided(
        found | {"groups": 9}, 0.0
    )["better"]


def test_the_lines_of_the_model_card_find_what_the_evaluation_finds(
    prepared: dict[str, Path], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from model.evaluate_span import answer
    from pipelines import model_card

    held = examples.read(prepared["examples"] / "benchmark.jsonl", "span")[:3]
    durable.write_bytes(tmp_path / "q.jsonl", "".join(json.dumps(vars(one)) + "\n" for one in held).encode())
    job = {
        "export": str(trained / "export"),
        "questions": str(tmp_path / "q.jsonl"),
        "output": str(tmp_path / "a.jsonl"),
    }
    assert answer(job | {"threads": 2})["windowed"] == 0
    found = [json.loads(line)["predicted"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    code = model_card._LOAD["question-answering"]
    page = (Path(__file__).parents[2] / "docs" / "answers.md").read_text()  # whose code is formatted
    shown = [ast.dump(ast.parse(block)) for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    assert ast.dump(ast.parse(code)) in shown
    (line,) = (line for line in code.splitlines() if line.startswith("question, context"))
    capsys.readouterr()
    for one in held:
        exec(
            code.replace(line, f"question, context = {one.question!r}, {one.context!r}"),
            {"DIR": str(trained / "export")},
        )
    assert capsys.readouterr().out.splitlines() == found


def test_the_passages_of_a_document_are_on_one_side(tmp_path: Path) -> None:
    texts = [
        "\n\n".join(STORY.replace("1888", str(1000 + 5 * place + part)) for part in range(5)) for place in range(30)
    ]
    durable.write_bytes(tmp_path / "long.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    splits = cloze.prepare([tmp_path / "long.jsonl"], 0.2, 0.2).splits
    found = {one.group for name in SPLITS for one in splits[name]}
    assert found == {examples.identifier(text) for text in texts}


def test_a_passage_that_a_question_of_the_benchmark_repeats_is_left_out(tmp_path: Path) -> None:
    question = "Who was it that in 1703 the engineer Ada Brook built a mill for?"
    asked = {"question": question, "id": "x", "answers": [{"text": "Nobody", "answer_start": 0}]}
    content = {"data": [{"title": "A", "paragraphs": [{"context": "Nobody knows.", "qas": [asked]}]}]}
    durable.write_bytes(tmp_path / "held.json", json.dumps(content).encode())
    prepared = cloze.prepare([corpus(tmp_path, 20)], 0.2, 0.2, benchmark_files=[tmp_path / "held.json"])
    assert prepared.report["passages_like_the_benchmark"] == 1


def test_the_most_frequent_answer_is_that_of_the_training_questions_and_a_gain_is_ours_minus_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = [Span(str(n), "Who?", "Ada.", [{"text": "Ada", "start": 0}], "t") for n in range(3)]
    asked = [Span(str(n), "Who?", "Otto.", [{"text": "Otto", "start": 0}], str(n)) for n in range(3)]
    assert span_metrics.baselines(train, asked)["frequent"] == ["Ada"] * 3
    found = span_metrics.against(["Otto"] * 3, {"frequent": ["Ada"] * 3}, asked)
    assert found == {"frequent": {"gain": 1.0, "low": 1.0, "high": 1.0}}
    examples.write(examples.Prepared(dict.fromkeys(SPLITS, asked), {}), tmp_path)
    for name, text in (("predictions.jsonl", "Otto"), ("theirs.jsonl", "Ada")):
        lines = [json.dumps({"id": one.id, "predicted": text}) + "\n" for one in asked]
        durable.write_bytes(tmp_path / name, "".join(lines).encode())
    copied = (tmp_path / "theirs.jsonl").read_bytes()
    monkeypatch.setattr(span, "found", lambda made, questions, output, export: durable.write_bytes(output, copied))
    compared = span.compare(attempt(tmp_path, {}, {"predictions": tmp_path, "test": tmp_path}), tmp_path)
    assert compared == {
        "metric": "f1",
        "challenger": 1.0,
        "champion": 0.0,
        "examples": 3,
        "gain": 1.0,
        "low": 1.0,
        "high": 1.0,
    }


def test_a_corpus_is_cleaned_of_all_that_is_held_out_the_benchmark_too() -> None:
    settings = {"task": '{"name":"spans","source":{"path":"a.json"},"benchmark_source":{"path":"b.json"}}',
                "finetune": '{"max_steps":4,"global_batch_size":8,"sequence_length":32,"learning_rate":1e-4}'}  # fmt: skip
    made = {step.name: step for step in flow.build(override(recipes.load("bert_tiny"), settings), lambda source: [])}
    assert set(made["shard"].inputs) == {"validation", "test", "benchmark"}
    plain = {step.name: step for step in flow.build(recipes.load("tiny"), lambda source: [])}
    assert set(plain["shard"].inputs) == {"validation", "test"}


def test_the_probability_of_a_stretch_in_several_windows_is_that_of_all_its_places(trained: Path) -> None:
    import importlib
    from types import SimpleNamespace

    entry: Any = importlib.import_module("pipelines.pyfunc_entry").Export()
    entry.load_context(SimpleNamespace(artifacts={"export": str(trained / "export")}))
    entry.longest = 32
    words = [f"w{number}" for number in range(60)]
    word = entry.tokenizer("Ada", add_special_tokens=False)["input_ids"][-1]

    def stub(input_ids: Any, **_: Any) -> Any:
        found = 20.0 * (input_ids == word)
        return SimpleNamespace(start_logits=found, end_logits=found)

    entry.model = stub
    said = []
    for place in range(0, 60, 3):
        context = " ".join([*words[:place], "Ada", *words[place:]])
        (row,) = entry.predict(None, [json.dumps({"question": "who?", "context": context})]).itertuples(index=False)
        assert context[row.start : row.start + len(row.answer)] == row.answer
        said.append(row.score)
    assert min(said) > 0.99, "in one window or in two"
    with pytest.raises(ValueError, match="has an empty context"):
        entry.predict(None, [json.dumps({"question": "who?", "context": " "})])
