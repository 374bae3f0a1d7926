"""Files that are never seen half written, and are known by their hash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regard.errors import RegardError


def write_whole(
    path: Path, *content: bytes | memoryview, firmly: bool = True, beside: Path | None = None
) -> None:
    """Write a file of these parts that is never seen half written, whatever happens.

    Args:
        path: the file; its folder is there.
        content: the parts.
        firmly: whether it is waited for to be on the disk.
        beside: what it is called until it is whole; none is a name that no other process takes.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    temporary = beside or path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in content:
                file.write(part)
            if firmly:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON: beside their place, then renamed; folders are made as needed.

    Raises:
        RegardError: the place cannot be written to.
    """
    beside = file.with_name(file.name + ".new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", "utf-8")
        beside.replace(file)
    except OSError as error:
        raise RegardError(
            f"{file} cannot be written: {error.strerror or error}. Give a place that can be "
            "written to."
        ) from error


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its place once all of it is written."""
    beside, old = (folder.with_name(folder.name + ending) for ending in (".new", ".old"))
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    yield beside
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    beside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def hash_file(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
