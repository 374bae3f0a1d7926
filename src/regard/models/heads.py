"""Scaled dot-product attention with several heads, which keeps its weights.

Source: Vaswani et al., "Attention is all you need" (2017), section 3.2::

    S = Q K^T / sqrt(N / heads)        P = softmax(S)        O = P V

and its way back, with ``d_u`` for the gradient of the loss by ``u``::

    d_V = P^T d_O                      d_P = d_O V^T (and what is asked of the weights themselves)
    d_S = P * (d_P - sum_j P_j d_P_j) / sqrt(N / heads)
    d_Q = d_S K                        d_K = d_S^T Q

PyTorch's own fused attention does not give the weights, and on a CPU and for some dozens of words
and regions its way back is slower than products written out. Those read and write every ``(rows,
heads, Q, L)`` several times, and lay out anew what they multiply. Compiled, for bfloat16 and a
processor with a unit for matrices, a head's products stay in the cache
(:mod:`regard.models.native`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.models.native import matrix_unit, native


class Memory(NamedTuple):
    """What can be attended to: keys and values, each ``(rows, heads, length, N / heads)``."""

    keys: Tensor
    values: Tensor

    def rows(self, indices: Tensor) -> Memory:
        """That of other rows."""
        return Memory(self.keys[indices], self.values[indices])

    def then(self, later: Memory) -> Memory:
        """The earlier and the later, as one."""
        return Memory(*(torch.cat(pair, dim=2) for pair in zip(self, later, strict=True)))


def attend(query: Tensor, memory: Memory, *, causal: bool = False) -> tuple[Tensor, Tensor]:
    """Attention, written out.

    Args:
        query: ``(rows, heads, Q, N / heads)``.
        memory: of length L.
        causal: whether each query asks only as many keys as there are queries up to it.

    Returns:
        What was found, shaped as ``query``, and the weights ``(rows, heads, Q, L)``, which sum to 1
        over L but for the rounding of their precision, that of the query.
    """
    scores = (query * query.shape[-1] ** -0.5) @ memory.keys.transpose(-1, -2)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    weights = scores.softmax(dim=-1)
    return weights @ memory.values, weights


def attend_joined(
    query: Tensor, memory: Tensor | None, heads: int, *, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention of what one layer projected, with a gradient.

    Args:
        query: ``(rows, Q, N)``; without a memory ``(rows, Q, 3 N)``: queries, keys and values.
        memory: ``(rows, L, 2 N)``: keys and values.
        heads: they share N.
        causal: as in :func:`attend`.

    Returns:
        What was found, ``(rows, Q, N)``, and the weights as of :func:`attend`.
    """
    width = query.shape[-1] // (3 if memory is None else 1)
    # The unit takes 32 values at a time, and the compiled function at most 64.
    if width // heads in (32, 64) and native("attend", query) and matrix_unit():
        found, weights = _Attention.apply(query, memory, heads, causal)  # type: ignore[no-untyped-call]
        return found, weights
    if memory is None:
        asked, *known = by_head(query, 3, heads)
    else:
        (asked,), known = by_head(query, 1, heads), list(by_head(memory, 2, heads))
    found, weights = attend(asked, Memory(*known), causal=causal)
    return found.transpose(1, 2).flatten(2), weights


def by_head(projected: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """``(rows, length, parts N)`` to ``parts`` of ``(rows, heads, length, N / heads)``, dense."""
    rows, length, _ = projected.shape
    apart = projected.view(rows, length, parts, heads, -1).permute(2, 0, 3, 1, 4)
    return apart.contiguous().unbind(0)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, memory: Tensor | None, heads: int, causal: bool
    ) -> tuple[Tensor, Tensor]:
        query, memory = query.contiguous(), None if memory is None else memory.contiguous()
        q, k, v = _parts(query, memory)
        rows, asked, width = q.shape
        found = query.new_empty(rows, asked, width)
        weights = query.new_empty(rows, heads, asked, k.shape[1])
        compiled = native("attend", query)
        assert compiled is not None
        compiled(
            q, q.stride(1), k, v, k.stride(1), found, weights, rows, heads, asked, k.shape[1],
            width // heads, int(causal), 1 / math.sqrt(width // heads),
        )  # fmt: skip
        ctx.save_for_backward(query, memory, weights)
        ctx.set_materialize_grads(False)
        return found, weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, d_found: Tensor | None, d_weights: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        query, memory, weights = ctx.saved_tensors
        q, k, v = _parts(query, memory)
        rows, asked, width = q.shape
        heads = weights.shape[1]
        d_query = torch.empty_like(query)
        d_memory = None if memory is None else torch.empty_like(memory)
        d_q, d_k, d_v = _parts(d_query, d_memory)
        if d_found is None:
            d_found = torch.zeros_like(q)
        compiled = native("attend_back", query)
        assert compiled is not None
        compiled(
            q, q.stride(1), k, v, k.stride(1), weights, d_found.contiguous(),
            None if d_weights is None else d_weights.contiguous(), d_q, d_k, d_v, rows, heads,
            asked, k.shape[1], width // heads, 1 / math.sqrt(width // heads),
        )  # fmt: skip
        return d_query, d_memory, None, None


def _parts(query: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as views, each ``(rows, length, N)``."""
    if memory is None:
        q, k, v = query.chunk(3, dim=-1)
        return q, k, v
    k, v = memory.chunk(2, dim=-1)
    return query, k, v
