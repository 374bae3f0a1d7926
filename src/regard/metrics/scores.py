"""All scores of captions that need nothing but the captions."""

from __future__ import annotations

from collections.abc import Sequence

from regard.metrics.bleu import bleu
from regard.metrics.cider import cider, plain_cider
from regard.metrics.ngrams import count_runs
from regard.metrics.rouge import rouge_l
from regard.metrics.score import Score, Tokens, check_photos


def score_all(
    hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> dict[str, Score]:
    """BLEU-1 to BLEU-4, ROUGE-L and both forms of CIDEr, by name, in this order.

    Args:
        hypotheses: n captions as tokens.
        references: for each photo at least one.

    Raises:
        DataError: the captions and references do not fit together.
    """
    check_photos(hypotheses, references)
    runs = count_runs(hypotheses, references)  # once for all that look at runs
    scores = [
        *bleu(hypotheses, references, runs=runs),
        rouge_l(hypotheses, references),
        cider(hypotheses, references, runs=runs),
        plain_cider(hypotheses, references, runs=runs),
    ]
    return {score.name: score for score in scores}
