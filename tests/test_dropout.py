"""Dropout: how much it leaves out, what it does to the rest, and when it does nothing."""

from __future__ import annotations

import pytest
import torch

from regard.models.decoder import Real
from regard.models.dropout import Dropout, RegionDropout, WordDropout
from regard.models.lstm import LstmDecoder
from regard.models.native import native
from regard.models.transformer import TransformerDecoder


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def way(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setenv("REGARD_COMPILER", "")
    elif native("drop", torch.zeros(1)) is None:
        pytest.skip("There is no C++ compiler.")


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_so_many_values_are_left_out_and_the_mean_stays(share, dtype):
    torch.manual_seed(0)

    found = Dropout(share)(torch.ones(1000, 1001, dtype=dtype))

    left_out = (found == 0).double().mean().item()
    assert left_out == pytest.approx(share, abs=0.004)
    assert found.double().mean().item() == pytest.approx(1, abs=0.02)
    assert len(found.unique()) == 2


def test_every_place_is_left_out_as_often():
    """All bytes of a number are random, the highest too."""
    torch.manual_seed(0)

    found = Dropout(0.5)(torch.ones(20_000, 8))

    assert (found == 0).double().mean(0).tolist() == pytest.approx([0.5] * 8, abs=0.02)
    both = ((found[:, :-1] == 0) & (found[:, 1:] == 0)).double().mean(0)
    assert both.tolist() == pytest.approx([0.25] * 7, abs=0.02)


@pytest.mark.parametrize("turned", [False, True])
def test_the_gradient_is_that_of_what_was_kept(turned):
    x = torch.randn(5, 7).t() if turned else torch.randn(7, 5)  # the first is not dense
    x.requires_grad_()

    y = Dropout(0.3)(x)
    y.sum().backward()

    assert torch.allclose(x.grad * x, y)
    assert 0 < (y == 0).sum() < 35


def test_the_seed_decides_and_nothing_happens_outside_training():
    x = torch.randn(9, 11)
    dropout = Dropout(0.4)
    torch.manual_seed(3)
    first = dropout(x)
    torch.manual_seed(3)

    assert torch.equal(dropout(x), first)
    assert dropout.eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_a_share_is_never_rounded_to_nothing_or_all(share):
    torch.manual_seed(0)

    found = Dropout(share)(torch.ones(100_000))

    assert 0 < (found == 0).sum() < 100_000


def test_whole_words_are_hidden_and_never_the_start():
    torch.manual_seed(0)
    words = torch.ones(500, 4, 7, 3)  # (B, K, T, E)

    found = WordDropout(0.2)(words, torch.arange(7))

    assert (found == found[..., :1]).all()
    hidden = (found[..., 0] == 0).double().mean((0, 1)).tolist()
    assert hidden == pytest.approx([0, *[0.2] * 6], abs=0.03)
    assert (hidden[0], found.max().item()) == (0, 1)


@pytest.mark.parametrize(("share", "left"), [(0.3, 7), (0.99, 1), (0.04, 10)])
def test_so_many_regions_of_each_photo_are_left_in_their_order(share, left):
    torch.manual_seed(0)
    regions = torch.arange(60.0).view(6, 10, 1).expand(6, 10, 3)

    found = RegionDropout(share)(regions)

    assert found.shape == (6, left, 3)
    numbers = found[..., 0]
    assert (found == numbers.unsqueeze(-1)).all()
    assert (numbers // 10 == torch.arange(6.0).unsqueeze(1)).all()  # of the same photo
    assert (numbers.diff(dim=1) > 0).all()
    if 1 < left < 10:
        assert not torch.equal(numbers[0] % 10, numbers[1] % 10)


def small(kind: type, **options: float):
    sizes = {"vocabulary_size": 20, "feature_width": 6, "embedding_width": 8, "hidden_width": 8}
    more = {"layers": 1, "heads": 2, "feed_forward_width": 8} if kind is TransformerDecoder else {}
    return kind(**sizes, **more, **options)


@pytest.mark.parametrize("kind", [LstmDecoder, TransformerDecoder])
def test_decoders_leave_regions_out_in_training_alone(kind):
    decoder = small(kind, region_dropout=0.5)
    regions, captions = torch.randn(2, 10, 6), torch.randint(4, 20, (2, 2, 9))
    assert decoder.train().read(regions, captions).attention.shape[-1] == 5
    assert decoder.eval().read(regions, captions).attention.shape[-1] == 10


@pytest.mark.parametrize("kind", [LstmDecoder, TransformerDecoder])
def test_decoders_hide_words_in_training_alone(kind):
    torch.manual_seed(0)
    decoder = small(kind, word_dropout=0.9)
    regions, captions = torch.randn(2, 3, 6), torch.randint(4, 20, (2, 2, 9))
    real = Real(torch.arange(9) < torch.tensor([[9, 3], [1, 8]]).unsqueeze(-1))

    first, second = (decoder.train().read(regions, captions, real).hidden for _ in range(2))

    assert not torch.equal(first, second)
    starts = real.places % 9 == 0
    assert torch.equal(first[starts], second[starts])
    same = [decoder.eval().read(regions, captions, real).hidden for _ in range(2)]
    assert torch.equal(*same)
