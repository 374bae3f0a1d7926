"""BLEU-1 to BLEU-4.

Source: Papineni et al., "BLEU: a method for automatic evaluation of machine translation" (2002),
with the reference length closest to the caption's, and with the constants of the COCO caption
evaluation, which keep a product of precisions from being zero when one of them is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from regard.metrics.ngrams import ORDERS, Ngram, count_ngrams
from regard.metrics.score import Score, Tokens, check_photos

_TINY, _SMALL = 1e-15, 1e-9  # of the COCO caption evaluation


def bleu(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[Score]:
    """BLEU-1 to BLEU-4, from 0 to 1.

    Args:
        hypotheses: n captions.
        references: for each photo at least one.

    Raises:
        DataError: the captions and references do not fit together.
    """
    check_photos(hypotheses, references)
    matched = np.zeros((len(hypotheses), ORDERS))
    lengths = np.array([len(h) for h in hypotheses], dtype=float)
    wanted = np.zeros(len(hypotheses))
    for i, (hypothesis, group) in enumerate(zip(hypotheses, references, strict=True)):
        most: Counter[Ngram] = Counter()
        for reference in group:
            most |= count_ngrams(reference)
        for ngram, count in count_ngrams(hypothesis).items():
            matched[i, len(ngram) - 1] += min(count, most[ngram])
        wanted[i] = min((abs(len(r) - len(hypothesis)), len(r)) for r in group)[1]
    said = np.maximum(0.0, lengths[:, None] - np.arange(ORDERS))  # (n, 4)
    each = _combine(matched, said, lengths, wanted)
    corpus = _combine(
        matched.sum(0, keepdims=True), said.sum(0, keepdims=True), lengths.sum(keepdims=True),
        wanted.sum(keepdims=True),
    )[0]  # fmt: skip
    return [Score(f"BLEU-{k + 1}", float(corpus[k]), each[:, k], "regard") for k in range(ORDERS)]


def _combine(
    matched: np.ndarray, said: np.ndarray, length: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Geometric means of the precisions with the penalty for brevity: ``(n, 4)``."""
    precision = (matched + _TINY) / (said + _SMALL)
    means = np.cumprod(precision, axis=1) ** (1 / np.arange(1, ORDERS + 1))
    ratio = (length + _TINY) / (wanted + _SMALL)
    with np.errstate(over="ignore"):
        penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    result: np.ndarray = means * penalty[:, None]
    return result
