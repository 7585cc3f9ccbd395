"""Configuration: frozen, strict, and every refusal names the field, what was seen and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines import recipes
from pipelines.config import ConfigError, Recipe, Source
from pipelines.execution import Execution, gpus
from pipelines.recipe_checks import check_together
from pipelines.settings import override


@pytest.mark.parametrize("name", sorted(recipes.NAMED))
def test_every_named_recipe_is_valid_and_survives_json(name: str) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_every_field_is_documented() -> None:
    kinds = [Recipe, Execution]
    seen = set()
    while kinds:
        kind = kinds.pop()
        for name, field in kind.model_fields.items():
            inner = [kind for kind in _models(field.annotation) if kind not in seen]
            assert field.description or _models(field.annotation), f"{kind.__name__}.{name} has no description"
            seen.update(inner)
            kinds.extend(inner)
    assert len(seen) > 8


def _models(annotation: object) -> list[type]:
    found = [annotation] if hasattr(annotation, "model_fields") else []
    return found + [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("pretrain.max_step", "50", "no field 'pretrain.max_step'; known here: .*max_steps"),
        ("pretrain.max_steps", "many", r"pretrain.max_steps: .*integer.*seen: 'many'"),
        ("pretrain.max_steps", "0", r"pretrain.max_steps: .*greater than or equal to 1.*seen: 0"),
        ("model.n_head", "7", "n_head=7 does not divide n_embd"),
        ("pretrain.warmup_steps", "100000", "warmup_steps=100000 is more than max_steps"),
        ("pretrain.sequence_length", "4096", "pretrain.sequence_length=4096 is longer than model.n_positions"),
        (
            "pretrain.sequence_length",
            "64",
            "pretrain.sequence_length=64 leaves the later ones of model.n_positions=128",
        ),
        ("finetune.init", "gpt3", r"finetune.init: .*'base' or 'random'.*seen: 'gpt3'"),
        ("shard.heldout_fraction", "1.5", r"shard.heldout_fraction: .*less than 1"),
        ("task", "none", "task and finetune belong together"),
        (
            "evaluate.continuation_tokens",
            "128",
            "continuation_tokens=128 leaves no room for a prompt in model.n_positions=128",
        ),
        ("register_as.base", "sentiment", "both 'sentiment': they are two models"),
    ],
)
def test_a_wrong_setting_names_field_value_and_remedy(setting: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(recipes.default(), {setting: value})


def test_settings_are_parsed_by_the_fields_own_types() -> None:
    recipe = override(
        recipes.default(), {"pretrain.max_steps": "50", "pretrain.learning_rate": "1e-3", "finetune.init": "random"}
    )
    assert (recipe.pretrain.max_steps, recipe.pretrain.learning_rate, recipe.finetune.init) == (50, 1e-3, "random")


def test_a_name_may_look_like_a_number() -> None:
    assert override(recipes.tiny(), {"register_as.task": "2024"}).register_as.task == "2024"
    with pytest.raises(ConfigError, match="max_steps"):
        override(recipes.tiny(), {"register_as.task": "2024", "pretrain.max_steps": "x"})


def test_a_batch_that_does_not_divide_over_the_ranks_is_refused_early() -> None:
    check_together(recipes.tiny(), Execution(ranks=2, micro_batch_size=8))
    with pytest.raises(
        ConfigError, match=r"pretrain: global_batch_size=16 does not divide over 3 ranks.*execution.ranks=3"
    ):
        check_together(recipes.tiny(), Execution(ranks=3))


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("tiny", {"vocab_size": 999}, "tokenizer.vocab_size=999 is of a tokenizer that is trained here, and the pinned one"),
        ("tiny", {"min_frequency": 7}, "tokenizer.min_frequency=7 "),
        ("tiny", {"max_bytes": 4096}, "tokenizer.max_bytes=4096 "),
        ("bert_tiny", {"special_tokens": "bert"}, r'special_tokens=bert .* leave it out .*tokenizer=\{"pinned":'),
        ("bert_tiny", {"continuations": 5}, "evaluate.continuations=5: a model that learns .*'masked_lm_next_sentence' conti"),
        ("bert_tiny", {"continuation_tokens": 9}, "evaluate.continuation_tokens=9: .* leave it out"),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(recipe: str, settings: dict[str, object], said: str) -> None:
    import json

    of = "evaluate" if "continu" in next(iter(settings)) else "tokenizer"
    given: dict[str, dict[str, object]] = {"evaluate": {}, "tokenizer": {"pinned": "/gone", "digest": "0" * 64}}
    read = {name: json.dumps(value | (settings if name == of else {})) for name, value in given.items()}
    with pytest.raises(ConfigError, match=said):
        check_together(override(recipes.load(recipe), read), Execution())
    plain = {name: json.dumps(value) for name, value in given.items()}
    check_together(override(recipes.load(recipe), plain), Execution())


def test_an_unknown_sample_is_named_with_those_there_are() -> None:
    recipe = override(recipes.tiny(), {"shard.sources": '[{"sample":"moby"}]'})
    with pytest.raises(ConfigError, match=r"no sample is called 'moby'; there are .*tiny_shakespeare"):
        check_together(recipe, Execution())


def test_folders_are_absolute_even_where_nothing_was_given() -> None:
    execution = Execution()
    assert all(Path(path).is_absolute() for path in (execution.work, execution.registry, execution.cache))
    assert Execution(registry="http://mlflow:5000").registry == "http://mlflow:5000"
    assert gpus() == len([path for path in Path("/dev").iterdir() if path.name.removeprefix("nvidia").isdigit()])


def test_unknown_keys_and_changes_are_refused() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        Source(path="x", colour="red")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="frozen"):
        recipes.tiny().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("given", "seen"), [({}, "none"), ({"path": "a", "sample": "b"}, "path and sample")])
def test_a_source_is_exactly_one_thing(given: dict[str, str], seen: str) -> None:
    with pytest.raises(ValueError, match=f"exactly one of path, dataset or sample, not {seen}"):
        Source(**given)  # type: ignore[arg-type]


def test_a_hub_dataset_has_to_be_pinned() -> None:
    with pytest.raises(ValueError, match="pin it with revision="):
        Source(dataset="someone/corpus")


def test_a_users_own_recipe_is_loaded_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from pipelines import recipes\ndef small():\n    return recipes.tiny()\n")
    assert recipes.load(f"{file}:small").name == "tiny"
    with pytest.raises(ConfigError, match="no function 'large'"):
        recipes.load(f"{file}:large")
    with pytest.raises(ConfigError, match="no such recipe; known are default, tiny, labels, gpt2_124m"):
        recipes.load("huge")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return recipes.tiny().model_copy(update={'name': 7})", r"name: Input should be a valid string \(seen: 7\)"),
        ("return recipes.tiny().model_copy(update={'nmae': 'x'})", "nmae: unknown field"),
        ("return recipes.tiny().model_copy(update={'task': None})", "task and finetune belong together"),
        ("return recipes.Source(path='a', sample='b')", "line 3: Source is not valid"),
        ("return recipes.huge()", "line 3: AttributeError"),
        ("return (", "line 3: SyntaxError"),
        ("return 7", "returned a int, not a Recipe"),
    ],
)
def test_a_mistake_in_a_users_recipe_is_said_with_its_line(tmp_path: Path, body: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"from pipelines import recipes\ndef small():\n    {body}\n")
    with pytest.raises(ConfigError, match=message):
        recipes.load(f"{file}:small")


def test_execution_never_enters_a_fingerprint() -> None:
    names = set(Execution.model_fields)
    assert not names & {
        name for part in Recipe.model_fields.values() for kind in _models(part.annotation) for name in kind.model_fields
    }  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("recipe", "options", "said"),
    [
        ("generation", '{"document_bytes":0}', "document_bytes of task generation is 0, and it has to be 1 at least"),
        (
            "cloze",
            '{"passage_words":"many"}',
            "passage_words of task cloze is 'many', and it has to be a whole number, as 120",
        ),
        ("cloze", '{"passage_words":true}', "passage_words of task cloze is True, and it has to be a whole number"),
        ("cloze", '{"benchmark_left_out":-1}', "benchmark_left_out of task cloze is -1, and it has to be 0 at least"),
        ("translation", '{"language":3}', "language of task translation is 3, and it has to be text, as 'it'"),
    ],
)
def test_an_option_of_a_task_that_cannot_have_its_value_is_refused_when_the_recipe_is_read(
    recipe: str, options: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        override(recipes.load(recipe), {"task.options": options})
    assert override(recipes.load("cloze"), {"task.options": '{"benchmark_left_out":0}'}).task
