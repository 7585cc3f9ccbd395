"""Exports in bf16: rounded weights, and of them what `transformers` computes is what ours compute, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from model import durable, export, heads, hf, outputs
from model.config import ModelConfig
from model.job import RankJob
from tests.model import tiny
from tests.model.test_families import SHAPES, shaken

# The tokenizer of these tests is one of GPT-2's kind with its EOT at 0, which is all of its special tokens.
SPECIAL = {"eot_token_id": 0, "pad_token_id": None, "cls_token_id": None, "sep_token_id": None, "mask_token_id": None}
KINDS = {"gpt2": {}, "gpt2-classes": {"num_labels": 4}} | {
    name: SHAPES[name] for name in ("llama", "llama-classes", "bert", "bert-span")
}


def job(folder: Path, config: ModelConfig) -> RankJob:
    """The job of a model that is to be exported in bf16."""
    tokenizer = tiny.write_tokenizer(folder / "tokenizer")
    settings = durable.read_json(tokenizer / "tokenizer_config.json")
    durable.write_json(tokenizer / "tokenizer_config.json", settings | {"sep_token": tiny.EOT})  # a BERT's EOT
    train = {"max_steps": 1, "global_batch_size": 1, "sequence_length": 8, "learning_rate": 1e-3}
    fields = {
        "objective": "causal_lm",
        "data": {"examples": ""},
        "tokenizer": str(tokenizer),
        "attempt": "",
        "outputs": "",
    }
    shape = config.model_dump(mode="json")
    return RankJob.parse(
        fields | {"model": shape, "train": train, "checkpoints": "", "micro_batch_size": 1, "export_precision": "bf16"}
    )


def write(folder: Path, config: ModelConfig, live: heads.Model) -> float:
    """What a run of one step leaves in `folder` of the model `live`, whose logits are probed; the difference."""
    state = dict(shaken(config).state_dict())
    tokens, mask = export.probe_inputs(config)
    logits = export.last_logits(live, tokens, mask, config.segments)
    folder.mkdir(exist_ok=True)
    return outputs._write_export(job(folder, config), folder, state, tokens, mask, logits)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_rounded_to_bf16_is_computed_as_by_our_model_and_read_back(tmp_path: Path, name: str) -> None:
    config = tiny.config(**KINDS[name] | SPECIAL)
    live = shaken(config)
    assert write(tmp_path, config, live) <= 1e-4
    folder = tmp_path / "export"
    assert durable.read_json(folder / "config.json")["torch_dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    found, state = hf.from_hugging_face(folder)
    again = heads.build(found).eval()
    assert hf.load_pretrained(again, state) == []
    for key, value in live.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.to(torch.bfloat16).float()), key

    plain: Any = getattr(transformers, hf.architecture(config)).from_pretrained(folder).eval()
    assert plain.dtype == torch.bfloat16, "downstream gets the precision that was asked for"
    tokens, mask = export.probe_inputs(config)
    segments = export._segments(config.segments, tokens)
    inputs = {} if segments is None else {"token_type_ids": segments[:1]}
    with torch.no_grad():
        said = export._at_last(export._logits(plain(tokens[:1], attention_mask=mask[:1], **inputs)), int(mask[0].sum()))
    ours = export.last_logits(live, tokens[:1], mask[:1], config.segments)[0]
    assert float((said - ours).abs().max()) <= outputs.LIVE_TOLERANCE["bf16"] * float(ours.abs().max())


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_live_model_that_is_another_one_fails_the_check_in_bf16_too(tmp_path: Path, name: str) -> None:
    config = tiny.config(**KINDS[name] | SPECIAL)
    other = shaken(config)
    with torch.no_grad():
        other.transformer.h[0].mlp.c_proj.weight.mul_(1.5)
    with pytest.raises(export.ExportMismatch, match="the bf16 weights and the live model differ by"):
        write(tmp_path, config, other)


def test_an_export_in_bf16_has_half_the_bytes(tmp_path: Path) -> None:
    config = tiny.config(**SPECIAL)
    write(tmp_path, config, shaken(config))
    export.write_export(tmp_path / "fp32", config, shaken(config).state_dict(), tmp_path / "tokenizer")
    half, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("export", "fp32"))
    assert sum(one.nbytes for one in whole.values()) == 2 * sum(one.nbytes for one in half.values())
