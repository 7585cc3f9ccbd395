"""The tasks that answer, end to end on inventions: data in, a trained export out, measured beside its baselines."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model import durable
from model.examples import Examples
from model.export import write_own
from model.hf import from_hugging_face
from pipelines import harness, inspection
from pipelines.engine.record import RECORD, Record, to_json
from pipelines.engine.step import Attempt, Damaged, resolve
from pipelines.engine.units import UnitFile
from pipelines.execution import Execution
from pipelines.forms import form, replies, reply_ngrams, text
from pipelines.harness_data import Made
from pipelines.model_card import Card
from pipelines.package import build_package
from pipelines.stages import compare, evaluate
from pipelines.tasks import dialogue, examples, generation, generation_metrics, questions, translation
from pipelines.tasks.examples import SPLITS
from tests import alone
from tests.model.training_runs import finish, start
from tests.pipelines import data_attempts
from tests.pipelines.inventions import NUMBERS, WORDS, conversations, descriptions, lines, story
from tests.pipelines.test_tokenizer import train as train_tokenizer

SHAPE = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
STEPS = {"response": 600, "dialogue": 60, "text": 60}


def groups(part: list[Any]) -> set[str]:
    return {example.group for example in part}


def test_translations_are_split_by_source_package_and_no_prompt_is_on_two_sides(tmp_path: Path) -> None:
    splits = translation.prepare(descriptions(tmp_path), 0.1, 0.1).splits
    assert not groups(splits["train"]) & groups(splits["test"])
    assert set.union(*map(groups, splits.values())) <= {f"package{number}" for number in range(80)}
    prompts = [example.prompt for name in SPLITS for example in splits[name]]
    assert len(prompts) == len(set(prompts)) > 200


def test_lines_are_aligned_where_both_descriptions_have_as_many_and_counted_where_not(tmp_path: Path) -> None:
    more = [
        {"source": "x", "text": "a tool\nfirst words\n" + "word " * 13, "it": "uno\nprime parole\nfine"},
        {"source": "y", "text": "a tool\nmore", "it": "solo"},
        {"source": "z", "text": "no translation"},
        {"source": "w", "text": "two equal\n\nand more\nend", "it": "two equal\n\n \nfine"},
    ]
    path = descriptions(tmp_path)[0]
    lines(tmp_path / "more.jsonl", more)
    prepared = translation.prepare([path, tmp_path / "more.jsonl"], 0.1, 0.1)
    pairs = {(one.prompt, one.response) for name in SPLITS for one in prepared.splits[name]}
    assert {("a tool", "uno"), ("first words", "prime parole")} <= pairs
    dropped = prepared.report["dropped"]
    assert (dropped["untranslated"], dropped["not_aligned"], dropped["longer"]) == (1, 1, 1)
    assert (dropped["not_changed"], dropped["empty"]) == (1, 2)
    with pytest.raises(ValueError, match="no record has a description in 'fr'"):
        translation.prepare([path], 0.1, 0.1, language="fr")


def test_every_turn_but_the_first_is_a_reply_once_and_both_views_are_on_one_side(tmp_path: Path) -> None:
    prepared = dialogue.prepare(conversations(tmp_path), 0.2, 0.2)
    sides = {name: groups(prepared.splits[name]) for name in SPLITS}
    assert not sides["train"] & sides["test"] and not sides["train"] & sides["validation"]
    assert set.union(*sides.values()) <= {f"c{number}" for number in range(80)}, "a view has no group of its own"
    records = [json.loads(line) for line in (tmp_path / "chitchat.jsonl").read_text().splitlines()]
    long = [record for record in records if len(record["turns"]) >= 4]
    replies = sorted(
        turn["content"]
        for name in SPLITS
        for one in prepared.splits[name]
        for turn in one.messages
        if turn["role"] == "assistant"
    )
    assert replies == sorted(turn for record in long for turn in record["turns"][1:])
    assert prepared.report["dropped"]["short"] == len(records) - len(long)


def test_questions_keep_all_right_answers_and_name_the_line_that_has_none(tmp_path: Path) -> None:
    records = [
        {"question": f"how many are {word}?", "answers": [str(place), word]} for place, word in enumerate(NUMBERS * 9)
    ]
    for place, record in enumerate(records):
        record["question"] += f" {place}"
    splits = questions.prepare(lines(tmp_path / "q.jsonl", records), 0.2, 0.2).splits
    one = splits["train"][0]
    assert one.response == one.references[0] and len(one.references) == 2
    records[4]["answers"] = []
    with pytest.raises(ValueError, match=r"q.jsonl:5: field 'answers' is"):
        questions.prepare(lines(tmp_path / "q.jsonl", records), 0.2, 0.2)


def test_documents_are_held_out_by_stretches_of_a_text(tmp_path: Path) -> None:
    splits = generation.prepare(story(tmp_path), 0.2, 0.2, document_bytes=300).splits
    assert not groups(splits["train"]) & groups(splits["test"])
    whole = (tmp_path / "story.txt").read_text()
    assert all(one.text in whole and len(one.text.encode()) <= 300 for name in SPLITS for one in splits[name])
    inside = sorted((whole.index(one.text), one.group) for name in SPLITS for one in splits[name])
    stretches = [len(list(run)) for _, run in itertools.groupby(group for _, group in inside)]
    assert (
        len(stretches) == len({group for _, group in inside})
        and max(stretches) == 4
        and sum(stretches) > 3 * len(stretches)
    )


EXECUTION = data_attempts.EXECUTION | {"device": "cpu", "threads": 2}


def attempt(root: Path, config: dict[str, Any], inputs: dict[str, Path]) -> Attempt:
    made = data_attempts.attempt(root, config, {}, inputs)
    made.execution = EXECUTION
    return made


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The examples of a task of each form, and a tokenizer."""
    folder = tmp_path_factory.mktemp("answering")
    made = {
        "response": translation.prepare(descriptions(folder), 0.1, 0.1),
        "dialogue": dialogue.prepare(conversations(folder), 0.2, 0.2),
        "text": generation.prepare(story(folder), 0.2, 0.2, document_bytes=300),
    }
    for name, one in made.items():
        (folder / name).mkdir()
        examples.write(one, folder / name)
    return {name: folder / name for name in made} | {"tokenizer": train_tokenizer(folder, WORDS)[0], "root": folder}


