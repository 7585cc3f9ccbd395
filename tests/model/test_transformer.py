"""The Transformer against its formulas, written out once more in float64, step by step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model import heads, objectives
from model.config import ModelConfig
from model.cross_entropy import IGNORE_INDEX
from model.dropout import DropoutKey
from tests.model import tiny


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the features."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + epsilon) * weight + bias


def attention(x: Tensor, state: dict[str, Tensor], n_head: int) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V for each head, heads side by side, then the output projection. x (T, C)."""
    length, width = x.shape
    size = width // n_head
    qkv = x @ state["c_attn.weight"].T + state["c_attn.bias"]
    outputs = []
    for head in range(n_head):
        q, k, v = (qkv[:, part * width + head * size : part * width + (head + 1) * size] for part in range(3))
        scores = q @ k.T / math.sqrt(size)
        for t in range(length):
            scores[t, t + 1 :] = -math.inf
        exponents = torch.exp(scores - scores.max(-1, keepdim=True).values)
        outputs.append(exponents / exponents.sum(-1, keepdim=True) @ v)
    return torch.cat(outputs, -1) @ state["c_proj.weight"].T + state["c_proj.bias"]


def feed_forward(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """W2 gelu(W1 x + b1) + b2 with GELU's tanh form."""
    u = x @ state["c_fc.weight"].T + state["c_fc.bias"]
    gelu = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    return gelu @ state["c_proj.weight"].T + state["c_proj.bias"]


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The parameters under `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def reference(state: dict[str, Tensor], tokens: Tensor, config: ModelConfig) -> Tensor:
    """Hidden states (T, C) after the last norm of one sequence (T,), in float64."""
    state = {name.removeprefix("transformer."): value.double() for name, value in state.items()}
    epsilon = config.layer_norm_epsilon
    x = state["wte.weight"][tokens] + state["wpe.weight"][: len(tokens)]
    for layer in range(config.n_layer):
        block = part(state, f"h.{layer}.")
        normed = layer_norm(x, block["ln_1.weight"], block["ln_1.bias"], epsilon)
        x = x + attention(normed, part(block, "attn."), config.n_head)
        normed = layer_norm(x, block["ln_2.weight"], block["ln_2.bias"], epsilon)
        x = x + feed_forward(normed, part(block, "mlp."))
    return layer_norm(x, state["ln_f.weight"], state["ln_f.bias"], epsilon)


def random_model(config: ModelConfig, **options: bool) -> heads.Model:
    """A model whose every parameter is far from its initial value, so that each one counts."""
    model = heads.build(config, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.2, generator=generator))
    return model


def some_tokens(rows: int, length: int, config: ModelConfig) -> Tensor:
    return torch.randint(0, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("length", [1, 2, 23, 37])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_language_model_follows_the_formulas(length: int, checkpointing: bool) -> None:
    config = tiny.config()
    model = random_model(config, activation_checkpointing=checkpointing)
    tokens = some_tokens(2, length, config)
    logits = model(tokens)
    for row in range(2):
        hidden = reference(model.state_dict(), tokens[row], config)
        expected = hidden @ model.state_dict()["transformer.wte.weight"].double().T
        assert (logits[row] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_gradients_follow_the_formulas() -> None:
    config = tiny.config()
    model = random_model(config)
    tokens, targets = some_tokens(1, 12, config), some_tokens(1, 12, config).flip(1)
    model(tokens, targets).backward()
    state = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    hidden = reference(state, tokens[0], config)
    logits = hidden @ state["transformer.wte.weight"].T
    (logits.logsumexp(-1) - logits.gather(1, targets[0][:, None])[:, 0]).sum().backward()
    for name, parameter in model.named_parameters():
        expected = state[name].grad
        assert (parameter.grad - expected).abs().max() < 1e-4 * expected.abs().max(), name


def test_classifier_reads_the_last_token_that_is_not_padding() -> None:
    config = tiny.config(num_labels=3)
    model = random_model(config)
    tokens = some_tokens(3, 20, config).clamp(min=config.eot_token_id + 1)
    lengths = [20, 11, 1]
    for row, length in enumerate(lengths):
        tokens[row, length:] = config.eot_token_id
    logits = model(tokens)
    for row, length in enumerate(lengths):
        hidden = reference(model.state_dict(), tokens[row, :length], config)
        expected = hidden[-1] @ model.state_dict()["score.weight"].double().T
        assert (logits[row] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_padding_on_the_right_changes_nothing() -> None:
    config = tiny.config(num_labels=2)
    model = random_model(config)
    tokens = some_tokens(2, 9, config).clamp(min=config.eot_token_id + 1)
    padded = torch.full((2, 30), config.eot_token_id)
    padded[:, :9] = tokens
    torch.testing.assert_close(model(padded), model(tokens), rtol=1e-5, atol=1e-5)


def test_later_tokens_do_not_reach_earlier_positions() -> None:
    config = tiny.config()
    model = random_model(config)
    tokens = some_tokens(1, 20, config)
    changed = tokens.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % config.vocab_size
    torch.testing.assert_close(model(tokens)[:, :12], model(changed)[:, :12], rtol=1e-6, atol=1e-6)
    assert (model(tokens)[:, 12:] - model(changed)[:, 12:]).abs().max() > 0.1


def test_activation_checkpointing_gives_identical_gradients_with_dropout() -> None:
    config = tiny.config(embd_pdrop=0.2, resid_pdrop=0.3)
    batch = objectives.Batch(some_tokens(3, 15, config), torch.tensor([4, 0, 9]))
    gradients = []
    for checkpointing in (False, True):
        model = random_model(config, activation_checkpointing=checkpointing)
        objectives.loss(model, "causal_lm", batch, DropoutKey(1, 2, batch.indices))[0].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


def test_tied_output_layer_is_one_parameter() -> None:
    tied, untied = heads.build(tiny.config()), heads.build(tiny.config(tie_word_embeddings=False))
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert untied.lm_head.weight is not untied.transformer.wte.weight
    size = tiny.config().vocab_size * tiny.config().n_embd
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == size


def test_initial_weights_depend_on_the_seed_alone_and_not_on_the_head() -> None:
    torch.manual_seed(1)
    first = heads.build(tiny.config(), seed=4).state_dict()
    torch.manual_seed(2)
    again = heads.build(tiny.config(), seed=4).state_dict()
    classifier = heads.build(tiny.config(num_labels=2), seed=4).state_dict()
    other = heads.build(tiny.config(), seed=5).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], classifier[name]) for name in first if name in classifier)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_initial_weights_have_gpt2s_spread() -> None:
    config = tiny.config(n_embd=200, n_inner=800, n_layer=2)
    state = heads.build(config).state_dict()
    assert state["transformer.wte.weight"].std().item() == pytest.approx(0.02, rel=0.03)
    assert state["transformer.h.1.mlp.c_proj.weight"].std().item() == pytest.approx(0.01, rel=0.03)
    assert state["transformer.h.0.attn.c_attn.bias"].abs().max() == 0
    assert (state["transformer.ln_f.weight"] == 1).all()


def test_sequence_longer_than_the_positions_is_refused() -> None:
    config = tiny.config()
    with pytest.raises(ValueError, match="38 tokens do not fit into n_positions=37"):
        heads.build(config)(some_tokens(1, 38, config))


def test_loss_is_summed_over_the_targets_that_count() -> None:
    config = tiny.config()
    model = random_model(config)
    tokens = some_tokens(2, 10, config)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[0, 6:] = False
    batch = objectives.Batch(tokens, torch.arange(2), loss_mask=mask)
    total, count = objectives.loss(model, "causal_lm", batch)
    log_probabilities = torch.log_softmax(model(tokens[:, :-1]).double(), -1)
    expected = [-log_probabilities[b, t, tokens[b, t + 1]].item() for b in range(2) for t in range(9) if mask[b, t + 1]]
    assert int(count) == len(expected) == 14 == int(objectives.count_loss_tokens("causal_lm", batch))
    assert total.item() == pytest.approx(sum(expected), rel=1e-6)


def test_rows_of_weight_zero_add_nothing_to_a_classifiers_loss() -> None:
    config = tiny.config(num_labels=3)
    model = random_model(config)
    tokens = some_tokens(3, 8, config)
    whole = objectives.Batch(tokens, torch.arange(3), labels=torch.tensor([2, 0, IGNORE_INDEX]))
    real = objectives.Batch(tokens[:2], torch.arange(2), labels=torch.tensor([2, 0]))
    (total, count), (expected, _) = (objectives.loss(model, "classification", batch) for batch in (whole, real))
    assert int(count) == 2
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_classification_without_labels_is_refused() -> None:
    config = tiny.config(num_labels=3)
    with pytest.raises(ValueError, match="needs a label"):
        objectives.loss(
            heads.build(config), "classification", objectives.Batch(some_tokens(1, 8, config), torch.arange(1))
        )
