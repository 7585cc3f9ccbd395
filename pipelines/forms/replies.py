"""What the forms that answer share: replies are learned and nothing else, and measured as they are given.

The one idea: a prompt with its response and a conversation of many turns are the same thing, exchanges that the
tokenizer's chat template renders (pipelines/chat.py). Two questions are asked of an export: how probable it finds the
replies that were given (perplexity, bits per byte: from the loss masks of training), and what it says itself, greedily.
Each stands beside what a table of n-grams and what simple answers reach (pipelines/tasks/answer_baselines.py).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model import durable
from pipelines import chat
from pipelines.engine.step import Attempt
from pipelines.forms import reply_ngrams
from pipelines.stages import training as jobs
from pipelines.stages.evaluate import compute, weights
from pipelines.tasks import answer_baselines, generation_metrics, intervals

Messages = list[dict[str, str]]
MEASURED = ("bleu", "chrf", "exact_match", "f1", "repetition", "perplexity", "bits_per_byte")  # with intervals
_COUNTED = ("distinct_1", "distinct_2", "words")
_SHARE = 0.99  # of the training replies are no longer than what a model is let say


@dataclass(frozen=True)
class Conversation:
    """An example of either form: its turns, and what else may be said for its last reply."""

    id: str
    messages: Messages
    group: str
    references: Sequence[str] = ()


@dataclass(frozen=True)
class Asked:
    """A reply that a model is asked for: the turns before it, and the replies that are right."""

    messages: Messages
    references: list[str]
    group: str


def job(
    conversations: Sequence[Conversation], tokenizer: Path, window: int, scratch: Path, *, several_turns: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of the training job for these examples, and what was counted. The export's tokenizer has the template."""
    folder = chat.with_template(tokenizer, scratch / "tokenizer", several_turns=several_turns)
    _check_that_all_reply(conversations, chat.Chat(folder))  # here, for only what is learned has to reply
    counts = encode(conversations, folder, window, scratch / "examples.arrow")
    data = {"examples": str(scratch / "examples.arrow")}
    return {"objective": "causal_lm", "model": {}, "data": data, "tokenizer": str(folder)}, counts


def encode(conversations: Sequence[Conversation], tokenizer: Path, window: int, target: Path) -> dict[str, int]:
    """Tokenise conversations into `target`, in pieces of at most `window` tokens; returns what was counted."""
    encoded = [row for one in rows(conversations, chat.Chat(tokenizer), window) for row in one]
    write(target, [row.tokens for row in encoded], tokenizer, [row.mask for row in encoded])
    return {
        "examples": len(conversations),
        "sequences": len(encoded),
        **_cut(encoded),
        "learned_tokens": sum(sum(row.mask) for row in encoded),
    }


def rows(conversations: Sequence[Conversation], said: chat.Chat, window: int) -> list[list[chat.Row]]:
    """The sequences of each conversation. ValueError if there is no reply in any of them."""
    found = []
    for conversation in conversations:
        groups, contexts = chat.fitted(said.exchanges(conversation.messages), window)
        found.append([chat.row(*group, window, said.size) for group in zip(groups, contexts, strict=True)])
    if not any(found):
        raise ValueError(f"{len(conversations)} examples hold no reply to learn; give messages of the role assistant")
    return found


def _empty(conversations: Sequence[Conversation], said: chat.Chat) -> Iterator[tuple[Conversation, int, str]]:
    """The replies of which nothing is left without reserved tokens: whose, which one, and what it says."""
    for one in conversations:
        given = [turn["content"] for turn in one.messages if turn["role"] == "assistant"]
        yield from ((one, number, text) for number, text in enumerate(given, 1) if not said.clean(text))


def _check_that_all_reply(conversations: Sequence[Conversation], said: chat.Chat) -> None:
    """ValueError for a reply of reserved tokens alone, which would teach to say nothing. Held out it is counted."""
    for one, number, text in _empty(conversations, said):
        raise ValueError(
            f"example {one.id}: reply {number} is {text[:60]!r}, reserved tokens of the tokenizer and nothing else; "
            "remove it from the task's data"
        )


def write(target: Path, tokens: Sequence[Any], tokenizer: Path, masks: Sequence[Any] | None = None) -> None:
    """An examples file of sequences that are numbered."""
    from model.examples import write_examples

    facts = jobs.vocabulary(tokenizer)
    write_examples(
        target, tokens, [str(place) for place in range(len(tokens))], loss_masks=masks,
        tokenizer=durable.sha256(tokenizer / "tokenizer.json"), vocab_size=facts["vocab_size"], eot=facts["eot_token_id"],
    )  # fmt: skip


def positions(export: Path) -> int:
    """The longest sequence that an export takes, or weights that are released nowhere, in tokens."""
    config = export / "config.json"
    fields = durable.read_json(config if config.exists() else export / "model.json")
    return int(fields.get("n_positions") or fields["max_position_embeddings"])


