"""What Debian's package lists say of each package: description (in several languages), section, source package.

The one idea: apt-get fetches and verifies the lists into a folder of ours; the machine's own lists are not touched. The
lists of a day are the data of that day: nothing here is pinned, what came is known by its digest.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.sample_conversions import SampleUnavailable

_CAT = "/usr/lib/apt/apt-helper"  # unpacks a list, however apt keeps it


def descriptions(languages: Sequence[str], scratch: Path) -> bytes:
    """JSON lines {"package", "source", "section", "text", <language>...}, one for each description, by package name.

    `text` is the English description; packages that lack one of the other languages lack its field.
    SampleUnavailable where there is no apt-get, or it cannot fetch.
    """
    lists = _fetched(languages, scratch)
    texts = {language: _texts(lists, language) for language in languages}
    found: dict[str, dict[str, str]] = {}
    for stanza in (stanza for path in lists if "_Packages" in path.name for stanza in _stanzas(_unpacked(path))):
        key = stanza.get("Description-md5", "")
        if key in texts["en"] and "Section" in stanza and key not in found:
            found[key] = {
                "package": stanza["Package"],
                "source": stanza.get("Source", stanza["Package"]).split(" ")[0],
                "section": stanza["Section"].rpartition("/")[2],  # contrib/net is net
                "text": texts["en"][key],
            } | {
                language: texts[language][key] for language in languages if language != "en" and key in texts[language]
            }
    rows = sorted(found.values(), key=lambda row: (row["package"], row["text"]))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _fetched(languages: Sequence[str], scratch: Path) -> list[Path]:
    """The lists, as apt keeps them, sorted by name."""
    if not shutil.which("apt-get") or not Path(_CAT).exists():
        raise SampleUnavailable(
            "Debian's package lists are fetched by apt-get, and there is none on this machine; run on Debian or Ubuntu, or "
            "choose another recipe (topics needs pip only)"
        )
    packed = scratch / "packed"
    (packed / "partial").mkdir(parents=True)
    command = ["apt-get", "-qq", "update", "-o", f"Dir::State::lists={packed}", "-o", "APT::Sandbox::User="]
    command += ["-o", f"Acquire::Languages={','.join(languages)}", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    found = [path for path in sorted(packed.iterdir()) if "_Packages" in path.name or "_Translation-" in path.name]
    if done.returncode or not any("_Packages" in path.name for path in found):
        raise SampleUnavailable(
            f"apt-get could not fetch Debian's package lists. Is the mirror reachable? It said:\n{done.stderr[-2000:]}"
        )
    return found


def _texts(lists: Sequence[Path], language: str) -> dict[str, str]:
    """The descriptions in a language, by the MD5 of the English one, which is how Debian joins them."""
    return {
        stanza["Description-md5"]: _flowing(stanza[f"Description-{language}"])
        for path in lists
        if f"_Translation-{language}." in f"{path.name}."
        for stanza in _stanzas(_unpacked(path))
        if f"Description-{language}" in stanza
    }


def _unpacked(path: Path) -> str:
    return subprocess.run([_CAT, "cat-file", str(path)], capture_output=True, check=True).stdout.decode("utf-8")


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """The stanzas of a text in Debian's control format; a field that goes over several lines keeps their ends."""
    stanza: dict[str, str] = {}
    name = ""
    for line in text.split("\n"):
        if line.startswith(" "):
            stanza[name] += "\n" + line
        elif line:
            name, _, value = line.partition(":")
            stanza[name] = value.strip()
        elif stanza:
            yield stanza
            stanza = {}
    if stanza:
        yield stanza


def _flowing(description: str) -> str:
    """A description as text: its first line, then its paragraphs, each on one line; lists keep their lines."""
    short, *lines = description.split("\n")
    text = short
    flows = False  # whether the next line goes on with this one
    for line in lines:
        verbatim = line.startswith("  ")
        if line.strip() == ".":
            text += "\n"
            flows = False
        else:
            text += (" " if flows and not verbatim else "\n") + line.strip()
            flows = not verbatim
    return text
