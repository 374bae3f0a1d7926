"""Candidate captions in the order in which a CLIP finds them to fit the photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regard.describe import Caption
from regard.images import Source
from regard.metrics.clipscore import PROMPT
from regard.models.clip import Clip


def rerank(
    clip: Clip, photos: Sequence[Source], candidates: Sequence[Sequence[Caption]]
) -> list[list[Caption]]:
    """Order captions by the cosine of their vector and their photo's.

    The captioner's score is kept and decides between equals. A score by the same CLIP, such as
    CLIPScore, is no longer a fair judge of what comes first.

    Args:
        clip: from :func:`regard.models.clip.load_clip`.
        photos: n of them.
        candidates: of each photo, at least one.

    Returns:
        For each photo its captions with their similarity, the most similar first.

    Raises:
        PhotoError: a photo cannot be opened.
    """
    seen = clip.embed_photos(photos)  # (n, E)
    said = clip.embed_texts([PROMPT + c.text for group in candidates for c in group])
    vectors = iter(said)
    ordered = []
    for photo, group in zip(seen, candidates, strict=True):
        known = [replace(c, similarity=float(photo @ next(vectors))) for c in group]
        ordered.append(sorted(known, key=lambda c: (-(c.similarity or 0.0), -c.score)))
    return ordered
