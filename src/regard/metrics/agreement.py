"""How much the captions of a photo agree.

Candidates are put in the order in which the captioner's own draws agree with them. The most
probable caption is not the one that people agree with most: probability counts every word alike and
knows no near misses. What the captioner thinks of a photo is its whole distribution, of which
captions drawn at random are a fair sample; the best caption is the one that scores highest, on
average, with those as its references. Where several captioners choose each word together, or one
sees several views of a photo, the draws are shared out among them: a mixture of what each thinks of
the photo. Sources: Kumar and Byrne, "Minimum Bayes-risk decoding for statistical machine
translation" (2004); Devlin et al., "Exploring nearest neighbor approaches for image captioning"
(2015, section 3.2), where the draws are captions of similar photos; and Eikema and Aziz,
"Sampling-based approximations to minimum Bayes risk decoding" (2022), where the candidates are from
elsewhere than the draws, as here.

People's captions agree more or less with each other too, which can weigh them in training: Phan et
al., "Consensus-based sequence training for video captioning" (2017), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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


def agreement_among(
    captions: Sequence[Sequence[Tokens]], frequencies: DocumentFrequencies
) -> list[Floats]:
    """The mean CIDEr-D of each caption with the others of its photo, 0 to 10; 0 where it is alone.

    Args:
        captions: of each photo.
        frequencies: how many photos of the training split have which phrase.
    """
    pairs = [
        (group[k], [*group[:k], *group[k + 1 :]])
        for group in captions
        if len(group) > 1
        for k in range(len(group))
    ]
    those, others = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = iter(cider(those, others, frequencies).per_photo if pairs else ())
    return [np.array([next(found) if len(group) > 1 else 0.0 for _ in group]) for group in captions]
