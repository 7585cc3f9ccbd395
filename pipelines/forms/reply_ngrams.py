"""N-grams of replies: what a model that answers has to beat in perplexity.

The one idea: they are taught as the model is. The replies and their ends are learned and nothing else, for prompts have other
words and another end; what stands before a reply is its context, the prompt too. And no reply counts twice, in however many
pieces, views and beginnings of its conversation it stands: Witten and Bell take how often different tokens came after a
history for the chance of a new one, and every repetition makes them too sure.

Of what could be counted that is the strongest. On conversations of two, where each is two examples, one from either side, every
turn is a reply once: trigrams have a perplexity of 83.9, of one side's replies 98.5, of all tokens of one side 87.0, of both
98.7. On translations 30.6, of prompts too 32.8; unigrams 645 and 836.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from pipelines.chat import Chat, Exchange
from pipelines.tasks.ngram import NGrams

ORDERS = {"unigram": 1, "trigram": 3}


class Conversation(Protocol):
    """What is read of an example."""

    @property
    def messages(self) -> list[dict[str, str]]: ...

    @property
    def group(self) -> str: ...


def tables(conversations: Sequence[Conversation], said: Chat, vocab_size: int, start: int) -> dict[str, NGrams]:
    """The n-grams of the replies of some conversations, by name."""
    sequences, masks = learned(conversations, said)
    return {name: NGrams(sequences, vocab_size, start, order, masks) for name, order in ORDERS.items()}


def learned(conversations: Sequence[Conversation], said: Chat) -> tuple[list[list[int]], list[list[bool]]]:
    """Each conversation as one sequence, uncut, and which of its tokens count.

    A reply is known again by its group, what it answers and what it says. What repeats within one conversation was said twice.
    """
    seen: dict[str, set[tuple[tuple[int, ...], tuple[int, ...]]]] = defaultdict(set)
    sequences, masks = list[list[int]](), list[list[bool]]()
    for one in conversations:
        exchanges = said.exchanges(one.messages)
        new = [_known_by(exchange) not in seen[one.group] for exchange in exchanges]
        seen[one.group].update(map(_known_by, exchanges))
        sequences.append([token for exchange in exchanges for token in exchange.head + exchange.reply])
        masks.append(
            [
                counts
                for exchange, is_new in zip(exchanges, new, strict=True)
                for counts in [False] * len(exchange.head) + [is_new] * len(exchange.reply)
            ]
        )
    return sequences, masks


def _known_by(exchange: Exchange) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(exchange.head), tuple(exchange.reply)
