"""Reading known captions with the loop of :mod:`regard.models.recurrence`, as autograd has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.models.captured import take
from regard.models.recurrence import (
    Given,
    Kept,
    Weights,
    as_rows,
    backward,
    forward,
    gpu_kernels,
)


def recur(
    words: Tensor, keys: Tensor, regions: Tensor, h: Tensor, c: Tensor, weights: Weights
) -> tuple[Tensor, Tensor]:
    """Read known captions word by word.

    Args:
        words: ``(T, B, K, 4N)``, the words' part of the gates with their bias.
        keys: ``(B, L, A)``, the regions' part of the scores. Its dtype is that of the products.
        regions: ``(B, L, D)``, or ``(B, L, 4N)`` if W_z has been applied to them, which is exact
            without a gate; same dtype as ``keys``.
        h: ``(B, K, N)``, the hidden state before the first word.
        c: ``(B, K, N)``, the cell state before the first word.
        weights: the weights of the loop.

    Returns:
        The hidden states after each word ``(T, B, K, N)``, in the precision of the products, and
        the attention weights ``(T, B, K, L)``, at least float32.
    """
    hidden, attention = _Recurrence.apply(words, keys, regions, h, c, *weights)  # type: ignore[no-untyped-call]
    return hidden, attention


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        words: Tensor,
        keys: Tensor,
        regions: Tensor,
        h: Tensor,
        c: Tensor,
        past: Tensor,
        score: Tensor,
        context: Tensor | None,
        gate_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        steps, photos, each, four_n = words.shape
        rows, n = photos * each, four_n // 4
        narrow = keys.dtype
        wide = torch.promote_types(narrow, torch.float32)
        given = Given(
            words.to(narrow).contiguous().view(steps, rows, four_n),
            keys.contiguous(),
            regions.contiguous(),
            h.reshape(rows, n).to(narrow),
            c.reshape(rows, n).to(wide),
            past.to(narrow),
            score.to(wide),
            None if context is None else context.to(narrow),
            None if gate_bias is None else gate_bias.to(wide),
        )
        taken = (words, keys, regions, h, c, past, score, context, gate_bias)
        ctx.like = [None if x is None else (x.shape, x.dtype) for x in taken]
        ctx.set_materialize_grads(False)
        ctx.graph = None
        if _launches(keys):
            ctx.graph = take(
                given, back=any(ctx.needs_input_grad), of_regions=ctx.needs_input_grad[2]
            )
            states, attention = ctx.graph.forward(given)
        else:
            kept = Kept.blank(given)
            forward(given, kept)
            ctx.save_for_backward(*given, *kept)
            states, attention = kept.states[1:], kept.attention
        shape = (steps, photos, each, -1)
        return states.view(shape), attention.view(shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_hidden: Tensor | None, d_attention: Tensor | None) -> tuple[Any, ...]:
        if ctx.graph is not None:
            d_given = ctx.graph.backward(d_hidden, d_attention)
        else:
            saved = ctx.saved_tensors
            given, kept = Given(*saved[: len(Given._fields)]), Kept(*saved[len(Given._fields) :])
            d_given = backward(
                given,
                kept,
                *as_rows(kept, d_hidden, d_attention),
                of_regions=ctx.needs_input_grad[2],
            )
        return tuple(
            None if d is None or like is None else d.view(like[0]).to(like[1])
            for d, like in zip(d_given, ctx.like, strict=True)
        )


def _launches(keys: Tensor) -> bool:
    """Whether a step's kernels are launched one by one, by a processor that is slower than them."""
    return keys.is_cuda and gpu_kernels(keys) is not None
