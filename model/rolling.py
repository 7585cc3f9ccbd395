"""How surprising texts are to a causal language model, each text by itself, as evaluation harnesses measure it.

The one idea: lm-eval's disjoint rolling windows, word for word, so that its figure and ours can be compared to the last
digits. A text opens after an end-of-text token, each of its tokens is predicted once, no closing token is paid for,
and the last window reaches back to be as long as the model allows. (The line's own figure, in `evaluate.py`, reads all
held-out documents as the one stream that training reads.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from model.evaluate import BATCH_SIZE, affordable, by_length, encode, load_tokenizer
from model.export import load_export

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def rolling_windows(tokens: list[int], opening: int, length: int) -> Iterator[tuple[list[int], int]]:
    """The windows over one text: the ids that a window holds, at most `length` + 1, and how many at its end are predicted.

    As lm-eval's get_rolling_token_windows with a context of one token, followed by make_disjoint_window.
    """
    first = min(length, len(tokens))
    yield [opening, *tokens[:first]], first
    for end in range(first + length, len(tokens) + length, length):
        predicted = length - max(0, end - len(tokens))
        end = min(end, len(tokens))
        yield tokens[end - length - 1 : end], predicted


@torch.inference_mode()
def text_nats(model: PreTrainedModel, rows: list[list[int]], opening: int, length: int, batch_size: int) -> list[float]:
    """-ln p of each row of token ids, summed in float64, in the order of `rows`."""
    windows = [(row, *window) for row, ids in enumerate(rows) for window in rolling_windows(ids, opening, length)]
    found = [0.0] * len(windows)
    vocabulary = model.config.vocab_size
    batches = by_length([ids for _, ids, _ in windows], batch_size)
    for places in (part for each in batches for part in affordable(each, len(windows[each[0]][1]) * vocabulary)):
        width = len(windows[places[0]][1])
        ids = torch.tensor([windows[place][1] + [opening] * (width - len(windows[place][1])) for place in places])
        inputs, targets = ids[:, :-1].to(model.device), ids[:, 1:].to(model.device)  # (B, T), (B, T)
        # Padded on the right, where causal attention never looks: no mask is needed for what is real.
        logits = model(inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits  # (B, T, V)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(targets)
        for place, row in zip(places, losses.double(), strict=True):
            last = len(windows[place][1]) - 1
            found[place] = float(row[last - windows[place][2] : last].sum())
    sums = [0.0] * len(rows)
    for (row, _, _), nats in zip(windows, found, strict=True):
        sums[row] += nats
    return sums


def evaluate_texts(job: dict[str, Any]) -> dict[str, Any]:
    """Bits per byte of the texts in job["texts"] (JSONL with `text`), {"bits_per_byte", "byte_perplexity", "nats", "bytes", "texts"}.

    ValueError if there is none: bits per byte of nothing are no figure.
    """
    torch.set_num_threads(job["threads"])
    export = Path(job["export"])
    texts = [json.loads(line)["text"] for line in Path(job["texts"]).read_bytes().splitlines()]
    if not texts:
        raise ValueError(f"{job['texts']} holds no text")
    model, tokenizer = load_export(export, job.get("device", "cpu")), load_tokenizer(export)
    opening = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    length = model.config.max_position_embeddings
    nats = math.fsum(text_nats(model, encode(tokenizer, texts), opening, length, job.get("batch_size", BATCH_SIZE)))
    size = sum(len(text.encode()) for text in texts)
    return {
        "bits_per_byte": nats / math.log(2) / size,
        "byte_perplexity": math.exp(nats / size),
        "nats": nats,
        "bytes": size,
        "texts": len(texts),
    }