@dataclass(frozen=True)
class Likelihood:
    """How probable replies were, by conversation; the figures, the n-grams' beside the model's; and what was cut."""

    bits: list[float]
    bytes: list[int]
    reports: dict[str, dict[str, Any]]
    drawn: dict[str, generation_metrics.Drawn]
    counts: dict[str, int]


def likelihood(attempt: Attempt, train: Sequence[Conversation], test: Sequence[Conversation]) -> Likelihood:
    """Perplexity and bits per byte of the test conversations' replies, for the export and for n-grams of the training ones."""
    export = weights(attempt.inputs["export"])
    said, window = chat.Chat(export), positions(export)
    held = rows(test, said, window)
    flat = [(place, row) for place, several in enumerate(held) for row in several]
    file = attempt.scratch / "replies.arrow"
    write(file, [row.tokens for _, row in flat], export, [row.mask for _, row in flat])
    ours = compute(attempt, "model.likelihood:example_nats", examples=str(file))
    groups = [test[place].group for place, _ in flat]
    sizes, learned = [row.reply_bytes for _, row in flat], [tokens for _, tokens in ours]
    nats = {"": [cost for cost, _ in ours]}
    facts = jobs.vocabulary(export)
    for name, table in reply_ngrams.tables(train, said, facts["vocab_size"], facts["eot_token_id"]).items():
        nats[name] = [float(table.nats(row.tokens)[1:][row.mask[1:]].sum()) for _, row in flat]
    drawn: dict[str, generation_metrics.Drawn] = {name: {} for name in nats}
    reports = {
        name: generation_metrics.likelihood(costs, learned, sizes, groups, drawn[name]) for name, costs in nats.items()
    }
    bits, size = [0.0] * len(test), [0] * len(test)
    for (place, row), (cost, _) in zip(flat, ours, strict=True):
        bits[place] += cost / math.log(2)
        size[place] += row.reply_bytes
    counts = _cut([row for _, row in flat]) | {"replies_empty": sum(1 for _ in _empty(test, said))}
    return Likelihood(bits, size, reports, drawn, counts)


def _cut(found: Sequence[chat.Row]) -> dict[str, int]:
    """How many sequences lost the beginning of their prompt, and how many the end of their reply."""
    return {
        "prompts_cut": sum(row.prompt_cut for row in found),
        "replies_cut": sum(row.reply_cut for row in found),
    }


