"""Fast forms of encoders and decoders, for use and not for training.

Encoders for many photos: batch norm folded away, channels last, bf16, compiled where it pays.
How far features in bf16 are from those in float32 is printed by ``benchmarks/features.py``. It
comes from rounding the weights and from rounding what flows between layers, and more from the first
convolution and the first block than from all others. To keep those in float32 was tried: it took
more speed than the difference was worth. Where the difference matters there is float32.

Decoders: products in bf16, but for the scores of the vocabulary: bf16 has 8 bits, and the two best
words are often closer to each other than that.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from threading import Lock
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from regard.models.devices import Precision
from regard.models.native import native

WORTH_COMPILING = 4096
"""From so many photos on, compiling an encoder takes less time than it saves."""

Encode = Callable[[Tensor], Tensor]
"""Prepared photos (B, 3, height, width), float32 on any device, to features (B, D, H, W)."""


def fast_form(
    backbone: nn.Module, precision: Precision, *, photos: int = 1, batch_size: int = 8
) -> Encode:
    """A copy of a backbone for encoding only; the backbone itself is left as it is.

    Args:
        backbone: from photos (B, 3, height, width) to features (B, D, H, W).
        precision: ``float32`` differs from the backbone by rounding only.
        photos: how many there are. On a CPU and from :data:`WORTH_COMPILING` on the copy is
            compiled at the first call; without a C++ compiler it works uncompiled.
        batch_size: the most photos that are given at a time. A compiled copy is for this size
            alone; fewer photos are filled up with empty ones.

    Returns:
        A function that threads may share. Its features are float32, on the backbone's device.
    """
    device = next(backbone.parameters()).device
    copied = copy.deepcopy(backbone).requires_grad_(False).eval()
    fold_batch_norms(copied)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    copied.to(dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    worth = photos >= WORTH_COMPILING and device.type == "cpu"
    run: Encode = _Compiled(copied, batch_size) if worth else copied

    def encode(images: Tensor) -> Tensor:
        with torch.no_grad():
            images = images.to(device, dtype).contiguous(memory_format=torch.channels_last)
            return run(images).float()

    return encode


def narrow_products(module: nn.Module, *, wide: Sequence[nn.Module] = ()) -> None:
    """Have the linear layers of a module multiply in bf16, in place.

    Args:
        module: what enters and leaves its linear layers stays float32.
        wide: layers that are left alone where their sums would be rounded to bf16.
    """
    for name, child in module.named_children():
        if not isinstance(child, nn.Linear):
            narrow_products(child, wide=wide)
        elif child.out_features > 1 and (
            keeps_sums(child.weight.device) or all(child is not layer for layer in wide)
        ):
            setattr(module, name, Narrow(child.weight, child.bias))


def keeps_sums(device: torch.device) -> bool:
    """Whether :class:`Narrow` gives its sums in float32, unrounded."""
    return native("multiply", torch.empty(0, dtype=torch.bfloat16, device=device)) is not None


class Narrow(nn.Module):
    """A linear layer that multiplies in bf16 and adds up in float32.

    Compiled (:mod:`regard.models.native`), a row's result does not depend, to the last bit, on the
    rows beside it, and is not rounded. Otherwise torch rounds the sums to bf16.

    Args:
        weight: ``(V, N)``.
        bias: ``(V,)``, or none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.width, n = weight.shape
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        weight = weight.detach().bfloat16()
        self._multiply = native("multiply", weight)
        if self._multiply is not None:
            pairs = -(-n // 2)
            filled = weight.new_zeros(-(-self.width // 64) * 64, 2 * pairs)
            filled[: self.width, :n] = weight
            weight = filled.view(-1, 64, pairs, 2).transpose(1, 2).contiguous()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., N)`` to ``(..., V)``, float32."""
        weight, bias = cast(Tensor, self.weight), cast("Tensor | None", self.bias)
        rows = x.to(torch.bfloat16).flatten(0, -2)
        if self._multiply is None:
            product = functional.linear(rows, weight).float()
            return (product if bias is None else product + bias).view(*x.shape[:-1], -1)
        if rows.shape[1] % 2:
            rows = functional.pad(rows, (0, 1))
        out = torch.empty(len(rows), self.width)
        pairs = rows.shape[1] // 2
        self._multiply(rows.contiguous(), weight, bias, out, len(rows), pairs, self.width)
        return out.view(*x.shape[:-1], -1)


def fold_batch_norms(module: nn.Module) -> None:
    """Merge each batch norm into the convolution registered right before it, in place."""
    children = list(module.named_children())
    for (name, child), (norm_name, norm) in itertools.pairwise(children):
        if isinstance(child, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(child, norm))
            setattr(module, norm_name, nn.Identity())
    for _, child in children:
        fold_batch_norms(child)


class _Compiled:
    """A backbone compiled at the first call, or as it is if that cannot be done."""

    def __init__(self, backbone: nn.Module, batch_size: int) -> None:
        self._batch_size = batch_size
        self._plain = backbone
        self._run: Encode | None = None
        self._lock = Lock()

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, height, width), B at most the size compiled for, to (B, D, H, W)."""
        photos = len(images)
        if photos < self._batch_size:  # another size would be compiled anew
            empty = images.new_zeros(self._batch_size - photos, *images.shape[1:])
            images = torch.cat([images, empty]).contiguous(memory_format=torch.channels_last)
        if self._run is None:
            with self._lock:
                if self._run is None:
                    self._run = self._compile(images)
        return self._run(images)[:photos]

    def _compile(self, images: Tensor) -> Encode:
        """Compile for this thread's number of threads and for batches such as this."""
        from torch._dynamo.exc import TorchDynamoException  # a second to import

        # Frozen weights are laid out for the processor once, not at every call.
        compiled = torch.compile(self._plain, dynamic=False, options={"freezing": True})
        try:
            compiled(images)
        except TorchDynamoException:
            return self._plain
        return compiled
