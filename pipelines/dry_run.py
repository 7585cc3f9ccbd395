"""A recipe on shapes alone: does it fit together, how big is it, how long would it take.

The one idea: whatever would fail an hour into a run because of sizes fails here in seconds, on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from model.train_config import TrainConfig
from pipelines.config import Recipe
from pipelines.engine.step import resolve
from pipelines.execution import Execution


def describe(recipe: Recipe, execution: Execution) -> dict[str, Any]:
    """Facts about each training step of `recipe` under `execution`, as JSON values. ValueError if it cannot be run."""
    if recipe.model is None or recipe.tokenizer is None:  # they are what step `import` finds
        return {}
    trained = {"pretrain": recipe.pretrain, "finetune": recipe.finetune}
    predicted = {"pretrain": recipe.pretrain.predicted(recipe.pretrain.objective)} if recipe.pretrain else {}
    shape = recipe.model.model_dump(mode="json") | {"vocab_size": recipe.tokenizer.vocab_size, "eot_token_id": 0}
    parts = {"ranks": execution.ranks, "micro_batch_size": execution.micro_batch_size}
    return {
        name: resolve("model.dry_run:describe")(
            {
                "model": shape,
                "train": part.model_dump(mode="json", include=set(TrainConfig.model_fields)),
                "predicted": predicted.get(name, 1.0),
                **parts,
            }
        )
        for name, part in trained.items()
        if part
    }


def lines(recipe: Recipe, execution: Execution) -> Iterator[str]:
    """The facts for people."""
    if recipe.pretrained:
        yield f"what {recipe.pretrained.name} is, step import finds out; next: make run, which begins with it"
    for name, facts in describe(recipe, execution).items():
        yield f"{name}: {facts['parameters'] / 1e6:.1f} M parameters, {facts['tokens'] / 1e6:,.1f} M tokens, {facts['flops']:.2g} FLOPs"
        yield (
            f"  a step: {facts['tokens_per_step']:,} tokens, as {facts['accumulation_steps']} micro-batches of "
            f"{facts['micro_batch_size']} sequences on each of {execution.ranks} ranks"
        )
        yield f"  a rank holds {facts['state_bytes_per_rank'] / 2**30:.2f} GiB of weights, gradients and optimizer state"
        if execution.peak_flops:
            hours = facts["flops"] / (execution.peak_flops * execution.ranks) / 3600
            yield f"  at full peak it takes {hours:,.1f} hours; expect two to three times that"
        yield f"  DeepSpeed: {json.dumps(facts['deepspeed']['zero_optimization'])}, bf16 {facts['deepspeed']['bf16']['enabled']}"
