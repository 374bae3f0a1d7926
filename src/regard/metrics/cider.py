"""CIDEr, as the COCO caption evaluation computes it.

Source: Vedantam, Zitnick and Parikh, "CIDEr: consensus-based image description evaluation" (2015).
What that evaluation, and with it the literature, calls CIDEr is the paper's CIDEr-D (section 5):
counts clipped to the reference's, and a Gaussian penalty on the difference of lengths, sigma = 6,
times 10.

One caption of one photo alone scores 0: with a single photo every run of words is in all photos,
and its weight ``log(photos / photos with it)`` is 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from regard.metrics.ngrams import ORDERS, Ngram, count_ngrams
from regard.metrics.score import Score, Tokens, check_photos

SIGMA = 6.0
"""Width of the penalty on the difference of lengths, in words."""


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many photos' references each run of words stands."""

    photos: int
    counts: Mapping[Ngram, int]

    @classmethod
    def of(cls, references: Iterable[Sequence[Tokens]]) -> DocumentFrequencies:
        """Count them in the references of some photos."""
        counts: Counter[Ngram] = Counter()
        photos = 0
        for group in references:
            photos += 1
            counts.update({ngram for tokens in group for ngram in count_ngrams(tokens)})
        return cls(photos, counts)


def cider(
    hypotheses: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    frequencies: DocumentFrequencies | None = None,
) -> Score:
    """CIDEr, from 0 to 10; the corpus value is the mean over photos.

    Args:
        hypotheses: n captions.
        references: for each photo at least one.
        frequencies: those of these references unless others are given, such as the training
            split's.

    Raises:
        DataError: the captions and references do not fit together.
    """
    check_photos(hypotheses, references)
    weigh = _Weigher(frequencies or DocumentFrequencies.of(references))
    each = np.array(
        [
            sum(_similarity(said, weigh(reference)) for reference in group) / len(group)
            for said, group in zip(map(weigh, hypotheses), references, strict=True)
        ]
    )
    return Score("CIDEr", float(each.mean()), each, "regard")


@dataclass(frozen=True)
class _Weighed:
    """A caption as weights of its runs, their norms by order, and its number of words."""

    weights: dict[Ngram, float]
    norms: tuple[float, ...]
    length: int


class _Weigher:
    """Captions to weights: the count of each run times the logarithm of its rarity."""

    def __init__(self, frequencies: DocumentFrequencies) -> None:
        self._all = math.log(max(1, frequencies.photos))
        self._logs = {ngram: math.log(count) for ngram, count in frequencies.counts.items()}

    def __call__(self, tokens: Tokens) -> _Weighed:
        squares = [0.0] * ORDERS
        weights = {}
        for ngram, count in count_ngrams(tokens).items():
            weight = count * (self._all - self._logs.get(ngram, 0.0))
            weights[ngram] = weight
            squares[len(ngram) - 1] += weight * weight
        # The COCO evaluation measures the length in pairs of words.
        return _Weighed(weights, tuple(map(math.sqrt, squares)), max(0, len(tokens) - 1))


def _similarity(said: _Weighed, wanted: _Weighed) -> float:
    """Ten times the mean over the orders of the clipped cosine, with the penalty on length."""
    dots = [0.0] * ORDERS
    for ngram, weight in said.weights.items():
        other = wanted.weights.get(ngram)
        if other is not None:
            dots[len(ngram) - 1] += min(weight, other) * other
    total = sum(
        dot / (a * b) if a and b else dot
        for dot, a, b in zip(dots, said.norms, wanted.norms, strict=True)
    )
    difference = said.length - wanted.length
    return 10 * total / ORDERS * math.exp(-(difference**2) / (2 * SIGMA**2))
