"""Every fast path of the training step is the literal equations: values, gradients, loss curve."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import oracle
from regard.data.batches import inputs_and_targets
from regard.models import native, recurrence
from regard.models.lstm import LstmDecoder
from regard.training.learner import Learner

H, W, D, V, PAD, END = 3, 3, 10, 37, 0, 2


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch) -> str:
    """With the compiled functions, and as on a machine without a compiler."""
    if request.param == "torch":
        monkeypatch.setenv("REGARD_COMPILER", "")
    elif native.native("look", torch.zeros(1)) is None:
        pytest.skip("There is no C++ compiler.")
    return request.param


def small(*, gate: bool = False, start_state: str = "mean") -> LstmDecoder:
    """Odd widths, so that a vector that is not whole shows; biases away from zero."""
    torch.manual_seed(1)
    decoder = LstmDecoder(
        vocabulary_size=V, feature_width=D, embedding_width=5, hidden_width=19, attention_width=35,
        start_state=start_state, gate=gate,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return decoder


def padded_captions(photos: int, each: int, steps: int) -> torch.Tensor:
    """``(B, K, T + 1)`` of all lengths from 1 word to T; only one of them is whole."""
    generator = torch.Generator().manual_seed(photos + each)
    captions = torch.randint(4, V, (photos, each, steps + 1), generator=generator)
    for i, caption in enumerate(captions.view(-1, steps + 1)):
        caption[steps + 1 - i % steps :] = PAD
    return captions


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).norm() / expected.norm().clamp_min(1e-30)).detach())


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(
    ("photos", "each", "steps"), [(1, 1, 1), (1, 1, 5), (3, 1, 7), (1, 5, 3), (3, 5, 7), (2, 3, 11)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_float32_gradients_are_those_of_the_literal_equations(
    way, gate, photos, each, steps, smoothing
):
    """A single photo, odd lengths, padding; W_z before the loop (L < K T) and within it."""
    decoder = small(gate=gate)
    literal = oracle.LiteralCaptioner(decoder).double()
    features = torch.rand(photos, D, H, W)
    captions = padded_captions(photos, each, steps)
    learner = Learner(encoder=None, decoder=decoder, pad=PAD, end=END, label_smoothing=smoothing)

    total, nll = learner(features.flatten(2).transpose(1, 2), captions)
    total.backward()

    inputs, targets = inputs_and_targets(captions)
    logits, _ = literal(features.double().repeat_interleave(each, dim=0), inputs.flatten(0, 1))
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    expected = F.cross_entropy(
        flat, wanted, ignore_index=PAD, label_smoothing=smoothing, reduction="sum"
    )
    expected.backward()
    plain = F.cross_entropy(flat, wanted, ignore_index=PAD, reduction="sum")

    assert relative(total, expected) < 1e-6
    assert relative(nll, plain) < 1e-6
    gradients = literal.gradients_by_fast_name()
    assert set(gradients) == {name for name, _ in decoder.named_parameters()}
    for name, parameter in decoder.named_parameters():
        if gradients[name].norm() > 1e-6:  # W_q's is zero where h before the only word is the same
            assert relative(parameter.grad, gradients[name]) < 1e-5, name


def test_gradients_reach_an_encoder_in_training(way):
    decoder = small()
    literal = oracle.LiteralCaptioner(decoder).double()
    for each, steps in ((1, 4), (4, 6)):
        features = torch.rand(3, D, H, W).double().requires_grad_()
        regions = features.detach().float().flatten(2).transpose(1, 2).clone().requires_grad_()
        captions = padded_captions(3, each, steps)
        probe = torch.randn(3, each, steps + 1, V)
        looks = torch.randn(3, each, steps + 1, H * W)
        read = decoder.read(regions, captions)
        ((decoder.logits(read.hidden) * probe).sum() + (read.attention * looks).sum()).backward()
        logits, attention = literal(features.repeat_interleave(each, dim=0), captions.flatten(0, 1))
        ((logits * probe.flatten(0, 1)).sum() + (attention * looks.flatten(0, 1)).sum()).backward()
        assert relative(regions.grad, features.grad.flatten(2).transpose(1, 2)) < 1e-5


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("each", [1, 5])
def test_bf16_gradients_stay_close_to_float32(way, gate, each):
    torch.manual_seed(0)
    decoder = LstmDecoder(
        vocabulary_size=50, feature_width=64, embedding_width=16, hidden_width=32,
        attention_width=32, gate=gate,
    )  # fmt: skip
    learner = Learner(encoder=None, decoder=decoder, pad=PAD, end=END, label_smoothing=0.1)
    regions, captions = torch.rand(4, 9, 64), torch.randint(1, 50, (4, each, 8))
    gradients = {}
    for narrow in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            total, _ = learner(regions, captions)
        decoder.zero_grad()
        total.backward()
        gradients[narrow] = {n: p.grad.clone() for n, p in decoder.named_parameters()}
    for name, found in gradients[True].items():
        # v's gradient is what is left of terms that cancel.
        allowed = 0.2 if name == "attention.score.weight" else 6e-2
        assert relative(found, gradients[False][name]) < allowed, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_formulas_are_those_in_torch(dtype, monkeypatch):
    """Each of the five, on its own, with widths that do not fill a vector."""
    if native.native("look", torch.zeros(1)) is None:
        pytest.skip("There is no C++ compiler.")
    torch.manual_seed(0)
    photos, each, spots, a, n = 2, 3, 5, 37, 21
    rows = photos * each
    pasts = torch.randn(rows, 4 * n + a).to(dtype)
    keys, v = torch.randn(photos, spots, a).to(dtype), torch.randn(a)
    d_alpha, looked = torch.randn(rows, spots).to(dtype), torch.randn(rows, spots)
    seen, words = torch.randn(2, rows, 4 * n).to(dtype)
    d_h, d_output = torch.randn(2, rows, n).to(dtype)
    before, d_after = torch.randn(2, rows, n)
    seen_regions = torch.randn(photos, spots, 131).to(dtype)

    def all_five() -> list[torch.Tensor]:
        gates, after = torch.empty(rows, 4 * n), before.clone()
        h, d_pasts = torch.empty(rows, n, dtype=dtype), torch.zeros_like(pasts)
        d_keys, d_score, d_c = torch.ones(photos, spots, a), torch.ones(photos, a), d_after.clone()
        queries, d_queries = pasts[:, 4 * n :], d_pasts[:, 4 * n :]
        alpha = recurrence.look(keys, queries.view(photos, each, a), v)
        recurrence.look_back(
            keys, queries, v, looked.softmax(-1), d_alpha, looked, d_queries=d_queries,
            d_keys=d_keys, d_score=d_score,
        )  # fmt: skip
        recurrence.cell(pasts, seen, words, before, gates=gates, after=after, h=h)
        recurrence.cell_back(gates, before, after, d_h, d_output, d_c, d_gates=d_pasts[:, : 4 * n])
        z = recurrence.gather(alpha, seen_regions)
        return [alpha, z, gates, after, h, d_pasts, d_keys, d_score, d_c]

    compiled = all_five()
    monkeypatch.setenv("REGARD_COMPILER", "")
    for found, expected in zip(compiled, all_five(), strict=True):
        assert relative(found.float(), expected.float()) < (
            2e-6 if dtype == torch.float32 else 1.5e-2
        )


def test_a_value_that_is_no_number_is_seen(way):
    decoder = small()
    regions = torch.rand(2, H * W, D)
    regions[0, 0, 0] = torch.nan
    learner = Learner(encoder=None, decoder=decoder, pad=PAD, end=END, label_smoothing=0.0)
    total, nll = learner(regions, padded_captions(2, 2, 4))
    assert total.isnan()
    assert nll.isnan()


def test_a_short_training_in_bf16_ends_where_one_in_float32_does(way):
    """Noise is what another start makes of the same training; bf16 moves the end by less."""

    def end(seed: int, *, narrow: bool) -> float:
        torch.manual_seed(seed)
        decoder = LstmDecoder(
            vocabulary_size=V, feature_width=16, embedding_width=12, hidden_width=24,
            attention_width=16,
        )  # fmt: skip
        learner = Learner(encoder=None, decoder=decoder, pad=PAD, end=END, label_smoothing=0.0)
        optimizer = torch.optim.Adam(learner.parameters(), 1e-2, fused=True)
        draw = torch.Generator().manual_seed(7)
        photos = torch.randn(24, 9, 16, generator=draw)
        captions = padded_captions(24, 3, 6)
        losses = []
        for step in range(90):
            rows = slice(step % 3 * 8, step % 3 * 8 + 8)
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                total, nll = learner(photos[rows], captions[rows])
            words = (captions[rows, :, 1:] != PAD).sum()
            (total / words).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(nll / words))
        assert losses[-1] < 0.75 * losses[0]
        return sum(losses[-6:]) / 6

    wide = [end(seed, narrow=False) for seed in range(4)]
    narrow = [end(seed, narrow=True) for seed in range(4)]
    noise = max(wide) - min(wide)
    for a, b in zip(wide, narrow, strict=True):
        assert abs(a - b) < noise / 2
    assert abs(sum(wide) - sum(narrow)) / 4 < noise / 4
