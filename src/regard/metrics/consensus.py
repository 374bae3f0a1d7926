"""CIDEr of many captions of photos whose references are known beforehand.

A reward is asked for a hundred captions, thousands of times. What does not depend on them, which
runs of words the references hold and what each weighs there, is counted once. The values are those
of :func:`regard.metrics.cider.cider` with the document frequencies of these references.

Legend: B photos, K captions of each, S = B K; m references in all, R the most of one photo. A run
has one to four words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from regard.metrics.cider import SIGMA, Floats
from regard.metrics.ngrams import ORDERS, Integers
from regard.metrics.score import Tokens

_WORDS = 2**31
"""More than there are words: a run's number times this, plus the next word's, names the longer."""


@dataclass(frozen=True)
class _Known:
    """The runs of one length in all references."""

    keys: Integers
    """``(runs,)``, rising: what names each run. Its place here is its number."""
    rarity: Floats
    """``(runs,)``: the logarithm of all photos over those whose references have it."""
    norms: Floats
    """``(m,)``: of each reference's weights."""
    first: Integers
    """``(photos + 1,)``: where a photo's rows begin among those below."""
    run: Integers
    """``(r,)``: a run that a reference has, rising within a photo."""
    reference: Integers
    """``(r,)``: which of its photo's references."""
    weight: Floats
    """``(r,)``: how often it has the run, times the run's rarity."""


