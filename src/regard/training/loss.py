"""What is minimised: the surprise at each word, from scores of the whole vocabulary.

With scores ``l``, ``p = softmax(l)``, the word y that follows and label smoothing ``s`` (Szegedy
et al., "Rethinking the Inception architecture", 2016, section 7)::

    z       = log sum_j e^(l_j)
    nll     = z - l_y
    spread  = z - mean_j l_j                             the mean of -log p over the vocabulary
    loss    = (1 - s) nll + s spread
    d_l_j   = p_j - s / V - (1 - s) [j = y]

Each word's loss, and with it its gradient, may have a weight. Where nothing follows, there is none.

Nothing of size ``(M, V)`` is kept but the scores themselves, in the precision they came in, and
their gradient takes their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.models.native import native

NOTHING = -1
"""The target where no word follows: its scores have no loss and no gradient."""

ROWS = 64
"""Words at a time in torch, so that what is computed of them in float32 stays in the cache."""


def surprise(
    scores: Tensor, targets: Tensor, *, smoothing: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sums over M words.

    Args:
        scores: ``(M, V)``, of no further use: their gradient is written over them.
        targets: ``(M,)``, the ids that follow, or :data:`NOTHING`.
        smoothing: share of the target that is spread evenly over the vocabulary.
        weights: ``(M,)``, float32: of each word in the loss; none is 1.

    Returns:
        The loss, and ``-log p`` in nats, without a gradient and without weights.
    """
    total, nll = _Surprise.apply(  # type: ignore[no-untyped-call]
        scores, targets, smoothing, weights
    )
    return total, nll


class _Surprise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scores = scores.contiguous()
        words, vocabulary = scores.shape
        wide = torch.promote_types(scores.dtype, torch.float32)
        normaliser, nll, spread = scores.new_empty(3, words, dtype=wide)
        if compiled := native("surprise", scores):
            compiled(scores, targets, normaliser, nll, spread, words, vocabulary)
        else:
            for rows in _chunks(scores):
                x, follows = scores[rows].to(wide), targets[rows] != NOTHING
                said = x.gather(-1, targets[rows, None].clamp_min(0)).squeeze(-1)
                normaliser[rows] = x.logsumexp(-1)
                nll[rows] = (normaliser[rows] - said).where(follows, 0)
                spread[rows] = (normaliser[rows] - x.mean(-1)).where(follows, 0)
        ctx.save_for_backward(scores, targets, normaliser, weights)
        ctx.smoothing = smoothing
        said = nll.sum()
        ctx.mark_non_differentiable(said)
        if weights is not None:
            nll, spread = nll * weights, spread * weights
        return (1 - smoothing) * nll.sum() + smoothing * spread.sum(), said

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_total: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        scores, targets, normaliser, weights = ctx.saved_tensors
        smoothing = ctx.smoothing
        words, vocabulary = scores.shape
        if compiled := native("surprise_back", scores):
            compiled(
                scores, targets, normaliser, weights, float(d_total), float(smoothing), words,
                vocabulary,
            )  # fmt: skip
            torch.autograd.graph.increment_version(scores)  # autograd must know, as of torch's own
            return scores, None, None, None
        for rows in _chunks(scores):
            p = (scores[rows].to(normaliser.dtype) - normaliser[rows, None]).exp_()
            p -= smoothing / vocabulary
            target = targets[rows, None]
            p.scatter_add_(
                -1, target.clamp_min(0), p.new_full((1, 1), smoothing - 1).expand(len(p), 1)
            )
            torch.mul(p, d_total * (target != NOTHING), out=p)
            if weights is not None:
                p *= weights[rows, None]
            scores[rows] = p
        return scores, None, None, None


def _chunks(scores: Tensor) -> list[slice]:
    """A few rows at a time on a CPU, all at once elsewhere."""
    size = ROWS if scores.device.type == "cpu" else max(1, len(scores))
    return [slice(i, i + size) for i in range(0, len(scores), size)]
