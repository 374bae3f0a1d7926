"""Devices by name, and the precision of matrix products that each is fast at."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from regard.errors import ConfigError
from regard.models.native import native

Precision = Literal["float32", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
"""What torch calls them."""


def find_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: ``auto`` (the first of CUDA, MPS and the CPU that is here), ``cpu``, ``cuda`` or
            ``mps``.

    Raises:
        ConfigError: there is no such device here.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if name not in available:
        raise ConfigError(
            f"There is no device {name!r}. Devices: auto, {', '.join(sorted(available))}."
        )
    if not available[name]:
        raise ConfigError(
            f"--device {name} was asked for, but torch {torch.__version__} finds no such device "
            "here. Leave --device out, or install a torch with support for it."
        )
    return torch.device(name)


def fast_precision(device: torch.device) -> Precision:
    """``bf16`` where the device computes it in hardware, else ``float32``."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        # Without these instructions bf16 is emulated, and slower than float32.
        supported = torch.cpu.get_capabilities()
        return "bf16" if supported.get("avx512_bf16") or supported.get("amx_bf16") else "float32"
    return "float32"


def photos_at_once(device: torch.device) -> int:
    """How many photos go through an encoder together: enough of them to fill the device."""
    return 8 if device.type == "cpu" else 32  # where each core has a batch, its cache is what fills


def multiplied(regions: Tensor) -> Tensor:
    """Cached regions in the precision in which they are multiplied: an autocast's, or float32."""
    mixed = torch.is_autocast_enabled(regions.device.type)
    return lowered(regions) if mixed else regions.float()


def lowered(values: Tensor) -> Tensor:
    """In the precision of an autocast's products, if there is one: half the memory to move.

    Float16, as features are cached, has no gradient here.
    """
    kind = values.device.type
    if not torch.is_autocast_enabled(kind):
        return values
    low = torch.get_autocast_dtype(kind)
    if values.dtype == torch.float16 and low == torch.bfloat16:  # torch is slow at it on a CPU
        narrow = torch.empty_like(values, dtype=low, memory_format=torch.contiguous_format)
        if (compiled := native("from_half", narrow)) is not None:
            compiled(values.contiguous(), narrow, values.numel())
            return narrow
    return values.to(low)
