"""Folders of other people, as they come: what is read as transformers reads it, and what is refused instead of read wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from model import durable, heads, hf
from tests.model import tiny
from tests.model.test_families import BERT, LLAMA
from tests.model.test_hf import random_state

EMBEDDING = {
    "gpt2": "transformer.wte.weight",
    "llama": "model.embed_tokens.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
}
OUTPUT = {"gpt2": "lm_head.weight", "llama": "lm_head.weight", "bert": "cls.predictions.decoder.weight"}
SHAPES: dict[str, dict[str, Any]] = {"gpt2": {}, "llama": LLAMA, "bert": BERT}


def folder_of(
    path: Path,
    fields: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
    without: str = "-",
    **shape: Any,
) -> Path:
    """A folder of a small model, with other fields in its config.json (None: without one) and other weights."""
    from safetensors.torch import save_file

    config = tiny.config(**shape)
    said, theirs = hf.to_hugging_face(config, random_state(config))
    path.mkdir(exist_ok=True)
    said |= fields or {}
    durable.write_json(path / "config.json", {name: value for name, value in said.items() if value is not None})
    kept = {name: tensor for name, tensor in theirs.items() if not name.startswith(without)}
    save_file(kept | (tensors or {}), path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tied_model_of_which_only_the_output_layer_was_kept_is_read(tmp_path: Path, family: str) -> None:
    """What safetensors.torch.save_model leaves: of two names of one tensor the first by the alphabet."""
    whole = hf.from_hugging_face(folder_of(tmp_path / "whole", **SHAPES[family]))[1]
    embedding = whole["transformer.wte.weight"].clone()
    kept = {OUTPUT[family]: embedding}
    found = hf.from_hugging_face(folder_of(tmp_path / "kept", None, kept, EMBEDDING[family], **SHAPES[family]))[1]
    assert found.keys() == whole.keys() and torch.equal(found["transformer.wte.weight"], embedding)
    assert torch.equal(found["lm_head.weight"], embedding)


@pytest.mark.parametrize("family", SHAPES)
def test_a_tied_model_with_another_output_layer_in_its_file_is_refused(tmp_path: Path, family: str) -> None:
    size = tiny.config(**SHAPES[family])
    name, other = OUTPUT[family], torch.ones(size.vocab_size, size.n_embd)
    with pytest.raises(hf.UnsupportedModel, match=f"ties {name} to {EMBEDDING[family]}, and the file has another one"):
        hf.from_hugging_face(folder_of(tmp_path, None, {name: other}, **SHAPES[family]))
    if family == "bert":  # a finder of spans has no output layer: what is left of one is left out
        span = {"head": "span"}
        hf.load_pretrained(heads.build(tiny.config(**BERT, **span)), hf.from_hugging_face(
            folder_of(tmp_path / "span", None, {name: other}, **BERT, **span)
        )[1])  # fmt: skip


def test_the_bias_of_a_berts_output_layer_is_read_by_either_name_and_refused_as_two(tmp_path: Path) -> None:
    bias = torch.randn(301, generator=torch.Generator().manual_seed(1))
    new, old = "cls.predictions.decoder.bias", "cls.predictions.bias"
    for kept in ({new: bias}, {old: bias}, {old: bias, new: bias.clone()}):
        folder = folder_of(tmp_path, None, kept, old, **BERT)
        assert torch.equal(hf.from_hugging_face(folder)[1]["predictor.decoder.bias"], bias)
        loaded = transformers.BertForPreTraining.from_pretrained(folder)
        assert torch.equal(loaded.cls.predictions.decoder.bias, bias)
    with pytest.raises(hf.UnsupportedModel, match=f"ties {new} to {old}, and the file has another"):
        hf.from_hugging_face(folder_of(tmp_path, None, {old: bias, new: bias + 1}, **BERT))


@pytest.mark.parametrize(
    ("fields", "theta"),
    [
        ({"rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 900.0}}, 900.0),
        ({"rope_theta": 500.0, "rope_parameters": {"rope_type": "default"}}, 500.0),
        ({"rope_theta": 500.0, "rope_parameters": None}, 500.0),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 700.0}}, 700.0),
        ({"rope_theta": None, "rope_parameters": None}, 10_000.0),
    ],
)
def test_of_two_bases_of_rotary_positions_the_one_that_transformers_takes_counts(
    tmp_path: Path, fields: dict[str, Any], theta: float
) -> None:
    folder = folder_of(tmp_path, fields, **LLAMA)
    assert hf.read_config(folder).rope_theta == theta
    assert transformers.LlamaConfig.from_pretrained(folder).rope_parameters["rope_theta"] == theta


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_packed_weights_are_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    packed = {"transformer.h.1.mlp.c_fc.weight": torch.ones(30, 71).to(dtype)}
    folder = folder_of(tmp_path, None, packed)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        hf.UnsupportedModel, match=rf"1 weights are packed, as transformer.h.1.mlp.c_fc.weight \({kind}\)"
    ):
        hf.from_hugging_face(folder)


@pytest.mark.parametrize("name", ["h.1.attn.bias", "h.1.attn.masked_bias"])
def test_masks_of_old_files_are_no_packed_weights(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, None, {name: torch.ones(1, 1, 9, 9, dtype=torch.uint8)})
    _, weights = hf.from_hugging_face(folder)
    _, expected = hf.from_hugging_face(folder_of(tmp_path, None, {}))
    assert weights.keys() == expected.keys()


@pytest.mark.parametrize(
    "name", ["foo.weight", "transformer.h.1.attn.c_foo.weight", "transformer.wte.bias", "lm_head.bias"]
)
def test_a_weight_that_gpt2_does_not_have_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(hf.UnsupportedModel, match=f"family gpt2 has no weight '(transformer.)?{name}'"):
        hf.from_hugging_face(folder_of(tmp_path, None, {name: torch.ones(3)}))


CLASSES: dict[str, Any] = {"num_labels": 2, "labels": ("a", "b")}


@pytest.mark.parametrize(
    ("shape", "fields", "said"),
    [
        (
            {},
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantization_config is not supported; give a",
        ),
        (CLASSES, {"problem_type": "regression"}, "problem_type='regression' is not supported, only 'single_label_cl"),
        (
            CLASSES | BERT,
            {"problem_type": "multi_label_classification"},
            "problem_type='multi_label_classification' is",
        ),
        (CLASSES, {"id2label": {"1": "a", "2": "b"}}, "'0' is missing"),
    ],
)
def test_what_config_json_tells_is_refused_without_weights(
    tmp_path: Path, shape: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(hf.UnsupportedModel, match=f"config.json: {said}"):
        hf.read_config(folder_of(tmp_path, fields, **shape))


@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ({}, "pad_token_id"),
        (LLAMA, "pad_token_id"),
        (LLAMA, "bos_token_id"),
        (BERT, "pad_token_id"),
        (BERT, "cls_token_id"),
        (BERT, "mask_token_id"),
    ],
)
@pytest.mark.parametrize("value", [301, -1])
def test_a_special_token_outside_the_vocabulary_is_refused_without_weights(
    tmp_path: Path, shape: dict[str, Any], field: str, value: int
) -> None:
    with pytest.raises(hf.UnsupportedModel, match=f"config.json: {field}={value} is not one id of .* 301; mend it"):
        hf.read_config(folder_of(tmp_path, {field: value}, **shape))


def test_a_tokenizers_token_outside_the_vocabulary_is_not_blamed_on_config_json(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"eos_token_id": None, "mask_token_id": None}, **BERT)
    durable.write_json(folder / "tokenizer.json", {"added_tokens": [{"content": "[MASK]", "id": 400}]})
    with pytest.raises(
        hf.UnsupportedModel, match=r"mask_token_id=400 is not one id .*; its tokenizer says so; give its"
    ):
        hf.read_config(folder)


def test_how_many_classes_is_said_by_their_names_or_else_by_their_number(tmp_path: Path) -> None:
    def labels(**fields: Any) -> tuple[str, ...]:
        return hf.read_config(folder_of(tmp_path, {"id2label": None, "label2id": None} | fields, **CLASSES)).labels

    assert labels(num_labels=3) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert labels(num_labels=3, id2label={"0": "x", "1": "y"}) == ("x", "y")
    assert labels() == ("LABEL_0", "LABEL_1")
    assert transformers.GPT2Config(num_labels=3).num_labels == 3


def test_a_bert_that_names_some_of_its_tokens_is_completed_from_its_tokenizer(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"eos_token_id": None, "sep_token_id": None, "mask_token_id": None}, **BERT)
    durable.write_bytes(folder / "vocab.txt", "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]).encode())
    found = hf.read_config(folder)
    assert (found.cls_token_id, found.sep_token_id, found.mask_token_id, found.eot_token_id) == (4, 3, 4, 3)
    said = hf.read_config(folder_of(tmp_path, {"eos_token_id": None}, **BERT))
    assert (said.sep_token_id, said.eot_token_id, said.mask_token_id) == (7, 7, 5)


@pytest.mark.parametrize(("said", "padding"), [(9, 9), (None, 0)])
def test_a_berts_padding_is_what_config_json_says_and_else_its_tokenizers(
    tmp_path: Path, said: int | None, padding: int
) -> None:
    """Special or not, a token is in the vocabulary."""
    folder = folder_of(tmp_path, {"eos_token_id": None, "sep_token_id": None, "pad_token_id": said}, **BERT)
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    state = {"model": {"vocab": vocabulary}, "added_tokens": [{"content": "[SEP]", "id": 3}]}
    durable.write_json(folder / "tokenizer.json", state)
    found = hf.read_config(folder)
    assert (found.padding, found.eot_token_id, found.cls_token_id) == (padding, 3, 4)
    durable.write_json(folder / "tokenizer.json", state | {"model": {"vocab": [[name, 0.0] for name in vocabulary]}})
    assert hf.read_config(folder) == found
