"""Llama and BERT beside GPT-2: what `transformers` computes from our weights, and we from its."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from torch import Tensor

from model import durable, export, heads, hf
from model.config import ModelConfig, ModelShape
from model.transformer import FeedForward, Sight, Transformer, rotation
from tests.model import tiny

LLAMA: dict[str, Any] = {
    "family": "llama",
    "n_embd": 36,
    "n_head": 6,
    "n_kv_head": 2,
    "n_inner": 71,
    "rope_theta": 500.0,
}
BERT: dict[str, Any] = {
    "family": "bert", "layer_norm_epsilon": 1e-12, "type_vocab_size": 3, "pad_token_id": 3,
    "cls_token_id": 4, "sep_token_id": 7, "mask_token_id": 5,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-untied": LLAMA | {"tie_word_embeddings": False, "n_kv_head": None},
    "llama-classes": LLAMA | {"num_labels": 4},
    "gpt2-relu": {"feed_forward": "relu"},
    "bert": BERT,
    "bert-relu": BERT | {"feed_forward": "relu"},
    "bert-masked": BERT | {"head": "masked_lm"},
    "bert-one-segment": BERT | {"type_vocab_size": 1},
    "bert-classes": BERT | {"num_labels": 4},
    "bert-span": BERT | {"head": "span"},
}


def shaken(config: ModelConfig) -> heads.Model:
    """A model all of whose weights matter: biases and norms are drawn too."""
    model = heads.build(config, seed=5)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = torch.randn(parameter.shape, generator=generator)
            parameter.add_(spread * 0.2 if parameter.ndim == 1 else spread * 0.1)
    return model.eval()


def written(folder: Path, config: ModelConfig, model: heads.Model, shard_size: int | str = "5GB") -> Path:
    """The model as an export; the tokenizer is one of GPT-2's kind, which these tests do not look at."""
    tokenizer = tiny.write_tokenizer(folder / "tokenizer")
    export.write_export(folder / "export", config, model.state_dict(), tokenizer, shard_size)
    return folder / "export"


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_what_we_compute(tmp_path: Path, name: str) -> None:
    config = tiny.config(**SHAPES[name])
    model = shaken(config)
    folder = written(tmp_path, config, model)
    tokens, mask = export.probe_inputs(config)
    ours = export.last_logits(model, tokens, mask, config.segments)
    assert ours.abs().max() > 0.3
    export.write_probe(tmp_path / "probe.safetensors", tokens, mask, ours)
    loaded = export.load_export(folder)
    assert type(loaded).__name__ == hf.architecture(config)
    eot = loaded.config.eos_token_id
    assert eot == 7
    with pytest.raises(export.ExportMismatch, match="tokenizer"):  # all but the tokenizer, whose EOT is another, fits
        export.check_export(folder, tmp_path / "probe.safetensors")


@pytest.mark.parametrize("name", SHAPES)
def test_our_export_is_read_back_as_it_was(tmp_path: Path, name: str) -> None:
    config = tiny.config(**SHAPES[name])
    model = shaken(config)
    found, state = hf.from_hugging_face(written(tmp_path, config, model, shard_size=20_000))
    assert (tmp_path / "export" / "model.safetensors.index.json").exists()
    assert found.model_dump(exclude={"labels", "n_kv_head", "n_inner", "rope_theta"}) == config.model_dump(
        exclude={"labels", "n_kv_head", "n_inner", "rope_theta"}
    )
    assert (found.kv_heads, found.inner) == (config.kv_heads, config.inner)
    again = heads.build(found)
    assert hf.load_pretrained(again, state) == []
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def _theirs(kind: str, **changes: Any) -> Any:
    torch.manual_seed(11)
    if kind.startswith("Llama"):
        config: Any = transformers.LlamaConfig(
            vocab_size=211, hidden_size=40, intermediate_size=67, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=29, bos_token_id=1, eos_token_id=2, pad_token_id=2,
            initializer_range=0.3, **changes,
        )  # fmt: skip
    else:
        config = transformers.BertConfig(
            vocab_size=211, hidden_size=40, intermediate_size=67, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=29, eos_token_id=2, pad_token_id=0, initializer_range=0.3, **changes,
        )  # fmt: skip
    return getattr(transformers, kind)(config).eval()