@pytest.fixture(scope="module")
def exports(prepared: dict[str, Path]) -> dict[str, Path]:
    """What training makes of each form's job: the folder that holds `export`."""
    jobs = {}
    for name, steps in STEPS.items():
        made = attempt(prepared["root"], {}, {"examples": prepared[name]})
        job, counts = form.of(name).training(made, prepared["tokenizer"], {"sequence_length": 32})
        assert counts["learned_tokens"] > 0
        facts = durable.read_json(prepared["tokenizer"] / "tokenizer.json")
        size = max([*facts["model"]["vocab"].values(), *(token["id"] for token in facts["added_tokens"])]) + 1
        (made.scratch / "outputs").rmdir()
        jobs[name] = {"tokenizer": str(prepared["tokenizer"])} | job | {
            "model": SHAPE | {"vocab_size": size, "eot_token_id": facts["model"]["vocab"]["<|endoftext|>"]},
            "train": {
                "max_steps": steps, "global_batch_size": 16, "sequence_length": 32, "learning_rate": 1e-2, "warmup_steps": 5,
            },
            "attempt": str(made.scratch), "outputs": str(made.scratch / "outputs"), "micro_batch_size": 16,
            "checkpoints": str(made.scratch / "checkpoints"), "threads": 2,
        }  # fmt: skip
        (made.scratch / "checkpoints").mkdir()
    results, _ = finish(start(list(jobs.values()), ranks=1))
    assert all(result["stopped"] is None for result in results)
    return {name: Path(job["outputs"]) for name, job in jobs.items()}


