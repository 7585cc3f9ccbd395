"""Examples, metrics and baselines of the downstream tasks, on inventions small enough to check by hand."""

from __future__ import annotations

import bz2
import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import durable
from pipelines import contamination
from pipelines.forms import classification
from pipelines.tasks import examples, language_modelling, metrics, sentiment

FILMS = [f"film_{number}" for number in range(60)]


def write_reviews(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A csv.bz2 of (category, text, movie_name)."""
    lines = ["category,text,movie_name", *(f'{category},"{text}",{movie}' for category, text, movie in rows)]
    path = folder / "reviews.csv.bz2"
    path.write_bytes(bz2.compress("\n".join(lines).encode()))
    return path


def invented_rows() -> list[tuple[str, str, str]]:
    words = {"fresh": ["moving", "funny", "bright"], "rotten": ["dull", "clumsy", "loud"]}
    chance = random.Random(0)
    rows = [("plot", "A man walks.", FILMS[0])]
    for film in FILMS:
        for number in range(8):
            label = chance.choice(["fresh", "rotten"])
            rows.append(
                (
                    label,
                    f"Review {number} of {film} finds it {chance.choice(words[label])} and {chance.choice(words[label])}.",
                    film,
                )
            )
    return rows


def test_no_film_is_in_two_splits_and_no_review_is_lost(tmp_path: Path) -> None:
    prepared = sentiment.prepare([write_reviews(tmp_path, invented_rows())])
    films = {name: {example.group for example in part} for name, part in prepared.splits.items()}
    assert set.union(*films.values()) == set(FILMS)
    assert sum(len(part) for part in films.values()) == len(FILMS)
    assert sum(len(part) for part in prepared.splits.values()) == len(FILMS) * 8
    assert prepared.report["dropped"]["plot"] == 1


def test_a_new_film_changes_the_split_of_no_other(tmp_path: Path) -> None:
    before = sentiment.prepare([write_reviews(tmp_path, invented_rows())]).splits
    after = sentiment.prepare(
        [write_reviews(tmp_path, [*invented_rows(), ("fresh", "Quite another thing.", "newcomer")])]
    ).splits
    for name in examples.SPLITS:
        assert before[name] == [example for example in after[name] if example.group != "newcomer"]


def test_a_film_under_two_names_stays_on_one_side(tmp_path: Path) -> None:
    twins = [(label, text, "alias_of_" + film) for label, text, film in invented_rows() if film == FILMS[3]]
    prepared = sentiment.prepare([write_reviews(tmp_path, [*invented_rows(), *twins])])
    assert prepared.report["names_of_one_film"] == {FILMS[3]: "alias_of_" + FILMS[3]}
    assert prepared.report["dropped"]["repeated_within_film"] == len(twins)


def test_a_film_under_three_names_stays_on_one_side_whichever_pair_shares_sentences(tmp_path: Path) -> None:
    def rows(*films: str) -> list[tuple[str, str, str]]:
        said = [f"a long sentence number {n} of {films[0]}" for n in range(6)]
        return [("fresh", text, film) for film in films for text in said]

    reviews = [*invented_rows(), *rows("alpha", "zeta"), *rows("beta", "zeta")]
    prepared = sentiment.prepare([write_reviews(tmp_path, reviews)])
    assert prepared.report["names_of_one_film"] == {"beta": "alpha", "zeta": "alpha"}


def test_a_sentence_of_several_films_is_kept_nearest_to_the_test_split(tmp_path: Path) -> None:
    praise = [("fresh", shown, film) for film, shown in zip(FILMS, ["Nice work.", "nice  work"] * 30, strict=True)]
    prepared = sentiment.prepare([write_reviews(tmp_path, [*invented_rows(), *praise])])
    kept = {name: [example for example in part if "work" in example.text] for name, part in prepared.splits.items()}
    assert [len(kept[name]) for name in ("train", "validation", "test")] == [0, 0, 1]
    assert prepared.report["dropped"]["repeated_across_films"] == len(FILMS) - 1
    assert prepared.report["dropped"]["repeated_across_splits"] > 0


def test_a_sentence_with_both_labels_is_dropped(tmp_path: Path) -> None:
    rows = [*invented_rows(), ("fresh", "What a film.", FILMS[0]), ("rotten", "What a film!", FILMS[1])]
    prepared = sentiment.prepare([write_reviews(tmp_path, rows)])
    assert prepared.report["dropped"]["contradicting_labels"] == 2


def test_examples_written_are_read_back_and_equal_runs_write_equal_bytes(tmp_path: Path) -> None:
    prepared = sentiment.prepare([write_reviews(tmp_path, invented_rows())])
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        examples.write(sentiment.prepare([write_reviews(tmp_path, invented_rows())]), folder)
    assert examples.read(tmp_path / "one" / "test.jsonl", "classification") == prepared.splits["test"]
    assert durable.read_json(tmp_path / "one" / "labels.json") == ["rotten", "fresh"]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_golden_digest_of_the_examples(tmp_path: Path) -> None:
    """If this fails on purpose, raise the version of the stage `prepare_task`: its outputs mean something else now."""
    examples.write(sentiment.prepare([write_reviews(tmp_path, invented_rows())]), tmp_path)
    digests = [durable.sha256(tmp_path / f"{name}.jsonl")[:16] for name in examples.SPLITS]
    assert digests == ["894e58ab7fd081ea", "9234b1ed9171c978", "351e35ffb78d0d6a"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("splendid", "Fine.", "walk")], r"reviews.csv.bz2:2: category is 'splendid'"),
        ([("fresh", "Fine.", "")], r"reviews.csv.bz2:2: an empty column"),
        ([("fresh", "Fine.", "walk")], r"the train split has 1 examples and not every label"),
    ],
)
def test_a_bad_review_file_is_named_with_its_line(
    tmp_path: Path, rows: list[tuple[str, str, str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sentiment.prepare([write_reviews(tmp_path, rows)])


def test_a_file_without_the_column_or_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv.bz2"
    path.write_bytes(bz2.compress(b"category,text\nfresh,Fine.\n"))
    with pytest.raises(ValueError, match="no column 'movie_name'"):
        sentiment.prepare([path])
    path.write_bytes(write_reviews(tmp_path, invented_rows()).read_bytes()[:-50])
    with pytest.raises(ValueError, match="not a whole bz2 file"):
        sentiment.prepare([path])


def test_a_line_that_is_no_example_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"id": "1", "text": "Fine.", "label": 1, "group": "walk"}\n{"id": "2"}\n')
    with pytest.raises(ValueError, match=r"train.jsonl:2: not an example"):
        examples.read(path, "classification")


FORMS = {
    "classification": examples.Labelled("1", "Fine.", 1, "walk"),
    "response": examples.Response("2", "Fine?", "Yes.", ["Yes.", "Very."], "walk"),
    "dialogue": examples.Dialogue(
        "3", [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}], "a"
    ),
    "span": examples.Span("4", "Who?", "It was Ada.", [{"text": "Ada", "start": 7}], "walk"),
}


@pytest.mark.parametrize("form", FORMS)
def test_examples_of_each_form_are_read_back_and_no_training_text_may_hold_their_parts(
    form: str, tmp_path: Path
) -> None:
    examples.write(examples.Prepared({"train": [], "validation": [], "test": [FORMS[form]]}, {}), tmp_path)
    assert examples.read(tmp_path / "test.jsonl", form) == [FORMS[form]]
    searched = {
        "classification": ["Fine."],
        "response": ["Fine?", "Yes.", "Very."],
        "dialogue": ["Hi.", "Ho."],
        "span": ["Who?", "It was Ada."],
    }
    assert contamination.read_examples([tmp_path / "test.jsonl"]) == searched[form]
    line = json.loads((tmp_path / "test.jsonl").read_text())
    (tmp_path / "test.jsonl").write_text(json.dumps(line | {"group": 7}))
    with pytest.raises(ValueError, match=r"test.jsonl:1: not an example \(group is a int\)"):
        examples.read(tmp_path / "test.jsonl", form)


@pytest.mark.parametrize("present", [3, 5, 58])
def test_accuracy_and_macro_f1_agree_with_scikit_learn(present: int) -> None:
    """Also where some of the task's 58 classes are in neither labels nor predictions, in the figure and in every draw."""
    from sklearn.metrics import accuracy_score, f1_score

    chance = np.random.default_rng(0)
    labels, predicted = chance.integers(0, present, 200).tolist(), chance.integers(0, present, 200).tolist()
    counts = metrics.margins(metrics.confusion(labels, predicted, 58))
    assert metrics.accuracy(counts) == pytest.approx(accuracy_score(labels, predicted))
    assert metrics.macro_f1(counts) == pytest.approx(f1_score(labels, predicted, average="macro"))
    draws = chance.integers(0, 200, (4, 8))  # of eight examples few classes are drawn
    drawn = [([labels[i] for i in draw], [predicted[i] for i in draw]) for draw in draws]
    many = np.stack([metrics.margins(metrics.confusion(true, said, 58)) for true, said in drawn])
    expected = [f1_score(true, said, average="macro") for true, said in drawn]
    assert metrics.macro_f1(many).tolist() == pytest.approx(expected)


def test_who_says_all_right_has_a_macro_f1_of_one_whatever_classes_are_absent_or_rare() -> None:
    labels = [0] * 30 + [1] * 30 + [2]  # class 2 is in a third of the draws not there, class 3 never
    report = metrics.report(labels, labels, list(map(str, range(61))), classes=4)
    assert (report["macro_f1"], report["macro_f1_interval_by_group"]) == (1.0, [1.0, 1.0])
    wrong = metrics.report([0, 0, 1, 1], [0, 0, 1, 2], list("abcd"), classes=4)
    assert wrong["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3, abs=1e-6), (
        "a class that is said though absent counts"
    )


def test_wilson_interval_is_the_published_one() -> None:
    low, high = metrics.wilson_interval(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert metrics.wilson_interval(0, 20)[0] == 0


def test_the_interval_widens_when_a_film_succeeds_or_fails_as_a_whole() -> None:
    labels = [0] * 400
    whole = [film % 2 for film in range(20) for _ in range(20)]
    groups = [str(film) for film in range(20) for _ in range(20)]
    report = metrics.report(labels, whole, groups, classes=2)
    by_example, by_group = report["accuracy_interval"], report["accuracy_interval_by_group"]
    assert by_group[1] - by_group[0] > 2 * (by_example[1] - by_example[0])
    assert metrics.report(labels, whole, groups, classes=2) == report


def test_of_one_film_there_is_no_interval() -> None:
    labels, predicted, groups = [0, 1, 0, 1, 1], [0, 1, 1, 1, 0], ["a"] * 5
    report = metrics.report(labels, predicted, groups, classes=2)
    assert report["accuracy"] == 0.6 and report["accuracy_interval"][0] < 0.3
    assert report["accuracy_interval_by_group"] is report["macro_f1_interval_by_group"] is None
    assert metrics.difference(labels, predicted, labels, groups)["accuracy_gain_interval_by_group"] is None
    assert metrics.ratio_difference([3.0], [2.0], [1.0]) == {"gain": 1.0, "low": None, "high": None}
    assert "of one group" in "".join(classification.told(
        {"accuracy": 0.6, "macro_f1": 0.6, "examples": 5}
        | {f"{name}_{figure}": 0.5 for name in ("majority", "tfidf") for figure in ("accuracy", "macro_f1")}
    ))  # fmt: skip


def test_difference_of_a_model_with_itself_is_nothing() -> None:
    labels, predicted, groups = [0, 1, 1, 0], [0, 1, 0, 0], ["a", "a", "b", "b"]
    assert metrics.difference(labels, predicted, predicted, groups) == {
        "accuracy_gain": 0,
        "accuracy_gain_interval_by_group": [0, 0],
    }


def test_baselines_learn_from_training_labels_only_and_repeat_exactly(tmp_path: Path) -> None:
    splits = sentiment.prepare([write_reviews(tmp_path, invented_rows())]).splits
    texts = {name: [example.text for example in part] for name, part in splits.items()}
    labels = {name: [example.label for example in part] for name, part in splits.items()}
    groups = [example.group for example in splits["test"]]
    train, validation = ((texts[name], labels[name]) for name in ("train", "validation"))
    first = metrics.baselines(train, validation, (texts["test"], labels["test"], groups), classes=2)
    assert first["tfidf_logistic_regression"]["accuracy"] == 1.0
    assert first["majority"]["accuracy"] < 0.8
    assert metrics.baselines(train, validation, (texts["test"], labels["test"], groups), classes=2) == first
    flipped = metrics.baselines(
        train, validation, (texts["test"], [1 - label for label in labels["test"]], groups), classes=2
    )
    assert flipped["tfidf_logistic_regression"]["predicted"] == first["tfidf_logistic_regression"]["predicted"]


def test_terms_and_weights_of_the_baseline_come_from_the_training_texts_alone(tmp_path: Path) -> None:
    splits = sentiment.prepare([write_reviews(tmp_path, invented_rows())]).splits
    train, validation, test = (
        ([example.text for example in splits[name]], [example.label for example in splits[name]])
        for name in examples.SPLITS
    )
    said, setting = metrics.tfidf_predictions(train, validation, test[0])
    strange = [f"{text} zyzzyva zyzzyva" for text in test[0]]
    assert metrics.tfidf_predictions(train, validation, strange) == (said, setting), "words of test texts are no terms"
    few = metrics.tfidf_predictions(train, validation, strange[:3])
    assert few == (said[:3], setting), "nor does a test text depend on the others"
    for texts in (["zyzzyva zyzzyva"] * len(train[0]), train[0]):  # of validation texts with all labels turned round
        turned = (texts, [1 - label for label in train[1]])
        found, chosen = metrics.tfidf_predictions(train, turned, test[0])
        assert (found, chosen["terms"]) == (said, setting["terms"]), "validation texts choose C and nothing else"


@pytest.mark.parametrize("classes", [2, 3])
def test_without_a_validation_split_the_baseline_is_set_by_the_training_labels_alone(classes: int) -> None:
    """The regularisation is the one that scikit-learn's own cross-validation finds; a rare class is no obstacle."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    words = ["good", "fine", "dull", "weak", "long"]
    texts = [f"{words[n % 5]} {words[n * n % 4]} film {words[n % 3]}" for n in range(40)]
    labels = [int(n % 5 > 1) if n % 7 else int(n % 2) for n in range(40)]
    if classes == 3:
        labels[3] = 2
    said, setting = metrics.tfidf_predictions((texts, labels), None, ["good good film"])
    assert set(said) <= set(labels) and "validation_accuracy" not in setting
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2).fit_transform(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        grid = {"C": [1.0, 3.0, 10.0, 30.0]}
        search = GridSearchCV(LogisticRegression(max_iter=2000), grid, cv=StratifiedKFold(5)).fit(features, labels)
    assert setting["cross_validation_accuracy"] == pytest.approx(search.best_score_, abs=1e-6)
    assert setting["C"] == search.best_params_["C"]


def test_of_a_class_with_one_text_no_folds_are_made() -> None:
    said, setting = metrics.tfidf_predictions((["good film", "bad night"], [1, 0]), None, ["good"])
    assert said == [1] and setting["C"] == 1.0 and "cross_validation_accuracy" not in setting, "nobody measured it"


@pytest.mark.parametrize(
    ("texts", "labels", "expected", "setting"),
    [
        (["good film", "bad night"], [1, 0], [1, 0], {"terms": 6, "terms_in": "one text or more: no two share a term"}),
        (["good", "bad", "bad"], [1, 1, 1], [1, 1], {"majority_class_instead": "the training labels are of one class"}),
        (["!", "?", "..."], [0, 1, 1], [1, 1], {"majority_class_instead": "no training text has a term"}),
    ],
)
def test_the_baseline_learns_from_however_little_there_is_or_says_the_majority_class(
    texts: list[str], labels: list[int], expected: list[int], setting: dict[str, Any]
) -> None:
    """Few labels, or a small file of one's own: no two texts that share a word, or labels of one class."""
    asked = (["a good film", "bad"], [1, 0], ["a", "b"])
    found = metrics.baselines((texts, labels), (["good"], [1]), asked, classes=2)["tfidf_logistic_regression"]
    assert setting.items() <= found.items()  # report.json says it
    assert found["predicted"] == expected


def test_predictions_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="3 labels and 2 predictions"):
        metrics.confusion([0, 1, 1], [0, 1], 2)


def test_unigram_of_even_bytes_costs_their_entropy() -> None:
    even = np.array([3.0, 3.0, 3.0, 3.0])
    nats = language_modelling.unigram_nats(even, np.array([1.0, 1.0, 0.0, 2.0]))
    assert language_modelling.bits_per_byte(nats, 4) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="empty"):
        language_modelling.bits_per_byte(0.0, 0)


