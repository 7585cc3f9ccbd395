"""Continuations of prompts by an export, through `transformers`' own `generate`, many prompts at a time.

The one idea: a continuation is a function of (export, prompt, settings, seed), so a sample in a report can be made
again, and the prompts beside it in a batch change nothing. Shorter prompts are padded on the left, where the mask hides
the padding and positions are counted from the first real token. What is drawn is drawn by adding Gumbel noise to the
logits and taking the largest (Gumbel 1954; the same distribution as sampling from the softmax): the noise of a row comes
from a generator of its own, seeded by its prompt.

    generate({"export", "prompts", "max_new_tokens", "seed", "temperature", "top_k", "threads", "device"})
    answer({"export", "prompts": examples file, "output", "max_new_tokens", ...the same})
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model import durable
from model.evaluate import by_length, encode, load_tokenizer
from model.examples import Examples
from model.export import load_export

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_SIZE = 32  # prompts at a time where the job does not say


class GumbelNoise:
    """A logits processor: with it, the largest logit of a row is a draw from the softmax of its `top_k` best (0: of all)."""

    def __init__(self, prompts: Sequence[Sequence[int]], seed: int, temperature: float, top_k: int) -> None:
        self._generators = [_generator(prompt, seed) for prompt in prompts]
        self._temperature, self._top_k = temperature, top_k

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B, T), scores (B, V) -> perturbed scores (B, V). Called once a token, in order."""
        scores = scores.float() / self._temperature
        if self._top_k:
            least = scores.topk(min(self._top_k, scores.shape[-1])).values[:, -1:]  # (B, 1)
            scores = scores.masked_fill(scores < least, -torch.inf)
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=row) for row in self._generators])  # (B, V)
        return scores - (-uniform.clamp_min(1e-20).log()).log().to(scores.device)


def _generator(prompt: Sequence[int], seed: int) -> torch.Generator:
    """The source of a prompt's noise: a function of the seed and of the prompt's tokens."""
    digest = hashlib.sha256(json.dumps([seed, list(prompt)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.inference_mode()
def continue_tokens(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    *,
    seed: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    batch_size: int = BATCH_SIZE,
) -> list[list[int]]:
    """The ids that follow each prompt, at most `max_new_tokens`, up to an EOT (included): the most probable at temperature 0.

    A prompt that leaves no room in the model's positions loses its beginning. ValueError if the
    continuation alone does not fit.
    """
    longest = model.config.max_position_embeddings
    if not 1 <= max_new_tokens < longest:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} must be from 1 to {longest - 1}, one less than the model's positions"
        )
    cut = [prompt[max_new_tokens - longest :] for prompt in prompts]
    found: list[list[int]] = [[] for _ in cut]
    for indices in by_length(cut, batch_size):
        rows = [cut[index] for index in indices]
        noise = [GumbelNoise(rows, seed, temperature, top_k)] if temperature else []
        for index, tokens in zip(indices, _continued(model, rows, max_new_tokens, noise), strict=True):
            found[index] = tokens
    return found


def _continued(model: PreTrainedModel, rows: list[list[int]], new: int, processors: list[Any]) -> list[list[int]]:
    """What follows each row of a batch, up to its EOT (included)."""
    from transformers import LogitsProcessorList

    width, eot = max(map(len, rows)), model.config.eos_token_id
    tokens = torch.tensor([[eot] * (width - len(row)) + row for row in rows], device=model.device)  # (B, T)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)  # (B, T)
    outputs = model.generate(
        tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=eot, eos_token_id=eot,
        logits_processor=LogitsProcessorList(processors),
    )  # fmt: skip
    ended = [row.tolist() for row in outputs[:, width:]]
    return [row[: row.index(eot) + 1] if eot in row else row for row in ended]


def _texts(job: dict[str, Any], model: PreTrainedModel, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    rows = continue_tokens(
        model, prompts, job["max_new_tokens"], seed=job["seed"], temperature=job.get("temperature", 1.0),
        top_k=job.get("top_k", 50), batch_size=job.get("batch_size", BATCH_SIZE),
    )  # fmt: skip
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def generate(job: dict[str, Any]) -> list[str]:
    """The continuation of each prompt, a text or a list of tokens, without the prompt and without EOT. An empty text starts a
    document."""
    torch.set_num_threads(job["threads"])
    export = Path(job["export"])
    model, tokenizer = load_export(export, job.get("device", "cpu")), load_tokenizer(export)
    rows = [one if isinstance(one, list) else encode(tokenizer, [one])[0] for one in job["prompts"]]
    return _texts(job, model, tokenizer, rows)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """What follows each prompt of an examples file, tokenised already; writes {"id", "text"} a line, in its order.

    Returns {"prompts", "cut"}: how many lost their beginning to the model's positions.
    """
    torch.set_num_threads(job["threads"])
    export, examples = Path(job["export"]), Examples(Path(job["prompts"]))
    model, tokenizer = load_export(export, job.get("device", "cpu")), load_tokenizer(export)
    prompts = [examples.tokens(index).tolist() for index in range(len(examples))]
    texts = _texts(job, model, tokenizer, prompts)
    lines = [
        json.dumps({"id": examples[index].id, "text": text.strip()}, ensure_ascii=False)
        for index, text in enumerate(texts)
    ]
    durable.write_bytes(Path(job["output"]), "".join(line + "\n" for line in lines).encode())
    room = model.config.max_position_embeddings - job["max_new_tokens"]
    return {"prompts": len(prompts), "cut": sum(len(prompt) > room for prompt in prompts)}
