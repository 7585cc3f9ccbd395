"""An export over held-out data: how many bits a byte costs a language model, which class a classifier predicts.

The one idea: what is measured is what ships. The export is loaded through `transformers`, as downstream loads
it, and never through our own modules. Each function takes a job (a dict of JSON values) and runs as a Ray task
or alone; equal jobs on equal numerics give equal results.

    evaluate_language_model({"export", "manifest", "root", "threads", "device", "batch_size", "attention"})
    document_bits({"export", "manifest", "root", "output", "threads", "device", "batch_size", "attention"})
    classify({"export", "examples", "output", "threads", "max_length", "stride", "device", "batch_size"})

`attention` is how the model was pre-trained, as in `ObjectiveConfig`; none: across documents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import durable
from model.examples import surrounding, text_windows
from model.export import load_export
from model.token_shards import TokenShards

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_SIZE = 16  # sequences at a time where the job does not say
_LOGITS = 1 << 28  # in one batch: 1 GiB. SmolLM2 takes 8,192 tokens, each with 49,152 logits
_TOKENS = 16 << 10  # in one forward pass at most: logits are (tokens, vocabulary), and some models take 8,192 at once


def windows(shards: TokenShards, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The stream as disjoint windows: inputs (T,) and targets (T,), each token of the stream a target exactly once.

    A window's first target is predicted from the token before it, the stream's first one from an EOT. T is
    `length` except in the last window.
    """
    for start in range(0, len(shards), length):
        targets = torch.from_numpy(shards.read(start, min(length, len(shards) - start)).astype("int64"))
        before = shards.eot if start == 0 else int(shards.read(start - 1, 1)[0])
        yield torch.cat((torch.tensor([before]), targets[:-1])), targets


