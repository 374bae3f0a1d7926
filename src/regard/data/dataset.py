"""A data set: photos, their captions, their split; from any layout that people have.

>>> dataset = read_dataset(Path("flickr8k"))
>>> [len(dataset.split(name)) for name in ("train", "val", "test")]
[6000, 1000, 1000]
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from regard.data.layouts import (
    PHOTO_FOLDERS,
    SPLITS,
    NamedBox,
    Problem,
    Row,
    find_layout,
)
from regard.errors import DataError

SHOWN = 5
"""Missing photos that an error lists."""


@dataclass(frozen=True)
class Photo:
    """A photo and what people said about it.

    Attributes:
        id: its path in the data set; unique.
        path: its file.
        captions: as written, one or more.
        split: ``train``, ``val``, ``test``, or empty for a photo that the source's splits leave
            out.
        boxes: named objects, in drawn scenes.
    """

    id: str
    path: Path
    captions: tuple[str, ...]
    split: str
    boxes: tuple[NamedBox, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Photos with captions.

    Attributes:
        name: of the folder or file.
        layout: one of :data:`regard.data.layouts.LAYOUTS`, by name.
        root: folder that photos are relative to.
        photos: in the order of the source.
        problems: rows that were repaired or left out.
        split_source: where the splits come from, for people.
    """

    name: str
    layout: str
    root: Path
    photos: tuple[Photo, ...]
    problems: tuple[Problem, ...]
    split_source: str

    def split(self, name: str) -> tuple[Photo, ...]:
        """The photos of a split.

        Args:
            name: ``train``, ``val`` (or ``dev``), ``test``, or ``all``.

        Raises:
            DataError: there is no such split, or it is empty.
        """
        if name != "all" and name not in SPLITS:
            raise DataError(f"There is no split {name!r}. Splits: train, val (or dev), test, all.")
        photos = tuple(p for p in self.photos if name == "all" or p.split == SPLITS[name])
        if not photos:
            counts = Counter(p.split or "in no split" for p in self.photos)
            there = ", ".join(f"{split} {n}" for split, n in counts.items())
            raise DataError(
                f"{self.name} ({self.layout}) has no photos for {name!r}; it has: {there}. "
                "Take another split, or another of its files."
            )
        return photos


def read_dataset(
    path: Path,
    *,
    layout: str | None = None,
    images: Path | None = None,
    allow_missing: bool = False,
    seed: int = 0,
) -> Dataset:
    """Read a data set.

    Args:
        path: its folder or its file of captions.
        layout: its layout, if the detection is wrong.
        images: folder of the photos, if they are elsewhere.
        allow_missing: leave out photos that are not there, as problems, instead of raising.
        seed: of the splits, 80/10/10 by photo, where the source has none.

    Raises:
        DataError: no known layout, no good row, or missing photos.
    """
    path = Path(path)
    if images is not None and not images.is_dir():
        raise DataError(f"There is no folder {images} (--images). Give the folder of the photos.")
    found, files, root = find_layout(path, layout)
    problems: list[Problem] = []
    gathered = _gather(found.read(files, root), problems)
    if not any(g.captions for g in gathered.values()):
        first = "".join(f"\n  {p.where}: {p.detail}" for p in problems[:SHOWN])
        raise DataError(
            f"{path}, read as {found.name}, holds no caption. Expected {found.what}; --format "
            f"takes another layout.{first}"
        )
    folders = _folders(images, root, files, found.folders)
    paths = {name: _locate(name, folders) for name in gathered}
    missing = [name for name, there in paths.items() if there is None]
    _judge_missing(missing, len(gathered), folders, path, allow_missing)
    problems += (Problem("missing photo", name, "is in no folder of photos") for name in missing)
    splits, source = _splits(gathered, seed)
    photos = tuple(
        Photo(name, there, tuple(g.captions), splits[name], g.boxes)
        for name, g in gathered.items()
        if (there := paths[name]) is not None and g.captions
    )
    return Dataset(path.resolve().name, found.name, root, photos, tuple(problems), source)


@dataclass
class _Gathered:
    """What the rows say about one photo."""

    captions: list[str] = field(default_factory=list)
    split: str | None = None
    boxes: tuple[NamedBox, ...] = ()