def cut_told(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What a run says of what was too long for the window, and of replies that say nothing, where there are any."""
    m = metrics
    if m.get("replies_empty"):
        yield f"{m['replies_empty']:,} held-out replies are reserved tokens of the tokenizer and nothing else"
    if m["prompts_cut"] or m["replies_cut"] or m["asked_prompts_cut"]:
        yield (
            f"cut to the window: {m['prompts_cut']:,} prompts and {m['replies_cut']:,} replies; "
            f"of {m['asked']:,} prompts that were answered {m['asked_prompts_cut']:,}"
        )


@dataclass(frozen=True)
class Said:
    """What a model and the baselines say, their figures, and how much a model was let say."""

    texts: list[str]
    baselines: dict[str, list[str]]
    reports: dict[str, dict[str, Any]]
    drawn: dict[str, generation_metrics.Drawn]
    counts: dict[str, int]


def answered(attempt: Attempt, train: Sequence[Conversation], asked: Sequence[Asked], baselines: Sequence[str]) -> Said:
    """The export's greedy answers beside the baselines', which know the last thing said and the reply to it."""
    export = weights(attempt.inputs["export"])
    new = longest_reply(train, export)
    texts, cut = said_by(attempt, asked, export, new)
    pairs = [pair for conversation in train for pair in _pairs(conversation.messages)]
    simple = answer_baselines.answers(pairs, [one.messages[-1]["content"] for one in asked], baselines)
    references, groups = [one.references for one in asked], [one.group for one in asked]
    every = {"": texts} | simple
    drawn: dict[str, generation_metrics.Drawn] = {name: {} for name in every}
    reports = {name: generation_metrics.report(found, references, groups, drawn[name]) for name, found in every.items()}
    # Not of what is said to every prompt alike: it is short, and all would be cut to its length.
    free = {name: found for name, found in every.items() if name != "frequent"}
    varied = generation_metrics.diversity(free, generation_metrics.words_of_answers(references))
    reports = merged(reports, varied)
    return Said(texts, simple, reports, drawn, {"asked": len(asked), "asked_prompts_cut": cut, "max_new_tokens": new})


def said_by(attempt: Attempt, asked: Sequence[Asked], export: Path, new: int) -> tuple[list[str], int]:
    """The greedy answers of the step's export, at most `new` tokens each, and how many prompts lost their beginning."""
    job = asking(asked, export, new, attempt.scratch)
    done = compute(attempt, "model.generate:answer", **job)
    return [line["text"] for line in json_lines(Path(job["output"]))], done["cut"]


def asking(asked: Sequence[Asked], export: Path, new: int, scratch: Path) -> dict[str, Any]:
    """The job of `model.generate:answer` for greedy answers of at most `new` tokens each; its prompts are written to `scratch`."""
    prompts, said = scratch / "prompts.arrow", chat.Chat(export)
    write(prompts, [said.prompt(one.messages) for one in asked], export)
    greedy: dict[str, Any] = {"max_new_tokens": new, "seed": 0, "temperature": 0.0, "top_k": 0}
    return {"prompts": str(prompts), "output": str(scratch / "answers.jsonl")} | greedy


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line. Not splitlines(): it also splits at U+2028, which JSON may hold as it is."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def write_predictions(attempt: Attempt, lines: Sequence[Mapping[str, Any]]) -> None:
    """predictions.jsonl, a line for each test example."""
    write_lines(attempt.outputs / "predictions.jsonl", lines)


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """A file of objects, one a line."""
    texts = [json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines]
    durable.write_bytes(path, "".join(texts).encode())


def longest_reply(train: Sequence[Conversation], export: Path) -> int:
    """Tokens that a model is let say: as many as all but the longest training replies have, at most half its positions."""
    said = chat.Chat(export)
    lengths = sorted(len(one.reply) for conversation in train for one in said.exchanges(conversation.messages))
    return max(1, min(lengths[int(_SHARE * (len(lengths) - 1))], positions(export) // 2))


def _pairs(messages: Messages) -> list[tuple[str, str]]:
    """What was said last before each reply, and the reply."""
    return [
        (before["content"], turn["content"])
        for before, turn in itertools.pairwise(messages)
        if turn["role"] == "assistant"
    ]


def figures(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The figures of reports by the name of who they are of (the model: none), as gates and tables use them."""
    found: dict[str, float] = {}
    for name, report in reports.items():
        prefix = f"{name}_" if name else ""
        for metric in MEASURED:
            if metric in report:
                found |= {prefix + metric: report[metric]}
                found |= intervals.ends(metric, report[f"{metric}_interval_by_group"]) if not name else {}
        found |= {prefix + metric: report[metric] for metric in _COUNTED if metric in report}
    return found


def merged(*several: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Reports (or what was drawn of them) by name, of which several may be of one."""
    names = dict.fromkeys(name for reports in several for name in reports)
    return {name: {k: v for reports in several for k, v in reports.get(name, {}).items()} for name in names}


def named(
    reports: Mapping[str, Mapping[str, Any]], drawn: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, Any]:
    """Reports as report.json has them: the model's under `model`, and how far it is from each other one."""
    own = {name or "model": report for name, report in reports.items()}
    return own | {"against": generation_metrics.against(reports, drawn)}


def compared(attempt: Attempt, champion: Path, test: Sequence[Conversation]) -> dict[str, Any]:
    """Bits per byte of the test replies of challenger and champion, paired; fewer are a gain."""
    held = rows(test, chat.Chat(champion), positions(champion))
    flat = [row for several in held for row in several]
    file = attempt.scratch / "champion.arrow"
    write(file, [row.tokens for row in flat], champion, [row.mask for row in flat])
    found = iter(compute(attempt, "model.likelihood:example_nats", champion, examples=str(file)))
    theirs = [sum(next(found)[0] for _ in several) for several in held]
    sizes = [sum(row.reply_bytes for row in several) for several in held]
    return gained(attempt, [(one.id, one.group) for one in test], theirs, sizes)


def gained(
    attempt: Attempt, test: Sequence[tuple[str, str]], nats: Sequence[float], sizes: Sequence[int] | None = None
) -> dict[str, Any]:
    """The champion's bits per byte, from its `nats` of each test example (id and group), minus those in predictions.jsonl.

    `sizes` are the bytes that the champion was asked for, where its window may have cut others than the challenger's.
    """
    import numpy as np

    from pipelines.tasks import metrics

    ours = json_lines(attempt.inputs["predictions"].path("predictions.jsonl"))
    if [line["id"] for line in ours] != [identifier for identifier, _ in test]:
        raise ValueError("challenger and champion were not asked about the same examples; remove the step and retrain")
    asked = [line["bytes"] for line in ours] if sizes is None else sizes
    table = np.array(
        [
            [line["bits"], line["bytes"], cost / math.log(2), size]
            for line, cost, size in zip(ours, nats, asked, strict=True)
        ]
    )
    sums = generation_metrics.by_group(table, [group for _, group in test])  # (G, 4)
    own, own_bytes, other, other_bytes = sums.T.tolist()
    gain = metrics.ratio_difference(other, own, other_bytes, own_bytes)
    challenger, champion = (round(sum(bits) / sum(size), 6) for bits, size in ((own, own_bytes), (other, other_bytes)))
    return {"metric": "bits_per_byte", "challenger": challenger, "champion": champion, "examples": len(test)} | gain
