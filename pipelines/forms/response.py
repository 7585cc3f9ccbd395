"""Response: a prompt in, a text out that answers it. What the stages do for tasks of this form.

The one idea: the loss is on the response and its end only (pipelines/chat.py), so that a model learns to answer and not to
ask; everything that is cut is counted. It is measured by what it says greedily and by how probable it finds what was
right, beside the baselines of `replies.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model import durable
from pipelines.engine.step import Attempt
from pipelines.forms import replies
from pipelines.tasks import examples as example_files
from pipelines.tasks import intervals
from pipelines.tasks.answer_baselines import BASELINES, teaching
from pipelines.tasks.examples import Response

PIPELINE = "text-generation"
CHAT = True  # whether the export's tokenizer has a chat template
EVALUATION = 4  # the third took a Chinese answer for one word, the first's n-grams learned prompts
METRICS = {"f1": ("copy", "frequent", "retrieval"), "perplexity": ("unigram", "trigram")}  # of the table
SUMMARY = "A causal language model, fine-tuned by gptline to answer prompts like those of the examples below."
LIMITS = (
    "It answers prompts like those it was trained on; whatever else it is asked, it answers in the same way.",
    "It states things that are not so, and nothing was done to keep it from giving offence.",
    "Prompts longer than its window lose their beginning.",
)


def training(attempt: Attempt, tokenizer: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's objective, data and tokenizer; how many examples there are and how many were cut."""
    examples = read(attempt.inputs["examples"].path("train.jsonl"))
    return replies.job(
        conversations(examples), tokenizer, settings["sequence_length"], attempt.scratch, several_turns=False
    )


def encode(source: Path, tokenizer: Path, settings: Mapping[str, Any], target: Path) -> dict[str, int]:
    """Tokenise the examples of `source` (JSONL) into `target`; returns how many there are and how many were cut."""
    return replies.encode(conversations(read(source)), tokenizer, settings["sequence_length"], target)


def read(path: Path) -> list[Response]:
    """The examples of a file."""
    return example_files.read(path, "response")


def conversations(examples: Sequence[Response]) -> list[replies.Conversation]:
    """Each prompt and its response as a conversation of two turns."""
    return [
        replies.Conversation(
            one.id,
            [{"role": "user", "content": one.prompt}, {"role": "assistant", "content": one.response}],
            one.group,
            one.references or [one.response],
        )
        for one in examples
    ]


def evaluate(attempt: Attempt) -> dict[str, Any]:
    """What the export and the baselines say to the test prompts, and how probable the right responses were."""
    train, test = (read(attempt.inputs[name].path(f"{name}.jsonl")) for name in ("train", "test"))
    known, held = conversations(train), conversations(test)
    likely = replies.likelihood(attempt, known, held)
    asked = [replies.Asked(one.messages[:1], list(one.references), one.group) for one in held]
    said = replies.answered(attempt, known, asked, BASELINES)
    reports = replies.merged(said.reports, likely.reports)
    replies.write_predictions(
        attempt,
        [
            {
                "id": one.id, "prompt": one.prompt, "references": one.references, "predicted": text, "bits": bits,
                "bytes": size, **{name: texts[place] for name, texts in said.baselines.items()},
            }
            for place, (one, text, bits, size) in enumerate(zip(test, said.texts, likely.bits, likely.bytes, strict=True))
        ],
    )  # fmt: skip
    drawn = replies.merged(said.drawn, likely.drawn)
    durable.write_json(attempt.outputs / "report.json", replies.named(reports, drawn))
    taught = {"dictionary_pairs": len(teaching([(one.prompt, one.response) for one in train]))}
    return replies.figures(reports) | {"examples": len(test)} | likely.counts | said.counts | taught


def compare(attempt: Attempt, champion: Path) -> dict[str, Any]:
    """Bits per byte of the right responses, of both."""
    return replies.compared(attempt, champion, conversations(read(attempt.inputs["test"].path("test.jsonl"))))


def figure(metrics: Mapping[str, Any]) -> str:
    """The one figure that says most."""
    return f"chrF {metrics['chrf']:.1f}, F1 {metrics['f1']:.3f}, perplexity {metrics['perplexity']:.1f}"


def told(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What a run says of the evaluation when it ends."""
    m = metrics
    yield (
        f"held-out chrF {m['chrf']:.1f} ({intervals.told(m, 'chrf', '{:.1f}'.format)}), BLEU {m['bleu']:.1f}, "
        f"exact match {m['exact_match']:.1%}, F1 {m['f1']:.3f} ({intervals.told(m, 'f1', '{:.3f}'.format)}) on {m['examples']:,} prompts"
    )
    yield f"perplexity on responses {m['perplexity']:.1f}; trigrams {m['trigram_perplexity']:.1f}, unigrams {m['unigram_perplexity']:.1f}"
    for name in BASELINES:
        yield (
            f"{name}: chrF {m[f'{name}_chrf']:.1f}, BLEU {m[f'{name}_bleu']:.1f}, "
            f"exact match {m[f'{name}_exact_match']:.1%}, F1 {m[f'{name}_f1']:.3f}"
        )
    yield from replies.cut_told(m)
