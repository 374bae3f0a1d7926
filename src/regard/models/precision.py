"""The precision of matrix products that a device is fast at."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["float32", "bf16"]


def fast_precision(device: torch.device) -> Precision:
    """``bf16`` where the device computes it in hardware, else ``float32``."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        # Without these instructions bf16 is emulated, and slower than float32.
        supported = torch.cpu.get_capabilities()
        return "bf16" if supported.get("avx512_bf16") or supported.get("amx_bf16") else "float32"
    return "float32"
