"""Finding answers: windows as `transformers` makes them, the loss against a float64 reference, batches, the best stretch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from model import evaluate_span, objectives
from model.batches import example_batch, example_order
from model.evaluate_span import best_stretch
from model.examples import Examples, write_examples
from model.heads import build
from model.questions import covering, windows
from tests.model import tiny

CLS, SEP, PAD = 2, 3, 0
BERT = tiny.config(
    family="bert", head="span", pad_token_id=PAD, cls_token_id=CLS, sep_token_id=SEP, eot_token_id=SEP, n_layer=2
)


def write(folder: Path, count: int = 12) -> Examples:
    """Questions of three tokens about contexts of 5 to 16; the answer of some is not in their row."""
    chance = np.random.default_rng(0)
    rows, spans = [], []
    for place in range(count):
        context = chance.integers(10, 300, 5 + place).tolist()
        (row,) = windows(chance.integers(10, 300, 3).tolist(), context, (CLS, SEP), 37, 0)
        rows.append(row.tokens)
        spans.append((*row.place((1, 1 + place % 3) if place % 4 else None), row.second))
    write_examples(
        folder / "q.arrow",
        rows,
        [str(place) for place in range(count)],
        tokenizer="t",
        vocab_size=301,
        eot=SEP,
        spans=spans,
    )
    return Examples(folder / "q.arrow", PAD)


def test_a_window_is_what_transformers_makes_of_question_and_context() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *["who", "built", "the", "bridge", "ada", "brook", "did", "in", "1888", "over", "river"],
    ]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")
    question, context = "who built the bridge", "the bridge over the river ada brook built in 1888"
    said = theirs(question, context, return_token_type_ids=True, return_offsets_mapping=True)
    plain = theirs(context, add_special_tokens=False, return_offsets_mapping=True)
    asked = theirs(question, add_special_tokens=False)["input_ids"]
    (whole,) = windows(asked, plain["input_ids"], (CLS, SEP), 37, 8)
    assert (whole.tokens, whole.token_types) == (said["input_ids"], said["token_type_ids"])
    start = context.index("ada brook")
    span = covering(plain["offset_mapping"], start, start + len("ada brook"))
    first, last = whole.place(span)
    assert theirs.decode(whole.tokens[first : last + 1]) == "ada brook"


def test_windows_hold_every_token_and_point_at_cls_where_the_answer_is_not_whole() -> None:
    context = list(range(10, 60))
    parts = windows([5, 6], context, (CLS, SEP), 20, 6)
    assert all(len(part.tokens) <= 20 and part.tokens[: part.second] == [CLS, 5, 6, SEP] for part in parts)
    assert {token for part in parts for token in part.tokens[part.second : -1]} == set(context)
    places = [part.place((13, 15)) for part in parts]
    assert (0, 0) in places and any(places[0] != one for one in places)
    for part, (first, last) in zip(parts, places, strict=True):
        assert (first, last) == (0, 0) or part.tokens[first : last + 1] == [23, 24, 25]
    assert [part.place(None) for part in parts] == [(0, 0)] * len(parts)
    (cut,) = windows([5, 6], context, (CLS, SEP), 20, 0)
    assert cut.tokens[cut.second : -1] == context[: cut.count] and cut.place((13, 15)) == (0, 0) != cut.place((12, 14))
    long = windows(list(range(40)), context, (CLS, SEP), 20, 6)[0]
    assert (len(long.tokens), long.second) == (20, 10), "a long question takes half"


def test_an_answer_is_covered_by_the_tokens_that_hold_its_characters() -> None:
    offsets = [(0, 3), (3, 6), (7, 9), (9, 9), (10, 12)]
    assert covering(offsets, 4, 8) == (1, 2)
    assert covering(offsets, 9, 12) == (4, 4)
    assert covering(offsets, 6, 7) is None


def test_the_loss_is_the_mean_of_both_cross_entropies_and_counts_rows(tmp_path: Path) -> None:
    examples = write(tmp_path)
    share = example_batch(examples, 0, seed=1, global_batch_size=6, length=37, objective="span")
    model = build(BERT, seed=3).eval()
    loss, count = objectives.loss(model, "span", share.rows)
    assert int(count) == share.loss_tokens == int(objectives.count_loss_tokens("span", share.rows)) == 6
    batch = share.rows
    assert batch.labels is not None and batch.token_types is not None
    scores = model(batch.tokens, token_types=batch.token_types).double().detach().numpy()  # (B, T, 2)
    expected = 0.0
    for row, targets in zip(scores, batch.labels.numpy(), strict=True):
        for end in (0, 1):
            expected += float(np.log(np.exp(row[:, end]).sum()) - row[targets[end], end]) / 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_padding_has_no_say_in_the_scores_of_what_is_there(tmp_path: Path) -> None:
    batch = example_batch(write(tmp_path), 0, seed=1, global_batch_size=6, length=37, objective="span").rows
    model = build(BERT, seed=3).eval()
    assert batch.token_types is not None
    together = model(batch.tokens, token_types=batch.token_types)
    for place, row in enumerate(batch.tokens):
        size = int((row != PAD).sum())
        assert not batch.token_types[place, size:].any()
        alone = model(row[None, :size], token_types=batch.token_types[place : place + 1, :size])[0]
        assert torch.allclose(together[place, :size], alone, atol=1e-5)


def test_ranks_share_a_batch_of_questions_without_changing_it(tmp_path: Path) -> None:
    examples = write(tmp_path)
    order = {"seed": 5, "global_batch_size": 6, "length": 37, "objective": "span"}
    whole = example_batch(examples, 1, **order).rows  # type: ignore[arg-type]
    parts = [example_batch(examples, 1, rank=rank, world_size=3, **order).rows for rank in range(3)]  # type: ignore[arg-type]
    for name in ("tokens", "labels", "token_types"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_other_examples_are_refused(tmp_path: Path) -> None:
    facts = {"tokenizer": "t", "vocab_size": 301, "eot": SEP}
    write_examples(tmp_path / "plain.arrow", [[5, 6]], ["a"], labels=[0], **facts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no example says where its answer is"):
        example_batch(
            Examples(tmp_path / "plain.arrow"), 0, seed=0, global_batch_size=1, length=8, objective="span", pool=1
        )


def test_the_best_stretch_is_that_of_all_that_are_allowed() -> None:
    chance = torch.Generator().manual_seed(0)
    for size in (1, 4, 23):
        starts, ends = torch.randn(2, size, generator=chance, dtype=torch.float64)
        allowed = [(i, j) for i in range(size) for j in range(i, min(size, i + 5))]
        best = max(allowed, key=lambda pair: float(starts[pair[0]] + ends[pair[1]]))
        assert best_stretch(starts, ends, 5)[1:] == best
    assert best_stretch(torch.zeros(0), torch.zeros(0))[0] == float("-inf")


def test_no_stretch_has_a_token_of_the_question_or_a_special_one_in_it() -> None:
    """A model that likes these best, by far, still answers with tokens of the context."""
    rows = [*windows([7, 8], [10, 11, 12], (CLS, SEP), 37, 0), *windows([7, 8, 9], [10, 11, 12, 13], (CLS, SEP), 37, 0)]

    class Model:
        config, device = SimpleNamespace(pad_token_id=PAD), "cpu"

        def __call__(self, input_ids: torch.Tensor, **_: torch.Tensor) -> SimpleNamespace:
            scores = torch.where(input_ids < 10, 100.0, input_ids.float())
            return SimpleNamespace(start_logits=scores, end_logits=scores)

    found = evaluate_span._best(cast(Any, Model()), rows, 2)
    assert found == [(24.0, 2, 2), (26.0, 3, 3)]


def test_a_row_is_trained_on_with_the_segments_that_it_is_answered_with(tmp_path: Path) -> None:
    examples = write(tmp_path)
    assert examples.spans is not None
    share = example_batch(examples, 0, seed=1, global_batch_size=6, length=37, objective="span").rows
    order = example_order(examples, 0, seed=1, global_batch_size=6)
    assert share.token_types is not None
    for types, sample in zip(share.token_types, order.tolist(), strict=True):
        size = int(examples.lengths[sample])
        (row,) = windows(
            [0] * 3, [0] * (size - 6), (CLS, SEP), 37, 0
        )  # [CLS], three of the question, [SEP], and the last [SEP]
        assert types[:size].tolist() == row.token_types
