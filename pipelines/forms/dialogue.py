"""Dialogue: a conversation so far in, the next reply out. What the stages do for tasks of this form.

The one idea: only what the assistant says is learned, over several turns, and a conversation that is longer than the
window is learned in pieces, each reply once, after the turns that fit. The export's tokenizer has a chat template, so that
`pipeline("text-generation", DIR)(messages)` of plain `transformers` goes on with a conversation.
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

PIPELINE = "text-generation"
CHAT = True  # whether the export's tokenizer has a chat template
EVALUATION = 4  # the third compared distinct-n of texts of different lengths, the first's n-grams learned turns twice
METRICS = {
    "perplexity": ("unigram", "trigram"),
    **dict.fromkeys(("distinct_1", "distinct_2", "repetition"), ("retrieval",)),
}  # of the table
SUMMARY = (
    "A causal language model, fine-tuned by gptline to reply in conversations like those below; it has a chat template."
)
LIMITS = (
    "It is small and knows nothing of the world: it replies in the manner of its conversations.",
    "Nothing was done to keep it from giving offence; its conversations were people's.",
    "Its tokenizer reads reserved tokens in a text as such, as chat templates need: clean a stranger's text of them, as the "
    "template does.",
)
_ASKED = 300  # replies that a model is asked for; all replies are measured by their probability


def training(attempt: Attempt, tokenizer: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's objective, data and tokenizer; how many examples there are and how many were cut."""
    source = attempt.inputs["examples"].path("train.jsonl")
    return replies.job(read(source), tokenizer, settings["sequence_length"], attempt.scratch, several_turns=True)


def encode(source: Path, tokenizer: Path, settings: Mapping[str, Any], target: Path) -> dict[str, int]:
    """Tokenise the conversations of `source` (JSONL) into `target`; returns how many there are and how many were cut."""
    return replies.encode(read(source), tokenizer, settings["sequence_length"], target)


def read(path: Path) -> list[replies.Conversation]:
    """The conversations of a file."""
    return [replies.Conversation(one.id, one.messages, one.group) for one in example_files.read(path, "dialogue")]


def evaluate(attempt: Attempt) -> dict[str, Any]:
    """How probable the held-out replies were, and what the export says in place of some of each conversation."""
    train, test = (read(attempt.inputs[name].path(f"{name}.jsonl")) for name in ("train", "test"))
    likely = replies.likelihood(attempt, train, test)
    asked = spread(list(_asked(test)), _ASKED)
    said = replies.answered(attempt, train, asked, ("frequent", "retrieval"))
    reports = replies.merged(said.reports, likely.reports)
    replies.write_predictions(
        attempt,
        [
            {"id": one.id, "bits": bits, "bytes": size}
            for one, bits, size in zip(test, likely.bits, likely.bytes, strict=True)
        ],
    )
    samples = [
        {"messages": one.messages, "reply": one.references[0], "model": text}
        | {name: texts[place] for name, texts in said.baselines.items()}
        for place, (one, text) in enumerate(zip(asked, said.texts, strict=True))
    ]
    durable.write_json(attempt.outputs / "samples.json", samples)
    drawn = replies.merged(said.drawn, likely.drawn)
    durable.write_json(attempt.outputs / "report.json", replies.named(reports, drawn))
    return replies.figures(reports) | {"examples": len(test)} | likely.counts | said.counts


def _asked(conversations: Sequence[replies.Conversation]) -> Iterator[replies.Asked]:
    """Every reply of some conversations that answers something."""
    for one in conversations:
        for place, turn in enumerate(one.messages):
            if turn["role"] == "assistant" and place:
                yield replies.Asked(one.messages[:place], [turn["content"]], one.group)


def spread(asked: Sequence[replies.Asked], most: int) -> list[replies.Asked]:
    """At most so many, from every conversation about as many; in the order that they came in."""
    places = example_files.spread([one.group for one in asked], [_hash(one) for one in asked], most)
    return [asked[place] for place in places]


def _hash(one: replies.Asked) -> str:
    return example_files.identifier(one.group, *(turn["content"] for turn in one.messages), *one.references)


def compare(attempt: Attempt, champion: Path) -> dict[str, Any]:
    """Bits per byte of the held-out replies, of both."""
    return replies.compared(attempt, champion, read(attempt.inputs["test"].path("test.jsonl")))


def figure(metrics: Mapping[str, Any]) -> str:
    """The one figure that says most."""
    return f"perplexity on replies {metrics['perplexity']:.1f}, trigrams {metrics['trigram_perplexity']:.1f}"


def told(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What a run says of the evaluation when it ends."""
    m = metrics
    yield (
        f"held-out perplexity on replies {m['perplexity']:.1f} ({intervals.told(m, 'perplexity', '{:.1f}'.format)}), "
        f"{m['bits_per_byte']:.3f} bits per byte, in {m['examples']:,} conversations"
    )
    yield f"trigrams: perplexity {m['trigram_perplexity']:.1f}, {m['trigram_bits_per_byte']:.3f} bits per byte; unigrams: {m['unigram_perplexity']:.1f}"
    for name, title in (("", "replies"), ("retrieval_", "retrieval by TF-IDF")):
        yield (
            f"{title}: chrF {m[f'{name}chrf']:.1f}, distinct-1 {m[f'{name}distinct_1']:.3f}, "
            f"distinct-2 {m[f'{name}distinct_2']:.3f} on {m['asked']:,}"
        )
    yield from replies.cut_told(m)
