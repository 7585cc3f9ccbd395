"""The figures of a bidirectional model are what the questions and its answers say, computed here in another way."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import durable, evaluate_masked, heads, objectives
from model.config import ModelConfig
from model.cross_entropy import IGNORE_INDEX
from model.export import write_export
from model.pretraining import Order, Pretraining
from model.token_shards import TokenShards
from model.train_config import ObjectiveConfig
from tests.model.masked_runs import CASES, Pairs

LENGTH, SIZE, STEPS = 40, 8, 12  # of a question, of a batch of them, and how many batches are asked about


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("name", ["masked_lm", "within", "next_sentence", "both"])
@torch.no_grad()
def test_every_figure_is_that_of_the_questions_and_the_models_own_answers(
    pairs: Pairs, name: str, tmp_path: Path
) -> None:
    objective, options = CASES[name]
    job = pairs.job(f"measured-{name}", name)
    config = ModelConfig.model_validate(job["model"] | {"initializer_range": 0.3})
    shards = TokenShards.from_manifest(pairs.manifest, pairs.folder)
    counts = np.bincount(shards.read(0, len(shards)), minlength=config.vocab_size).astype(np.float64)
    counts[pairs.vocabulary.special] = 0
    model = heads.build(config, seed=6).eval()
    # The model says only a few of the tokens, so that it is right at times.
    model.get_parameter("predictor.decoder.bias")[np.argsort(counts)[-60:].copy()] += 3.0
    counts[pairs.vocabulary.sep] = 2 * counts.max()  # of short documents; it is never asked about
    write_export(tmp_path / "export", config, model.state_dict(), pairs.tokenizer)
    durable.write_bytes(tmp_path / "counts", counts.tobytes())
    found = evaluate_masked.evaluate(
        job["data"]
        | {"export": str(tmp_path / "export"), "objective": objective, "options": options, "sequence_length": LENGTH}
        | {"counts": str(tmp_path / "counts"), "sequences": SIZE * STEPS, "batch_size": SIZE, "threads": 1}
    )
    order = Order(evaluate_masked.SEED, SIZE, LENGTH)
    questions = Pretraining({"": shards}, objective, ObjectiveConfig(**options), order, pairs.vocabulary)
    batches = [questions(step).rows for step in range(STEPS)]
    expected = own_figures(model, batches, counts, pairs.vocabulary.special)
    if objective == "masked_lm":  # and the perplexity is that of training's own loss
        losses = [objectives.loss(model, "masked_lm", questions(step).rows) for step in range(STEPS)]
        mean = sum(float(nats) for nats, _ in losses) / sum(int(count) for _, count in losses)
        expected["masked_perplexity"] = pytest.approx(math.exp(mean), rel=1e-4)
    assert found == expected
    assert all(value > 0 for value in found.values())


@pytest.mark.parametrize("name", ["masked_lm", "next_sentence"])
def test_nothing_is_asked_twice_where_there_is_less_than_a_batch(pairs: Pairs, name: str, tmp_path: Path) -> None:
    """Repeats would count as answers of their own, and make the interval of the pairs too narrow."""
    objective, options = CASES[name]
    job = pairs.job(f"few-{name}", name)
    config = ModelConfig.model_validate(job["model"])
    write_export(tmp_path / "export", config, heads.build(config, seed=6).state_dict(), pairs.tokenizer)
    durable.write_bytes(tmp_path / "counts", np.ones(config.vocab_size).tobytes())
    shards = TokenShards.from_manifest(pairs.manifest, pairs.folder)
    order = Order(evaluate_masked.SEED, 1024, LENGTH)
    (all_items,) = Pretraining({"": shards}, objective, ObjectiveConfig(), order, pairs.vocabulary).sizes
    assert 4 < all_items < 1024
    for most, expected in ((2048, all_items), (4, 4)):
        found = evaluate_masked.evaluate(
            job["data"]
            | {"export": str(tmp_path / "export"), "objective": objective, "options": options, "threads": 1}
            | {"sequence_length": LENGTH, "counts": str(tmp_path / "counts"), "sequences": most, "batch_size": 1024}
        )
        asked = found["pairs"] if name == "next_sentence" else found["masked_tokens"] / (0.15 * LENGTH)
        assert asked == expected


def own_figures(model: Any, batches: list[objectives.Batch], counts: np.ndarray, special: np.ndarray) -> dict[str, Any]:
    """The figures, token by token and pair by pair."""
    shares = (counts + 1) / (counts + 1).sum()  # of all tokens, as the rarity of shared ones is told
    ordinary = np.where(special, 0, counts + 1)
    hideable = ordinary / ordinary.sum()
    hidden: list[tuple[int, torch.Tensor]] = []  # what it was, and what was said of it
    pairs: list[tuple[int, int, float]] = []  # whether B is a stranger, what was said, how much it shares with A
    for batch in batches:
        inputs = {"token_types": batch.token_types, "padding": batch.padding, "documents": batch.documents}
        said = model(batch.tokens, **{key: value for key, value in inputs.items() if value is not None})
        logits, follows = said if isinstance(said, tuple) else (said, None)
        for row, place in (batch.targets != IGNORE_INDEX).nonzero().tolist() if batch.targets is not None else ():
            hidden.append((int(batch.targets[row, place]), logits[row, place].double().log_softmax(-1)))
        for row in range(len(batch.tokens)) if batch.labels is not None else ():
            assert batch.padding is not None and batch.token_types is not None
            real = [
                (int(token), int(kind))
                for token, kind, there in zip(
                    batch.tokens[row], batch.token_types[row], batch.padding[row], strict=True
                )
                if there
            ]
            a, b = ({token for token, kind in real if kind == segment} for segment in (0, 1))
            rarity = {token: -math.log(shares[token]) for token in b}
            shared = sum(rarity[token] for token in a & b) / sum(rarity.values())
            pairs.append((int(batch.labels[row]), int(follows[row].argmax()), shared))
    found: dict[str, Any] = {}
    if hidden:
        frequent = int(ordinary.argmax())
        found |= {
            "masked_tokens": len(hidden),
            "masked_accuracy": near([said.argmax() == token for token, said in hidden]),
            "unigram_masked_accuracy": near([token == frequent for token, _ in hidden]),
            "masked_perplexity": pytest.approx(math.exp(-np.mean([said[token] for token, said in hidden])), rel=1e-4),
            "unigram_masked_perplexity": pytest.approx(math.exp(-np.mean([math.log(hideable[t]) for t, _ in hidden]))),
        }
    if pairs:
        median = statistics.median(shared for *_, shared in pairs)
        strangers = sum(label for label, *_ in pairs)
        found |= {
            "pairs": len(pairs),
            "pairs_right": sum(label == said for label, said, _ in pairs),
            "next_sentence_accuracy": near([label == said for label, said, _ in pairs]),
            "chance_next_sentence_accuracy": near([True] * max(strangers, len(pairs) - strangers), len(pairs)),
            "overlap_next_sentence_accuracy": near([(shared <= median) == label for label, _, shared in pairs]),
        }
    return found


def near(right: list[Any], of: int | None = None) -> Any:
    """A share, as figures are rounded."""
    return pytest.approx(sum(map(bool, right)) / (of or len(right)), abs=1e-6)
