"""Recipes of the tasks: each ends with a registered model that plain `transformers` loads. `recipes.py` names them all.

The one idea: a small base model reads the task's own kind of text first, without labels and without the held-out texts
(decontamination drops them), and is fine-tuned then. docs/tasks.md says how long each takes.
"""

from __future__ import annotations

from model.config import ModelShape
from model.tuning_config import EarlyStopping
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
from pipelines.pretrained import Pretrained

REVIEWS = Source(sample="rotten_tomatoes", format="csv.bz2", label="rotten_tomatoes")

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


def sentiment_minilm() -> Recipe:
    """Sentiment of film reviews, from MiniLM: 22.7 M parameters that somebody else trained on English."""
    return Recipe(
        name="sentiment_minilm",
        pretrained=Pretrained(sample="minilm"),
        task=TaskConfig(source=REVIEWS, test_fraction=0.15),
        finetune=FinetuneConfig(
            max_steps=300, global_batch_size=32, sequence_length=64, learning_rate=1e-4, min_learning_rate=1e-5,
            warmup_steps=30, weight_decay=0.01, length_pool=64,
        ),
        register_as=RegisterConfig(
            base="minilm", task="sentiment-minilm", task_gates=(Gate(metric="accuracy", baseline="tfidf_accuracy", minimum=0.0),)
        ),
    )  # fmt: skip


CLASSIFICATION = (sentiment_chinese, topics, sections, sentiment_minilm)


def _answering(
    name: str,
    corpus: tuple[Source, ...],
    model: ModelShape,
    pretrain_steps: int,
    task: TaskConfig,
    finetune: FinetuneConfig,
    gates: tuple[Gate, ...],
) -> Recipe:
    """What the recipes of tasks that answer have in common: the tokenizer learns from the corpus, and so does the base model."""
    return Recipe(
        name=name,
        shard=ShardConfig(sources=corpus, shard_bytes=1 << 20, heldout_fraction=0.02, decontaminate_min_words=4),
        tokenizer=TokenizerConfig(sources=corpus, vocab_size=4096, max_bytes=8 << 20),
        model=model,
        pretrain=PretrainConfig(
            max_steps=pretrain_steps, global_batch_size=16, sequence_length=model.n_positions, learning_rate=3e-3,
            min_learning_rate=3e-4, warmup_steps=pretrain_steps // 10,
        ),
        task=task,
        finetune=finetune,
        register_as=RegisterConfig(base=f"{name}-base", task=name, base_gates=(_BETTER_THAN_UNIGRAMS,), task_gates=gates),
    )  # fmt: skip


def _better(metric: str, *baselines: str) -> tuple[Gate, ...]:
    """Gates on a metric of which more is better: above each of the baselines."""
    return tuple(Gate(metric=metric, baseline=f"{name}_{metric}", minimum=0.0) for name in baselines)


def _fewer(metric: str, *baselines: str) -> tuple[Gate, ...]:
    """Gates on a metric of which less is better: below each of the baselines."""
    return tuple(Gate(metric=metric, baseline=f"{name}_{metric}", maximum=0.0) for name in baselines)


def _translation(
    name: str, sample: str, language: str, steps: int = 4000, early_stopping: EarlyStopping | None = None
) -> Recipe:
    """English lines of Debian's descriptions into another language; the base model reads descriptions in both."""
    english = Source(sample=sample, label="english", text_column="text")
    other = Source(sample=sample, label=language, text_column=language, on_bad_record="skip")
    return _answering(
        name,
        corpus=(english, other),
        model=ModelShape(n_positions=64, n_embd=160, n_layer=3, n_head=4),
        pretrain_steps=800,
        task=TaskConfig(
            name="translation",
            source=Source(sample=sample, label=sample),
            validation_fraction=0.02,
            test_fraction=0.02,
            options={"language": language},
        ),
        finetune=FinetuneConfig(
            max_steps=steps, global_batch_size=32, sequence_length=64, learning_rate=2e-3, min_learning_rate=1e-4,
            warmup_steps=100, dropout=0.0, early_stopping=early_stopping,
        ),
        gates=_better("chrf", "copy", "dictionary") + _better("bleu", "copy", "dictionary"),
    )  # fmt: skip


def translation() -> Recipe:
    """English lines into Italian. Needs apt-get: see the sample debian_it."""
    return _translation("translation", "debian_it", "it")


def translation_french() -> Recipe:
    """English lines into French. Needs apt-get: see the sample debian_fr.

    Of fewer than half as many pairs as there are in Italian, the model learns late, and not in each run, to copy names that
    it never saw: it reads them nine times, and the validation lines say which step was best.
    """
    early = EarlyStopping(every=500, patience=4)
    return _translation("translation_french", "debian_fr", "fr", steps=8000, early_stopping=early)


