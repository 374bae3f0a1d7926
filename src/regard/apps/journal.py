"""The records of a run, a line each in a file that survives a kill at any moment.

Lines are only added, some at a time, and are on the disk before anything is done that depends on
them. A line that was being written when the machine stopped is cut off by the next run. Where a
photo has several records the last one counts; the others are taken out when the file is opened and
when it is closed, by a new file that takes its place.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from regard.apps.hashes import find
from regard.apps.names import path_key
from regard.apps.records import from_line, path_of, state_of, to_line
from regard.errors import ConfigError, RegardError


@dataclass(frozen=True, slots=True)
class Known:
    """What a journal says of a photo."""

    state: int
    """From :func:`regard.apps.records.state_of`."""
    offset: int
    """Where its record begins, in bytes."""


class Journal:
    """A file of records. One process at a time has it open; to be closed when all is written.

    Args:
        file: made with its folders if it is not there.
        read_only: the file is there, and nothing is changed.

    Raises:
        ConfigError: the file holds something else, or another process has it open.
        RegardError: it cannot be written.
    """

    def __init__(self, file: Path, *, read_only: bool = False) -> None:
        self.file = file
        self._superseded = self._size = 0
        self._read_only = read_only
        try:
            if read_only:
                self._descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = _opened(file)
        except OSError as error:
            raise cannot_write(file, error) from error
        self._stream = file.open("rb")
        try:
            self._read()
            if self._superseded and not read_only:
                self._tidy()
                self._read()
        except RegardError:
            self._let_go()
            raise

    def find(self, key: int) -> Known | None:
        """What it said of a photo when it was opened, by :func:`regard.apps.names.path_key`."""
        place = find(self._keys, key)
        if place is None:
            return None
        return Known(int(self._states[place]), int(self._offsets[place]))

    def read(self, known: Known) -> dict[str, Any]:
        """The record itself."""
        return self.at(known.offset)

    def at(self, offset: int) -> dict[str, Any]:
        """The record that begins there."""
        return record_at(self._stream, offset)

    def places(self) -> list[int]:
        """Where the records begin that counted when it was opened, in their order."""
        places: list[int] = np.sort(self._offsets).tolist()
        return places

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add records; they are on the disk when this returns.

        Raises:
            RegardError: they cannot be written. Those that were added before are as they were.
        """
        lines = []
        for made in records:
            lines.append(to_line(made))
            self._superseded += self.find(path_key(path_of(made))) is not None
        left = memoryview(b"".join(lines))
        size = self._size + len(left)
        try:
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            while left:  # a disk that is nearly full takes a part
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise cannot_write(self.file, error) from error
        self._size = size

    def close(self) -> None:
        """Take out what is superseded and let go of the file."""
        try:
            if self._superseded and not self._read_only:
                self._read()  # what was added too
                self._tidy()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._stream.close()
        os.close(self._descriptor)

    def _read(self) -> None:
        """Learn what is there; cut off a last line that is not whole."""
        keys, states, offsets = array("Q"), array("Q"), array("Q")
        whole = 0
        with self.file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    made = from_line(line)
                    if not line.endswith(b"\n"):
                        raise ValueError("a record is a whole line")
                except ValueError as error:
                    if stream.read(1):
                        raise _no_records(self.file, number) from error
                    if not keys and line.endswith(b"\n"):
                        raise _no_records(self.file, number) from error
                    break
                keys.append(path_key(path_of(made)))
                states.append(state_of(made))
                offsets.append(whole)
                whole += len(line)
        if os.fstat(self._descriptor).st_size != whole and not self._read_only:
            os.ftruncate(self._descriptor, whole)
        self._size = whole
        arrays = [np.frombuffer(a, np.uint64) for a in (keys, states, offsets)]
        order = np.argsort(arrays[0], kind="stable")
        ordered = arrays[0][order]
        last = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]
        self._keys, self._states, self._offsets = (a[order[last]] for a in arrays)
        self._superseded = len(ordered) - len(self._keys)

    def _tidy(self) -> None:
        """A new file of each photo's last record, in place of this one and as firmly ours."""
        beside = self.file.with_name(self.file.name + ".new")
        try:
            descriptor = _opened(beside)
            os.ftruncate(descriptor, 0)
            with (
                self.file.open("rb") as old,
                open(os.dup(descriptor), "wb") as new,  # noqa: PTH123 - of a descriptor
            ):
                for offset in self.places():
                    old.seek(offset)
                    new.write(old.readline())
                new.flush()
                os.fsync(descriptor)
            beside.replace(self.file)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise cannot_write(beside, error) from error
        os.close(self._descriptor)
        self._stream.close()
        self._descriptor, self._stream = descriptor, self.file.open("rb")
        self._superseded = 0


def record_at(stream: BinaryIO, offset: int) -> dict[str, Any]:
    """The record that begins there in an open file of records."""
    stream.seek(offset)
    return from_line(stream.readline())


def read_journal(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, in their order; a last line that is not whole is left out.

    Raises:
        ConfigError: it holds something else.
        RegardError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield from_line(line)
                except ValueError as error:
                    if line.endswith(b"\n"):
                        raise _no_records(file, number) from error
    except OSError as error:
        raise RegardError(
            f"{file} cannot be read: {error.strerror or error}. Check the path."
        ) from error


def cannot_write(file: Path, error: OSError) -> RegardError:
    """What is said where something that a run makes cannot be written."""
    return RegardError(
        f"{error.filename or file} cannot be written: {error.strerror or error}. What was finished "
        "is kept. Make room or give a place that can be written to, then run the same command "
        "again: it goes on from there."
    )


def _opened(file: Path) -> int:
    """A file to read and write that no other process has."""
    import fcntl

    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            f"{file} is being written by another process. Wait for it, or give another file."
        ) from error
    except OSError:  # a file system without locks
        pass
    return descriptor


def _no_records(file: Path, number: int) -> ConfigError:
    return ConfigError(
        f"{file} exists, and line {number} is no record of a photo's caption. It is left as it is. "
        "Give another file, or delete this one."
    )
