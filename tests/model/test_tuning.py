"""A part of a model is tuned on real ranks: only that part changes, a restart changes nothing, and peft reads the adapter."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.adapters import write
from model.config import ModelConfig
from model.dropout import DropoutKey
from model.export import load_export, probe_inputs, write_export
from model.heads import build
from model.hf import to_hugging_face
from model.job import RankJob
from model.monitor import flops_per_token
from model.objectives import Batch, loss
from model.tuning import counts, merged, prepare
from model.tuning_config import Tuning
from model.validation import Best
from pipelines.model_card import Card, render
from tests.model import tiny
from tests.model.training_runs import MIDDLE, finish, metrics, start, weights
from tests.model.tuning_runs import EARLY, LORA, TuningJobs

RESUMED = ["lora0", "lora1", "lora2", "lora3", "head", "last_layers", "language_model", "bf16"]
STOPPED = ["early", "early3", "accuracy"]
MOVED = ["lora1", "lora2", "lora3", "last_layers"]  # to one rank, through the universal format


@dataclass(frozen=True)
class Runs:
    """The jobs that two ranks ran undisturbed, and their continuations from the middle on two ranks and on one."""

    base: Path
    job: dict[str, dict[str, Any]]
    result: dict[str, dict[str, Any]]
    resumed: dict[str, dict[str, Any]]
    moved: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Three starts of real ranks for everything here."""
    jobs = TuningJobs(tmp_path_factory.mktemp("tuning"))
    job = jobs.all()
    results, _ = finish(start(list(job.values()), ranks=2))
    resumed = {name: jobs.continuation(f"resumed-{name}", job[name], MIDDLE) for name in RESUMED}
    for name in STOPPED:  # from before the end, and from after it, when nothing was exported yet
        for step in sorted({MIDDLE, results[list(job).index(name)]["steps"]}):
            resumed[f"{name}-{step}"] = jobs.continuation(f"resumed-{name}-{step}", job[name], step)
    finish(start(list(resumed.values()), ranks=2))
    moved = {name: jobs.continuation(f"moved-{name}", job[name], MIDDLE) for name in [*MOVED, "early"]}
    finish(start(list(moved.values()), ranks=1))
    return Runs(jobs.base, job, dict(zip(job, results, strict=True)), resumed, moved)


def test_the_export_of_every_kind_computes_what_the_live_model_did(runs: Runs) -> None:
    assert all(0 <= result["export_difference"] <= 1e-4 for result in runs.result.values())


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_with_identical_weights_and_metrics(runs: Runs, name: str) -> None:
    assert weights(runs.resumed[name]) == weights(runs.job[name])
    assert metrics(runs.resumed[name]) == metrics(runs.job[name])