KINDS = ("LlamaForCausalLM", "LlamaForSequenceClassification", "BertForPreTraining", "BertForMaskedLM",
         "BertForSequenceClassification", "BertForQuestionAnswering", "BertModel")  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_we_compute_what_transformers_computes(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    theirs = _theirs(kind, **({"num_labels": 3} if "Sequence" in kind else {})).to(dtype)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    theirs = (
        type(theirs).from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    )  # not .float(): buffers stay rounded
    config, state = hf.from_hugging_face(tmp_path / "theirs")
    model = heads.build(config).eval()
    fresh = hf.load_pretrained(model, state)
    assert not fresh or (kind == "BertModel" and all(name.startswith(("predictor", "next_sentence")) for name in fresh))
    tokens = torch.randint(3, 211, (3, 17), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([17, 9, 1])
    mask = torch.arange(17) < lengths[:, None]
    tokens = tokens.masked_fill(~mask, config.padding)
    with torch.no_grad():
        if kind.startswith("Bert"):
            types = (torch.arange(17) > 6).long().expand(3, 17)
            said = theirs(tokens, attention_mask=mask.long(), token_type_ids=types)
            found = (
                model.transformer(tokens, token_types=types, padding=mask)
                if kind == "BertModel"
                else model(tokens, token_types=types)
            )
        else:
            said, found = theirs(tokens, attention_mask=mask.long()), model(tokens)
    pairs = (
        [(found, said.last_hidden_state)]
        if kind == "BertModel"
        else list(zip(found if isinstance(found, tuple) else (found,), export._logits(said), strict=True))
    )
    for ours, other in pairs:
        if ours.ndim == 3:
            ours, other = ours[mask], other[mask]
        assert other.abs().max() > 0.1
        assert (ours - other).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"family": "llama", "feed_forward": "gelu"}, "family llama has no feed_forward='gelu'; choose swiglu"),
        ({"feed_forward": "swiglu"}, "families that have it: llama"),
        ({"n_kv_head": 1}, "family gpt2 has no n_kv_head"),
        ({"family": "bert", "rope_theta": 1e4}, "family bert has no rope_theta"),
        ({"family": "llama", "n_embd": 36, "n_head": 6, "n_kv_head": 4}, "n_kv_head=4 does not divide n_head=6"),
        ({"family": "llama", "n_embd": 30, "n_head": 6}, "is odd"),
        (LLAMA | {"initializer_range": 1.5}, "initializer_range=1.5 is more than 1, and transformers loads no Llama"),
        ({"family": "bert", "tie_word_embeddings": False}, "leave tie_word_embeddings on"),
        ({"family": "bert", "head": "language_model"}, "family bert has no language_model head"),
        ({"head": "span"}, "family gpt2 has no span head"),
    ],
)
def test_a_family_refuses_what_it_cannot_represent(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        tiny.config(**fields)


def test_norms_have_their_familys_epsilon() -> None:
    assert tiny.config(family="bert").layer_norm_epsilon == 1e-12
    assert tiny.config(family="bert", layer_norm_epsilon=1e-6).layer_norm_epsilon == 1e-6
    assert tiny.config().layer_norm_epsilon == tiny.config(**LLAMA).layer_norm_epsilon == 1e-5


def test_options_that_came_later_are_not_in_the_json_of_a_shape_that_does_not_use_them() -> None:
    shape = ModelShape(n_positions=64, n_embd=32, n_layer=2, n_head=2)
    assert list(shape.model_dump(mode="json")) == [
        "family", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "embd_pdrop", "resid_pdrop",
        "layer_norm_epsilon", "initializer_range", "tie_word_embeddings",
    ]  # fmt: skip
    assert shape.model_copy(update={"feed_forward": "relu"}).model_dump(mode="json")["feed_forward"] == "relu"


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_type='llama3'"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type='linear'"),
        ("LlamaForCausalLM", {"attention_bias": True}, "attention_bias=True is not supported, only False"),
        ("LlamaForCausalLM", {"mlp_bias": True}, "mlp_bias=True"),
        ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        ("LlamaForCausalLM", {"head_dim": 16}, "head_dim=16"),
        ("LlamaForCausalLM", {"eos_token_id": [1, 2]}, "eos_token_id=.* is not one id"),
        ("LlamaForCausalLM", {"hidden_size": None}, "'hidden_size' is missing"),
        ("BertForMaskedLM", {"hidden_act": "silu"}, "hidden_act='silu' is not supported, only gelu or relu"),
        ("BertForMaskedLM", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("BertForMaskedLM", {"is_decoder": True}, "is_decoder=True"),
        ("BertForMaskedLM", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ("BertForMaskedLM", {"eos_token_id": None}, "no tokenizer beside it that has"),
        ("BertForMaskedLM", {"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification is not"),
        ("BertForMaskedLM", {"model_type": "roberta"}, "model_type='roberta' is not supported, only gpt2, llama, bert"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_file_and_field(
    tmp_path: Path, kind: str, changes: dict[str, Any], said: str
) -> None:
    fields = _theirs(kind).config.to_dict() | {"architectures": [kind]} | changes
    durable.write_json(tmp_path / "config.json", {name: value for name, value in fields.items() if value is not None})
    with pytest.raises(hf.UnsupportedModel, match=f"config.json: .*{said}"):
        hf.from_hugging_face(tmp_path)


def test_root_mean_square_norm_and_shared_keys_follow_their_formulas() -> None:
    config = tiny.config(**LLAMA)
    block = shaken(config).transformer.h[0].double()
    x = torch.randn(1, 5, 36, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.ln_1.weight
    assert torch.allclose(block.ln_1(x), normed, atol=1e-12)
    attention, width = block.attn, 6
    q, k, v = (normed @ attention.c_attn.weight.T).split((36, 12, 12), dim=-1)
    seen = torch.ones(5, 5, dtype=torch.bool).tril()
    heads_said = []
    for head in range(6):  # heads 0 to 2 ask the first keys and values, 3 to 5 the second
        own, shared = slice(head * width, (head + 1) * width), slice(head // 3 * width, (head // 3 + 1) * width)
        scores = (q[0, :, own] @ k[0, :, shared].T / math.sqrt(width)).masked_fill(~seen, -torch.inf)
        heads_said.append(scores.softmax(-1) @ v[0, :, shared])
    expected = torch.cat(heads_said, dim=-1) @ attention.c_proj.weight.T
    assert torch.allclose(attention(normed, Sight(None, True, None))[0], expected, atol=1e-12)


def test_bert_norms_the_sum_of_a_branch_and_what_went_into_it() -> None:
    block = shaken(tiny.config(**BERT)).transformer.h[0].double()
    x = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def norm(x: Tensor, layer: Any) -> Tensor:
        spread = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (spread + 1e-12).sqrt() * layer.weight + layer.bias

    everywhere = Sight(None, False, None)
    between = norm(x + block.attn(x, everywhere), block.ln_1)
    assert torch.allclose(block(x, everywhere), norm(between + block.mlp(between), block.ln_2), atol=1e-10)


def test_relu_relu_is_trained_here_and_exported_nowhere(tmp_path: Path) -> None:
    config = tiny.config(feed_forward="relu_relu")
    model = heads.build(config, seed=1)
    with pytest.raises(hf.UnsupportedModel, match="no Hugging Face family computes feed_forward=relu_relu"):
        hf.to_hugging_face(config, model.state_dict())
    assert not config.exportable


def test_feed_forwards_follow_their_formulas() -> None:
    x = torch.randn(2, 3, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def layer(**changes: Any) -> tuple[FeedForward, list[Tensor]]:
        made = FeedForward(tiny.config(**changes)).double()
        return made, [parameter.detach() for parameter in made.parameters()]

    ours, (w1, b1, w2, b2) = layer(feed_forward="relu")
    assert torch.allclose(ours(x), (x @ w1.T + b1).clamp(min=0) @ w2.T + b2, atol=1e-12)
    ours, (w1, b1, w2, b2) = layer(feed_forward="relu_relu")
    assert torch.allclose(ours(x), ((x @ w1.T + b1).clamp(min=0) @ w2.T + b2).clamp(min=0), atol=1e-12)
    ours, (w1, b1, w2, b2) = layer(**BERT)
    hidden = x @ w1.T + b1
    assert torch.allclose(ours(x), (hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2) @ w2.T + b2, atol=1e-12)
    ours, (w1, w2) = layer(**(LLAMA | {"n_embd": 30, "n_head": 5, "n_kv_head": 1}))
    gate, up = x @ w1[:71].T, x @ w1[71:].T
    assert torch.allclose(ours(x), (gate / (1 + (-gate).exp()) * up) @ w2.T, atol=1e-12)


def test_rotary_positions_turn_pairs_so_that_only_distance_counts() -> None:
    cos, sin = rotation(12, 6, 100.0, torch.device("cpu"))
    for t in range(12):
        for i in range(3):
            angle = t * 100.0 ** (-2 * i / 6)
            assert float(cos[t, i]) == pytest.approx(math.cos(angle), abs=1e-6)
            assert float(sin[t, i + 3]) == pytest.approx(math.sin(angle), abs=1e-6)
    q, k = torch.randn(2, 6, generator=torch.Generator().manual_seed(4))

    def turned(x: Tensor, t: int) -> Tensor:
        return x * cos[t] + torch.cat((-x[3:], x[:3])) * sin[t]

    scores = [float(turned(q, t) @ turned(k, t - 4)) for t in range(4, 12)]
    assert scores == pytest.approx([scores[0]] * 8, abs=1e-5)


@pytest.mark.parametrize("family", [{}, LLAMA, BERT])
def test_attention_within_documents_is_that_of_each_document_alone(family: dict[str, Any]) -> None:
    model = Transformer(tiny.config(**family)).double().eval()
    first, second = torch.arange(10, 19)[None], torch.arange(40, 45)[None]
    packed = torch.cat((first, second), dim=1)
    documents = torch.tensor([[0] * 9 + [1] * 5])
    with torch.no_grad():
        if hasattr(model, "wpe"):
            model.wpe.weight.zero_()  # positions go on from one document to the next, for all else they are alone
        found = model(packed, documents=documents)
        alone = torch.cat((model(first), model(second)), dim=1)
    assert torch.allclose(found, alone, atol=1e-10)


def test_padding_is_not_seen_by_bert() -> None:
    model = shaken(tiny.config(**BERT))
    tokens = torch.arange(20, 31)[None]
    longer = torch.cat((tokens, torch.full((1, 5), 3)), dim=1)
    with torch.no_grad():
        (short, follows), (long, also) = model(tokens), model(longer)
    assert torch.allclose(short, long[:, :11], atol=1e-5) and torch.allclose(follows, also, atol=1e-5)


@pytest.mark.parametrize("family", [{}, LLAMA, BERT])
def test_a_prefix_stands_where_tokens_would(family: dict[str, Any]) -> None:
    model = Transformer(tiny.config(**family)).eval()
    tokens = torch.arange(50, 60)[None]
    with torch.no_grad():
        prefix = model.wte(tokens[:, :4]) + (model.wse(torch.zeros(1, 4, dtype=torch.long)) if family is BERT else 0)
        assert torch.allclose(model(tokens[:, 4:], prefix=prefix), model(tokens), atol=1e-6)
