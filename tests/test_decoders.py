"""The laws of every decoder, whichever it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from regard.models.decoder import Decoder, Real
from regard.models.devices import DTYPES
from regard.models.fast import packing
from regard.models.lstm import LstmDecoder
from regard.models.transformer import TransformerDecoder
from regard.search import Rules, beam_search, sample

B, K, L, D, T, V = 3, 4, 6, 10, 6, 23


def lstm(**options) -> LstmDecoder:
    return LstmDecoder(
        vocabulary_size=V, feature_width=D, embedding_width=5, attention_width=8,
        **{"hidden_width": 7, **options},
    )  # fmt: skip


def transformer(**options) -> TransformerDecoder:
    return TransformerDecoder(
        vocabulary_size=V, feature_width=D, heads=2, layers=2, feed_forward_width=12,
        **{"embedding_width": 8, "hidden_width": 8, **options},
    )  # fmt: skip


MAKERS: dict[str, Callable[[], Decoder]] = {
    "lstm": lstm,
    "lstm, gate, zeros": lambda: lstm(gate=True, start_state="zeros"),
    "lstm, even": lambda: lstm(hidden_width=8),
    "transformer": transformer,
    "transformer, learned, untied": lambda: transformer(positions="learned", tied=False),
    "transformer, narrow words": lambda: transformer(embedding_width=5),
    "transformer, regions ask": lambda: transformer(region_layers=2),
    "transformer, wide heads": lambda: transformer(hidden_width=64),
    "transformer, wide heads, learned": lambda: transformer(hidden_width=64, positions="learned"),
    "transformer, wide heads, untied": lambda: transformer(hidden_width=64, tied=False),
}


@pytest.fixture(params=MAKERS)
def decoder(request) -> Decoder:
    torch.manual_seed(1)
    decoder = MAKERS[request.param]().double()
    with torch.no_grad():  # biases away from zero, so that a forgotten one shows
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return decoder.eval()


@pytest.fixture
def photos() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(B, L, D, generator=generator, dtype=torch.float64)


@pytest.fixture
def captions() -> torch.Tensor:
    return torch.randint(4, V, (B, K, T), generator=torch.Generator().manual_seed(3))


def test_attention_is_a_distribution(decoder, photos, captions):
    attention = decoder.read(photos, captions).attention
    assert attention.shape == (B, K, T, L)
    assert (attention >= 0).all()
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))


def test_step_by_step_equals_all_at_once(decoder, photos, captions):
    read = decoder.read(photos, captions)
    expected = decoder.logits(read.hidden)
    torch.testing.assert_close(decoder(photos, captions), expected)
    state = decoder.start(photos).select(torch.arange(B).repeat_interleave(K))
    for t in range(T):
        step = decoder.step(captions[:, :, t].flatten(), state)
        state = step.state
        torch.testing.assert_close(step.logits.view(B, K, V), expected[:, :, t])
        torch.testing.assert_close(step.attention.view(B, K, L), read.attention[:, :, t])


def test_alone_equals_in_a_batch(decoder, photos, captions):
    together, looked = decoder(photos, captions), decoder.read(photos, captions).attention
    for b in range(B):
        for k in range(K):
            alone = photos[b : b + 1], captions[b : b + 1, k : k + 1]
            torch.testing.assert_close(decoder(*alone)[0, 0], together[b, k])
            torch.testing.assert_close(decoder.read(*alone).attention[0, 0], looked[b, k])


def test_reading_real_words_alone_equals_reading_all(decoder, photos, captions):
    """What is made of them and every gradient; wherever the captions end, and if none does."""
    lengths = torch.randint(1, T + 1, (B, K), generator=torch.Generator().manual_seed(5))
    for real in (torch.arange(T) < lengths.unsqueeze(-1), torch.ones(B, K, T, dtype=torch.bool)):
        padded = captions.where(real, 0)
        count = int(real.sum())
        probe = torch.randn(count, V, dtype=torch.float64)
        found = []
        for block in (None, 1, 5, 128):  # so many places at a time
            alone = None if block is None else Real(real, block=block)
            read = decoder.read(photos, padded, alone)
            scores = decoder.logits(read.hidden[real] if alone is None else read.hidden)[:count]
            looked = read.attention[real]
            decoder.zero_grad()
            ((scores * probe).sum() + looked.square().sum()).backward()
            gradients = {n: p.grad.clone() for n, p in decoder.named_parameters()}
            found.append((scores.detach(), looked.detach(), gradients))
            torch.testing.assert_close(found[0], found[-1])


def test_what_follows_changes_nothing(decoder, photos, captions):
    changed = captions.clone()
    changed[:, :, 3:] = 0
    before, after = decoder(photos, captions), decoder(photos, changed)
    torch.testing.assert_close(before[:, :, :3], after[:, :, :3])
    assert not torch.allclose(before[:, :, 3:], after[:, :, 3:])


def test_every_earlier_word_counts(decoder, photos, captions):
    for t in range(T):
        changed = captions.clone()
        changed[:, :, t] = (changed[:, :, t] - 3) % (V - 4) + 4
        assert not torch.allclose(decoder(photos, captions)[:, :, -1],
                                  decoder(photos, changed)[:, :, -1])  # fmt: skip


@pytest.mark.parametrize("order", [[2, 0, 0, 2], [0, 0, 1, 1, 2, 2], [1], [0, 1, 2]])
def test_states_reorder_repeat_and_drop(decoder, photos, captions, order):
    first = decoder.step(captions[:, 0, 0], decoder.start(photos)).state
    rows = torch.tensor(order)
    chosen = decoder.step(captions[:, 0, 1][rows], first.select(rows))
    plain = decoder.step(captions[:, 0, 1], first)
    torch.testing.assert_close(chosen.logits, plain.logits[rows])
    torch.testing.assert_close(chosen.attention, plain.attention[rows])
    last = torch.arange(len(rows)).flip(0)
    words = captions[:, 0, 2][rows][last]
    again = decoder.step(words, chosen.state.select(last))
    expected = decoder.step(captions[:, 0, 2], plain.state).logits[rows][last]
    torch.testing.assert_close(again.logits, expected)


def test_a_state_may_be_used_twice(decoder, photos, captions):
    state = decoder.step(captions[:, 0, 0], decoder.start(photos)).state
    once = decoder.step(captions[:, 0, 1], state).logits
    decoder.step(captions[:, 1, 1], state)
    assert torch.equal(decoder.step(captions[:, 0, 1], state).logits, once)


def test_no_request_leaves_a_trace_on_the_module(decoder, photos, captions):
    def everything() -> list[tuple[str, ...]]:
        return [tuple(sorted(vars(module))) for module in decoder.modules()]

    before = everything()
    decoder(photos, captions)
    decoder.read(photos, captions)
    decoder.step(captions[:, 0, 0], decoder.start(photos))
    assert everything() == before


def rules() -> Rules:
    return Rules(start=1, end=2, forbidden=(0, 1, 3), max_length=7, length_penalty=0.7)


def test_a_beam_of_one_is_greedy(decoder, photos):
    found = beam_search(decoder.step, decoder.start(photos), B, rules=rules(), width=1)
    for b, (caption,) in enumerate(found):
        ids: list[int] = []
        while len(ids) < rules().max_length:
            said = torch.tensor([[[1, *ids]]])
            logits = decoder(photos[b : b + 1], said)[0, 0, -1]
            logits[[0, 1, 3] + [2] * (not ids)] = -torch.inf
            word = int(logits.argmax())
            if word == 2:
                break
            ids.append(word)
        assert list(caption.ids) == ids


@pytest.mark.parametrize("width", [2, 5])
def test_captions_do_not_depend_on_the_neighbours(decoder, photos, width):
    def search(regions: torch.Tensor) -> list[list[tuple[int, ...]]]:
        state, count = decoder.start(regions), len(regions)
        beams = beam_search(decoder.step, state, count, rules=rules(), width=width)
        drawn = sample(decoder.step, state, count, rules=rules(), seed=1, count=width)
        return [[h.ids for h in (*b, *d)] for b, d in zip(beams, drawn, strict=True)]

    together = search(photos)
    assert together == [search(photos[b : b + 1])[0] for b in range(B)]


def test_the_scores_of_a_beam_are_those_of_its_words(decoder, photos):
    found = beam_search(decoder.step, decoder.start(photos), B, rules=rules(), width=3)
    for b, captions in enumerate(found):
        for caption in captions:
            said = torch.tensor([[[1, *caption.ids]]])
            read = decoder.read(photos[b : b + 1], said)
            logits = decoder.logits(read.hidden)[0, 0].detach().float()
            logits[:, [0, 1, 3]] = -torch.inf
            logits[0, 2] = -torch.inf
            log_p = logits.log_softmax(-1)
            expected = [float(log_p[i, word]) for i, word in enumerate(caption.ids)]
            assert caption.log_probabilities == pytest.approx(expected, abs=1e-5)
            looked = read.attention[0, 0, : len(caption.ids)].float()
            torch.testing.assert_close(caption.attention, looked)


@pytest.mark.parametrize("name", MAKERS)
def test_half_precision_stays_close_to_float32(name):
    torch.manual_seed(0)
    decoder = MAKERS[name]()
    regions, captions = torch.rand(4, 9, D), torch.randint(0, V, (4, 5, 7))
    found, gradients = [], []
    for narrow in (False, True):
        decoder.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            logits = decoder(regions, captions)
        logits.float().logsumexp(-1).sum().backward()
        found.append(logits.detach().float())
        gradients.append(torch.cat([p.grad.flatten() for p in decoder.parameters()]))
    for narrow, exact in (found[::-1], gradients[::-1]):
        assert float((narrow - exact).norm() / exact.norm()) < 2e-2


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_the_fast_form_says_the_same(name, compiled, photos, captions, monkeypatch):
    if not compiled:
        monkeypatch.setenv("REGARD_COMPILER", "")
    torch.manual_seed(1)
    decoder = MAKERS[name]().eval()
    weights = {n: p.clone() for n, p in decoder.named_parameters()}
    for precision, allowed in (("float32", 1e-5), ("bf16", 2e-2)):
        fast = decoder.fast(precision)
        read = decoder.read(photos.float(), captions)
        exact = decoder.logits(read.hidden).detach()
        state = fast.start(photos.float()).select(torch.arange(B).repeat_interleave(K))
        for t in range(T):
            said = fast.step(captions[:, :, t].flatten(), state)
            state = said.state
            error = said.logits.view(B, K, V) - exact[:, :, t]
            assert said.logits.dtype == torch.float32
            assert float(error.norm() / exact[:, :, t].norm()) < allowed
            looked = said.attention.view(B, K, L)
            torch.testing.assert_close(
                looked, read.attention[:, :, t].detach(), rtol=0, atol=allowed
            )
    assert all(torch.equal(p, weights[n]) for n, p in decoder.named_parameters())


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", MAKERS)
def test_a_fast_caption_does_not_depend_on_its_neighbours_to_the_last_bit(name, precision, photos):
    if packing(DTYPES[precision], torch.device("cpu")) is None:
        pytest.skip("The processor has no bf16, or there is no C++ compiler.")
    torch.manual_seed(1)
    fast = MAKERS[name]().fast(precision)

    def search(regions: torch.Tensor) -> list[list[tuple[float, ...]]]:
        found = beam_search(fast.step, fast.start(regions), len(regions), rules=rules(), width=3)
        return [[(h.score, *h.log_probabilities) for h in of_photo] for of_photo in found]

    many = torch.cat([photos.float() * (1 + i) for i in range(5)])
    together = search(many)
    assert together == [search(many[b : b + 1])[0] for b in range(len(many))]
