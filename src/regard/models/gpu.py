"""The step of :mod:`regard.models.recurrence` for NVIDIA and AMD GPUs, in Triton.

The same four formulas as in ``kernels/``, and the gate: each is one launch in place of up to
twelve, and nothing of size (B, K, L, A) is ever stored. Arithmetic and sums are float32. Each sum
is added up by one program in one order, without atomics, so results repeat to the last bit.

Rows may be strided where their tensors are parts of wider ones; all else is dense. Triton comes
with torch where torch was built for a GPU; elsewhere this module is not imported.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

TILE = 8192
"""Values (regions x channels) that a program holds of ``tanh(k_i + q)``."""


def look(keys: Tensor, queries: Tensor, score: Tensor, alpha: Tensor) -> None:
    """Set ``alpha`` ``(B, K, L)``, of queries ``(R, A)``, R = B K."""
    photos, spots, a = keys.shape
    spots_up, chunk = _tile(spots, a)
    _look[(len(queries),)](
        keys, queries, queries.stride(0), score, alpha, len(queries) // photos, spots,
        A=a, SPOTS=spots_up, CHUNK=chunk,
    )  # fmt: skip


def look_back(
    keys: Tensor, queries: Tensor, score: Tensor, alpha: Tensor, d_alpha: Tensor,
    d_alpha_too: Tensor | None, *, d_queries: Tensor, d_keys: Tensor, d_score: Tensor,
) -> None:  # fmt: skip
    """Set ``d_queries``; add to ``d_keys / v`` ``(B, L, A)`` and ``d_score`` ``(B, A)``."""
    photos, spots, a = keys.shape
    spots_up, chunk = _tile(spots, a)
    _look_back[(photos, triton.cdiv(a, chunk))](
        keys, queries, queries.stride(0), score, alpha, d_alpha,
        alpha if d_alpha_too is None else d_alpha_too, d_queries, d_queries.stride(0), d_keys,
        d_score, spots,
        EACH=len(queries) // photos, A=a, SPOTS=spots_up, CHUNK=chunk,
        TOO=d_alpha_too is not None,
    )  # fmt: skip


def cell(
    past: Tensor, seen: Tensor, words: Tensor, before: Tensor, *, gates: Tensor, after: Tensor,
    h: Tensor,
) -> None:  # fmt: skip
    """Set the gates ``(R, 4N)``, ``c`` and ``h`` after a word."""
    rows, n = before.shape
    _cell[(rows, triton.cdiv(n, _WIDTH))](
        past, past.stride(0), seen, words, before, gates, after, h, n, WIDTH=_WIDTH
    )  # fmt: skip


def cell_back(
    gates: Tensor, before: Tensor, after: Tensor, d_h: Tensor, d_output: Tensor, d_c: Tensor, *,
    d_gates: Tensor,
) -> None:  # fmt: skip
    """Set ``d_gates``; ``d_c`` goes from after the word to before it."""
    rows, n = before.shape
    _cell_back[(rows, triton.cdiv(n, _WIDTH))](
        gates, before, after, d_h, d_output, d_c, d_gates, d_gates.stride(0), n, WIDTH=_WIDTH
    )  # fmt: skip


def open_gate(past: Tensor, bias: Tensor, context: Tensor, *, beta: Tensor, seen: Tensor) -> None:
    """Set ``beta`` and ``seen = beta * context``, each ``(R, D)``."""
    rows, d = context.shape
    _open_gate[(rows, triton.cdiv(d, _WIDTH))](
        past, past.stride(0), bias, context, beta, seen, d, WIDTH=_WIDTH
    )  # fmt: skip


def open_gate_back(
    d_seen: Tensor, context: Tensor, beta: Tensor, *, d_past: Tensor, d_context: Tensor
) -> None:
    """Set ``d_past`` and ``d_context``, each ``(R, D)``."""
    rows, d = context.shape
    _open_gate_back[(rows, triton.cdiv(d, _WIDTH))](
        d_seen, context, beta, d_past, d_past.stride(0), d_context, d, WIDTH=_WIDTH
    )  # fmt: skip


_WIDTH = 256


def _tile(spots: int, a: int) -> tuple[int, int]:
    """Regions and channels of a tile, powers of two."""
    spots_up = triton.next_power_of_2(spots)
    return spots_up, max(4, min(64, TILE // spots_up, triton.next_power_of_2(a)))


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _look(
    keys, queries, stride, score, alpha, each, spots, A: tl.constexpr,
    SPOTS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One row: softmax over the regions of ``v . tanh(k_i + q)``."""
    row = tl.program_id(0).to(tl.int64)
    spot, column = tl.arange(0, SPOTS), tl.arange(0, CHUNK)
    there = spot < spots
    keys += (row // each) * spots * A
    e = tl.zeros([SPOTS], tl.float32)
    for first in range(0, A, CHUNK):
        channel = first + column
        known = channel < A
        q = tl.load(queries + row * stride + channel, known, 0.0).to(tl.float32)
        v = tl.load(score + channel, known, 0.0)
        at = spot[:, None] * A + channel[None, :]
        k = tl.load(keys + at, there[:, None] & known[None, :], 0.0).to(tl.float32)
        e += tl.sum(v[None, :] * _tanh(k + q[None, :]), 1)
    e = tl.where(there, e, float("-inf"))
    weight = tl.exp(e - tl.max(e, 0))
    tl.store(alpha + row * spots + spot, weight / tl.sum(weight, 0), there)


@triton.jit
def _look_back(
    keys, queries, q_stride, score, alpha, d_alpha, d_alpha_too, d_queries, d_stride, d_keys,
    d_score, spots, EACH: tl.constexpr, A: tl.constexpr,
    SPOTS: tl.constexpr, CHUNK: tl.constexpr, TOO: tl.constexpr,
):  # fmt: skip
    """Some channels of one photo: its captions one after the other, its keys read once."""
    photo = tl.program_id(0).to(tl.int64)
    spot = tl.arange(0, SPOTS)
    channel = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    there, known = spot < spots, channel < A
    tile, held = spot[:, None] * A + channel[None, :], there[:, None] & known[None, :]
    k = tl.load(keys + photo * spots * A + tile, held, 0.0).to(tl.float32)
    v = tl.load(score + channel, known, 0.0)
    by_key = tl.zeros([SPOTS, CHUNK], tl.float32)
    by_score = tl.zeros([CHUNK], tl.float32)
    for caption in range(0, EACH):
        row = photo * EACH + caption
        weight = tl.load(alpha + row * spots + spot, there, 0.0)
        d_weight = tl.load(d_alpha + row * spots + spot, there, 0.0).to(tl.float32)
        if TOO:
            d_weight += tl.load(d_alpha_too + row * spots + spot, there, 0.0)
        d_e = weight * (d_weight - tl.sum(weight * d_weight, 0))
        q = tl.load(queries + row * q_stride + channel, known, 0.0).to(tl.float32)
        r = _tanh(k + q[None, :])
        by_score += tl.sum(d_e[:, None] * r, 0)
        d_tile = d_e[:, None] * (1 - r * r)
        by_key += d_tile
        d_q = v * tl.sum(d_tile, 0)
        tl.store(d_queries + row * d_stride + channel, d_q.to(d_queries.dtype.element_ty), known)
    into = d_keys + photo * spots * A + tile
    tl.store(into, tl.load(into, held, 0.0) + by_key, held)
    into = d_score + photo * A + channel
    tl.store(into, tl.load(into, known, 0.0) + by_score, known)


@triton.jit
def _cell(past, stride, seen, words, before, gates, after, h, n, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    known = at < n
    past += row * stride + at
    seen += row * 4 * n + at
    words += row * 4 * n + at
    gates += row * 4 * n + at
    i = tl.sigmoid(_three(past, seen, words, known))
    f = tl.sigmoid(_three(past + n, seen + n, words + n, known))
    o = tl.sigmoid(_three(past + 2 * n, seen + 2 * n, words + 2 * n, known))
    new = _tanh(_three(past + 3 * n, seen + 3 * n, words + 3 * n, known))
    c = f * tl.load(before + row * n + at, known, 0.0) + i * new
    tl.store(gates, i, known)
    tl.store(gates + n, f, known)
    tl.store(gates + 2 * n, o, known)
    tl.store(gates + 3 * n, new, known)
    tl.store(after + row * n + at, c, known)
    tl.store(h + row * n + at, (o * _tanh(c)).to(h.dtype.element_ty), known)


@triton.jit
def _three(past, seen, words, known):
    x = tl.load(past, known, 0.0).to(tl.float32) + tl.load(seen, known, 0.0).to(tl.float32)
    return x + tl.load(words, known, 0.0).to(tl.float32)


@triton.jit
def _cell_back(
    gates, before, after, d_h, d_output, d_c, d_gates, stride, n, WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    known = at < n
    gates += row * 4 * n + at
    d_gates += row * stride + at
    at += row * n
    i, f = tl.load(gates, known, 0.0), tl.load(gates + n, known, 0.0)
    o, new = tl.load(gates + 2 * n, known, 0.0), tl.load(gates + 3 * n, known, 0.0)
    d = tl.load(d_h + at, known, 0.0).to(tl.float32)
    d += tl.load(d_output + at, known, 0.0).to(tl.float32)
    squashed = _tanh(tl.load(after + at, known, 0.0))
    by_c = tl.load(d_c + at, known, 0.0) + d * o * (1 - squashed * squashed)
    kind = d_gates.dtype.element_ty
    tl.store(d_gates, (by_c * new * i * (1 - i)).to(kind), known)
    c = tl.load(before + at, known, 0.0)
    tl.store(d_gates + n, (by_c * c * f * (1 - f)).to(kind), known)
    tl.store(d_gates + 2 * n, (d * squashed * o * (1 - o)).to(kind), known)
    tl.store(d_gates + 3 * n, (by_c * i * (1 - new * new)).to(kind), known)
    tl.store(d_c + at, by_c * f, known)


@triton.jit
def _open_gate(past, stride, bias, context, beta, seen, d, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    known = at < d
    x = tl.load(past + row * stride + at, known, 0.0).to(tl.float32)
    x += tl.load(bias + at, known, 0.0).to(tl.float32)
    opened = tl.sigmoid(x)
    at += row * d
    y = tl.load(context + at, known, 0.0).to(tl.float32) * opened
    tl.store(beta + at, opened.to(beta.dtype.element_ty), known)
    tl.store(seen + at, y.to(seen.dtype.element_ty), known)


@triton.jit
def _open_gate_back(
    d_seen, context, beta, d_past, stride, d_context, d, WIDTH: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    known = at < d
    into = d_past + row * stride + at
    at += row * d
    by_seen = tl.load(d_seen + at, known, 0.0).to(tl.float32)
    y = tl.load(context + at, known, 0.0).to(tl.float32)
    opened = tl.load(beta + at, known, 0.0).to(tl.float32)
    tl.store(into, (by_seen * y * opened * (1 - opened)).to(d_past.dtype.element_ty), known)
    tl.store(d_context + at, (by_seen * opened).to(d_context.dtype.element_ty), known)
