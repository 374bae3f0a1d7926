"""Captions of some photos: a line each, records in a file, pictures of the gaze."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from regard.captioner import AnyCaptioner, PhotoCaption
from regard.describe import Decoding
from regard.errors import ModelError, PhotoError, RegardError
from regard.images import open_photo
from regard.models.clip import Clip
from regard.plots import gaze_figure
from regard.rerank import rerank


def caption_photos(
    captioner: AnyCaptioner,
    photos: Sequence[Path],
    decoding: Decoding,
    *,
    out: Path | None,
    gaze: Path | None,
    clip: Clip | None = None,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> int:
    """Caption photos one by one; one that cannot be opened is reported under its name.

    Args:
        captioner: a loaded one.
        photos: their paths.
        decoding: how captions are chosen.
        out: file for a JSON line a photo, written beside its place, then renamed.
        gaze: folder for a picture of each photo's gaze.
        clip: what orders the candidates of a photo instead of their score.
        say: told each caption.
        warn: told each photo that could not be opened.

    Returns:
        How many could not be opened.

    Raises:
        ModelError: pictures of the gaze are asked of a captioner that has none.
        RegardError: a file or folder cannot be written.
    """
    if gaze is not None and captioner.no_gaze is not None:
        raise ModelError(captioner.no_gaze)
    records: list[dict[str, Any]] = []
    failed = 0
    try:
        if gaze is not None:
            gaze.mkdir(parents=True, exist_ok=True)
        pictures = _picture_names(photos)
        for path, found in zip(photos, captioner.captions(photos, decoding), strict=True):
            if clip is not None and isinstance(found, PhotoCaption):
                best, *others = rerank(clip, [path], [(found.best, *found.others)])[0]
                found = replace(found, best=best, others=tuple(others))
            records.append(record(path, found, count=decoding.count))
            if isinstance(found, PhotoError):
                failed += 1
                warn(str(found))
                continue
            say(f"{path}: {found.text}")
            if decoding.count > 1:
                for other in (found.best, *found.others)[: decoding.count]:
                    say(f"  {other.score:8.3f}  {other.text}")
            if gaze is not None:
                draw_gaze(path, found, gaze / pictures[path])
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            beside = out.with_name(out.name + ".new")
            lines = (json.dumps(r, ensure_ascii=False) for r in records)
            beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            beside.replace(out)
    except OSError as error:
        raise RegardError(
            f"{error.filename or out or gaze} cannot be written: {error.strerror or error}. "
            "Give a place that can be written to."
        ) from error
    return failed


def record(path: Path, found: PhotoCaption | PhotoError, *, count: int = 1) -> dict[str, Any]:
    """The record of a photo: ``path`` and ``caption`` with its words, or ``path`` and ``error``.

    Where several captions were asked for they follow with their scores, so many at most; where
    candidates were ordered by a CLIP, all of them with both scores.
    """
    if isinstance(found, PhotoError):
        return {"path": str(path), "error": str(found)}
    made: dict[str, Any] = {
        "path": str(path),
        "caption": found.text,
        "words": [
            {"word": word, "log_probability": round(p, 6)}
            for word, p in zip(found.words, found.log_probabilities, strict=True)
        ],
    }
    if found.best.similarity is None:
        if count > 1:
            made["candidates"] = [
                {"caption": c.text, "score": round(c.score, 6)}
                for c in (found.best, *found.others)[:count]
            ]
    else:
        made["candidates"] = [
            {
                "caption": c.text,
                "score": round(c.score, 6),
                "similarity": round(c.similarity or 0.0, 6),
            }
            for c in (found.best, *found.others)
        ]
    return made


def draw_gaze(path: Path, found: PhotoCaption, file: Path) -> None:
    """Draw where each word looked, over the upright photo."""
    gaze_figure(
        open_photo(path), found.words, found.maps, found.placement, file, caption=found.text
    )


def _picture_names(photos: Sequence[Path]) -> dict[Path, str]:
    """A picture's name for each photo; photos of one name in several folders get different ones."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in photos:
        if path in names:
            continue
        stem, number = path.name, 1
        while f"{stem}.gaze.png" in taken:
            number += 1
            stem = f"{path.name}-{number}"
        names[path] = f"{stem}.gaze.png"
        taken.add(names[path])
    return names
