"""Runs of one to four words in a caption, counted."""

from __future__ import annotations

from collections import Counter

from regard.metrics.score import Tokens

ORDERS = 4
"""The longest run that BLEU and CIDEr look at."""

Ngram = tuple[str, ...]


def count_ngrams(tokens: Tokens) -> Counter[Ngram]:
    """How often each run of one to four words stands in a caption."""
    words = tuple(tokens)
    return Counter(
        words[i : i + n] for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1)
    )
