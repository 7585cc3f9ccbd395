"""The loops that `train` compares, each to be run in a process of its own: the same model, batches and numbers of threads.

The one idea: a contender returns the wall time of each of its steps, between the ends of two steps, so whatever a
loop does beside the arithmetic (writing down metrics, agreeing on a stop) counts against it.

Needs torch, deepspeed and what `model/` imports; `hugging_face` needs transformers and accelerate too.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from model.job import RankJob
    from model.train_config import TrainConfig

WARM_UP = 3  # steps that are not counted


def write_tokens(item: dict[str, Any]) -> None:
    """A token shard of random tokens and its manifest, in `folder`: what they say makes no difference to the speed."""
    import numpy as np

    from model import durable
    from model.token_shards import ShardMetadata, write_token_shard

    folder, size = Path(item["folder"]), item["tokens"]
    folder.mkdir(parents=True)
    metadata = ShardMetadata("0" * 64, item["vocab_size"], item["eot_token_id"], "0" * 64)
    tokens = np.random.default_rng(0).integers(0, item["eot_token_id"], size).astype(np.uint16)
    tokens[-1] = metadata.eot
    path = folder / "tokens.arrow"
    write_token_shard(path, tokens, np.array([0, size]), ["0" * 32], metadata)
    unit = {"path": path.name, "sha256": durable.sha256(path), "documents": 1, "tokens": size, "bytes": size * 4}
    head = {
        "schema": 1,
        "kind": "token_shards",
        "tokenizer": metadata.tokenizer,
        "vocab_size": metadata.vocab_size,
        "eot": metadata.eot,
    }
    durable.write_json(folder / "train.json", head | {"units": [unit]})


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """The rank of `model.train:run_rank`, from its joining to its last step, without the export: its loop as it is."""
    import json

    import torch

    from model.job import RankJob
    from model.monitor import PROGRESS
    from model.rank import Run
    from model.world import join

    parsed = RankJob.parse(job)
    torch.set_num_threads(parsed.threads)
    world = join(parsed.device)
    running = Run(parsed, world)
    running.steps(lambda: False)
    if not world.is_first:
        return {}
    lines = [json.loads(line) for line in (Path(parsed.attempt) / PROGRESS).read_bytes().splitlines()]
    found = {"loss": running.journal.lines()[-1]["loss"], "flops_per_token": running.journal.flops_per_token}
    return found | {"seconds": _between([line["time"] for line in lines])}


def bare(job: dict[str, Any]) -> dict[str, Any]:
    """A loop with nothing in it: batches made beforehand, forward, backward, clip, AdamW at the scheduled rate."""
    import torch

    from model.heads import build
    from model.job import RankJob
    from model.train import learning_rate

    parsed = RankJob.parse(job)
    torch.set_num_threads(parsed.threads)
    device = torch.device(parsed.device)
    batches = _batches(parsed, device)
    model = build(parsed.model, seed=parsed.train.seed).to(device)
    update = _optimizer(model, parsed.train)
    run = torch.compile(model) if parsed.train.compile else model
    ends, seen = [], 0.0
    for number, tokens in enumerate(batches):
        loss = torch.zeros((), device=device)
        for rows in tokens.split(parsed.micro_batch_size):
            part = run(rows[:, :-1], rows[:, 1:]) / (tokens.shape[0] * (tokens.shape[1] - 1))
            part.backward()
            loss += part.detach()
        update(learning_rate(parsed.train, number))
        seen = float(loss)  # waits for the GPU, as our loop does when it reports the loss
        ends.append(time.time())
    return {"seconds": _between(ends), "loss": seen}


def hugging_face(job: dict[str, Any]) -> dict[str, Any]:
    """transformers' Trainer on a GPT2LMHeadModel of the same shape, as its documentation uses it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    from model.job import RankJob

    parsed = RankJob.parse(job)
    torch.set_num_threads(parsed.threads)
    ends: list[float] = []

    class Clock(TrainerCallback):
        """Notes when each optimizer step ends; a class because Trainer asks for one."""

        def on_step_end(self, *given: Any, **more: Any) -> None:
            if parsed.device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.time())

    keep = ("n_positions", "n_embd", "n_layer", "n_head", "vocab_size", "embd_pdrop", "resid_pdrop")
    shape = {name: getattr(parsed.model, name) for name in keep}
    model = GPT2LMHeadModel(GPT2Config(**shape, attn_pdrop=0.0, use_cache=False))
    train = parsed.train
    arguments = TrainingArguments(
        output_dir=str(Path(parsed.attempt) / "trainer"), max_steps=train.max_steps, report_to=[], save_strategy="no",
        per_device_train_batch_size=parsed.micro_batch_size, gradient_accumulation_steps=train.global_batch_size // parsed.micro_batch_size,
        learning_rate=train.learning_rate, lr_scheduler_type="cosine", warmup_steps=train.warmup_steps, weight_decay=train.weight_decay,
        adam_beta1=train.beta1, adam_beta2=train.beta2, max_grad_norm=train.grad_clip, optim="adamw_torch_fused", logging_steps=10**9,
        disable_tqdm=True, use_cpu=parsed.device == "cpu", bf16=train.precision == "bf16", torch_compile=train.compile,
    )  # fmt: skip
    # Trainer shifts the labels itself.
    rows = [row[:-1] for tokens in _batches(parsed, torch.device("cpu")) for row in tokens]
    dataset: Any = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=[Clock()]).train()
    return {"seconds": _between(ends)}


