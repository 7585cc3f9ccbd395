"""The ranks of one job, as one of them sees the others.

The one idea: what the ranks have to agree on, and is no tensor of the training, goes over one small group
that always speaks gloo on the CPU. A decision is made by rank 0 and known to all, and so is its failure: an error
on rank 0 raises on every rank instead of leaving the others to wait.

RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT come from torchrun or from the gang; without them the
process is a world of its own.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)


class RankZeroFailed(RuntimeError):
    """Rank 0 could not do what all ranks wait for; its own log has the traceback."""


@dataclass(frozen=True)
class World:
    """This rank's place among the ranks, its device, and the group on which they agree."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes what all share."""
        return self.rank == 0

    def from_first(self, work: Callable[[], Any]) -> Any:
        """What `work()` returns on rank 0 (picklable), on all ranks. If it raises, all raise: rank 0 its own error."""
        error: Exception | None = None
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = work()
            except Exception as caught:  # passed on to every rank below
                error, answer[1] = caught, f"{type(caught).__name__}: {caught}"
        dist.broadcast_object_list(answer, src=0, group=self.control, device=torch.device("cpu"))
        if error is not None:
            raise error
        if answer[1] is not None:
            raise RankZeroFailed(answer[1])
        return answer[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value` (picklable), in rank order, on all ranks."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on at least one rank."""
        return self.vote(flag)[0]

    def vote(self, *flags: bool) -> list[bool]:
        """For each of some flags, whether it is true on at least one rank: one small collective for all of them."""
        votes = torch.tensor(flags, dtype=torch.uint8)  # (flags)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return [bool(vote) for vote in votes.tolist()]

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self.control)


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """Within the block `import mlflow` fails at once where mlflow was not imported before."""
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["mlflow"]


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon optimizer, which ZeRO imports without using it, with its `torch.compile` left out."""
    from deepspeed.runtime import compiler

    decorator = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = decorator


def import_deepspeed(device: str) -> Any:
    """Import deepspeed for `device` ("cpu" or "cuda"), without three things that it does on the way and we never use.

    Its autotuner imports mlflow and its Muon optimizer torch's compiler: 3 s each, at every start. Its set-up of gloo
    would build a shared-memory all-reduce that only inference uses: a minute, once, and it takes a C++ compiler.
    """
    os.environ.setdefault("DS_ACCELERATOR", device)
    with _without_mlflow():
        import deepspeed
    _import_muon_uncompiled()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # its warnings are about untested optimizers, missing MPUs
    # DeepSpeed 0.19 calls collectives by the names that torch 2.13 is about to drop, and torch says so at each call.
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.\w+` is deprecated")
    return deepspeed


def _device(kind: str) -> torch.device:
    """This rank's device. RuntimeError if CUDA is asked for and not there."""
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))  # DeepSpeed insists that it is set
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            "device 'cuda' is not available here; set the job's device to 'cpu' or use a machine with a GPU"
        )
    index = local_rank % torch.cuda.device_count()  # under Ray a rank sees its own GPU only, as number 0
    os.environ["LOCAL_RANK"] = str(index)  # which DeepSpeed takes for the device's number
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@cache
def join(kind: str) -> World:
    """Join the job's ranks on devices of `kind` ("cpu" or "cuda"). A process joins once, for as long as it lives.

    DeepSpeed keeps process groups in module variables, so a second world in one process would find those of the first.
    """
    deepspeed = import_deepspeed(kind)
    device = _device(kind)
    if not dist.is_initialized():
        alone: dict[str, Any] = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", **alone)
    deepspeed.init_distributed(dist_backend=None, auto_mpi_discovery=False, verbose=False)
    control = dist.new_group(backend="gloo") if kind == "cuda" else dist.group.WORLD
    assert isinstance(control, dist.ProcessGroup)
    return World(dist.get_rank(), dist.get_world_size(), device, control)


def leave() -> None:
    """End this process, whose work is done, without ending the interpreter first.

    A thread of gloo that lets go of a Python object while the interpreter ends aborts the process, one time in five.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
