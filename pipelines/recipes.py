"""Named recipes. A recipe is a function that returns a complete Recipe; a variant derives from one in three lines.

Your own: put a function like these in any file and say RECIPE=path/to/file.py:function.
"""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.config import Config, ModelShape
from pipelines import task_recipes
from pipelines.config import (
    ConfigError,
    EvaluateConfig,
    FinetuneConfig,
    Gate,
    PretrainConfig,
    Recipe,
    RegisterConfig,
    ShardConfig,
    Source,
    TaskConfig,
    TokenizerConfig,
)
from pipelines.labels_config import FewLabels, Start
from pipelines.settings import explain, validated
from pipelines.task_recipes import REVIEWS

FILMS = Source(sample="film_text", label="film_text")
CONVERSATIONS = Source(sample="conversations", label="conversations")


def default() -> Recipe:
    """A small GPT on sample English, fine-tuned for the sentiment of film reviews: 8 minutes on 2 cores.

    It reads what it will be asked about: sentences of reviews and summaries of films, without labels. The held-out
    sentences among them are dropped by decontamination, down to three words, and the tokenizer learns from other text.
    """
    return Recipe(
        name="default",
        shard=ShardConfig(sources=(FILMS,), shard_bytes=1 << 20, heldout_fraction=0.03, decontaminate_min_words=3),
        tokenizer=TokenizerConfig(sources=(CONVERSATIONS,), vocab_size=8192),
        model=ModelShape(n_positions=128, n_embd=128, n_layer=2, n_head=4),
        pretrain=PretrainConfig(
            max_steps=500,
            global_batch_size=16,
            sequence_length=128,
            learning_rate=3e-3,
            min_learning_rate=3e-4,
            warmup_steps=50,
        ),
        task=TaskConfig(source=REVIEWS, test_fraction=0.15),
        finetune=FinetuneConfig(
            max_steps=580, global_batch_size=32, sequence_length=128, learning_rate=1e-3, warmup_steps=58, dropout=0.1
        ),
        register_as=RegisterConfig(
            base_gates=(Gate(metric="bits_per_byte", baseline="unigram_bits_per_byte", maximum=0.0),),
            task_gates=(Gate(metric="accuracy", baseline="tfidf_accuracy", minimum=-0.05),),
        ),
    )


def tiny() -> Recipe:
    """The same shape with next to no work in it, for tests: well under a minute."""
    text = Source(sample="tiny_shakespeare", label="tiny_shakespeare")
    return Recipe(
        name="tiny",
        shard=ShardConfig(sources=(text,), document_bytes=2048, shard_bytes=256 << 10, heldout_fraction=0.02),
        tokenizer=TokenizerConfig(sources=(text,), vocab_size=1024),
        model=ModelShape(n_positions=64, n_embd=32, n_layer=2, n_head=2),
        pretrain=PretrainConfig(
            max_steps=30, global_batch_size=16, sequence_length=64, learning_rate=1e-2, warmup_steps=5
        ),
        task=TaskConfig(source=REVIEWS, max_examples=400),
        finetune=FinetuneConfig(
            max_steps=30, global_batch_size=16, sequence_length=48, learning_rate=5e-3, warmup_steps=3
        ),
        evaluate=EvaluateConfig(continuation_tokens=16),
        register_as=RegisterConfig(
            base_gates=(Gate(metric="bits_per_byte", maximum=8.0),), task_gates=(Gate(metric="accuracy", minimum=0.3),)
        ),
    )


def labels() -> Recipe:
    """How many labels the default recipe's task needs: from its own base model, from nothing, and from MiniLM."""
    made = default()
    minilm = task_recipes.sentiment_minilm()
    assert made.finetune
    curves = (
        Start(name="pretrained"),
        Start(name="scratch", finetune=made.finetune.model_copy(update={"init": "random"})),
        Start(name="minilm", pretrained=minilm.pretrained, finetune=minilm.finetune),  # 10 minutes a draw
    )
    return made.model_copy(update={"name": "labels", "few_labels": FewLabels(starts=curves)})


def gpt2_124m() -> Recipe:
    """GPT-2 small's shape in bf16 with ZeRO-2, for GPUs. The sample text only shows the way: give your own corpus.

    make run RECIPE=gpt2_124m SET='shard.sources=[{"path":"/data/corpus"}] tokenizer.sources=[{"path":"/data/corpus"}]'
    """
    return Recipe(
        name="gpt2_124m",
        shard=ShardConfig(sources=(CONVERSATIONS,), shard_bytes=64 << 20, heldout_fraction=0.001),
        tokenizer=TokenizerConfig(sources=(CONVERSATIONS,), vocab_size=50257, max_bytes=512 << 20),
        model=ModelShape(n_positions=1024, n_embd=768, n_layer=12, n_head=12),
        pretrain=PretrainConfig(
            max_steps=19073, global_batch_size=512, sequence_length=1024, learning_rate=6e-4, min_learning_rate=6e-5,
            warmup_steps=700, precision="bf16", zero_stage=2, compile=True,
        ),
        task=TaskConfig(source=REVIEWS),
        finetune=FinetuneConfig(
            max_steps=1000, global_batch_size=32, sequence_length=128, learning_rate=3e-5, warmup_steps=100, precision="bf16"
        ),
        register_as=RegisterConfig(
            base="gpt2-124m", task="sentiment-124m",
            base_gates=(Gate(metric="bits_per_byte", maximum=1.3),),
            task_gates=(Gate(metric="accuracy", baseline="tfidf_accuracy", minimum=0.0),),
        ),
    )  # fmt: skip


