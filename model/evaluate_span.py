"""An export that finds answers, over questions: for each the best stretch of its context.

The one idea: every stretch of at most `longest` tokens within one window of the context has a score, the start's plus
the end's, and the best over all windows is the answer: as SQuAD's own script wants it, a text, never "no answer".

    answer({"export", "questions", "output", "threads", "max_length", "stride", "device", "batch_size"})
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model import durable
from model.evaluate import BATCH_SIZE, by_length, load_tokenizer
from model.export import load_export
from model.questions import Offsets, Window, longest_question, windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST = 30  # tokens of an answer, as in BERT's own evaluation


def answer(job: dict[str, Any]) -> dict[str, int]:
    """Find an answer to each question; write {"id", "predicted", "start", "score"} a line, in input order.

    A context that is longer than `max_length` tokens (by default all that the model takes) is read in windows, each
    `stride` tokens (by default half of it) after the one before. Returns {"examples", "windowed", "questions_cut"}.
    """
    torch.set_num_threads(job["threads"])
    asked = [json.loads(line) for line in Path(job["questions"]).read_text("utf-8").split("\n") if line]
    model, tokenizer = load_export(Path(job["export"]), job.get("device", "cpu")), load_tokenizer(Path(job["export"]))
    length = min(job.get("max_length") or model.config.max_position_embeddings, model.config.max_position_embeddings)
    questions, _ = _encoded(tokenizer, [one["question"] for one in asked])
    contexts, offsets = _encoded(tokenizer, [one["context"] for one in asked])
    special = (int(tokenizer.cls_token_id), int(tokenizer.sep_token_id))
    stride = job.get("stride") or length // 2
    rows = [windows(*pair, special, length, stride) for pair in zip(questions, contexts, strict=True)]
    scored = iter(_best(model, [one for part in rows for one in part], job.get("batch_size", BATCH_SIZE)))
    lines = []
    for example, part, places in zip(asked, rows, offsets, strict=True):
        found = [(*next(scored), window) for window in part]
        score, first, last, window = max(found, key=lambda one: one[0])
        start, text = _text(example["context"], places, window, first, last)
        lines.append({"id": example["id"], "predicted": text, "start": start, "score": round(score, 6)})
    texts = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
    durable.write_bytes(Path(job["output"]), "".join(texts).encode())
    return {
        "examples": len(asked),
        "windowed": sum(len(part) > 1 for part in rows),
        "questions_cut": sum(len(row) > longest_question(length) for row in questions),
    }


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[list[list[int]], list[Offsets]]:
    """Each text's token ids, uncut, and the characters that each token stands for. Reserved tokens in a text stay text."""
    if not texts:
        return [], []
    said = tokenizer(
        texts, split_special_tokens=True, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    return said["input_ids"], said["offset_mapping"]


@torch.inference_mode()
def _best(model: PreTrainedModel, rows: Sequence[Window], batch_size: int) -> list[tuple[float, int, int]]:
    """Of each window the score of its best stretch, and its first and last token among the context's in the window."""
    found: list[tuple[float, int, int]] = [(0.0, 0, 0)] * len(rows)
    pad = model.config.pad_token_id
    for indices in by_length([row.tokens for row in rows], batch_size):
        width = len(rows[indices[0]].tokens)
        padded = [[0] * (width - len(rows[i].tokens)) for i in indices]
        tokens = torch.tensor(
            [rows[i].tokens + [pad] * len(rest) for i, rest in zip(indices, padded, strict=True)]
        )  # (B, T)
        types = torch.tensor([rows[i].token_types + rest for i, rest in zip(indices, padded, strict=True)])  # (B, T)
        mask = torch.tensor(
            [[1] * len(rows[i].tokens) + rest for i, rest in zip(indices, padded, strict=True)]
        )  # (B, T)
        inputs = {"input_ids": tokens, "token_type_ids": types, "attention_mask": mask}
        said = model(**{name: value.to(model.device) for name, value in inputs.items()})
        starts, ends = said.start_logits.double().cpu(), said.end_logits.double().cpu()  # (B, T) each
        for row, index in enumerate(indices):
            window = rows[index]
            inside = slice(window.second, window.second + window.count)
            found[index] = best_stretch(starts[row, inside], ends[row, inside])
    return found


def best_stretch(starts: Tensor, ends: Tensor, longest: int = LONGEST) -> tuple[float, int, int]:
    """The largest starts[i] + ends[j] with i <= j < i + longest, and its i and j; of equal ones the first. (-inf, 0, 0) of nothing."""
    if not len(starts):
        return float("-inf"), 0, 0
    allowed = torch.ones((len(starts), len(starts)), dtype=torch.bool).triu().tril(longest - 1)  # (T, T)
    scores = (starts[:, None] + ends[None, :]).masked_fill(~allowed, float("-inf"))  # (T, T)
    first, last = divmod(int(scores.argmax()), len(starts))
    return float(scores[first, last]), first, last


def _text(context: str, offsets: Offsets, window: Window, first: int, last: int) -> tuple[int, str]:
    """Where an answer begins in its context, and its characters; ("" of a context without any token)."""
    if not window.count:
        return 0, ""
    start, end = offsets[window.start + first][0], offsets[window.start + last][1]
    text = context[start:end]
    return start + len(text) - len(text.lstrip()), text.strip()
