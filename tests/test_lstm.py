"""The fast decoder is the report's tables: outputs and every gradient."""

from __future__ import annotations

import pytest
import torch

import oracle
from regard.models.lstm import LstmDecoder

B, K, H, W, D, T, V = 3, 4, 2, 3, 10, 6, 23


def small(*, start_state: str = "mean", gate: bool = False) -> LstmDecoder:
    torch.manual_seed(1)
    decoder = LstmDecoder(
        vocabulary_size=V, feature_width=D, embedding_width=5, hidden_width=7, attention_width=8,
        start_state=start_state, gate=gate,
    ).double()  # fmt: skip
    with torch.no_grad():  # biases away from zero, so that a forgotten one shows
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return decoder.eval()


def photos_and_captions(*, each: int = K, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(B, D, H, W, generator=generator, dtype=torch.float64)
    return features, torch.randint(4, V, (B, each, T), generator=generator)


def regions_of(features: torch.Tensor) -> torch.Tensor:
    return features.flatten(2).transpose(1, 2)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).norm() / expected.norm().clamp_min(1e-30)).detach())


@pytest.mark.parametrize("start_state", ["mean", "zeros"])
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("each", [1, K])
def test_outputs_and_every_gradient_are_those_of_the_literal_tables(start_state, gate, each):
    decoder = small(start_state=start_state, gate=gate)
    literal = oracle.LiteralCaptioner(decoder)
    features, captions = photos_and_captions(each=each)
    features_literal = features.clone().requires_grad_()
    regions = regions_of(features).clone().requires_grad_()
    probe = torch.randn(B, each, T, V, dtype=torch.float64)
    probe_attention = torch.randn(B, each, T, H * W, dtype=torch.float64)

    read = decoder.read(regions, captions)
    logits = decoder.logits(read.hidden)
    ((logits * probe).sum() + (read.attention * probe_attention).sum()).backward()

    expected, attention = literal(
        features_literal.repeat_interleave(each, dim=0), captions.flatten(0, 1)
    )
    (
        (expected * probe.flatten(0, 1)).sum() + (attention * probe_attention.flatten(0, 1)).sum()
    ).backward()

    assert relative(logits.flatten(0, 1), expected) < 1e-9
    assert relative(read.attention.flatten(0, 1), attention) < 1e-9
    gradients = literal.gradients_by_fast_name()
    assert set(gradients) == {name for name, _ in decoder.named_parameters()}
    for name, parameter in decoder.named_parameters():
        assert relative(parameter.grad, gradients[name]) < 1e-9, name
    assert relative(regions.grad, regions_of(features_literal.grad)) < 1e-9


def test_half_precision_stays_close_to_float32():
    torch.manual_seed(0)
    decoder = LstmDecoder(
        vocabulary_size=50, feature_width=64, embedding_width=16, hidden_width=32,
        attention_width=32, gate=True,
    )  # fmt: skip
    regions, captions = torch.rand(4, 9, 64), torch.randint(0, 50, (4, 5, 7))
    expected = decoder(regions, captions)
    expected.logsumexp(-1).sum().backward()
    gradients = {n: p.grad.clone() for n, p in decoder.named_parameters()}
    decoder.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoder(regions, captions)
    found.float().logsumexp(-1).sum().backward()
    assert relative(found.float(), expected) < 2e-2
    for name, parameter in decoder.named_parameters():
        if name != "attention.score.weight":
            assert relative(parameter.grad, gradients[name]) < 6e-2, name
