"""Classification: a text in, one of the task's labels out. What the stages do for tasks of this form.

The one idea: a classifier is fine-tuned on texts that are cut at the window, or read in several windows, and either way
it is counted how many; it is measured as it ships, beside the majority class and TF-IDF with logistic regression on the very same splits.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model import durable
from pipelines import tokenizer_files
from pipelines.engine.step import Attempt
from pipelines.forms import long_texts
from pipelines.sources import SourceError
from pipelines.stages import training as jobs
from pipelines.stages.evaluate import compute
from pipelines.stages.evaluate import weights as made_by
from pipelines.tasks import examples as example_files
from pipelines.tasks import intervals

log = logging.getLogger(__name__)
PIPELINE = "text-classification"
CHAT = False  # whether the export's tokenizer has a chat template
EVALUATION = 2  # its first macro-F1 took a class that does not occur for one with an F1 of 0
METRICS = {
    "accuracy": ("majority", "tfidf"),
    "macro_f1": ("majority", "tfidf"),
}  # of the table: whose, beside which baselines
SUMMARY = "A text classifier, fine-tuned from a pre-trained Transformer on the labelled examples below by gptline."
LIMITS = (
    "It was measured on sentences like those it was trained on; on other text it is a guess.",
    "Texts longer than its window lose their end.",
)


def training(attempt: Attempt, tokenizer: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job's objective, data and the model's labels; how many examples there are and how many were cut."""
    labels = durable.read_json(attempt.inputs["labels"].path("labels.json"))
    _refuse_other_labels(attempt, labels)
    examples = attempt.scratch / "examples.arrow"
    counts = encode(attempt.inputs["examples"].path("train.jsonl"), tokenizer, settings, examples)
    return {
        "objective": "classification",
        "model": {"num_labels": len(labels), "labels": labels},
        "data": {"examples": str(examples)},
    }, counts


def encode(source: Path, tokenizer: Path, settings: Mapping[str, Any], target: Path) -> dict[str, int]:
    """Tokenise the examples of `source` (JSONL) into `target`, whole, cut, or in windows; returns how many there are of each.

    Reserved tokens that stand in a text stay text: a stranger's sentence cannot end itself.
    """
    from model.examples import surrounding, text_windows, write_examples

    examples = example_files.read(source, "classification")
    encoder = tokenizer_files.load(tokenizer)
    encoder.encode_special_tokens = True
    facts, window, stride = jobs.vocabulary(tokenizer), settings["sequence_length"], long_texts.stride(settings)
    rows = [
        encoding.ids
        for encoding in encoder.encode_batch([example.text for example in examples], add_special_tokens=False)
    ]
    before, after = surrounding(lambda special: list(encoder.encode("a", add_special_tokens=special).ids))
    room = window - len(before) - len(after)
    parts = [[[*before, *one, *after] for one in text_windows(row, room, stride)] for row in rows]
    repeated = [example for example, part in zip(examples, parts, strict=True) for _ in part]
    write_examples(
        target,
        [one for part in parts for one in part],
        [example.id for example in repeated],
        tokenizer=durable.sha256(tokenizer / "tokenizer.json"),
        vocab_size=facts["vocab_size"],
        eot=facts["eot_token_id"],
        labels=[example.label for example in repeated],
        weights=weights([example.label for example in examples], [len(part) for part in parts], settings),
    )
    longer = sum(len(row) > room for row in rows)
    return {"examples": len(rows)} | (
        {"examples_cut": 0, "examples_windowed": longer, "windows": len(repeated)}
        if stride
        else {"examples_cut": longer}
    )


def weights(labels: Sequence[int], windows: Sequence[int], settings: Mapping[str, Any]) -> list[float] | None:
    """What each window's loss counts; None where all count alike.

    The windows of a text share its weight. Balanced, a class of n of N examples has N / (K n): each class counts N / K in sum.
    """
    balanced = settings.get("class_weights", "none") == "balanced"
    if not balanced and max(windows) == 1:
        return None
    counts = Counter(labels)
    of_class = {label: len(labels) / (len(counts) * count) if balanced else 1.0 for label, count in counts.items()}
    return [of_class[label] / count for label, count in zip(labels, windows, strict=True) for _ in range(count)]


def evaluate(attempt: Attempt) -> dict[str, Any]:
    """Accuracy and macro-F1 on the test examples, with a confidence interval and the baselines'."""
    from pipelines.tasks import metrics as scores

    splits = {
        name: example_files.read(attempt.inputs[name].path(f"{name}.jsonl"), "classification")
        for name in example_files.SPLITS
    }
    predictions = attempt.outputs / "predictions.jsonl"
    test = str(attempt.inputs["test"].path("test.jsonl"))
    counts = compute(
        attempt, "model.evaluate:classify", examples=test, output=str(predictions), **long_texts.asked(attempt.config)
    )
    predicted = _classes(predictions)
    text = {name: [example.text for example in part] for name, part in splits.items()}
    labels = {name: [example.label for example in part] for name, part in splits.items()}
    groups = [example.group for example in splits["test"]]
    names = durable.read_json(attempt.inputs["labels"].path("labels.json"))
    classes = len(names)
    simple = scores.baselines(
        (text["train"], labels["train"]),
        None if attempt.config.get("cross_validation") else (text["validation"], labels["validation"]),
        (text["test"], labels["test"], groups),
        classes,
    )
    reports = {
        "model": scores.report(labels["test"], predicted, groups, classes),
        "against_tfidf": scores.difference(
            labels["test"], predicted, simple["tfidf_logistic_regression"].pop("predicted"), groups
        ),
        **simple,
        **scores.by_class(labels["test"], predicted, names),
    }
    figures = (
        _figures("", reports["model"])
        | _figures("majority_", simple["majority"])
        | _figures("tfidf_", simple["tfidf_logistic_regression"])
    )
    if attempt.config.get(long_texts.PLAIN):
        file = attempt.scratch / "plain.jsonl"
        cut = compute(attempt, "model.evaluate:classify", examples=test, output=str(file))
        reports[long_texts.PLAIN] = scores.report(labels["test"], _classes(file), groups, classes)
        figures |= _figures(f"{long_texts.PLAIN}_", reports[long_texts.PLAIN])
        figures |= {f"{long_texts.PLAIN}_truncated": cut["truncated"]}
    durable.write_json(attempt.outputs / "report.json", reports)
    return figures | {name: counts[name] for name in ("examples", "truncated", "windowed") if name in counts}