@pytest.mark.parametrize("name", MOVED)
def test_one_rank_continues_what_two_began(runs: Runs, name: str) -> None:
    for line, reference in zip(metrics(runs.moved[name]), metrics(runs.job[name]), strict=True):
        assert line["loss"] == pytest.approx(reference["loss"], abs=2e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_agree_on_an_adapter(runs: Runs, stage: int) -> None:
    for line, reference in zip(metrics(runs.job[f"lora{stage}"]), metrics(runs.job["lora0"]), strict=True):
        assert line["loss"] == pytest.approx(reference["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("head", r"score\.weight"),
        ("last_layers", r"score\.weight|transformer\.h\.1\..*|transformer\.ln_f\..*"),
        ("lora2", r"score\.weight|.*\.c_\w+\.weight"),
        ("bf16", r"score\.weight|.*\.c_\w+\.weight"),
    ],
)
def test_only_what_is_tuned_changes_and_the_rest_has_the_bytes_of_the_base(runs: Runs, name: str, changes: str) -> None:
    before = load_file(runs.base / "model.safetensors")
    after = load_file(Path(runs.job[name]["outputs"]) / "export" / "model.safetensors")
    changed = {key for key in after if key not in before or not torch.equal(after[key], before[key])}
    assert changed == {key for key in after if re.fullmatch(changes, key)}


def test_checkpoints_hold_no_frozen_parameter(runs: Runs) -> None:
    for name in ("lora0", "lora2", "lora3", "head"):
        folder = Path(runs.job[name]["checkpoints"], f"step-{MIDDLE:06d}", "state")
        saved = torch.load(next(folder.glob("*model_states.pt")), weights_only=False)
        assert not [key for key in saved["module"] if "wte" in key or "base_layer" in key]
        assert not saved.get("frozen_param_fragments")


@pytest.mark.parametrize("name", ["lora2", "language_model"])
def test_plain_peft_puts_the_adapter_on_the_base_and_computes_what_the_merged_export_does(
    runs: Runs, name: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    outputs, classifies = Path(runs.job[name]["outputs"]), name == "lora2"
    if classifies:
        base = AutoModelForSequenceClassification.from_pretrained(runs.base, num_labels=2)
    else:
        base = AutoModelForCausalLM.from_pretrained(runs.base)
    adapted = PeftModel.from_pretrained(base, str(outputs / "adapter")).eval()
    tokens, mask = probe_inputs(RankJob.parse({"device": "cpu"} | runs.job[name]).model)
    expected = load_export(outputs / "export")(tokens, attention_mask=mask).logits
    found = adapted(input_ids=tokens, attention_mask=mask).logits
    assert (found - expected).abs().max().item() <= 1e-4
    with adapted.disable_adapter():
        assert (adapted(input_ids=tokens, attention_mask=mask).logits - expected).abs().max().item() > 1e-3


OWN: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"n_kv_head": 2, "n_head": 4, "n_embd": 32},
    "llama-untied": {"family": "llama", "n_head": 4, "n_embd": 32, "tie_word_embeddings": False},
    "bert": {"type_vocab_size": 2, "pad_token_id": 3, "cls_token_id": 5, "sep_token_id": 7, "mask_token_id": 9},
}
HEADS: dict[str, dict[str, Any]] = {
    "text-classification": {"num_labels": 3},
    "question-answering": {"head": "span"},
    "text-generation": {},
}
FAMILIES = ("gpt2", "llama", "bert")
# Of a classifier what each way of tuning changes, by Hugging Face's names.
NAMES = {
    ("gpt2", "head"): r"score\.weight",
    ("gpt2", "last_layers"): r"score\.weight|transformer\.h\.2\..*|transformer\.ln_f\..*",
    ("llama", "head"): r"score\.weight",
    ("llama", "last_layers"): r"score\.weight|model\.layers\.2\..*|model\.norm\.weight",
    ("bert", "head"): r"classifier\..*|bert\.pooler\..*",
    ("bert", "last_layers"): r"classifier\..*|bert\.pooler\..*|bert\.encoder\.layer\.2\..*",
}


@pytest.mark.parametrize(("family", "tune"), NAMES)
def test_a_step_changes_of_every_family_what_is_tuned_and_no_more(family: str, tune: Any) -> None:
    config = tiny.config(**({"family": family} | OWN[family] | HEADS["text-classification"]))
    model = build(config, seed=1)
    before = {name: tensor.clone() for name, tensor in to_hugging_face(config, model.state_dict())[1].items()}
    prepare(model, Tuning(tune=tune, last_layers=1 if tune == "last_layers" else None), seed=2)
    tokens = torch.randint(10, 300, (4, 12), generator=torch.Generator().manual_seed(3))
    batch = Batch(tokens, torch.arange(4), labels=torch.tensor([0, 1, 2, 1]))
    loss(model, "classification", batch)[0].backward()
    torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], weight_decay=0.0).step()
    after = to_hugging_face(config, merged(model))[1]
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if re.fullmatch(NAMES[family, tune], name)}


ATTENTION = LORA | {"lora": LORA["lora"] | {"targets": "attention"}}


