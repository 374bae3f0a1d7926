"""Additive attention over the regions of a photo.

Source: Bahdanau, Cho and Bengio, "Neural machine translation by jointly learning to align and
translate" (2015), section A.1.2, as used for captions by Xu et al., "Show, attend and tell"
(2015), section 3.1.2::

    e_i   = v . tanh(W_a a_i + W_h h + b)        a raw score for each region
    alpha = softmax(e)                            weights, sum to 1
    z     = sum_i alpha_i a_i                     the context

Written as a table, the score is a linear layer on the concatenation ``[a_i ; h]``. Splitting that
layer in two is exact and lets ``W_a a_i + b`` be computed once for each photo: it depends neither
on the word nor on which of the photo's captions is being read. The bias that a linear layer to one
score would have is left out: it adds the same number to every region, and the softmax removes it.
"""

from __future__ import annotations

from torch import Tensor, nn

from regard.models.recurrence import gather, look


class AdditiveAttention(nn.Module):
    """Where to look, given what has been said.

    Args:
        feature_width: D, the width of a region.
        hidden_width: N, the width of the decoder's hidden state.
        attention_width: A, the width of the space in which both are compared.
    """

    def __init__(self, *, feature_width: int, hidden_width: int, attention_width: int) -> None:
        super().__init__()
        self.of_region = nn.Linear(feature_width, attention_width)
        self.of_hidden = nn.Linear(hidden_width, attention_width, bias=False)
        self.score = nn.Linear(attention_width, 1, bias=False)

    def keys(self, regions: Tensor) -> Tensor:
        """The part of the scores that depends on the photo alone.

        Args:
            regions: ``(B, L, D)``.

        Returns:
            ``W_a a_i + b`` for each region, ``(B, L, A)``.
        """
        keys: Tensor = self.of_region(regions)
        return keys

    def forward(self, query: Tensor, keys: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Look once, for use: it has no gradient (:func:`regard.models.reading.recur` has).

        Args:
            query: ``(B, K, A)``, from :attr:`of_hidden`, of the K captions of each photo.
            keys: ``(B, L, A)``, from :meth:`keys`.
            regions: ``(B, L, D)``.

        Returns:
            The context ``(B, K, D)`` and the weights ``(B, K, L)``, which are at least 0 and sum
            to 1.
        """
        weights = look(keys, query, self.score.weight.squeeze(0))  # (B, K, L)
        return gather(weights, regions), weights
