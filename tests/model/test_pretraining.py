"""What each objective makes of text: the same at any world size, and what the papers say it is."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import objectives
from model.cross_entropy import IGNORE_INDEX
from model.heads import build
from model.masking import keys
from model.sentence_pairs import SentencePairs
from model.token_shards import TokenShards
from tests.model.text import CLS, MASK, PAD, SEP, SIZE, batches, corpus
from tests.model.tiny import config

OBJECTIVES = ["causal_lm", "masked_lm", "next_sentence", "masked_lm_next_sentence"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    return corpus(tmp_path_factory.mktemp("corpus"))


def bert(head: str = "pretraining") -> Any:
    special = {"pad_token_id": PAD, "cls_token_id": CLS, "sep_token_id": SEP, "mask_token_id": MASK}
    changes = {"family": "bert", "n_positions": 64, "vocab_size": SIZE, "eot_token_id": SEP, "head": head}
    return build(config(**(changes | special)), seed=4)


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_two_and_four_ranks_get_slices_of_the_same_batch(
    shards: TokenShards, objective: str, whole_words: bool
) -> None:
    options = {"whole_words": whole_words}
    for step in (0, 7, 400):
        alone = batches(shards, objective, **options)(step)
        for world in (2, 4):
            shares = [
                batches(shards, objective, {"rank": rank, "world_size": world}, **options)(step)
                for rank in range(world)
            ]
            assert {(share.loss_tokens, share.real_tokens) for share in shares} == {
                (alone.loss_tokens, alone.real_tokens)
            }
            for name in (one.name for one in fields(alone.rows)):
                tensor = getattr(alone.rows, name)
                parts = [getattr(share.rows, name) for share in shares]
                if tensor is None:
                    assert parts == [None] * world
                elif tensor.ndim:
                    assert torch.equal(torch.cat(parts), tensor), name
                else:
                    assert parts == [tensor] * world


@pytest.mark.parametrize("objective", ["masked_lm", "masked_lm_next_sentence"])
def test_the_targets_of_the_global_batch_are_as_many_as_every_rank_says(shards: TokenShards, objective: str) -> None:
    for step in range(20):
        share = batches(shards, objective)(step)
        assert share.rows.targets is not None
        assert int((share.rows.targets != IGNORE_INDEX).sum()) == share.loss_tokens


def test_a_masked_sequence_is_cls_the_stream_and_sep(shards: TokenShards) -> None:
    made = batches(shards, "masked_lm")
    rows, starts = made(3).rows, made.beginnings(3)
    assert rows.targets is not None
    text = torch.where(rows.targets == IGNORE_INDEX, rows.tokens, rows.targets)
    for row, (_, start) in zip(text.tolist(), starts, strict=True):
        assert row == [CLS, *shards.read(start, 62).tolist(), SEP]


def pieces(shards: TokenShards, step: int) -> list[tuple[int, list[int], list[int], bool]]:
    """Of each pair of a step: where A begins, A, B, and whether B is said to follow."""
    made = batches(shards, "next_sentence")
    rows = made(step).rows
    assert rows.token_types is not None and rows.labels is not None and rows.padding is not None
    found = []
    for row, kinds, real, label, (_, start) in zip(
        rows.tokens, rows.token_types, rows.padding, rows.labels, made.beginnings(step), strict=True
    ):
        assert row[0] == CLS and (row[~real] == PAD).all() and (kinds[~real] == 0).all()
        a, b = row[real & (kinds == 0)].tolist(), row[real & (kinds == 1)].tolist()
        assert a[-1] == b[-1] == SEP and SEP not in a[:-1] + b[:-1]
        found.append((start, a[1:-1], b[:-1], label == 0))
    return found


def document_of(shards: TokenShards, place: int) -> int:
    """The number of the document at a place of the stream: of EOTs before it."""
    return int((shards.read(0, place) == SEP).sum())


def test_the_second_sentence_truly_follows_or_is_of_another_document(shards: TokenShards) -> None:
    stream = shards.read(0, len(shards)).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(stream, 4)
    strangers = 0
    for step in range(6):
        for start, a, b, follows in pieces(shards, step):
            assert stream[start : start + len(a)].tolist() == a, "A is the stream's text"
            if follows:
                assert stream[start + len(a) : start + len(a) + len(b)].tolist() == b
            elif len(b) >= 4:
                (place,) = np.flatnonzero((windows == b[:4]).all(1)).tolist()
                assert document_of(shards, place) != document_of(shards, start)
                strangers += 1
    assert strangers > 20


def test_half_of_the_pairs_follow_and_a_pair_fits_and_is_cut_at_sentences(shards: TokenShards) -> None:
    marks, filled = set(), 0
    for index in range(len(shards.units)):
        shard = shards.shard(index)
        assert shard.sentences is not None
        marks |= {filled + int(place) for place in shard.sentences}
        marks |= {filled + int(place) - 1 for place in shard.offsets[1:]}  # an EOT ends its last sentence
        filled += len(shard.tokens)
    found = [pair for step in range(60) for pair in pieces(shards, step)]
    assert abs(np.mean([follows for *_, follows in found]) - 0.5) < 0.06
    assert max(len(a) + len(b) + 3 for _, a, b, _ in found) <= 64
    for start, a, b, follows in found:
        assert a and b and start + len(a) in marks
        assert start in marks or len(a) == 61 // 2, "A begins with a sentence, or is as long as it may be"
        if follows:
            assert start + len(a) + len(b) in marks or len(a) + len(b) == 61


def test_a_corpus_without_pairs_is_refused(tmp_path: Path, shards: TokenShards) -> None:
    from dataclasses import replace

    plain = TokenShards([replace(unit, sentences=0) for unit in shards.units], "t", SIZE, SEP)
    with pytest.raises(ValueError, match="do not say where sentences begin"):
        batches(plain, "next_sentence")(0)
    with pytest.raises(ValueError, match="needs two documents of several sentences"):
        for step in range(20):
            batches(corpus(tmp_path / "one", 5, 1, 1), "next_sentence")(step)


def test_strangers_are_found_where_one_document_has_nearly_all_boundaries(tmp_path: Path) -> None:
    """64 draws find none in many rows; what is found then is any boundary of the others, each about as often."""
    few = corpus(tmp_path, 7, 2, 3, largest=2000)
    pairs = SentencePairs(few)
    counts = [few.shard(index).sentence_offsets for index in range(2)]
    of_each = np.concatenate([np.diff(one) - 1 for one in counts if one is not None])
    assert of_each.max() / len(pairs) > 0.98
    here = int(np.concatenate([[0], np.cumsum(of_each)])[of_each.argmax()])  # the first boundary of the largest
    found = pairs._elsewhere(pairs._found(np.full(4000, here)), keys(3, np.arange(4000), "pair"), np.full(4000, True))
    inside = (found >= here) & (found < here + of_each.max())
    assert not inside.any()
    seen = np.bincount(found, minlength=len(pairs))
    seen = np.delete(seen, np.arange(here, here + of_each.max()))
    assert seen.min() > 0 and seen.max() < 2 * seen.mean()


def loss_of(model: Any, objective: str, made: Any, micro: int) -> float:
    total = sum(
        (objectives.loss(model, objective, batch)[0].double() for batch in made.micro_batches(micro)),  # type: ignore[arg-type]
        torch.zeros((), dtype=torch.float64),
    )
    return float(total) / made.loss_tokens


@torch.no_grad()
def test_both_objectives_together_are_the_mean_of_each_however_the_batch_is_sliced(shards: TokenShards) -> None:
    model, share = bert(), batches(shards, "masked_lm_next_sentence")(2)
    rows = share.rows
    logits, follows = model(rows.tokens, token_types=rows.token_types, padding=rows.padding)
    asked = rows.targets != IGNORE_INDEX  # type: ignore[operator]
    expected = torch.nn.functional.cross_entropy(logits[asked], rows.targets[asked])  # type: ignore[index]
    expected += torch.nn.functional.cross_entropy(follows, rows.labels)
    for micro in (16, 4, 1):
        assert loss_of(model, "masked_lm_next_sentence", share, micro) == pytest.approx(float(expected), rel=1e-5)


def documents_of(family: str, **changes: Any) -> tuple[Any, Any]:
    """A model to which a position says nothing of where it is, in float64, and a packed batch for it."""
    if family == "bert":
        model = bert("masked_lm")
    else:
        model = build(config(family=family, n_positions=64, vocab_size=SIZE, eot_token_id=SEP, **changes), seed=4)
    model = model.double()
    if family != "llama":  # rotary positions are relative; learned ones are made equal
        with torch.no_grad():
            model.transformer.wpe.weight[:] = model.transformer.wpe.weight[0].clone()
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "changes"), [("gpt2", {}), ("llama", {"n_embd": 40, "n_inner": None}), ("bert", {})]
)
def test_attention_within_documents_is_each_document_alone(
    shards: TokenShards, family: str, changes: dict[str, Any]
) -> None:
    model = documents_of(family, **changes)
    objective = "masked_lm" if family == "bert" else "causal_lm"
    rows = batches(shards, objective, attention="within_documents")(1).rows
    across = batches(shards, objective)(1).rows
    assert rows.documents is not None and across.documents is None and torch.equal(rows.tokens, across.tokens)
    compared = 0
    for row, numbers in list(zip(rows.tokens[:, : rows.documents.shape[1]], rows.documents, strict=True))[:6]:
        packed = model(row[None], documents=numbers[None])[0]
        for number in numbers.unique():
            alone = model(row[None, numbers == number])[0]
            assert torch.allclose(packed[numbers == number], alone, atol=1e-9)
            compared += 1
        if len(numbers.unique()) > 1:
            assert not torch.allclose(packed, model(row[None])[0], atol=1e-4), "across documents it is another"
    assert compared > 8


def test_a_document_of_a_causal_model_is_opened_by_the_end_of_the_one_before(shards: TokenShards) -> None:
    rows = batches(shards, "causal_lm", attention="within_documents")(1).rows
    assert rows.documents is not None
    ends = rows.tokens[:, 1:-1] == SEP
    assert torch.equal(rows.documents[:, 1:] - rows.documents[:, :-1], ends.long())


def test_a_document_of_a_bidirectional_model_is_closed_by_its_own_end(shards: TokenShards) -> None:
    rows = batches(shards, "masked_lm", attention="within_documents")(1).rows
    assert rows.documents is not None
    ends = rows.tokens[:, :-1] == SEP  # never hidden, and never put anywhere
    assert ends.sum() > 8 and not rows.documents[:, 0].any()
    assert torch.equal(rows.documents[:, 1:] - rows.documents[:, :-1], ends.long())


def test_what_is_hidden_depends_on_the_seed_of_the_run(shards: TokenShards) -> None:
    hidden = [batches(shards, "masked_lm", {"seed": seed})(0).rows.targets != IGNORE_INDEX for seed in (3, 4)]
    assert (hidden[0] & hidden[1]).sum() < 0.3 * hidden[0].sum()


def test_a_boundary_is_paired_anew_in_each_epoch_and_by_each_seed(shards: TokenShards) -> None:
    pairs = SentencePairs(shards)
    same = np.arange(200)
    first, later, other = (
        pairs.choose(same, places, seed, 61) for places, seed in ((same, 3), (same + 9000, 3), (same, 4))
    )
    for one in (later, other):
        assert 60 < (first.follows == one.follows).sum() < 140
        strangers = ~first.follows & ~one.follows
        assert strangers.sum() > 20 and (first.b_start != one.b_start)[strangers].mean() > 0.9


def test_as_many_sentences_as_fit_are_taken(shards: TokenShards) -> None:
    """Neither piece could be longer by its next sentence: half of the room for A, what A leaves for B."""
    pairs, room = SentencePairs(shards), 61
    found = pairs.choose(np.arange(len(pairs)), np.arange(len(pairs)), 3, room)
    marks, starts, filled = [], [], 0
    for shard in map(shards.shard, range(len(shards.units))):
        assert shard.sentences is not None
        marks += (shard.sentences + filled).tolist()
        starts += (shard.offsets + filled).tolist()[:-1]
        filled += len(shard.tokens)
    ends = sorted({*marks, *(start - 1 for start in starts[1:]), filled - 1})
    for a_start, a_end, b_start, b_end, _ in zip(*vars(found).values(), strict=True):
        earlier = [mark for mark in marks if mark < a_start]
        assert a_start in starts or a_end - earlier[-1] > room // 2
        later = next((end for end in ends if end > b_end), b_end)
        whole = b_end + 1 in starts or b_end == filled - 1
        assert whole or later - b_start > room - (a_end - a_start)