def _figures(prefix: str, report: dict[str, Any]) -> dict[str, float]:
    """The figures of a report that gates and tables use; intervals are 95 %, over groups."""
    figures: dict[str, float] = {}
    for name in ("accuracy", "macro_f1"):
        figures |= {name: report[name]} | intervals.ends(name, report[f"{name}_interval_by_group"])
    return {prefix + name: value for name, value in figures.items()}


def compare(attempt: Attempt, champion: Path) -> dict[str, Any]:
    """Accuracy of both on the test examples. The challenger's predictions are those of its evaluation."""
    from pipelines.tasks import metrics as scores

    test = attempt.inputs["test"].path("test.jsonl")
    theirs_file = attempt.outputs / "champion_predictions.jsonl"
    job: dict[str, Any] = {"examples": str(test), "output": str(theirs_file)} | long_texts.champion_asked(
        attempt.config
    )
    compute(attempt, "model.evaluate:classify", champion, **job)
    ours = _predicted(attempt.inputs["predictions"].path("predictions.jsonl"))
    names = durable.read_json(attempt.inputs["labels"].path("labels.json"))
    theirs = renamed(_predicted(theirs_file), label_names(champion), names)
    examples = example_files.read(test, "classification")
    ids = [example.id for example in examples]
    if list(ours) != ids or list(theirs) != ids:
        raise ValueError(
            f"{test}: challenger and champion were not asked about the same examples; remove the step and retrain"
        )
    labels, groups = [example.label for example in examples], [example.group for example in examples]
    found = scores.difference(labels, list(ours.values()), list(theirs.values()), groups)
    low, high = found["accuracy_gain_interval_by_group"] or (None, None)
    shares = [sum(said[example.id] == example.label for example in examples) / len(examples) for said in (ours, theirs)]
    return {"metric": "accuracy", "challenger": round(shares[0], 6), "champion": round(shares[1], 6),
            "gain": found["accuracy_gain"], "low": low, "high": high, "examples": len(examples)}  # fmt: skip


def label_names(export: Path) -> list[str]:
    """The names of a classifier's classes, by class index; none of another model, or of weights that are released nowhere."""
    if not (export / "config.json").exists():
        return []
    config = durable.read_json(export / "config.json")
    if not str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification"):
        return []
    return [name for _, name in sorted((int(index), name) for index, name in config["id2label"].items())]


def renamed(predicted: Mapping[str, int], theirs: Sequence[str], ours: Sequence[str]) -> dict[str, int]:
    """Predictions of a model with the labels `theirs` as indices of `ours`; one that we lack is one more, always wrong."""
    return {
        example: ours.index(theirs[label]) if theirs[label] in ours else len(ours)
        for example, label in predicted.items()
    }


def _refuse_other_labels(attempt: Attempt, labels: Sequence[str]) -> None:
    """SourceError if training is to go on from a champion of other classes: its head is not about these.

    Of somebody else's classifier all but the head is begun from, which is said.
    """
    base = attempt.inputs.get("base")
    known = label_names(made_by(base)) if base else []
    if not known or known == list(labels):
        return
    ours, theirs = (f"{len(names)} classes {', '.join(names[:10])}" for names in (labels, known))
    if "shape" not in attempt.inputs:  # which comes with an import
        raise SourceError(
            f"training goes on from a classifier of the {theirs}; the examples have the {ours}: begin from the base model "
            "(retrain.start=base)"
        )
    log.warning(
        "the imported model is a classifier of the %s: its head is left out, one is learned for the %s", theirs, ours
    )


def _classes(path: Path) -> list[int]:
    """What was said of each example, in order."""
    return [json.loads(line)["predicted"] for line in path.read_text().splitlines()]


def _predicted(path: Path) -> dict[str, int]:
    lines = map(json.loads, path.read_text().splitlines())
    return {line["id"]: line["predicted"] for line in lines}


def figure(metrics: Mapping[str, Any]) -> str:
    """The one figure that says most."""
    return f"accuracy {metrics['accuracy']:.1%}, TF-IDF {metrics['tfidf_accuracy']:.1%}"


def told(metrics: Mapping[str, Any]) -> Iterator[str]:
    """What a run says of the evaluation when it ends."""
    m = metrics
    yield (
        f"held-out accuracy {m['accuracy']:.1%} ({intervals.told(m, 'accuracy', '{:.1%}'.format)}), "
        f"macro-F1 {m['macro_f1']:.3f} on {m['examples']:,} texts"
    )
    baselines: Sequence[tuple[str, str]] = (("majority", "majority class"), ("tfidf", "TF-IDF + logistic regression"))
    for name, title in baselines:
        yield f"{title}: accuracy {m[f'{name}_accuracy']:.1%}, macro-F1 {m[f'{name}_macro_f1']:.3f}"
