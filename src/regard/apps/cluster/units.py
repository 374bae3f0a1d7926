"""Units of work: some photos that one worker captions together, wherever the photos are.

A unit is named by the hash of what it is made of, so that it is known again in a later run. Photos
that are named one by one are divided where the hash of a name says so, not after every so many: a
photo that comes or goes changes the unit that it is in and no other.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.core import url_to_fs

from regard.apps.hashes import hash_of
from regard.apps.names import ENDINGS, Named, Photos, is_url, photos_named
from regard.apps.tables import load_pyarrow
from regard.errors import ConfigError, PhotoError

TAR, PARQUET = ".tar", ".parquet"
"""What the name of a file with photos in it ends in."""

PATH_COLUMNS = ("path", "url", "file_name", "image_path")
BYTES_COLUMNS = ("image", "bytes", "jpg", "jpeg", "png", "webp")
"""Columns of a Parquet file that photos are taken from: their names, or the photos themselves."""

_LARGEST = 4
"""Times the usual size that a unit may have."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Some photos."""

    id: str
    """The hash of what they are, and how they were when they were found."""
    photos: tuple[Named, ...] = ()
    """Named one by one."""
    archive: str = ""
    """Or a tar or Parquet file that holds them: a path or a URL."""
    group: int = -1
    """Of a Parquet file the group of rows."""
    count: int | None = None
    """How many they are, where that is known."""


Photo = tuple[Named, str | BinaryIO | PhotoError]
"""Its name, and what opens as it: a path, its content, or why there is none."""


def find_units(
    given: Sequence[str], lists: Sequence[Path] = (), *, size: int, by: str = ""
) -> Iterator[Unit]:
    """Divide photos into units, always in the same way.

    Args:
        given: photos, folders, globs and lists as :class:`regard.apps.names.Photos` takes them;
            URLs of photos and folders; and tar and Parquet files with photos in them.
        lists: files of such names.
        size: photos of a unit, about; at most four times as many. A tar is one unit, and so is a
            group of rows of a Parquet file.
        by: what a unit's name depends on beside its photos.

    Raises:
        ConfigError: a Parquet file has no column of photos, or a URL cannot be read.
    """
    named: list[Named] = []
    for photo in _expanded(given, lists):
        if isinstance(photo, Unit):
            yield replace(photo, id=_id(by, photo.id))
            continue
        named.append(photo)
        if photo.key % size == 0 or len(named) >= _LARGEST * size:
            yield _unit(named, by)
            named = []
    if named:
        yield _unit(named, by)


def photos_of(unit: Unit) -> Iterator[Photo]:
    """The photos of a unit, in their order, read one at a time.

    Raises:
        ConfigError: its file cannot be read any more.
    """
    if unit.archive.endswith(TAR):
        yield from _from_tar(unit.archive)
    elif unit.archive:
        yield from _from_parquet(unit.archive, unit.group)
    else:
        for photo in unit.photos:
            yield photo, photo.problem or (_fetch(photo.path) if is_url(photo.path) else photo.path)


def _id(*parts: object) -> str:
    return f"{hash_of(*map(str, parts)):016x}"


def _unit(named: list[Named], by: str) -> Unit:
    known = [(p.path, p.size, p.modified, str(p.problem or "")) for p in named]
    return Unit(_id(by, known), tuple(named), count=len(named))


def _expanded(given: Sequence[str], lists: Sequence[Path]) -> Iterator[Named | Unit]:
    """Photos that are named, and units of files that hold photos; ``id`` is not theirs yet."""
    urls: list[str] = []

    def local() -> Iterator[str]:
        for name in Photos(given, lists).names():
            if is_url(name):
                urls.append(name)
            else:
                yield name

    for photo in photos_named(local(), endings=ENDINGS | {TAR}):
        yield from _known(photo)
    for url in dict.fromkeys(urls):
        yield from _below(url)


def _known(photo: Named) -> Iterator[Named | Unit]:
    """A photo, or the units of a file that holds photos."""
    if photo.problem is None and photo.path.endswith(TAR):
        yield Unit(_state(photo.path), archive=photo.path)
    elif photo.problem is None and photo.path.endswith(PARQUET):
        yield from _groups(photo.path)
    else:
        yield photo


# --- file systems -----------------------------------------------------------------------------


def open_url(name: str) -> BinaryIO:
    """A file to read, by its path or URL.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        opened: BinaryIO = fsspec.open(name, "rb").open()
    except Exception as error:  # each file system has errors of its own
        raise _unreadable(name, error) from error
    return opened


def _state(name: str) -> str:
    """What changes when a file does: its name, its size, and when it was written or its tag."""
    try:
        system, path = url_to_fs(name)
        known = system.info(path)
    except Exception as error:
        raise _unreadable(name, error) from error
    return _id(name, *(known.get(x) for x in ("size", "mtime", "ETag", "etag", "LastModified")))


def _below(url: str) -> Iterator[Named | Unit]:
    """The photos below a URL that is a folder's, or the photo that it is."""
    try:
        system, root = url_to_fs(url)
        found = system.find(root, detail=True)
    except Exception as error:
        raise _unreadable(url, error) from error
    if set(found) == {root}:
        yield from _known(Named(url, int(found[root].get("size") or 0)))
        return
    scheme = url.partition("://")[0]
    if not found:
        yield Named(url, problem=PhotoError(f"{url} does not exist, or is empty.", "missing"))
    for path in sorted(found):
        below = posixpath.relpath(path, root).split("/")
        ending = posixpath.splitext(path)[1].lower()
        if any(part.startswith(".") for part in below):
            continue
        name = path if is_url(path) else f"{scheme}://{path}"
        if ending in ENDINGS or ending == TAR:
            yield from _known(Named(name, int(found[path].get("size") or 0)))


