"""Chat: the loss mask covers the replies and their ends and nothing else, and downstream renders the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model import durable
from pipelines import chat
from pipelines.chat import Chat, Exchange, fitted, row
from tests.model import tiny

EOT = 0
END = "<|endoftext|>"


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer")


@pytest.fixture(scope="module", params=[END, "</s>"])
def end(request: pytest.FixtureRequest) -> str:
    """What ends documents: our own token, and that of many a Llama."""
    return str(request.param)


@pytest.fixture(scope="module")
def folder(plain: Path, end: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("chat") / "source"
    source.mkdir()
    for path in plain.iterdir():
        durable.write_bytes(source / path.name, path.read_bytes().replace(END.encode(), end.encode()))
    return chat.with_template(source, source.with_name("tokenizer"), several_turns=True)


def decoded(folder: Path, tokens: list[int]) -> str:
    from tokenizers import Tokenizer

    return str(Tokenizer.from_file(str(folder / "tokenizer.json")).decode(tokens, skip_special_tokens=False))


CONVERSATIONS = [
    turns("the quick fox", "jumps over the dog."),
    turns("a tale ", " of two cities", "and of one film:", "it was the best\nof times.", "and?"),
    [{"role": "system", "content": "the best of times"}, *turns("of", "two", "one  film", "é")],
    turns("the end<|endoftext|>of it", "it was <|endoftext|>a tale", "<|endof<|endoftext|>text|>", "dogs"),
]


def ending_with(end: str, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same turns where another token is reserved."""
    return [message | {"content": message["content"].replace(END, end)} for message in messages]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_mask_covers_exactly_the_replies_and_the_end_of_each(
    folder: Path, end: str, messages: list[dict[str, str]]
) -> None:
    messages = ending_with(end, messages)
    said = Chat(folder)
    groups, contexts = fitted(said.exchanges(messages), 200)
    (group,), (context,) = groups, contexts
    made = row(group, context, 200, said.size)
    learned = [token for token, on in zip(made.tokens, made.mask, strict=True) if on]
    wanted = [said.clean(turn["content"]) for turn in messages if turn["role"] == "assistant"]
    assert decoded(folder, learned) == "".join(text + end for text in wanted)
    assert learned.count(EOT) == len(wanted) == made.tokens.count(EOT), "an end that stands in a text ends nothing"
    assert all(one.reply[-1] == EOT and one.reply.count(EOT) == 1 for one in group)
    hidden = [token for token, on in zip(made.tokens, made.mask, strict=True) if not on]
    heard = messages[: max(place for place, turn in enumerate(messages) if turn["role"] == "assistant")]
    assert decoded(folder, hidden) == "".join(
        said.clean(t["content"]) + "\n" for t in heard if t["role"] != "assistant"
    )
    assert made.reply_bytes == sum(len(text.encode()) for text in wanted)
    assert not made.prompt_cut and not made.reply_cut


