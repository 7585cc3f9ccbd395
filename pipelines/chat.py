"""How prompts, responses and turns become one sequence of tokens, of which the replies are learned.

The one idea: there is one rendering, the tokenizer's chat template, and what is asked, what is learned and what downstream
renders with `apply_chat_template` are the same tokens. A tokenizer that brings a template keeps it. To one that has none, as
all of ours, this is given: what a user says ends with a line break, a reply ends with the end-of-text token,

    Hello, who are you?\\nNobody you know.<|endoftext|>And yet you answer.\\nI do.<|endoftext|>

so a prompt and its response are a conversation of two turns, and a plain `pipeline("text-generation", DIR)` is asked with
`prompt + "\\n"`. A reserved token that stands in somebody's text is replaced by a blank, in the template too: nobody can end
a turn by writing its end.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import durable
from model.vocabulary import FILES, TEMPLATE_FILE
from pipelines.tokenizer_files import EOT, ending, load

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] | replace(eos_token, ' ') | trim }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
)
_OF_SEVERAL = (  # the same where more tokens are reserved than the end of text; RESERVED is a list of them
    "{% for message in messages %}{% set said = namespace(text=message['content']) %}"
    "{% for token in RESERVED %}{% set said.text = said.text | replace(token, ' ') %}{% endfor %}{{ said.text | trim }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
)
_SETTINGS = "tokenizer_config.json"


@dataclass(frozen=True)
class Exchange:
    """What was said before a reply since the last one, and the reply with the token that ends it, tokenised."""

    head: list[int]
    reply: list[int]
    text: str  # the reply


class Chat:
    """The tokenizer of a folder, as its chat template uses it."""

    def __init__(self, tokenizer: Path) -> None:
        self._folder = tokenizer
        self._encoder = load(tokenizer)
        self._end = ending(tokenizer, self._encoder.token_to_id(EOT) is not None)
        self._own = template_of(tokenizer) not in (None, TEMPLATE, _ours(self._encoder))
        self._loaded: Any = None  # the tokenizer as `transformers` loads it: only a template of its own needs that

    def exchanges(self, messages: Sequence[dict[str, str]]) -> list[Exchange]:
        """The replies of a conversation, each with what is new before it. What follows the last reply is left out."""
        heads, replies, texts = list[str](), list[str](), list[str]()
        begun, shown = (
            0,
            "",
        )  # the first message that no exchange has yet, and all that exchanges have, as it is rendered
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                head, reply, shown = self._rendered(messages, begun, place, shown)
                heads.append(head)
                replies.append(reply)
                texts.append(self.clean(message["content"]))
                begun = place + 1
        encoded = zip(self._parts(heads, replies), texts, strict=True)
        return [Exchange(head, reply, text) for (head, reply), text in encoded]

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens after which a reply to `messages` begins."""
        if not self._own:
            return self._encoded([self._plain(messages)])[0]
        return self._encoded([self._template(messages, True)])[0]

    def clean(self, text: str) -> str:
        """A text as it is rendered: without blank ends, and without tokens that are reserved."""
        for token in _reserved(self._encoder):
            text = text.replace(token, " ")
        return text.strip()

    def size(self, tokens: Sequence[int]) -> int:
        """UTF-8 bytes of what the tokens of a reply say. A character that was cut in two is none."""
        return len(self._encoder.decode(list(tokens), skip_special_tokens=True).strip("\ufffd").encode())

    def _rendered(self, messages: Sequence[dict[str, str]], begun: int, place: int, shown: str) -> tuple[str, str, str]:
        """What is new before the reply `place`, the reply with its end, and all that is shown by then. `shown` is what
        stands before message `begun`."""
        if not self._own:
            head, reply = self._plain(messages[begun:place]), self.clean(messages[place]["content"]) + self._end
            return head, reply, shown + head + reply
        head, whole = self._template(messages[:place], True), self._template(messages[: place + 1], False)
        if not (head.startswith(shown) and whole.startswith(head)):
            raise ValueError(
                f"{self._folder}: its chat template does not put a reply after what it shows of the turns before; "
                "remove the template to use gptline's"
            )
        reply, end = whole[len(head) :], self._loaded.eos_token
        # Where the template ends replies otherwise, what generation stops at is learned, and shown nowhere.
        if end not in reply:
            return head[len(shown) :], reply + end, whole
        reply = reply[: reply.rindex(end) + len(end)]
        return head[len(shown) :], reply, head + reply

    def _plain(self, messages: Sequence[dict[str, str]]) -> str:
        """Turns by our template: what it does in Jinja, word for word."""
        ends = {"assistant": self._end}
        return "".join(self.clean(message["content"]) + ends.get(message["role"], "\n") for message in messages)

    def _template(self, messages: Sequence[dict[str, str]], asked: bool) -> str:
        """Turns by the tokenizer's own template."""
        if self._loaded is None:
            from transformers import AutoTokenizer

            self._loaded = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        cleaned = [{**message, "content": self.clean(message["content"])} for message in messages]
        return str(self._loaded.apply_chat_template(cleaned, tokenize=False, add_generation_prompt=asked))

    def _parts(self, heads: Sequence[str], replies: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """The tokens of what stands before each reply, and of the reply.

        Some tokenizers begin whatever they encode with a blank (Llama 2's). Theirs are cut out of what they make of the whole,
        where that begins with what they make of its beginning, as downstream renders it.
        """
        apart = list(zip(self._encoded(heads), self._encoded(replies), strict=True))
        first, second, both = self._encoded(["a\n", "a", "a\na"])
        if first + second == both:
            return apart
        turns = [text for pair in zip(heads, replies, strict=True) for text in pair]
        before, parts = list[int](), list[list[int]]()
        for whole in self._encoded(list(itertools.accumulate(turns))):
            if whole[: len(before)] != before:
                return apart
            parts.append(whole[len(before) :])
            before = whole
        return list(zip(parts[::2], parts[1::2], strict=True))

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        return [row.ids for row in self._encoder.encode_batch(list(texts), add_special_tokens=False)]


def _reserved(encoder: Tokenizer) -> list[str]:
    return sorted(token.content for token in encoder.get_added_tokens_decoder().values())


def _ours(encoder: Tokenizer) -> str:
    """The template for a tokenizer that brings none."""
    reserved = _reserved(encoder)
    return TEMPLATE if len(reserved) == 1 else _OF_SEVERAL.replace("RESERVED", json.dumps(reserved, ensure_ascii=False))


def template_of(tokenizer: Path) -> str | None:
    """The chat template of a tokenizer folder, from its own file or from its settings."""
    if (tokenizer / TEMPLATE_FILE).exists():
        return (tokenizer / TEMPLATE_FILE).read_text("utf-8")
    settings = tokenizer / _SETTINGS
    return durable.read_json(settings).get("chat_template") if settings.exists() else None


def fitted(exchanges: Sequence[Exchange], window: int) -> tuple[list[list[Exchange]], list[int]]:
    """Consecutive exchanges that fit into `window` tokens together, and of each group how many are only context.

    Each reply is learned in exactly one group. Where a conversation is cut, the next group begins with those earlier
    exchanges that fit into half the window, so that a reply is not learned without what it answers.
    """
    groups, contexts = list[list[Exchange]](), list[int]()
    size = window + 1  # of the current group
    for place, exchange in enumerate(exchanges):
        length = _length(exchange)
        if size + length <= window:
            groups[-1].append(exchange)
            size += length
            continue
        context: list[Exchange] = []
        for earlier in reversed(exchanges[:place]):
            used = sum(map(_length, context)) + _length(earlier)
            if used > window // 2 or used + length > window:
                break
            context.insert(0, earlier)
        groups.append([*context, exchange])
        contexts.append(len(context))
        size = sum(map(_length, groups[-1]))
    return groups, contexts


def _length(exchange: Exchange) -> int:
    return len(exchange.head) + len(exchange.reply)


@dataclass(frozen=True)
class Row:
    """A sequence of tokens with the mask of what is learned of it, and what it had to lose to fit."""

    tokens: list[int]
    mask: list[bool]
    reply_bytes: int  # UTF-8 bytes of what is learned of the replies
    prompt_cut: bool
    reply_cut: bool


def row(group: Sequence[Exchange], context: int, window: int, size: Callable[[Sequence[int]], int]) -> Row:
    """A group of `fitted` as one sequence: the mask covers the replies and their ends, and nothing else.

    What is too long loses the beginning of its prompt first, down to one token, and only then the end of its reply. A reply
    that opens a conversation is learned from its second token on: nothing stands before the first. `size` is `Chat.size`.
    """
    tokens, mask = list[int](), list[bool]()
    for place, exchange in enumerate(group):
        tokens += exchange.head + exchange.reply
        mask += [False] * len(exchange.head) + [place >= context] * len(exchange.reply)
    over = max(0, len(tokens) - window)  # only a single exchange can be too long
    off = min(over, max(0, len(group[0].head) - 1))
    opens = mask[off]
    tokens, mask = tokens[off:][:window], [False, *mask[off + 1 :][: window - 1]]
    sizes = [len(exchange.text.encode()) for exchange in group[context:]]
    if over > off or opens:
        first = _length(group[0]) - off
        sizes[0] = size([token for token, learned in zip(tokens[:first], mask, strict=False) if learned])
    return Row(tokens, mask, sum(sizes), off > 0, over > off)


def with_template(source: Path, target: Path, *, several_turns: bool) -> Path:
    """A copy of a tokenizer folder that has a chat template: its own, or ours.

    Where several turns are rendered, the EOT between them has to be read as the reserved token, so the copy does not
    split reserved tokens; that of a single prompt still does.
    """
    target.mkdir()
    for name in FILES:
        if (source / name).exists() and name not in (_SETTINGS, TEMPLATE_FILE):  # the settings say the template
            durable.write_bytes(target / name, (source / name).read_bytes())
    settings = durable.read_json(source / _SETTINGS) if (source / _SETTINGS).exists() else {}
    brought = template_of(source)
    if brought is None and several_turns:
        settings["split_special_tokens"] = False
    template = brought or _ours(load(source))
    durable.write_json(target / _SETTINGS, settings | {"chat_template": template})
    return target
