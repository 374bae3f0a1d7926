"""The functions of ``kernels/``, compiled on the machine that they run on, where that can be.

They need a C++ compiler: ``c++`` or ``g++``; the variable ``REGARD_COMPILER`` names another, and
empty means none. The first use compiles for two or three seconds, what training needs at its own
first use, and the result is kept in ``~/.cache/regard/kernels`` under a hash of what it was made
of: source, command and processor.
Without a compiler, or where anything about it fails, callers go on with the same formulas in torch:
slower, and equal to rounding.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).with_name("kernels")

SPEAKING = frozenset(
    "look gather cell log_probabilities go_on lent packing multiply say speak".split()
)
"""What is in ``speaking.cpp``."""

TRANSFORMER = frozenset(("say_words", "speak_words"))
"""What is in ``transformer.cpp``; all else is in ``training.cpp``."""

_X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")

FLAGS = (
    *(("-march=native", "-mprefer-vector-width=512") if _X86 else ("-mcpu=native",)),
    "-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
"""Not ``-ffast-math``: a loss that is not a number must be seen."""


def native(name: str, like: Tensor) -> Callable[..., None] | None:
    """A compiled function for products in the precision of ``like``, if it can be had.

    It takes tensors (dense unless it has a stride for them; none is a null pointer), whole numbers
    and floats, in the order of the source without the number of threads.
    """
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.bfloat16):
        return None
    if torch.compiler.is_exporting():  # which writes down what torch does, and this is not torch's
        return None
    return _function(name, like.dtype, os.environ.get("REGARD_COMPILER"))


def native_plain(name: str, like: Tensor) -> Callable[..., None] | None:
    """A compiled function that has no products, as :func:`native`; of float32 alone.

    It is that of the library which is loaded already, whatever the precision of its products.
    """
    if like.device.type != "cpu" or like.dtype != torch.float32:
        return None
    asked = os.environ.get("REGARD_COMPILER")
    loaded = next((dtype for dtype, by in _LOADED if by == asked), torch.bfloat16)
    return _function(name, loaded, asked)


@functools.cache
def matrix_unit() -> bool:
    """Whether the processor has a unit for products of bf16 (AMX), and lends it."""
    if (lent := native("lent", torch.empty(0, dtype=torch.bfloat16))) is None:
        return False
    answer = torch.zeros(1, dtype=torch.long)
    lent(answer)
    return bool(answer)


_LOADED: list[tuple[torch.dtype, str | None]] = []
"""Precisions of the libraries that are loaded, and by which compiler."""


@functools.cache
def _function(name: str, dtype: torch.dtype, asked: str | None) -> Callable[..., None] | None:
    files = {"speaking": SPEAKING, "transformer": TRANSFORMER}
    file = next((file for file, names in files.items() if name in names), "training")
    library = _library(file, str(dtype).removeprefix("torch."), asked)
    function = getattr(library, name, None)
    if function is None:  # no library, or a function that needs more of the processor than it has
        return None
    function.restype = None
    if file == "speaking" and (dtype, asked) not in _LOADED:
        _LOADED.append((dtype, asked))

    def call(*arguments: Tensor | int | float | None) -> None:
        if function.argtypes is None:
            function.argtypes = [*(_KINDS.get(type(a), ctypes.c_void_p) for a in arguments), _INT]
        function(
            *(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments),
            torch.get_num_threads(),
        )

    return call


_INT = ctypes.c_int
_KINDS: dict[type, type] = {int: ctypes.c_int64, float: ctypes.c_float}
"""In C of what is no tensor; tensors and none are pointers."""


@functools.cache
def _library(file: str, precision: str, asked: str | None) -> ctypes.CDLL | None:
    names = ("c++", "g++") if asked is None else (asked,)
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        return None
    command = [compiler, *FLAGS, f"-DPRODUCTS={precision}", f"-DIS_{precision}"]
    source = FOLDER / f"{file}.cpp"
    files = (*sorted(FOLDER.glob("*.h")), source)
    texts = [f.read_text(encoding="utf-8") for f in files]
    made_of = hashlib.sha256("\n".join([*command, _processor(), *texts]).encode())
    name = f"{file}-{precision}-{made_of.hexdigest()[:16]}.so"
    try:
        kept = Path.home() / ".cache" / "regard" / "kernels" / name
        if kept.exists():
            return ctypes.CDLL(str(kept))
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, name)
            subprocess.run(
                [*command, source, "-o", made], check=True, capture_output=True, timeout=120
            )
            library = ctypes.CDLL(str(made))
            _keep(made, kept)
            return library
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def _keep(made: Path, kept: Path) -> None:
    """Copy it beside its place, then rename it, if that place can be written to."""
    beside = kept.with_name(f"{kept.name}.{os.getpid()}.new")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, beside)
        beside.replace(kept)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _processor() -> str:
    """What the processor can do, which decides what it can run."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
