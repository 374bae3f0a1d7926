"""What an iteration minimises beside the surprise, and the words it lets the captioner draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from regard.models.decoder import Decoder
from regard.models.lstm import LstmDecoder
from regard.models.transformer import TransformerDecoder
from regard.training.average import Average
from regard.training.learner import Learner

V, D, PAD, START, END = 11, 6, 0, 1, 2


@pytest.fixture(params=["lstm", "transformer"])
def decoder(request) -> Decoder:
    torch.manual_seed(0)
    if request.param == "lstm":
        return LstmDecoder(
            vocabulary_size=V, feature_width=D, embedding_width=5, hidden_width=8, attention_width=4
        )
    return TransformerDecoder(
        vocabulary_size=V, feature_width=D, embedding_width=8, hidden_width=8, layers=2, heads=2,
        feed_forward_width=9,
    )  # fmt: skip


def learner(decoder: Decoder, *, smoothing: float = 0.0, **settings: float) -> Learner:
    return Learner(
        encoder=None, decoder=decoder, pad=PAD, label_smoothing=smoothing,
        end=END, forbidden=(PAD, START), **settings,
    )  # fmt: skip


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Three photos, two captions each but for the last, of 4, 2, 3, 3 and 1 words."""
    torch.manual_seed(1)
    captions = torch.full((3, 2, 6), PAD)
    for (b, k), words in {(0, 0): 4, (0, 1): 2, (1, 0): 3, (1, 1): 3, (2, 0): 1}.items():
        captions[b, k, : words + 2] = torch.tensor(
            [START, *torch.randint(3, V, (words,)).tolist(), END]
        )
    return torch.randn(3, 7, D), captions


def test_the_penalty_is_that_of_the_paper(decoder, batch):
    regions, captions = batch
    plain, nll = learner(decoder)(regions, captions)
    total, same = learner(decoder, attention_penalty=0.3)(regions, captions)
    expected = 0.0
    for b, k in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]:
        caption = captions[b, k][captions[b, k] != PAD]
        alpha = decoder.read(regions[b : b + 1], caption[:-1].view(1, 1, -1)).attention[0, 0]
        expected += ((1 - alpha.sum(dim=0)) ** 2).sum().item()
    assert (total - plain).item() == pytest.approx(0.3 * expected, rel=1e-4)
    assert nll.item() == pytest.approx(same.item())
    total.backward()
    assert all(p.grad is not None for p in decoder.parameters() if p.requires_grad)


def test_the_penalty_spreads_the_attention(decoder, batch):
    """Descending it alone brings what each region is given nearer to once."""
    regions, captions = batch
    taught = learner(decoder, attention_penalty=1.0)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)

    def penalty() -> Tensor:
        return taught(regions, captions)[0] - learner(decoder)(regions, captions)[0]

    before = penalty().item()
    for _ in range(20):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert penalty().item() < before - 1e-3


def test_what_is_learnt_is_each_captions_loss_by_its_weight(decoder, batch):
    regions, captions = batch
    weights = np.array([[0.2, 1.8], [1.3, 0.7], [1.0, 0.0]], np.float32)
    taught = learner(decoder, smoothing=0.1)
    total, nll = taught(regions, captions, weights=weights)
    expected, plain = 0.0, 0.0
    for b, k in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]:
        loss, alone = taught(regions[b : b + 1], captions[b : b + 1, k : k + 1])
        expected, plain = expected + float(weights[b, k]) * loss, plain + alone.item()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert nll.item() == pytest.approx(plain, rel=1e-5)  # what is told counts them all alike
    parameters = list(decoder.parameters())
    found, wanted = (
        torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (total, expected)
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_nothing_is_drawn_at_the_beginning_of_a_run_or_when_judging(decoder, batch):
    plain = learner(decoder)(*batch)[0]
    drawing = learner(decoder, scheduled_sampling=1.0)
    assert torch.equal(drawing(*batch, done=0.0)[0], plain)
    assert not torch.equal(drawing(*batch, done=1.0)[0], plain)
    assert torch.equal(drawing.eval()(*batch, done=1.0)[0], plain)


def test_words_are_drawn_from_what_was_expected_in_their_place(decoder, batch):
    """Each replaced word is one that the decoder finds likely after the known words before it."""
    regions, captions = batch
    seen: list[Tensor] = []
    read = decoder.read

    def watched(regions: Tensor, words: Tensor, *real):
        seen.append(words.clone())
        return read(regions, words, *real)

    decoder.read = watched  # type: ignore[method-assign]
    drawing = learner(decoder, scheduled_sampling=1.0)
    counts = torch.zeros(V)
    for _ in range(300):
        drawing(regions, captions, done=1.0)
        known, replaced = seen[-2:]
        assert torch.equal(known, captions[..., :-1])
        assert torch.equal(replaced[..., 0], known[..., 0])
        assert torch.equal(replaced == PAD, known == PAD)
        assert not torch.isin(replaced[..., 1:][known[..., 1:] != PAD], torch.arange(3)).any()
        counts += torch.bincount(replaced[0, 0, 2].view(1), minlength=V)
    hidden = read(regions, captions[..., :-1]).hidden[0, 0, 1]
    scores = decoder.logits(hidden).detach()
    scores[:3] = -torch.inf
    expected = scores.softmax(dim=-1)
    torch.testing.assert_close(counts / 300, expected, atol=0.1, rtol=0)


def test_half_of_the_words_are_drawn_half_way(decoder, batch):
    regions, captions = batch
    drawing = learner(decoder, scheduled_sampling=1.0)
    changed = real = 0
    for _ in range(100):
        drawn = drawing._partly_drawn(regions, captions[..., :-1], 0.5)
        words = captions[..., 1:-1] > END
        changed += int(((drawn[..., 1:] != captions[..., 1:-1]) & words).sum())
        real += int(words.sum())
    # A word may be replaced by itself, about one in the 8 that can be drawn.
    assert changed / real == pytest.approx(0.5 * 7 / 8, abs=0.06)


def test_the_average_is_that_of_the_formula():
    torch.manual_seed(0)
    weights = {"w": torch.randn(3, 2), "count": torch.tensor(4)}
    average, expected = Average(weights, 0.7), weights["w"].clone()
    for step in range(12):
        weights["w"] += torch.randn(3, 2)
        average.update(step)
        kept = min(0.7, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * weights["w"]
    torch.testing.assert_close(average.state()["w"], expected)
    trained = weights["w"].clone()
    with average.in_use():
        torch.testing.assert_close(weights["w"], expected)
    assert torch.equal(weights["w"], trained)
    again = Average(weights, 0.7)
    again.restore(average.state())
    torch.testing.assert_close(again.state(), average.state())
