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
is narrow. Write ``d_u`` for the gradient of the loss by ``u``.

1. W_h, W_q and W_b see the same ``h_(t-1)``: they are one matrix, so a step has one product with
   the past, and its way back one: ``d_h_(t-1) = W^T (d_g, d_q, d_b)``.
2. What the weights saw, and the gradients of what they made, are kept as one block over all T
   steps. So each weight gradient is one product after the loop: ``d_W = sum_t (d_g, d_q, d_b)_t
   h_(t-1)^T``, likewise ``d_W_z``, and ``d_a_i = sum_t alpha_ti d_y_t``.
3. Without a gate ``W_z z_t = sum_i alpha_ti (W_z a_i)``. Applied to the L regions of a photo
   beforehand, W_z meets L vectors instead of K T: the caller does so where that is fewer.
4. The tanh is computed again instead of kept. With ``r_i = tanh(k_i + q)``, the softmax gives
   ``d_e_i = alpha_i (d_alpha_i - sum_j alpha_j d_alpha_j)``, and then::

       d_k_i = v * d_e_i * (1 - r_i^2)          summed over steps and the K captions of the photo
       d_q   = sum_i v * d_e_i * (1 - r_i^2)
       d_v   = sum_i d_e_i r_i

   Compiled (:mod:`regard.models.native`), these sums are formed while r is in a register.
5. In torch, with ``s = sigmoid(2 (k_i + q))``: ``r = 2 s - 1``, and ``1 - r^2 = 4 (s - s^2)``.
   Torch's sigmoid is several times as fast as its tanh in bfloat16, and what is left over,
   a number that is the same for all regions, drops out of the softmax on the way and out of
   ``d_v`` on the way back, because ``sum_i d_e_i = 0``.

The state c, the softmax and all sums are float32 or wider; the products and what they read use the
precision of the keys (bfloat16 where the processor is fast at it).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from regard.models.native import matrix_unit, native


class Weights(NamedTuple):
    """The weights of the loop."""

    past: Tensor
    """W_h, W_q and, with a gate, W_b, one above the other: ``(4N + A [+ D], N)``. The rows of W_h
    are the gates in the order input, forget, output, candidate."""
    score: Tensor
    """v, ``(A,)``."""
    context: Tensor | None
    """W_z, ``(4N, D)``; none if it has been applied to the regions."""
    gate_bias: Tensor | None
    """b_b, ``(D,)``; none without a gate."""


class Given(NamedTuple):
    """What the loop reads; R = B K rows. Or the gradients by it, in its shapes."""

    words: Tensor
    """``(T, R, 4N)``"""
    keys: Tensor
    """``(B, L, A)``; what is not said to be wide is in their precision."""
    regions: Tensor | None
    """``(B, L, D)``; of gradients none where it is not asked for."""
    h: Tensor
    """``(R, N)``"""
    c: Tensor
    """``(R, N)``, wide."""
    past: Tensor
    """``(4N + A [+ D], N)``"""
    score: Tensor
    """``(A,)``, wide."""
    context: Tensor | None
    """``(4N, D)``"""
    gate_bias: Tensor | None
    """``(D,)``, wide."""


class Kept(NamedTuple):
    """What the loop makes, and needs on its way back."""

    pasts: Tensor
    """``(T, R, 4N + A [+ D])``: W_h h, W_q h, W_b h."""
    states: Tensor
    """``(T + 1, R, N)``"""
    cells: Tensor
    """``(T + 1, R, N)``, wide."""
    gates: Tensor
    """``(T, R, 4N)``, wide."""
    attention: Tensor
    """``(T, R, L)``, wide."""
    contexts: Tensor
    """``(T, R, D)``: before the gate."""
    opened: Tensor | None
    """``(T, R, D)``: beta."""

    @classmethod
    def blank(cls, given: Given) -> Kept:
        """Room for it."""
        steps, rows, four_n = given.words.shape
        _, spots, width = _regions(given).shape

        def block(*shape: int, like: Tensor) -> Tensor:
            return like.new_empty(shape)

        narrow, wide, n = given.keys, given.c, four_n // 4
        return cls(
            pasts=block(steps, rows, len(given.past), like=narrow),
            states=block(steps + 1, rows, n, like=narrow),
            cells=block(steps + 1, rows, n, like=wide),
            gates=block(steps, rows, four_n, like=wide),
            attention=block(steps, rows, spots, like=wide),
            contexts=block(steps, rows, width, like=narrow),
            opened=None if given.gate_bias is None else block(steps, rows, width, like=narrow),
        )


