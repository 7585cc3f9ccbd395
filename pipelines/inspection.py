"""Look into anything that the line has made: shards, examples, batches, records; and let a model speak.

The one idea: what lies on the disk is decoded by its own kind, which its ending and its columns tell.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model import durable
from pipelines import chat, tokenizer_files
from pipelines import run as runs
from pipelines.config import ConfigError
from pipelines.engine.step import Planned, resolve
from pipelines.execution import Execution, cores
from pipelines.run import Workspace

_WIDTH = 400  # characters of a text that are shown


def inspect(what: str, rows: int, workspace: Workspace) -> Iterator[str]:
    """Lines that show `what`: a path below or outside the work directory, or "batch:STEP" / "finetune:STEP".

    ConfigError if it is neither.
    """
    name, _, step = what.partition(":")
    if name in ("batch", "pretrain", "finetune") and step.isdigit():
        yield from _batch("finetune" if name == "finetune" else "pretrain", int(step), rows, workspace)
        return
    path = next((path for path in (Path(what), workspace.root / what) if path.exists()), None)
    if path is None:
        raise ConfigError(
            f"WHAT={what}: no such file here or below {workspace.root}; or say batch:0 or finetune:0 for a training batch"
        )
    if path.is_dir():
        yield from (
            f"{file.relative_to(path)}  {file.stat().st_size:,} bytes"
            for file in sorted(path.rglob("*"))
            if file.is_file()
        )
    elif path.suffix == ".parquet":
        yield from _text_shard(path, rows)
    elif path.suffix == ".arrow":
        yield from _arrow(path, rows, workspace)
    elif path.suffix == ".jsonl":
        yield from path.read_text().splitlines()[:rows]
    elif path.suffix == ".json":
        yield json.dumps(durable.read_json(path), indent=1, ensure_ascii=False)
    else:
        raise ConfigError(
            f"WHAT={what}: nothing here reads a {path.suffix or 'file without ending'}; known are .parquet, .arrow, .jsonl, .json"
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= _WIDTH else text[:_WIDTH] + "...")


def _text_shard(path: Path, rows: int) -> Iterator[str]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    yield f"text shard, {file.metadata.num_rows:,} documents"
    for batch in file.iter_batches(batch_size=rows):
        for row in batch.to_pylist()[:rows]:
            yield f"document {row['id']} from {row['source']}\n  text {_short(row['text'])}"
        return


def _tokenizer_step(workspace: Workspace) -> str:
    """The step that makes the recipe's tokenizer."""
    return "import" if workspace.recipe.pretrained else "train_tokenizer"


def _tokenizer(workspace: Workspace) -> Any:
    """The recipe's tokenizer. ConfigError if it is not made yet."""
    planned = runs.plan(workspace)[_tokenizer_step(workspace)]
    if not planned.done or planned.folder is None:
        raise ConfigError("the recipe's tokenizer is not made yet, so tokens cannot be shown as text; next: make run")
    return tokenizer_files.load(planned.folder / "outputs" / "tokenizer")


def _arrow(path: Path, rows: int, workspace: Workspace) -> Iterator[str]:
    from model.examples import Examples
    from model.token_shards import TokenShard, map_batch

    tokenizer = _tokenizer(workspace)
    if "label" in map_batch(path)[0].schema.names:
        examples = Examples(path)
        yield f"tokenised examples, {len(examples):,}"
        for index in range(min(rows, len(examples))):
            example = examples[index]
            yield f"example {example.id} label {example.label} loss mask {'all' if example.loss_mask is None else example.loss_mask.tolist()}"
            yield f"  tokens {example.tokens.tolist()}\n  text {_short(tokenizer.decode(example.tokens.tolist(), skip_special_tokens=False))}"
        return
    shard = TokenShard(path)
    yield f"token shard, {len(shard):,} documents, {len(shard.tokens):,} tokens, of text shard {shard.metadata.text_shard[:12]}"
    for count, (identifier, tokens) in enumerate(shard.documents()):
        if count == rows:
            return
        yield f"document {identifier}, {len(tokens)} tokens\n  text {_short(tokenizer.decode(tokens.tolist(), skip_special_tokens=False))}"


