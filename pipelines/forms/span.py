"""Span: a question and a text in, the stretch of the text out that answers it. What the stages do for tasks of this form.

The one idea: a long text is read in windows, the question before each; where an answer is not whole in a window, the
window points at its [CLS]. What is measured is a text (exact match and F1, as SQuAD's official script has them), beside the
training answers' most frequent one and the sentence that shares most words with the question. A benchmark that the
recipe names is measured in the same way, with the same baselines; nothing is ever trained on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model import durable
from pipelines import tokenizer_files
from pipelines.engine.step import Attempt
from pipelines.forms import long_texts
from pipelines.stages import training as jobs
from pipelines.stages.evaluate import compute
from pipelines.tasks import examples as example_files
from pipelines.tasks import intervals, span_metrics
from pipelines.tasks.examples import Span

PIPELINE = "question-answering"
CHAT = False  # whether the export's tokenizer has a chat template
SUMMARY = (
    "A BERT that finds the stretch of a text which answers a question, fine-tuned by gptline on the examples below."
)
LIMITS = (
    "It always answers, with words of the text, also where the answer is not in it.",
    "It was measured on questions like those it was trained on, and where a benchmark is named on that; on others it is a guess.",
)
METRICS = {"exact_match": span_metrics.BASELINES, "f1": span_metrics.BASELINES}  # of the table
_ON = f"_{example_files.BENCHMARK}"  # after the name of a figure on the benchmark


def training(attempt: Attempt, tokenizer: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's objective, data and the model's head; how many questions and windows there are."""
    examples = attempt.scratch / "examples.arrow"
    counts = encode(attempt.inputs["examples"].path("train.jsonl"), tokenizer, settings, examples)
    return {"objective": "span", "model": {"head": "span"}, "data": {"examples": str(examples)}}, counts


def encode(source: Path, tokenizer: Path, settings: Mapping[str, Any], target: Path) -> dict[str, int]:
    """Tokenise the questions of `source` (JSONL) into `target`, in windows, or cut; returns how many there are of each.

    Cut (finetune.long_texts=cut), a question whose answer was cut off is left out: there would be nothing to learn.
    """
    from model.examples import write_examples
    from model.questions import longest_question, windows

    examples = example_files.read(source, "span")
    questions, contexts, answers = _encoded(examples, tokenizer)
    facts, length, stride = jobs.vocabulary(tokenizer), settings["sequence_length"], long_texts.stride(settings)
    special = tokenizer_files.frame(tokenizer)
    rows, places, ids = [], [], []
    lost = several = 0
    for example, question, context, answer in zip(examples, questions, contexts, answers, strict=True):
        parts = windows(question, context, special, length, stride)
        several += len(parts) > 1
        found = [part.place(answer) for part in parts]
        if not any(last for _, last in found):
            lost += 1
            continue
        rows += [part.tokens for part in parts]
        places += [(*place, part.second) for place, part in zip(found, parts, strict=True)]
        ids += [example.id] * len(parts)
    if not rows:
        raise ValueError(
            f"{source}: no window of {length} tokens holds an answer; choose a longer finetune.sequence_length"
        )
    write_examples(
        target, rows, ids, tokenizer=durable.sha256(tokenizer / "tokenizer.json"), vocab_size=facts["vocab_size"],
        eot=facts["eot_token_id"], spans=places,
    )  # fmt: skip
    return {
        "examples": len(examples),
        "examples_windowed": several,
        "windows": len(rows),
        "windows_without_answer": sum(last == 0 for _, last, _ in places),
        "answers_cut": lost,
        "questions_cut": sum(len(question) > longest_question(length) for question in questions),
    }


def _encoded(
    examples: Sequence[Span], tokenizer: Path
) -> tuple[list[list[int]], list[list[int]], list[tuple[int, int] | None]]:
    """The tokens of questions and contexts, uncut, and the first and last token of each first answer. Reserved tokens stay text."""
    from model.questions import covering

    encoder = tokenizer_files.load(tokenizer)
    encoder.encode_special_tokens = True
    questions = encoder.encode_batch([one.question for one in examples], add_special_tokens=False)
    contexts = encoder.encode_batch([one.context for one in examples], add_special_tokens=False)
    spans = []
    for one, context in zip(examples, contexts, strict=True):
        start, text = one.answers[0]["start"], one.answers[0]["text"]
        spans.append(covering(context.offsets, start, start + len(text)))
    return [row.ids for row in questions], [row.ids for row in contexts], spans


def evaluate(attempt: Attempt) -> dict[str, Any]:
    """Exact match and F1 on the test questions, and on the benchmark's if there is one, beside the baselines'."""
    train = read(attempt, "train")
    figures, reports = _measured(attempt, "test", train, "")
    if example_files.BENCHMARK in attempt.inputs:
        more, reports[example_files.BENCHMARK] = _measured(attempt, example_files.BENCHMARK, train, _ON)
        figures |= more
    durable.write_json(attempt.outputs / "report.json", reports)
    return figures


