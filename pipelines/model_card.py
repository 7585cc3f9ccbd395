"""The README.md of a registered model: what it is, what it was made from, how good it is, where it fails.

The one idea: the card is a pure function of a `Card`, which holds nothing that differs between two equal runs
(no times, hosts, paths or run ids). So equal exports give equal packages, and the registry can tell a repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Pipeline = Literal[
    "text-classification", "text-generation", "fill-mask", "question-answering"
]  # as transformers calls it


@dataclass(frozen=True)
class Card:
    """What a package says about itself. `lineage` goes to MANIFEST.json, the rest to README.md."""

    name: str  # registered name
    task: Pipeline
    summary: str  # one or two sentences
    data: Sequence[str] = ()  # one line for each source or split: what, how much, which digest
    training: Mapping[str, Any] = field(default_factory=dict)  # shape and hyperparameters, flat
    metrics: Mapping[str, float] = field(default_factory=dict)  # measured on held-out data
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # name -> the same metrics
    limits: Sequence[str] = ()  # where it must not be trusted
    lineage: Mapping[str, Any] = field(default_factory=dict)  # fingerprints and digests, back to the raw sources
    chat: bool = False  # whether its tokenizer has a chat template
    language: str = "en"  # none: nobody said
    license: str = "other"
    family: str = "gpt2"
    labels: Sequence[str] = ()  # names of the classes of an adapter that classifies
    base: Mapping[str, str] | None = None  # of an adapter: the registered name and package digest of what it stands on


_LOAD: dict[str, str] = {
    "text-classification": """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
model = AutoModelForSequenceClassification.from_pretrained(DIR)
tokenizer = AutoTokenizer.from_pretrained(DIR)
print(pipeline("text-classification", DIR, truncation=True)("a film that stays with you"))""",
    "fill-mask": """\
from transformers import AutoModelForPreTraining, AutoTokenizer, pipeline
model, tokenizer = AutoModelForPreTraining.from_pretrained(DIR), AutoTokenizer.from_pretrained(DIR)
print(tokenizer("A sentence.", "And the next one?"))
print(pipeline("fill-mask", DIR)("a film that stays with [MASK]"))""",
    "question-answering": """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer
model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(DIR), AutoTokenizer.from_pretrained(DIR)
question, context = "Who built the bridge?", "The bridge over the river was built by Ada Brook in 1888."
inputs = tokenizer(question, context, truncation="only_second", return_offsets_mapping=True, return_tensors="pt")
places, inside = inputs.pop("offset_mapping")[0], torch.tensor([part == 1 for part in inputs.sequence_ids(0)])
with torch.inference_mode():
    said = model(**inputs)
starts, ends = (scores[0].masked_fill(~inside, -1e9) for scores in (said.start_logits, said.end_logits))
near = torch.ones(len(starts), len(starts)).triu().tril(29)  # it begins before it ends, and has at most 30 tokens
scores = starts[:, None] + ends[None, :] + (near - 1) * 1e9
first, last = divmod(int(scores.argmax()), len(starts))
print(context[places[first][0] : places[last][1]])""",
    "text-generation": """\
