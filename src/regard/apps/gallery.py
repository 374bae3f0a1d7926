"""A page on which a person looks through captioned photos: thumbnails, captions, gaze, search.

==========================  ====================================================================
``index.html``              the page; it needs no network, and opens from the disk
``records/0000.js`` ...     some hundred records each, loaded as they are scrolled to
``thumbnails/ab/...jpg``    a small picture of each photo, made once
==========================  ====================================================================
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import regard
from regard.apps.journal import cannot_write
from regard.apps.pages import small_jpeg, with_commons
from regard.apps.records import path_of, picture_key
from regard.errors import ConfigError, PhotoError
from regard.files import replaced_folder, write_whole
from regard.images import open_photo

PART = 240
"""Records that are loaded together."""

LONG_SIDE = 360
"""Of a thumbnail, in pixels."""

_SIGN = re.compile(r'<meta name="generator" content="regard [^"]* gallery">')


def check_place(folder: Path) -> None:
    """Refuse a folder that holds something that is no gallery.

    Raises:
        ConfigError: it is a file, or a folder with files but without a gallery.
    """
    page = folder / "index.html"
    if folder.is_dir() and (
        not any(folder.iterdir())
        or (page.is_file() and _SIGN.search(page.read_text("utf-8", "replace")))
    ):
        return
    if folder.exists():
        raise ConfigError(
            f"{folder} exists and holds no gallery. Take a new folder for --gallery, or delete "
            "this one."
        )


def make_place(folder: Path) -> None:
    """Make the folder of a gallery with its page, so that it is known as one from the start.

    Raises:
        ConfigError: it holds something else.
        RegardError: it cannot be made.
    """
    check_place(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "index.html").exists():
            _write_page(folder, [], 0, "No photos yet")
        (folder / "thumbnails").mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def write_gallery(folder: Path, records: Iterable[Mapping[str, Any]], *, title: str = "") -> int:
    """Write or renew a gallery; thumbnails that are there are kept, others taken away.

    Args:
        folder: made if it is not there.
        records: as :func:`regard.apps.records.full_record` makes them, the failed ones too.
        title: of the page.

    Returns:
        How many photos it shows.

    Raises:
        ConfigError: the folder holds something else.
        RegardError: something cannot be written.
    """
    make_place(folder)
    waiting = iter(records)
    sizes: list[int] = []
    kept: set[str] = set()
    failed = 0
    try:
        with (
            replaced_folder(folder / "records") as parts,
            ThreadPoolExecutor(os.cpu_count()) as threads,
        ):
            while group := list(islice(waiting, PART)):
                shown = list(threads.map(lambda made: _shown(made, folder), group))
                kept |= {one["thumbnail"] for one in shown if one.get("thumbnail")}
                failed += sum("error" in one for one in shown)
                text = json.dumps(shown, ensure_ascii=True, separators=(",", ":"))
                # In a script "</script>" would end it, and two line ends of Unicode a line.
                text = text.replace("<", "\\u003c")
                file = parts / f"{len(sizes):04}.js"
                file.write_text(f"arrived({len(sizes)}, {text});\n", "utf-8")
                sizes.append(len(group))
        _write_page(folder, sizes, failed, title or "Captioned photos")
        for file in (folder / "thumbnails").glob("*/*.jpg"):
            if file.relative_to(folder).as_posix() not in kept:
                file.unlink()
    except OSError as error:
        raise cannot_write(folder, error) from error
    return sum(sizes) - failed


def _write_page(folder: Path, sizes: list[int], failed: int, title: str) -> None:
    template = Path(__file__).with_name("gallery.html").read_text(encoding="utf-8")
    known = json.dumps({"sizes": sizes, "failed": failed, "title": title}).replace("<", "\\u003c")
    page = template.replace("REGARD-VERSION", regard.__version__).replace("GALLERY", known, 1)
    write_whole(folder / "index.html", with_commons(page).encode())


def _shown(made: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the page is told of a photo."""
    path = path_of(made)
    one: dict[str, Any] = {"path": made["path"]}
    if "error" in made:
        return one | {"error": made["error"], "reason": made.get("reason", "")}
    one |= {
        "caption": made["caption"],
        "link": quote(os.fsencode(os.path.relpath(path, folder))),
    }
    if "alt_text" in made:
        one["alt"] = made["alt_text"]
    if "gaze" in made:
        one |= {"words": [word["word"] for word in made["words"]], "gaze": made["gaze"]}
    thumbnail = _thumbnail(path, made, folder)
    if thumbnail is not None:
        one["thumbnail"] = thumbnail
    return one


def _thumbnail(path: str, made: Mapping[str, Any], folder: Path) -> str | None:
    """The name of a small picture, made unless it is there; none if the photo is gone."""
    key = picture_key(path, made.get("size", -1), made.get("modified", -1))
    name = f"thumbnails/{key[:2]}/{key}.jpg"
    file = folder / name
    if not file.exists():
        try:
            content = small_jpeg(open_photo(path), LONG_SIDE)
        except PhotoError:
            return None
        file.parent.mkdir(exist_ok=True)
        write_whole(file, content, firmly=False)
    return name
