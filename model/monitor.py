"""What looks at training between two steps: what is written down of it, and when it has to stop.

The one idea: each is a consumer of step reports and knows nothing of how a step is made.
"""

from __future__ import annotations

import json
import math
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from model import durable
from model.config import ModelConfig
from model.train import StepReport

METRICS, PROGRESS, PEAK = "metrics.jsonl", "progress.jsonl", "peak_flops.json"


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is no number, or the loss exploded. The last good checkpoint is from before."""


def flops_per_token(model: nn.Module, config: ModelConfig, length: int, predicted: float = 1.0) -> float:
    """FLOPs of one token's forward and backward pass: 6 N + 12 L d T (Chowdhery et al. 2022, PaLM, appendix B).

    N counts the parameters that are multiplied: no position embeddings, and the token embedding only where it
    is the output layer, which the fraction `predicted` of the tokens goes through. T is the length of the sequence.
    Recomputed activations are not counted. A frozen weight has no gradient of its own and costs 4 of the 6, or 2 where
    nothing before it is trained, so that no gradient goes through it.
    """
    if config.head_kind in ("classification", "span") or not config.tie_word_embeddings:
        predicted = 0  # of the embedding's weights, that is: an untied output layer has its own
    flops, reached = 12.0 * config.n_layer * config.n_embd * length, False
    for name, weight in model.named_parameters():  # in the order in which a token meets them
        size = getattr(weight, "ds_numel", weight.numel())
        if name.endswith("transformer.wte.weight"):  # as the output layer, after everything
            flops += (6 if weight.requires_grad else 4) * predicted * size
        elif not name.endswith("transformer.wpe.weight"):
            flops += (6 if weight.requires_grad else 4 if reached else 2) * size
        reached |= weight.requires_grad
    return flops


def measured_peak(device: torch.device, precision: str) -> float:
    """FLOP/s of a matrix product on `device` with the threads that are set: the best of a few, in a quarter of a second.

    MFU is measured against what this machine does, not against what its data sheet says.
    """
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    if device.type == "cuda" and precision == "fp32":
        dtype = torch.float32
    a = torch.ones((size, size), dtype=dtype, device=device)  # (n, n)
    best = math.inf
    for _ in range(6):
        began = time.perf_counter()
        product = a @ a
        float(product[0, 0])  # a GPU computes behind our back until something asks for a number
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def remembered_peak(attempt: Path, device: torch.device, precision: str) -> float:
    """`measured_peak`, measured once in an attempt: ranks that start again lose no time with it."""
    file = attempt / PEAK
    key = f"{socket.gethostname()} {device.type} {precision} {torch.get_num_threads()}"
    known: dict[str, float] = durable.read_json(file) if file.exists() else {}
    if key not in known:
        known[key] = measured_peak(device, precision)
        durable.write_json(file, known)
    return known[key]


@dataclass
class Journal:
    """What rank 0 writes down of each step: `metrics.jsonl`, an output, and `progress.jsonl`, which tells times.

    Ranks that start again begin both files again, so that those before, which may live on a host that is cut off, write
    into nothing.
    """

    attempt: Path
    peak_flops: float | None  # of all ranks together
    flops_per_token: float
    metrics: bytearray = field(default_factory=bytearray)  # the whole metrics file, as checkpoints carry it
    seconds: float = 0.0
    tokens: int = 0
    _logs: tuple[durable.Log, durable.Log] | None = None

    def begin(self) -> None:
        """Begin the files: the metrics of all steps so far, and the progress of this attempt's earlier starts."""
        progress = self.attempt / PROGRESS
        before = progress.read_bytes() if progress.exists() else b""
        metrics = durable.Log(self.attempt / METRICS, bytes(self.metrics))
        self._logs = (metrics, durable.Log(progress, before))

    def record(self, report: StepReport, measured: Mapping[str, float] = MappingProxyType({})) -> None:
        """Add a step to both files, which were begun; `measured` after it are more metrics of its line."""
        assert self._logs is not None
        line = {
            "step": report.step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "tokens": report.tokens,
            **measured,
        }
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        self.metrics += data
        self.seconds += report.seconds
        self.tokens += report.tokens
        metrics, progress = self._logs
        metrics.append(data)
        progress.append(json.dumps(self._progress(report)).encode() + b"\n")

    def _progress(self, report: StepReport) -> dict[str, Any]:
        """Speed of one step, and the time it ended."""
        speed = report.tokens / report.seconds
        mfu = speed * self.flops_per_token / self.peak_flops if self.peak_flops else None
        return {"step": report.step, "tokens_per_second": speed, "mfu": mfu, "time": time.time()}

    def lines(self) -> list[dict[str, Any]]:
        """The metrics of all steps so far."""
        return [json.loads(line) for line in self.metrics.splitlines()]


@dataclass
class DivergenceGuard:
    """Notices that a loss or gradient is no number, or a loss exploded: over ten times the best mean of WINDOW steps.

    A best mean below one nat counts as one: a classifier's loss comes close to zero, and a hard batch is no explosion.
    """

    WINDOW = 20
    best: float = math.inf
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=DivergenceGuard.WINDOW))

    @property
    def _limit(self) -> float:
        return 10 * max(self.best, 1.0)

    def is_fine(self, loss: float, grad_norm: float) -> bool:
        """Whether a step of this loss and gradient norm has not diverged."""
        return math.isfinite(loss + grad_norm) and loss <= self._limit

    def check(self, step: int, loss: float, grad_norm: float, last_good: Path | None) -> None:
        """TrainingDiverged if step `step` diverged; else remember its loss."""
        if not self.is_fine(loss, grad_norm):
            raise TrainingDiverged(
                f"loss {loss} and gradient norm {grad_norm} at step {step}, where a loss up to {self._limit:.3g} was expected; the "
                f"last good checkpoint is {last_good or 'none'}. Lower learning_rate or grad_clip, or raise warmup_steps"
            )
        self.recent.append(loss)
        self.best = min(self.best, sum(self.recent) / len(self.recent))


@contextmanager
def sigterm_noticed() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM does not kill; the function yielded says whether one came."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set  # only the main thread may set handlers; whoever runs us elsewhere has its own
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)
