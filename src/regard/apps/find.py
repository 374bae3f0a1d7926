"""Full-text search over records of captions, by SQLite's FTS5 in a file beside them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.apps.hashes import hash_of
from regard.apps.journal import Journal, record_at
from regard.apps.tables import ENDINGS, parts_of, read_table
from regard.errors import ConfigError, RegardError
from regard.text.tokenise import tokenise

_FORMAT = "1"
_BATCH = 1000

_PLAIN = frozenset(
    "a an the of in on at to by with and or is are was were be being it its his her their there "
    "this that these those from into over under as for".split()
)
"""Words that are in most captions: they are not looked for where others are."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found, the best first."""

    records: list[dict[str, Any]]
    """Of the photos, at most as many as were asked for."""
    whole: bool
    """Whether they have all the words that were looked for; else each has some."""
    count: int
    """How many there are in all."""


def find_captions(query: str, file: Path, *, limit: int = 20) -> Found:
    """The photos whose captions, alternative texts or names have the words of a query.

    A word is found in its other forms too (dog, dogs; run, running). The order is that of BM25.
    The index is made anew when the file has changed.

    Args:
        query: in plain words.
        file: records of ``regard caption --out``: JSON lines, CSV or Parquet, or a folder of
            shards.
        limit: photos at most, at least 1.

    Raises:
        ConfigError: the query has no word, or the file is no such table.
        RegardError: the file cannot be read, or this Python's SQLite has no FTS5.
    """
    words = [word for word in tokenise(query) if any(letter.isalnum() for letter in word)]
    if not words:
        raise ConfigError(f"The query is {query!r}. Give a word or several, such as: dog beach")
    sought = [word for word in words if word not in _PLAIN] or words
    with closing(_indexed(file)) as index:
        quoted = ['"' + word.replace('"', '""') + '"' for word in sought]
        for joint in (" AND ", " OR "):
            match = joint.join(quoted)
            (count,) = index.execute(
                "SELECT count(*) FROM captions WHERE captions MATCH ?", (match,)
            ).fetchone()
            if count:
                rows = index.execute(
                    "SELECT record FROM captions WHERE captions MATCH ? "
                    "ORDER BY bm25(captions), rowid LIMIT ?",
                    (match, limit),
                ).fetchall()
                return Found([*_read(file, rows)], joint == " AND ", count)
    return Found([], True, 0)


def _read(file: Path, rows: list[tuple[int | str]]) -> Iterator[dict[str, Any]]:
    """The records: as JSON, or by where they begin in the file."""
    if file.suffix.lower() == ".jsonl":
        with file.open("rb") as stream:
            yield from (record_at(stream, int(place)) for (place,) in rows)
    else:
        yield from (json.loads(str(made)) for (made,) in rows)


def _indexed(file: Path) -> sqlite3.Connection:
    try:
        parts = parts_of(file)
        if not parts:
            raise ConfigError(
                f"{file} is no file of captions. Give one that `regard caption --out` wrote, with "
                f"the ending {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, or a folder of shards."
            )
        known = [(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    except OSError as error:
        raise RegardError(
            f"{file} cannot be read: {error.strerror or error}. Caption photos first: "
            f"regard caption PHOTOS --out {file}"
        ) from error
    state = f"{_FORMAT} {hash_of(str(known)):016x}"
    beside = file.with_name(f"{file.name}.index")
    with suppress(sqlite3.Error):
        if beside.is_file():
            index = sqlite3.connect(f"{beside.absolute().as_uri()}?mode=ro", uri=True)
            with suppress(sqlite3.Error):
                if index.execute("SELECT state FROM source").fetchone() == (state,):
                    return index
            index.close()
    new = beside.with_name(beside.name + ".new")
    try:
        new.unlink(missing_ok=True)
        with closing(sqlite3.connect(new)) as index:
            _fill(index, file, state)
        new.replace(beside)
        return sqlite3.connect(beside)
    except (OSError, sqlite3.OperationalError):  # where nothing can be written, for this once
        with suppress(OSError):
            new.unlink(missing_ok=True)
        index = sqlite3.connect(":memory:")
        _fill(index, file, state)
        return index


def _fill(index: sqlite3.Connection, file: Path, state: str) -> None:
    try:
        index.execute(
            "CREATE VIRTUAL TABLE captions USING fts5(caption, alt_text, name, record UNINDEXED, "
            "tokenize = 'porter unicode61')"
        )
    except sqlite3.OperationalError as error:
        if "fts5" not in str(error):
            raise
        raise RegardError(
            "The SQLite of this Python has no FTS5, which searches texts. Install a Python that "
            "has it."
        ) from error
    rows = []
    for made, place in _records(file):
        if "error" in made:
            continue
        rows.append((made["caption"], made.get("alt_text", ""), Path(made["path"]).name, place))
        if len(rows) == _BATCH:
            index.executemany("INSERT INTO captions VALUES (?, ?, ?, ?)", rows)
            rows.clear()
    index.executemany("INSERT INTO captions VALUES (?, ?, ?, ?)", rows)
    index.execute("CREATE TABLE source (state TEXT)")
    index.execute("INSERT INTO source VALUES (?)", (state,))
    index.commit()


def _records(file: Path) -> Iterator[tuple[Mapping[str, Any], int | str]]:
    """Each record with its place in the file, or where it has none with its JSON."""
    if file.suffix.lower() == ".jsonl":
        with closing(Journal(file, read_only=True)) as journal:
            yield from ((journal.at(place), place) for place in journal.places())
    else:
        yield from ((made, json.dumps(made, ensure_ascii=False)) for made in read_table(file))