@pytest.fixture(scope="module")
def measured(prepared: dict[str, Path], exports: dict[str, Path], ray_apart: None) -> dict[str, Attempt]:
    """Each export evaluated by the stage's own function."""
    found = {}
    for name, folder in exports.items():
        inputs = {"export": folder} | dict.fromkeys(SPLITS, prepared[name])
        found[name] = attempt(prepared["root"], {"kind": name}, inputs | ({"base": folder} if name == "text" else {}))
        found[name].metrics.update(evaluate.run(found[name]))
    return found


def test_a_translator_beats_the_source_and_learns_what_the_dictionary_knows(measured: dict[str, Attempt]) -> None:
    m = measured["response"].metrics
    assert m["copy_exact_match"] == 0 and m["dictionary_exact_match"] == 1, "the invention is word by word"
    assert m["chrf"] > m["copy_chrf"] + 25 and m["bleu"] > m["copy_bleu"] + 10 and m["f1"] > m["frequent_f1"] + 0.3
    assert m["perplexity"] < m["trigram_perplexity"] < m["unigram_perplexity"]
    assert m["chrf_low"] <= m["chrf"] <= m["chrf_high"]
    (report,) = [durable.read_json(measured["response"].outputs / "report.json")]
    assert "version:2.6" in report["model"]["bleu_signature"] and report["against"]["copy"]["f1"]["low"] > 0
    assert report["against"]["copy"]["chrf"]["low"] > 0 and report["against"]["trigram"]["perplexity"]["high"] < 0
    assert 200 < m["dictionary_pairs"] <= 400


def test_a_dialogue_model_finds_the_replies_more_probable_than_n_grams_do(measured: dict[str, Attempt]) -> None:
    m = measured["dialogue"].metrics
    assert 1 < m["perplexity"] < m["trigram_perplexity"] < m["unigram_perplexity"]
    assert 0 < m["distinct_2"] <= 1 and m["asked"] > 10
    samples = durable.read_json(measured["dialogue"].outputs / "samples.json")
    assert {"messages", "reply", "model", "retrieval"} <= samples[0].keys() and len(samples) == m["asked"]


def test_a_writer_is_measured_beside_n_grams_its_base_and_the_authors(measured: dict[str, Attempt]) -> None:
    m = measured["text"].metrics
    assert m["base_bits_per_byte"] == m["bits_per_byte"] < m["unigram_bits_per_byte"]
    assert m["original_distinct_1"] > 0 and m["repetition"] >= 0 and 0 < m["asked"] <= m["examples"]
    assert durable.read_json(measured["text"].outputs / "samples.json")[0].keys() >= {
        "prompt",
        "model",
        "trigram",
        "original",
    }


