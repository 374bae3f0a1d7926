"""METEOR 1.5 for English, as the COCO caption evaluation runs it, without Java.

Source: Denkowski and Lavie, "Meteor Universal: language specific translation evaluation for any
target language" (2014): words of a caption and of a reference are aligned, precision and recall
are weighed by how the words match and by whether they carry content, and an alignment in many
pieces costs a part of the score. Parameters and weights are those that the program has for English
and the task "rank"; the file ``benchmarks/meteor_parity.py`` measures how far the two differ.

The tables of synonyms and paraphrases are those of the program, and come with pycocoevalcap.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from regard.metrics.meteor_alignment import Sentence, Stage, align, phrases_of
from regard.metrics.meteor_tables import read_paraphrases, read_tables
from regard.metrics.meteor_words import Lexicon, Word
from regard.metrics.score import Score, Tokens, check_photos

Floats = NDArray[np.float64]

ALPHA = 0.85
"""Weight of recall over precision."""
BETA, GAMMA = 0.2, 0.6
"""Shape and largest share of the penalty for an alignment in pieces."""
DELTA = 0.75
"""Weight of content words over function words."""
WEIGHTS = {Stage.EXACT: 1.0, Stage.STEM: 0.6, Stage.SYNONYM: 0.8, Stage.PARAPHRASE: 0.6}

_COUNTS = (1 + len(Stage), 2, 2)
STATISTICS = math.prod(_COUNTS) + 1
"""S, the number of statistics of a photo: counts of words, ``(5, 2, 2)``, then of chunks.

The words are all words, then those that each of the four stages matched; of content, of function;
in the caption, in the reference. An alignment that is one whole has no chunk: it costs nothing.
"""


def meteor(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Score:
    """METEOR, from 0 to 1, with the best reference of each photo.

    The corpus value is not the mean over photos: it is computed from the sum of ``statistics``,
    ``(n, S)``, by :func:`combine`.

    Args:
        hypotheses: n captions.
        references: for each photo at least one.

    Raises:
        DataError: the captions and references do not fit together.
        MissingExtraError: pycocoevalcap or snowballstemmer is not installed.
    """
    check_photos(hypotheses, references)
    lexicon = Lexicon(read_tables())
    said = [lexicon.read(tokens) for tokens in hypotheses]
    wanted = [[lexicon.read(tokens) for tokens in group] for group in references]
    sentences = _sentences({*said, *chain.from_iterable(wanted)})
    statistics = np.empty((len(said), STATISTICS))
    for i, (hypothesis, group) in enumerate(zip(said, wanted, strict=True)):
        each = np.stack([_count(sentences[hypothesis], sentences[words]) for words in group])
        statistics[i] = each[combine(each).argmax()]  # the first of equals
    corpus = float(combine(statistics.sum(0)))
    return Score("METEOR", corpus, combine(statistics), "regard", statistics)


def combine(statistics: Floats) -> Floats:
    """METEOR from the statistics of a photo, or from the sum of those of many.

    Args:
        statistics: ``(..., S)``.

    Returns:
        ``(...)``, from 0 to 1.
    """
    counts = statistics[..., :-1].reshape(*statistics.shape[:-1], *_COUNTS)
    shares = (DELTA, 1 - DELTA)
    lengths = shares[0] * counts[..., 0, 0, :] + shares[1] * counts[..., 0, 1, :]  # (..., 2)
    matched = np.zeros_like(lengths)
    # One by one and in the program's order: the last bit may decide between two references.
    for kind, share in enumerate(shares):
        for stage, weight in WEIGHTS.items():
            matched += counts[..., 1 + stage, kind, :] * weight * share
    with np.errstate(divide="ignore", invalid="ignore"):
        covered = matched / lengths
        precision, recall = covered[..., 0], covered[..., 1]
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        pieces = statistics[..., -1] / (counts[..., 1:, :, :].sum((-3, -2, -1)) / 2)
        score = mean * (1 - GAMMA * pieces**BETA)
    result: Floats = np.nan_to_num(score)  # 0 where there is no word, or no match
    return result


def _sentences(read: Collection[tuple[Word, ...]]) -> dict[tuple[Word, ...], Sentence]:
    """Each caption and reference with its paraphrases, from one reading of their table."""
    paraphrases = read_paraphrases({phrase for words in read for _, phrase in phrases_of(words)})
    known = {*paraphrases, *chain.from_iterable(paraphrases.values())}
    return {words: Sentence.of(words, paraphrases, known) for words in read}


def _count(said: Sentence, wanted: Sentence) -> Floats:
    """The statistics of one caption and one reference: ``(S,)``."""
    matches, chunks = align(said, wanted)
    counts = np.zeros(_COUNTS)
    for side, sentence in enumerate((said, wanted)):
        for word in sentence.words:
            counts[0, int(word.is_function), side] += 1
    for match in matches:
        for side, (sentence, place) in enumerate(((said, match.said), (wanted, match.wanted))):
            for i in place:
                counts[1 + match.stage, int(sentence.words[i].is_function), side] += 1
    whole = chunks == 1 and np.array_equal(counts[1:].sum(0), counts[0])
    return np.append(counts, 0 if whole else chunks)