def write_shards(root: Path, split: str, documents: list[str]) -> tuple[Path, Path]:
    """A text and a token shard whose tokens are bytes, 256 is EOT; returns both manifests."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": documents}), root / f"{split}.parquet")
    rows = pa.array([[*document.encode(), 256] for document in documents], type=pa.large_list(pa.uint16()))
    batch = pa.record_batch({"tokens": rows})
    with pa.OSFile(str(root / f"{split}.arrow"), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    sizes = {"documents": len(documents), "bytes": sum(len(document.encode()) for document in documents)}
    text = {"schema": 1, "kind": "text_shards", "units": [{"path": f"{split}.parquet", **sizes}]}
    tokens = {"schema": 1, "kind": "token_shards", "vocab_size": 257, "units": [{"path": f"{split}.arrow", **sizes}]}
    durable.write_json(root / f"{split}-text.json", text)
    durable.write_json(root / f"{split}-tokens.json", tokens)
    return root / f"{split}-text.json", root / f"{split}-tokens.json"


def test_baselines_of_held_out_text_stand_on_one_scale(tmp_path: Path) -> None:
    train = write_shards(tmp_path, "train", ["the cat sat on the mat. " * 40, "a dog."])
    heldout = write_shards(tmp_path, "heldout", ["the dog sat on the cat. " * 40, "é"])
    manifests = ({"train": train[which], "heldout": heldout[which]} for which in (0, 1))
    found = language_modelling.baselines(tmp_path, *manifests)
    assert found["bytes"] == 40 * 24 + 2 == found["compressed_bytes"]
    assert 0 < found["gzip"] < found["byte_unigram"] < 8
    assert found["token_unigram"] == pytest.approx(found["byte_unigram"], rel=0.05)
    assert json.loads(json.dumps(found)) == found


def test_the_majority_class_is_that_of_the_training_labels() -> None:
    train = (["a good film", "a good night", "a bad film"], [1, 1, 0])
    found = metrics.baselines(train, None, (["x", "y", "z", "w"], [0, 0, 0, 1], list("abcd")), classes=2)
    assert found["majority"]["accuracy"] == 0.25


def test_short_praise_that_many_films_share_joins_no_two_of_them(tmp_path: Path) -> None:
    praise = [("fresh", text, film) for film in FILMS[:2] for text in ("Nice work.", "Good fun.", "A delight!")]
    prepared = sentiment.prepare([write_reviews(tmp_path, [*invented_rows(), *praise])])
    assert prepared.report["names_of_one_film"] == {}
