"""Fast forms: what differs from the backbone, by how much, and where nothing can be compiled."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from regard.models.devices import DTYPES
from regard.models.fast import WORTH_COMPILING, Packed, fast_form, fold_batch_norms, packing
from regard.models.small import SmallEncoder
from test_encoders import resnet18


def photos(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("backbone", [resnet18().backbone, SmallEncoder(width=16).eval()])
def test_folding_changes_nothing_but_rounding(backbone: nn.Module) -> None:
    folded = copy.deepcopy(backbone).double()
    fold_batch_norms(folded)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        torch.testing.assert_close(
            folded(photos().double()), copy.deepcopy(backbone).double()(photos().double())
        )


def test_alone_equals_in_a_batch_within_rounding() -> None:
    encode = fast_form(resnet18().backbone, "float32")
    torch.testing.assert_close(encode(photos(5))[2:3], encode(photos(5)[2:3]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_equals_uncompiled_for_every_number_of_photos() -> None:
    plain = fast_form(resnet18().backbone, "float32")
    compiled = fast_form(resnet18().backbone, "float32", photos=WORTH_COMPILING, batch_size=3)
    for count in (3, 1, 2):
        torch.testing.assert_close(
            compiled(photos(count)), plain(photos(count)), rtol=1e-4, atol=1e-4
        )


def test_without_a_compiler_it_works_uncompiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/nowhere/c++"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
    encode = fast_form(resnet18().backbone, "float32", photos=WORTH_COMPILING, batch_size=2)
    torch.testing.assert_close(
        encode(photos(1)), fast_form(resnet18().backbone, "float32")(photos(1))
    )


# --- linear layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("inner", [1, 2, 37, 64])
@pytest.mark.parametrize("width", [2, 63, 64, 65, 200])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_products_are_those_of_rounded_factors(
    dtype: torch.dtype, inner: int, width: int, bias: bool
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inner, width, bias=bias)
    packed = Packed(linear.weight, linear.bias, dtype)
    rounded = linear.weight.to(dtype).float()
    for rows in (*range(1, 18), 40):
        x = torch.randn(rows, 1, inner)
        exact = nn.functional.linear(x.to(dtype).float(), rounded, linear.bias)
        allowed = 1e-5 if packed.compiled or dtype == torch.float32 else 2e-2
        torch.testing.assert_close(packed(x), exact, rtol=allowed, atol=allowed)


@pytest.mark.parametrize("dtype", DTYPES.values())
@pytest.mark.parametrize("inner", [77, 96])  # 96: where the processor has a unit for matrices
def test_a_row_of_a_packed_product_is_its_own_to_the_last_bit(
    dtype: torch.dtype, inner: int
) -> None:
    torch.manual_seed(0)
    packed = Packed(torch.randn(130, inner), torch.randn(130), dtype)
    if not packed.compiled:
        pytest.skip("The processor has no bf16, or there is no C++ compiler.")
    x = torch.randn(40, inner)
    together = packed(x)
    for count in (1, 2, 5, 6, 7, 13, 16, 29):
        assert torch.equal(packed(x[3 : 3 + count]), together[3 : 3 + count])


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_without_a_compiler_a_packed_product_is_torchs(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGARD_COMPILER", "")
    assert packing(dtype, torch.device("cpu")) is None
    linear = nn.Linear(7, 5)
    packed = Packed(linear.weight, linear.bias, dtype)
    torch.testing.assert_close(
        packed(torch.ones(2, 7)), linear(torch.ones(2, 7)), rtol=0, atol=0.05
    )