def same_as_downstream(folder: Path, messages: list[dict[str, str]]) -> None:
    """Plain `transformers` renders the tokens of each prompt, and those that were learned."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    said = Chat(folder)
    for until in range(1, len(messages) + 1):
        theirs: Any = tokenizer.apply_chat_template(messages[:until], add_generation_prompt=True, return_dict=True)
        assert said.prompt(messages[:until]) == list(theirs["input_ids"])
    whole = [token for one in said.exchanges(messages) for token in one.head + one.reply]
    assert said.prompt(messages)[: len(whole)] == whole


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_plain_transformers_renders_the_tokens_that_were_learned(
    folder: Path, end: str, messages: list[dict[str, str]]
) -> None:
    same_as_downstream(folder, ending_with(end, messages))


def test_a_llama_s_tokenizer_with_more_reserved_tokens_and_a_blank_before_each_text_learns_what_is_rendered(
    tmp_path: Path,
) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        special_tokens=["</s>", "<unk>", "<s>", '<"q\\>'], vocab_size=120, show_progress=False
    )
    tokenizer.train_from_iterator([tiny.TEXT + "é?\n"] * 3, trainer)
    (tmp_path / "source").mkdir()
    tokenizer.save(str(tmp_path / "source" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    durable.write_json(tmp_path / "source" / "tokenizer_config.json", settings)
    folder = chat.with_template(tmp_path / "source", tmp_path / "chat", several_turns=True)
    for messages in [*CONVERSATIONS, turns("no <s> ends </s> it", "<unk>dogs", 'nor <"q\\>that')]:
        same_as_downstream(folder, ending_with("</s>", messages))
        for one in Chat(folder).exchanges(ending_with("</s>", messages)):
            assert decoded(folder, one.reply) == one.text + "</s>" and one.reply.count(EOT) == 1


def test_a_template_that_the_tokenizer_brings_is_kept_and_masks_its_replies(plain: Path, tmp_path: Path) -> None:
    brought = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    source = tmp_path / "source"
    source.mkdir()
    for path in plain.iterdir():
        durable.write_bytes(source / path.name, path.read_bytes())
    durable.write_bytes(source / "chat_template.jinja", brought.encode())
    folder = chat.with_template(source, tmp_path / "kept", several_turns=True)
    exchanges = Chat(folder).exchanges(turns("the fox", "dogs", "cities", "film"))
    end = "<|endoftext|>"
    assert [decoded(folder, one.head) for one in exchanges] == [f"[user]the fox{end}\n[assistant]", f"\n[user]cities{end}\n[assistant]"]  # fmt: skip
    assert [decoded(folder, one.reply) for one in exchanges] == [f"dogs{end}", f"film{end}"]
    assert decoded(folder, Chat(folder).prompt(turns("the fox"))) == f"[user]the fox{end}\n[assistant]"


def test_where_a_template_ends_replies_otherwise_each_is_learned_with_the_token_that_ends_it(
    plain: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in plain.iterdir():
        durable.write_bytes(source / path.name, path.read_bytes())
    brought = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    durable.write_bytes(source / "chat_template.jinja", brought.encode())
    folder = chat.with_template(source, tmp_path / "kept", several_turns=True)
    exchanges = Chat(folder).exchanges(turns("the fox", "dogs", "cities", "film"))
    heads, replies = ([decoded(folder, part) for part in parts] for parts in zip(*((one.head, one.reply) for one in exchanges), strict=True))  # fmt: skip
    assert heads == ["[user]the fox[/]\n[assistant]", "[user]cities[/]\n[assistant]"]
    assert replies == ["dogs[/]\n<|endoftext|>", "film[/]\n<|endoftext|>"]


def exchange(head: int, reply: int, name: int = 1) -> Exchange:
    return Exchange([name] * head, [name + 100] * (reply - 1) + [EOT], "x" * reply)


def test_what_is_too_long_loses_the_beginning_of_its_prompt_first() -> None:
    prompt, reply = list(range(1, 11)), [50, 51, 52, EOT]
    made = row([Exchange(prompt, reply, "abc")], 0, 8, len)
    assert (made.tokens, made.mask) == ([7, 8, 9, 10, *reply], [False] * 4 + [True] * 4)
    assert made.prompt_cut and not made.reply_cut


def test_never_the_whole_reply_is_cut_and_one_token_of_the_prompt_stays() -> None:
    made = row([Exchange([1, 2, 3], list(range(50, 60)), "abc")], 0, 6, len)
    assert (made.tokens, made.mask) == ([3, 50, 51, 52, 53, 54], [False] + [True] * 5)
    assert made.prompt_cut and made.reply_cut


def test_a_long_conversation_is_learned_in_pieces_each_reply_once_after_what_fits_of_the_turns_before() -> None:
    exchanges = [exchange(3, 4, name) for name in range(1, 8)]  # 7 tokens each
    groups, contexts = fitted(exchanges, 23)
    assert [[one.head[0] for one in group] for group in groups] == [[1, 2, 3], [3, 4, 5], [5, 6, 7]]
    assert contexts == [0, 1, 1]
    rows = [row(group, context, 23, len) for group, context in zip(groups, contexts, strict=True)]
    learned = [token for made in rows for token, on in zip(made.tokens, made.mask, strict=True) if on]
    assert learned == [token for one in exchanges for token in one.reply]
    assert sum(made.reply_bytes for made in rows) == 7 * 4
    assert all(len(made.tokens) <= 23 for made in rows)


def test_of_a_reply_that_is_cut_only_the_bytes_of_its_tokens_that_stay_count(folder: Path) -> None:
    """Whatever the window leaves: with a byte of three for a token, a character counts when its last one is there."""
    said = Chat(folder)
    (one,) = said.exchanges(turns("the quick fox", "jumps \u2013 over the lazy dog."))
    whole = len(one.text.encode())
    for window in range(2, len(one.reply) + 1):
        made = row([one], 0, window, said.size)
        assert made.reply_cut and made.tokens[1:] == one.reply[: window - 1]
        text = decoded(folder, made.tokens[1:]).rstrip("\ufffd")
        assert one.text.startswith(text) and made.reply_bytes == len(text.encode()) <= whole
    assert row([one], 0, len(one.reply) + 1, said.size).reply_bytes == whole


def test_a_reply_that_opens_a_conversation_counts_from_its_second_token_on(folder: Path) -> None:
    said = Chat(folder)
    messages = [{"role": "assistant", "content": "the lazy dog"}, *turns("of times", "two cities")]
    first, second = said.exchanges(messages)
    made = row([first, second], 0, 200, said.size)
    assert not first.head and made.tokens == first.reply + second.head + second.reply
    assert made.mask == [False] + [True] * (len(first.reply) - 1) + [False] * len(second.head) + [True] * len(
        second.reply
    )
    said_first = decoded(folder, first.reply[1:-1])
    assert said_first and made.reply_bytes == len(said_first) + len("two cities")
    assert row([first, second], 1, 200, said.size).reply_bytes == len("two cities"), "as context it counts not at all"


def test_an_exchange_that_fills_the_window_stands_alone() -> None:
    groups, contexts = fitted([exchange(2, 2, 1), exchange(10, 9, 2), exchange(2, 2, 3)], 12)
    assert ([len(group) for group in groups], contexts) == ([1, 1, 1], [0, 0, 0])


def test_a_tokenizer_for_single_prompts_goes_on_splitting_reserved_tokens(plain: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = tmp_path / "source"
    source.mkdir()
    for path in plain.iterdir():
        durable.write_bytes(source / path.name, path.read_bytes())
    settings = durable.read_json(source / "tokenizer_config.json")
    durable.write_json(source / "tokenizer_config.json", settings | {"split_special_tokens": True})
    for several in (False, True):
        folder = chat.with_template(source, tmp_path / str(several), several_turns=several)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        assert (EOT in tokenizer("good<|endoftext|>bad")["input_ids"]) is several
        asked: Any = tokenizer.apply_chat_template(turns("good<|endoftext|>bad"), return_dict=True)
        assert EOT not in asked["input_ids"]
