"""A checkpoint is a folder that was published whole, by one rename (DESIGN rule 6).

The one idea: DeepSpeed writes the files, we decide when they count. Every rank writes its shard into a fresh staging
folder under the attempt, hashes what it wrote, and tells the others; rank 0 writes the manifest of all of
them and renames the folder into place. DeepSpeed's own `latest`, which can name a checkpoint that lacks a shard, is not used.

    checkpoints/step-000100/
      MANIFEST.json     schema, step, world size, ZeRO stage, and size and SHA-256 of every file
      metrics.jsonl     the metrics of steps 1 to 100
      state/            what DeepSpeed saved

The rename also fences: a staging folder lies under the attempt, so when the attempt was taken over, it is gone and
publishing fails with FileNotFoundError. Nothing here makes a parent folder.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from model.world import World

log = logging.getLogger(__name__)
SCHEMA = 1
MANIFEST, METRICS, STATE = "MANIFEST.json", "metrics.jsonl", "state"
_OWN_FILE = re.compile(r"zero_pp_rank_(\d+)_")  # the rank that wrote a file; all others are rank 0's


class CheckpointError(RuntimeError):
    """Checkpoints were published and none of them is good, or a good one did not load."""


class DamagedCheckpoint(Exception):
    """One checkpoint's files are not those of its manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint whose files were found to be those of its manifest."""

    folder: Path
    step: int  # optimizer steps done
    world_size: int
    zero_stage: int
    history: list[dict[str, Any]]  # under which numerics the steps so far were made: {"from_step", "numerics"}

    @property
    def metrics(self) -> bytes:
        """The metrics file up to this step."""
        return (self.folder / METRICS).read_bytes()


def folder_name(step: int) -> str:
    """The name of a step's checkpoint; names sort as steps do."""
    return f"step-{step:06d}"


