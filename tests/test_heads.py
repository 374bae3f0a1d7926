"""The attention of several heads, compiled, beside the same written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.models import heads
from regard.models.heads import Memory, attend, attend_joined, by_head
from regard.models.native import matrix_unit, native


def written_out(query: Tensor, memory: Tensor | None, count: int, causal: bool):
    if memory is None:
        q, k, v = by_head(query, 3, count)
    else:
        (q,), (k, v) = by_head(query, 1, count), by_head(memory, 2, count)
    found, weights = attend(q, Memory(k, v), causal=causal)
    return found.transpose(1, 2).flatten(2), weights


@pytest.fixture
def compiled(monkeypatch):
    if not matrix_unit() or native("attend", torch.empty(0, dtype=torch.bfloat16)) is None:
        pytest.skip("no compiler, or a processor without a unit for matrices")
    # Written out is wrong here: a test must not pass by way of it.
    monkeypatch.setattr(heads, "attend", None)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (2, 13, 13), (2, 16, 32), (1, 37, 70), (2, 65, 100)])
@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("asked", [False, True])
def test_it_is_what_is_written_out_and_so_is_its_way_back(compiled, sizes, width, own, asked):
    """Queries of their own keys, causal or not, and of a memory; with a gradient by the weights."""
    rows, queries, length = sizes
    torch.manual_seed(queries)
    count, wide = 2, 2 * width
    for causal in (False, True) if own else (False,):
        query = torch.randn(rows, queries, (3 if own else 1) * wide).bfloat16()
        memory = None if own else torch.randn(rows, length, 2 * wide).bfloat16()
        given = [x for x in (query, memory) if x is not None]
        narrow = [x.clone().requires_grad_() for x in given]
        exact = [x.double().requires_grad_() for x in given]
        found, weights = attend_joined(*narrow, *([None] if own else []), count, causal=causal)
        expected, by = written_out(*exact, *([None] if own else []), count, causal)
        probe, other = torch.randn_like(expected), torch.randn_like(by) * asked
        ((found * probe.bfloat16()).sum() + (weights * other.bfloat16()).sum() * asked).backward()
        ((expected * probe.bfloat16()).sum() + (by * other.bfloat16()).sum() * asked).backward()
        assert found.dtype == weights.dtype == torch.bfloat16
        close(found, expected)
        close(weights, by)
        for one, two in zip(narrow, exact, strict=True):
            close(one.grad, two.grad)


def close(found: Tensor, expected: Tensor) -> None:
    difference = (found.double() - expected.detach()).norm()
    assert difference <= 1e-2 * expected.norm() + 1e-6


def test_a_row_does_not_depend_on_the_rows_beside_it(compiled):
    torch.manual_seed(0)
    query, memory = torch.randn(3, 20, 128).bfloat16(), torch.randn(3, 50, 256).bfloat16()
    together = attend_joined(query, memory, 2)
    alone = attend_joined(query[1:2].contiguous(), memory[1:2].contiguous(), 2)
    for one, all_ in zip(alone, together, strict=True):
        assert torch.equal(one[0], all_[1])


def test_what_is_no_number_is_seen(compiled):
    query = torch.randn(1, 5, 192).bfloat16()
    query[0, 3, 70] = torch.nan
    assert attend_joined(query, None, 2)[0].isnan().any()
