"""Two ranks that save while their disk is slow or full, for `test_saving.py`. Rank 0 prints what all of them saw, as JSON.

torchrun --nproc_per_node 2 -m tests.model.saving_runs held job.json full job.json ...
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from model import durable, saving
from model.checkpoint import STATE, CheckpointError, folder_name, open_shelf, published
from model.job import RankJob
from model.rank import Run, run
from model.world import World, join
from tests.full_disk import full_disk
from tests.model.training_runs import MIDDLE, STEPS


@contextlib.contextmanager
def held_disk(go_on: threading.Event) -> Iterator[None]:
    """Within the block no writer of checkpoints begins before `go_on`."""
    write = saving.write

    def late(*arguments: Any) -> Any:
        assert go_on.wait(60)
        return write(*arguments)

    saving.write = late
    try:
        yield
    finally:
        saving.write = write


def blocking_save(engine: Any, folder: Path) -> dict[str, str]:
    """Write the live state as DeepSpeed asks for it, with training standing still; SHA-256 of this rank's files by path."""
    digests = {}

    def write(state_dict: Any, path: str) -> None:
        with durable.hashing(Path(path)) as file:
            torch.save(state_dict, file)  # type: ignore[arg-type]
        digests[f"{STATE}/{Path(path).name}"] = file.sha256

    torch.serialization.set_crc32_options(False)
    engine.checkpoint_engine.save = write
    engine.save_checkpoint(str(folder), tag=STATE, save_latest=False)
    return digests


def held(job: RankJob, world: World) -> dict[str, Any]:
    """Train on from the middle to the end while the checkpoint of the middle is held back, then let it go."""
    this = Run(job, world)
    this.steps(lambda: this.step == MIDDLE)
    blocking = {
        name: digest
        for digests in world.gather(blocking_save(this.engine, this.attempt))
        for name, digest in digests.items()
    }
    go_on = threading.Event()
    with held_disk(go_on):
        this.begin_save()
        this.steps(lambda: False)
        early = [path.name for path in published(Path(job.checkpoints))]
        world.barrier()
        go_on.set()
        this.saver.finish()
    return {"blocking": blocking, "early": early, "step": this.step}


def full(job: RankJob, world: World) -> dict[str, Any]:
    """Rank 1's disk takes no large file; then there is room again, and the same job runs to its end."""
    error = ""
    with full_disk(20_000) if world.rank == 1 else contextlib.nullcontext():
        try:
            run(job)
        except CheckpointError as refused:
            error = str(refused)
    errors = world.gather(error)
    left = [path.name for path in Path(job.attempt).rglob("*staging*")]
    names = [path.name for path in published(Path(job.checkpoints))]
    world.barrier()  # the next start sweeps what the other rank may still be looking at
    return {"errors": errors, "left": left, "published": names, "then": run(job)}


def damaged(job: RankJob, world: World) -> dict[str, Any]:
    """From which step the ranks would resume when a bit of one file of the newest checkpoint is flipped, for each file."""
    source = Path(job.checkpoints).parents[1] / "zero2" / "checkpoints" / folder_name(STEPS)
    target = Path(job.checkpoints) / folder_name(STEPS)
    steps = {}
    for path in [None, *sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())]:
        if world.is_first:
            shutil.copytree(source, target, dirs_exist_ok=True)
            if path:
                data = bytearray((target / path).read_bytes())
                data[len(data) // 2] ^= 1
                (target / path).write_bytes(data)
        world.barrier()
        shelf = open_shelf(Path(job.checkpoints), None, Path(job.attempt), 2, world)
        steps[str(path)] = world.gather(shelf.newest and shelf.newest.step)
    return steps


def main(arguments: list[str]) -> None:
    """Do what the command line says for each of its jobs."""
    world = join("cpu")
    for kind, path in zip(arguments[::2], arguments[1::2], strict=True):
        answer = {"held": held, "full": full, "damaged": damaged}[kind](
            RankJob.parse(durable.read_json(Path(path))), world
        )
        if world.is_first:
            print(json.dumps(answer), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
