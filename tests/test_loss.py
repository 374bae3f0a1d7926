"""The fused loss is torch's cross-entropy: values and gradients, in every precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from regard.training import loss
from regard.training.loss import NOTHING, Taught, surprise


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch) -> str:
    monkeypatch.setattr(loss, "ROWS", 3)  # so that there are several parts, the last not whole
    if request.param == "torch":
        monkeypatch.setenv("REGARD_COMPILER", "")
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("words", [1, 7])
def test_it_is_cross_entropy(way, dtype, smoothing, words):
    torch.manual_seed(0)
    scores = (4 * torch.randn(words, 133)).to(dtype)
    targets = torch.randint(0, 133, (words,))
    wide = scores.double().clone().requires_grad_()
    expected = F.cross_entropy(wide, targets, label_smoothing=smoothing, reduction="sum")
    plain = F.cross_entropy(wide.detach(), targets, reduction="sum")
    (3.5 * expected).backward()

    given = scores.clone().requires_grad_()
    total, nll = surprise(given * 1, targets, smoothing=smoothing)
    (3.5 * total).backward()

    assert not nll.requires_grad
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(nll.double(), plain, rtol=1e-5, atol=0)
    rounding = 5e-3 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(given.grad.double(), wide.grad, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_words_may_have_weights(way, dtype, smoothing):
    torch.manual_seed(0)
    scores = (4 * torch.randn(7, 133)).to(dtype)
    targets, weights = torch.randint(0, 133, (7,)), torch.randn(7)
    wide = scores.double().clone().requires_grad_()
    each = F.cross_entropy(wide, targets, label_smoothing=smoothing, reduction="none")
    expected = (each * weights.double()).sum()
    (3.5 * expected).backward()

    given = scores.clone().requires_grad_()
    total, nll = surprise(given * 1, targets, smoothing=smoothing, weights=weights)
    (3.5 * total).backward()

    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)
    plain = F.cross_entropy(scores.double(), targets, reduction="sum")
    torch.testing.assert_close(nll.double(), plain, rtol=1e-5, atol=0)
    rounding = 5e-3 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(given.grad.double(), wide.grad, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("a", [0.4, 1.0])
def test_teachers_take_their_share_of_the_word(way, dtype, smoothing, weighted, a):
    torch.manual_seed(0)
    words, vocabulary = 7, 133
    scores = (4 * torch.randn(words, vocabulary)).to(dtype)
    targets = torch.randint(0, vocabulary, (words,))
    targets[2] = NOTHING
    weights = torch.randn(words) if weighted else None
    ids = torch.stack([torch.randperm(vocabulary)[:5] for _ in range(words)])
    shares = torch.rand(words, 5).softmax(-1)
    ids[0, 3] = targets[0]  # the word itself may be expected

    said = F.one_hot(targets.clamp_min(0), vocabulary).double()
    theirs = torch.zeros(words, vocabulary).scatter_add_(1, ids, shares).double()
    target = (1 - smoothing) * ((1 - a) * said + a * theirs) + smoothing / vocabulary
    each = (torch.ones(words) if weights is None else weights).double() * (targets != NOTHING)
    wide = scores.double().clone().requires_grad_()
    expected = -(target * wide.log_softmax(-1)).sum(-1) @ each
    (3.5 * expected).backward()

    given = scores.clone().requires_grad_()
    taught = Taught(ids, shares, a)
    total, nll = surprise(given * 1, targets, smoothing=smoothing, weights=weights, taught=taught)
    (3.5 * total).backward()

    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)
    plain = F.cross_entropy(scores.double(), targets, reduction="sum", ignore_index=NOTHING)
    torch.testing.assert_close(nll.double(), plain, rtol=1e-5, atol=0)
    rounding = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(given.grad.double(), wide.grad, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_where_nothing_follows_there_is_no_loss_and_no_gradient(way, dtype, weighted):
    torch.manual_seed(0)
    scores = (4 * torch.randn(80, 133)).to(dtype)  # more than torch takes at a time
    targets, weights = torch.randint(0, 133, (80,)), torch.randn(80) if weighted else None
    follows = torch.rand(80) < 0.7
    some = scores[follows].clone().requires_grad_()
    expected = surprise(
        some * 1, targets[follows], smoothing=0.1,
        weights=None if weights is None else weights[follows],
    )  # fmt: skip
    expected[0].backward()

    given = scores.clone().requires_grad_()
    found = surprise(given * 1, targets.where(follows, NOTHING), smoothing=0.1, weights=weights)
    found[0].backward()

    torch.testing.assert_close(found, expected)
    assert torch.equal(given.grad[follows], some.grad)
    assert not given.grad[~follows].any()


def test_scores_far_apart_do_not_overflow(way):
    scores = torch.tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
    total, _ = surprise(scores * 1, torch.tensor([1]), smoothing=0.0)
    total.backward()
    assert total.item() == 1000
    torch.testing.assert_close(scores.grad, torch.tensor([[1.0, -1.0, 0.0]]))


def test_a_gradient_that_was_overwritten_is_not_taken_again(way):
    scores = torch.randn(2, 5, requires_grad=True)
    total, _ = surprise(scores * 1, torch.tensor([1, 2]), smoothing=0.0)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
