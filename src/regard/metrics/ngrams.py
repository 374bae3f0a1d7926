"""Runs of one to four words, counted in the captions and references of many photos at once.

A thousand photos have a quarter of a million runs in their captions. Counted in dictionaries they
take longer than everything else in a score; numbered and sorted together they do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from regard.metrics.score import Tokens

ORDERS = 4
"""The longest run that BLEU and CIDEr look at."""

Ngram = tuple[str, ...]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """How often runs stand in captions: a row for each caption and each run in it."""

    caption: Integers
    """``(r,)``: the number of the caption, rising."""
    run: Integers
    """``(r,)``: the number of the run, the same in all captions of all photos."""
    count: Integers
    """``(r,)``: how often, from 1."""


@dataclass(frozen=True)
class Runs:
    """The runs of a given number of words in captions and in their references."""

    order: int
    """How many words they have."""
    said: Counts
    """In the captions; a caption has the number of its photo."""
    wanted: Counts
    """In the references, which are numbered through all photos."""
    met: tuple[Integers, Integers]
    """``(m,)`` each, rows of ``said`` and of ``wanted``: a reference has what its caption has."""
    words: Sequence[str]
    """All words of all captions."""
    example: Integers
    """``(runs,)``: a place among ``words`` where each run stands."""

    def ngrams(self, which: Integers | None = None) -> list[Ngram]:
        """The words of each run, by its number; of those whose numbers are given, if they are."""
        example = self.example if which is None else self.example[which]
        return [tuple(self.words[start : start + self.order]) for start in example]


def count_runs(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[Runs]:
    """Count the runs of one word, of two, of three and of four.

    Args:
        hypotheses: n captions.
        references: for each photo any number.
    """
    photos = len(hypotheses)
    captions = [*hypotheses, *chain.from_iterable(references)]  # c of them with w words
    photo = np.arange(photos)
    photo = np.concatenate([photo, np.repeat(photo, [len(group) for group in references])])  # (c,)
    lengths = np.array([len(tokens) for tokens in captions])  # (c,)
    caption_at = np.repeat(np.arange(len(captions)), lengths)  # (w,)
    end_at = np.repeat(lengths.cumsum(), lengths)  # (w,)
    words = list(chain.from_iterable(captions))
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__  # a new word gets the next number
    word_at = np.array([numbers[word] for word in words], dtype=np.int64)  # (w,)

    found = []
    start, run, distinct = np.arange(len(words)), word_at, len(numbers)
    for order in range(1, ORDERS + 1):
        if order > 1:  # a run is a shorter one and the next word, if the caption has a next word
            inside = start + order <= end_at[start]
            start = start[inside]
            longer = run[inside] * len(numbers) + word_at[start + order - 1]
            kinds, run = np.unique(longer, return_inverse=True)
            distinct = len(kinds)
        example = np.empty(distinct, dtype=np.int64)
        example[run] = start
        rows, count = np.unique(caption_at[start] * distinct + run, return_counts=True)
        caption, which = np.divmod(rows, max(1, distinct))
        place = photo[caption] * distinct + which  # equal for the same run of the same photo
        half = int(np.searchsorted(caption, photos))
        found.append(
            Runs(
                order,
                Counts(caption[:half], which[:half], count[:half]),
                Counts(caption[half:] - photos, which[half:], count[half:]),
                _meet(place[:half], place[half:]),
                words,
                example,
            )
        )
    return found


def _meet(said: Integers, wanted: Integers) -> tuple[Integers, Integers]:
    """Where each of ``wanted`` stands in ``said``, which rises; those that do not are left out."""
    at = np.searchsorted(said, wanted)
    found = np.flatnonzero(np.append(said, -1)[at] == wanted)
    return at[found], found