def bert() -> Recipe:
    """A small BERT on sample English: what is hidden in a pair of texts, and whether the second follows: 12 minutes on 2 cores.

    Conversations, plays and film texts: as with BERT's books and encyclopedia, a stranger is often of another kind.
    """
    text = (CONVERSATIONS, Source(sample="shakespeare", label="shakespeare"), FILMS)
    return Recipe(
        name="bert",
        shard=ShardConfig(sources=text, document_bytes=4096, shard_bytes=1 << 20, heldout_fraction=0.03),
        tokenizer=TokenizerConfig(sources=text, vocab_size=4096, special_tokens="bert"),
        model=ModelShape(
            family="bert", n_positions=128, n_embd=128, n_layer=2, n_head=4, layer_norm_epsilon=1e-12
        ),
        pretrain=PretrainConfig(
            objective="masked_lm_next_sentence", max_steps=4000, global_batch_size=32, sequence_length=96,
            learning_rate=2e-3, min_learning_rate=1e-4, warmup_steps=300, weight_decay=0.01, beta2=0.98,
        ),
        register_as=RegisterConfig(
            base="bert",
            base_gates=(
                Gate(metric="masked_accuracy", baseline="unigram_masked_accuracy", minimum=0.0),
                Gate(metric="next_sentence_accuracy_low", minimum=0.5),
            ),
        ),
    )  # fmt: skip


def bert_tiny() -> Recipe:
    """The same shape with next to no work in it, for tests: under a minute."""
    text = Source(sample="tiny_shakespeare", label="tiny_shakespeare")
    whole = bert()
    assert whole.model and whole.pretrain
    return whole.model_copy(
        update={
            "name": "bert_tiny",
            "shard": ShardConfig(sources=(text,), document_bytes=2048, shard_bytes=256 << 10, heldout_fraction=0.02),
            "tokenizer": TokenizerConfig(sources=(text,), vocab_size=1024, special_tokens="bert"),
            "model": whole.model.model_copy(update={"n_positions": 64, "n_embd": 32, "n_head": 2}),
            "pretrain": whole.pretrain.model_copy(
                update={"max_steps": 30, "global_batch_size": 16, "sequence_length": 64, "warmup_steps": 5}
            ),
            "register_as": RegisterConfig(base="bert-tiny", base_gates=(Gate(metric="masked_accuracy", minimum=0.0),)),
        }
    )


NAMED: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        default,
        tiny,
        labels,
        gpt2_124m,
        bert,
        bert_tiny,
        *task_recipes.CLASSIFICATION,
        *task_recipes.ANSWERING,
    )
}

# What `make tasks` runs, in this order.
TASKS = ("default", *(recipe.__name__ for recipe in (*task_recipes.CLASSIFICATION, *task_recipes.ANSWERING)))


def load(name: str) -> Recipe:
    """The recipe called `name`, or the one that `path/to/file.py:function` returns. ConfigError says what is known."""
    if name in NAMED:
        return NAMED[name]()
    file, _, function = name.rpartition(":")
    if not file:
        raise ConfigError(
            f"RECIPE={name}: no such recipe; known are {', '.join(NAMED)}, or give path/to/file.py:function"
        )
    if not Path(file).is_file():
        raise ConfigError(f"RECIPE={name}: there is no file {file}")
    recipe = _made(name, file, function)
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"RECIPE={name}: {function} returned a {type(recipe).__name__}, not a Recipe")
    # `model_copy(update=...)` checks nothing: what it made is checked here.
    for path in _unknown(recipe, ""):
        raise ConfigError(f"RECIPE={name}: {path}: unknown field; remove it or fix its spelling")
    return validated(Recipe, recipe.model_dump(mode="json", warnings=False), f"RECIPE={name}")


def _unknown(config: Config, path: str) -> Iterator[str]:
    """The dotted paths of values that are no fields: `model_copy` takes them and everything else passes over them."""
    for key, value in vars(config).items():
        if key not in type(config).model_fields:
            yield path + key
        if isinstance(value, Config):
            yield from _unknown(value, f"{path}{key}.")


def _made(name: str, file: str, function: str) -> Any:
    """What `function` in `file` returns. Whatever goes wrong in it is its author's to mend: ConfigError with the line."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"RECIPE={name}: {file} is no Python file; its name has to end in .py")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise ConfigError(f"RECIPE={name}: {file} has no function {function!r}")
        return getattr(module, function)()
    except ConfigError:
        raise
    except ValidationError as error:
        raise ConfigError(explain(error, f"RECIPE={name}, line {_line(error, file)}: {error.title}")) from error
    except Exception as error:
        raise ConfigError(
            f"RECIPE={name}: {file}, line {_line(error, file)}: {type(error).__name__}: {error}"
        ) from error


def _line(error: Exception, file: str) -> int | None:
    """The line of `file` at which the error arose."""
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == Path(file).absolute()
    ]
    return frames[-1].lineno if frames else None
