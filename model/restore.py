"""From a published checkpoint to a running engine, whatever number of ranks wrote it.

The one idea: DeepSpeed loads what as many ranks have written; for any other number the checkpoint is converted to its
universal format first, in a fresh folder of this start, and what DeepSpeed gets wrong in loading that is put right.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from model import durable
from model.checkpoint import STATE, Checkpoint, CheckpointError, Shelf
from model.world import World

log = logging.getLogger(__name__)


def is_universal(checkpoint: Checkpoint | None, world: World) -> bool:
    """Whether loading needs DeepSpeed's universal format: state that another number of ranks has partitioned."""
    return checkpoint is not None and checkpoint.world_size != world.size and checkpoint.zero_stage > 0


def _convert(checkpoint: Checkpoint, shelf: Shelf) -> Path:
    """`checkpoint` in the universal format, in a fresh folder: stale shards of a bigger world would stay in an old one."""
    import contextlib
    import io
    from argparse import Namespace

    from deepspeed.checkpoint import ds_to_universal

    folder = shelf.new_folder("universal")
    options = Namespace(
        input_folder=str(checkpoint.folder / STATE),
        output_folder=str(folder / STATE),
        num_extract_workers=1,  # workers are processes that import torch: slower than the work for all but huge models
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    noise = io.StringIO()  # progress bars and lines; errors are exceptions
    with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        ds_to_universal.main(options)
    return folder


def _groups(engine: Any) -> list[dict[str, Any]]:
    """The parameter groups of our own optimizer, under whatever DeepSpeed has wrapped it in."""
    return engine.basic_optimizer.param_groups


def _repair_optimizer(engine: Any, hyperparameters: list[dict[str, Any]]) -> None:
    """Undo what DeepSpeed 0.19 does wrong when it loads the universal format at ZeRO 3.

    It gives every parameter group the hyperparameters of the first, so that norms and biases would decay, and one
    `step` tensor to all of them, which AdamW then advances once for each group in each step.
    """
    for group, values in zip(_groups(engine), hyperparameters, strict=True):
        group.update(values)
    for state in engine.basic_optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].clone()


def load(engine: Any, checkpoint: Checkpoint, world: World, shelf: Shelf) -> None:
    """Bring a fresh engine to the state of `checkpoint`, whatever number of ranks wrote it. CheckpointError if it does not load."""
    universal = is_universal(checkpoint, world)
    if universal:
        log.info(
            "checkpoint %s is of %d ranks, converting it for %d", checkpoint.folder, checkpoint.world_size, world.size
        )
    folder = Path(world.from_first(lambda: str(_convert(checkpoint, shelf)))) if universal else checkpoint.folder
    hyperparameters = [{name: value for name, value in group.items() if name != "params"} for group in _groups(engine)]
    frozen = any(not parameter.requires_grad for parameter in engine.module.parameters())  # they are in no checkpoint
    loaded, _ = engine.load_checkpoint(str(folder), tag=STATE, load_module_strict=not frozen)
    if loaded is None or engine.global_steps != checkpoint.step:
        raise CheckpointError(
            f"{checkpoint.folder} did not load: DeepSpeed is at step {engine.global_steps}, not {checkpoint.step}"
        )
    if universal:
        _repair_optimizer(engine, hyperparameters)
    world.barrier()
    if universal and world.is_first:
        durable.remove_tree(folder)