def forward(given: Given, kept: Kept) -> None:
    """The loop; ``kept`` is set."""
    words, keys, _, h, c, past, v, context, gate_bias = given
    pasts, states, cells, gates, attention, contexts, opened = kept
    steps, rows, four_n = words.shape
    photos, spots, a = keys.shape
    each = rows // photos
    regions = _regions(given)
    by_past = times(past)
    by_context = None if context is None else times(context)
    queries = pasts.view(steps, photos, each, -1)[..., four_n : four_n + a]
    states[0] = h
    cells[0] = c

    for t in range(steps):
        by_past(states[t], pasts[t])
        alpha = look(keys, queries[t], v, out=attention[t].view(photos, each, spots))
        gather(alpha, regions, out=contexts[t].view(photos, each, -1))
        seen = contexts[t]
        if opened is not None and gate_bias is not None:
            seen = open_gate(pasts[t, :, four_n + a :], gate_bias, seen, beta=opened[t])
        if by_context is not None:
            seen = by_context(seen, torch.empty_like(words[t]))
        cell(
            pasts[t], seen, words[t], cells[t], gates=gates[t], after=cells[t + 1],
            h=states[t + 1],
        )  # fmt: skip


def backward(
    given: Given, kept: Kept, d_hidden: Tensor, d_attention: Tensor | None, *, of_regions: bool
) -> Given:
    """Its way back.

    Args:
        given: as it was.
        kept: as it was left.
        d_hidden: ``(T, R, N)``, by the hidden states after each word.
        d_attention: ``(T, R, L)``, wide, by the attention.
        of_regions: whether the gradient by the regions is asked for.
    """
    _, keys, _, _, _, past, v, context, _ = given
    pasts, states, cells, gates, attention, contexts, opened = kept
    steps, rows, four_n = gates.shape
    a = keys.shape[-1]
    regions = _regions(given)
    photos, _, width = regions.shape
    each = rows // photos
    narrow, wide = keys.dtype, cells.dtype
    d_pasts = torch.empty_like(pasts)
    d_contexts = torch.empty_like(contexts)
    d_keys = torch.zeros_like(keys, dtype=wide)  # without their factor v
    d_score = v.new_zeros(photos, a)
    by_past = times(past, turned=True)
    by_context = None if context is None else times(context, turned=True)
    d_h = torch.zeros_like(states[0])
    d_c = torch.zeros_like(cells[0])

    for t in reversed(range(steps)):
        d_g = d_pasts[t, :, :four_n]
        cell_back(gates[t], cells[t], cells[t + 1], d_h, d_hidden[t], d_c, d_gates=d_g)
        d_seen = d_g if by_context is None else by_context(d_g, torch.empty_like(d_contexts[t]))
        if opened is None:
            d_contexts[t] = d_seen
        else:
            open_gate_back(
                d_seen, contexts[t], opened[t], d_past=d_pasts[t, :, four_n + a :],
                d_context=d_contexts[t],
            )  # fmt: skip
        d_alpha = gather_back(d_contexts[t].view(photos, each, width), regions)
        look_back(
            keys, pasts[t, :, four_n : four_n + a], v, attention[t], d_alpha,
            None if d_attention is None else d_attention[t],
            d_queries=d_pasts[t, :, four_n : four_n + a], d_keys=d_keys, d_score=d_score,
        )  # fmt: skip
        by_past(d_pasts[t], d_h)

    d_regions = d_context = d_gate_bias = None
    if of_regions:
        alphas, d_all = (
            x.view(steps, photos, each, -1).transpose(0, 1).reshape(photos, steps * each, -1)
            for x in (attention.to(narrow), d_contexts)
        )
        d_regions = torch.bmm(alphas.transpose(1, 2), d_all)
    d_gates = d_pasts[..., :four_n]
    if context is not None:
        seen = contexts if opened is None else contexts * opened
        d_context = d_gates.flatten(0, 1).t() @ seen.flatten(0, 1)
    if opened is not None:
        d_gate_bias = d_pasts[..., four_n + a :].sum((0, 1), dtype=wide)
    d_past = d_pasts.flatten(0, 1).t() @ states[:-1].flatten(0, 1)
    return Given(
        d_gates, (d_keys * v).to(narrow), d_regions, d_h, d_c, d_past, d_score.sum(0), d_context,
        d_gate_bias,
    )  # fmt: skip


