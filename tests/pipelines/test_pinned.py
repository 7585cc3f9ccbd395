"""A pinned tokenizer: whatever its tokenizer.json says of cutting and filling up, texts are taken whole and as they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model import durable, export, vocabulary
from model.examples import Examples
from pipelines import chat, recipes, sentence_marks, tokenizer_files
from pipelines.config import ConfigError, Recipe, TokenizerConfig
from pipelines.encoding import Encoder
from pipelines.engine.digests import Digests
from pipelines.engine.plan import plan
from pipelines.engine.record import RECORD, Record, to_json
from pipelines.engine.step import Planned, Step
from pipelines.engine.units import UnitFile
from pipelines.execution import Execution
from pipelines.forms import classification, dialogue, span, text
from pipelines.recipe_checks import check_together
from pipelines.sources import SourceError
from pipelines.stages import pretrain, train_tokenizer
from pipelines.stages.train_tokenizer_work import copy_pinned
from pipelines.tasks import examples
from pipelines.tasks.examples import Dialogue, Labelled, Span, Text
from tests.model import tiny
from tests.pipelines.data_attempts import attempt
from tests.pipelines.test_sentences import TEXTS, wordpiece
from tests.pipelines.test_tokenize import arrow

LONG = "".join(TEXTS[0]) * 4
SETTINGS: dict[str, Any] = {"sequence_length": 200}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece tokenizer with [CLS] and [SEP] around texts, as BERT's."""
    from tokenizers import Tokenizer, processors

    folder = wordpiece(tmp_path_factory.mktemp("whole") / "tokenizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def cutting(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a sentence encoder leaves it (all-MiniLM-L6-v2 does with 128): every text in 16 tokens."""
    from tokenizers import Tokenizer

    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("cutting") / "tokenizer"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


FORMS: dict[str, tuple[Callable[..., dict[str, int]], list[Any]]] = {
    "classification": (
        classification.encode,
        [Labelled("a", "The end", 0, "a"), Labelled("b", LONG, 1, "b")],
    ),
    "text": (text.encode, [Text("a", "The end", "a"), Text("b", LONG, "b")]),
    "span": (
        span.encode,
        [Span("a", "How are you?", LONG, [{"text": "How are you", "start": LONG.rindex("How are you")}], "a")],
    ),
    "dialogue": (
        dialogue.encode,
        [Dialogue("a", [{"role": "user", "content": "How?"}, {"role": "assistant", "content": LONG}], "a")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_examples_are_neither_cut_nor_filled_up_by_a_tokenizer_that_says_so(
    form: str, whole: Path, cutting: Path, tmp_path: Path
) -> None:
    encode, train = FORMS[form]
    examples.write(examples.Prepared({"train": train, "validation": [], "test": []}, {}), tmp_path)
    found = []
    for folder in (whole, cutting):
        counts = encode(tmp_path / "train.jsonl", folder, SETTINGS, tmp_path / "examples.arrow")
        rows = Examples(tmp_path / "examples.arrow")
        found.append((counts, [rows.tokens(index).tolist() for index in range(len(rows))]))
    assert found[0] == found[1] and max(map(len, found[1][1])) > 80


def test_documents_and_their_sentences_are_whole(whole: Path, cutting: Path) -> None:
    documents = ["The end", LONG]
    encoded = [
        Encoder(folder, tokenizer_files.tokenizer_facts(folder)).encode(arrow(documents)) for folder in (whole, cutting)
    ]
    assert encoded[0].tokens.tolist() == encoded[1].tokens.tolist()
    marks = [
        sentence_marks.mark(arrow(documents), one.tokens, one.offsets, folder).tolist()
        for one, folder in zip(encoded, (whole, cutting), strict=True)
    ]
    assert marks[0] == marks[1] and len(marks[1]) > 8


def test_prompts_are_whole(whole: Path, cutting: Path) -> None:
    asked = [{"role": "user", "content": LONG}]
    assert chat.Chat(cutting).prompt(asked) == chat.Chat(whole).prompt(asked)


def pinned_bert(folder: Path) -> Recipe:
    """A BERT that is pre-trained with the tokenizer in a folder."""
    tokenizer = TokenizerConfig(pinned=str(folder), digest="0" * 64)
    return Recipe.model_validate(dict(recipes.load("bert_tiny")) | {"tokenizer": tokenizer})


def test_a_berts_pinned_tokenizer_without_its_special_tokens_is_refused_when_the_recipe_is_read(
    whole: Path, tmp_path: Path
) -> None:
    check_together(pinned_bert(whole), Execution())
    check_together(pinned_bert(tmp_path / "of another host"), Execution())
    plain = tiny.write_tokenizer(tmp_path / "plain")
    with pytest.raises(
        ConfigError, match=r"tokenizer.pinned: .*plain/tokenizer.json has no \[PAD\], \[CLS\], \[SEP\], \[MASK\]"
    ):
        check_together(pinned_bert(plain), Execution())
    check_together(
        Recipe.model_validate(dict(recipes.tiny()) | {"tokenizer": pinned_bert(plain).tokenizer}), Execution()
    )
    (plain / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.pinned: "):
        check_together(pinned_bert(plain), Execution())


@pytest.mark.parametrize("said", [{"eos_token": "<|endoftext|>"}, {"eos_token": {"content": "a"}}, {}])
def test_a_berts_pinned_tokenizer_that_ends_documents_otherwise_is_refused_before_training(
    whole: Path, tmp_path: Path, said: dict[str, Any]
) -> None:
    """The export would be refused, after all of it: a BERT's end of text is its tokenizer's [SEP]."""
    from tokenizers import Tokenizer

    folder = Path(shutil.copytree(whole, tmp_path / "tokenizer"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    durable.write_json(folder / "tokenizer_config.json", said)
    message = r'tokenizer ends documents with .*, and a BERT\'s end with \[SEP\]; say "eos_token": "\[SEP\]" in its'
    with pytest.raises(ConfigError, match=f"tokenizer.pinned: .*{message}"):
        check_together(pinned_bert(folder), Execution())
    recipe = pinned_bert(folder)
    assert recipe.model and recipe.pretrain
    config = {"model": recipe.model.model_dump(mode="json"), "train": recipe.pretrain.model_dump(mode="json")}
    with pytest.raises(SourceError, match=message):
        pretrain.run(attempt(tmp_path, config, {}, {"tokenizer": tmp_path}))
    durable.write_json(folder / "tokenizer_config.json", {"eos_token": "[SEP]"})
    check_together(recipe, Execution())


def test_a_chat_template_goes_with_its_tokenizer_into_the_copy_and_the_export(tmp_path: Path) -> None:
    """In the file of its own that `transformers` gives it today."""
    from transformers import AutoTokenizer

    from model import heads

    brought = "{% for message in messages %}<{{ message['content'] }}>{{ eos_token }}{% endfor %}"
    tokenizer = AutoTokenizer.from_pretrained(tiny.write_tokenizer(tmp_path / "plain"))
    tokenizer.chat_template = brought
    tokenizer.save_pretrained(tmp_path / "pinned")
    assert (tmp_path / "pinned" / vocabulary.TEMPLATE_FILE).is_file()
    (tmp_path / "copy").mkdir()
    digest = durable.sha256(tmp_path / "pinned" / "tokenizer.json")
    copy_pinned({"pinned": str(tmp_path / "pinned"), "folder": str(tmp_path / "copy"), "config": {"digest": digest}})
    made = chat.with_template(tmp_path / "copy", tmp_path / "rendered", several_turns=True)
    assert chat.template_of(tmp_path / "copy") == chat.template_of(made) == brought
    config = tiny.config(eot_token_id=0)
    export.write_export(tmp_path / "export", config, heads.build(config).state_dict(), tmp_path / "copy")
    assert AutoTokenizer.from_pretrained(tmp_path / "export").chat_template == brought


def test_a_copy_is_made_again_where_the_same_tokenizer_ends_documents_otherwise(tmp_path: Path) -> None:
    """Though neither its tokenizer.json nor the step's fingerprint changed, and the recipe may name another folder by now."""
    root, folder = tmp_path / "work", tiny.write_tokenizer(tmp_path / "pinned")
    digest, digests = durable.sha256(folder / "tokenizer.json"), Digests(root)

    def stands(pinned: Path) -> Planned:
        sources = {"pinned": [{"path": str(pinned), "sha256": digest, "label": "pinned", "size": 0}]}
        step = Step("train_tokenizer", train_tokenizer.STAGE, {"digest": digest}, {}, sources)
        return plan(step, {}, root, digests, {"work": str(root)})

    never = stands(folder)
    assert never.folder and never.fingerprint
    copy = never.folder / "outputs" / "tokenizer"
    copy.mkdir(parents=True)
    copy_pinned({"pinned": str(folder), "folder": str(copy), "config": {"digest": digest}})
    files = [
        UnitFile(str(path.relative_to(root)), path.stat().st_size, durable.sha256(path)) for path in copy.iterdir()
    ]
    made = Record(
        "train_tokenizer", "train_tokenizer", train_tokenizer.STAGE.version, never.fingerprint, {}, {}, files, {}, {}, {},
        {}, "", "", 0.0, "", dict(never.step.sources),
    )  # fmt: skip
    durable.write_bytes(never.folder / RECORD, to_json(made))
    assert stands(folder).done and stands(tmp_path / "gone").done
    chat = Path(shutil.copytree(folder, tmp_path / "chat"))
    described = durable.read_json(chat / "tokenizer_config.json")
    durable.write_json(chat / "tokenizer_config.json", described | {"chat_template": "{{ messages }}"})
    assert stands(chat).done, "only what ends documents counts"
    durable.write_json(chat / "tokenizer_config.json", described | {"eos_token": "the"})
    assert stands(chat).reasons == (f"{chat} ends documents with the now, with <|endoftext|> when it was copied",)
    (chat / "tokenizer.json").write_text("{}")
    assert stands(chat).done, "another tokenizer would be refused"


def test_only_one_place_reads_a_tokenizer_of_the_tokenizers_library() -> None:
    """Elsewhere what tokenizer.json says of cutting and filling up would be forgotten again."""
    root = Path(tokenizer_files.__file__).parent
    found = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "Tokenizer.from_file(" in path.read_text("utf-8") or "Tokenizer.from_str(" in path.read_text("utf-8")
    ]
    assert found == ["tokenizer_files.py"]
