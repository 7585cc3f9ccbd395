"""The labelled tasks on inventions small enough to check by hand: what is prepared, encoded, weighted and asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model import durable
from model.examples import Examples
from pipelines import flow, recipes
from pipelines.config import FinetuneConfig
from pipelines.execution import Execution
from pipelines.forms import classification
from pipelines.recipe_checks import check_together
from pipelines.settings import override
from pipelines.sources import SourceError
from pipelines.tasks import examples, metrics, sections, sentiment_chinese, topics
from pipelines.tasks.examples import Labelled
from tests.model import tiny
from tests.model.test_importing import wordpiece
from tests.pipelines.data_attempts import attempt


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


GOOD, BAD = "这家酒店很好，房间{}干净。", "这本书{}不好看，很失望。"


def chinese(folder: Path, extra: tuple[str, str] = ("", "")) -> list[Path]:
    for name, pattern, more in (("pos.txt", GOOD, extra[0]), ("neg.txt", BAD, extra[1])):
        lines = [pattern.format("一二三四五六七八九十"[n % 10] + "很" * (n // 10)) for n in range(60)]
        (folder / name).write_text("\n".join([*lines, more]) + "\n")
    return [folder / "pos.txt", folder / "neg.txt"]


def test_chinese_reviews_are_labelled_by_their_file_and_repeated_ones_dropped(tmp_path: Path) -> None:
    repeated = GOOD.format("一").replace("，", " ")
    prepared = sentiment_chinese.prepare(chinese(tmp_path, (repeated + "\n还行", "还行！")))
    assert prepared.report["dropped"]["repeated_within_split"] == 1, "punctuation and spaces make no other review"
    assert prepared.report["dropped"]["contradicting_labels"] == 2
    assert sum(map(len, prepared.splits.values())) == 120
    for example in prepared.splits["train"]:
        assert prepared.labels[example.label] == ("positive" if "酒店" in example.text else "negative")


def test_chinese_reviews_of_other_files_or_bytes_are_refused(tmp_path: Path) -> None:
    files = chinese(tmp_path)
    with pytest.raises(
        ValueError, match=r"reads neg.txt and pos.txt, not pos.txt; give source.sample='chinese_reviews'"
    ):
        sentiment_chinese.prepare(files[:1])
    files[0].write_bytes("好\n".encode() + b"\xb2\xbb\n")
    with pytest.raises(ValueError, match=r"pos.txt:2: byte 1 of the line is not valid UTF-8"):
        sentiment_chinese.prepare(files)


def newsgroups(folder: Path, test: list[str]) -> list[Path]:
    header = "Category\tText\nd\tstring\nclass\t\n"
    train = [f"{label}\tpost {number} on {label} again" for label in ("sci.med", "sci.space") for number in range(30)]
    for name, rows in (("train", train), ("test", test)):
        (folder / f"20newsgroups-{name}.tab").write_text(header + "".join(row + "\n" for row in rows))
    return sorted(folder.glob("*.tab"))


def test_topics_keep_the_official_test_split_and_drop_its_posts_from_training(tmp_path: Path) -> None:
    test = ["sci.med\tpost 3 on sci.med again", "sci.space\tanother one"]
    prepared = topics.prepare(newsgroups(tmp_path, test), validation=0.2)
    assert sorted(example.text for example in prepared.splits["test"]) == ["another one", "post 3 on sci.med again"]
    assert len(prepared.splits["train"]) + len(prepared.splits["validation"]) == 59
    assert prepared.report["dropped"]["repeated_across_splits"] == 1 and prepared.labels == ("sci.med", "sci.space")


def test_a_share_of_the_official_test_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task.test_fraction=0.3 splits nothing off: .*official"):
        topics.prepare(newsgroups(tmp_path, ["sci.med\tone"]), validation=0.2, test=0.3)


def test_a_line_that_is_no_post_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"-test.tab:4: no class and text, with a tab between, in 'no tab here'"):
        topics.prepare(newsgroups(tmp_path, ["no tab here"]))
    with pytest.raises(ValueError, match=r"the class 'alt.void' is in no training post"):
        topics.prepare(newsgroups(tmp_path, ["alt.void\tsilence"]))


def test_sections_are_split_by_source_package_and_small_ones_left_out(tmp_path: Path) -> None:
    rows = [
        {"text": f"{kind} number {number} of {section}", "section": section, "source": f"{section}{number}"}
        for section, count in (("games", 40), ("net", 40), ("zope", 3)) for number in range(count) for kind in ("Tool", "Manual")
    ]  # fmt: skip
    path = tmp_path / "debian.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = sections.prepare([path], 0.2, 0.2)
    groups = {name: {example.group for example in part} for name, part in prepared.splits.items()}
    assert not groups["train"] & groups["test"] and not groups["train"] & groups["validation"]
    assert set.union(*groups.values()) == {f"{section}{number}" for section in ("games", "net") for number in range(40)}
    assert prepared.labels == ("games", "net") and prepared.report["small_sections"] == ["zope"]
    assert prepared.report["dropped"]["of_small_sections"] == 6
    assert sum(map(len, prepared.splits.values())) == 160


SETTINGS: dict[str, Any] = {"sequence_length": 8}


def encoded(folder: Path, tokenizer: Path, lengths: list[int], **settings: Any) -> tuple[dict[str, int], Examples]:
    """Texts of so many words, of which every third is of class 1."""
    part = [Labelled(str(n), "word " * length, int(n % 3 == 0), str(n)) for n, length in enumerate(lengths)]
    prepared = examples.Prepared({"train": part, "validation": [], "test": []}, {})
    examples.write(prepared, folder)
    counts = classification.encode(folder / "train.jsonl", tokenizer, SETTINGS | settings, folder / "examples.arrow")
    return counts, Examples(folder / "examples.arrow")


def test_long_texts_are_cut_and_counted_or_read_in_windows_that_count_once_together(
    tmp_path: Path, tokenizer: Path
) -> None:
    lengths = [3, 40, 4, 5]
    counts, whole = encoded(tmp_path, tokenizer, lengths, sequence_length=200)
    assert counts == {"examples": 4, "examples_cut": 0} and whole.weights is None
    counts, cut = encoded(tmp_path, tokenizer, lengths)
    assert counts["examples_cut"] == sum(whole.lengths > 8) and cut.lengths.max() == 8
    counts, windows = encoded(tmp_path, tokenizer, lengths, long_texts="windows")
    assert counts["examples_cut"] == 0 and counts["examples_windowed"] == sum(whole.lengths > 8)
    assert counts["windows"] == len(windows) > 4 and windows.weights is not None
    sums = {name: sum(windows.weights[i] for i in range(len(windows)) if windows[i].id == name) for name in "0123"}
    assert list(sums.values()) == pytest.approx([1.0] * 4)


@pytest.mark.parametrize("stride", [7, 8])
def test_no_token_is_passed_over_where_the_tokenizer_puts_tokens_around_texts(tmp_path: Path, stride: int) -> None:
    folder = wordpiece(tmp_path / "tokenizer")
    fields = durable.read_json(folder / "tokenizer.json") | {"truncation": None, "padding": None}
    durable.write_json(folder / "tokenizer.json", fields)
    text = " ".join("abcdefghiklmnopqrstuvw")  # all in the alphabet of the tokenizer, each a token of its own
    part = [Labelled("0", text, 0, "0")]
    examples.write(examples.Prepared({"train": part, "validation": [], "test": []}, {}), tmp_path)
    settings = SETTINGS | {"long_texts": "windows", "window_stride": stride}
    classification.encode(tmp_path / "train.jsonl", folder, settings, tmp_path / "windows.arrow")
    classification.encode(tmp_path / "train.jsonl", folder, {"sequence_length": 64}, tmp_path / "whole.arrow")
    windows, whole = Examples(tmp_path / "windows.arrow"), Examples(tmp_path / "whole.arrow").tokens(0).tolist()
    seen = {token for index in range(len(windows)) for token in windows.tokens(index).tolist()}
    assert seen == set(whole) and len(seen) > 15
    for length, lost in ((len(whole), 0), (len(whole) - 1, 1)):
        counts = classification.encode(
            tmp_path / "train.jsonl", folder, {"sequence_length": length}, tmp_path / "cut.arrow"
        )
        assert counts["examples_cut"] == lost, "what stands around a text takes its room"


def test_balanced_class_weights_count_each_class_alike(tmp_path: Path, tokenizer: Path) -> None:
    counts, found = encoded(tmp_path, tokenizer, [3] * 9, class_weights="balanced", sequence_length=64)
    assert found.weights is not None
    by_class = [sum(found.weights[i] for i in range(9) if found[i].label == label) for label in (0, 1)]
    assert by_class == pytest.approx([4.5, 4.5]) and counts == {"examples": 9, "examples_cut": 0}


def test_terms_are_characters_where_texts_have_no_spaces_and_words_elsewhere() -> None:
    assert metrics.written_without_spaces(["这家酒店很好", "Wi-Fi 也不错"])
    assert not metrics.written_without_spaces(["The hotel was fine", "“很好” means fine", "123"])
    train = ([GOOD.format(n) for n in "一二三四五六"] + [BAD.format(n) for n in "一二三四五六"], [1] * 6 + [0] * 6)
    predicted, setting = metrics.tfidf_predictions(train, train, [GOOD.format("七"), BAD.format("八")])
    assert predicted == [1, 0] and setting["terms_are"] == "1 to 3 characters"


def test_of_many_classes_the_report_names_what_is_confused_most() -> None:
    names = [f"class {number}" for number in range(58)]
    labels = [number % 58 for number in range(580)]
    predicted = [7 if label == 3 else label for label in labels]
    found = metrics.report(labels, predicted, list(map(str, labels)), 58) | metrics.by_class(labels, predicted, names)
    assert "confusion" not in found and found["most_confused"] == [{"is": "class 3", "said": "class 7", "times": 10}]
    assert found["classes"]["class 3"] == {"examples": 10, "f1": 0.0} and found["classes"]["class 1"]["f1"] == 1.0
    assert found["accuracy"] == pytest.approx(570 / 580, abs=1e-6)
    assert found["macro_f1"] == pytest.approx((56 + 2 / 3) / 58, abs=1e-6)


def test_a_champion_of_other_labels_is_compared_by_their_names_and_not_trained_on(tmp_path: Path) -> None:
    said = {"x": 0, "y": 1, "z": 2}
    assert classification.renamed(said, ["bad", "good", "so so"], ["awful", "bad", "good"]) == {"x": 1, "y": 2, "z": 3}
    export = tmp_path / "export"
    export.mkdir()
    config = {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"1": "good", "0": "bad"}}
    durable.write_json(export / "config.json", config)
    assert classification.label_names(export) == ["bad", "good"]
    durable.write_json(tmp_path / "labels.json", ["bad", "good", "so so"])
    one = attempt(tmp_path, {}, inputs={"base": tmp_path, "labels": tmp_path})
    with pytest.raises(
        SourceError, match=r"classifier of the 2 classes bad, good; the examples have the 3 classes.*start=base"
    ):
        classification.training(one, tmp_path, SETTINGS)
    durable.write_json(export / "config.json", config | {"architectures": ["GPT2LMHeadModel"]})
    assert classification.label_names(export) == []
    assert classification.label_names(tmp_path) == []  # weights of release=false have no config.json


def test_somebody_elses_classifier_of_other_labels_loses_its_head_and_that_is_said(
    tmp_path: Path, tokenizer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoded(tmp_path, tokenizer, [3, 4])
    durable.write_json(tmp_path / "labels.json", ["bad", "good"])
    (tmp_path / "export").mkdir()
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "no", "1": "maybe", "2": "yes"}}
    durable.write_json(tmp_path / "export" / "config.json", config)
    imported = attempt(tmp_path, {}, inputs=dict.fromkeys(("base", "shape", "labels", "examples"), tmp_path))
    job, counts = classification.training(imported, tokenizer, SETTINGS)
    assert job["model"] == {"num_labels": 2, "labels": ["bad", "good"]} and counts["examples"] == 2
    assert "3 classes no, maybe, yes: its head is left out, one is learned for the 2 classes bad, good" in caplog.text


def test_what_is_not_set_enters_no_fingerprint_and_what_is_set_does() -> None:
    default = recipes.default()
    assert default.finetune
    plain = {step.name: step.config for step in flow.build(default, lambda source: [])}
    assert not {"class_weights", "long_texts", "window_stride"} & set(plain["finetune"]["train"])
    assert plain["evaluate-task"] == {"kind": "classification", "version": 2} and set(plain["prepare_task"]) == {
        "name", "validation_fraction", "test_fraction", "max_examples",
    }  # fmt: skip
    finetune = default.finetune.model_copy(update={"class_weights": "balanced", "long_texts": "windows"})
    changed = {
        step.name: step.config
        for step in flow.build(default.model_copy(update={"finetune": finetune}), lambda source: [])
    }
    assert changed["finetune"]["train"]["class_weights"] == "balanced"
    assert changed["evaluate-task"] == {
        "kind": "classification", "version": 2, "window": 128, "stride": 64, "plain": True,
    }  # fmt: skip


def test_a_new_version_of_a_tasks_or_forms_code_is_in_its_own_steps_only_and_the_first_in_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def configs(name: str) -> dict[str, dict[str, Any]]:
        return {step.name: dict(step.config) for step in flow.build(recipes.load(name), lambda source: [])}

    before = {name: configs(name) for name in ("default", "topics", "translation", "cloze")}
    assert [name for name, steps in before.items() if "version" in steps["prepare_task"]] == ["translation"]
    measured = [name for name, steps in before.items() if "version" in steps["evaluate-task"]]
    assert measured == ["default", "topics", "translation"], "spans are measured as ever"
    monkeypatch.setattr(topics, "VERSION", 2, raising=False)
    after = {name: configs(name) for name in before}
    assert after["topics"].pop("prepare_task") == before["topics"].pop("prepare_task") | {"version": 2}
    assert after == before


WINDOWS = {"finetune.long_texts": "windows"}
FAR = WINDOWS | {"finetune.window_stride": "{length}"}
FRAMED = {"model.family": "bert", "tokenizer.special_tokens": "bert", "pretrain.objective": "masked_lm"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, {}),
        (WINDOWS, {}),
        (FAR, {}),
        (FAR | FRAMED, {"windows": "without_gaps"}),
        (WINDOWS | {"finetune.window_stride": "16"} | FRAMED, {}),
    ],
)
def test_only_evaluations_that_passed_over_tokens_are_made_anew(settings: dict[str, str], said: dict[str, str]) -> None:
    tiny_recipe = recipes.tiny()
    assert tiny_recipe.finetune
    length = tiny_recipe.finetune.sequence_length
    given = {name: value.replace("{length}", str(length)) for name, value in settings.items()}
    made = {step.name: step.config for step in flow.build(override(tiny_recipe, given), lambda source: [])}
    assert {name: value for name, value in made["evaluate-task"].items() if name == "windows"} == said


@pytest.mark.parametrize("name", ["sentiment_chinese", "topics", "sections"])
def test_a_tasks_recipe_is_known_by_name_and_fits_together(name: str) -> None:
    recipe = recipes.load(name)
    check_together(recipe, Execution())
    steps = {step.name: step for step in flow.build(recipe, lambda source: [{"sha256": str(source.sample)}])}
    assert recipe.task and steps["prepare_task"].config["name"] == recipe.task.name == name
    assert steps["register-task"].config["name"] == name and "labels" in steps["finetune"].inputs


def test_a_stride_that_passes_over_tokens_or_without_windows_is_refused() -> None:
    usual: dict[str, Any] = {"max_steps": 1, "global_batch_size": 1, "sequence_length": 32, "learning_rate": 1e-3}
    with pytest.raises(ValueError, match="window_stride is of windows: set long_texts=windows"):
        FinetuneConfig(**usual, window_stride=8)
    with pytest.raises(ValueError, match="window_stride=33 passes over tokens: choose at most sequence_length=32"):
        FinetuneConfig(**usual, long_texts="windows", window_stride=33)


@pytest.mark.thorough
@pytest.mark.parametrize(("task", "sample", "expected"), [
    (sentiment_chinese, "chinese_reviews", {"train": 13848, "validation": 1744, "test": 1734}),
    (topics, "newsgroups", {"train": 10104, "validation": 1158, "test": 7519}),
])  # fmt: skip
def test_the_real_data_are_what_they_were(task: Any, sample: str, expected: dict[str, int]) -> None:
    from pipelines import samples

    files = samples.fetch(sample, Path(__file__).parents[2] / ".cache" / "gptline")
    assert {name: len(part) for name, part in task.prepare(files).splits.items()} == expected


def said_by(answers: dict[str, list[int]], asked: list[dict[str, Any]]) -> Any:
    """In place of `compute`: what each export says, by the name of its folder; the jobs are kept."""

    def compute(made: Any, function: str, export: Path | None = None, **job: Any) -> dict[str, int]:
        asked.append(job)
        ids = [one.id for one in examples.read(Path(job["examples"]), "classification")]
        said = answers[export.name if export else "own"]
        lines = [json.dumps({"id": name, "predicted": label}) + "\n" for name, label in zip(ids, said, strict=True)]
        durable.write_bytes(Path(job["output"]), "".join(lines).encode())
        return {"examples": len(ids), "truncated": 0}

    return compute


def classes(folder: Path) -> dict[str, Path]:
    """Examples whose training texts teach `good`, whose validation texts are too few to choose by, and whose test texts do not."""
    texts = {
        "train": [("a good film", 1), ("a bad film", 0)] * 6,
        "validation": [("bad film", 0)],
        "test": [("good film", 1), ("bad film", 0)] * 4,
    }
    splits = {
        name: [Labelled(str(n), text, label, str(n)) for n, (text, label) in enumerate(part)]
        for name, part in texts.items()
    }
    splits["test"] = [Labelled(one.id, one.text, 1 - one.label, one.group) for one in splits["test"]]
    examples.write(examples.Prepared(splits, {}, ("bad", "good")), folder)
    return dict.fromkeys((*examples.SPLITS, "labels"), folder)


def test_a_classifier_is_measured_in_its_windows_beside_a_baseline_of_the_training_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(classification, "compute", said_by({"own": [0, 1] * 4}, asked))
    inputs = classes(tmp_path)
    reports = []
    for config in ({}, {"cross_validation": True, "window": 64, "stride": 32, "plain": True}):
        made = attempt(tmp_path, config, inputs=inputs)
        figures = classification.evaluate(made)
        assert (figures["accuracy"], figures["tfidf_accuracy"]) == (1.0, 0.0), (
            "the test labels are turned round: who knows them not is wrong"
        )
        reports.append(durable.read_json(made.outputs / "report.json"))
    assert all(one["against_tfidf"]["accuracy_gain"] == 1.0 for one in reports)
    simple = [one["tfidf_logistic_regression"] for one in reports]
    assert "validation_accuracy" in simple[0] and "cross_validation_accuracy" in simple[1]
    assert [(job.get("max_length"), job.get("stride")) for job in asked] == [(None, None), (64, 32), (None, None)]
    assert "plain" not in reports[0] and reports[1]["plain"] == reports[1]["model"]
    assert (figures["plain_accuracy"], figures["plain_truncated"]) == (1.0, 0)


def test_a_challenger_gains_what_it_is_right_about_and_a_champions_labels_are_known_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = classes(tmp_path) | {"predictions": tmp_path}
    truth = [one.label for one in examples.read(tmp_path / "test.jsonl", "classification")]
    lines = [json.dumps({"id": str(n), "predicted": label}) + "\n" for n, label in enumerate(truth)]
    durable.write_bytes(tmp_path / "predictions.jsonl", "".join(lines).encode())
    champion = tmp_path / "champion"
    champion.mkdir()
    durable.write_json(
        champion / "config.json",
        {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "good", "1": "bad"}},
    )
    for said, gain in (([1 - label for label in truth], 0.0), (truth, 1.0)):
        monkeypatch.setattr(classification, "compute", said_by({"champion": said}, []))
        found = classification.compare(attempt(tmp_path, {}, inputs=inputs), champion)
        assert (found["challenger"], found["champion"], found["gain"]) == (1.0, 1.0 - gain, gain)
