"""ROUGE-L: the longest common subsequence of a caption and its references.

Source: Lin, "ROUGE: a package for automatic evaluation of summaries" (2004), section 3, as the
COCO caption evaluation has it: the best precision and the best recall over the references, with
beta = 1.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regard.metrics.score import Score, Tokens, check_photos

BETA = 1.2
"""Weight of recall over precision."""


def rouge_l(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Score:
    """ROUGE-L, from 0 to 1; the corpus value is the mean over photos.

    Args:
        hypotheses: n captions.
        references: for each photo at least one.

    Raises:
        DataError: the captions and references do not fit together.
    """
    check_photos(hypotheses, references)
    each = np.array([_of_photo(h, g) for h, g in zip(hypotheses, references, strict=True)])
    return Score("ROUGE-L", float(each.mean()), each, "regard")


def _of_photo(hypothesis: Tokens, group: Sequence[Tokens]) -> float:
    # The COCO evaluation splits at spaces, which makes an empty caption one empty word.
    said = list(hypothesis) or [""]
    wanted = [list(reference) or [""] for reference in group]
    common = [_common(said, reference) for reference in wanted]
    precision = max(common) / len(said)
    recall = max(c / len(reference) for c, reference in zip(common, wanted, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by sets of bits.

    Source: Hyyro, "Bit-parallel LCS-length computation revisited" (2004), figure 3: a bit for each
    word of ``a``; zeros count the matches.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(a)) - 1
    row = everything
    for word in b:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & everything
    return len(a) - row.bit_count()
