"""An import is compared with the files that came in, and nothing that they lack or that is surplus is passed over."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from model import durable, hf_config
from model.hf import UnsupportedModel
from tests.model import tiny
from tests.model.test_importing import imported, llama, wordpiece


def gpt2(folder: Path, kind: str = "GPT2LMHeadModel", vocab: int = 300, **changes: Any) -> Any:
    """A small GPT-2 as transformers saves it, with as many ids as its tokenizer if not told otherwise."""
    tiny.write_tokenizer(folder)
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=vocab, n_embd=24, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3, **changes,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder)
    return model


def bert(folder: Path, kind: str = "BertModel") -> Any:
    """A small BERT as transformers saves it."""
    wordpiece(folder)
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=90, hidden_size=24, intermediate_size=50, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=40, initializer_range=0.3,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder)
    return model


def change(folder: Path, **fields: Any) -> None:
    """Give config.json other fields."""
    durable.write_json(folder / "config.json", durable.read_json(folder / "config.json") | fields)


def drop(folder: Path, *beginnings: str) -> None:
    """Take weights out of a folder."""
    from safetensors.torch import load_file, save_file

    kept = {
        name: one for name, one in load_file(folder / "model.safetensors").items() if not name.startswith(beginnings)
    }
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_what_is_read_otherwise_than_transformers_reads_it_is_refused_with_the_difference(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our model and its export agree then, wrong as they are: only the source tells."""
    make(tmp_path / "theirs")
    family = hf_config.FAMILIES[make.__name__]
    read = family.shape
    monkeypatch.setattr(family, "shape", lambda fields: read(fields) | {"layer_norm_epsilon": 0.5})
    said = "hidden states" if make is bert else "logits"
    with pytest.raises(
        UnsupportedModel, match=rf"{said} of transformers' \w+ and of our model differ by [\d.]+, more than"
    ):
        imported(tmp_path / "theirs", tmp_path / "ours")


HEADS = {  # what is taken out of a folder, and what is missed then
    "GPT2LMHeadModel": (("lm_head.",), "lm_head.weight"),
    "GPT2ForSequenceClassification": (("score.",), "score.weight"),
    "BertForPreTraining": (("cls.",), "cls.predictions.bias, cls.predictions.transform.LayerNorm.bias, .*cls.seq_rel"),
    "BertForMaskedLM": (("cls.predictions.transform.LayerNorm.weight",), "cls.predictions.transform.LayerNorm.weight"),
    "BertForSequenceClassification": (("bert.pooler.",), "bert.pooler.dense.bias, bert.pooler.dense.weight"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_config_json_names_and_the_files_lack_is_not_invented(tmp_path: Path, kind: str) -> None:
    folder, (parts, said) = tmp_path / "theirs", HEADS[kind]
    bert(folder, kind) if kind.startswith("Bert") else gpt2(folder, kind, tie_word_embeddings=False)
    drop(folder, *parts)
    with pytest.raises(
        UnsupportedModel, match=f"config.json names {kind}, and the files lack its {said}.*; give a folder"
    ):
        imported(folder, tmp_path / "ours")


@pytest.mark.parametrize("named", [["GPT2Model"], None])
def test_a_folder_that_names_no_head_gets_one_from_the_seed(tmp_path: Path, named: list[str] | None) -> None:
    gpt2(tmp_path / "theirs", "GPT2Model", tie_word_embeddings=False)
    change(tmp_path / "theirs", architectures=named)
    figures = imported(tmp_path / "theirs", tmp_path / "ours")
    assert figures["weights_from_seed"] == 1 and figures["source_difference"] <= 1e-4


def test_a_tied_model_as_safetensors_own_save_model_leaves_it_is_imported(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_model

    save_model(gpt2(tmp_path / "theirs"), str(tmp_path / "theirs" / "model.safetensors"))
    assert "transformer.wte.weight" not in load_file(tmp_path / "theirs" / "model.safetensors")
    figures = imported(tmp_path / "theirs", tmp_path / "ours")
    assert figures["weights_from_seed"] == 0 and figures["source_difference"] <= 1e-4


def test_of_one_file_and_several_with_an_index_the_one_is_read_that_transformers_reads(tmp_path: Path) -> None:
    llama(tmp_path / "theirs")
    other = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "theirs" / "model.safetensors")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    assert imported(tmp_path / "theirs", tmp_path / "ours")["source_difference"] <= 1e-4


def test_a_classifier_without_a_padding_token_says_what_it_said(tmp_path: Path) -> None:
    gpt2(tmp_path / "theirs", "GPT2ForSequenceClassification", num_labels=3)
    assert durable.read_json(tmp_path / "theirs" / "config.json").get("pad_token_id") is None
    assert imported(tmp_path / "theirs", tmp_path / "ours")["source_difference"] <= 1e-4


def test_a_folder_with_more_layers_than_its_config_json_says_is_refused(tmp_path: Path) -> None:
    gpt2(tmp_path / "theirs")
    change(tmp_path / "theirs", n_layer=1)
    with pytest.raises(
        UnsupportedModel,
        match=r"transformer\.h\.1\.attn\.c_attn\.bias is of no layer .* and 9 more; it says .*n_layer=1,",
    ):
        imported(tmp_path / "theirs", tmp_path / "ours")


def gguf(path: Path, without: str) -> None:
    """A GGUF file of a Llama of one layer, without the weights of one name."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    for name, value in {
        "block_count": 1, "context_length": 32, "embedding_length": 8, "feed_forward_length": 16, "head_count": 2,
        "head_count_kv": 2, "vocab_size": 20, "layer_norm_rms_eps": 1e-5, "rope_dimension_count": 4,
    }.items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    square, wide = [f"blk.0.attn_{part}" for part in ("q", "k", "v", "output")], ("blk.0.ffn_gate", "blk.0.ffn_up")
    shapes = {"token_embd": (20, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)}
    shapes |= dict.fromkeys(square, (8, 8)) | dict.fromkeys(wide, (16, 8)) | {"blk.0.ffn_down": (8, 16)}
    for name, shape in shapes.items():
        if name != without:
            writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    gguf(tmp_path / "a.gguf", without="blk.0.ffn_up")
    with pytest.raises(UnsupportedModel, match=r"a.gguf lacks model.layers.0.mlp.up_proj.weight; give a file that has"):
        imported(tmp_path, tmp_path / "ours")
