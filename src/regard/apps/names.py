"""Which photos are meant: files, folders, globs and lists, one name at a time, each once.

Nothing here grows with the number of photos but eight bytes for each: a folder of millions is
walked in chunks. Names are what the system calls files: bytes that are no UTF-8 are kept in them
by Python's surrogates.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from regard.apps.hashes import Hashes, hash_of
from regard.errors import PhotoError, RegardError

ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm .avif .heic "
    ".heif".split()
)
"""What names of photos end in, within a folder; a file that is named itself may have any name."""

STANDARD_INPUT = "-"

_CHUNK = 10_000
_BLOCK = 1 << 16
_MAGIC = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Named:
    """A photo that is meant, and how it was when it was found."""

    path: str
    """As it was given, or below a folder as that was given."""
    size: int = -1
    """In bytes; -1 if the file could not be asked."""
    modified: int = -1
    """When it was last written, in nanoseconds since 1970; -1 if the file could not be asked."""
    problem: PhotoError | None = None
    """Why it can be no photo, where that is known already."""

    @property
    def key(self) -> int:
        """The hash of where it is, whatever the spelling."""
        return path_key(self.path)


class Photos:
    """The photos that arguments and lists name; to be gone through any number of times.

    Within a folder and those below it, what ends as a photo does is one; names that begin with a
    dot are left out, folders too. A link to a folder is followed once everything else has been
    seen, unless its photos have been seen already.

    Args:
        given: files, folders and globs (``**`` is any number of folders); ``-`` is a list from
            standard input, which can be read once.
        lists: files of such names, one a line, or each ended by a null byte.
        apart: folders of pictures that a run makes, which are no photos: they are not gone into,
            wherever they are.
    """

    def __init__(
        self, given: Sequence[str], lists: Sequence[Path] = (), *, apart: Sequence[Path] = ()
    ) -> None:
        self.given = given
        self.lists = lists
        self.apart = apart

    @property
    def countable(self) -> bool:
        """Whether they can be gone through twice: what comes from a pipe cannot."""
        return STANDARD_INPUT not in self.given and not any(map(_is_pipe, self.lists))

    @property
    def single(self) -> bool:
        """Whether one file alone is named."""
        return not self.lists and len(self.given) == 1 and not _is_many(self.given[0])

    def __iter__(self) -> Iterator[Named]:
        """Each photo once, whatever it is named by.

        Raises:
            RegardError: a list cannot be read.
        """
        return photos_named(self.names(), apart=self.apart)

    def names(self) -> Iterator[str]:
        """Every name that is given, in arguments and lists.

        Raises:
            RegardError: a list cannot be read.
        """
        for name in self.given:
            if name == STANDARD_INPUT:
                yield from read_list(sys.stdin.buffer)
            else:
                yield name
        for file in self.lists:
            try:
                with file.open("rb") as stream:
                    yield from read_list(stream)
            except OSError as error:
                raise RegardError(
                    f"The list {file} cannot be read: {error.strerror or error}. It is a file of "
                    "names of photos, one a line. Check the path."
                ) from error


def photos_named(
    names: Iterable[str], *, apart: Sequence[Path] = (), endings: frozenset[str] = ENDINGS
) -> Iterator[Named]:
    """Each photo that is meant once, whatever it is named by; see :class:`Photos`.

    Args:
        names: files, folders and globs.
        apart: folders that are not gone into.
        endings: what is taken from folders.
    """
    seen = Hashes()
    way = _Way(apart, endings)
    for name in names:
        for photo in way.meant(name):
            if seen.add(photo.key):
                yield photo


def is_url(name: str) -> bool:
    """Whether a name is of a file system that is not this machine's."""
    return "://" in name


def path_key(path: str) -> int:
    """The hash of where a path leads from here, links apart."""
    if is_url(path):
        return hash_of(path)
    return hash_of(os.path.abspath(path))  # noqa: PTH100 - links are not followed


def read_list(stream: BinaryIO) -> Iterator[str]:
    """The names in a list: one a line; or, if its first block has a null byte, ended by those.

    The second is what ``find -print0`` writes, for names with line breaks in them.
    """
    block = os.read(stream.fileno(), _BLOCK)
    between = b"\0" if b"\0" in block else b"\n"
    rest = b""
    while block:
        *names, rest = (rest + block).split(between)
        yield from filter(None, map(_name, names))
        block = os.read(stream.fileno(), _BLOCK)
    if name := _name(rest):
        yield name


def _name(raw: bytes) -> str:
    return os.fsdecode(raw.removesuffix(b"\r"))


def _is_many(name: str) -> bool:
    return name == STANDARD_INPUT or not _MAGIC.isdisjoint(name) or _is_folder(name)


def _is_folder(path: str) -> bool:
    """Whether it is, as far as can be told: not of what is too long or lies in a closed folder."""
    return os.path.isdir(path)  # noqa: PTH112 - that of a Path raises


def _is_pipe(file: Path) -> bool:
    return file.exists() and not file.is_file()


