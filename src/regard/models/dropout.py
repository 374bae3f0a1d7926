"""What is left out at random in training: values, words, regions.

Source of the first: Srivastava et al., "Dropout: a simple way to prevent neural networks from
overfitting" (2014), scaled in training. Torch draws a float for each value; for a Transformer on
two cores that is a third of a training step (``aten::bernoulli_`` in its profiler). Here eight
values share one 64-bit number, so the share that is dropped is the nearest multiple of 1/256, and
the rest is scaled by what is in fact kept. Compiled (:mod:`regard.models.native`), the numbers come
from one seed and are never in memory: the way back makes them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard.models.native import native


class _LeftOut(nn.Module):
    """A share of something, left out at random in training alone."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    @property
    def all_stay(self) -> bool:
        """Whether nothing is left out now."""
        return not self.training or not self.share

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return f"{self.share}"


class Dropout(_LeftOut):
    """Leaves values out at random in training, and scales the rest so that their mean stays.

    Args:
        share: of the values that are left out, at least 0 and below 1. On a CPU it is rounded to a
            multiple of 1/256, but never to 0 or 1 if it is neither.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Values of any shape; as they are outside training."""
        if self.all_stay:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.share)
        dropped = min(255, max(1, round(256 * self.share)))
        if native("drop", x) is not None:
            seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
            kept: Tensor = _Drop.apply(x, dropped, seed)  # type: ignore[no-untyped-call]
            return kept
        numbers = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        mask = numbers.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * mask.to(x.dtype).mul_(256 / (256 - dropped))


class WordDropout(_LeftOut):
    """Leaves whole words out at random in training, so that the photo has to tell what they would.

    Source: Bowman et al., "Generating sentences from a continuous space" (2016), section 3.1, with
    zeros for the unknown word.

    Args:
        share: of the words that are left out, at least 0 and below 1.
    """

    def forward(self, words: Tensor, places: Tensor) -> Tensor:
        """Vectors ``(..., E)`` of words; as they are outside training.

        Args:
            words: the vectors.
            places: of each in its caption, ``(...)``; the first, ``<START>``, stays.
        """
        if self.all_stay:
            return words
        kept = (torch.rand(words.shape[:-1], device=words.device) >= self.share) | (places == 0)
        return words * kept.unsqueeze(-1).to(words.dtype)


class RegionDropout(_LeftOut):
    """Leaves regions out at random in training, so many of each photo: there is less to compute.

    Source: Liu et al., "PatchDropout: economizing vision transformers using patch dropout" (2023),
    section 3, for what a decoder sees.

    Args:
        share: of the L regions that are left out, but for one; at least 0 and below 1.
    """

    def forward(self, regions: Tensor) -> Tensor:
        """Regions ``(B, L, D)`` to ``(B, L', D)``, in their order; all of them outside training."""
        if self.all_stay:
            return regions
        photos, count, _ = regions.shape
        left = max(1, round(count * (1 - self.share)))
        numbers = torch.rand(photos, count, device=regions.device)
        kept = numbers.topk(left, dim=1, sorted=False).indices.sort(dim=1).values  # (B, L')
        first = torch.arange(0, photos * count, count, device=regions.device).unsqueeze(1)
        places = (kept + first).flatten()
        return regions.flatten(0, 1).index_select(0, places).view(photos, left, -1)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int, seed: int) -> Tensor:
        ctx.of = dropped, seed
        return _dropped(x, dropped, seed)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        return _dropped(d, *ctx.of), None, None


def _dropped(x: Tensor, dropped: int, seed: int) -> Tensor:
    compiled = native("drop", x)
    assert compiled is not None
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    compiled(x.contiguous(), out, seed, x.numel(), dropped, 256 / (256 - dropped))
    return out
