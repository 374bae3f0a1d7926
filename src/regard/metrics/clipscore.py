"""CLIPScore and RefCLIPScore: how near a caption is to its photo, and to its references.

Source: Hessel et al., "CLIPScore: a reference-free evaluation metric for image captioning" (2021),
sections 3 and 3.1, and the authors' code, which the paper's numbers come from. They use CLIP
ViT-B/32; values of different CLIPs cannot be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.errors import DataError
from regard.metrics.score import Score

PROMPT = "A photo depicts "
"""What stands before every caption and every reference when it is embedded."""

WEIGHT = 2.5
"""Stretches the cosines, which are seldom above 0.4, to about 0..1."""

Embeddings = NDArray[np.floating[Any]]


def clip_scores(
    photos: Embeddings,
    captions: Embeddings,
    references: Sequence[Embeddings],
    *,
    engine: str,
) -> tuple[Score, Score]:
    """CLIPScore, from 0 to 2.5, and RefCLIPScore, from 0 to 10/7; both are means over photos.

    Args:
        photos: ``(n, E)``, of length 1.
        captions: ``(n, E)``, of length 1, of the texts behind :data:`PROMPT`.
        references: for each photo ``(r, E)`` with r at least 1, likewise.
        engine: which CLIP made them.

    Raises:
        DataError: the numbers of photos, captions and references do not fit together.
    """
    bare = sum(not len(group) for group in references)
    if not len(photos) == len(captions) == len(references) or not len(photos) or bare:
        raise DataError(
            f"There are {len(photos)} photos, {len(captions)} captions and {len(references)} "
            f"groups of references, {bare} of them empty. Give at least one photo, and for each "
            "photo one caption and one reference or more, in the same order."
        )
    seen = WEIGHT * np.maximum(0, np.einsum("ne,ne->n", photos, captions, dtype=float))  # (n,)
    agreed = np.array(
        [
            max(0.0, float((group @ caption).max()))
            for group, caption in zip(references, captions, strict=True)
        ]
    )  # (n,)
    both = seen + agreed
    harmonic = np.divide(2 * seen * agreed, both, out=np.zeros_like(both), where=both > 0)
    return (
        Score("CLIPScore", float(seen.mean()), seen, engine),
        Score("RefCLIPScore", float(harmonic.mean()), harmonic, engine),
    )