def as_rows(
    kept: Kept, d_hidden: Tensor | None, d_attention: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients by what :func:`recur` returns, as :func:`backward` takes them."""
    states, attention = kept.states[1:], kept.attention
    by_states = torch.zeros_like(states) if d_hidden is None else d_hidden.to(states.dtype)
    return (
        by_states.reshape(states.shape).contiguous(),
        None
        if d_attention is None
        else d_attention.to(attention.dtype).reshape(attention.shape).contiguous(),
    )


def _regions(given: Given) -> Tensor:
    assert given.regions is not None
    return given.regions


# --- one step's formulas: in torch, and the same compiled for the CPU and for GPUs ------------


def times(weight: Tensor, *, turned: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """``x W^T``, or ``x W`` (turned), for a few rows x at a time: W is laid out for it once.

    What it returns takes x and where to write the product, each ``(R, ...)`` with dense rows.
    """
    width, n = weight.shape if not turned else (weight.shape[1], weight.shape[0])
    pack = native("pack_turned" if turned else "pack", weight)
    compiled = native("times", weight)
    if pack is None or compiled is None or n % 32 or not matrix_unit():
        columns = weight if turned else weight.t()
        return lambda x, out: torch.mm(x, columns, out=out)
    packed = weight.new_zeros(-(-width // 64) * 64 * n)
    pack(weight.contiguous(), packed, n // 2, width)

    def product(x: Tensor, out: Tensor) -> Tensor:
        compiled(x, x.stride(0), packed, out, out.stride(0), len(x), n // 2, width)
        return out

    return product


def look(keys: Tensor, queries: Tensor, score: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``alpha``, ``(B, K, L)``, of keys ``(B, L, A)``, queries ``(B, K, A)`` and ``v``."""
    photos, spots, a = keys.shape
    each = queries.shape[1]
    wide = torch.promote_types(keys.dtype, torch.float32)
    score = score.to(wide)
    alpha = keys.new_empty(photos, each, spots, dtype=wide) if out is None else out
    if compiled := native("look", keys):
        keys, rows = keys.contiguous(), queries.to(keys.dtype).flatten(0, 1)
        compiled(keys, rows, rows.stride(0), score.contiguous(), alpha, photos, each, spots, a)
    elif gpu := gpu_kernels(keys):
        gpu.look(keys.contiguous(), queries.flatten(0, 1), score.contiguous(), alpha)
    else:
        s = _squashed(keys, queries)
        alpha.copy_((s @ (2 * score).to(s.dtype)).to(wide).softmax(dim=-1))
    return alpha


def gather(alpha: Tensor, regions: Tensor, *, out: Tensor | None = None) -> Tensor:
    """``y``, ``(B, K, D)``, of weights ``(B, K, L)`` and regions ``(B, L, D)``.

    Compiled, a row's context does not depend, to the last bit, on the rows beside it.
    """
    photos, each, spots = alpha.shape
    if alpha.dtype == torch.float32 and (compiled := native("gather", regions)):
        y = regions.new_empty(photos, each, regions.shape[-1]) if out is None else out
        compiled(alpha.contiguous(), regions.contiguous(), y, photos, each, spots, y.shape[-1])
        return y
    return torch.matmul(alpha.to(regions.dtype), regions, out=out)


def gather_back(d_context: Tensor, regions: Tensor) -> Tensor:
    """The gradient by alpha, ``(B, K, L)``, of that by ``y``, ``(B, K, D)``."""
    photos, each, width = d_context.shape
    if compiled := native("gather_back", regions):
        spots = regions.shape[1]
        d_alpha = regions.new_empty(photos, each, spots)
        compiled(d_context, regions, d_alpha, photos, each, spots, width)
        return d_alpha
    return torch.bmm(d_context, regions.transpose(1, 2))


def look_back(
    keys: Tensor, queries: Tensor, score: Tensor, alpha: Tensor, d_alpha: Tensor,
    d_alpha_too: Tensor | None, *, d_queries: Tensor, d_keys: Tensor, d_score: Tensor,
) -> None:  # fmt: skip
    """Its way back. ``d_queries`` is set; ``d_keys / v`` and ``d_score`` ``(B, A)`` are added to.

    The gradient by alpha comes in two parts, from the context and from the weights themselves.
    """
    photos, spots, a = keys.shape
    each = len(queries) // photos
    if compiled := native("look_back", keys):
        compiled(
            keys, queries, queries.stride(0), score, alpha, d_alpha, d_alpha_too, d_queries,
            d_queries.stride(0), d_keys, d_score, photos, each, spots, a,
        )  # fmt: skip
        return
    if gpu := gpu_kernels(keys):
        gpu.look_back(
            keys, queries, score, alpha, d_alpha, d_alpha_too, d_queries=d_queries, d_keys=d_keys,
            d_score=d_score,
        )  # fmt: skip
        return
    d_alpha = d_alpha.view(alpha.shape).to(alpha.dtype)
    if d_alpha_too is not None:
        d_alpha = d_alpha + d_alpha_too
    d_e = alpha * (d_alpha - (alpha * d_alpha).sum(-1, keepdim=True))
    d_e = d_e.to(keys.dtype).view(photos, each, spots)
    s = _squashed(keys, queries.view(photos, each, a))
    d_score += 2 * torch.bmm(d_e.view(photos, 1, -1), s.view(photos, -1, a)).squeeze(1)
    s.addcmul_(s, s, value=-1)  # (1 - r^2) / 4
    d_queries.copy_(4 * score * torch.matmul(d_e.unsqueeze(2), s).view(-1, a))
    by_region = d_e.transpose(1, 2).unsqueeze(2)  # (B, L, 1, K)
    d_keys += 4 * torch.matmul(by_region, s.transpose(1, 2)).squeeze(2)


def _squashed(keys: Tensor, queries: Tensor) -> Tensor:
    """``sigmoid(2 (k_i + q))``, ``(B, K, L, A)``."""
    return torch.add(2 * keys.unsqueeze(1), queries.unsqueeze(2), alpha=2).sigmoid_()


def open_gate(past: Tensor, bias: Tensor, context: Tensor, *, beta: Tensor) -> Tensor:
    """``beta * y``, ``(R, D)``, of ``W_b h`` and ``b_b``; ``beta`` is set."""
    if gpu := gpu_kernels(context):
        seen = torch.empty_like(context)
        gpu.open_gate(past, bias, context, beta=beta, seen=seen)
        return seen
    wide = torch.promote_types(past.dtype, torch.float32)
    beta.copy_(torch.sigmoid(past.to(wide) + bias))
    return context * beta


def open_gate_back(
    d_seen: Tensor, context: Tensor, beta: Tensor, *, d_past: Tensor, d_context: Tensor
) -> None:
    """Its way back: ``d_past`` and ``d_context`` are set."""
    if gpu := gpu_kernels(context):
        gpu.open_gate_back(d_seen, context, beta, d_past=d_past, d_context=d_context)
        return
    d_past.copy_(d_seen * context * beta * (1 - beta))
    torch.mul(d_seen, beta, out=d_context)


def cell(
    past: Tensor, seen: Tensor, words: Tensor, before: Tensor, *, gates: Tensor, after: Tensor,
    h: Tensor,
) -> None:  # fmt: skip
    """The gates ``(R, 4N)``, ``c`` and ``h`` after a word, from the three parts of ``g``."""
    rows, n = before.shape
    if compiled := native("cell", past):
        compiled(past, past.stride(0), seen, words, before, gates, after, h, rows, n)
        return
    if gpu := gpu_kernels(past):
        gpu.cell(past, seen.contiguous(), words, before, gates=gates, after=after, h=h)
        return
    torch.add(past[:, : 4 * n].to(gates.dtype) + seen, words, out=gates)
    gates[:, : 3 * n].sigmoid_()
    gates[:, 3 * n :].tanh_()
    i, f, o, new = gates.chunk(4, dim=-1)
    torch.add(f * before, i * new, out=after)
    h.copy_(o * after.tanh())


def cell_back(
    gates: Tensor, before: Tensor, after: Tensor, d_h: Tensor, d_output: Tensor, d_c: Tensor, *,
    d_gates: Tensor,
) -> None:  # fmt: skip
    """Its way back: ``d_gates`` is set, and ``d_c`` goes from after the word to before it."""
    rows, n = before.shape
    if compiled := native("cell_back", d_h):
        compiled(
            gates, before, after, d_h, d_output, d_c, d_gates, d_gates.stride(0), rows, n
        )  # fmt: skip
        return
    if gpu := gpu_kernels(d_h):
        gpu.cell_back(gates, before, after, d_h, d_output, d_c, d_gates=d_gates)
        return
    i, f, o, new = gates.chunk(4, dim=-1)
    d = d_h.to(d_c.dtype) + d_output
    squashed = after.tanh()
    d_c.addcmul_(d * o, 1 - squashed * squashed)
    d_gates[:, :n] = d_c * new * i * (1 - i)
    d_gates[:, n : 2 * n] = d_c * before * f * (1 - f)
    d_gates[:, 2 * n : 3 * n] = d * squashed * o * (1 - o)
    d_gates[:, 3 * n :] = d_c * i * (1 - new * new)
    d_c *= f


def gpu_kernels(like: Tensor) -> ModuleType | None:
    """:mod:`regard.models.gpu`, if it can compute in the precision of ``like`` where that is."""
    if like.device.type != "cuda" or like.dtype not in (torch.float32, torch.bfloat16):
        return None
    return None if torch.compiler.is_exporting() else _triton()


@functools.cache
def _triton() -> ModuleType | None:
    try:
        return importlib.import_module("regard.models.gpu")
    except ImportError:
        return None
