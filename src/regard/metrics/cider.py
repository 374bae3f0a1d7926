"""CIDEr, as the COCO caption evaluation computes it.

Source: Vedantam, Zitnick and Parikh, "CIDEr: consensus-based image description evaluation" (2015).
What that evaluation, and with it the literature, calls CIDEr is the paper's CIDEr-D (section 5):
counts clipped to the reference's, and a Gaussian penalty on the difference of lengths, sigma = 6,
times 10. :func:`plain_cider` is the paper's first form (section 3), without either, which a caption
that says a rare word again and again can exceed; like the paper's own program it does not stem.

One caption of one photo alone scores 0: with a single photo every run of words is in all photos,
and its weight ``log(photos / photos with it)`` is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from regard.metrics.ngrams import ORDERS, Integers, Ngram, Runs, count_runs
from regard.metrics.score import Score, Tokens, check_photos

SIGMA = 6.0
"""Width of the penalty on the difference of lengths, in words."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many photos' references each run of words stands."""

    photos: int
    counts: Mapping[Ngram, int]

    @classmethod
    def of(cls, references: Iterable[Sequence[Tokens]], *, least: int = 1) -> Self:
        """Count them in the references of some photos.

        Args:
            references: of each photo.
            least: runs of fewer photos are left out, and weigh then what unseen ones do.
        """
        groups = list(references)
        photo = _photo_of_each(groups)
        counts: dict[Ngram, int] = {}
        for runs in count_runs([()] * len(groups), groups):
            having = _photos_with(runs, photo)
            common = np.flatnonzero(having >= least)
            counts.update(zip(runs.ngrams(common), having[common].tolist(), strict=True))
        return cls(len(groups), counts)


def cider(
    hypotheses: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    frequencies: DocumentFrequencies | None = None,
    *,
    runs: Sequence[Runs] | None = None,
) -> Score:
    """CIDEr, from 0 to 10; the corpus value is the mean over photos.

    Args:
        hypotheses: n captions.
        references: for each photo at least one.
        frequencies: those of these references unless others are given, such as the training
            split's.
        runs: what :func:`count_runs` finds in them, where it is known already.

    Raises:
        DataError: the captions and references do not fit together.
    """
    return _score("CIDEr", hypotheses, references, frequencies, runs, strict=True)


def plain_cider(
    hypotheses: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    frequencies: DocumentFrequencies | None = None,
    *,
    runs: Sequence[Runs] | None = None,
) -> Score:
    """The paper's first form: the cosine as it is, whatever the lengths; else like :func:`cider`.

    Raises:
        DataError: the captions and references do not fit together.
    """
    return _score("CIDEr-plain", hypotheses, references, frequencies, runs, strict=False)


def _score(
    name: str,
    hypotheses: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    frequencies: DocumentFrequencies | None,
    runs: Sequence[Runs] | None,
    *,
    strict: bool,
) -> Score:
    """Either form; ``strict`` clips the counts and punishes other lengths."""
    check_photos(hypotheses, references)
    photo = _photo_of_each(references)  # (m,), of m references
    # The COCO evaluation measures the length in pairs of words.
    said = np.array([max(0, len(tokens) - 1) for tokens in hypotheses])  # (n,)
    wanted = np.array([max(0, len(tokens) - 1) for tokens in chain.from_iterable(references)])
    similarity = np.zeros(len(photo))
    for of_order in runs or count_runs(hypotheses, references):
        if frequencies is None:
            photos, having = len(hypotheses), _photos_with(of_order, photo)
        else:
            photos = frequencies.photos
            having = np.array([frequencies.counts.get(ngram, 0) for ngram in of_order.ngrams()])
        rarity = math.log(max(1, photos)) - np.log(np.maximum(1, having))  # (runs,)
        similarity += _cosine(of_order, rarity, photo, clipped=strict)
    similarity *= 10 / ORDERS
    if strict:
        similarity *= np.exp(-((said[photo] - wanted) ** 2) / (2 * SIGMA**2))
    each = np.bincount(photo, weights=similarity) / np.bincount(photo)  # (n,)
    return Score(name, float(each.mean()), each, "regard")


def _photo_of_each(references: Sequence[Sequence[Tokens]]) -> Integers:
    """The number of its photo for each reference."""
    return np.repeat(np.arange(len(references)), [len(group) for group in references])


def _photos_with(runs: Runs, photo: Integers) -> Integers:
    """In how many photos' references each run stands, ``(runs,)``."""
    distinct = len(runs.example)
    # Sorted and compared with the neighbour: four times faster than numpy's unique.
    places = np.sort(photo[runs.wanted.caption] * distinct + runs.wanted.run)
    places = places[np.diff(places, prepend=-1) > 0]
    return np.bincount(places % max(1, distinct), minlength=distinct)


def _cosine(runs: Runs, rarity: Floats, photo: Integers, *, clipped: bool) -> Floats:
    """The cosine of each reference with its photo's caption, ``(m,)``."""
    said = runs.said.count * rarity[runs.said.run]
    wanted = runs.wanted.count * rarity[runs.wanted.run]
    a, b = runs.met
    counted = np.minimum(said[a], wanted[b]) if clipped else said[a]
    dot = _sums(runs.wanted.caption[b], counted * wanted[b], len(photo))
    norms = np.sqrt(
        _sums(runs.said.caption, said**2, photo[-1] + 1)[photo]
        * _sums(runs.wanted.caption, wanted**2, len(photo))
    )
    return np.divide(dot, norms, out=np.zeros_like(norms), where=norms > 0)


def _sums(caption: Integers, values: Floats, captions: int) -> Floats:
    """The sum over the rows of each caption, ``(captions,)``."""
    return np.bincount(caption, weights=values, minlength=captions).astype(float)
