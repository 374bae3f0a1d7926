"""Alternative texts of captions: one plain sentence, short enough for a screen reader."""

from __future__ import annotations

import re

LONGEST = 125
"""Characters of an alternative text, its full stop among them."""

_OPENING = re.compile(
    r"(?:(?:this|here|there)(?: is| are|'s)\s+)"
    r"|(?:(?:an?|the|this|some)\s+)?"
    r"(?:(?:close[- ]?up|blurry|black[- ]and[- ]white|old|vintage|colou?r|aerial|beautiful)\s+)*"
    r"(?:photos?|photographs?|images?|pictures?|snapshots?|shots?)\s+(?:of|showing)\s+",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s")
_DANGLING = frozenset(
    "a an the and or of in on at to with by from for into onto near his her its their is are "
    "that which who while as".split()
)


def alt_text(caption: str) -> str:
    """One sentence with a capital and a full stop, of at most :data:`LONGEST` characters.

    What a screen reader says by itself ("a photo of", "there is") is left out. A longer caption is
    cut after a word, and not after one that leads nowhere.
    """
    said = _SENTENCE.split(" ".join(caption.split()), 1)[0]
    while (opening := _OPENING.match(said)) and said[opening.end() :]:
        said = said[opening.end() :]
    said = said.rstrip(" .!?,;:")
    if len(said) >= LONGEST:
        said = _cut(said)
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _cut(said: str) -> str:
    most = LONGEST - 1
    words = said[: most + 1].split(" ")[:-1]
    while len(words) > 1 and words[-1].lower() in _DANGLING:
        words.pop()
    return " ".join(words).rstrip(" .!?,;:") or said[:most]
