"""Recipes that begin with somebody else's model, and recipes that release nothing: what is asked for, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from model import durable
from pipelines import dry_run, flow, frozen, pretrained, recipes
from pipelines.config import ConfigError, FinetuneConfig, Gate, Recipe, RegisterConfig
from pipelines.engine.step import Input
from pipelines.execution import Execution
from pipelines.pretrained import WEIGHTS, Pretrained
from pipelines.settings import override
from pipelines.sources import SourceError
from pipelines.stages import import_model
from pipelines.tokenizer_files import tokenizer_facts
from tests.model import tiny
from tests.pipelines.data_attempts import attempt

FINETUNE = FinetuneConfig(max_steps=4, global_batch_size=8, sequence_length=32, learning_rate=1e-4)


LORA = FINETUNE.model_copy(update={"tune": "lora"})
PERPLEXITY = Gate(metric="perplexity", maximum=9.0)


def finetuned(**changes: Any) -> Recipe:
    """A task that is fine-tuned from somebody else's model as it is."""
    fields: dict[str, Any] = {
        "name": "mine", "pretrained": Pretrained(sample="smollm2"), "task": recipes.tiny().task, "finetune": FINETUNE,
    }  # fmt: skip
    return Recipe(**(fields | changes))


def steps(recipe: Recipe) -> dict[str, Any]:
    """The steps of a recipe by name; its sources have no files."""
    return {step.name: step for step in flow.build(recipe, lambda source: [])}


def test_the_import_stands_for_the_tokenizer_and_the_base() -> None:
    made = steps(finetuned())
    assert list(made) == ["import", "prepare_task", "finetune", "evaluate-task", "register-task", "pull-task"]
    inputs = {name: (source.step, source.part) for name, source in made["finetune"].inputs.items()}
    assert inputs["tokenizer"] == ("import", "tokenizer/") and inputs["base"] == ("import", "export/")
    assert inputs["shape"] == ("import", "model.json") and made["finetune"].config["model"] == {}


def test_an_imported_base_is_registered_where_its_adapter_is_and_nowhere_else() -> None:
    named = RegisterConfig(base="theirs", task="mine", adapter="mine-adapter")
    made = steps(finetuned(finetune=LORA, register_as=named))
    plain = steps(finetuned(finetune=LORA))
    assert list(made) == [*plain, "register-import", "pull-import", "register-adapter", "pull-adapter"]
    assert made["register-import"].config == {"name": "theirs", "kind": "import", "gates": []}
    assert made["register-import"].inputs == {"export": Input("import", "export/")}
    assert made["register-adapter"].inputs["base"] == Input("register-import", "registered.json")
    tiny_recipe = recipes.tiny()
    went_on = steps(finetuned(shard=tiny_recipe.shard, pretrain=tiny_recipe.pretrain, finetune=LORA, register_as=named))
    assert went_on["register-adapter"].inputs["base"].step == "register-base" and "register-import" not in went_on


def test_pre_training_goes_on_from_an_import() -> None:
    tiny_recipe = recipes.tiny()
    made = steps(finetuned(shard=tiny_recipe.shard, pretrain=tiny_recipe.pretrain))
    assert "train_tokenizer" not in made
    assert made["pretrain"].inputs["base"].step == made["tokenize"].inputs["tokenizer"].step == "import"
    assert made["finetune"].inputs["base"].step == "pretrain"
    assert made["finetune"].inputs["tokenizer"].step == "import"


