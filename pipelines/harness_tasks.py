"""What lm-eval is asked about a model, by the form of the task: its data file, and our own figures for the same rows.

The one idea: the rows are texts, as the task's test file has them, and lm-eval makes tokens and prompts of them by itself;
our figures come from the functions that evaluate the line's models, on the same texts. Each form has a task file of its
name in `lm_eval_tasks/`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from model import durable
from pipelines import chat, tokenizer_files
from pipelines.config import ConfigError
from pipelines.engine.step import resolve
from pipelines.forms import form, replies
from pipelines.harness_data import PERPLEXITY, Made
from pipelines.tasks import examples, generation_metrics, language_modelling, task

Job = dict[str, Any]  # {"export", "threads", "device"}


@dataclass(frozen=True)
class Asked:
    """One task of lm-eval, whose data are written: its name, our figures, and which of them are compared."""

    name: str
    ours: Callable[[Job], Mapping[str, float]]
    metrics: tuple[str, ...]
    options: tuple[str, ...] = ()  # of lm-eval's command
    left_out: int = 0  # replies that lm-eval cannot be asked about, by both


def asked(name: str, made: Made, export: Path, scratch: Path) -> Asked:
    """What `name`, "perplexity" or one of our tasks, asks of the model in the folder `export`.

    ConfigError for an unknown task, for one that causal models are not scored by, or where its data are not made.
    """
    forms = {PERPLEXITY: _documents} | {known: _FORMS[task.form_of(known)] for known in _generative()}
    if name not in forms:
        seen = f"this task is of the form {task.form_of(name)}" if name in task.names() else "no such task"
        raise ConfigError(f"TASKS={name}: {seen}; lm-eval scores causal language models on {', '.join(forms)}")
    if name not in (PERPLEXITY, made.task):
        raise ConfigError(
            f"TASKS={name}: the examples of {made.whose} are of {made.task or 'no task'}; name a recipe: RECIPE=..."
        )
    kind = _architecture(export)
    if not kind.endswith(("ForCausalLM", "LMHeadModel")):
        raise ConfigError(
            f"{export} holds {kind}: lm-eval scores causal language models; make status tells our figures"
        )
    return forms[name](made, export, scratch)


def _architecture(export: Path) -> str:
    config = export / "config.json"
    return str(durable.read_json(config)["architectures"][0]) if config.exists() else "no whole model (an adapter?)"


def _generative() -> list[str]:
    return [name for name in task.names() if task.form_of(name) in _FORMS]


def _documents(made: Made, export: Path, scratch: Path) -> Asked:
    """The held-out documents that a base model is measured on."""
    step = made.read("shard", "heldout.json")
    step.check_units(made.root, "heldout.json")
    found = language_modelling.texts(made.root, step.path("heldout.json"))
    return _texts([{"text": text.decode()} for text in found], scratch)


def _texts(rows: list[dict[str, Any]], scratch: Path) -> Asked:
    ours = partial(_surprise, {"texts": str(_data(scratch, rows))})
    return Asked("gptline_text", ours, ("bits_per_byte", "byte_perplexity"))


def _data(scratch: Path, rows: list[dict[str, Any]]) -> Path:
    """The file that lm-eval's task reads."""
    replies.write_lines(scratch / "data.jsonl", rows)
    return scratch / "data.jsonl"


def _surprise(job: Job, how: Job) -> Mapping[str, float]:
    return dict(resolve("model.rolling:evaluate_texts")(job | how))


def _text(made: Made, export: Path, scratch: Path) -> Asked:
    """The test documents of continued pre-training."""
    return _texts([{"text": one.text} for one in examples.read(_split(made, "test"), "text")], scratch)


def _split(made: Made, split: str) -> Path:
    return made.read("prepare_task", f"{split}.jsonl").path(f"{split}.jsonl")