def _fetch(url: str) -> BinaryIO | PhotoError:
    try:
        with fsspec.open(url, "rb") as stream:
            return _content(url, stream.read())
    except FileNotFoundError:
        return PhotoError(f"{url} does not exist. Check the spelling.", "missing")
    except Exception as error:
        return PhotoError(f"{url} cannot be read: {error}. Check the network and the rights to it.")


def _content(name: str, content: bytes) -> BinaryIO:
    """A photo's bytes as a file of that name, which messages give."""
    stream = io.BytesIO(content)
    stream.name = name
    return stream


def _unreadable(name: str, error: Exception) -> ConfigError:
    missing = isinstance(error, FileNotFoundError)
    why = "does not exist" if missing else f"cannot be read: {error or type(error).__name__}"
    return ConfigError(
        f"{name} {why}. Photos are read from files, folders and the URLs of fsspec, some of which "
        "need a package such as s3fs or gcsfs. Check the name and the rights to it."
    )


# --- files with photos in them ------------------------------------------------------------------


def _from_tar(name: str) -> Iterator[Photo]:
    """The photos of a tar, one after another as they lie in it; of WebDataset's samples too."""
    with open_url(name) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    parts = member.name.split("/")
                    hidden = any(p.startswith(".") and p not in (".", "..") for p in parts)
                    ending = posixpath.splitext(member.name)[1].lower()
                    if member.isfile() and ending in ENDINGS and not hidden:
                        inner = f"{name}/{member.name.removeprefix('./')}"
                        photo = Named(inner, member.size, int(member.mtime * 1e9))
                        file = tar.extractfile(member)
                        assert file is not None
                        yield photo, _content(inner, file.read())
        except (tarfile.TarError, OSError, EOFError) as error:
            # The photos before the damage are captioned; the rest is one failure that says so.
            yield (
                Named(name),
                PhotoError(f"{name} is damaged: {error}. What lies behind is lost.", "damaged"),
            )


def _groups(name: str) -> Iterator[Unit]:
    """A unit for each group of rows of a Parquet file."""
    _, parquet = load_pyarrow("reading Parquet")
    with open_url(name) as stream:
        try:
            opened = parquet.ParquetFile(stream)
            _photo_column(name, opened.schema_arrow.names)
            sizes = [
                opened.metadata.row_group(i).num_rows for i in range(opened.metadata.num_row_groups)
            ]
        except (OSError, ValueError) as error:
            raise ConfigError(f"{name} is no Parquet file: {error}. Give another.") from error
    state = _state(name)
    for group, count in enumerate(sizes):
        yield Unit(_id(state, group), archive=name, group=group, count=count)


def _from_parquet(name: str, group: int) -> Iterator[Photo]:
    """The photos of a group of rows: named by a column, or held by one."""
    _, parquet = load_pyarrow("reading Parquet")
    with open_url(name) as stream:
        opened = parquet.ParquetFile(stream)
        column = _photo_column(name, opened.schema_arrow.names)
        table = opened.read_row_group(group)
    named = next((c for c in PATH_COLUMNS if c in table.column_names), None)
    for i, value in enumerate(table.column(column)):
        photo = value.as_py()
        own = table.column(named)[i].as_py() if named else None
        if isinstance(photo, dict):  # as the hub's data sets have photos
            own, photo = photo.get("path") or own, photo.get("bytes")
        inner = f"{name}/{group}/{i}" + (f"/{own}" if own else "")
        if isinstance(photo, bytes):
            yield Named(inner, len(photo)), _content(inner, photo)
        elif isinstance(photo, str) and column in PATH_COLUMNS:
            if is_url(photo):
                yield Named(photo), _fetch(photo)
            else:
                yield from ((own, own.problem or own.path) for own in photos_named([photo]))
        else:
            problem = PhotoError(f"{inner} holds no photo, but {photo!r:.40}.", "not a photo")
            yield Named(inner), problem


def _photo_column(name: str, columns: Iterable[Any]) -> str:
    for known in (*BYTES_COLUMNS, *PATH_COLUMNS):
        if known in columns:
            return known
    raise ConfigError(
        f"{name} has no column of photos: it has {', '.join(map(str, columns))}. Photos are taken "
        f"from {', '.join(BYTES_COLUMNS)} (their bytes), or by the names in "
        f"{', '.join(PATH_COLUMNS)}. Rename a column."
    )