def test_a_recipe_without_the_new_options_has_the_steps_and_the_json_that_it_had() -> None:
    made = steps(recipes.tiny())
    assert [name for name in made if name.endswith("import")] == []
    assert made["pretrain"].inputs.keys() == {"tokens", "tokenizer"} and made["pretrain"].config.keys() == {
        "model",
        "train",
    }
    assert made["finetune"].config.keys() == {"model", "train"}
    assert not {"pretrained", "release"} & recipes.tiny().model_dump().keys()
    assert Recipe.model_validate_json(finetuned().model_dump_json()) == finetuned()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pretrained": None}, "shard, tokenizer, model, pretrain missing"),
        ({"model": recipes.tiny().model}, "model come with `pretrained`; leave them out"),
        ({"shard": recipes.tiny().shard}, "shard and pretrain belong together"),
        ({"task": None, "finetune": None}, "nothing is to be made of `pretrained`"),
        (
            {"register_as": RegisterConfig(adapter="a"), "finetune": LORA},
            "registers the imported model as its base too, and 'base' is what those are called that are pre-trained here",
        ),
        (
            {"register_as": RegisterConfig(adapter="a", base="b", base_gates=(PERPLEXITY,)), "finetune": LORA},
            "nobody measures perplexity of an imported model; it has export_bytes and latency_ms",
        ),
        (
            {"register_as": RegisterConfig(adapter="a", base="b"), "finetune": LORA, "release": False},
            "is to be registered, and release=false",
        ),
    ],
)
def test_a_recipe_has_to_begin_somewhere(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        finetuned(**changes)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "either path"),
        ({"path": "a", "sample": "minilm"}, "not both"),
        ({"sample": "gpt5"}, "there are minilm, smollm2"),
    ],
)
def test_somebody_elses_model_is_exactly_one_thing(given: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pretrained(**given)


def test_what_no_family_computes_is_refused_where_an_export_is_asked() -> None:
    with pytest.raises(
        ConfigError,
        match=r"feed_forward='relu_relu' is in no Hugging Face family and cannot be exported; set release=false",
    ):
        override(recipes.tiny(), {"model.feed_forward": "relu_relu"})
    made = steps(override(recipes.tiny(), {"model.feed_forward": "relu_relu", "release": "false"}))
    assert [name for name in made if name.startswith(("register", "pull"))] == []
    assert made["evaluate-base"].inputs["export"].part == made["finetune"].inputs["base"].part == "weights/"
    assert made["pretrain"].config["release"] is made["finetune"].config["release"] is False


def test_the_precision_of_what_is_released_is_said_where_it_is_not_fp32_and_only_of_what_is_released() -> None:
    plain = steps(recipes.tiny())
    assert "export_precision" not in recipes.tiny().model_dump()
    half = override(recipes.tiny(), {"export_precision": "bf16"})
    for name, step in steps(half).items():
        marked = {"export_precision": "bf16"} if name in ("pretrain", "finetune") else {}
        assert step.config == dict(plain[name].config) | marked
    assert Recipe.model_validate_json(half.model_dump_json()) == half
    with pytest.raises(ConfigError, match="export_precision=bf16 is of what is released, and release=false"):
        override(half, {"release": "false"})


@pytest.mark.parametrize("setting", [{"release": "false"}, {}])
def test_only_a_line_that_makes_and_registers_its_base_is_retrained(tmp_path: Path, setting: dict[str, str]) -> None:
    recipe = override(recipes.tiny(), setting) if setting else finetuned()
    with pytest.raises(ConfigError, match="only a recipe that makes and registers its own base model is retrained"):
        frozen.look(recipe, Execution(work=str(tmp_path)), 1)


def test_a_dry_run_says_that_the_model_is_not_known_yet() -> None:
    assert list(dry_run.lines(finetuned(), Execution())) == [
        "what smollm2 is, step import finds out; next: make run, which begins with it"
    ]


def test_samples_of_weights_are_pinned_and_say_whose_they_are() -> None:
    for name, sample in WEIGHTS.items():
        assert sample.name == name and len(sample.sha256) == 64 and sample.licence and sample.describes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Llama as transformers saves it, a pickle and a note beside it."""
    tiny.write_tokenizer(tmp_path / "theirs")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=24, intermediate_size=50, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "pytorch_model.bin").write_bytes(b"a pickle")
    (tmp_path / "theirs" / "README.md").write_text("hello")
    return tmp_path / "theirs"


def test_a_folder_is_known_by_the_names_and_bytes_of_what_is_read(folder: Path, tmp_path: Path) -> None:
    def files(path: Path) -> list[dict[str, Any]]:
        found = pretrained.described(Pretrained(path=str(path)), tmp_path, durable.sha256, fetch=False)
        return [{key: value for key, value in file.items() if key != "path"} for file in found]

    names = [file["label"] for file in files(folder)]
    assert "model.safetensors" in names and "tokenizer.json" in names
    assert not {"pytorch_model.bin", "README.md"} & set(names)
    shutil.copytree(folder, tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)
    with pytest.raises(SourceError, match=r"holds neither config.json nor a .gguf file"):
        files(tmp_path)


def test_a_gguf_file_beside_other_weights_is_refused_when_it_is_planned(folder: Path, tmp_path: Path) -> None:
    (folder / "theirs.Q4_0.gguf").write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"holds theirs.Q4_0.gguf and model.safetensors, .*; give a folder with the GGUF"
    ):
        pretrained.described(Pretrained(path=str(folder)), tmp_path, durable.sha256, fetch=False)
    (folder / "model.safetensors").unlink()
    assert pretrained.described(Pretrained(path=str(folder)), tmp_path, durable.sha256, fetch=False)


def test_a_folder_without_a_tokenizer_is_refused_when_it_is_planned(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"theirs: it holds no tokenizer \(tokenizer.json, .*\); put the model's own"):
        pretrained.described(Pretrained(path=str(folder)), tmp_path, durable.sha256, fetch=False)


def test_the_stage_leaves_an_export_a_tokenizer_and_a_shape(ray_apart: None, folder: Path, tmp_path: Path) -> None:
    sources = pretrained.described(Pretrained(path=str(folder)), tmp_path, durable.sha256, fetch=False)
    work = attempt(tmp_path, {}, {"model": sources})
    work.execution |= {"threads": 1, "device": "cpu"}  # type: ignore[operator]
    figures = import_model.run(work)
    assert (
        figures["family"] == "llama" and figures["export_difference"] <= 1e-4 and figures["source_difference"] <= 1e-4
    )
    assert {path.name for path in work.outputs.iterdir()} == {"export", "tokenizer", import_model.MODEL}
    assert tokenizer_facts(work.outputs / "tokenizer").eot == 0
    assert not (work.scratch / "model").exists()

    (folder / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"config\.json was changed or removed"):
        import_model.run(attempt(tmp_path, {}, {"model": sources}))