def _batch(step_name: str, step: int, rows: int, workspace: Workspace) -> Iterator[str]:
    """The training batch of a step of pretrain or finetune, made by the functions that training uses."""
    planned = runs.plan(workspace)
    tokenizer = _tokenizer(workspace)
    with tempfile.TemporaryDirectory() as scratch:
        job = _data_job(step_name, planned, workspace, Path(scratch)) | {"step": step}
        for row in resolve("model.inspection:training_batch")(job)[:rows]:
            counted = [
                token for token, mask in zip(row.get("targets", row["tokens"]), row["loss_mask"], strict=True) if mask
            ]
            yield f"row {row['place']} of step {step}: {row['origin']}" + (
                f", label {row['label']}" if row["label"] is not None else ""
            )
            yield f"  text {_short(tokenizer.decode(row['tokens'], skip_special_tokens=False))}"
            yield f"  loss on {len(counted)} of {len(row['tokens'])} tokens: {_short(tokenizer.decode(counted, skip_special_tokens=False))}"


def _data_job(step_name: str, planned: dict[str, Planned], workspace: Workspace, scratch: Path) -> dict[str, Any]:
    from pipelines.forms import form
    from pipelines.stages.import_model import MODEL
    from pipelines.stages.training import objective_options, train_config, training_pool, vocabulary

    needed = "prepare_task" if step_name == "finetune" else "tokenize"
    if needed not in planned or not planned[needed].done:
        raise ConfigError(f"a {step_name} batch needs step {needed}, which is not done for this recipe; next: make run")
    folder = planned[needed].folder
    assert folder is not None
    step = next(step for step in workspace.steps if step.name == step_name)
    settings = step.config["train"]
    train = train_config(settings)
    made = planned[_tokenizer_step(workspace)].folder
    assert made is not None
    tokenizer, shape = made / "outputs" / "tokenizer", made / "outputs" / MODEL
    if step_name == "pretrain":
        return {
            "train": train,
            "data": {"manifest": str(folder / "outputs" / "train.json"), "root": str(workspace.root)},
            "objective": settings["objective"],
            "objective_options": objective_options(settings),
            "tokenizer": str(tokenizer),
        }
    kind = step.config.get("form", "classification")
    form.of(kind).encode(folder / "outputs" / "train.jsonl", tokenizer, settings, scratch / "examples.arrow")
    known = durable.read_json(shape) if workspace.recipe.pretrained else vocabulary(tokenizer)
    objective = kind if kind in ("classification", "span") else "causal_lm"
    data = {"examples": str(scratch / "examples.arrow")} | training_pool(settings)
    return {"train": train, "objective": objective, "data": data, "pad": known.get("pad_token_id")}


def continued(execution: Execution, model: str, prompt: str, tokens: int, seed: int, temperature: float) -> str:
    """`prompt` and its continuation by the export in the folder `model`, or by the registered `name@alias`. One with a chat
    template replies to it as to what a user says, which is another line."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = export_folder(execution, model, Path(scratch))
        replies = chat.template_of(folder) is not None
        asked: Any = chat.Chat(folder).prompt([{"role": "user", "content": prompt}]) if replies else prompt
        job = {
            "export": str(folder), "prompts": [asked], "max_new_tokens": tokens, "seed": seed, "temperature": temperature,
            "top_k": 50, "threads": execution.workers or cores(), "device": runs.settings(execution)["device"],
        }  # fmt: skip
        said = resolve("model.generate:generate")(job)[0]
        return f"{prompt}\n{said.strip()}" if replies else prompt + said


def export_folder(execution: Execution, model: str, scratch: Path) -> Path:
    """The folder `model`, or the registered `name@alias` pulled into `scratch`."""
    if Path(model).is_dir():
        return Path(model).absolute()
    from pipelines import pull

    cache = Path(execution.model_cache) if execution.model_cache else None
    origin = pull.From(runs_registry(execution), cache=cache)
    return pull.pull_from(origin, model, scratch / "model").dest.absolute()


def runs_registry(execution: Execution) -> str:
    """The tracking URI of the execution's registry."""
    from pipelines import registry

    return registry.ensure_store(execution.registry)
