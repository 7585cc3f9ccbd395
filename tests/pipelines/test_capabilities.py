"""What a family, a form and an option cannot do together is refused when the recipe is read, or by the first training step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines import harness, recipes
from pipelines.config import ConfigError, Recipe
from pipelines.pretrained import FAMILIES, WEIGHTS
from pipelines.settings import override
from pipelines.sources import SourceError
from pipelines.stages import finetune, pretrain
from tests.model import tiny
from tests.pipelines.data_attempts import attempt

FINETUNE = '{"max_steps":4,"global_batch_size":8,"sequence_length":32,"learning_rate":1e-4}'
ANSWERS = {form: f'{{"name":"{name}","source":{{"path":"a.jsonl"}}}}' for form, name in (
    ("response", "responses"), ("dialogue", "messages"), ("text", "generation"), ("span", "spans"),
)}  # fmt: skip
BEGINS_WITH = {"tokenizer": "none", "model": "none"}


def changed(recipe: str, settings: dict[str, str]) -> Recipe:
    made: Recipe = override(recipes.load(recipe), settings)
    return made


@pytest.mark.parametrize("form", ["response", "dialogue", "text"])
def test_a_bert_is_given_no_task_that_goes_on_with_a_text(form: str) -> None:
    task = {"task": ANSWERS[form], "finetune": FINETUNE}
    with pytest.raises(ConfigError, match=r"which model.family='bert' cannot; choose family gpt2 or llama, or begin"):
        changed("bert_tiny", task)
    with pytest.raises(ConfigError, match=r"which pretrained.sample=minilm \(of family bert\) cannot"):
        changed("sentiment_minilm", task)
    folder = BEGINS_WITH | {"pretrained": '{"path":"/somebodys/bert"}'}
    with pytest.raises(ConfigError, match=r"which a model that learns pretrain.objective='masked_lm' cannot"):
        changed("tiny", task | folder | {"pretrain.objective": "masked_lm"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pretrained": '{"sample":"minilm"}'}, r"'causal_lm' cannot be learned by pretrained.sample=minilm"),
        ({"pretrained": '{"sample":"smollm2"}', "pretrain.objective": "masked_lm"}, "'masked_lm' cannot be learned by"),
        ({"pretrained": '{"sample":"smollm2"}', "task": ANSWERS["span"]}, "smollm2 .of family llama. cannot; choose"),
        (
            {"pretrained": '{"path":"/a"}', "task": ANSWERS["span"]},
            "a model that learns pretrain.objective='causal_lm' cannot",
        ),
    ],
)
def test_what_is_known_of_a_model_of_others_counts_when_the_recipe_is_read(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        changed("tiny", BEGINS_WITH | settings)


SIZES = {"vocab_size": 300, "eos_token_id": 0}
FOLDERS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 50, "max_position_embeddings": 40},
    "gpt2": {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 40},
}  # fmt: skip
FOLDERS["one_kind"] = FOLDERS["bert"] | {"type_vocab_size": 1}
LONG = FINETUNE.replace("32", "64")


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("bert", {"task": ANSWERS["response"], "finetune": FINETUNE}, r"which pretrained.path=.* \(of family bert\) cannot"),
        ("gpt2", {"task": ANSWERS["span"], "finetune": FINETUNE}, r"which pretrained.path=.* \(of family gpt2\) cannot"),
        ("one_kind", {"task": ANSWERS["span"], "finetune": FINETUNE, "pretrain.objective": "masked_lm"},
         r"form span tells two texts apart by their segments, and pretrained.path=.*one_kind has one kind"),
        ("bert", {}, r"'causal_lm' cannot be learned by pretrained.path=.* \(of family bert\)"),
        ("bert", {"pretrain.objective": "masked_lm", "release": "false"}, "causal models .* only, and not pretrained.path="),
        ("gpt2", {"finetune": LONG}, r"finetune.sequence_length=64 is longer than .*gpt2/config.json's n_positions=40"),
        ("gpt2", {"pretrain.sequence_length": "64"}, r"pretrain.sequence_length=64 is longer than .*gpt2/config.json's n_pos"),
        ("gpt2", {"finetune.tune": "last_layers", "finetune.last_layers": "3"}, r"last_layers=3 is more than .*'s n_layer=2"),
        ("gpt2", {"finetune.tune": "head", "task": ANSWERS["response"]}, "the token embedding .*'s tie_word_embeddings"),
        ("gpt2", {"evaluate.continuation_tokens": "40"}, "leaves no room for a prompt in .*'s n_positions=40"),
    ],
)  # fmt: skip
def test_a_folder_that_is_there_is_known_when_the_recipe_is_read(
    tmp_path: Path, family: str, settings: dict[str, str], said: str
) -> None:
    folder = tmp_path / family
    folder.mkdir()
    durable.write_json(folder / "config.json", SIZES | FOLDERS[family])
    fits = {"pretrain.sequence_length": "32", "finetune.sequence_length": "32", "evaluate.continuation_tokens": "8"}
    given = BEGINS_WITH | fits | {"pretrained": json.dumps({"path": str(folder)})} | settings
    if "finetune" in settings:
        del given["finetune.sequence_length"]
    with pytest.raises(ConfigError, match=said):
        changed("tiny", given)


def test_of_a_gguf_file_and_of_a_folder_elsewhere_nothing_is_known_when_the_recipe_is_read(tmp_path: Path) -> None:
    durable.write_json(tmp_path / "config.json", SIZES | FOLDERS["gpt2"])
    durable.write_bytes(tmp_path / "model.gguf", b"")  # which the step `import` reads, and not the rest
    for path in (tmp_path, tmp_path / "elsewhere"):
        made = changed("tiny", BEGINS_WITH | {"pretrained": json.dumps({"path": str(path)}), "finetune": LONG})
        assert made.pretrained and made.pretrained.shape is made.pretrained.family is None


def test_what_the_import_would_refuse_is_refused_when_the_recipe_is_read(tmp_path: Path) -> None:
    given = BEGINS_WITH | {"pretrained": json.dumps({"path": str(tmp_path)})}
    for config, said in (
        (
            FOLDERS["gpt2"] | {"activation_function": "silu"},
            r"config.json: activation_function='silu' is not supported",
        ),
        (FOLDERS["gpt2"] | {"quantization_config": {"bits": 4}}, r"config.json: quantization_config is not supported"),
        ({"model_type": "t5"}, r"config.json: model_type='t5' is not supported, only gpt2, llama, bert"),
        ([], r"config.json: model_type=None is not supported"),
        (FOLDERS["gpt2"] | {"n_embd": None}, r"config.json: "),
    ):
        durable.write_json(tmp_path / "config.json", SIZES | config if isinstance(config, dict) else config)
        with pytest.raises(ConfigError, match=said):
            changed("tiny", given)


@pytest.mark.parametrize("pairs", [{}, {"pretrain.objective": "next_sentence"}, {"task": ANSWERS["span"]}])
def test_a_bert_with_one_kind_of_segment_learns_from_one_text_at_a_time(pairs: dict[str, str]) -> None:
    alone = {"model.type_vocab_size": "1", "pretrain.objective": "masked_lm"}
    assert changed("bert_tiny", alone).model
    with pytest.raises(ConfigError, match=r"by their segments, and model has one kind \(type_vocab_size=1\); choose"):
        changed(
            "bert_tiny",
            {"model.type_vocab_size": "1"} | ({"finetune": FINETUNE} | alone if "task" in pairs else {}) | pairs,
        )


def test_every_sample_of_weights_says_its_family() -> None:
    assert FAMILIES.keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    ("run", "family", "config", "said"),
    [
        (finetune.run, "bert", {"form": "response"}, r"answers prompts, which the imported model \(of family bert\)"),
        (
            finetune.run,
            "gpt2",
            {"form": "span"},
            r"finds answers in a text, which the imported model \(of family gpt2\)",
        ),
        (finetune.run, "bert", {"release": False}, "release=false measures .* causal models .* leave release on"),
        (pretrain.run, "bert", {"objective": "causal_lm"}, "'causal_lm' cannot be learned by the imported model"),
        (pretrain.run, "llama", {"objective": "masked_lm"}, "'masked_lm' cannot be learned by the imported model"),
        (
            pretrain.run,
            "bert",
            {"objective": "next_sentence"},
            "'next_sentence' tells two texts apart by their segments",
        ),
        (finetune.run, "bert", {"form": "span"}, "form span tells two texts .* the imported model has one kind"),
    ],
)
def test_an_imported_model_is_refused_before_anything_is_trained(
    tmp_path: Path, run: Any, family: str, config: dict[str, Any], said: str
) -> None:
    one_segment = {"type_vocab_size": 1} if family == "bert" else {}
    durable.write_json(tmp_path / "model.json", {"family": family, "n_positions": 64} | one_segment)
    tiny.write_tokenizer(tmp_path / "tokenizer")
    train = {"sequence_length": 16} | {name: config[name] for name in ("objective",) if name in config}
    made = attempt(
        tmp_path, {"model": {}, "train": train} | config, {}, dict.fromkeys(("shape", "tokenizer"), tmp_path)
    )
    with pytest.raises(SourceError, match=said):
        run(made)


@pytest.mark.parametrize("form", ["response", "dialogue", "text", "span"])
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"finetune.class_weights": "balanced"}, "finetune.class_weights=balanced is of classes, and a task of form "),
        ({"finetune.early_stopping": '{"metric":"accuracy"}'}, "finetune.early_stopping.metric=accuracy is of classes"),
        ({"finetune.long_texts": "windows"}, "finetune.long_texts=windows is of forms classification and span"),
    ],
)
def test_an_option_that_would_do_nothing_for_the_task_is_refused(form: str, option: dict[str, str], said: str) -> None:
    begun = BEGINS_WITH | {"shard": "none", "pretrain": "none", "pretrained": '{"path":"/somebodys/model"}'}
    if form == "span" and "finetune.long_texts" in option:
        assert changed("tiny", begun | {"task": ANSWERS[form]} | option).finetune
        return
    with pytest.raises(ConfigError, match=said):
        changed("tiny", begun | {"task": ANSWERS[form]} | option)


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("default", {"finetune.tune": "last_layers", "finetune.last_layers": "9"}, "last_layers=9 .* model.n_layer=2"),
        ("questions", {"finetune.tune": "head"}, "finetune.tune=head leaves nothing to train"),
        ("labels", {"few_labels.starts": f'[{{"name":"a","finetune":{FINETUNE[:-1]},"tune":"last_layers","last_layers":3}}}}]'},
         "few_labels.starts a: finetune.last_layers=3 is more than model.n_layer=2"),
    ],
)  # fmt: skip
def test_an_option_that_the_model_lacks_is_refused(recipe: str, settings: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        changed(recipe, settings)


def test_what_our_own_code_does_not_measure_has_to_be_released() -> None:
    unreleased = {"release": "false"}
    with pytest.raises(
        ConfigError, match=r"release=false .* causal models .*, and not model.family='bert'; leave release on"
    ):
        changed("bert_tiny", unreleased)
    with pytest.raises(ConfigError, match=r"and not pretrained\.sample=minilm"):
        changed("sentiment_minilm", unreleased)
    spans = BEGINS_WITH | {"shard": "none", "pretrain": "none", "pretrained": '{"path":"/a"}', "task": ANSWERS["span"]}
    with pytest.raises(ConfigError, match="and the task is of form span; leave release on"):
        changed("tiny", unreleased | spans)
    for name in ("default", "questions", "dialogue", "generation", "finetune_smollm2"):
        assert not changed(name, unreleased).release


def test_a_bert_that_continues_nothing_may_be_shorter_than_a_continuation() -> None:
    short = dict.fromkeys(("model.n_positions", "pretrain.sequence_length", "evaluate.continuation_tokens"), "48")
    assert changed("bert_tiny", short).evaluate.continuation_tokens == 48
    with pytest.raises(ConfigError, match="continuation_tokens=48 leaves no room for a prompt"):
        changed("default", short | {"finetune.sequence_length": "48"})


def test_sequences_may_be_shorter_than_positions_that_are_not_learned_or_were_by_others(tmp_path: Path) -> None:
    """And than a BERT's, which is measured on sequences as long as those it learned from."""
    durable.write_json(tmp_path / "config.json", SIZES | FOLDERS["gpt2"])
    others = BEGINS_WITH | {"pretrained": json.dumps({"path": str(tmp_path)}), "finetune.sequence_length": "32"}
    for recipe, more in (("tiny", others), ("tiny", {"model.family": "llama"}), ("bert_tiny", {})):
        short = {"pretrain.sequence_length": "32"}
        assert changed(recipe, short | {"evaluate.continuation_tokens": "16"} | more).pretrain


def test_options_that_apply_are_taken() -> None:
    assert changed("default", {"finetune.tune": "last_layers", "finetune.last_layers": "2"}).finetune
    assert changed("questions", {"finetune.tune": "head", "model.tie_word_embeddings": "false"}).finetune
    chosen = {"class_weights": "balanced", "long_texts": "windows", "early_stopping": '{"metric":"accuracy"}'}
    assert changed("default", {f"finetune.{name}": value for name, value in chosen.items()}).finetune


def test_two_figures_agree_to_the_third_digit_and_not_beyond() -> None:
    assert harness.Compared("t", "m", 1.0, 1.0004).agrees and not harness.Compared("t", "m", 1.0, 1.001).agrees
    assert not harness.Compared("t", "m", 1.0, -1.0).agrees and harness.Compared("t", "m", 0.0, 0.0).agrees
