"""Word vectors: every format gives the same, in little memory; damaged files say so."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from regard.errors import DataError
from regard.text.vectors import read_vectors

WORDS = ["the", "dog", "Paris", "New York", "café", "犬", "ball"]
TABLE = np.random.default_rng(0).normal(size=(len(WORDS), 5)).astype("<f4")


def binary(newlines: bool = False) -> bytes:
    body = b"".join(
        w.replace(" ", "_").encode() + b" " + v.tobytes() + (b"\n" if newlines else b"")
        for w, v in zip(WORDS, TABLE, strict=True)
    )
    return b"%d 5\n" % len(WORDS) + body


def text(header: bool) -> bytes:
    lines = [
        f"{w} " + " ".join(map(repr, map(float, v))) for w, v in zip(WORDS, TABLE, strict=True)
    ]
    return ((f"{len(WORDS)} 5\n" if header else "") + "\n".join(lines) + "\n").encode()


KINDS = {
    "word2vec binary": binary(),
    "word2vec binary with newlines": binary(newlines=True),
    "word2vec text": text(header=True),
    "GloVe text": text(header=False),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same(kind, packed, tmp_path):
    file = tmp_path / "vectors"
    file.write_bytes(gzip.compress(KINDS[kind]) if packed else KINDS[kind])
    found = read_vectors(file, ["dog", "café", "犬", "paris", "zebra"])
    assert found.width == 5
    assert set(found.vectors) == {"dog", "café", "犬", "paris"}
    for word, row in (("dog", 1), ("paris", 2), ("café", 4), ("犬", 5)):
        np.testing.assert_array_equal(found.vectors[word], TABLE[row])
        assert found.vectors[word].dtype == np.float32
    assert found.other_case == {"paris"}
    assert found.coverage(["dog", "zebra"]) == 0.5


def test_its_own_spelling_comes_before_another_case(tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_text("Dog 1 1\ndog 2 2\nDOG 3 3\n")
    assert read_vectors(file, ["dog"]).vectors["dog"].tolist() == [2, 2]
    assert read_vectors(file, ["dOg"]).vectors["dOg"].tolist() == [1, 1]


def test_no_known_word_still_tells_the_width(tmp_path):
    for content in KINDS.values():
        (tmp_path / "v").write_bytes(content)
        found = read_vectors(tmp_path / "v", ["zebra"])
        assert (found.width, found.vectors) == (5, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (binary()[:-3], "cut off"),
        (binary()[:60], "cut off"),
        (gzip.compress(binary())[:-9], "cannot be read"),
        (b"", "empty"),
        (b"hello\n", "'hello'"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "no word vectors"),
        (b"dog 1 2 3\ncat 1 x 3\n", "line 2"),
        (b"dog 1 2 3\ncat 1 2\n", "line 2"),
        (b"3 0\nabc", "0 wide"),
    ],
)
def test_damaged_files_say_so(content, message, tmp_path):
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_vectors(tmp_path / "v", ["dog", "cat", "ball"])


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_vectors(tmp_path / "none.bin", ["dog"])
    with pytest.raises(DataError, match="cannot be read"):
        read_vectors(tmp_path, ["dog"])


def test_a_large_file_is_streamed(tmp_path):
    """200 MB of vectors, and a process that may not use as much."""
    file = tmp_path / "large.bin"
    count, width = 170_000, 300
    body = np.zeros((10_000, width), "<f4")
    with file.open("wb") as out:
        out.write(b"%d %d\n" % (count, width))
        for start in range(0, count, len(body)):
            out.write(b"".join(b"w%d " % (start + i) + v.tobytes() for i, v in enumerate(body)))
    assert file.stat().st_size > 200_000_000
    code = (
        "import resource, sys; from pathlib import Path; from regard.text.vectors import "
        "read_vectors\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "v = read_vectors(Path(sys.argv[1]), [f'w{i}' for i in range(5000)])\n"
        "print(len(v.vectors), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, file], capture_output=True, text=True, check=True
    )
    kept, kilobytes = map(int, done.stdout.split())
    assert kept == 5000
    assert kilobytes < 60_000


def test_the_google_news_vectors(shared):
    found = read_vectors(
        Path(shared / "data" / "word2vec" / "google-news-1000.bin"), ["dog", "man", "paris", "zqx"]
    )
    assert found.width == 300
    assert set(found.vectors) == {"dog", "man", "paris"}
    for vector in found.vectors.values():
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