def questions() -> Recipe:
    """Questions answered from memory, of which a model of this size has little: it has to beat the most frequent answer.

    22 times over the 11,580 questions that are learned, since what cannot be known can only be learned by heart.
    """
    return _answering(
        "questions",
        corpus=(Source(sample="conversations", label="conversations"),),
        model=ModelShape(n_positions=64, n_embd=160, n_layer=3, n_head=4),
        pretrain_steps=800,
        task=TaskConfig(name="questions", source=Source(sample="open_questions", label="open_questions")),
        finetune=FinetuneConfig(
            max_steps=8000, global_batch_size=32, sequence_length=64, learning_rate=1e-3, min_learning_rate=1e-4,
            warmup_steps=200, dropout=0.1,
        ),
        gates=_better("f1", "frequent", "copy") + _better("exact_match", "frequent"),
    )  # fmt: skip


def dialogue() -> Recipe:
    """Replies in conversations of two; the base model reads conversations of others."""
    return _answering(
        "dialogue",
        corpus=(Source(sample="conversations", label="conversations"),),
        model=ModelShape(n_positions=128, n_embd=160, n_layer=3, n_head=4),
        pretrain_steps=1200,
        task=TaskConfig(
            name="dialogue",
            source=Source(sample="chitchat", label="chitchat"),
            validation_fraction=0.03,
            test_fraction=0.03,
        ),
        finetune=FinetuneConfig(
            max_steps=5000, global_batch_size=16, sequence_length=128, learning_rate=1.5e-3, min_learning_rate=1e-4,
            warmup_steps=50, dropout=0.0,
        ),
        gates=_fewer("perplexity", "unigram", "trigram"),
    )  # fmt: skip


def generation() -> Recipe:
    """A model of today's English goes on to read Shakespeare, and writes like him."""
    return _answering(
        "generation",
        corpus=(Source(sample="conversations", label="conversations"),),
        model=ModelShape(n_positions=128, n_embd=160, n_layer=3, n_head=4),
        pretrain_steps=800,
        task=TaskConfig(name="generation", source=Source(sample="tiny_shakespeare", label="tiny_shakespeare")),
        finetune=FinetuneConfig(
            max_steps=1000, global_batch_size=16, sequence_length=128, learning_rate=2e-3, min_learning_rate=2e-4,
            warmup_steps=50, dropout=0.1,
        ),
        gates=_fewer("bits_per_byte", "unigram", "trigram", "base"),
    )  # fmt: skip


def finetune_smollm2() -> Recipe:
    """SmolLM2, which knows a little of the world, learns from 480 questions to answer in a word or two, through LoRA."""
    return Recipe(
        name="finetune_smollm2",
        pretrained=Pretrained(sample="smollm2"),
        task=TaskConfig(
            name="questions", source=Source(sample="open_questions", label="open_questions"), max_examples=480
        ),
        finetune=FinetuneConfig(
            max_steps=60, global_batch_size=8, sequence_length=128, learning_rate=2e-4, min_learning_rate=2e-5,
            warmup_steps=6, dropout=0.0, tune="lora",
        ),
        register_as=RegisterConfig(
            base="smollm2", task="smollm2-questions", task_gates=_better("f1", "frequent") + _fewer("perplexity", "trigram")
        ),
    )  # fmt: skip


def cloze() -> Recipe:
    """Answers found in a text, learned from questions that are made of an encyclopedia; measured on
    held-out ones and on SQuAD, of which nothing is learned. It begins with a BERT that others trained."""
    return Recipe(
        name="cloze",
        pretrained=Pretrained(sample="minilm"),
        task=TaskConfig(
            name="cloze",
            source=Source(sample="encyclopedia", label="encyclopedia"),
            benchmark_source=Source(sample="squad", label="squad"),
            validation_fraction=0.02,
            test_fraction=0.06,
            options={"passage_words": 70, "benchmark_questions": 1000, "benchmark_left_out": 10},
        ),
        finetune=FinetuneConfig(
            max_steps=220, global_batch_size=16, sequence_length=192, learning_rate=1.5e-4, warmup_steps=22, length_pool=64,
            long_texts="windows", window_stride=96, weight_decay=0.01, dropout=0.0,
        ),
        register_as=RegisterConfig(
            base="minilm", task="cloze", task_gates=_better("f1", "frequent", "overlap") + _better("exact_match", "frequent", "overlap")
        ),
    )  # fmt: skip


ANSWERING = (finetune_smollm2, translation, translation_french, questions, dialogue, generation, cloze)
