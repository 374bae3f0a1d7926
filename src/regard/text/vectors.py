"""Word vectors from the files that people have: word2vec binary and text, GloVe text, gzip of them.

The Google News file is 3.6 GB and holds three million words, a captioner knows a few thousand: the
file is streamed once, and only the vectors of the words that are asked for are kept.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from regard.errors import DataError

CHUNK = 1 << 22
"""Bytes read at a time."""

LONGEST_WORD = 10_000
"""Bytes of a word; more of them without a space mean that the file holds something else."""

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class WordVectors:
    """The vectors of some words.

    Attributes:
        width: E, numbers of a vector.
        vectors: by word; each ``(E,)``, float32.
        other_case: the words whose vector was written under another case (``paris`` found as
            ``Paris``).
    """

    width: int
    vectors: dict[str, Vector]
    other_case: frozenset[str]

    def coverage(self, words: Collection[str]) -> float:
        """The share of some words that have a vector, 0 to 1."""
        return sum(word in self.vectors for word in words) / max(1, len(words))


def read_vectors(path: Path, words: Collection[str]) -> WordVectors:
    """Read the vectors of some words from a file.

    A word takes the vector under its own spelling; where there is none, that of the first entry
    which differs from it in case alone (captions are in small letters, the Google News file has
    ``Frisbee``).

    Args:
        path: word2vec binary or text, GloVe text, or any of them compressed by gzip; told apart by
            content.
        words: the words to keep.

    Raises:
        DataError: the file is missing, cut off, or holds no word vectors.
    """
    wanted = {word: word for word in words}
    folded = {word.casefold(): word for word in words}
    exact: dict[str, Vector] = {}
    cased: dict[str, Vector] = {}
    width = 0
    try:
        with _opened(path) as file:
            for word, vector in _entries(file, path, wanted.keys() | folded.keys()):
                width = vector.size
                if word in wanted:
                    exact.setdefault(word, vector)
                elif (small := folded.get(word.casefold())) is not None:
                    cased.setdefault(small, vector)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"The word vectors {path} cannot be read: {error}. Give --embeddings a word2vec or "
            "GloVe file."
        ) from error
    others = {word: vector for word, vector in cased.items() if word not in exact}
    return WordVectors(width, exact | others, frozenset(others))


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if compressed:
        return io.BufferedReader(gzip.GzipFile(path, "rb"), CHUNK)
    return path.open("rb", buffering=CHUNK)


def _entries(file: BinaryIO, path: Path, known: Collection[str]) -> Iterator[tuple[str, Vector]]:
    """Each word whose small letters are known, with its vector; the last entry in any case."""
    first = file.readline(LONGEST_WORD + 30 * 5000)
    parts = first.split()
    if len(parts) == 2 and all(part.isdigit() for part in parts):
        count, width = map(int, parts)
        if not 0 < width < 10_000:
            raise _no_vectors(path, f"its first line says that vectors are {width} wide")
        start = file.read(CHUNK)
        if _is_text(start, width):
            yield from _text(_Pushed(start, file), path, known, width, first_line=2)
        else:
            yield from _binary(_Pushed(start, file), path, known, count, width)
        return
    width = len(first.rstrip(b" \r\n").split(b" ")) - 1
    if width < 2 or not first.endswith(b"\n"):
        shown = first[:40].decode("utf-8", "replace").strip()
        raise _no_vectors(path, f"it begins with {shown!r}" if shown else "it is empty")
    yield from _text(_Pushed(first, file), path, known, width, first_line=1)


def _is_text(start: bytes, width: int) -> bool:
    """Whether what follows the header is a line of one word and ``width`` numbers."""
    line, end, _ = start.partition(b"\n")
    parts = line.rstrip(b" \r").split(b" ")
    if not end or len(parts) != width + 1:
        return False
    try:
        float(parts[1]), float(parts[-1])
    except ValueError:
        return False
    return True


def _binary(
    file: _Pushed, path: Path, known: Collection[str], count: int, width: int
) -> Iterator[tuple[str, Vector]]:
    """Entries of the binary format: word, space, little-endian float32, at times a newline."""
    size = 4 * width
    left, place = file.read(CHUNK), 0
    for i in range(count):
        space = left.find(b" ", place)
        while space < 0 or len(left) < space + 1 + size:
            more = file.read(CHUNK)
            if not more:
                raise DataError(
                    f"The word vectors {path} end after {i} of {count} words: the file is cut "
                    "off. Fetch it again."
                )
            left, place = left[place:] + more, 0
            space = left.find(b" ", place)
            if space < 0 and len(left) > LONGEST_WORD:
                raise _no_vectors(path, f"no word follows the vector of word {i}")
        word = left[place:space].lstrip(b"\n").decode("utf-8", "replace")
        place = space + 1 + size
        if i == count - 1 or word.casefold() in known or word in known:
            yield word, np.frombuffer(left, "<f4", width, space + 1).astype(np.float32)


def _text(
    file: _Pushed, path: Path, known: Collection[str], width: int, *, first_line: int
) -> Iterator[tuple[str, Vector]]:
    """Entries of word2vec's and GloVe's text format: a line of a word and its numbers.

    A word may hold spaces (GloVe's ``. . .``): the last ``width`` columns are the numbers.
    """
    last: tuple[str, Vector] | None = None
    for number, line in enumerate(file, first_line):
        line = line.rstrip(b" \r\n")
        if not line:
            continue
        word = line.split(b" ", 1)[0].decode("utf-8", "replace")
        if last is not None and word.casefold() not in known and word not in known:
            continue
        parts = line.rsplit(b" ", width)
        try:
            vector = np.array(parts[1:], dtype=np.float32)
        except ValueError:
            vector = np.empty(0, np.float32)
        if vector.size != width or not line[: len(parts[0])].strip():
            raise _no_vectors(
                path,
                f"line {number} does not hold a word and {width} numbers as the lines before it do",
            )
        last = (parts[0].decode("utf-8", "replace"), vector)
        yield last


class _Pushed:
    """A file with some bytes given back in front of it."""

    def __init__(self, start: bytes, file: BinaryIO) -> None:
        self._start, self._file = start, file

    def read(self, size: int) -> bytes:
        if self._start:
            start, self._start = self._start, b""
            return start
        return self._file.read(size)

    def __iter__(self) -> Iterator[bytes]:
        lines = io.BytesIO(self._start).readlines()
        if lines and not lines[-1].endswith(b"\n"):
            lines[-1] += self._file.readline()
        yield from lines
        yield from self._file


def _no_vectors(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} holds no word vectors: {why}. Give --embeddings a file of word2vec (binary or "
        "text) or GloVe, as it is or compressed by gzip."
    )
