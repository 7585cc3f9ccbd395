"""Continuations of prompts by an export, through `transformers`' own `generate`.

The one idea: a continuation is a function of (export, prompt, settings, seed), so a sample in a report can be
made again. Each prompt is drawn by itself from its own seed: another prompt beside it changes nothing.

    generate({"export", "prompts", "max_new_tokens", "seed", "temperature", "top_k", "threads", "device"})
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.evaluate import encode, load_tokenizer
from model.export import load_export

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _sampling(temperature: float, top_k: int) -> dict[str, Any]:
    """`generate`'s options: the most probable token each time at temperature 0, else a draw from the `top_k` best (0: all)."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": float(temperature), "top_k": top_k}


@torch.inference_mode()
def continue_tokens(
    model: PreTrainedModel, prompt: list[int], max_new_tokens: int, seed: int, temperature: float, top_k: int
) -> list[int]:
    """The ids that follow `prompt`, at most `max_new_tokens`, up to an EOT (included).

    A prompt that leaves no room in the model's positions loses its beginning. ValueError if the
    continuation alone does not fit.
    """
    room = model.config.max_position_embeddings - max_new_tokens
    if max_new_tokens < 1 or room < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} must be from 1 to {model.config.max_position_embeddings - 1}, one less than the model's positions"
        )
    inputs = torch.tensor([prompt[-room:]], device=model.device)  # (1, T)
    torch.manual_seed(seed)
    outputs = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=max_new_tokens, **_sampling(temperature, top_k)
    )
    return outputs[0, inputs.shape[1] :].tolist()


def generate(job: dict[str, Any]) -> list[str]:
    """The continuation of each prompt, without the prompt and without EOT. An empty prompt starts a document."""
    torch.set_num_threads(job["threads"])
    export = Path(job["export"])
    model, tokenizer = load_export(export, job.get("device", "cpu")), load_tokenizer(export)
    texts = []
    for prompt in encode(tokenizer, job["prompts"]):
        tokens = continue_tokens(
            model, prompt, job["max_new_tokens"], job["seed"], job.get("temperature", 1.0), job.get("top_k", 50)
        )
        texts.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return texts
