"""Our weights in transformers, and transformers' in ours: the same logits, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model import durable, heads, hf
from model.config import ModelConfig
from tests.model import tiny

SHAPES: list[dict[str, Any]] = [
    {},
    {"n_inner": None, "n_head": 1},
    {"n_embd": 9, "n_head": 9, "n_layer": 1, "n_positions": 11, "layer_norm_epsilon": 1e-3},
]


def random_state(config: ModelConfig) -> dict[str, Tensor]:
    """A state dict whose biases and norms count too."""
    state = heads.build(config).state_dict()
    generator = torch.Generator().manual_seed(9)
    drawn = {
        name: value + torch.empty_like(value).normal_(0, 0.1, generator=generator) for name, value in state.items()
    }
    if "lm_head.weight" in drawn and config.tie_word_embeddings:
        drawn["lm_head.weight"] = drawn["transformer.wte.weight"]
    return drawn


def write(folder: Path, config: ModelConfig, state: dict[str, Tensor]) -> None:
    """config.json and model.safetensors in `folder`."""
    from safetensors.torch import save_file

    fields, tensors = hf.to_hugging_face(config, state)
    durable.write_json(folder / "config.json", fields)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def padded_tokens(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Tokens (3, n_positions) padded on the right with EOT, and their mask."""
    tokens = torch.randint(8, config.vocab_size, (3, config.n_positions), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(config.n_positions) < torch.tensor([config.n_positions, 6, 1])[:, None]).long()
    return tokens.masked_fill(mask == 0, config.eot_token_id), mask


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tied", [True, False])
def test_language_model_computes_the_same_in_transformers(tmp_path: Path, shape: dict[str, Any], tied: bool) -> None:
    from transformers import GPT2LMHeadModel

    config = tiny.config(tie_word_embeddings=tied, **shape)
    state = random_state(config)
    write(tmp_path, config, state)
    theirs, info = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    ours = heads.build(config)
    ours.load_state_dict(state)
    tokens, mask = padded_tokens(config)
    expected = theirs.eval()(tokens, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(ours(tokens)[mask.bool()], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_classifier_computes_the_same_in_transformers(tmp_path: Path, shape: dict[str, Any]) -> None:
    from transformers import AutoModelForSequenceClassification

    config = tiny.config(num_labels=3, labels=("bad", "fair", "good"), head_pdrop=0.1, **shape)
    state = random_state(config)
    write(tmp_path, config, state)
    theirs, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert theirs.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    ours = heads.build(config)
    ours.load_state_dict(state)
    tokens, mask = padded_tokens(config)
    expected = theirs.eval()(tokens, attention_mask=mask).logits
    torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [None, 4])
def test_transformers_own_model_computes_the_same_here(tmp_path: Path, labels: int | None) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=301, n_positions=37, n_embd=30, n_layer=3, n_head=5, n_inner=71, num_labels=labels or 2,
        eos_token_id=7, bos_token_id=7, pad_token_id=7, initializer_range=0.3,
    )  # fmt: skip
    theirs = (GPT2LMHeadModel if labels is None else GPT2ForSequenceClassification)(config).eval()
    theirs.save_pretrained(tmp_path)
    ours_config, state = hf.from_hugging_face(tmp_path)
    assert ours_config.num_labels == labels
    ours = heads.build(ours_config)
    ours.load_state_dict(state)
    tokens, mask = padded_tokens(ours_config)
    found, expected = ours(tokens), theirs(tokens, attention_mask=mask).logits
    if labels is None:
        found, expected = found[mask.bool()], expected[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False}, {"num_labels": 2, "labels": ("a", "b"), "head_pdrop": 0.1}]
)
def test_round_trip_gives_back_configuration_and_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = tiny.config(embd_pdrop=0.1, **changes)
    state = random_state(config)
    write(tmp_path, config, state)
    found, tensors = hf.from_hugging_face(tmp_path)
    assert found == config
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def test_tied_weight_is_stored_once() -> None:
    _, tied = hf.to_hugging_face(tiny.config(), random_state(tiny.config()))
    config = tiny.config(tie_word_embeddings=False)
    _, untied = hf.to_hugging_face(config, random_state(config))
    assert "lm_head.weight" not in tied
    assert "lm_head.weight" in untied


def test_bf16_weights_are_stored_in_fp32() -> None:
    config = tiny.config()
    state = {name: value.bfloat16() for name, value in random_state(config).items()}
    assert {tensor.dtype for tensor in hf.to_hugging_face(config, state)[1].values()} == {torch.float32}


def test_names_without_prefix_and_old_mask_buffers_are_read(tmp_path: Path) -> None:
    """OpenAI's own gpt2 folder names `h.0...` without prefix and carries `attn.bias` masks."""
    from safetensors.torch import save_file

    config = tiny.config()
    state = random_state(config)
    fields, tensors = hf.to_hugging_face(config, state)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 37, 37).tril()
    durable.write_json(tmp_path / "config.json", fields)
    save_file(bare, tmp_path / "model.safetensors")
    _, found = hf.from_hugging_face(tmp_path)
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "opt"),
        ("activation_function", "silu"),
        ("scale_attn_by_inverse_layer_idx", True),
        ("eos_token_id", None),
    ],
)
def test_model_that_computes_something_else_is_refused_by_its_field(tmp_path: Path, field: str, value: Any) -> None:
    config = tiny.config()
    fields, _ = hf.to_hugging_face(config, random_state(config))
    durable.write_json(tmp_path / "config.json", fields | {field: value})
    with pytest.raises(hf.UnsupportedModel, match=f"config.json: {field}="):
        hf.from_hugging_face(tmp_path)


