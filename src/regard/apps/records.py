"""The record of a photo: what is known of it, as a line of JSON that is always valid UTF-8.

A record has ``path`` and either ``caption`` or ``error`` and ``reason``. Where a file's name is no
UTF-8, ``path`` has U+FFFD in place of what cannot be read, and ``path_base64`` is the name itself:
the base64 of its bytes.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regard.apps.alt_text import alt_text
from regard.apps.hashes import hash_of
from regard.apps.names import Named, path_key
from regard.errors import PhotoError

if TYPE_CHECKING:  # torch is not waited for where captions are only read
    from regard.captioner import PhotoCaption
    from regard.describe import Caption


def record(path: str | Path, found: PhotoCaption | PhotoError, *, count: int = 1) -> dict[str, Any]:
    """The record of a photo: its path and caption with its words, or its path and an error.

    Where several captions were asked for they follow with their scores, so many at most; where
    candidates were ordered by a CLIP or by a consensus, all of them with both scores.
    """
    made: dict[str, Any] = name_of(str(path))
    if isinstance(found, PhotoError):
        return made | {"error": str(found), "reason": found.reason}
    made |= {
        "caption": found.text,
        "words": [
            {"word": word, "log_probability": round(p, 6)}
            for word, p in zip(found.words, found.log_probabilities, strict=True)
        ],
    }
    candidates = (found.best, *found.others)
    judged = len(_scores(found.best)) > 1  # and so in another order than the score's
    if judged or count > 1:
        made["candidates"] = [
            {"caption": one.text} | _scores(one)
            for one in (candidates if judged else candidates[:count])
        ]
    return made


def _scores(caption: Caption) -> dict[str, float]:
    """What a candidate is ordered by."""
    scores = {
        "score": caption.score,
        "similarity": caption.similarity,
        "agreement": caption.agreement,
    }
    return {name: round(value, 6) for name, value in scores.items() if value is not None}


def full_record(
    photo: Named,
    found: PhotoCaption | PhotoError,
    *,
    by: str,
    count: int = 1,
    alt: bool = False,
    gaze: bool = False,
) -> dict[str, Any]:
    """A record with what a later run goes by: how the file was, and who captioned it.

    Args:
        photo: the file.
        found: what became of it.
        by: the captioner and its settings.
        count: captions of a photo.
        alt: whether an alternative text is made of the caption.
        gaze: whether the maps of the words are kept, for a gallery.
    """
    made = record(photo.path, found, count=count)
    if not isinstance(found, PhotoError):
        if alt:
            made |= {"alt_text": alt_text(found.text), "machine_made": True, "reviewed": False}
        made |= {"width": found.size[0], "height": found.size[1]}
        if gaze and found.maps.size:
            made["gaze"] = _gaze(found)
    known = {"size": photo.size, "modified": photo.modified}
    return made | {name: value for name, value in known.items() if value >= 0} | {"by": by}


def name_of(path: str) -> dict[str, str]:
    """``path``, and ``path_base64`` where it is no UTF-8."""
    raw = os.fsencode(path)
    shown = raw.decode("utf-8", "replace")
    if shown == path:
        return {"path": path}
    return {"path": shown, "path_base64": base64.b64encode(raw).decode("ascii")}


def path_of(made: Mapping[str, Any]) -> str:
    """The path that :func:`name_of` was given."""
    raw = made.get("path_base64")
    return os.fsdecode(base64.b64decode(raw)) if raw else str(made["path"])


def to_line(made: Mapping[str, Any]) -> bytes:
    """A record as a line."""
    return json.dumps(made, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """What :func:`to_line` made.

    Raises:
        ValueError: it is no record.
    """
    made = json.loads(line)
    if not isinstance(made, dict) or not isinstance(made.get("path"), str):
        raise ValueError("a record has a path")
    if not isinstance(made.get("caption"), str) and not isinstance(made.get("error"), str):
        raise ValueError("a record has a caption or an error")
    return made


def state_of(made: Mapping[str, Any]) -> int:
    """The hash of what makes a record out of date when it changes."""
    if "error" in made:
        return hash_of("error", made["error"])
    return done_state(made.get("size", -1), made.get("modified", -1), made.get("by", ""))


def done_state(size: int, modified: int, by: str) -> int:
    """The state of a photo's record once this captioner has captioned the file as it now is."""
    return hash_of("caption", size, modified, by)


def picture_key(path: str, size: int, modified: int) -> str:
    """What a small picture of a photo is called: another when the photo changes."""
    return f"{hash_of(path_key(path), size, modified):016x}"


def shown(text: str) -> str:
    """A name as a line of a terminal can show it: what would break or colour the line escaped."""
    if text.isprintable():
        return text
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped.encode("utf-8", "backslashreplace").decode()


def _gaze(found: PhotoCaption) -> dict[str, Any]:
    """The maps, each scaled to 0..255, ``(T, H, W)``; ``seen`` is in parts of width and height."""
    maps = found.maps / np.maximum(found.maps.max((1, 2), keepdims=True), 1e-12)
    (width, height), (left, top, right, bottom) = found.size, found.placement
    seen = (left / width, top / height, right / width, bottom / height)
    return {
        "grid": list(found.maps.shape[1:]),
        "seen": [round(part, 5) for part in seen],
        "maps": base64.b64encode(np.rint(maps * 255).astype(np.uint8).tobytes()).decode("ascii"),
    }