def _gather(rows: Iterable[Row | Problem], problems: list[Problem]) -> dict[str, _Gathered]:
    """Group rows by photo; what cannot be used goes to ``problems``."""
    photos: dict[str, _Gathered] = {}
    seen: dict[str, str] = {}
    for row in rows:
        if isinstance(row, Problem):
            problems.append(row)
            continue
        photo = photos.setdefault(row.photo, _Gathered(boxes=row.boxes))
        problems.extend(_note_split(photo, row))
        if row.key is not None and seen.setdefault(row.key, row.where) != row.where:
            problems.append(
                Problem("duplicate id", row.where, f"{row.key} stands in {seen[row.key]} already")
            )
        elif row.caption is None:
            problems.append(Problem("no caption", row.where, f"{row.photo} has no caption"))
        elif not (caption := " ".join(row.caption.split())):
            problems.append(
                Problem("empty caption", row.where, f"a caption of {row.photo} is empty")
            )
        else:
            if "\ufffd" in caption:
                problems.append(
                    Problem("repaired row", row.where, "letters that are not UTF-8 were replaced")
                )
            photo.captions.append(caption)
    return photos


def _note_split(photo: _Gathered, row: Row) -> Iterator[Problem]:
    if row.split is None:
        return
    written = row.split.strip().lower()
    split = SPLITS.get(written, "")
    if written and not split:
        yield Problem("split", row.where, f"{row.split!r} is no split; {row.photo} is in none")
    if photo.split is None:
        photo.split = split
    elif photo.split != split:
        yield Problem(
            "split", row.where, f"{row.photo} is in {photo.split!r} already, not also in {split!r}"
        )


def _folders(
    images: Path | None, root: Path, files: Sequence[Path], usual: Sequence[str]
) -> list[Path]:
    """Where photos may be, the likely places first."""
    if images is not None:
        return [images]
    bases = dict.fromkeys(
        [root, *(f.parent for f in files[:10]), *(f.parent.parent for f in files[:1])]
    )
    folders = []
    for base in bases:
        folders.append(base)
        for name in dict.fromkeys((*usual, *PHOTO_FOLDERS)):
            # Kaggle's archives hold a folder in a folder of the same name.
            folders += [f for f in (base / name, base / name / name) if f.is_dir()]
    return list(dict.fromkeys(folders))


def _locate(name: str, folders: list[Path]) -> Path | None:
    """The file of a photo. Its folder moves to the front: the next photo is there too."""
    names = (name, Path(name).name) if "/" in name else (name,)
    for wanted in names:
        for i, folder in enumerate(folders):
            if (folder / wanted).is_file():
                if i:
                    folders.insert(0, folders.pop(i))
                return folder / wanted
    return None


def _judge_missing(
    missing: Sequence[str], total: int, folders: Sequence[Path], path: Path, allowed: bool
) -> None:
    if not missing or (allowed and len(missing) < total):
        return
    shown = "".join(f"\n  {name}" for name in missing[:SHOWN])
    more = f"\n  and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    looked = ", ".join(str(folder) for folder in folders[:4])
    way = "" if len(missing) == total else ", or leave them out with --allow-missing"
    raise DataError(
        f"{len(missing)} of {total} photos of {path} are missing:{shown}{more}\n"
        f"Looked in {looked}. Say where they are with --images FOLDER{way}."
    )


def _splits(photos: dict[str, _Gathered], seed: int) -> tuple[dict[str, str], str]:
    """The split of each photo, and where the splits come from."""
    if any(photo.split is not None for photo in photos.values()):
        return {name: photo.split or "" for name, photo in photos.items()}, "the data set's own"
    # By hash, so that neither the order of the rows nor the number of captions matters.
    order = sorted(photos, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    tenth = max(1, round(len(order) / 10)) if len(order) > 2 else 0
    splits = dict.fromkeys(order, "train")
    splits |= dict.fromkeys(order[:tenth], "val") | dict.fromkeys(order[tenth : 2 * tenth], "test")
    return splits, f"80/10/10 by photo, seed {seed}"
