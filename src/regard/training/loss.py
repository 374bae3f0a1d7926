"""What is minimised: the surprise at each word, from scores of the whole vocabulary.

With scores ``l``, ``p = softmax(l)``, the word y that follows and label smoothing ``s`` (Szegedy
et al., "Rethinking the Inception architecture", 2016, section 7)::

    z       = log sum_j e^(l_j)
    nll     = z - l_y
    spread  = z - mean_j l_j                             the mean of -log p over the vocabulary
    loss    = (1 - s) nll + s spread
    d_l_j   = p_j - s / V - (1 - s) [j = y]

Teachers' expectation q may take the share a of the word itself (Hinton et al., "Distilling the
knowledge in a neural network", 2015, section 2; for words, Kim and Rush, "Sequence-level knowledge
distillation", 2016, section 3.1). Then it is::

    taught  = z - sum_j q_j l_j
    loss    = (1 - s) ((1 - a) nll + a taught) + s spread
    d_l_j   = p_j - s / V - (1 - s) ((1 - a) [j = y] + a q_j)

Each word's loss, and with it its gradient, may have a weight. Where nothing follows, there is none.

Nothing of size ``(M, V)`` is kept but the scores themselves, in the precision they came in, and
their gradient takes their place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.models.native import native

NOTHING = -1
"""The target where no word follows: its scores have no loss and no gradient."""

ROWS = 64
"""Words at a time in torch, so that what is computed of them in float32 stays in the cache."""


class Taught(NamedTuple):
    """What teachers expect at M words, where something follows."""

    ids: Tensor
    """``(M, k)``, the words."""
    shares: Tensor
    """``(M, k)``, float32: q, each row sums to 1."""
    a: float
    """Share of the target that is theirs, from 0 to 1."""


def surprise(
    scores: Tensor,
    targets: Tensor,
    *,
    smoothing: float,
    weights: Tensor | None = None,
    taught: Taught | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums over M words.

    Args:
        scores: ``(M, V)``, of no further use: their gradient is written over them.
        targets: ``(M,)``, the ids that follow, or :data:`NOTHING`.
        smoothing: share of the target that is spread evenly over the vocabulary.
        weights: ``(M,)``, float32: of each word in the loss; none is 1.
        taught: what teachers expect.

    Returns:
        The loss, and ``-log p`` in nats, without a gradient and without weights.
    """
    total, nll = _Surprise.apply(  # type: ignore[no-untyped-call]
        scores, targets, smoothing, weights, taught
    )
    return total, nll


class _Surprise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        targets: Tensor,
        smoothing: float,
        weights: Tensor | None,
        taught: Taught | None,
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
        ctx.smoothing, ctx.taught = smoothing, taught
        said = nll.sum()
        ctx.mark_non_differentiable(said)
        if taught is not None:
            expected = (taught.shares * scores.gather(-1, taught.ids)).sum(-1)  # (M,)
            theirs = (normaliser - expected).where(targets != NOTHING, 0)
            nll = (1 - taught.a) * nll + taught.a * theirs
        if weights is not None:
            nll, spread = nll * weights, spread * weights
        return (1 - smoothing) * nll.sum() + smoothing * spread.sum(), said

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_total: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        scores, targets, normaliser, weights = ctx.saved_tensors
        smoothing, taught = ctx.smoothing, ctx.taught
        said = (1 - smoothing) * (1 - (taught.a if taught else 0))  # share of the word itself
        words, vocabulary = scores.shape
        if compiled := native("surprise_back", scores):
            compiled(
                scores, targets, normaliser, weights, float(d_total), float(smoothing), float(said),
                words, vocabulary,
            )  # fmt: skip
            torch.autograd.graph.increment_version(scores)  # autograd must know, as of torch's own
        else:
            for rows in _chunks(scores):
                p = (scores[rows].to(normaliser.dtype) - normaliser[rows, None]).exp_()
                p -= smoothing / vocabulary
                target = targets[rows, None]
                p.scatter_add_(-1, target.clamp_min(0), p.new_full((1, 1), -said).expand(len(p), 1))
                torch.mul(p, d_total * (target != NOTHING), out=p)
                if weights is not None:
                    p *= weights[rows, None]
                scores[rows] = p
        if taught is not None:
            each = (targets != NOTHING) * (-(1 - smoothing) * taught.a * d_total)  # (M,)
            if weights is not None:
                each = each * weights
            theirs = each.unsqueeze(-1) * taught.shares
            scores.scatter_add_(-1, taught.ids, theirs.to(scores.dtype))
        return scores, None, None, None, None


def _chunks(scores: Tensor) -> list[slice]:
    """A few rows at a time on a CPU, all at once elsewhere."""
    size = ROWS if scores.device.type == "cpu" else max(1, len(scores))
    return [slice(i, i + size) for i in range(0, len(scores), size)]