class _Way:
    """The way through folders, which remembers those it has been in.

    Args:
        apart: folders that it does not go into.
        endings: of what it takes from folders.
    """

    def __init__(self, apart: Sequence[Path], endings: frozenset[str]) -> None:
        self._apart, self._endings = apart, endings
        self._entered: set[tuple[int, int]] = set()

    def meant(self, name: str) -> Iterator[Named]:
        """What one name means. A glob that nothing matches is left as a file that is not there."""
        matches: Iterable[str] = (name,)
        if not _MAGIC.isdisjoint(name) and not os.path.lexists(name):
            root, *parts = _split(name)
            expanded = self._expand(root, parts)
            if (first := next(expanded, None)) is not None:
                yield from self._file_or_folder(first)
                matches = expanded
        for match in matches:
            yield from self._file_or_folder(match)

    def _file_or_folder(self, path: str) -> Iterator[Named]:
        if _is_folder(path):
            yield from self._walk(path)
        else:
            yield _asked(path)

    def _walk(self, root: str) -> Iterator[Named]:
        """The photos below a folder: those of a folder before those of the folders in it."""
        folders: list[str] = [root]
        links: list[str] = []
        while folders or links:
            linked = not folders
            folder = links.pop(0) if linked else folders.pop()
            below: list[str] = []
            try:
                identity = _identity(folder)
                if self._is_apart(identity) or (linked and identity in self._entered):
                    continue
                self._entered.add(identity)
                for entry in _entries(folder):
                    ending = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                    if entry.is_dir(follow_symlinks=False):
                        below.append(entry.path)
                        if ending in self._endings:
                            yield Named(entry.path, problem=_folder_by_a_photos_name(entry.path))
                    elif entry.is_symlink() and _is_folder(entry.path):
                        if _leads_back(entry.path):
                            yield Named(entry.path, problem=_link_loop(entry.path))
                        else:
                            links.append(entry.path)
                    elif ending in self._endings:
                        yield _asked(entry.path)
                    elif not ending and entry.is_symlink() and (error := _denied(entry.path)):
                        yield Named(entry.path, problem=_closed_folder(entry.path, error))
            except OSError as error:
                yield Named(folder, problem=_closed_folder(folder, error))
            folders.extend(reversed(below))

    def _expand(self, root: str, parts: Sequence[str]) -> Iterator[str]:
        """What parts of a glob match below a folder, which ends in a separator or is ``""``."""
        part, *rest = parts
        try:
            if self._is_apart(_identity(root or ".")):
                return
            entries = list(_entries(root or "."))
        except OSError:
            return
        if part == "**":
            if not rest:
                yield root or "."
                return
            yield from self._expand(root, rest)
        for entry in entries:
            path = root + entry.name
            if part == "**":
                if entry.is_dir(follow_symlinks=False):
                    yield from self._expand(path + os.sep, parts)
            elif fnmatchcase(entry.name, part):
                if not rest:
                    yield path
                elif _is_folder(path):
                    yield from self._expand(path + os.sep, rest)

    def _is_apart(self, identity: tuple[int, int]) -> bool:
        return any(_is_folder(str(f)) and _identity(str(f)) == identity for f in self._apart)


def _asked(path: str) -> Named:
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path for each of a million files is half the time
    except (OSError, ValueError):
        return Named(path)  # opening it will say why
    return Named(path, found.st_size, found.st_mtime_ns)


def _denied(path: str) -> PermissionError | None:
    """Why it may not even be asked what is there."""
    try:
        Path(path).stat()
    except PermissionError as error:
        return error
    except OSError:
        pass
    return None


def _identity(folder: str) -> tuple[int, int]:
    known = Path(folder).stat()
    return known.st_dev, known.st_ino


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, by name: all of it up to some thousands, then chunk by chunk."""
    with os.scandir(folder) as entries:
        while chunk := sorted(islice(entries, _CHUNK), key=lambda entry: entry.name):
            yield from (entry for entry in chunk if not entry.name.startswith("."))


def _leads_back(link: str) -> bool:
    """Whether a link leads to a folder that it lies in."""
    here = os.path.realpath(os.path.dirname(link) or ".")  # noqa: PTH120
    there = os.path.realpath(link)
    return os.path.commonpath([here, there]) == there


def _split(pattern: str) -> list[str]:
    """A glob's folder without any magic, then its other parts."""
    parts = pattern.split(os.sep)  # noqa: PTH206 - a Path loses what the name began with
    first = next(i for i, part in enumerate(parts) if not _MAGIC.isdisjoint(part))
    root = os.sep.join(parts[:first])  # noqa: PTH118
    return [root + os.sep if first else "", *filter(None, parts[first:])]


def _folder_by_a_photos_name(path: str) -> PhotoError:
    return PhotoError(
        f"{path} is a folder, though its name ends as a photo's. A photo is a file. What lies in "
        "it is captioned as well; give it another name to hear of it no more.",
        "a folder",
    )


def _link_loop(path: str) -> PhotoError:
    return PhotoError(
        f"{path} is a link to a folder that it lies in itself. Its photos are captioned where they "
        "are. Delete the link to hear of it no more.",
        "link loop",
    )


def _closed_folder(path: str, error: OSError) -> PhotoError:
    return PhotoError(
        f"The folder {path} cannot be read: {error.strerror or error}. Its photos need permission "
        f'for it. Try: chmod u+rx "{path}"',
        "not permitted" if isinstance(error, PermissionError) else "unreadable",
    )
