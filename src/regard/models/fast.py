"""Fast forms of encoders and decoders, for use and not for training.

Encoders for many photos: batch norm folded away, channels last, bf16, compiled where it pays.
How far features in bf16 are from those in float32 is printed by ``benchmarks/features.py``. It
comes from rounding the weights and from rounding what flows between layers, and more from the first
convolution and the first block than from all others. To keep those in float32 was tried: it took
more speed than the difference was worth. Where the difference matters there is float32.

Decoders: products whose weights are packed once, in float32 or in bf16. The scores of the
vocabulary are never rounded to bf16: it has 8 bits, and the two best words are often closer to
each other than that.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from functools import cache
from threading import Lock
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from regard.models.devices import DTYPES, Precision
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
    dtype = DTYPES[precision]
    copied.to(dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    worth = photos >= WORTH_COMPILING and device.type == "cpu"
    run: Encode = _Compiled(copied, batch_size) if worth else copied

    def encode(images: Tensor) -> Tensor:
        with torch.no_grad():
            images = images.to(device, dtype).contiguous(memory_format=torch.channels_last)
            return run(images).float()

    return encode


def pack_products(module: nn.Module, dtype: torch.dtype, *, wide: Sequence[nn.Module] = ()) -> None:
    """Have the linear layers of a module multiply as :class:`Packed` does, in place.

    Args:
        module: what enters and leaves its linear layers is float32.
        dtype: of the products, float32 or bfloat16. In float32 nothing is done where the weights
            cannot be packed: torch does the same.
        wide: layers that are left alone where their sums would be rounded.
    """
    for name, child in module.named_children():
        if not isinstance(child, nn.Linear):
            pack_products(child, dtype, wide=wide)
        elif child.out_features > 1 and (
            packing(dtype, child.weight.device)
            or (dtype != torch.float32 and all(child is not layer for layer in wide))
        ):
            setattr(module, name, Packed(child.weight, child.bias, dtype))


def packing(dtype: torch.dtype, device: torch.device) -> tuple[int, int] | None:
    """How compiled products take their weights: so many columns, in them so many values of each.

    None where there are no such products, and torch multiplies.
    """
    return _packing(native("packing", torch.empty(0, dtype=dtype, device=device)))


@cache
def _packing(tell: Callable[..., None] | None) -> tuple[int, int] | None:
    if tell is None:
        return None
    answer = torch.empty(2, dtype=torch.long)
    tell(answer)
    columns, depth = answer.tolist()
    return columns, depth


class Packed(nn.Module):
    """A linear layer that multiplies in float32 or bf16 and adds up in float32, for few rows.

    Compiled (:mod:`regard.models.native`), the weights are laid out for the processor once, a
    row's result does not depend, to the last bit, on the rows beside it, and is not rounded.
    Otherwise torch rounds the sums as it does the products.

    Args:
        weight: ``(V, N)``.
        bias: ``(V,)``, or none.
        dtype: of the products.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, n = weight.shape
        self.dtype = dtype
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        weight = weight.detach().to(dtype)
        shape = packing(dtype, weight.device)
        self._depth, self._multiply = 1, None
        if shape is not None:
            self._multiply = native("multiply", weight)
            columns, self._depth = shape
            steps = -(-n // self._depth)
            filled = weight.new_zeros(-(-self.width // columns) * columns, steps * self._depth)
            filled[: self.width, :n] = weight
            weight = filled.view(-1, columns, steps, self._depth).transpose(1, 2).contiguous()
        self.register_buffer("weight", weight)

    @property
    def compiled(self) -> bool:
        """Whether its weights are laid out for compiled products."""
        return self._multiply is not None

    def forward(self, x: Tensor) -> Tensor:
        """``(..., N)`` to ``(..., V)``, float32."""
        weight, bias = cast(Tensor, self.weight), cast("Tensor | None", self.bias)
        rows = x.to(self.dtype).flatten(0, -2)
        if self._multiply is None:
            product = functional.linear(rows, weight).float()
            return (product if bias is None else product + bias).view(*x.shape[:-1], -1)
        if left := rows.shape[1] % self._depth:
            rows = functional.pad(rows, (0, self._depth - left))
        out = torch.empty(len(rows), self.width)
        steps = rows.shape[1] // self._depth
        self._multiply(rows.contiguous(), weight, bias, out, len(rows), steps, self.width)
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
