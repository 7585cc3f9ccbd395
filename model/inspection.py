"""A training batch as the loop sees it, row by row, with where each row comes from.

The one idea: what is shown is made by the functions that training uses, so what looks wrong here is wrong there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from model.batches import example_batch, example_order
from model.cross_entropy import IGNORE_INDEX
from model.examples import Examples
from model.job import StreamData
from model.pretraining import Order, Pretraining, streams
from model.token_shards import TokenShards
from model.train_config import ObjectiveConfig, TrainConfig


def training_batch(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of step `job["step"]` (from 0) of a training job: {"place", "origin", "tokens", "loss_mask", "label"}, and of
    text "targets": the tokens as they are where some are hidden.

    `job` has "train" (TrainConfig as JSON), "data" and "objective" as in a rank's job, "step", for examples also "pad" (the
    model's padding), and for text the job's "objective_options" and "tokenizer". `loss_mask[i]` says whether the loss counts
    token i as a target.
    """
    train = TrainConfig.model_validate(job["train"])
    if "examples" in job["data"]:
        places = {"seed": train.seed, "global_batch_size": train.global_batch_size}
        places |= {"pool": job["data"]["pool"]} if "pool" in job["data"] else {}
        examples, objective = (
            Examples(Path(job["data"]["examples"]), job["pad"]),
            job.get("objective", "classification"),
        )
        return _examples(examples, job["step"], places | {"objective": objective}, train.sequence_length)
    order = Order(train.seed, train.global_batch_size, train.sequence_length)
    source, options = StreamData.model_validate(job["data"]), ObjectiveConfig.model_validate(job["objective_options"])
    return _stream(streams(source, job["objective"], options, Path(job["tokenizer"]), order), job["step"])


def _stream(made: Pretraining, step: int) -> list[dict[str, Any]]:
    """What the model sees of each row; of a masked one the loss counts what was hidden."""
    batch = made(step).rows
    if batch.targets is not None:
        counted = (batch.targets != IGNORE_INDEX).tolist()
    else:  # the first token of a causal model's row is only an input
        asked = made.objective == "causal_lm"
        counted = [[asked and place > 0 for place in range(batch.tokens.shape[1])]] * len(batch.tokens)
    whole = batch.tokens if batch.targets is None else batch.targets.where(batch.targets != IGNORE_INDEX, batch.tokens)
    labels = [None] * len(counted) if batch.labels is None else batch.labels.tolist()
    return [
        {"place": place, "origin": origin(*start), "tokens": row, "targets": said, "loss_mask": mask, "label": label}
        for place, (start, row, said, mask, label) in enumerate(
            zip(made.beginnings(step), batch.tokens.tolist(), whole.tolist(), counted, labels, strict=True)
        )
    ]


def origin(shards: TokenShards, position: int) -> str:
    """Where token `position` of the stream stands: the shard's file, the document's id, the offset in it."""
    index = int(shards.ends.searchsorted(position, "right"))
    shard = shards.shard(index)
    offset = position - (int(shards.ends[index]) - len(shard.tokens))
    document = int(np.searchsorted(shard.offsets, offset, "right")) - 1
    identifier = next(name for row, (name, _) in enumerate(shard.documents()) if row == document)
    return f"{shards.units[index].path.name} document {identifier} token {offset - int(shard.offsets[document])}"


def _examples(examples: Examples, step: int, order: dict[str, Any], length: int) -> list[dict[str, Any]]:
    batch = example_batch(examples, step, length=length, **order).rows
    objective = order["objective"]
    which = {name: value for name, value in order.items() if name != "objective"}
    chosen = [examples[int(sample)] for sample in example_order(examples, step, **which)]
    found = []
    for place, (example, row) in enumerate(zip(chosen, batch.tokens, strict=True)):
        last = min(len(example.tokens), length) - 1  # whose hidden state a classifier looks at
        counted = [index == last for index in range(len(row))]
        if batch.loss_mask is not None:  # the first token is only an input
            counted = [False, *batch.loss_mask[place, 1:].tolist()]
        label = None if batch.labels is None or objective == "span" else int(batch.labels[place])
        if batch.labels is not None and objective == "span":
            first, last = batch.labels[place].tolist()
            counted = [first <= index <= last for index in range(len(row))]
        origin = f"example {example.id}"
        found.append({"place": place, "origin": origin, "tokens": row.tolist(), "loss_mask": counted, "label": label})
    return found
