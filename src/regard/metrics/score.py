"""What a score is: a value for all photos, one for each, and who computed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regard.errors import DataError

Tokens = Sequence[str]
"""A caption as tokens; none for an empty caption."""


@dataclass(frozen=True)
class Score:
    """One score of captions."""

    name: str
    corpus: float
    """The value for all photos together."""
    per_photo: np.ndarray
    """``(n,)``, float64: the value for each photo."""
    engine: str
    """What computed it."""
    statistics: np.ndarray | None = None
    """``(n, S)``: what is summed over photos before the value for all of them is computed (BLEU,
    METEOR); none where that value is the mean of ``per_photo``."""


def check_photos(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    """Refuse what cannot be scored.

    Raises:
        DataError: no photo, different numbers of hypotheses and of references, or a photo without
        reference.
    """
    if len(hypotheses) != len(references):
        raise DataError(
            f"There are {len(hypotheses)} captions to score and references for {len(references)} "
            "photos: give one caption for each photo, in the same order."
        )
    if not hypotheses:
        raise DataError("There is no caption to score. Choose a split with photos in it.")
    bare = [i for i, group in enumerate(references) if not group]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(references)} photos have no reference to compare with, the "
            f"first is number {bare[0]}. Leave them out, or give them captions."
        )
