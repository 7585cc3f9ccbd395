"""Recipes of the tasks: each ends with a registered model that plain `transformers` loads. `recipes.py` names them all.

The one idea: a small base model reads the task's own kind of text first, without labels and without the held-out texts
(decontamination drops them), and is fine-tuned then: 5 to 10 minutes on 2 cores.
"""

from __future__ import annotations

from model.config import ModelShape
from pipelines.config import (
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

_BETTER_THAN_MAJORITY = Gate(metric="accuracy", baseline="majority_accuracy", minimum=0.1)
_BETTER_THAN_UNIGRAMS = Gate(metric="bits_per_byte", baseline="unigram_bits_per_byte", maximum=0.0)


def _classifier(
    name: str, corpus: tuple[Source, ...], tokenizer: tuple[Source, ...], task: TaskConfig, finetune: FinetuneConfig
) -> Recipe:
    """What the recipes below have in common: the shape of the default recipe, and its pre-training."""
    return Recipe(
        name=name,
        shard=ShardConfig(sources=corpus, shard_bytes=1 << 20, heldout_fraction=0.02),
        tokenizer=TokenizerConfig(sources=tokenizer, vocab_size=8192),
        model=ModelShape(n_positions=128, n_embd=128, n_layer=2, n_head=4),
        pretrain=PretrainConfig(
            max_steps=800, global_batch_size=16, sequence_length=128, learning_rate=3e-3, min_learning_rate=3e-4, warmup_steps=50
        ),
        task=task,
        finetune=finetune,
        register_as=RegisterConfig(
            base=f"{name}-base", task=name, base_gates=(_BETTER_THAN_UNIGRAMS,), task_gates=(_BETTER_THAN_MAJORITY,)
        ),
    )  # fmt: skip


def sentiment_chinese() -> Recipe:
    """Sentiment of Chinese reviews; the base model reads news and the reviews without their labels."""
    reviews = Source(sample="chinese_review_text", label="chinese_review_text")
    news = Source(sample="chinese_news", label="chinese_news")
    return _classifier(
        "sentiment_chinese",
        corpus=(reviews, news),
        tokenizer=(news,),
        task=TaskConfig(name="sentiment_chinese", source=Source(sample="chinese_reviews")),
        finetune=FinetuneConfig(
            max_steps=870,
            global_batch_size=32,
            sequence_length=128,
            learning_rate=1e-3,
            warmup_steps=80,
            length_pool=64,
        ),
    )


def topics() -> Recipe:
    """Which of 20 newsgroups a post was written to; long posts are read in windows."""
    posts = Source(sample="newsgroup_text", label="newsgroup_text")
    return _classifier(
        "topics",
        corpus=(posts,),
        tokenizer=(posts,),
        task=TaskConfig(name="topics", source=Source(sample="newsgroups")),
        finetune=FinetuneConfig(
            max_steps=1600, global_batch_size=32, sequence_length=128, learning_rate=1e-3, warmup_steps=160, length_pool=64,
            long_texts="windows", window_stride=128,
        ),
    )  # fmt: skip


def sections() -> Recipe:
    """Which of 58 sections of Debian's archive a package belongs to, by its description. Needs apt-get."""
    descriptions = Source(sample="debian_descriptions", label="debian_descriptions")
    return _classifier(
        "sections",
        corpus=(descriptions,),
        tokenizer=(descriptions,),
        task=TaskConfig(name="sections", source=descriptions, max_examples=12_000),
        finetune=FinetuneConfig(
            max_steps=1250,
            global_batch_size=32,
            sequence_length=128,
            learning_rate=1e-3,
            warmup_steps=120,
            length_pool=64,
        ),
    )


CLASSIFICATION = (sentiment_chinese, topics, sections)
