"""The layouts in which people have photos with captions: which files each has, and how they read.

A layout turns its files into :class:`Row` and :class:`Problem`, one by one; what is the same for
all of them (grouping by photo, finding the photos, splits) is in :mod:`regard.data.dataset`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from regard.errors import DataError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings by which photos are told from other files; opening decides what a file holds."""

SPLITS = {
    "train": "train", "training": "train", "restval": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""The names of splits that people write, and ours. Karpathy's ``restval`` is trained on."""

IMAGE_COLUMNS = ("image", "file_name", "filename", "image_path", "path", "photo")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence", "sentences")


class NamedBox(NamedTuple):
    """A named object in a photo; left, top, right, bottom in pixels, right and bottom outside."""

    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Row:
    """One caption of one photo, as a file has it.

    Attributes:
        photo: the photo's path, relative to the data set's root or to one of its folders of photos.
        caption: as written; ``None`` if the source names the photo without one.
        where: file and line.
        split: as written, ``None`` if the source does not say.
        key: what the source identifies the caption by; the second of equals is left out.
        boxes: named objects, where the source has them.
    """

    photo: str
    caption: str | None
    where: str
    split: str | None = None
    key: str | None = None
    boxes: tuple[NamedBox, ...] = ()


@dataclass(frozen=True)
class Problem:
    """One row that was repaired or left out.

    Attributes:
        kind: ``missing photo``, ``bad row``, ``repaired row``, ``duplicate id``, ``empty caption``,
            ``no caption`` or ``split``.
        where: file and line, or the photo.
        detail: what is wrong.
    """

    kind: str
    where: str
    detail: str


Rows = Iterator[Row | Problem]


@dataclass(frozen=True)
class Layout:
    """One way of keeping captions.

    Attributes:
        name: as in ``--format``.
        what: what a person would recognise it by.
        files: its files in a folder; none if the folder has another layout.
        fits: whether a single file is one of its files.
        read: rows and problems of its files; the second argument is the data set's root.
        folders: where its photos usually are.
    """

    name: str
    what: str
    files: Callable[[Path], Sequence[Path]]
    fits: Callable[[Path], bool]
    read: Callable[[Sequence[Path], Path], Rows]
    folders: tuple[str, ...] = ()


def find_layout(path: Path, name: str | None = None) -> tuple[Layout, Sequence[Path], Path]:
    """The layout of a folder or file, its files, and the root that photos are relative to.

    Args:
        path: what the person gave.
        name: the layout, if the person says.

    Raises:
        DataError: there is nothing, or nothing that any layout knows.
    """
    if not path.exists():
        raise DataError(
            f"There is no {path}. Give the folder of a data set, or its file of captions."
        )
    known = {layout.name: layout for layout in LAYOUTS}
    if name is not None and name not in known:
        raise DataError(f"There is no layout {name!r}. Layouts: {', '.join(known)}.")
    root = path if path.is_dir() else path.parent
    for layout in LAYOUTS if name is None else [known[name]]:
        if path.is_dir():
            files = layout.files(path)
        else:
            files = [path] if name is not None or layout.fits(path) else []
        if files:
            return layout, files, root
    if name is not None:
        raise DataError(f"{path} does not look like {name}: expected {known[name].what}.")
    expected = "".join(f"\n  {layout.name}: {layout.what}" for layout in LAYOUTS)
    raise DataError(
        f"{path} holds no captions in a known layout. Give a folder or file of one of these "
        f"(--format NAME if it is named otherwise):{expected}"
    )


def layouts_in(folder: Path) -> list[str]:
    """The names of all layouts that a folder holds."""
    names = []
    for layout in LAYOUTS:
        with suppress(DataError):
            if layout.files(folder):
                names.append(layout.name)
    return names


# -------------------------------------------------------------------------------------------------
# Reading


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file with something in them, and their places; bad bytes replaced."""
    with file.open(encoding="utf-8-sig", errors="replace", newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            line = line.rstrip("\r\n")
            if line.strip():
                yield f"{file.name}:{number}", line


def _table(file: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file, the header too, each with its place."""
    csv.field_size_limit(1 << 24)
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        rows = csv.reader((line.replace("\0", "") for line in stream), delimiter=delimiter)
        place = 1
        for row in rows:
            if any(cell.strip() for cell in row):
                yield f"{file.name}:{place}", row
            place = rows.line_num + 1


def _header(file: Path, delimiter: str) -> list[str]:
    """The names of a table's columns, in small letters; none if the file is no text."""
    try:
        with file.open("rb") as stream:
            first = stream.readline(1 << 16).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return []
    row = next(csv.reader(io.StringIO(first), delimiter=delimiter), [])
    return [cell.strip().lower() for cell in row]


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not JSON: {error}. Fetch it again.") from error


def _begins(file: Path, size: int = 1 << 16) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(size).decode("utf-8-sig", "replace")
    except OSError:
        return ""


def _first(names: Iterable[str], columns: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _in(*patterns: str) -> Callable[[Path], Sequence[Path]]:
    """Files of a folder by the first pattern that finds any."""

    def find(folder: Path) -> Sequence[Path]:
        for pattern in patterns:
            if files := sorted(f for f in folder.glob(pattern) if f.is_file()):
                return files
        return ()

    return find


# -------------------------------------------------------------------------------------------------
# Flickr8k and Flickr30k: a line a caption, "photo.jpg#0<tab>caption"


def _read_token(files: Sequence[Path], root: Path) -> Rows:
    splits = _flickr8k_splits([files[0].parent, root])
    listed = set()
    for file in files:
        for where, line in _lines(file):
            name, tab, caption = line.partition("\t")
            photo, mark, number = name.partition("#")
            if not (tab and mark and photo.strip() and number.strip().isdigit()):
                yield Problem("bad row", where, f"{line[:80]!r} is not PHOTO#NUMBER<tab>CAPTION")
                continue
            photo = photo.strip()
            # A row of the original Flickr8k file is named 2258277193_586949ec62.jpg.1.
            if repaired := re.fullmatch(r"(.+\.jpg)\.\d+", photo, re.IGNORECASE):
                yield Problem("repaired row", where, f"{photo!r} read as {repaired[1]!r}")
                photo = repaired[1]
            listed.add(photo)
            key = f"{photo}#{number.strip()}"
            yield Row(photo, caption, where, splits.get(photo, "") if splits else None, key)
    for photo, split in splits.items():
        if photo not in listed:
            yield Problem("no caption", photo, f"listed for {split}, but no caption names it")


def _flickr8k_splits(folders: Sequence[Path]) -> dict[str, str]:
    """Photos of the lists ``Flickr_8k.trainImages.txt`` and so on, by split."""
    splits: dict[str, str] = {}
    for split in ("train", "dev", "test"):
        for folder in folders:
            file = folder / f"Flickr_8k.{split}Images.txt"
            if file.is_file():
                splits |= {line.strip(): split for _, line in _lines(file)}
                break
    return splits


def _is_token(file: Path) -> bool:
    first = _begins(file).partition("\n")[0]
    return re.match(r"[^\t#]+#\d+\t", first) is not None


def _is_flickr30k_token(file: Path) -> bool:
    return file.name.startswith("results") and _is_token(file)


# Kaggle's Flickr8k: "image,caption"; captions with a comma stand in quotes, or not.


def _read_kaggle8k(files: Sequence[Path], root: Path) -> Rows:
    splits = _flickr8k_splits([files[0].parent, root])
    for where, line in list(_lines(files[0]))[1:]:
        photo, comma, caption = line.partition(",")
        if not comma or not photo.strip():
            yield Problem("bad row", where, f"{line[:80]!r} is not IMAGE,CAPTION")
            continue
        caption = caption.strip()
        if len(caption) > 1 and caption[0] == caption[-1] == '"':
            caption = caption[1:-1].replace('""', '"')
        photo = photo.strip()
        yield Row(photo, caption, where, splits.get(photo, "") if splits else None)


def _kaggle8k_files(folder: Path) -> Sequence[Path]:
    return [f for f in _in("captions.txt")(folder) if _is_kaggle8k(f)]


def _is_kaggle8k(file: Path) -> bool:
    return file.name == "captions.txt" and _header(file, ",") == ["image", "caption"]


# Kaggle's Flickr30k: "image_name| comment_number| comment"


def _read_kaggle30k(files: Sequence[Path], root: Path) -> Rows:
    for where, line in list(_lines(files[0]))[1:]:
        parts = line.split("|", 2)
        photo = parts[0].strip()
        # The known row of 2199200615.jpg: "| 4   A dog runs across the grass ."
        if len(parts) == 2 and (found := re.fullmatch(r"\s*(\d+)\s+(\S.*)", parts[1])):
            yield Problem(
                "repaired row", where, f"{photo} has no separator between number and caption"
            )
            parts = [photo, found[1], found[2]]
        if len(parts) != 3 or not photo or not parts[1].strip().isdigit():
            yield Problem("bad row", where, f"{line[:80]!r} is not IMAGE| NUMBER| CAPTION")
            continue
        yield Row(photo, parts[2], where, key=f"{photo}#{parts[1].strip()}")


def _is_kaggle30k(file: Path) -> bool:
    return _header(file, "|") == ["image_name", "comment_number", "comment"]


# The hub's Flickr30k: all captions of a photo as a JSON list in one cell


def _read_hub30k(files: Sequence[Path], root: Path) -> Rows:
    rows = _table(files[0], ",")
    columns = [cell.strip().lower() for cell in next(rows)[1]]
    for where, cells in rows:
        row = dict(zip(columns, cells, strict=False))
        try:
            captions = json.loads(row["raw"])
            photo, split = row["filename"].strip(), row.get("split")
            identity = [str(i) for i in json.loads(row.get("sentids") or "[]")]
        except (KeyError, ValueError) as error:
            yield Problem("bad row", where, f"cannot be read: {error!r}")
            continue
        if not photo or not isinstance(captions, list):
            yield Problem("bad row", where, "names no photo or holds no list of captions")
            continue
        for i, caption in enumerate(captions):
            key = identity[i] if len(identity) == len(captions) else None
            yield Row(photo, str(caption), where, split, key)


def _is_hub30k(file: Path) -> bool:
    return {"raw", "filename", "split"} <= set(_header(file, ",")) and file.suffix == ".csv"


# -------------------------------------------------------------------------------------------------
# Karpathy's dataset_*.json and COCO's captions_*.json


def _read_karpathy(files: Sequence[Path], root: Path) -> Rows:
    for file in files:
        images = _json(file).get("images", [])
        for i, image in enumerate(images if isinstance(images, list) else []):
            where = f"{file.name}:images[{i}]"
            try:
                photo = str(Path(image.get("filepath", "")) / image["filename"])
                sentences = [(s["raw"], s.get("sentid")) for s in image["sentences"]]
                split = str(image["split"])
            except (KeyError, TypeError, AttributeError) as error:
                yield Problem("bad row", where, f"cannot be read: {error!r}")
                continue
            if not sentences:
                yield Row(photo, None, where, split)
            for raw, identity in sentences:
                key = None if identity is None else str(identity)
                yield Row(photo, str(raw), where, split, key)


def _is_karpathy(file: Path) -> bool:
    return file.suffix == ".json" and _has_list(file, "images") and '"sentences"' in _begins(file)


def _read_coco(files: Sequence[Path], root: Path) -> Rows:
    for file in files:
        content = _json(file)
        found = re.search(r"(train|val|test)(\d*)", file.stem)
        split, folder = (found[1], found[0]) if found else (None, "")
        photos: dict[Any, str] = {}
        for i, image in enumerate(content.get("images", [])):
            where = f"{file.name}:images[{i}]"
            try:
                identity, name = image["id"], str(image["file_name"])
            except (KeyError, TypeError) as error:
                yield Problem("bad row", where, f"cannot be read: {error!r}")
                continue
            if identity in photos:
                yield Problem("duplicate id", where, f"photo {identity} stands there already")
                continue
            photos[identity] = str(Path(folder) / name) if "/" not in name else name
        captioned = set()
        for i, annotation in enumerate(content.get("annotations", [])):
            where = f"{file.name}:annotations[{i}]"
            try:
                identity, caption = annotation["image_id"], str(annotation["caption"])
                key = str(annotation["id"]) if "id" in annotation else None
            except (KeyError, TypeError) as error:
                yield Problem("bad row", where, f"cannot be read: {error!r}")
                continue
            if identity not in photos:
                yield Problem("bad row", where, f"there is no photo {identity}")
                continue
            captioned.add(identity)
            yield Row(photos[identity], caption, where, split, key)
        for identity, photo in photos.items():
            if identity not in captioned:
                yield Row(photo, None, f"{file.name}: photo {identity}", split)


def _is_coco(file: Path) -> bool:
    return file.suffix == ".json" and _has_list(file, "annotations")


def _has_list(file: Path, name: str) -> bool:
    """Whether a JSON file begins as an object and soon has a list of this name."""
    start = _begins(file)
    if not start.lstrip().startswith("{"):
        return False
    if re.search(rf'"{name}"\s*:\s*\[', start):
        return True
    try:  # the list comes late in the file
        return isinstance(_json(file).get(name), list)
    except DataError:
        return False


def _karpathy_files(folder: Path) -> Sequence[Path]:
    return [f for f in _in("dataset_*.json", "dataset.json")(folder) if _is_karpathy(f)]


def _coco_files(folder: Path) -> Sequence[Path]:
    files = _in("captions_*.json", "annotations/captions_*.json")(folder)
    return [f for f in files if _is_coco(f)]


# -------------------------------------------------------------------------------------------------
# Tables and folders


def _read_table(files: Sequence[Path], root: Path) -> Rows:
    for file in files:  # train.csv, val.csv: the names say the split
        yield from _read_records(file, "", file.stem)


def _read_imagefolder(files: Sequence[Path], root: Path) -> Rows:
    for file in files:
        folder = "" if file.parent == root else file.parent.name
        yield from _read_records(file, folder, folder)


def _read_records(file: Path, folder: str, name: str) -> Rows:
    """Rows of a CSV, TSV or JSONL file with a column of photos and one of captions.

    Args:
        file: the table.
        folder: where its photos are, relative to the root.
        name: their split, if it is the name of one and no column says.
    """
    named = {"split": name} if name.lower() in SPLITS else {}
    for where, record in _records(file):
        if isinstance(record, Problem):
            yield record
            continue
        record = named | record
        image, caption = _first(record, IMAGE_COLUMNS), _first(record, CAPTION_COLUMNS)
        photo = str(record.get(image or "") or "").strip()
        if not photo:
            yield Problem("bad row", where, "names no photo")
            continue
        said = record.get(caption or "")
        split = record.get("split")
        for text in said if isinstance(said, list) and said else [said]:
            yield Row(
                str(Path(folder) / photo),
                None if text is None or isinstance(text, list) else str(text),
                where,
                None if split is None else str(split),
                None if record.get("id") is None else f"{file.name} {record['id']}",
            )


def _records(file: Path) -> Iterator[tuple[str, dict[str, Any] | Problem]]:
    if file.suffix == ".jsonl":
        for where, line in _lines(file):
            try:
                record = json.loads(line)
            except ValueError as error:
                yield where, Problem("bad row", where, f"is not JSON: {error}")
                continue
            if isinstance(record, dict):
                yield where, {str(name).lower(): value for name, value in record.items()}
            else:
                yield where, Problem("bad row", where, "is no JSON object")
        return
    rows = _table(file, _delimiter(file))
    columns = [cell.strip().lower() for cell in next(rows, ("", []))[1]]
    for where, cells in rows:
        if len(cells) != len(columns):
            detail = f"has {len(cells)} columns instead of {len(columns)}; quote the captions"
            yield where, Problem("bad row", where, detail)
        else:
            yield where, dict(zip(columns, cells, strict=True))


def _delimiter(file: Path) -> str:
    """The separator of a table: what its header has most of."""
    first = _begins(file).partition("\n")[0]
    return max((",", "\t", ";", "|"), key=first.count)


def _is_table(file: Path) -> bool:
    if file.suffix == ".jsonl":
        first = _begins(file).lstrip().partition("\n")[0]
        try:
            record = json.loads(first)
        except ValueError:
            return False
        columns = [str(name).lower() for name in record] if isinstance(record, dict) else []
    elif file.suffix in (".csv", ".tsv", ".txt"):
        columns = _header(file, _delimiter(file))
    else:
        return False
    return (
        _first(columns, IMAGE_COLUMNS) is not None and _first(columns, CAPTION_COLUMNS) is not None
    )


def _table_files(folder: Path) -> Sequence[Path]:
    files = (f for pattern in ("*.csv", "*.tsv", "*.jsonl") for f in _in(pattern)(folder))
    tables = [f for f in files if f.stem not in ("metadata", "scenes") and _is_table(f)]
    names = [f.stem.lower() for f in tables]
    if len(tables) > 1 and not all(name in SPLITS for name in names):
        raise DataError(
            f"{folder} holds several tables with captions: {', '.join(f.name for f in tables)}. "
            "Give one of them."
        )
    return tables


def _imagefolder_files(folder: Path) -> Sequence[Path]:
    here = _in("metadata.jsonl", "metadata.csv")
    below = [f for sub in sorted(folder.iterdir()) if sub.is_dir() for f in here(sub)]
    return [f for f in (*here(folder), *below) if _is_imagefolder(f)]


def _is_imagefolder(file: Path) -> bool:
    return file.stem == "metadata" and _is_table(file)


def _read_sidecars(files: Sequence[Path], root: Path) -> Rows:
    """Photos, each with the captions of the text file beside it, one a line."""
    photos = [f for f in files if f.suffix.lower() in PHOTO_SUFFIXES]
    texts = {f.with_suffix(""): f for f in files if f.suffix.lower() == ".txt"}
    tops = {f.relative_to(root).parts[0].lower() for f in photos}
    with_splits = tops <= SPLITS.keys()
    for photo in photos:
        stem = photo.with_suffix("")
        name = str(photo.relative_to(root))
        split = photo.relative_to(root).parts[0] if with_splits else None
        lines = list(_lines(texts[stem])) if stem in texts else []
        if not lines:
            why = "has no .txt beside it" if stem not in texts else f"{texts[stem].name} is empty"
            yield Problem("no caption" if stem not in texts else "empty caption", name, why)
        for where, line in lines:
            yield Row(name, line, where, split)
    stems = {photo.with_suffix("") for photo in photos}
    for stem, text in texts.items():
        if stem not in stems:
            yield Problem("bad row", str(text.relative_to(root)), "has no photo beside it")


def _sidecar_files(folder: Path) -> Sequence[Path]:
    files = sorted(
        f
        for f in folder.rglob("*")
        if f.suffix.lower() in (*PHOTO_SUFFIXES, ".txt") and f.is_file()
    )
    stems = {f.with_suffix("") for f in files if f.suffix.lower() == ".txt"}
    beside = any(f.suffix.lower() != ".txt" and f.with_suffix("") in stems for f in files)
    return files if beside else ()


def _read_scenes(files: Sequence[Path], root: Path) -> Rows:
    for file in files:
        for where, line in _lines(file):
            try:
                scene = json.loads(line)
                boxes = tuple(NamedBox(o["name"], tuple(o["box"])) for o in scene["objects"])
                for caption in scene["captions"]:
                    yield Row(scene["image"], caption, where, scene["split"], boxes=boxes)
            except (ValueError, KeyError, TypeError) as error:
                yield Problem("bad row", where, f"cannot be read: {error!r}")


def _is_scenes(file: Path) -> bool:
    return file.name == "scenes.jsonl"


LAYOUTS = (
    Layout("scenes", "scenes.jsonl, as `regard data scenes` writes it",
           _in("scenes.jsonl"), _is_scenes, _read_scenes),
    Layout("flickr8k", "Flickr8k.token.txt, with Flickr_8k.trainImages.txt and so on beside it",
           _in("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt"),
           lambda file: _is_token(file) and not _is_flickr30k_token(file), _read_token,
           ("Images", "Flicker8k_Dataset", "Flickr8k_Dataset")),
    Layout("kaggle-flickr8k", "captions.txt that begins with image,caption",
           _kaggle8k_files, _is_kaggle8k, _read_kaggle8k, ("Images", "Flicker8k_Dataset")),
    Layout("karpathy", "dataset_*.json with images that have sentences and a split",
           _karpathy_files, _is_karpathy, _read_karpathy),
    Layout("flickr30k", "results_20130124.token",
           _in("results*.token"), _is_flickr30k_token, _read_token),
    Layout("kaggle-flickr30k", "results.csv that begins with image_name| comment_number| comment",
           lambda folder: [f for f in _in("results.csv")(folder) if _is_kaggle30k(f)],
           _is_kaggle30k, _read_kaggle30k),
    Layout("hub-flickr30k", "flickr_annotations_30k.csv with the columns raw, filename and split",
           lambda folder: [f for f in _in("flickr_annotations*.csv")(folder) if _is_hub30k(f)],
           _is_hub30k, _read_hub30k),
    Layout("coco", "captions_*.json, here or in annotations/",
           _coco_files, _is_coco, _read_coco),
    Layout("imagefolder", "metadata.jsonl or metadata.csv beside the photos, or one a split",
           _imagefolder_files, _is_imagefolder, _read_imagefolder),
    Layout("table", "a .csv, .tsv or .jsonl with the columns image and caption (and maybe split)",
           _table_files, _is_table, _read_table),
    Layout("sidecar", "photos, each with a .txt of the same name beside it",
           _sidecar_files, lambda file: False, _read_sidecars),
)  # fmt: skip
"""Every layout, in the order of detection: those with splits of their own come first."""

PHOTO_FOLDERS = (
    "Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images",
    "flickr30k_images",
    "photos", "train2014", "val2014", "test2014", "train2017", "val2017", "test2017",
)  # fmt: skip
"""Names of folders in which data sets keep their photos."""