class Consensus:
    """CIDEr-D against the references of some photos, whose document frequencies these are.

    Args:
        references: for each photo at least one.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        counts = np.array([len(group) for group in references], dtype=np.int64)
        self._first = np.concatenate([[0], counts.cumsum()])  # (photos + 1,)
        self._unseen = math.log(len(references))
        """Rarity of a run that no reference has."""
        captions = list(chain.from_iterable(references))
        self._pairs = _pairs(captions)  # (m,)
        self._words = {word: i for i, word in enumerate(sorted(set(chain.from_iterable(captions))))}
        self._known: list[_Known] = []
        photo = np.repeat(np.arange(len(counts)), counts)  # (m,)
        for caption, key in self._runs(captions):
            keys, run = np.unique(key, return_inverse=True)
            rows, count = np.unique(caption * len(keys) + run, return_counts=True)
            caption, run = np.divmod(rows, max(1, len(keys)))
            place = photo[caption] * len(keys) + run  # equal for a run of the same photo
            having = np.bincount(np.unique(place) % max(1, len(keys)), minlength=len(keys))
            rarity = self._unseen - np.log(having)
            weight = count * rarity[run]
            order = np.argsort(place, kind="stable")
            self._known.append(
                _Known(
                    keys=keys,
                    rarity=rarity,
                    norms=np.sqrt(np.bincount(caption, weight**2, minlength=len(captions))),
                    first=np.searchsorted(photo[caption[order]], np.arange(len(counts) + 1)),
                    run=run[order],
                    reference=(caption - self._first[photo[caption]])[order],
                    weight=weight[order],
                )
            )

    def __call__(self, photos: Sequence[int], captions: Sequence[Sequence[Tokens]]) -> Floats:
        """CIDEr-D of each caption, from 0 to 10: ``(B, K)``.

        Args:
            photos: B numbers of photos, in the order of the references.
            captions: for each of them K.
        """
        said = list(chain.from_iterable(captions))  # S of them
        each = len(said) // len(photos)
        of = np.array(photos)
        counts = self._first[of + 1] - self._first[of]  # (B,), references
        places = np.arange(counts.max())  # (R,)
        # Where a photo has fewer than R, the last one stands again: there all products are zero.
        wanted = self._first[of, None] + np.minimum(places, counts[:, None] - 1)  # (B, R)
        similarity = np.zeros((len(said), len(places)))
        for known, (caption, key) in zip(self._known, self._runs(said), strict=True):
            run, rarity = _found(known, key, self._unseen)
            rows, count = np.unique(caption * len(rarity) + run, return_counts=True)
            caption, run = np.divmod(rows, len(rarity))
            weight = count * rarity[run]
            norms = np.sqrt(np.bincount(caption, weight**2, minlength=len(said)))  # (S,)
            norms = norms[:, None] * known.norms[wanted].repeat(each, axis=0)  # (S, R)
            dot = _products(known, of, caption, caption // each, run, weight, similarity.shape)
            similarity += np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0)
        apart = _pairs(said)[:, None] - self._pairs[wanted].repeat(each, axis=0)
        similarity *= 10 / ORDERS * np.exp(-(apart**2) / (2 * SIGMA**2))
        means: Floats = similarity.sum(1).reshape(-1, each) / counts[:, None]
        return means

    def _runs(self, captions: Sequence[Tokens]) -> Iterator[tuple[Integers, Integers]]:
        """Of each length all runs in captions: which caption's each is, and the key of its name.

        The first time round, the keys of longer runs are made of the numbers that were just
        learnt; then of what is known. What no reference has is numbered behind that.
        """
        words = dict(self._words)
        lengths = np.array([len(tokens) for tokens in captions])
        caption = np.repeat(np.arange(len(captions)), lengths)  # (w,)
        end = np.repeat(lengths.cumsum(), lengths)
        word = np.array(
            [words.setdefault(word, len(words)) for word in chain.from_iterable(captions)],
            dtype=np.int64,
        )
        start, key = np.arange(len(word)), word
        for order in range(1, ORDERS + 1):
            if order > 1:
                run, _ = _found(self._known[order - 2], key, 0.0)
                inside = start + order <= end[start]
                start = start[inside]
                key = run[inside] * _WORDS + word[start + order - 1]
            yield caption[start], key


def _pairs(captions: Sequence[Tokens]) -> Integers:
    """The length of each caption as the COCO evaluation measures it, in pairs of words."""
    return np.array([max(0, len(tokens) - 1) for tokens in captions], dtype=np.int64)


def _found(known: _Known, key: Integers, unseen: float) -> tuple[Integers, Floats]:
    """The numbers of runs by their keys, and the rarity by number; the unknown come last."""
    at = np.searchsorted(known.keys, key)
    new = np.append(known.keys, -1)[at] != key
    kinds, number = np.unique(key[new], return_inverse=True)
    at[new] = len(known.keys) + number
    return at, np.concatenate([known.rarity, np.full(len(kinds), unseen)])


def _products(
    known: _Known,
    of: Integers,
    caption: Integers,
    place: Integers,
    run: Integers,
    weight: Floats,
    shape: tuple[int, ...],
) -> Floats:
    """The clipped products of captions with the references of their photos, ``(S, R)``.

    Args:
        known: the runs of this length.
        of: ``(B,)``, the photos.
        caption: ``(r,)``: a run of a caption, and
        place: which of the B its photo is,
        run: the run's number,
        weight: and its weight there.
        shape: S and R.
    """
    spans = [np.arange(known.first[p], known.first[p + 1]) for p in of]
    rows = np.concatenate(spans)
    wanted = np.repeat(np.arange(len(of)), [len(span) for span in spans])
    wanted = wanted * len(known.keys) + known.run[rows]  # rises
    seen = run < len(known.keys)
    caption, weight = caption[seen], weight[seen]
    asked = place[seen] * len(known.keys) + run[seen]
    low, high = (np.searchsorted(wanted, asked, side=side) for side in ("left", "right"))
    often = high - low
    a = np.repeat(np.arange(len(asked)), often)
    b = rows[np.arange(len(a)) - np.repeat(often.cumsum() - often - low, often)]
    product = np.minimum(weight[a], known.weight[b]) * known.weight[b]
    cell = caption[a] * shape[1] + known.reference[b]
    sums: Floats = np.bincount(cell, product, math.prod(shape)).astype(float).reshape(shape)
    return sums