def read(attempt: Attempt, name: str) -> list[Span]:
    """The questions of one of the step's inputs."""
    return example_files.read(attempt.inputs[name].path(f"{name}.jsonl"), "span")


def _measured(attempt: Attempt, name: str, train: Sequence[Span], suffix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures of one set of questions, their names with `suffix`, and the whole report. What was found is left in predictions.jsonl (of the benchmark:
    benchmark_predictions.jsonl)."""
    asked = read(attempt, name)
    output = attempt.outputs / ("predictions.jsonl" if name == "test" else f"{name}_predictions.jsonl")
    counts = found(attempt, attempt.inputs[name].path(f"{name}.jsonl"), output)
    texts, simple = [text for _, text in predicted(output)], span_metrics.baselines(train, asked)
    own = span_metrics.report(texts, asked)
    reports = {"model": own} | {title: span_metrics.report(said, asked) for title, said in simple.items()}
    if attempt.config.get(long_texts.PLAIN):
        file = attempt.scratch / f"{name}_plain.jsonl"
        found(attempt, attempt.inputs[name].path(f"{name}.jsonl"), file, plain=True)
        reports[long_texts.PLAIN] = span_metrics.report([text for _, text in predicted(file)], asked)
    figures: dict[str, Any] = {f"{count}{suffix}": counts[count] for count in ("examples", "windowed")}
    for metric in span_metrics.MEASURED:
        title = metric + suffix
        figures |= {title: own[metric]} | intervals.ends(title, own[f"{metric}_interval_by_group"])
        figures |= {f"{one}_{title}": report[metric] for one, report in reports.items() if one != "model"}
    return figures, reports | {
        "against": span_metrics.against(texts, simple, asked),
        "by_question_word": span_metrics.by_question_word(texts, asked),
    }


def found(
    attempt: Attempt, questions: Path, output: Path, export: Path | None = None, plain: bool = False
) -> dict[str, int]:
    """Let an export (the step's own if none is given) answer questions, in windows as it learned from, or as long as it takes."""
    how = long_texts.champion_asked(attempt.config) if export else long_texts.asked(attempt.config)
    how = {} if plain else how
    counts: dict[str, int] = compute(
        attempt, "model.evaluate_span:answer", export, questions=str(questions), output=str(output), **how
    )
    return counts


def predicted(path: Path) -> list[tuple[str, str]]:
    """Each question's id and what was answered to it, in order."""
    lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    return [(line["id"], line["predicted"]) for line in lines]


def compare(attempt: Attempt, champion: Path) -> dict[str, Any]:
    """F1 of both on the test questions, paired. The challenger's answers are those of its evaluation."""
    from pipelines.tasks.generation_metrics import difference

    test = read(attempt, "test")
    theirs_file = attempt.outputs / "champion_predictions.jsonl"
    found(attempt, attempt.inputs["test"].path("test.jsonl"), theirs_file, champion)
    ours, theirs = (predicted(path) for path in (attempt.inputs["predictions"].path("predictions.jsonl"), theirs_file))
    if not [name for name, _ in ours] == [name for name, _ in theirs] == [one.id for one in test]:
        raise ValueError("challenger and champion were not asked the same questions; remove the step and retrain")
    own, other = (span_metrics.scores([text for _, text in said], test) for said in (ours, theirs))
    challenger, best = (round(sum(one) / len(one), 6) for one in (own, other))
    gain = difference(own, other, [one.group for one in test])
    return {"metric": "f1", "challenger": challenger, "champion": best, "examples": len(test)} | gain


def figure(metrics: Mapping[str, Any]) -> str:
    """The one figure that says most."""
    return f"F1 {metrics['f1']:.3f}, best-overlap sentence {metrics['overlap_f1']:.3f}"


def told(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What a run says of the evaluation when it ends."""
    yield from _told(metrics, "", "held-out")
    if f"f1{_ON}" in metrics:
        yield from _told(metrics, _ON, "on the benchmark (never trained on)")


def _told(m: Mapping[str, Any], suffix: str, where: str) -> Iterator[str]:
    exact, f1 = f"exact_match{suffix}", f"f1{suffix}"
    yield (
        f"{where}: exact match {m[exact]:.1%} ({intervals.told(m, exact, '{:.1%}'.format)}), "
        f"F1 {m[f1]:.3f} ({intervals.told(m, f1, '{:.3f}'.format)}) on {m[f'examples{suffix}']:,} questions"
    )
    for name, title in (("frequent", "most frequent answer"), ("overlap", "best-overlap sentence")):
        yield f"  {title}: exact match {m[f'{name}_exact_match{suffix}']:.1%}, F1 {m[f'{name}_f1{suffix}']:.3f}"
