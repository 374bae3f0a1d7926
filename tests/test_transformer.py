"""The Transformer decoder is the one of the literature; what is peculiar to it holds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from regard.models.heads import Memory, attend
from regard.models.transformer import POSITIONS, TransformerDecoder

B, K, L, D, T, V, N, HEADS, LAYERS, F = 2, 3, 5, 9, 6, 17, 12, 3, 2, 20


def make(**options) -> TransformerDecoder:
    torch.manual_seed(4)
    decoder = TransformerDecoder(
        vocabulary_size=V, feature_width=D, hidden_width=N, layers=LAYERS, heads=HEADS,
        feed_forward_width=F, **{"embedding_width": N, **options},
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return decoder.eval()


def given() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    regions = torch.randn(B, L, D, generator=generator, dtype=torch.float64)
    return regions, torch.randint(4, V, (B, K, T), generator=generator)


class Reference(nn.Module):
    """PyTorch's own layers with the same weights, each caption beside a copy of its photo."""

    def __init__(self, ours: TransformerDecoder) -> None:
        super().__init__()
        self.ours = ours
        layer = nn.TransformerDecoderLayer(
            N, HEADS, F, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.stack = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(N)).double()
        weights = {}
        pairs = {
            "norm1": "norm_said", "norm2": "norm_seen", "norm3": "norm_wide",
            "self_attn.out_proj": "from_said", "multihead_attn.out_proj": "from_seen",
            "linear1": "widen", "linear2": "narrow",
        }  # fmt: skip
        for i, layer in enumerate(ours.layers):
            for kind in ("weight", "bias"):
                for theirs, own in pairs.items():
                    weights[f"layers.{i}.{theirs}.{kind}"] = getattr(layer.get_submodule(own), kind)
                weights[f"layers.{i}.self_attn.in_proj_{kind}"] = getattr(layer.of_said, kind)
                weights[f"layers.{i}.multihead_attn.in_proj_{kind}"] = torch.cat(
                    [getattr(layer.query, kind), getattr(layer.of_seen, kind)]
                )
        weights |= {f"norm.{k}": v for k, v in ours.norm.state_dict().items()}
        self.stack.load_state_dict(weights)
        self.looked: list[torch.Tensor] = []
        for layer in self.stack.layers:
            plain = layer.multihead_attn.forward

            def looking(*arguments, plain=plain, **options):
                options |= {"need_weights": True, "average_attn_weights": False}
                found, weights = plain(*arguments, **options)
                self.looked.append(weights)
                return found, weights

            layer.multihead_attn.forward = looking

    def forward(self, regions: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        ours, flat = self.ours, captions.flatten(0, 1)
        words = (
            nn.functional.embedding(flat, ours.embedding.weight)
            * ours.embedding.weight.shape[1] ** 0.5
        )
        if ours.enter is not None:
            words = words @ ours.enter.weight.t()
        if ours.positions is None:
            places = [
                [math.sin(p / 10_000 ** (2 * i / N)) for i in range(N // 2)]
                + [math.cos(p / 10_000 ** (2 * i / N)) for i in range(N // 2)]
                for p in range(T)
            ]
            words = words + torch.tensor(places, dtype=torch.float64)
        else:
            words = words + ours.positions[:T]
        memory = ours.norm_seen(ours.see(regions)).repeat_interleave(captions.shape[1], dim=0)
        mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)
        hidden = self.stack(words, memory, tgt_mask=mask)
        if ours.output is not None:
            return hidden @ ours.output.t() + ours.bias
        if ours.leave is not None:
            hidden = hidden @ ours.leave.weight.t()
        return hidden @ ours.embedding.weight.t() + ours.bias


def test_layers_among_the_regions_are_pytorchs():
    ours = make(region_layers=2)
    layer = nn.TransformerEncoderLayer(
        N, HEADS, F, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    pairs = {
        "norm1": "norm", "norm2": "norm_wide", "self_attn.out_proj": "from_regions",
        "self_attn.in_proj": "of_regions", "linear1": "widen", "linear2": "narrow",
    }  # fmt: skip
    theirs.load_state_dict(
        {
            f"layers.{i}.{name}{'_' if name.endswith('in_proj') else '.'}{kind}": getattr(
                among.get_submodule(own), kind
            )
            for i, among in enumerate(ours.among)
            for name, own in pairs.items()
            for kind in ("weight", "bias")
        }
    )
    regions, captions = given()
    plain = make()
    plain.load_state_dict(ours.state_dict(), strict=False)
    plain.see = nn.Sequential(ours.see, theirs.eval())

    torch.testing.assert_close(ours(regions, captions), plain(regions, captions))


@pytest.mark.parametrize(
    "options",
    [{}, {"positions": "learned"}, {"tied": False}, {"embedding_width": 7},
     {"embedding_width": 7, "tied": False}],
)  # fmt: skip
def test_outputs_and_every_gradient_are_those_of_pytorchs_layers(options):
    ours, other = make(**options), make(**options)
    reference = Reference(other)
    regions, captions = given()
    probe = torch.randn(B * K, T, V, dtype=torch.float64)
    (ours(regions, captions).flatten(0, 1) * probe).sum().backward()
    expected = reference(regions, captions)
    torch.testing.assert_close(ours(regions, captions).flatten(0, 1), expected)

    (expected * probe).sum().backward()
    theirs = dict(reference.stack.named_parameters())
    found = dict(ours.named_parameters())
    for name, parameter in other.named_parameters():
        if parameter.grad is not None:  # outside the stack
            torch.testing.assert_close(found[name].grad, parameter.grad, msg=name)
    for i in range(LAYERS):
        for own, name in (("of_said", "self_attn.in_proj"), ("widen", "linear1."),
                          ("from_seen", "multihead_attn.out_proj.")):  # fmt: skip
            for kind in ("weight", "bias"):
                torch.testing.assert_close(
                    found[f"layers.{i}.{own}.{kind}"].grad,
                    theirs[f"layers.{i}.{name}{'_' if name.endswith('proj') else ''}{kind}"].grad,
                )
        joined = [found[f"layers.{i}.{name}.weight"].grad for name in ("query", "of_seen")]
        torch.testing.assert_close(
            torch.cat(joined), theirs[f"layers.{i}.multihead_attn.in_proj_weight"].grad
        )


def test_the_gaze_is_the_mean_over_the_heads_of_the_last_layer():
    decoder = make()
    reference = Reference(decoder)
    regions, captions = given()
    attention = decoder.read(regions, captions).attention
    reference(regions, captions)
    assert len(reference.looked) == LAYERS
    last = reference.looked[-1]  # (B K, heads, T, L)
    torch.testing.assert_close(attention.flatten(0, 1), last.mean(1))
    assert not torch.allclose(attention.flatten(0, 1), torch.stack(reference.looked).mean((0, 2)))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_written_out_is_pytorchs(causal):
    query, keys, values = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (5, 7, 7))
    found, weights = attend(query, Memory(keys, values), causal=causal)
    fused = nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=causal)
    torch.testing.assert_close(found, fused)
    torch.testing.assert_close(weights @ values, fused)


def test_nothing_of_a_photo_is_repeated_for_its_captions():
    decoder = make()
    regions, captions = given()
    sizes: list[int] = []
    for layer in decoder.layers:
        layer.of_seen.register_forward_hook(lambda *a: sizes.append(a[2].shape[0]))
    decoder(regions, captions)
    state = decoder.start(regions).select(torch.arange(B).repeat_interleave(K))
    rows = torch.rand(B * K, 3)
    assert state.rows.by_photo(rows).data_ptr() == rows.data_ptr()  # no copy
    decoder.step(captions[:, :, 0].flatten(), state)
    assert sizes == [B] * 2 * LAYERS
    assert state.seen[0].keys is decoder.step(captions[:, :, 0].flatten(), state).state.seen[0].keys


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_captions_may_be_longer_than_any_learned_position(positions):
    decoder = make(positions=positions)
    regions, _ = given()
    captions = torch.randint(4, V, (B, 1, POSITIONS + 3))
    assert decoder(regions, captions).isfinite().all()


def test_learned_positions_begin_as_sinusoids():
    torch.manual_seed(0)
    sizes = {
        "vocabulary_size": V, "feature_width": D, "embedding_width": N, "hidden_width": N,
        "layers": 1, "heads": HEADS, "feed_forward_width": F,
    }  # fmt: skip
    learned = TransformerDecoder(**sizes, positions="learned")
    fixed = TransformerDecoder(**sizes)
    fixed.load_state_dict({k: v for k, v in learned.state_dict().items() if k != "positions"})
    regions, captions = given()
    torch.testing.assert_close(
        learned.eval()(regions.float(), captions), fixed.eval()(regions.float(), captions)
    )
