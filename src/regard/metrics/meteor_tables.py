"""The English tables of METEOR 1.5, read from where pycocoevalcap keeps them.

Function words, abbreviations and synonyms (WordNet 3.0) stand in the program's archive,
paraphrases in a file beside it. Nothing of them is copied into this package.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from regard.errors import MissingExtraError

LONGEST_PHRASE = 7
"""Words in the longest phrase of the paraphrase table."""


@dataclass(frozen=True)
class Tables:
    """What METEOR knows of English words, but for paraphrases."""

    function_words: frozenset[str]
    abbreviations: Mapping[str, bool]
    """Words that keep the full stop after them; true for those that do only before a number."""
    bases: Mapping[str, list[str]]
    """Irregular forms, and the words that they are forms of."""
    synsets: Mapping[str, str]
    """Words, and the numbers of the sets of synonyms that each belongs to, with spaces between."""


def read_tables() -> Tables:
    """Read all but the paraphrases.

    Raises:
        MissingExtraError: pycocoevalcap is not installed.
    """
    with zipfile.ZipFile(_find("meteor-1.5.jar")) as archive:
        words = _lines(archive, "function/english.words")
        prefixes = _lines(archive, "nonbreaking/english.prefixes")
        exceptions = _lines(archive, "synonym/english.exceptions")
        synsets = _lines(archive, "synonym/english.synsets")
    bases: dict[str, list[str]] = {}
    for base, forms in _pairs(exceptions):
        for form in forms.split():
            bases.setdefault(form, []).append(base)
    return Tables(
        function_words=frozenset(words),
        abbreviations={
            line.split()[0]: "#NUMERIC_ONLY#" in line
            for line in prefixes
            if line.strip() and not line.startswith("#")
        },
        bases=bases,
        synsets=dict(_pairs(synsets)),
    )


def read_paraphrases(phrases: Iterable[str]) -> dict[str, list[str]]:
    """What each phrase may be said as, in the order of the table.

    The table has five million pairs, and captions use a thousandth of them: it is read as a stream
    of bytes, and only the pairs with both phrases among those given become strings.

    Args:
        phrases: words with one space between, at most ``LONGEST_PHRASE``.

    Raises:
        MissingExtraError: pycocoevalcap is not installed.
    """
    lines = {f"{phrase}\n".encode() for phrase in phrases}
    found: dict[str, list[str]] = {}
    with gzip.open(_find("data/paraphrase-en.gz")) as table:
        # GzipFile reads lines one by one in Python, a BufferedReader around it does not.
        stream = io.BufferedReader(table, 1 << 20)
        for _probability, phrase, other in zip(stream, stream, stream, strict=True):
            if phrase in lines and other in lines:
                found.setdefault(phrase[:-1].decode(), []).append(other[:-1].decode())
    return found


def _find(name: str) -> Path:
    """A file of METEOR in pycocoevalcap, which is found but not imported."""
    package = find_spec("pycocoevalcap")
    for folder in (package and package.submodule_search_locations) or ():
        if (path := Path(folder, "meteor", name)).is_file():
            return path
    raise MissingExtraError("METEOR", "meteor")


def _lines(archive: zipfile.ZipFile, name: str) -> list[str]:
    return archive.read(name).decode().splitlines()


def _pairs(lines: list[str]) -> Iterable[tuple[str, str]]:
    """Lines 1 and 2, lines 3 and 4, and so on."""
    return zip(lines[::2], lines[1::2], strict=True)