@pytest.mark.parametrize(
    ("family", "task", "tuning"),
    [
        *((family, "text-classification", LORA) for family in FAMILIES),
        ("bert", "question-answering", LORA),
        ("llama", "text-generation", ATTENTION),
        ("llama-untied", "text-generation", ATTENTION),
        ("llama-untied", "text-classification", ATTENTION),
        ("gpt2", "text-classification over another", LORA),
    ],
)
def test_an_adapter_of_every_family_is_the_merged_model_by_the_code_of_its_card(
    family: str, task: Any, tuning: dict[str, Any], tmp_path: Path
) -> None:
    shape = {"family": family, "vocab_size": 300, "eot_token_id": 0} | OWN[family]
    task, _, over = task.partition(" over ")
    # An imported base may be a classifier itself, of classes that are called otherwise and are more.
    others = {"num_labels": 5, "labels": tuple("vwxyz")} if over else {}
    config, pretrained = tiny.config(**shape, **HEADS[task]), tiny.config(**shape, **others)
    tokenizer = tiny.write_tokenizer(tmp_path / "tokenizer")
    # Weights are of (seed, name): the Transformer below the other head is the same.
    write_export(tmp_path / "base", pretrained, build(pretrained, seed=1).state_dict(), tokenizer)
    model = build(config, seed=1)
    prepare(model, Tuning(**tuning), seed=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.1, generator=generator)
    trained = {
        name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    write(tmp_path / "adapter", config, Tuning(**tuning).lora, trained)
    write_export(tmp_path / "merged", config, merged(model), tokenizer)
    base = {"name": "base", "digest": "ab" * 32}
    for file in tokenizer.iterdir():  # as registering an adapter does
        shutil.copyfile(file, tmp_path / "adapter" / file.name)
    names = [f"class {number}" for number in range(config.num_labels or 0)]
    card = render(Card("adapter", task, "An adapter.", base=base, labels=names))
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    loaded: dict[str, Any] = {}
    exec(code.replace("BASE", str(tmp_path / "base")).replace("DIR", str(tmp_path / "adapter")), loaded)
    adapted, whole = loaded["model"].eval(), load_export(tmp_path / "merged")
    if names:
        assert adapted.config.id2label == dict(enumerate(names)) and adapted.config.label2id["class 1"] == 1
    assert loaded["tokenizer"].decode(loaded["tokenizer"]("a tale")["input_ids"]).endswith("a tale")
    tokens, mask = probe_inputs(config)
    inputs = {"input_ids": tokens, "attention_mask": mask}

    def said(one: Any) -> torch.Tensor:
        found = one(**inputs)
        return torch.stack((found.start_logits, found.end_logits)) if task == "question-answering" else found.logits

    with torch.no_grad():
        expected = said(whole)
        assert float((said(adapted) - expected).abs().max()) <= 1e-4
        with adapted.disable_adapter():
            assert float((said(adapted) - expected).abs().max()) > 1e-2


@pytest.mark.parametrize("name", STOPPED)
def test_the_best_weights_are_exported_wherever_the_run_was_killed(runs: Runs, name: str) -> None:
    lines, result = metrics(runs.job[name]), runs.result[name]
    metric = "validation_accuracy" if name == "accuracy" else "validation_loss"
    measured = {line["step"]: line[metric] for line in lines if metric in line}
    best = (max if name == "accuracy" else min)(measured.values())
    assert measured[result["best_step"]] == best and result["steps"] == max(measured)
    assert result["best_step"] < result["steps"], "the last weights are the best: this test shows nothing"
    again = [key for key in runs.resumed if key.rpartition("-")[0] == name]
    assert again
    for key in again:
        assert weights(runs.resumed[key]) == weights(runs.job[name])
        assert metrics(runs.resumed[key]) == lines


def test_early_stopping_stops_early_and_at_the_same_step_on_one_rank(runs: Runs) -> None:
    assert runs.result["early"]["steps"] < runs.job["early"]["train"]["max_steps"]
    alone, two = metrics(runs.moved["early"]), metrics(runs.job["early"])
    assert [line["step"] for line in alone] == [line["step"] for line in two]
    for line, reference in zip(alone, two, strict=True):
        if "validation_loss" in reference:
            assert line["validation_loss"] == pytest.approx(reference["validation_loss"], abs=1e-4)


def test_patience_counts_evaluations_that_are_no_better() -> None:
    best = Best(Tuning(**EARLY).early_stopping, max_steps=9)  # type: ignore[arg-type]
    seen = [best.see(step, {"validation_loss": loss}) for step, loss in ((2, 3.0), (4, 2.0), (6, 2.0), (8, 2.5))]
    assert seen == [True, True, False, False] and (best.step, best.over) == (4, True)
    assert [best.due(step) for step in (7, 8, 9)] == [False, True, True]
    accuracy: Any = Tuning(early_stopping=EARLY["early_stopping"] | {"metric": "accuracy"}).early_stopping
    best = Best(accuracy, max_steps=9)
    assert [best.see(step, {"validation_accuracy": 0.5}) for step in (2, 4)] == [True, False], "as good is no better"


def test_first_weights_of_an_adapter_depend_on_seed_and_name_alone() -> None:
    config = ModelConfig(n_positions=8, n_embd=12, n_layer=2, n_head=2, vocab_size=20, eot_token_id=0)
    torch.manual_seed(1)
    models = [build(config, seed=5) for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        prepare(model, Tuning(**LORA), seed)
        torch.rand(1)
    first, same, other = (dict(model.named_parameters()) for model in models)
    adapters = [name for name in first if "lora_A" in name]
    assert adapters and all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in adapters)
    assert counts(models[0])[0] == sum(first[name].numel() for name in first if ".lora_" in name)


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_leave_a_pre_trained_output_layer_frozen(tied: bool) -> None:
    model = build(tiny.config(family="llama", tie_word_embeddings=tied), seed=5)
    prepare(model, Tuning(**LORA), 5)
    assert all(".lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize("tied", [True, False])
def test_a_frozen_weight_costs_no_product_for_its_own_gradient(tied: bool) -> None:
    """Counted block by block: 6 of a trained weight, 4 of a frozen one that gradients go through, 2 of one that none do."""
    shape = tiny.config(family="llama", tie_word_embeddings=tied)
    model = build(shape, seed=5)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    attention = 12 * shape.n_layer * shape.n_embd * 10
    output = shape.vocab_size * shape.n_embd
    blocks = [sum(size for name, size in sizes.items() if f".h.{place}." in name) for place in range(shape.n_layer)]
    norm = sizes["transformer.ln_f.weight"]
    assert flops_per_token(model, shape, 10) == 6 * (sum(blocks) + norm + output) + attention
    prepare(model, Tuning(tune="last_layers", last_layers=1), 5)
    last = 6 * (blocks[-1] + norm) + (4 if tied else 6) * output
    assert flops_per_token(model, shape, 10) == 2 * sum(blocks[:-1]) + last + attention
    adapted = build(shape, seed=5)
    prepare(adapted, Tuning(**LORA), 5)
    below = (
        sizes["transformer.h.0.ln_1.weight"] + sizes["transformer.h.0.attn.c_attn.weight"]
    )  # before the first adapter
    added = counts(adapted)[0]
    assert flops_per_token(adapted, shape, 10) == 4 * (sum(blocks) + norm + output) - 2 * below + 6 * added + attention


def test_a_head_that_is_the_embedding_cannot_be_tuned_alone() -> None:
    config = ModelConfig(n_positions=8, n_embd=12, n_layer=2, n_head=2, vocab_size=20, eot_token_id=0)
    with pytest.raises(ValueError, match="leaves nothing to train"):
        prepare(build(config), Tuning(tune="head"), 0)


def test_an_adapter_s_dropout_is_keyed_and_reaches_the_loss_of_every_adapter() -> None:
    tokens = torch.randint(1, 300, (4, 12), generator=torch.Generator().manual_seed(0))
    batch, key = Batch(tokens, torch.arange(4)), DropoutKey(seed=1, step=2, indices=torch.arange(4))
    found = {}
    for probability in (0.0, 0.5):
        model = build(tiny.config(), seed=1)
        prepare(model, Tuning(tune="lora", lora={**LORA["lora"], "dropout": probability}), seed=2)
        adapted = [module for module in model.modules() if hasattr(module, "lora_dropout")]
        with torch.no_grad():
            for module in adapted:
                module.lora_B["default"].weight.fill_(0.1)  # type: ignore[index,union-attr]
        found[probability] = [float(loss(model, "causal_lm", batch, one)[0].detach()) for one in (key, key, None)]
    plain, dropped = found.values()
    assert plain[0] == plain[2] == dropped[2] and dropped[0] == dropped[1] != dropped[2]
    sites = [module.lora_dropout["default"].site for module in adapted]  # type: ignore[index,union-attr]
    assert len({str(site) for site in sites}) == len(sites) > 1
