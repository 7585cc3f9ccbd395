"""How probable an export finds what it should have said: the nats of the learned tokens of examples.

The one idea: the same examples and loss masks as in training, through the folder that ships. A reply's perplexity and its
bits per byte come from these sums, by example, so that intervals can be drawn over any grouping of them.

    example_nats({"export", "examples", "threads", "device", "batch_size"})
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cross_entropy import IGNORE_INDEX
from model.evaluate import BATCH_SIZE, affordable, by_length
from model.examples import Examples
from model.export import load_export

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def example_nats(job: dict[str, Any]) -> list[tuple[float, int]]:
    """For each example -ln p of its learned tokens, summed in float64, and their number; in the file's order.

    ValueError for an example that is longer than the model's positions: nothing is cut unseen.
    """
    torch.set_num_threads(job["threads"])
    examples, model = Examples(Path(job["examples"])), load_export(Path(job["export"]), job.get("device", "cpu"))
    longest = model.config.max_position_embeddings
    if int(examples.lengths.max()) > longest:
        raise ValueError(
            f"{job['examples']}: an example of {examples.lengths.max()} tokens, {job['export']} takes {longest}"
        )
    rows = [examples.tokens(index).tolist() for index in range(len(examples))]
    found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for several in by_length(rows, job.get("batch_size", BATCH_SIZE)):
        for indices in affordable(several, len(rows[several[0]]) * model.config.vocab_size):
            for index, nats in zip(indices, _nats(model, examples, indices).tolist(), strict=True):
                found[index] = nats, int(examples.loss_mask(index)[1:].sum())
    return found


@torch.inference_mode()
def _nats(model: PreTrainedModel, examples: Examples, indices: list[int]) -> Tensor:
    """The summed losses (B,) of some examples, padded on the right."""
    width = max(int(examples.lengths[index]) for index in indices)
    tokens = torch.full((len(indices), width), examples.eot)  # (B, T)
    attended, learned = (
        torch.zeros(len(indices), width, dtype=torch.long),
        torch.zeros(len(indices), width, dtype=torch.bool),
    )
    for row, index in enumerate(indices):
        length = int(examples.lengths[index])
        tokens[row, :length] = torch.from_numpy(examples.tokens(index).astype("int64"))
        attended[row, :length] = 1
        learned[row, :length] = torch.from_numpy(examples.loss_mask(index).copy())
    targets = tokens[:, 1:].masked_fill(~learned[:, 1:], IGNORE_INDEX).to(model.device)  # (B, T - 1)
    inputs, mask = tokens[:, :-1].to(model.device), attended[:, :-1].to(model.device)
    logits = model(inputs, attention_mask=mask, use_cache=False).logits  # (B, T - 1, V)
    losses = F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none", ignore_index=IGNORE_INDEX
    )
    return losses.view(targets.shape).double().sum(-1)