def published(checkpoints: Path) -> list[Path]:
    """The folders published as checkpoints, newest first. Says nothing about whether they are good."""
    found = [path for path in checkpoints.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def verified(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every file hashed. DamagedCheckpoint names the first file that is not as it should be."""
    try:
        manifest = durable.read_json(folder / MANIFEST)
        for entry in manifest["files"]:
            path = folder / entry["path"]
            if path.stat().st_size != entry["size"]:
                raise DamagedCheckpoint(f"{path} has {path.stat().st_size} bytes, its manifest says {entry['size']}")
            if durable.sha256(path) != entry["sha256"]:
                raise DamagedCheckpoint(f"{path} does not have the SHA-256 of its manifest")
        if manifest["schema"] != SCHEMA:
            raise DamagedCheckpoint(f"{folder} has schema {manifest['schema']}, this version reads {SCHEMA}")
        return _checkpoint(folder, manifest)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{error.filename} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{folder / MANIFEST} cannot be read ({error!r})") from error


def _checkpoint(folder: Path, manifest: dict[str, Any]) -> Checkpoint:
    return Checkpoint(folder, manifest["step"], manifest["world_size"], manifest["zero_stage"], manifest["history"])


def newest_good(checkpoints: Path) -> Checkpoint | None:
    """The newest good checkpoint; None if none was ever published. Damaged ones are passed over, and the log says so.

    CheckpointError if some were published and none is good: starting from scratch must be somebody's decision.
    """
    damage = []
    for folder in published(checkpoints):
        try:
            return verified(folder)
        except DamagedCheckpoint as error:
            log.warning("checkpoint %s is damaged and passed over: %s", folder, error)
            damage.append(f"{folder.name}: {error}")
    if damage:
        raise CheckpointError(
            f"no good checkpoint in {checkpoints}: {'; '.join(damage)}. Remove the folder to train again from the first step"
        )
    return None


def _own_files(staging: Path, world: World) -> Iterator[Path]:
    """The files of `staging` that this rank wrote, in a stable order."""
    for path in sorted(staging.rglob("*")):
        written_by = _OWN_FILE.search(path.name)
        if path.is_file() and (int(written_by[1]) if written_by else 0) == world.rank:
            yield path


def _entries(staging: Path, world: World) -> list[dict[str, Any]]:
    """Manifest entries of this rank's files, each flushed to the disk and hashed."""
    entries = []
    for path in _own_files(staging, world):
        durable.fsync(path)
        size = path.stat().st_size
        entries.append({"path": path.relative_to(staging).as_posix(), "size": size, "sha256": durable.sha256(path)})
    return entries


def _new_folder(attempt: Path, kind: str) -> Path:
    """A fresh folder under the attempt. FileNotFoundError when the attempt was taken over."""
    folder = attempt / f"{kind}-{secrets.token_hex(6)}"
    folder.mkdir()
    return folder


def _stage(attempt: Path, metrics: bytes) -> Path:
    """A staging folder that holds the metrics, and the folder that DeepSpeed writes to."""
    staging = _new_folder(attempt, "staging")
    (staging / STATE).mkdir()
    durable.write_bytes(staging / METRICS, metrics)
    return staging


def _set_aside(folder: Path, attempt: Path) -> None:
    """Take `folder` out of the checkpoints, into the attempt: it is fenced, and goes when the attempt goes."""
    durable.rename(folder, attempt / f"aside-{folder.name}-{secrets.token_hex(6)}")


def _publish(staging: Path, manifest: dict[str, Any], checkpoints: Path, attempt: Path, keep: int) -> Checkpoint:
    """Write the manifest, give the folder its name, and let go of all but the newest `keep`."""
    durable.write_json(staging / MANIFEST, manifest)
    target = checkpoints / folder_name(manifest["step"])
    if target.exists():
        log.warning("checkpoint %s exists and was not good when training resumed: replaced", target)
        _set_aside(target, attempt)
    durable.publish_folder(staging, target)
    for old in published(checkpoints)[keep:]:
        aside = attempt / f"old-{old.name}-{secrets.token_hex(6)}"
        durable.rename(old, aside)
        durable.remove_tree(aside)
    return _checkpoint(target, manifest)


def _require_folder(path: str, exist_ok: bool = False) -> None:
    """Stands in for DeepSpeed's makedirs, which would bring the folder of an overtaken attempt back to life."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path} is gone: the attempt was taken over")


def save(
    engine: Any,
    step: int,
    world: World,
    *,
    attempt: Path,
    checkpoints: Path,
    keep: int,
    metrics: bytes,
    zero_stage: int,
    history: list[dict[str, Any]],
) -> Checkpoint:
    """Publish the engine's state after `step` optimizer steps. Every rank has to call it; all get the checkpoint.

    FileNotFoundError when the attempt was taken over. The newest `keep` checkpoints stay.
    """
    staging = Path(world.from_first(lambda: str(_stage(attempt, metrics))))
    engine.checkpoint_engine.makedirs = _require_folder
    engine.save_checkpoint(str(staging), tag=STATE, save_latest=False)
    entries = [entry for entries in world.gather(_entries(staging, world)) for entry in entries]
    manifest = {
        "schema": SCHEMA,
        "step": step,
        "world_size": world.size,
        "zero_stage": zero_stage,
        "history": history,
        "files": sorted(entries, key=lambda entry: entry["path"]),
    }
    return world.from_first(lambda: _publish(staging, manifest, checkpoints, attempt, keep))


def find(checkpoints: Path, attempt: Path, world: World) -> Checkpoint | None:
    """The checkpoint to resume from, the same on all ranks; None to start. CheckpointError as `newest_good`.

    Damaged ones newer than it are moved out of the way, since their steps are going to be published again.
    """

    def search() -> Checkpoint | None:
        good = newest_good(checkpoints)
        for folder in published(checkpoints) if good else ():
            if good and int(folder.name.removeprefix("step-")) > good.step:
                _set_aside(folder, attempt)
        return good

    return world.from_first(search)


def is_universal(checkpoint: Checkpoint | None, world: World) -> bool:
    """Whether loading needs DeepSpeed's universal format: state that another number of ranks has partitioned."""
    return checkpoint is not None and checkpoint.world_size != world.size and checkpoint.zero_stage > 0


def _convert(checkpoint: Checkpoint, attempt: Path) -> Path:
    """`checkpoint` in the universal format, in a fresh folder: stale shards of a bigger world would stay in an old one."""
    import contextlib
    import io
    from argparse import Namespace

    from deepspeed.checkpoint import ds_to_universal

    folder = _new_folder(attempt, "universal")
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


def load(engine: Any, checkpoint: Checkpoint, world: World, attempt: Path) -> None:
    """Bring a fresh engine to the state of `checkpoint`, whatever number of ranks wrote it. CheckpointError if it does not load."""
    universal = is_universal(checkpoint, world)
    if universal:
        log.info(
            "checkpoint %s is of %d ranks, converting it for %d", checkpoint.folder, checkpoint.world_size, world.size
        )
    folder = Path(world.from_first(lambda: str(_convert(checkpoint, attempt)))) if universal else checkpoint.folder
    hyperparameters = [{name: value for name, value in group.items() if name != "params"} for group in _groups(engine)]
    loaded, _ = engine.load_checkpoint(str(folder), tag=STATE)
    if loaded is None or engine.global_steps != checkpoint.step:
        raise CheckpointError(
            f"{checkpoint.folder} did not load: DeepSpeed is at step {engine.global_steps}, not {checkpoint.step}"
        )
    if universal:
        _repair_optimizer(engine, hyperparameters)
    world.barrier()
    if universal and world.is_first:
        durable.remove_tree(folder)