def _response(made: Made, export: Path, scratch: Path) -> Asked:
    """The test prompts, each with all responses that are right; the first is repeated where another prompt has more.

    lm-eval takes as many references for each, and one that comes twice changes no figure.
    """
    of = form.of("response")
    train, test = (of.conversations(of.read(_split(made, split))) for split in ("train", "test"))
    new, most = replies.longest_reply(train, export), max(len(one.references) for one in test)
    repeated = [[*one.references, *[one.references[0]] * (most - len(one.references))] for one in test]
    _data(
        scratch,
        [
            {"prompt": one.messages[0]["content"], "references": right}
            for one, right in zip(test, repeated, strict=True)
        ],
    )
    held = [replies.Asked(one.messages[:1], list(one.references), one.group) for one in test]
    return Asked(
        "gptline_response",
        partial(_answers, held, new, scratch),
        ("bleu", "chrf", "exact_match", "f1"),
        ("--apply_chat_template", "--gen_kwargs", f"max_gen_toks={new}"),
    )


def _answers(held: Sequence[replies.Asked], new: int, scratch: Path, how: Job) -> Mapping[str, float]:
    job = replies.asking(held, Path(how["export"]), new, scratch)
    resolve("model.generate:answer")(job | how)
    texts = [line["text"] for line in replies.json_lines(Path(job["output"]))]
    return generation_metrics.report(texts, [one.references for one in held], [one.group for one in held])


def _dialogue(made: Made, export: Path, scratch: Path) -> Asked:
    """The replies of the test conversations, each after the turns that our evaluation has before it."""
    said, encoder = chat.Chat(export), tokenizer_files.load(export)
    test = form.of("dialogue").read(_split(made, "test"))
    rows = [row for several in replies.rows(test, said, replies.positions(export)) for row in several]
    lines, masks, left_out = list[dict[str, Any]](), [[False] * len(row.tokens) for row in rows], 0
    for row, mask in zip(rows, masks, strict=True):
        for start, end in _learned(row.mask):
            line = _reply(encoder, row.tokens, start, end)
            left_out += line is None
            if line:
                lines.append(line)
                mask[start:end] = [True] * (end - start)
    _data(scratch, lines)
    replies.write(scratch / "replies.arrow", [row.tokens for row in rows], export, masks)
    ours = partial(_likelihood, scratch / "replies.arrow", sum(line["bytes"] for line in lines))
    return Asked("gptline_dialogue", ours, ("perplexity", "bits_per_byte"), left_out=left_out)


def _learned(mask: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Where replies begin and end. A sequence's first token is predicted from nothing, and belongs to what is before."""
    for learned, places in itertools.groupby(range(1, len(mask)), key=mask.__getitem__):
        if learned:
            run = list(places)
            yield run[0], run[-1] + 1


def _reply(encoder: Any, tokens: Sequence[int], start: int, end: int) -> dict[str, Any] | None:
    """A reply as text after its context; None where the text would not give these tokens, as where one was cut."""
    context, reply = (
        encoder.decode(list(part), skip_special_tokens=False) for part in (tokens[:start], tokens[start:end])
    )
    as_text = (encoder.encode(text, add_special_tokens=False).ids for text in (context, context + reply))
    if not context.strip() or list(as_text) != [list(tokens[:start]), list(tokens[:end])]:
        return None
    size = len(encoder.decode(list(tokens[start:end]), skip_special_tokens=True).encode())
    asked = context.rstrip()
    blanks = context[len(asked) :]
    choices = [blanks + reply, blanks] if blanks else [reply]
    return {"context": asked, "choices": choices, "tokens": end - start, "bytes": size}


def _likelihood(examples_file: Path, size: int, how: Job) -> Mapping[str, float]:
    found = resolve("model.likelihood:example_nats")(how | {"examples": str(examples_file)})
    nats, count = sum(nats for nats, _ in found), sum(count for _, count in found)
    return {"perplexity": math.exp(nats / count), "bits_per_byte": nats / math.log(2) / size}


_FORMS: Mapping[str, Callable[[Made, Path, Path], Asked]] = {
    "text": _text,
    "response": _response,
    "dialogue": _dialogue,
}
