"""Candidate captions in the order in which the captioner's own draws agree with them.

The most probable caption is not the one that people agree with most: probability counts every
word alike and knows no near misses. What the captioner thinks of a photo is its whole
distribution, of which captions drawn at random are a fair sample; the best caption is the one that
scores highest, on average, with those as its references. Sources: Kumar and Byrne, "Minimum
Bayes-risk decoding for statistical machine translation" (2004); Devlin et al., "Exploring nearest
neighbor approaches for image captioning" (2015, section 3.2), where the draws are captions of
similar photos; and Eikema and Aziz, "Sampling-based approximations to minimum Bayes risk decoding"
(2022), where the candidates are from elsewhere than the draws, as here.
"""

from __future__ import annotations

from collections.abc import Sequence

from regard.metrics.cider import DocumentFrequencies, Floats, cider
from regard.metrics.score import Tokens


def agreement(
    candidates: Sequence[Tokens], drawn: Sequence[Tokens], frequencies: DocumentFrequencies
) -> Floats:
    """The mean CIDEr-D of each candidate with the captions drawn of its photo, ``(C,)``, 0 to 10.

    Args:
        candidates: C captions of one photo.
        drawn: at least one caption of the same photo.
        frequencies: how many photos of the training split have which phrase.
    """
    return cider(candidates, [drawn] * len(candidates), frequencies).per_photo