@pytest.mark.parametrize("name", STEPS)
def test_predictions_name_each_test_example_and_metrics_are_numbers(
    measured: dict[str, Attempt], prepared: dict[str, Path], name: str
) -> None:
    done = measured[name]
    said = [json.loads(line) for line in (done.outputs / "predictions.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (prepared[name] / "test.jsonl").read_text().splitlines()]
    assert [line["id"] for line in said] == [line["id"] for line in asked]
    assert all(isinstance(value, int | float) for value in done.metrics.values())
    assert form.of(name).figure(done.metrics) and list(form.of(name).told(done.metrics))


@pytest.mark.parametrize("name", STEPS)
def test_a_challenger_that_is_the_champion_gains_nothing(
    measured: dict[str, Attempt], exports: dict[str, Path], prepared: dict[str, Path], name: str
) -> None:
    made = attempt(prepared["root"], {"kind": name}, {"predictions": measured[name].outputs, "test": prepared[name]})
    found = form.of(name).compare(made, exports[name] / "export")
    assert found["challenger"] == found["champion"] == pytest.approx(measured[name].metrics["bits_per_byte"], abs=1e-6)
    assert found["gain"] == 0 and not compare.decided(found | {"groups": 9}, 0.0)["better"]


def test_evaluating_again_gives_the_same_bytes(
    measured: dict[str, Attempt], exports: dict[str, Path], prepared: dict[str, Path]
) -> None:
    inputs = {"export": exports["response"]} | dict.fromkeys(SPLITS, prepared["response"])
    again = attempt(prepared["root"], {"kind": "response"}, inputs)
    evaluate.run(again)
    for name in ("metrics.json", "report.json", "predictions.jsonl"):
        assert durable.sha256(again.outputs / name) == durable.sha256(measured["response"].outputs / name)


@pytest.mark.parametrize("name", STEPS)
def test_weights_that_are_released_nowhere_are_measured_as_their_export_is(
    measured: dict[str, Attempt], exports: dict[str, Path], prepared: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """With release=false a training step leaves weights/ in place of export/, and the figures are the same."""
    export = exports[name] / "export"
    write_own(tmp_path / "weights", *from_hugging_face(export), tokenizer=export)
    inputs = (
        {"export": tmp_path} | dict.fromkeys(SPLITS, prepared[name]) | ({"base": tmp_path} if name == "text" else {})
    )
    found = evaluate.run(attempt(prepared["root"], {"kind": name}, inputs))
    assert found == pytest.approx(measured[name].metrics, abs=1e-3)


@pytest.fixture
def held_out(prepared: dict[str, Path]) -> Callable[[str, str], Made]:
    """The examples of a form as the finished step that a version's manifest would name."""

    def found(kind: str, task: str) -> Made:
        folder = prepared["root"] / "steps" / f"prepare_task-{kind}"
        outputs = [f"{folder.relative_to(prepared['root'])}/outputs/{name}.jsonl" for name in SPLITS]
        if not folder.exists():
            shutil.copytree(prepared[kind], folder / "outputs")
            files = [UnitFile(path, 0, durable.sha256(prepared["root"] / path)) for path in outputs]
            made = Record("prepare_task", "prepare_task", 1, "", {}, {}, files, {}, {}, {}, {}, "", "", 0.0, "")
            durable.write_bytes(folder / RECORD, to_json(made))
        return Made(prepared["root"], {"prepare_task": folder}, task, task, task)

    return found


@pytest.mark.thorough  # importing lm-eval twice takes a minute
@pytest.mark.parametrize(("name", "task"), [("response", "translation"), ("dialogue", "dialogue")])
def test_lm_eval_finds_the_figures_of_evaluation(
    measured: dict[str, Attempt], exports: dict[str, Path], held_out: Callable[[str, str], Made], name: str, task: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    execution = Execution(work=str(tmp_path), workers=2, device="cpu")
    found = list(harness.evaluate(execution, held_out(name, task), exports[name] / "export", [task], tmp_path))
    assert {one.metric for one in found} >= {"response": {"bleu", "f1"}, "dialogue": {"perplexity"}}[name]
    for one in found:
        assert one.agrees and not one.left_out, one
        assert one.ours == pytest.approx(measured[name].metrics[one.metric], rel=1e-5)


def test_changed_test_data_are_damage(held_out: Callable[[str, str], Made], prepared: dict[str, Path]) -> None:
    made = held_out("text", "generation")
    (made.folders["prepare_task"] / "outputs" / "test.jsonl").write_text("")
    with pytest.raises(Damaged, match=r"test\.jsonl"):
        made.read("prepare_task", "test.jsonl")


@pytest.fixture(scope="module")
def packages(measured: dict[str, Attempt], exports: dict[str, Path], prepared: dict[str, Path]) -> dict[str, Path]:
    """Each export as it is registered, with a card."""
    for name, folder in exports.items():
        said, metrics = form.of(name), measured[name].metrics
        card = Card(name=name, task=said.PIPELINE, chat=said.CHAT, summary=said.SUMMARY, metrics=metrics)
        build_package(folder / "export", folder / "package", card)
    return {name: folder / "package" for name, folder in exports.items()}


def test_plain_transformers_answers_what_evaluation_says_where_we_are_not_installed(
    measured: dict[str, Attempt], packages: dict[str, Path], prepared: dict[str, Path], tmp_path: Path
) -> None:
    said = [json.loads(line) for line in (measured["response"].outputs / "predictions.jsonl").read_text().splitlines()]
    samples = durable.read_json(measured["dialogue"].outputs / "samples.json")
    said, samples = said[:12], [*samples[:8], *sorted(samples, key=lambda one: -len(str(one["messages"])))[:4]]
    how = {"do_sample": False, "handle_long_generation": "hole"}
    how_long = {name: how | {"max_new_tokens": measured[name].metrics.get("max_new_tokens")} for name in measured}
    documents = [one.text[:40] for one in examples.read(prepared["text"] / "test.jsonl", "text")[:4]]

    def question(name: str, inputs: list[Any], **more: Any) -> alone.Question:
        return alone.Question("text-generation", str(packages[name]), inputs, how_long[name] | more)

    chats, plain, replies, texts = alone.ask(
        [
            question("response", [[{"role": "user", "content": one["prompt"]}] for one in said]),
            question("response", [one["prompt"] + "\n" for one in said], return_full_text=False),
            question("dialogue", [one["messages"] for one in samples]),
            question("text", documents, return_full_text=False, max_new_tokens=10),
        ],
        tmp_path,
    )
    assert [chat[0]["generated_text"][-1]["content"].strip() for chat in chats] == [one["predicted"] for one in said]
    assert [text[0]["generated_text"].strip() for text in plain] == [one["predicted"] for one in said]
    for reply, one in zip(replies, samples, strict=True):
        assert reply[0]["generated_text"][:-1] == one["messages"]
        assert reply[0]["generated_text"][-1]["content"].strip() == one["model"]
    job = {"export": str(packages["text"]), "prompts": documents, "max_new_tokens": 10, "seed": 0, "temperature": 0.0}
    assert [text[0]["generated_text"] for text in texts] == resolve("model.generate:generate")(job | {"threads": 2})


def test_the_cards_code_runs_as_it_stands_where_we_are_not_installed(packages: dict[str, Path], tmp_path: Path) -> None:
    asked = "one two three " * 20  # longer than the window
    codes = []
    for name in ("response", "dialogue"):
        code, _ = alone.card_code(packages[name])
        codes += [f"DIR = {str(packages[name])!r}\n{text}\nprint('--')" for text in (code, code.replace("...", asked))]
    said = alone.run("\n".join(codes), tmp_path).split("--\n")
    assert len(said) == len(codes) + 1 and said[1].strip() and said[3].strip()
    assert asked.strip() not in "".join(said)


def test_the_package_s_own_entry_replies_to_a_text_and_to_turns(exports: dict[str, Path]) -> None:
    import importlib
    from types import SimpleNamespace

    entry: Any = importlib.import_module("pipelines.pyfunc_entry").Export()
    entry.load_context(SimpleNamespace(artifacts={"export": str(exports["dialogue"] / "export")}))
    turns = [{"role": "user", "content": "one it is 5"}, {"role": "assistant", "content": "two it is 5"}]
    turns += [{"role": "user", "content": "three it is 5"}]
    alone, several = entry.predict(None, ["one it is 5", json.dumps(turns)], {"max_new_tokens": 6})
    assert alone and several and "one it is 5" not in alone
    assert entry.predict(None, [json.dumps(turns[:1])], {"max_new_tokens": 6}) == [alone]


def test_make_generate_asks_a_model_with_a_chat_template_as_it_learned(
    packages: dict[str, Path], tmp_path: Path
) -> None:
    import mlflow

    prompt = "one it is 5"
    (reply,) = mlflow.pyfunc.load_model(str(packages["response"])).predict([prompt], params={"max_new_tokens": 8})
    execution = Execution(registry=str(tmp_path / "registry"))
    said = inspection.continued(execution, str(packages["response"]), prompt, 8, seed=0, temperature=0.0)
    assert said == f"{prompt}\n{reply}" and reply


def test_mlflow_lets_a_model_say_as_much_as_its_evaluation_did(
    measured: dict[str, Attempt], packages: dict[str, Path]
) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model(str(packages["dialogue"]))
    samples = durable.read_json(measured["dialogue"].outputs / "samples.json")[:8]
    (default,) = [one.default for one in model.metadata.signature.params.params if one.name == "max_new_tokens"]
    assert default == measured["dialogue"].metrics["max_new_tokens"]
    assert model.predict([json.dumps(one["messages"]) for one in samples]) == [one["model"] for one in samples]


def test_a_line_of_several_packages_is_asked_once_with_all_its_translations_and_nearest_to_the_test_side(
    tmp_path: Path,
) -> None:
    records = [{"source": f"p{place}", "text": "a tool", "it": ("uno", "due")[place % 2]} for place in range(40)]
    splits = translation.prepare([*descriptions(tmp_path), *lines(tmp_path / "more.jsonl", records)], 0.2, 0.2).splits
    (one,) = [one for name in SPLITS for one in splits[name] if one.prompt == "a tool"]
    assert one in splits["test"] and one.references == ["due", "uno"]


def test_baselines_know_the_training_examples_alone(measured: dict[str, Attempt], prepared: dict[str, Path]) -> None:
    said = [json.loads(line) for line in (measured["response"].outputs / "predictions.jsonl").read_text().splitlines()]
    known = {one.response for one in examples.read(prepared["response"] / "train.jsonl", "response")}
    assert {line["retrieval"] for line in said} | {line["frequent"] for line in said} <= known
    turns = [one.messages for one in examples.read(prepared["dialogue"] / "train.jsonl", "dialogue")]
    replies = {turn["content"] for messages in turns for turn in messages if turn["role"] == "assistant"}
    samples = durable.read_json(measured["dialogue"].outputs / "samples.json")
    assert {one["retrieval"] for one in samples} <= replies


def test_n_grams_are_taught_by_the_training_examples_alone(
    exports: dict[str, Path], prepared: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = {}

    def learned(conversations: Any, *_: Any) -> Any:
        taught[len(taught)] = [one.id for one in conversations]
        return {}

    monkeypatch.setattr(reply_ngrams, "tables", learned)
    monkeypatch.setattr(replies, "compute", lambda *_, **job: [(1.0, 1)] * len(Examples(Path(job["examples"]))))
    monkeypatch.setattr(replies, "answered", lambda *_: (_ for _ in ()).throw(InterruptedError))
    for name in ("response", "dialogue"):
        made = attempt(prepared["root"], {}, {"export": exports[name]} | dict.fromkeys(SPLITS, prepared[name]))
        with pytest.raises(InterruptedError):
            form.of(name).evaluate(made)
    assert list(taught.values()) == [
        [one.id for one in examples.read(prepared[name] / "train.jsonl", name)] for name in ("response", "dialogue")
    ]


def test_a_document_is_read_in_windows_that_predict_each_of_its_tokens_once() -> None:
    for size in range(2, 40):
        row = list(range(size))
        for length in (2, 7, 16):
            windows = text.windows(row, length)
            assert [token for one in windows for token in one[1:]] == row[1:] and max(map(len, windows)) <= length
            assert all(later[0] == one[-1] for one, later in itertools.pairwise(windows))


def test_a_base_is_measured_by_its_own_weights_and_a_text_by_its_bytes(
    exports: dict[str, Path], prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Done(Exception):
        pass

    def computed(made: Attempt, function: str, export: Path, **job: Any) -> Any:
        return [(10.0 if "base" in str(export) else 20.0, 1)] * len(Examples(Path(job["examples"])))

    def figures(nats: Any, counts: Any, sizes: Any, *_: Any) -> Any:
        seen.append((nats, sizes))
        if len(seen) == 2:
            raise Done
        return {}

    seen: list[Any] = []
    monkeypatch.setattr(text, "compute", computed)
    monkeypatch.setattr(generation_metrics, "likelihood", figures)
    shutil.copytree(exports["text"], tmp_path / "base")
    wide = [examples.Text("a", "uno è due", "a")]
    examples.write(examples.Prepared(dict.fromkeys(SPLITS, wide), {}), tmp_path)
    inputs = {"export": exports["text"], "base": tmp_path / "base"} | dict.fromkeys(SPLITS, tmp_path)
    with pytest.raises(Done):
        text.evaluate(attempt(prepared["root"], {}, inputs))
    (ours, sizes), (theirs, _) = seen
    assert 2 * theirs[0] == ours[0] > 0 and sizes == [len("uno è due".encode())]