def test_folder_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    config = tiny.config()
    durable.write_json(tmp_path / "config.json", hf.to_hugging_face(config, random_state(config))[0])
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(hf.UnsupportedModel, match="never from pickles"):
        hf.from_hugging_face(tmp_path)


def test_labels_that_do_not_fit_are_refused() -> None:
    config = tiny.config(num_labels=3, labels=("a", "b"))
    with pytest.raises(ValueError, match="name 2 classes, num_labels=3"):
        hf.to_hugging_face(config, random_state(config))


def test_classifier_starts_from_a_language_models_transformer() -> None:
    state = random_state(tiny.config())
    classifier = heads.build(tiny.config(num_labels=2), seed=1)
    score = classifier.score.weight.clone()
    assert hf.load_pretrained(classifier, state) == ["score.weight"]
    assert torch.equal(classifier.transformer.h[1].mlp.c_fc.weight, state["transformer.h.1.mlp.c_fc.weight"])
    assert torch.equal(classifier.score.weight, score)


@pytest.mark.parametrize("shape", [{}, {"family": "bert", "pad_token_id": 3}])
@pytest.mark.parametrize("theirs", [("bad", "good"), ("good", "bad"), ("one", "two", "three"), ("yes", "no")])
def test_a_classifier_begins_from_another_ones_head_only_where_both_have_the_same_classes(
    tmp_path: Path, theirs: tuple[str, ...], shape: dict[str, Any]
) -> None:
    other = tiny.config(num_labels=len(theirs), labels=theirs, **shape)
    state = random_state(other)
    write(tmp_path, other, state)
    config = tiny.config(num_labels=2, labels=("bad", "good"), **shape)
    model = heads.build(config, seed=1)
    own, same = {name: value.clone() for name, value in model.state_dict().items()}, theirs == config.labels
    fresh = hf.begin_from(tmp_path, model, config)
    assert fresh == ([] if same else [name for name in sorted(own) if name.startswith("score.")])
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name] if name in fresh else state[name])


def test_pretrained_weights_of_another_shape_are_refused() -> None:
    classifier = heads.build(tiny.config(num_labels=2, n_layer=4))
    with pytest.raises(hf.UnsupportedModel, match=r"transformer\.h\.3"):
        hf.load_pretrained(classifier, random_state(tiny.config()))
    with pytest.raises(hf.UnsupportedModel, match=r"transformer\.wpe\.weight \(37, 30\) for \(40, 30\)"):
        hf.load_pretrained(heads.build(tiny.config(n_positions=40)), random_state(tiny.config()))


def test_weights_that_the_model_has_no_place_for_are_refused_and_named(tmp_path: Path) -> None:
    deep = tiny.config(n_layer=5)
    said = r"it has no transformer\.h\.3\.attn\.c_attn\.bias, .* and 21 more; give the model their shape"
    with pytest.raises(hf.UnsupportedModel, match=said):
        hf.load_pretrained(heads.build(tiny.config()), random_state(deep))


LLAMA: dict[str, Any] = {"family": "llama", "n_embd": 36, "n_head": 6, "n_inner": 71}


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ({"n_layer": 4}, {"n_layer": 2}, "n_layer=4 where the model has 2"),
        ({"n_head": 5}, {"n_head": 3}, "n_head=5 where the model has 3"),
        ({"feed_forward": "relu"}, {}, "feed_forward=relu where the model has gelu"),
        ({"layer_norm_epsilon": 1e-6}, {}, "layer_norm_epsilon=1e-06 where the model has 1e-05"),
        ({"tie_word_embeddings": False}, {}, "tie_word_embeddings=False where the model has True"),
        (LLAMA | {"rope_theta": 500.0}, LLAMA, r"rope_theta=500.0 where the model has 10000.0"),
        (LLAMA | {"n_kv_head": 2}, LLAMA | {"n_kv_head": 3}, "n_kv_head=2 where the model has 3"),
        (LLAMA, {}, "family=llama where the model has gpt2"),
    ],
)
def test_training_begins_from_no_weights_that_were_computed_with_otherwise(
    tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any], said: str
) -> None:
    other, config = tiny.config(**theirs), tiny.config(**ours)
    write(tmp_path, other, random_state(other))
    with pytest.raises(hf.UnsupportedModel, match=rf"{said}.*; give the model that shape .* retrain.start=scratch"):
        hf.begin_from(tmp_path, heads.build(config), config)


@pytest.mark.parametrize("theirs", [{}, {"n_positions": 50, "rope_theta": 10_000.0, "n_kv_head": 6}])
def test_training_begins_from_what_is_computed_alike_though_it_is_said_otherwise(
    tmp_path: Path, theirs: dict[str, Any]
) -> None:
    other, config = tiny.config(**LLAMA, **theirs), tiny.config(**LLAMA, num_labels=2, resid_pdrop=0.1)
    write(tmp_path, other, random_state(other))
    assert hf.begin_from(tmp_path, heads.build(config), config) == ["score.weight"]


@pytest.mark.parametrize(
    ("special", "opening", "padding"), [({}, 7, 7), ({"cls_token_id": 5, "pad_token_id": 2}, 5, 2)]
)
def test_a_continuation_is_opened_ended_and_padded_by_the_models_own_tokens(
    special: dict[str, int], opening: int, padding: int
) -> None:
    """Those of a Llama that begins texts with another token than it ends them with, in both files that say so."""
    config = tiny.config(**LLAMA, **special)
    found = hf.generation_config(config)
    assert found == {"bos_token_id": opening, "eos_token_id": 7, "pad_token_id": padding}
    fields, _ = hf.to_hugging_face(config, random_state(config))
    assert {name: fields[name] for name in found} == found
