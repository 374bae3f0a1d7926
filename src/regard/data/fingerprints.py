"""Fingerprints: photos known by their content, and a memory that saves reading them again."""

import hashlib
import itertools
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def content_hash(content: bytes) -> str:
    """A hash of 32 hexadecimal digits that only equal contents share."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fingerprint_photos(
    photos: Sequence[Path], *, memory: Path, threads: ThreadPoolExecutor
) -> tuple[dict[str, str], dict[str, str]]:
    """The hash of each photo's content, remembered for as long as the file does not change.

    Args:
        photos: the files.
        memory: a file of lines of JSON that this function reads and extends; it need not exist.
        threads: where the files are read.

    Returns:
        The fingerprint of each absolute path; and for photos that cannot be read, the reason.
    """
    remembered = _read(memory)
    started = time.time_ns()

    def look(path: str) -> tuple[_Entry | None, str]:
        try:
            status = Path(path).stat()
            state = (path, status.st_size, status.st_mtime_ns)
            known = remembered.get(state)
            return (*state, known or content_hash(Path(path).read_bytes())), ""
        except OSError as error:
            return None, f"{path}: {error.strerror}"

    fingerprints: dict[str, str] = {}
    failures: dict[str, str] = {}
    paths = (str(photo.absolute()) for photo in photos)
    # Some at a time: what waits for a thread takes more memory than what is known of a photo.
    while some := list(itertools.islice(paths, _AT_ONCE)):
        learned: list[_Entry] = []
        for path, (entry, failure) in zip(some, threads.map(look, some), strict=True):
            if entry is None:
                failures[path] = failure
                continue
            fingerprints[path] = entry[3]
            # A file of this very moment could change again without a new time of change.
            if entry[:3] not in remembered and started - entry[2] > _SETTLED_NS:
                learned.append(entry)
        if learned:
            _extend(memory, learned)
    return fingerprints, failures


_Entry = tuple[str, int, int, str]  # absolute path, bytes, time of change, fingerprint
_AT_ONCE = 4096
_SETTLED_NS = 2_000_000_000  # the coarsest clock of a file system in use ticks every two seconds


def _read(memory: Path) -> dict[tuple[str, int, int], str]:
    """Fingerprints by path, size and time of change; lines torn by a kill are passed over."""
    entries: dict[tuple[str, int, int], str] = {}
    if not memory.exists():
        return entries
    for line in memory.read_bytes().splitlines():
        try:
            match json.loads(line):
                case [str(path), int(size), int(changed), str(fingerprint)]:
                    entries[path, size, changed] = fingerprint
        except ValueError:
            continue
    return entries


def _extend(memory: Path, learned: list[_Entry]) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(entry) + "\n" for entry in learned)
    # The line break in front closes a line that a killed process may have left open. Appended
    # unbuffered and in one call, so that processes do not write into each other's lines.
    with memory.open("ab", buffering=0) as file:
        file.write(b"\n" + lines.encode())
