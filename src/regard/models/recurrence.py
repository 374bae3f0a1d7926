r"""The loop over the words of known captions, with its backward pass written by hand.

One step, for the K captions of each of B photos (letters as in :mod:`regard.models`)::

    q_t     = W_q h_(t-1)                                 (A)
    e_ti    = v . tanh(k_i + q_t)                         k_i = W_a a_i + b, given
    alpha_t = softmax(e_t)                                (L)
    y_t     = sum_i alpha_ti a_i                          (D)
    z_t     = beta_t * y_t,  beta_t = sigmoid(W_b h_(t-1) + b_b)     the gate; without it z_t = y_t
    g_t     = x_t + W_h h_(t-1) + W_z z_t                 (4N), x_t = W_x (word t) + bias, given
    i, f, o = sigmoid(g^i, g^f, g^o),   n = tanh(g^n)
    c_t     = f * c_(t-1) + i * n
    h_t     = o * tanh(c_t)

Autograd would keep every intermediate of every step, above all the ``(B, K, L, A)`` block inside
the tanh, and would add T small products into each weight gradient. Here the loop keeps only what
is narrow, and three facts make the way back short. Write ``d_u`` for the gradient of the loss by
``u``.

1. Everything the weights saw is kept as one block over all T steps, so each weight gradient is one
   product after the loop: ``d_W_h = sum_t d_g_t h_(t-1)^T`` and likewise for ``W_z``, ``W_q`` and
   ``W_b``.
2. ``q`` of all steps is one product of the kept states, so the tanh is computed again instead of
   kept. With ``r_i = tanh(k_i + q)``, the softmax gives ``d_e_i = alpha_i (d_alpha_i - sum_j
   alpha_j d_alpha_j)``, and then::

       d_k_i = v * d_e_i * (1 - r_i^2)          summed over steps and the K captions of the photo
       d_q   = sum_i v * d_e_i * (1 - r_i^2)
       d_v   = sum_i d_e_i r_i

3. ``sum_i d_e_i = 0``, because the weights of a softmax always sum to 1. So ``d_q = -v * sum_i
   d_e_i r_i^2``: a small batched product.

The states c, the softmax and all sums are float32 or wider; the products and the ``(B, K, L, A)``
block use the precision of the keys (bfloat16 where the processor is fast at it).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """The weights of the loop; ``gate`` and ``gate_bias`` are absent together."""

    query: Tensor
    """W_q, ``(A, N)``."""
    score: Tensor
    """v, ``(A,)``."""
    hidden: Tensor
    """W_h, ``(4N, N)``, gates in the order input, forget, output, candidate."""
    context: Tensor
    """W_z, ``(4N, D)``."""
    gate: Tensor | None
    """W_b, ``(D, N)``."""
    gate_bias: Tensor | None
    """b_b, ``(D,)``."""


def recur(
    words: Tensor, keys: Tensor, regions: Tensor, h: Tensor, c: Tensor, weights: Weights
) -> tuple[Tensor, Tensor]:
    """Read known captions word by word.

    Args:
        words: ``(T, B, K, 4N)``, the words' part of the gates with their bias.
        keys: ``(B, L, A)``, the regions' part of the scores. Its dtype is that of the products.
        regions: ``(B, L, D)``, same dtype as ``keys``.
        h: ``(B, K, N)``, the hidden state before the first word.
        c: ``(B, K, N)``, the cell state before the first word.
        weights: the weights of the loop.

    Returns:
        The hidden states after each word ``(T, B, K, N)`` and the attention weights
        ``(T, B, K, L)``, both at least float32.
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
        query: Tensor,
        score: Tensor,
        hidden: Tensor,
        context: Tensor,
        gate: Tensor | None,
        gate_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        steps, photos, each, _ = words.shape
        spots, width = regions.shape[1:]
        narrow = keys.dtype
        wide = torch.promote_types(narrow, torch.float32)
        rows = photos * each
        n = h.shape[-1]

        query_t, hidden_t, context_t = (w.to(narrow).t() for w in (query, hidden, context))
        gate_t = None if gate is None else gate.to(narrow).t()
        score_column = score.to(narrow).unsqueeze(1)  # (A, 1)
        states = torch.empty(steps + 1, rows, n, dtype=narrow, device=keys.device)
        cells = torch.empty(steps + 1, rows, n, dtype=wide, device=keys.device)
        gates = torch.empty(steps, rows, 4 * n, dtype=wide, device=keys.device)
        contexts = torch.empty(steps, rows, width, dtype=narrow, device=keys.device)
        opened = torch.empty_like(contexts) if gate_t is not None else None
        outputs = torch.empty(steps, rows, n, dtype=wide, device=keys.device)
        attention = torch.empty(steps, rows, spots, dtype=wide, device=keys.device)
        block = keys.new_empty(photos, each, spots, keys.shape[-1])
        states[0] = h.reshape(rows, n)
        cells[0] = c.reshape(rows, n)

        for t in range(steps):
            state = states[t]
            _energy(keys, (state @ query_t).view(photos, each, -1), out=block)
            scores = (block.view(-1, block.shape[-1]) @ score_column).view(rows, spots)
            alpha = torch.softmax(scores.to(wide), dim=-1)
            seen = torch.bmm(alpha.view(photos, each, -1).to(narrow), regions).view(rows, width)
            contexts[t] = seen
            if opened is not None and gate_t is not None and gate_bias is not None:
                opened[t] = torch.sigmoid((state @ gate_t).to(wide) + gate_bias).to(narrow)
                seen = seen * opened[t]
            g = (state @ hidden_t + seen @ context_t).to(wide) + words[t].reshape(rows, -1)
            g[:, : 3 * n].sigmoid_()
            g[:, 3 * n :].tanh_()
            cell = g[:, n : 2 * n] * cells[t] + g[:, :n] * g[:, 3 * n :]
            gates[t], cells[t + 1], attention[t] = g, cell, alpha
            torch.mul(g[:, 2 * n : 3 * n], cell.tanh(), out=outputs[t])
            states[t + 1] = outputs[t]

        ctx.save_for_backward(
            keys, regions, query, score, hidden, context, gate, gate_bias,
            states, cells, gates, contexts, opened, attention,
        )  # fmt: skip
        ctx.words_dtype, ctx.start_dtypes = words.dtype, (h.dtype, c.dtype)
        return outputs.view(steps, photos, each, n), attention.view(steps, photos, each, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_attention: Tensor | None) -> tuple[Any, ...]:
        (keys, regions, query, score, hidden, context, gate, gate_bias,
         states, cells, gates, contexts, opened, attention) = ctx.saved_tensors  # fmt: skip
        steps, rows, four_n = gates.shape
        n = four_n // 4
        photos, spots, width = regions.shape
        each = rows // photos
        narrow, wide = keys.dtype, cells.dtype
        d_outputs = d_outputs.reshape(steps, rows, n)
        if d_attention is not None:
            d_attention = d_attention.reshape(steps, rows, spots)

        query_n, hidden_n, context_n = (w.to(narrow) for w in (query, hidden, context))
        gate_n = None if gate is None else gate.to(narrow)
        v = score.to(wide)
        before = states[:-1]  # h_(t-1) for every t: (T, BK, N)
        queries = (before.reshape(steps * rows, n) @ query_n.t()).view(steps, photos, each, -1)
        block = keys.new_empty(photos, each, spots, keys.shape[-1])
        regions_t = regions.transpose(1, 2)  # (B, D, L)

        d_gates = torch.empty_like(gates)
        d_queries = torch.empty(steps, rows, keys.shape[-1], dtype=wide, device=keys.device)
        d_opened = torch.empty_like(contexts) if opened is not None else None
        d_keys = torch.zeros(keys.shape, dtype=wide, device=keys.device)
        d_score = torch.zeros_like(v)
        d_regions = torch.zeros_like(regions, dtype=wide) if ctx.needs_input_grad[2] else None
        d_h = torch.zeros(rows, n, dtype=wide, device=keys.device)
        d_c = torch.zeros_like(d_h)

        for t in reversed(range(steps)):
            d_h = d_h + d_outputs[t]
            i, f, o, new = gates[t].split(n, dim=-1)
            tanh_c = cells[t + 1].tanh()
            d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
            d_g = d_gates[t]
            torch.mul(d_c * new, i * (1 - i), out=d_g[:, :n])
            torch.mul(d_c * cells[t], f * (1 - f), out=d_g[:, n : 2 * n])
            torch.mul(d_h * tanh_c, o * (1 - o), out=d_g[:, 2 * n : 3 * n])
            torch.mul(d_c * i, 1 - new * new, out=d_g[:, 3 * n :])
            d_c = d_c * f

            d_g_n = d_g.to(narrow)
            d_h = (d_g_n @ hidden_n).to(wide)
            d_seen = d_g_n @ context_n  # (BK, D)
            if opened is not None and d_opened is not None and gate_n is not None:
                beta = opened[t]
                d_opened[t] = d_seen * contexts[t] * beta * (1 - beta)
                d_h += d_opened[t] @ gate_n
                d_seen = d_seen * beta
            d_seen = d_seen.view(photos, each, width)

            alpha = attention[t]
            d_alpha = torch.bmm(d_seen, regions_t).view(rows, -1).to(wide)
            if d_attention is not None:
                d_alpha = d_alpha + d_attention[t]
            d_e = alpha * (d_alpha - (alpha * d_alpha).sum(-1, keepdim=True))  # (BK, L)
            if d_regions is not None:
                looked = alpha.view(photos, each, -1).transpose(1, 2).to(narrow)  # (B, L, K)
                d_regions += torch.bmm(looked, d_seen)

            _energy(keys, queries[t], out=block)
            d_e_n = d_e.to(narrow)
            d_score += (d_e_n.view(1, -1) @ block.view(-1, block.shape[-1])).view(-1)
            block.mul_(block)  # r^2
            d_query = torch.bmm(d_e_n.unsqueeze(1), block.view(rows, spots, -1)).squeeze(1)
            d_queries[t] = -v * d_query
            by_region = d_e_n.view(photos, each, spots).permute(0, 2, 1).unsqueeze(2)
            squared = torch.matmul(by_region, block.permute(0, 2, 1, 3)).squeeze(2)  # (B, L, A)
            d_keys += by_region.sum(-1).to(wide) - squared
            d_h += (d_queries[t].to(narrow) @ query_n).to(wide)

        d_keys *= v
        flat = before.reshape(steps * rows, n)
        d_gates_n = d_gates.to(narrow).view(steps * rows, four_n)
        seen = contexts if opened is None else contexts * opened
        d_gate = d_gate_bias = None
        if d_opened is not None:
            d_opened_flat = d_opened.view(steps * rows, width)
            d_gate = (d_opened_flat.t() @ flat).to(gate.dtype)
            d_gate_bias = d_opened_flat.sum(0, dtype=wide).to(gate_bias.dtype)
        return (
            d_gates.view(steps, photos, each, four_n).to(ctx.words_dtype),
            d_keys.to(narrow),
            None if d_regions is None else d_regions.to(narrow),
            d_h.view(photos, each, n).to(ctx.start_dtypes[0]),
            d_c.view(photos, each, n).to(ctx.start_dtypes[1]),
            (d_queries.to(narrow).view(steps * rows, -1).t() @ flat).to(query.dtype),
            d_score.to(score.dtype),
            (d_gates_n.t() @ flat).to(hidden.dtype),
            (d_gates_n.t() @ seen.view(steps * rows, width)).to(context.dtype),
            d_gate,
            d_gate_bias,
        )


def _energy(keys: Tensor, query: Tensor, *, out: Tensor) -> None:
    """``tanh(k_i + q)`` for keys ``(B, L, A)`` and queries ``(B, K, A)``, into ``(B, K, L, A)``."""
    torch.add(keys.unsqueeze(1), query.unsqueeze(2), out=out)
    out.tanh_()
