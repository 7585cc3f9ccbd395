"""A bidirectional export over held-out shards: does it know what was hidden, and what follows?

The one idea: what is measured is what ships, loaded through `transformers`, and the questions are made by the functions
that made the training batches, with a seed of their own. So they are the same in every evaluation of the same shards.

    evaluate({"export", "manifest", "root", "objective", "options", "sequence_length", "counts", "sequences", "threads",
              "device", "batch_size"})

`masked_perplexity` is exp of the mean -log p of hidden tokens, all of a sequence's hidden at once. The pseudo-perplexity
of Salazar et al. 2020 hides one at a time, which costs a forward pass for each token, and is lower. The baselines stand
beside: the most frequent token for every hidden one, with the training text's frequencies of what may be hidden; and for
pairs the share of the larger class, and `overlap`: B follows where it shares more with A than the median pair does, tokens counted by rarity.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from model.cross_entropy import IGNORE_INDEX
from model.evaluate import BATCH_SIZE
from model.export import load_export
from model.objectives import Batch
from model.pretraining import Order, Pretraining
from model.token_shards import TokenShards
from model.train_config import ObjectiveConfig
from model.vocabulary import load

SEED = 20_261_125  # of the questions


def evaluate(job: dict[str, Any]) -> dict[str, Any]:
    """The figures as JSON values: those of the objective's parts. `counts` is a file of the training tokens' numbers, (V,)
    float64; `sequences` how many are asked about at most, each once; what is left over from whole batches is not. ValueError
    if the shards are not of the export's tokenizer."""
    torch.set_num_threads(job["threads"])
    shards = TokenShards.from_manifest(Path(job["manifest"]), Path(job["root"]))
    model = load_export(Path(job["export"]), job.get("device", "cpu"))
    if shards.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{job['manifest']}: {shards.vocab_size} token ids, {job['export']} has {model.config.vocab_size}"
        )
    questions = _questions(job, shards)
    counts = np.fromfile(job["counts"])
    assert questions.vocabulary is not None  # of bidirectional models
    hidden, follows = _Hidden(counts, questions.vocabulary.special), _Follows(counts)
    items = min(job["sequences"], questions.sizes[0])
    for step in range(max(1, items // questions.order.global_batch_size)):
        # Of fewer than a batch, the rows after the last are those of the next epoch, which were asked already.
        batch = questions(step).rows.cut(slice(items)).to(model.device)
        tokens, pairs = _answers(model, batch)
        if batch.targets is not None:
            hidden.add(tokens, batch.targets)
        if batch.labels is not None:
            follows.add(pairs, batch)
    return hidden.figures() | follows.figures()


def _questions(job: dict[str, Any], shards: TokenShards) -> Pretraining:
    options = ObjectiveConfig.model_validate_json(json.dumps(job["options"])).model_copy(update={"mixture": {}})
    order = Order(SEED, job.get("batch_size", BATCH_SIZE), job["sequence_length"])
    return Pretraining({"": shards}, job["objective"], options, order, load(Path(job["export"])))


@torch.inference_mode()
def _answers(model: Any, batch: Batch) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Logits of the hidden tokens (N, V) and of the pairs (B, 2), where the model has such a head."""
    mask = torch.ones_like(batch.tokens) if batch.padding is None else batch.padding.long()  # (B, T)
    if batch.documents is not None:
        mask = (batch.documents[:, None, :, None] == batch.documents[:, None, None, :]) & mask[:, None, None, :].bool()
    said = model(batch.tokens, attention_mask=mask, token_type_ids=batch.token_types)
    if batch.targets is None:
        return None, said.seq_relationship_logits
    scores = said.prediction_logits if "prediction_logits" in said else said.logits  # (B, T, V)
    return scores[batch.targets != IGNORE_INDEX], said.get("seq_relationship_logits")


class _Hidden:
    """What was said of hidden tokens, added up."""

    def __init__(self, counts: np.ndarray, special: np.ndarray) -> None:
        smoothed = np.where(special, 0, counts + 1)  # (V,); special tokens are never hidden
        self.unigram: torch.Tensor = torch.from_numpy(smoothed / smoothed.sum())  # (V,)
        self.frequent = int(smoothed.argmax())
        self.targets = self.right = self.frequent_right = 0
        self.nats = self.unigram_nats = 0.0

    def add(self, logits: Any, targets: torch.Tensor) -> None:
        """Count a batch's answers (N, V) to its targets (B, T)."""
        asked = targets[targets != IGNORE_INDEX]  # (N,)
        self.targets += len(asked)
        self.right += int((logits.argmax(-1) == asked).sum())
        self.frequent_right += int((asked == self.frequent).sum())
        self.nats += float(F.cross_entropy(logits.float(), asked, reduction="none").double().sum())
        self.unigram_nats -= float(self.unigram[asked.cpu()].log().sum())

    def figures(self) -> dict[str, Any]:
        """Nothing, if nothing was asked."""
        if not self.targets:
            return {}
        return {
            "masked_tokens": self.targets,
            "masked_accuracy": round(self.right / self.targets, 6),
            "unigram_masked_accuracy": round(self.frequent_right / self.targets, 6),
            "masked_perplexity": math.exp(self.nats / self.targets),
            "unigram_masked_perplexity": math.exp(self.unigram_nats / self.targets),
        }


class _Follows:
    """What was said of pairs, added up."""

    def __init__(self, counts: np.ndarray) -> None:
        self.rarity: np.ndarray = -np.log((counts + 1) / (counts + 1).sum())  # (V,) nats
        self.right: list[bool] = []
        self.labels: list[int] = []
        self.shared: list[float] = []

    def add(self, logits: Any, batch: Batch) -> None:
        """Count a batch's answers (B, 2)."""
        assert batch.labels is not None and batch.token_types is not None and batch.padding is not None
        self.right += (logits.argmax(-1) == batch.labels).tolist()
        self.labels += batch.labels.tolist()
        for row, kinds, real in zip(batch.tokens.cpu(), batch.token_types.cpu(), batch.padding.cpu(), strict=True):
            a, b = (np.unique(row[real & (kinds == kind)].numpy()) for kind in (0, 1))
            self.shared.append(self.rarity[np.intersect1d(a, b)].sum() / self.rarity[b].sum())

    def figures(self) -> dict[str, Any]:
        """Nothing, if nothing was asked. `pairs_right` is for an interval."""
        if not self.labels:
            return {}
        labels, shared = np.array(self.labels), np.array(self.shared)
        guessed = np.where(shared > np.median(shared), 0, 1)
        return {
            "pairs": len(labels),
            "pairs_right": int(sum(self.right)),
            "next_sentence_accuracy": round(float(np.mean(self.right)), 6),
            "chance_next_sentence_accuracy": round(float(max(labels.mean(), 1 - labels.mean())), 6),
            "overlap_next_sentence_accuracy": round(float((guessed == labels).mean()), 6),
        }
