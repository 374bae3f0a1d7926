"""The machine and the versions that something was measured with; and its memory, kept at hand."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "pillow", "lightning", "transformers")
"""What decides speed and numbers, beside regard itself."""


def describe_machine() -> dict[str, Any]:
    """Plain values for JSON.

    Returns:
        ``machine``: ``platform``, ``processor``, ``cores`` (that this process may use),
        ``memory_gib`` (0 where the system does not say) and, if this process has used a CUDA
        device, ``accelerator``, its name; ``versions``: of Python and of :data:`PACKAGES`, those
        that are installed.
    """
    versions = {"python": platform.python_version()}
    for package in ("regard", *PACKAGES):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": _cores(),
            "memory_gib": round(_memory() / 2**30, 1),
            **_accelerator(),
        },
        "versions": versions,
    }


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for the next time it needs as much.

    Without it, glibc hands every large block back to the system, and the next one of that size is
    cleared and mapped page by page anew: a good part of a training step. It is for processes that
    do one thing over and over, and does nothing where the C library is another.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
        library.mallopt(parameter, value)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""From glibc's malloc.h: never trim, grow by 256 MiB, and no block outside the heap."""


def _processor() -> str:
    try:  # Linux; platform.processor() is empty there
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _accelerator() -> dict[str, str]:
    torch = sys.modules.get("torch")  # its import takes a second, and without it none is in use
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {"accelerator": torch.cuda.get_device_name()}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
