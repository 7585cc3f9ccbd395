"""Text: documents in, more of their kind out: continued pre-training. What the stages do for tasks of this form.

The one idea: every token of a document is learned, the EOT that ends it too, in windows that overlap by one token, so that
each is predicted exactly once. The export is measured in bits per byte beside n-grams of the same tokens, and its
continuations of held-out beginnings beside the n-grams' and the authors' own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model import durable
from pipelines import tokenizer_files
from pipelines.engine.step import Attempt
from pipelines.forms import replies
from pipelines.stages import training as jobs
from pipelines.stages.evaluate import compute, weights
from pipelines.tasks import examples as example_files
from pipelines.tasks import generation_metrics, intervals
from pipelines.tasks.examples import Text
from pipelines.tasks.ngram import NGrams

PIPELINE = "text-generation"
CHAT = False  # whether the export's tokenizer has a chat template
EVALUATION = 4  # the third compared distinct-n of texts of different lengths, the first continued the first documents
METRICS = {
    "bits_per_byte": ("unigram", "trigram", "base"),
    **dict.fromkeys(("distinct_1", "distinct_2", "repetition"), ("trigram", "original")),
}  # of the table
SUMMARY = "A causal language model, whose pre-training was continued by gptline on the documents below."
LIMITS = (
    "It is small and has read little: it writes in the manner of its text and knows nothing of the world.",
    "Nothing was done to keep it from repeating its training text or from giving offence.",
)
_CONTINUED = 100  # held-out beginnings that are continued
_PROMPT = 16  # tokens of each


def training(attempt: Attempt, tokenizer: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's objective and data, and what was counted."""
    target = attempt.scratch / "examples.arrow"
    counts = encode(attempt.inputs["examples"].path("train.jsonl"), tokenizer, settings, target)
    return {"objective": "causal_lm", "model": {}, "data": {"examples": str(target)}}, counts


def encode(source: Path, tokenizer: Path, settings: Mapping[str, Any], target: Path) -> dict[str, int]:
    """Tokenise the documents of `source` (JSONL) into `target`, in windows; nothing is cut."""
    rows = documents(example_files.read(source, "text"), tokenizer)
    found = [window for row in rows for window in windows(row, settings["sequence_length"])]
    replies.write(target, found, tokenizer)
    return {"examples": len(rows), "sequences": len(found), "learned_tokens": sum(len(row) - 1 for row in rows)}


def documents(texts: Sequence[Text], tokenizer: Path) -> list[list[int]]:
    """Each document's tokens between two EOT: the first is predicted from the EOT before it. Reserved tokens stay text."""
    encoder = tokenizer_files.load(tokenizer)
    encoder.encode_special_tokens = True
    eot = jobs.vocabulary(tokenizer)["eot_token_id"]
    return [[eot, *row.ids, eot] for row in encoder.encode_batch([one.text for one in texts], add_special_tokens=False)]


def windows(row: Sequence[int], length: int) -> list[list[int]]:
    """A sequence in pieces of at most `length` tokens, each of which begins with the last token of the one before."""
    return [list(row[start : start + length]) for start in range(0, len(row) - 1, length - 1)]


def evaluate(attempt: Attempt) -> dict[str, Any]:
    """Bits per byte of the test documents and continuations of their beginnings, beside the n-grams'."""
    export = weights(attempt.inputs["export"])
    train, test = (example_files.read(attempt.inputs[name].path(f"{name}.jsonl"), "text") for name in ("train", "test"))
    rows = documents(test, export)
    facts = jobs.vocabulary(export)
    known = [row[1:] for row in documents(train, export)]
    tables = {
        name: NGrams(known, facts["vocab_size"], facts["eot_token_id"], order)
        for name, order in (("unigram", 1), ("trigram", 3))
    }
    nats = {"": _nats(attempt, rows, export)}
    if "base" in attempt.inputs:
        nats["base"] = _nats(attempt, rows, weights(attempt.inputs["base"]))
    nats |= {name: [float(table.nats(row[1:]).sum()) for row in rows] for name, table in tables.items()}
    counts, sizes = [len(row) - 1 for row in rows], [len(one.text.encode()) for one in test]
    groups = [one.group for one in test]
    drawn: dict[str, generation_metrics.Drawn] = {name: {} for name in nats}
    reports = {name: generation_metrics.likelihood(of, counts, sizes, groups, drawn[name]) for name, of in nats.items()}
    reports = replies.merged(reports, _continuations(attempt, test, rows, tables["trigram"], drawn))
    replies.write_predictions(
        attempt,
        [
            {"id": one.id, "bits": cost / math.log(2), "bytes": size}
            for one, cost, size in zip(test, nats[""], sizes, strict=True)
        ],
    )
    durable.write_json(attempt.outputs / "report.json", replies.named(reports, drawn))
    continued = {"asked": reports[""]["examples"]} if "examples" in reports[""] else {}
    return replies.figures(reports) | {"examples": len(test)} | continued


