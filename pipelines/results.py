"""What came out of a run, in words: a step's key figure, the registered models, and the next commands.

The one idea: a command that is printed works as it stands: it repeats what was given (recipe, work directory,
settings) and names what was registered.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from model import durable
from pipelines.engine.record import Record
from pipelines.engine.step import Planned
from pipelines.forms import form
from pipelines.stages import evaluate_masked

_ELSEWHERE = (
    "execution.registry=",
    "execution.credentials=",
    "execution.site=",
    "execution.port=",
)  # settings that count for commands on the registry, too
_SITE = "execution.site="  # which make gives for SITE


@dataclass(frozen=True)
class Given:
    """What was given on the command line: recipe, work directory and settings, each "field=value"."""

    recipe: str = "default"
    work: str = "work"
    settings: tuple[str, ...] = ()
    verb: str = "run"

    def again(self) -> str:
        """The make command that was given."""
        return self.make(self.verb)

    def make(self, target: str) -> str:
        """The make command for `target` on the same recipe, work directory and settings."""
        named = (("RECIPE", self.recipe, "default"), ("WORK", self.work, "work"))
        parts = [f"{name}={shlex.quote(value)}" for name, value, usual in named if value != usual]
        return " ".join(["make", target, *parts, *_set(self.settings)])

    def make_elsewhere(self, *words: str) -> str:
        """The make command of these words, which needs no recipe, on the same registry."""
        return " ".join(["make", *words, *_set([text for text in self.settings if text.startswith(_ELSEWHERE)])])


def _set(settings: tuple[str, ...] | list[str]) -> list[str]:
    site = [f"SITE={shlex.quote(text.removeprefix(_SITE))}" for text in settings if text.startswith(_SITE)]
    others = " ".join(text for text in settings if not text.startswith(_SITE))
    return site + ([f"SET={shlex.quote(others)}"] if others else [])


def figure(record: Record) -> str:
    """The one figure of a step that says most."""
    m = record.metrics
    match record.stage:
        case "few_examples":
            return f"{m['train_examples']:,} labels"
        case "prepare_task":
            return f"{m['train_examples']:,} to train, {m['test_examples']:,} to test"
        case "shard":
            documents, size = (m[f"train_{name}"] + m[f"heldout_{name}"] for name in ("documents", "bytes"))
            dropped = m["duplicates"] + m["contaminated"] + m["rejected"]
            return f"{documents:,} documents, {size / 1e6:.1f} MB, {dropped:,} dropped"
        case "train_tokenizer":
            return f"vocabulary of {m['vocab_size']:,}"
        case "tokenize":
            return f"{m['train_tokens'] + m['heldout_tokens']:,} tokens, {m['bytes_per_token']:.2f} bytes each"
        case "pretrain" | "finetune":
            # No speed where all steps were in the checkpoint that an earlier run had left.
            speed = f", {m['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in m else ""
            return f"loss {m['final_loss']:.3f}{speed}"
        case "evaluate" if record.config["kind"] == evaluate_masked.KIND:
            return evaluate_masked.figure(m)
        case "evaluate" if record.config["kind"] != "language_model":
            return str(form.of(record.config["kind"]).figure(m))
        case "evaluate":
            return f"{m['bits_per_byte']:.3f} bits per byte, xz {m['xz_bits_per_byte']:.3f}"
        case "register":
            return f"{m['name']} version {m['version']}, {m['alias']}"
        case "pull":
            return f"{m['name']} version {m['version']}"
        case "import":
            return f"{m['family']}, {m['parameters'] / 1e6:.1f} M parameters, vocabulary of {m['vocab_size']:,}"
        case "champion":
            return f"{m['name']}, package {m['digest'][:12]}"
        case "labels":
            return f"{len(record.inputs) - 1} evaluations"
        case "compare":
            interval = "of one group" if m["low"] is None else f"{m['low']:+.4f} to {m['high']:+.4f}"
            return f"gain {m['gain']:+.4f} ({interval})"
    return ""


def results(planned: Mapping[str, Planned], given: Given) -> Iterator[str]:
    """What came out: versions, held-out metrics beside the baselines, folders, continuations, next commands."""
    if "labels" in planned:
        yield from _few_labels(planned["labels"])
    released = [kind for kind in ("task", "base") if f"pull-{kind}" in planned]
    for kind in released:
        yield from _released(kind, planned)
    for kind in ("adapter", "import"):
        if f"pull-{kind}" in planned:
            yield from _alone(kind, planned)
    if not released:
        return
    folder = planned["evaluate-base"].folder if "base" in released else None  # fine-tuned alone, by retraining
    file = folder / "outputs" / "continuations.json" if folder else None
    samples = durable.read_json(file) if file and file.exists() else []  # only causal models continue a text
    if samples:
        yield "\nthe base model continues held-out text:"
    for sample in samples:
        yield f"  {sample['prompt']!r} -> {sample['continuation']!r}"
    yield "\nnext:"
    commands = _next(planned, released[0], given)
    yield from (f"  {command:<56} # {what}" for command, what in commands.items())


def _next(planned: Mapping[str, Planned], kind: str, given: Given) -> dict[str, str]:
    first = _record(planned[f"register-{kind}"]).metrics
    pull = ("pull", f"MODEL={first['name']}@{first['alias']}", f"DEST=/tmp/{first['name']}")
    commands = {
        given.make_elsewhere("ui"): "MLflow: runs, curves, versions",
        given.make_elsewhere(*pull): "the model elsewhere",
    }
    if "register-base" in planned and not _is_masked(planned):
        base = _record(planned["register-base"]).metrics
        generate = ("generate", f"MODEL={base['name']}@{base['alias']}", 'PROMPT="To be"')
        commands[given.make_elsewhere(*generate)] = "the base model continues a text"
    return commands | {given.again(): "again: does only what changed"}


def _few_labels(planned: Planned) -> Iterator[str]:
    """The table of accuracy over labels, and where it and its picture are."""
    assert planned.folder is not None
    outputs = planned.folder / "outputs"
    yield "\naccuracy by number of labels, mean over the draws (lowest to highest):\n"
    yield from (outputs / "labels.md").read_text().splitlines()
    yield f"\ntable and picture: {outputs / 'labels.md'}, {outputs / 'labels.svg'}"


def _is_masked(planned: Mapping[str, Planned]) -> bool:
    """Whether the base model is a bidirectional one."""
    return _record(planned["evaluate-base"]).config["kind"] == evaluate_masked.KIND


def after_pull(folder: Path) -> str:
    """A command that uses the model in `folder`, which was just pulled: classifiers classify, readers answer, the others continue."""
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    if architectures[0].endswith("ForSequenceClassification"):
        code = f'from transformers import pipeline; print(pipeline("text-classification", {json.dumps(str(folder.absolute()))})("a film that stays with you"))'
        return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    if architectures[0].endswith(("ForPreTraining", "ForMaskedLM")):
        code = f'from transformers import pipeline; print(pipeline("fill-mask", {json.dumps(str(folder.absolute()))})("I like [MASK]."))'
        return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    if architectures[0].endswith("ForQuestionAnswering"):
        asked = json.dumps({"question": "Who built the bridge?", "context": "Ada Brook built the bridge in 1888."})
        code = (
            f"import mlflow; print(mlflow.pyfunc.load_model({json.dumps(str(folder.absolute()))}).predict([{asked!r}]))"
        )
        return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    return f'make generate MODEL={shlex.quote(str(folder))} PROMPT="To be"'


def _alone(kind: str, planned: Mapping[str, Planned]) -> Iterator[str]:
    """The adapter by itself, or the model of others that it stands on."""
    registered, folder = _record(planned[f"register-{kind}"]).metrics, planned[f"pull-{kind}"].folder
    assert folder is not None
    what = "the adapter alone" if kind == "adapter" else "its base, as it was imported"
    yield f"\n{registered['name']} version {registered['version']}, alias {registered['alias']}: {what}"
    yield f"  pulled to {folder / 'outputs' / 'model'}"


def _record(planned: Planned) -> Record:
    assert planned.record is not None
    return planned.record


def _released(kind: str, planned: Mapping[str, Planned]) -> Iterator[str]:
    registered, measured = _record(planned[f"register-{kind}"]).metrics, _record(planned[f"evaluate-{kind}"]).metrics
    folder = planned[f"pull-{kind}"].folder
    assert folder is not None
    yield f"\n{registered['name']} version {registered['version']}, alias {registered['alias']} ({registered['gates']})"
    if kind == "task":
        evaluated = _record(planned["evaluate-task"]).config["kind"]
        yield from (f"  {line}" for line in form.of(evaluated).told(measured))
    elif _is_masked(planned):
        yield from (f"  {line}" for line in evaluate_masked.told(measured))
    else:
        compared = ", ".join(f"{name} {measured[f'{name}_bits_per_byte']:.3f}" for name in ("unigram", "gzip", "xz"))
        yield f"  held-out {measured['bits_per_byte']:.3f} bits per byte (perplexity {measured['perplexity']:.1f} a token); {compared}"
    yield f"  pulled to {folder / 'outputs' / 'model'}"