def matmul_peak(item: dict[str, Any]) -> float:
    """FLOP/s of square matrix products at the device's training precision, the best of ten: what MFU is measured against."""
    import torch

    torch.set_num_threads(item["threads"])
    cuda = item["device"] == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (2048, torch.float32)
    left, right = (torch.randn(size, size, device=item["device"], dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        for _ in range(20 if cuda else 1):
            left @ right
        if cuda:
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / (20 if cuda else 1))
    return 2 * size**3 / best


def _between(ends: list[float]) -> list[float]:
    """Seconds of each step after the warm-up, from the end of the step before it."""
    return [after - before for before, after in pairwise(ends)][WARM_UP - 1 :]


def _batches(job: RankJob, device: torch.device) -> list[torch.Tensor]:
    """The token rows (B, T + 1) of all steps, in the order in which our loop takes them, on the device."""
    from model.batches import pretrain_batch
    from model.job import StreamData
    from model.token_shards import TokenShards

    assert isinstance(job.data, StreamData)
    shards, train = TokenShards.from_manifest(Path(job.data.manifest), Path(job.data.root)), job.train
    order = {"seed": train.seed, "global_batch_size": train.global_batch_size, "length": train.sequence_length}
    return [pretrain_batch(shards, step, **order).rows.tokens.to(device) for step in range(train.max_steps)]


def _optimizer(model: torch.nn.Module, train: TrainConfig) -> Callable[[float], None]:
    """What ends a step at a given rate: clip, AdamW, clear. A bf16 model gets fp32 master weights, as DeepSpeed keeps them."""
    import torch

    from model.zero import parameter_groups

    master = model if train.precision == "fp32" else copy.deepcopy(model)
    if train.precision == "bf16":
        model.to(torch.bfloat16)
    groups, betas = parameter_groups(master, train.weight_decay), (train.beta1, train.beta2)
    optimizer = torch.optim.AdamW(groups, lr=train.learning_rate, betas=betas, eps=train.epsilon, fused=True)
    live: list[torch.Tensor] = list(model.parameters())
    masters: list[torch.Tensor] = list(master.parameters())

    def step(rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        if master is not model:
            for ours, theirs in zip(masters, live, strict=True):
                assert theirs.grad is not None
                ours.grad, theirs.grad = theirs.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, train.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if master is not model:
            with torch.no_grad():
                torch._foreach_copy_(live, masters)

    return step
