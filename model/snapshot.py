"""An engine's state as it was at one moment, in host memory: taken while training waits, written while it goes on.

The one idea: pickle walks any state and asks about every object in it, so one pass sets the tensors aside and
copies all the rest. Tensors are copied storage by storage, as torch.save writes them: what shares memory still does, so
the file of a snapshot has the bytes that the file of the live state would have had.
"""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import torch


class _SetTensorsAside(pickle.Pickler):
    """Pickles a state with its tensors replaced by their numbers in `tensors`."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self._numbers[id(value)]


class _PutTensorsBack(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: int) -> torch.Tensor:
        return self._tensors[number]


class HostBuffers:
    """Copies of states in host memory that is kept from one to the next: fresh memory costs more time than the copying.

    A checkpoint asks for the same sizes in the same order each time, so the n-th storage gets the n-th buffer again.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned  # a GPU copies into pinned memory without waiting
        self._buffers: list[torch.Tensor] = []
        self._used = 0

    def reuse(self) -> None:
        """Give all buffers to the copies that follow. What was copied before must not be needed any more."""
        del self._buffers[self._used :]
        self._used = 0

    def copy(self, state: Any) -> Any:
        """A copy of `state`, all of it: nothing that happens to `state` afterwards changes it."""
        file = io.BytesIO()
        pickler = _SetTensorsAside(file)
        pickler.dump(state)
        storages: dict[int, torch.UntypedStorage] = {}
        copies = [self._copied(tensor, storages) for tensor in pickler.tensors]
        if self._pinned:
            torch.cuda.synchronize()
        file.seek(0)
        return _PutTensorsBack(file, copies).load()

    def _copied(self, tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
        """The same view of a copy of the tensor's storage; `storages` has those that are copied already."""
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            live = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)  # (bytes)
            buffer = self._next(live.numel())
            buffer.copy_(live, non_blocking=True)
            storages[storage._cdata] = buffer.untyped_storage()
        view = torch.empty(0, dtype=tensor.dtype)
        view.set_(storages[storage._cdata], tensor.storage_offset(), tensor.size(), tensor.stride())
        view.__dict__.update(copy.deepcopy(tensor.__dict__))  # ZeRO 3 names its partitions so
        return view.requires_grad_(tensor.requires_grad)

    def _next(self, size: int) -> torch.Tensor:
        """The next buffer, a new one where there is none of `size` bytes: (size)."""
        if self._used == len(self._buffers) or self._buffers[self._used].numel() != size:
            self._buffers[self._used : self._used + 1] = [
                torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned and size > 0)
            ]
        self._used += 1
        return self._buffers[self._used - 1]


def capture(engine: Any, folder: Path, buffers: HostBuffers) -> list[tuple[Path, Any]]:
    """What DeepSpeed would write to `folder` from this rank: (file, copy of its content). Every rank has to call it.

    Nothing is written. The copies are good until the buffers are used again. Frozen parameters are left out: the job has them.
    """
    buffers.reuse()
    found: list[tuple[Path, Any]] = []
    writer = engine.checkpoint_engine
    writer.save = lambda state_dict, path: found.append((Path(path), buffers.copy(state_dict)))
    # A folder of an overtaken attempt must not come back to life, and a checkpoint carries no programs.
    writer.makedirs = lambda path, exist_ok=False: None
    engine._copy_recovery_script = lambda path: None
    frozen = any(not parameter.requires_grad for parameter in engine.module.parameters())
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False, exclude_frozen_parameters=frozen)
    return found
