"""Records as a table: JSON lines, CSV or Parquet, each written from a journal and read again."""

from __future__ import annotations

import csv
import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from regard.apps.journal import cannot_write, read_journal
from regard.errors import ConfigError, MissingExtraError, RegardError

Rows = Iterable[Mapping[str, Any]]

ENDINGS = (".jsonl", ".csv", ".parquet")
"""What a file of records may end in."""

COLUMNS = (
    "path", "caption", "alt_text", "error", "reason", "width", "height", "size", "modified",
    "machine_made", "reviewed", "by", "path_base64",
)  # fmt: skip
"""Of CSV; Parquet has ``words`` as well. What a record lacks is empty there, null in Parquet."""

_GROUP = 4096


def load_pyarrow(feature: str) -> tuple[Any, Any]:
    """The packages pyarrow and pyarrow.parquet.

    Raises:
        MissingExtraError: they are not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError(feature, "parquet") from error


def check_ending(out: Path) -> None:
    """Refuse a file that records cannot be written to.

    Raises:
        ConfigError: its ending is of no table.
        MissingExtraError: it is Parquet, and pyarrow is not installed.
    """
    if out.suffix.lower() not in ENDINGS:
        raise ConfigError(
            f"--out {out} ends in {out.suffix or 'nothing'}. Records are written to a file that "
            f"ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}. Give one of these."
        )
    if out.suffix.lower() == ".parquet":
        load_pyarrow("writing Parquet")


def check_table(out: Path) -> None:
    """Refuse to write CSV or Parquet in the place of a file that no run wrote.

    Raises:
        ConfigError: there is such a file, without the journal that a run's table has beside it.
    """
    if out.exists() and not journal_of(out).exists():
        raise ConfigError(
            f"{out} exists, and the records it would be written from do not: {journal_of(out)} is "
            "not there. It is left as it is. Give another file, or delete this one."
        )


def journal_of(out: Path) -> Path:
    """The journal of a table: the file itself, or for CSV and Parquet a file beside it."""
    return out if out.suffix.lower() == ".jsonl" else out.with_name(out.name + ".jsonl")


def write_table(journal: Path, out: Path) -> None:
    """Write CSV or Parquet anew from the records of a journal, beside its place, then renamed.

    Raises:
        RegardError: it cannot be written.
    """
    write = {".csv": _write_csv, ".parquet": _write_parquet}[out.suffix.lower()]
    beside = out.with_name(out.name + ".new")
    try:
        write(read_journal(journal), beside)
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise cannot_write(out, error) from error


def parts_of(file: Path) -> list[Path]:
    """The files of a table: itself, or the shards in a folder; none if it is no table."""
    if file.is_dir():
        return sorted(file.glob("[!.]*.parquet"))
    return [file] if file.suffix.lower() in ENDINGS else []


def read_table(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a table, or of all shards in a folder, as far as it has columns for them.

    Raises:
        ConfigError: it is no table of records.
        MissingExtraError: it is Parquet, and pyarrow is not installed.
        RegardError: it cannot be read.
    """
    kind = file.suffix.lower()
    if file.is_dir():
        for part in parts_of(file):
            yield from read_table(part)
        return
    if kind == ".jsonl":
        yield from read_journal(file)
        return
    if kind not in ENDINGS:
        raise ConfigError(
            f"{file} ends in {kind or 'nothing'}. Captions are read from {', '.join(ENDINGS)}."
        )
    try:
        yield from _read_csv(file) if kind == ".csv" else _read_parquet(file)
    except OSError as error:
        raise RegardError(f"{file} cannot be read: {error}. Check the path.") from error
    except (ValueError, csv.Error) as error:
        raise ConfigError(
            f"{file} is no table of captions: {error}. Give a file that `regard caption --out` "
            "wrote."
        ) from error


def parquet_schema() -> Any:
    """The columns of records in Parquet."""
    pa, _ = load_pyarrow("writing Parquet")
    types = {
        "width": pa.int32(), "height": pa.int32(), "size": pa.int64(), "modified": pa.int64(),
        "machine_made": pa.bool_(), "reviewed": pa.bool_(),
    }  # fmt: skip
    word = pa.struct([("word", pa.string()), ("log_probability", pa.float32())])
    return pa.schema(
        [(name, types.get(name, pa.string())) for name in COLUMNS] + [("words", pa.list_(word))]
    )


def parquet_table(rows: Rows) -> Any:
    """Records as a table of :func:`parquet_schema`."""
    pa, _ = load_pyarrow("writing Parquet")
    return pa.Table.from_pylist(list(rows), parquet_schema())


def _write_csv(rows: Rows, file: Path) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _read_csv(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield _checked({k: v for k, v in row.items() if k and v})


def _write_parquet(rows: Rows, file: Path) -> None:
    _, parquet = load_pyarrow("writing Parquet")
    waiting = iter(rows)
    with parquet.ParquetWriter(file, parquet_schema()) as writer:
        while group := list(islice(waiting, _GROUP)):
            writer.write_table(parquet_table(group))


def _read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    _, parquet = load_pyarrow("reading Parquet")
    with parquet.ParquetFile(file) as opened:
        for batch in opened.iter_batches(_GROUP):
            for row in batch.to_pylist():
                yield _checked({k: v for k, v in row.items() if v is not None})


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    if "path" not in row or not ("caption" in row or "error" in row):
        raise ValueError("it has a row without a path, or without a caption and an error")
    return row