from transformers import GPT2LMHeadModel, GPT2Tokenizer
model, tokenizer = GPT2LMHeadModel.from_pretrained(DIR), GPT2Tokenizer.from_pretrained(DIR)
inputs = tokenizer.encode("Once upon a time", return_tensors="pt")
outputs = model.generate(inputs, max_length=50, num_return_sequences=1)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))""",
}

_ADAPTED = {
    "text-classification": "AutoModelForSequenceClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}  # the class of an adapter's base, where it is not AutoModelForCausalLM
_CHAT = """\
from transformers import pipeline
generate = pipeline("text-generation", DIR)
messages = [{"role": "user", "content": "..."}]
# "hole": what is longer than the window loses its beginning
said = generate(messages, max_new_tokens=NEW_TOKENS, do_sample=False, handle_long_generation="hole")
print(said[0]["generated_text"][-1]["content"].strip())"""
_NEW_TOKENS = 50  # that a model is let say where its evaluation has no figure


def new_tokens(card: Card) -> int:
    """Tokens that a model is let say: as many as when it was measured."""
    return int(card.metrics.get("max_new_tokens", _NEW_TOKENS))


def render(card: Card) -> str:
    """The README.md: YAML front matter as model hubs read it, then sections of Markdown."""
    sections = [
        f"# {card.name}\n\n{card.summary}",
        "## How to load\n\n" + _loading(card),
        "## Data\n\n" + _bullets(card.data),
        "## Held-out metrics\n\n" + _metrics(card),
        "## Training\n\n" + _bullets(f"`{key}`: {value}" for key, value in sorted(card.training.items())),
        "## Limits\n\n" + _bullets(card.limits),
        "## Lineage\n\nMANIFEST.json lists every file of this package with its SHA-256, and the digests that it was "
        "made from, back to the raw sources.",
    ]
    return _front_matter(card) + "\n" + "\n\n".join(sections) + "\n"


def _front_matter(card: Card) -> str:
    import yaml

    results = [{"type": name, "name": name, "value": value} for name, value in sorted(card.metrics.items())]
    held_out = {"task": {"type": card.task}, "dataset": {"type": "held-out", "name": "held-out"}, "metrics": results}
    head: dict[str, Any] = {
        **({"language": card.language} if card.language else {}),
        "license": card.license,
        "library_name": "transformers",
        "pipeline_tag": card.task,
        "tags": ["gptline"],
        "model-index": [{"name": card.name, "results": [held_out]}],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=True, allow_unicode=True)}---\n"


def _loading(card: Card) -> str:
    if card.base is not None:
        return _loading_adapter(card, card.base)
    asked = '{"question": "...", "context": "..."}' if card.task == "question-answering" else "some text"
    return (
        "With `transformers`, from the folder `DIR` that this package was pulled to:\n\n"
        f"```python\n{_loaded(card)}\n```\n\n"
        "With `mlflow`, straight from the registry that MLFLOW_TRACKING_URI names (same predictions; a reserved token "
        "in the text stays text):\n\n"
        "```python\nimport mlflow\n"
        f'model = mlflow.pyfunc.load_model("models:/{card.name}@champion")\nprint(model.predict([{asked!r}]))\n```'
    )


def _loaded(card: Card) -> str:
    """How `transformers` loads it, by the classes of its family, and as its evaluation asked it."""
    if card.chat:
        return _CHAT.replace("NEW_TOKENS", str(new_tokens(card)))
    code = _LOAD[card.task]
    if card.family == "gpt2":
        return code
    return code.replace("GPT2LMHeadModel", "AutoModelForCausalLM").replace("GPT2Tokenizer", "AutoTokenizer")


def _loading_adapter(card: Card, base: Mapping[str, str]) -> str:
    kind = _ADAPTED.get(card.task, "AutoModelForCausalLM")
    # The base has another head or none: the adapter brings its own, and the names of its classes are here.
    names = f"names = {dict(enumerate(card.labels))!r}\n" if card.labels else ""
    numbers = "label2id={name: number for number, name in names.items()}"
    head = f", id2label=names, {numbers}, ignore_mismatched_sizes=True" if card.labels else ""
    return (
        f"Its base is `{base['name']}`, package `{base['digest']}`; `gptline pull {card.name}@champion DIR --base BASE` "
        "fetches both. With `peft`; the tokenizer here is the one that it was trained with"
        f"{', its chat template too' if card.chat else ''}:\n\n"
        f"```python\nfrom peft import PeftModel\nfrom transformers import AutoTokenizer, {kind}\n{names}"
        f'model = PeftModel.from_pretrained({kind}.from_pretrained("BASE"{head}), "DIR")\n'
        'tokenizer = AutoTokenizer.from_pretrained("DIR")\n```'
    )


def _metrics(card: Card) -> str:
    names = sorted({*card.metrics, *(name for row in card.baselines.values() for name in row)})
    if not names:
        return "None were measured."
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for title, row in [("this model", card.metrics), *sorted(card.baselines.items())]:
        lines.append(f"| {title} | " + " | ".join(_number(row.get(name)) for name in names) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines) or "Not stated."
