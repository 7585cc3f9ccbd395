"""Folders that are not whole, or whose parts contradict each other: refused by the part and the field, with what to mend."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from model import durable
from model.hf import UnsupportedModel
from tests.model.test_import_sources import bert, change, gpt2
from tests.model.test_importing import imported, llama


def refused(folder: Path, said: str) -> None:
    """The import of a folder ends with an error that says so."""
    with pytest.raises(UnsupportedModel, match=said):
        imported(folder, folder.with_name("ours"))


def test_a_folder_without_its_tokenizer_is_not_given_an_empty_one(tmp_path: Path) -> None:
    gpt2(tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").unlink()
    refused(tmp_path / "theirs", r"theirs has no tokenizer \(tokenizer.json, vocab.txt, .*; give the model's own")


@pytest.mark.parametrize(("make", "other"), [(gpt2, "vocab.txt"), (bert, "vocab.json")])
def test_a_tokenizer_of_nothing_but_its_special_tokens_is_refused(tmp_path: Path, make: Any, other: str) -> None:
    """transformers makes one where the file that its class reads is not there, whatever else is."""
    make(tmp_path / "theirs")
    change(tmp_path / "theirs", eos_token_id=3 if make is bert else 0)
    (tmp_path / "theirs" / "tokenizer.json").unlink()
    (tmp_path / "theirs" / other).write_text("{}")
    refused(
        tmp_path / "theirs", r"theirs: its tokenizer has no vocabulary, only \d added tokens \(.*\); give the files"
    )


def test_a_tokenizer_that_transformers_cannot_make_is_said_to_be_the_folders(tmp_path: Path) -> None:
    gpt2(tmp_path / "theirs")
    state = durable.read_json(tmp_path / "theirs" / "tokenizer.json")
    (tmp_path / "theirs" / "tokenizer.json").unlink()
    durable.write_json(tmp_path / "theirs" / "vocab.json", state["model"]["vocab"])
    refused(
        tmp_path / "theirs", r"theirs: transformers does not load its tokenizer \(.*merges.*\); give a tokenizer.json"
    )


def test_an_ending_that_the_tokenizer_lacks_is_refused_by_its_id(tmp_path: Path) -> None:
    gpt2(tmp_path / "theirs", vocab=320)
    change(tmp_path / "theirs", eos_token_id=310)
    refused(
        tmp_path / "theirs",
        r"config.json says eos_token_id=310, and its tokenizer has no token of that id \(it has 300\)",
    )


@pytest.mark.parametrize("field", ["eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id"])
def test_a_berts_marks_are_its_tokenizers_or_config_json_is_to_be_mended(tmp_path: Path, field: str) -> None:
    bert(tmp_path / "theirs")
    change(tmp_path / "theirs", **{field: 1})
    own = {"cls_token_id": r"\[CLS\] is 2", "mask_token_id": r"\[MASK\] is 4"}.get(field, r"\[SEP\] is 3")
    refused(tmp_path / "theirs", f"config.json says {field}=1, and its tokenizer's {own}; mend config.json")


def pad_with(folder: Path, token: str) -> int:
    """Give a folder's tokenizer a padding token of its own; returns its id."""
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": token})
    tokenizer.save_pretrained(folder)
    return int(tokenizer.pad_token_id)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2ForSequenceClassification"])
def test_where_config_json_names_no_padding_it_is_the_tokenizers(tmp_path: Path, kind: str) -> None:
    gpt2(tmp_path / "theirs", kind, vocab=320)
    padding = pad_with(tmp_path / "theirs", "<pad>")
    assert padding == 300
    figures = imported(tmp_path / "theirs", tmp_path / "ours")
    assert figures["source_difference"] <= 1e-4 and figures["eot"] == 0
    assert durable.read_json(tmp_path / "ours" / "model.json")["pad_token_id"] == padding
    assert durable.read_json(tmp_path / "ours" / "export" / "config.json")["pad_token_id"] == padding
    change(tmp_path / "theirs", pad_token_id=0)
    shutil.rmtree(tmp_path / "ours")
    refused(
        tmp_path / "theirs",
        r"config.json says pad_token_id=0, and its tokenizer fills rows up with <pad> \(300\); mend",
    )


def test_a_bert_whose_tokenizer_names_no_padding_keeps_that_of_config_json_and_has_to_have_one(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    bert(folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    durable.write_json(folder / "tokenizer_config.json", settings)
    state = durable.read_json(folder / "tokenizer.json")
    added = [token for token in state["added_tokens"] if token["content"] != "[PAD]"]
    durable.write_json(folder / "tokenizer.json", state | {"added_tokens": added, "padding": None})
    change(folder, pad_token_id=6)
    imported(folder, tmp_path / "ours")
    assert durable.read_json(tmp_path / "ours" / "model.json")["pad_token_id"] == 6
    shutil.rmtree(tmp_path / "ours")
    change(folder, pad_token_id=3)
    refused(folder, r"rows are to be filled up with \[SEP\], .*; say pad_token_id in config.json")


def classifier(folder: Path) -> None:
    """A GPT-2 of three classes."""
    gpt2(folder, "GPT2ForSequenceClassification", num_labels=3)


MISFITS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "vocabulary": (
        gpt2,
        {"vocab_size": 310},
        r"transformer.wte.weight is \(300, 24\) and not \(310, 24\); .*vocab_size=310",
    ),
    "layers": (bert, {"num_hidden_layers": 3}, r"bert.encoder.layer.2.attention.* is missing; .*num_hidden_layers=3,"),
    "bare": (
        bert,
        {"max_position_embeddings": 50},
        r"embeddings.position_embeddings.weight is \(40, 24\) and not \(50",
    ),
    "heads": (
        llama,
        {"num_key_value_heads": 1},
        r"layers.0.self_attn.k_proj.weight is \(12, 24\) and not \(6, 24\);.*value_h",
    ),
    "classes": (
        classifier,
        {"id2label": {"0": "a", "1": "b"}},
        r"score.weight is \(3, 24\) and not \(2, 24\); .* 2 classes",
    ),
    "width": (
        llama,
        {"intermediate_size": 60},
        r"model.layers.0.mlp.down_proj.weight is \(24, 50\) and not \(24, 60\)",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_config_json_does_not_describe_are_named_as_their_files_name_them(
    tmp_path: Path, case: str
) -> None:
    make, fields, said = MISFITS[case]
    make(tmp_path / "theirs")
    change(tmp_path / "theirs", **fields)
    refused(tmp_path / "theirs", rf"theirs: its weights do not fit config.json: .*{said}.*; mend config.json, or give")


def test_config_json_is_looked_at_before_the_tokenizer_that_transformers_makes_by_it(tmp_path: Path) -> None:
    llama(tmp_path / "theirs")
    change(tmp_path / "theirs", num_attention_heads=5)
    refused(tmp_path / "theirs", "theirs/config.json: head_dim=6 is not supported")


def test_a_file_of_weights_that_is_cut_is_named(tmp_path: Path) -> None:
    llama(tmp_path / "theirs")
    file = sorted((tmp_path / "theirs").glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-10])
    refused(tmp_path / "theirs", rf"theirs/{file.name} is no whole safetensors file, .*; copy it again")


def test_weights_that_are_no_numbers_are_said_to_be_that(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    gpt2(tmp_path / "theirs")
    weights = load_file(tmp_path / "theirs" / "model.safetensors")
    weights["transformer.h.1.ln_1.bias"][3] = float("nan")
    save_file(weights, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "theirs", r"NaN or infinity is in 1 of its weights \(transformer.h.1.ln_1.bias\)")