def _batched(pairs: Iterator[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of equal length stacked, at most `size` at a time: inputs and targets (B, T)."""
    rows: list[tuple[Tensor, Tensor]] = []
    for pair in pairs:
        if rows and (len(rows) == size or len(pair[0]) != len(rows[0][0])):
            yield torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
            rows = []
        rows.append(pair)
    yield torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])


def _mask(inputs: Tensor, eot: int, attention: str) -> Tensor:
    """Which tokens of inputs (B, T) count, (B, T); or which see which, (B, 1, T, T), where none sees another document."""
    if attention == "across_documents":
        return torch.ones_like(inputs)  # said aloud, because the EOT that opens a window also is the padding token
    documents = (inputs == eot).cumsum(1)  # (B, T): an EOT opens its document, as in training
    return (documents[:, None, :, None] == documents[:, None, None, :]).tril()


@torch.inference_mode()
def _losses(job: dict[str, Any], model: PreTrainedModel, shards: TokenShards) -> Iterator[tuple[Tensor, Tensor]]:
    """The stream's tokens in order and -ln p of each, a batch of windows at a time, both (B * T,).

    A window is as long as the model allows; documents in it see each other where they did in training.
    """
    length, attention = model.config.max_position_embeddings, job.get("attention", "across_documents")
    size = max(1, min(job.get("batch_size", BATCH_SIZE), _TOKENS // length))
    for inputs, targets in _batched(windows(shards, length), size):
        inputs, targets = inputs.to(model.device), targets.to(model.device)
        mask = _mask(inputs, shards.eot, attention)
        logits = model(inputs, attention_mask=mask, use_cache=False).logits  # (B, T, V)
        yield targets.flatten(), F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")


def document_bits(job: dict[str, Any]) -> dict[str, Any]:
    """Write the bits that a language model needs for each held-out document, in their order, to job["output"] (JSON).

    The sum over documents is that of `evaluate_language_model`; each document pays for the EOT that closes it.
    """
    torch.set_num_threads(job["threads"])
    shards = TokenShards.from_manifest(Path(job["manifest"]), Path(job["root"]))
    model = load_export(Path(job["export"]), job.get("device", "cpu"))
    _same_tokens(job, shards, model)
    bits: list[float] = [0.0]
    for tokens, losses in _losses(job, model, shards):
        ends = (tokens == shards.eot).long()
        place = ends.cumsum(0) - ends  # (B * T,): an EOT belongs to the document that it closes
        sums = torch.zeros(int(ends.sum()) + 1, dtype=torch.float64, device=losses.device)
        sums.index_add_(0, place, losses.double())
        bits[-1] += float(sums[0]) / math.log(2)
        bits += [float(nats) / math.log(2) for nats in sums[1:]]
    durable.write_json(Path(job["output"]), bits[:-1])  # nothing comes after the last EOT
    return {"documents": len(bits) - 1}


def _same_tokens(job: dict[str, Any], shards: TokenShards, model: PreTrainedModel) -> None:
    """ValueError if the shards have ids that the model does not know."""
    if shards.vocab_size > model.config.vocab_size or shards.eot != model.config.eos_token_id:
        raise ValueError(
            f"{job['manifest']}: tokens of a vocabulary of {shards.vocab_size} with EOT {shards.eot}, "
            f"{job['export']} has {model.config.vocab_size} with EOT {model.config.eos_token_id}; tokenize with its tokenizer"
        )


def evaluate_language_model(job: dict[str, Any]) -> dict[str, Any]:
    """Held-out loss of a language model export on token shards.

    bits_per_byte = nats / ln 2 / UTF-8 bytes of the text: it does not depend on the tokenizer, so models with
    different ones can be compared. The closing EOT of each document is predicted and paid for as well.
    perplexity = exp(nats / tokens), per token. ValueError if the shards have ids that the model does not know.
    """
    torch.set_num_threads(job["threads"])
    shards = TokenShards.from_manifest(Path(job["manifest"]), Path(job["root"]))
    model = load_export(Path(job["export"]), job.get("device", "cpu"))
    _same_tokens(job, shards, model)
    nats = sum((float(losses.double().sum()) for _, losses in _losses(job, model, shards)), 0.0)
    tokens, size = len(shards), sum(unit.bytes for unit in shards.units)
    return {
        "bits_per_byte": nats / math.log(2) / size,
        "perplexity": math.exp(nats / tokens),
        "nats": nats,
        "tokens": tokens,
        "bytes": size,
        "documents": sum(unit.documents for unit in shards.units),
        "window": model.config.max_position_embeddings,
    }


def load_tokenizer(export: Path) -> PreTrainedTokenizerBase:
    """The export's tokenizer, as `transformers` loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(export, local_files_only=True)


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Each text's token ids, uncut. A reserved token in a stranger's text stays text; an empty text is one EOT."""
    empty = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [row or empty for row in _plain(tokenizer, texts)]


def _plain(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Each text's own token ids: none of an empty text."""
    how = {"split_special_tokens": True, "add_special_tokens": False, "verbose": False}
    return list(tokenizer(texts, **how)["input_ids"]) if texts else []


def by_length(rows: list[list[int]], size: int) -> Iterator[list[int]]:
    """Indices of rows of about equal length, `size` at a time, longest first: little padding, and too little memory shows at once."""
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def affordable(indices: list[int], logits: int) -> Iterator[list[int]]:
    """A batch in parts, each with no more logits than `_LOGITS` or of one sequence; each sequence has `logits` of them."""
    size = max(1, _LOGITS // logits)
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


@torch.inference_mode()
def class_probabilities(model: PreTrainedModel, rows: list[list[int]], batch_size: int) -> list[list[float]]:
    """softmax over the classes for each row of token ids, in the order of `rows`."""
    found: list[list[float]] = [[] for _ in rows]
    pad = model.config.pad_token_id
    for indices in by_length(rows, batch_size):
        length = len(rows[indices[0]])
        tokens = torch.tensor([rows[i] + [pad] * (length - len(rows[i])) for i in indices])  # (B, T)
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (length - len(rows[i])) for i in indices])
        logits = model(tokens.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits  # (B, K)
        for index, scores in zip(indices, logits.double().softmax(-1).tolist(), strict=True):
            found[index] = scores
    return found


def read_examples(path: Path) -> list[dict[str, Any]]:
    """Text examples, one JSON object a line with `id`, `text`, `label`. ValueError names the line that is none."""
    examples = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            example = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number} is not JSON ({error})") from error
        missing = [name for name in ("id", "text", "label") if not isinstance(example, dict) or name not in example]
        if missing:
            raise ValueError(
                f"{path}:{number} lacks {', '.join(missing)}; an example is an object with id, text and label"
            )
        examples.append(example)
    return examples


def _mean(scores: list[list[float]]) -> list[float]:
    """The mean of some rows of probabilities; a single row as it is."""
    return scores[0] if len(scores) == 1 else [sum(column) / len(scores) for column in zip(*scores, strict=True)]


def classify(job: dict[str, Any]) -> dict[str, Any]:
    """Predict the class of each text example; write {"id", "label", "predicted", "scores"} a line, in input order.

    `predicted` is the most probable class, `scores` all probabilities. Texts longer than `max_length` tokens (by
    default all that the model takes) lose their end and are counted; with `stride` they are read in windows of
    `max_length`, each `stride` tokens after the one before it, whose probabilities are averaged. Returns {"examples",
    "truncated", "correct"}, and with `stride` "windowed", the texts that were read so.
    """
    torch.set_num_threads(job["threads"])
    export = Path(job["export"])
    examples = read_examples(Path(job["examples"]))
    model = load_export(export, job.get("device", "cpu"))
    longest = model.config.max_position_embeddings
    limit = min(job.get("max_length") or longest, longest)
    tokenizer, stride = load_tokenizer(export), job.get("stride") or 0
    rows = _plain(tokenizer, [example["text"] for example in examples])
    before, after = surrounding(lambda special: list(tokenizer("a", add_special_tokens=special)["input_ids"]))
    limit -= len(before) + len(after)
    # A model needs a token to look at: of an empty text what its tokenizer puts around texts, or else one EOT.
    parts = [
        [[*before, *one, *after] or [tokenizer.eos_token_id] for one in text_windows(row, limit, stride)]
        for row in rows
    ]
    found = iter(class_probabilities(model, [one for part in parts for one in part], job.get("batch_size", BATCH_SIZE)))
    scores = [_mean([next(found) for _ in part]) for part in parts]
    predicted = [max(range(len(row)), key=row.__getitem__) for row in scores]
    lines = [
        json.dumps({"id": example["id"], "label": example["label"], "predicted": best, "scores": row})
        for example, best, row in zip(examples, predicted, scores, strict=True)
    ]
    durable.write_bytes(Path(job["output"]), "".join(line + "\n" for line in lines).encode())
    longer = sum(len(row) > limit for row in rows)
    return {
        "examples": len(examples),
        **({"truncated": 0, "windowed": longer} if stride else {"truncated": longer}),
        "correct": sum(example["label"] == best for example, best in zip(examples, predicted, strict=True)),
    }