def _nats(attempt: Attempt, rows: Sequence[Sequence[int]], export: Path) -> list[float]:
    """-ln p of each document under an export, in windows of all its positions."""
    pieces = [windows(row, replies.positions(export)) for row in rows]
    file = attempt.scratch / "documents.arrow"
    replies.write(file, [piece for several in pieces for piece in several], export)
    found = iter(compute(attempt, "model.likelihood:example_nats", export, examples=str(file)))
    return [sum(next(found)[0] for _ in several) for several in pieces]


def _continuations(
    attempt: Attempt,
    test: Sequence[Text],
    rows: Sequence[Sequence[int]],
    table: NGrams,
    drawn: dict[str, generation_metrics.Drawn],
) -> dict[str, dict[str, Any]]:
    """What the export, the trigrams and the authors go on with, drawn from the whole distribution; written with samples.json."""
    export = weights(attempt.inputs["export"])
    new = replies.positions(export) // 2
    long = [place for place, row in enumerate(rows) if len(row) > _PROMPT + new]
    if not long:
        return {}
    taken = example_files.spread([test[place].group for place in long], [test[place].id for place in long], _CONTINUED)
    chosen = [long[place] for place in taken]
    decode = tokenizer_files.load(export).decode
    prompts = [list(rows[place][1 : 1 + _PROMPT]) for place in chosen]
    file, output = attempt.scratch / "beginnings.arrow", attempt.scratch / "continuations.jsonl"
    replies.write(file, prompts, export)
    settings: dict[str, Any] = {"max_new_tokens": new, "seed": 0, "temperature": 1.0, "top_k": 0}
    compute(attempt, "model.generate:answer", prompts=str(file), output=str(output), **settings)
    end = rows[0][0]
    texts = {
        "": [line["text"] for line in replies.json_lines(output)],
        "trigram": [decode(table.continued(prompt, new, 0, end)) for prompt in prompts],
        "original": [decode(list(rows[place][1 + _PROMPT :][:new])) for place in chosen],
    }
    samples = [
        {"prompt": decode(prompt)} | {name or "model": several[place] for name, several in texts.items()}
        for place, prompt in enumerate(prompts)
    ]
    durable.write_json(attempt.outputs / "samples.json", samples)
    groups, words = [test[place].group for place in chosen], generation_metrics.words_by(texts["original"])
    varied = generation_metrics.diversity(texts, words)
    return {
        name: {
            "examples": len(several),
            **generation_metrics.repetition(several, groups, words, drawn.setdefault(name, {})),
            **varied[name],
            "words": generation_metrics.length(several, words),
        }
        for name, several in texts.items()
    }


def compare(attempt: Attempt, champion: Path) -> dict[str, Any]:
    """Bits per byte of the test documents, of both."""
    test = example_files.read(attempt.inputs["test"].path("test.jsonl"), "text")
    theirs = _nats(attempt, documents(test, champion), champion)
    return replies.gained(attempt, [(one.id, one.group) for one in test], theirs)


def figure(metrics: Mapping[str, Any]) -> str:
    """The one figure that says most."""
    return f"{metrics['bits_per_byte']:.3f} bits per byte, trigrams {metrics['trigram_bits_per_byte']:.3f}"


def told(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What a run says of the evaluation when it ends."""
    m = metrics
    yield (
        f"held-out {m['bits_per_byte']:.3f} bits per byte ({intervals.told(m, 'bits_per_byte', '{:.3f}'.format)}), "
        f"perplexity {m['perplexity']:.1f} a token, on {m['examples']:,} documents"
    )
    before = f", before the continued training {m['base_bits_per_byte']:.3f}" if "base_bits_per_byte" in m else ""
    yield f"trigrams: {m['trigram_bits_per_byte']:.3f} bits per byte; unigrams: {m['unigram_bits_per_byte']:.3f}{before}"
    for name, title in (("", "continuations"), ("trigram_", "trigrams'"), ("original_", "the authors'")):
        if f"{name}distinct_1" in m:
            yield (
                f"{title}: distinct-1 {m[f'{name}distinct_1']:.3f}, distinct-2 {m[f'{name}distinct_2']:.3f}, "
                f"repetition {m[f'{name}repetition']:.3f}"
            )
