"""BLEU-1 to BLEU-4.

Source: Papineni et al., "BLEU: a method for automatic evaluation of machine translation" (2002),
with the reference length closest to the caption's, and with the constants of the COCO caption
evaluation, which keep a product of precisions from being zero when one of them is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from regard.metrics.ngrams import ORDERS, Runs, count_runs
from regard.metrics.score import Score, Tokens, check_photos

_TINY, _SMALL = 1e-15, 1e-9  # of the COCO caption evaluation

Floats = NDArray[np.float64]


def bleu(
    hypotheses: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    *,
    runs: Sequence[Runs] | None = None,
) -> list[Score]:
    """BLEU-1 to BLEU-4, from 0 to 1; their statistics are what :func:`bleu_of` takes.

    Args:
        hypotheses: n captions.
        references: for each photo at least one.
        runs: what :func:`count_runs` finds in them, where it is known already.

    Raises:
        DataError: the captions and references do not fit together.
    """
    check_photos(hypotheses, references)
    statistics = _statistics(hypotheses, references, runs or count_runs(hypotheses, references))
    each, corpus = bleu_of(statistics), bleu_of(statistics.sum(0))
    return [
        Score(f"BLEU-{k + 1}", float(corpus[k]), each[:, k], "regard", statistics)
        for k in range(ORDERS)
    ]


def bleu_of(sums: Floats) -> Floats:
    """BLEU-1 to BLEU-4 of photos whose statistics were added up.

    Args:
        sums: ``(..., 9)``: words in the closest references; runs of one to four words in the
            captions; and how many of these match. The runs cannot be had from the words: a caption
            of two words has no run of three, rather than less than none.

    Returns:
        ``(..., 4)``, from 0 to 1.
    """
    wanted, said, matched = np.split(sums, [1, 1 + ORDERS], axis=-1)  # (..., 1), twice (..., 4)
    precision = (matched + _TINY) / (said + _SMALL)
    means = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (said[..., :1] + _TINY) / (wanted + _SMALL)
    with np.errstate(over="ignore"):
        brevity = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    result: Floats = means * brevity
    return result


def _statistics(
    hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]], runs: Sequence[Runs]
) -> Floats:
    """``(n, 9)``: those of :func:`bleu_of`, for each photo."""
    lengths = [len(tokens) for tokens in hypotheses]
    closest = [
        min((abs(len(reference) - said), len(reference)) for reference in group)[1]
        for said, group in zip(lengths, references, strict=True)
    ]
    said = np.maximum(0, np.subtract.outer(lengths, np.arange(ORDERS)))  # (n, 4)
    matched = [_matched(of_order, len(hypotheses)) for of_order in runs]
    return np.column_stack([closest, said, *matched]).astype(float)


def _matched(runs: Runs, photos: int) -> Floats:
    """How many runs of each caption its references have, ``(photos,)``.

    A run counts as often as in the reference that has it most often.
    """
    said, wanted = runs.met
    most = np.zeros_like(runs.said.count)
    np.maximum.at(most, said, runs.wanted.count[wanted])
    return np.bincount(
        runs.said.caption, weights=np.minimum(runs.said.count, most), minlength=photos
    ).astype(float)
