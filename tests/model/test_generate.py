"""Batched generation: what a prompt is continued with does not depend on the prompts beside it, for any family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from model import generate, likelihood
from model.examples import Examples, write_examples
from model.generate import GumbelNoise, continue_tokens
from tests.model import tiny
from tests.model.test_evaluate import job, write_model

EOT = 7


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=90, n_positions=40, n_embd=24, n_layer=2, n_head=3, initializer_range=0.4, eos_token_id=EOT,
            bos_token_id=EOT, pad_token_id=EOT, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        )
    ).eval()  # fmt: skip


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=90, max_position_embeddings=40, hidden_size=24, intermediate_size=50, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.4, eos_token_id=EOT, bos_token_id=EOT,
            pad_token_id=EOT,
        )
    ).eval()  # fmt: skip


@pytest.fixture(scope="module", params=[gpt2, llama])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(1)
    return request.param()


def prompts() -> list[list[int]]:
    """Nine prompts of 1 to 25 tokens; some hold the EOT, which is the padding too."""
    chance = np.random.default_rng(3)
    rows = [chance.integers(0, 90, length).tolist() for length in (3, 25, 1, 8, 8, 14, 2, 20, 5)]
    rows[3][0], rows[5][4], rows[2][0] = EOT, EOT, EOT
    return rows


def greedy_by_hand(model: PreTrainedModel, prompt: list[int], new: int) -> list[int]:
    """Token by token, without a cache, without a batch, without `generate`."""
    tokens = list(prompt)
    for _ in range(new):
        row = torch.tensor([tokens])
        tokens.append(int(model(row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, -1].argmax()))
        if tokens[-1] == EOT:
            break
    return tokens[len(prompt) :]


def test_greedy_in_batches_is_greedy_one_at_a_time_token_by_token(model: PreTrainedModel) -> None:
    alone = [greedy_by_hand(model, prompt, 12) for prompt in prompts()]
    assert len({tuple(row) for row in alone}) > 5, "a model that says one thing only shows nothing"
    for size in (1, 4, 9):
        assert continue_tokens(model, prompts(), 12, batch_size=size) == alone


def test_draws_of_a_prompt_do_not_depend_on_its_batch(model: PreTrainedModel) -> None:
    how: dict[str, Any] = {"seed": 4, "temperature": 0.9, "top_k": 30}
    together = continue_tokens(model, prompts(), 12, batch_size=9, **how)
    assert together == continue_tokens(model, prompts(), 12, batch_size=1, **how)
    assert together[::-1] == continue_tokens(model, prompts()[::-1], 12, batch_size=4, **how)
    assert together != continue_tokens(model, prompts(), 12, batch_size=9, **(how | {"seed": 5}))


def test_a_continuation_ends_with_its_end_of_text_and_holds_no_padding(model: PreTrainedModel) -> None:
    rows = continue_tokens(model, prompts() * 8, 14, seed=1, temperature=3.0)
    assert any(row[-1] == EOT for row in rows), "no draw ended: raise the temperature"
    assert all(EOT not in row[:-1] and 1 <= len(row) <= 14 for row in rows)


def test_a_long_prompt_loses_its_beginning(model: PreTrainedModel) -> None:
    long = (prompts()[1] * 3)[:60]
    assert continue_tokens(model, [long], 10) == continue_tokens(model, [long[-30:]], 10)


def test_gumbel_noise_draws_from_the_softmax_of_the_best() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.5, -1.0, -9.0]])
    draws = GumbelNoise([[1]], seed=0, temperature=0.7, top_k=4)
    counts = torch.bincount(torch.stack([draws(scores, scores).argmax() for _ in range(20_000)]), minlength=5) / 20_000
    expected = torch.tensor([2.0, 1.0, 0.5, -1.0]).div(0.7).softmax(-1)
    assert counts[4] == 0
    assert torch.allclose(counts[:4], expected, atol=0.01)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


def write_rows(path: Path, rows: list[list[int]], masks: list[Any] | None = None) -> Examples:
    ids = [f"p{index}" for index in range(len(rows))]
    write_examples(path, rows, ids, tokenizer="t", vocab_size=301, eot=0, loss_masks=masks)
    return Examples(path)


def test_answers_come_in_the_order_of_the_prompts_with_their_ids(tmp_path: Path, tokenizer: Path) -> None:
    write_model(tmp_path / "export", tokenizer)
    rows = [[5, 6, 7, 8, 9], [3], [8, 1, 2, 4]]  # four leave room for 33 of 37
    write_rows(tmp_path / "prompts.arrow", rows)
    asked = job(tmp_path, prompts=str(tmp_path / "prompts.arrow"), output=str(tmp_path / "answers.jsonl"), seed=0)
    found = generate.answer(asked | {"max_new_tokens": 33, "temperature": 0.0, "top_k": 0})
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").split("\n") if line]
    assert [line["id"] for line in lines] == ["p0", "p1", "p2"]
    assert found == {"prompts": 3, "cut": 1}
    model, decode = generate.load_export(tmp_path / "export"), generate.load_tokenizer(tmp_path / "export").decode
    for row, line in zip(rows, lines, strict=True):
        assert line["text"] == decode(continue_tokens(model, [row], 33)[0], skip_special_tokens=True).strip()


def test_nats_are_those_of_the_learned_tokens_alone(tmp_path: Path, tokenizer: Path) -> None:
    model = write_model(tmp_path / "export", tokenizer)
    chance = np.random.default_rng(0)
    rows = [chance.integers(1, 300, length).tolist() for length in (5, 37, 2, 11)]
    masks = [chance.random(len(row)) < 0.5 for row in rows[:3]] + [None]
    write_rows(tmp_path / "e.arrow", rows, masks)
    found = likelihood.example_nats(job(tmp_path, examples=str(tmp_path / "e.arrow"), batch_size=2))
    for (nats, count), row, mask in zip(found, rows, masks, strict=True):
        learned = np.ones(len(row), bool) if mask is None else mask
        each = -model(torch.tensor([row[:-1]]))[0].double().log_softmax(-1)[range(len(row) - 1), row[1:]]
        assert nats == pytest.approx(float(each[torch.from_numpy(learned[1:])].sum().detach()), abs=1e-4)
        assert count == learned[1:].sum()


def test_an_example_longer_than_the_model_is_refused_not_cut(tmp_path: Path, tokenizer: Path) -> None:
    write_model(tmp_path / "export", tokenizer)
    write_rows(tmp_path / "e.arrow", [[1] * 38])
    with pytest.raises(ValueError, match=r"an example of 38 tokens, .* takes 37"):
        likelihood.example_nats(job(tmp_path, examples=str(tmp_path / "e.arrow")))
