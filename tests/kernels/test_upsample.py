"""upsample: both kernels against the definition, gradients, registration, messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels.upsample import entry as upsample_entry
from deeplight.kernels.upsample import reference
from tests.kernels.parity import assert_close, doubled

SHAPES = [
    pytest.param(2, 32, 8, 5, 9, id="tiny-x4-to-x8"),
    pytest.param(1, 64, 32, 3, 4, id="tiny-x1-to-x2"),
    pytest.param(1, 48, 12, 2, 5, id="not-a-power-of-two"),
    pytest.param(1, 3, 1, 4, 3, id="narrow"),
    pytest.param(1, 8, 8, 1, 1, id="one-pixel"),
]


def case(
    b: int, k: int, c: int, h: int, w: int, *, dtype: torch.dtype = torch.float32, skip: bool = False
) -> list[Any]:
    g = torch.Generator().manual_seed(b * k + h * w)

    def r(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    weight = r(4 * c, k, 3, 3) * (9 * k) ** -0.5
    return [r(b, k, h, w), weight, r(4 * c) * 0.3, r(b, c, 2 * h, 2 * w) if skip else None]


def on(device: str, args: list[Any]) -> list[Any]:
    return [None if a is None else a.to(device) for a in args]


@pytest.mark.parametrize(("b", "k", "c", "h", "w"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gemm", [True, False], ids=["conv", "epilogue"])
def test_both_kernels_are_the_definition(
    device: str, b: int, k: int, c: int, h: int, w: int, dtype: torch.dtype, gemm: bool
) -> None:
    args = case(b, k, c, h, w, dtype=dtype, skip=(h + w) % 2 == 0)
    got = upsample_entry._run(*on(device, args), gemm=gemm)
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    assert_close("out", got, reference.upsample(*doubled(args)))


def test_wide_rows_take_several_programs(device: str) -> None:
    args = case(1, 8, 4, 2, 300)
    for gemm in (True, False):
        assert_close(
            "out", upsample_entry._run(*on(device, args), gemm=gemm), reference.upsample(*doubled(args))
        )


@pytest.mark.parametrize(("k", "c", "gemm"), [(32, 8, True), (64, 32, False), (64, 48, False)])
def test_which_kernel_runs(k: int, c: int, gemm: bool) -> None:
    assert upsample_entry.prefers_gemm(k, 4 * c) is gemm


def test_phase_order_undoes_pixel_shuffles_channels() -> None:
    assert upsample_entry.phase_order(torch.arange(8)).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("gemm", [True, False])
def test_a_pixel_has_the_same_bits_wherever_it_lies(device: str, gemm: bool) -> None:
    x, weight, bias, _ = on(device, case(1, 16, 8, 9, 11))
    whole = upsample_entry._run(x, weight, bias, None, gemm=gemm)[..., 6:14, 8:18]
    part = upsample_entry._run(x[..., 2:8, 3:10], weight, bias, None, gemm=gemm)[..., 2:10, 2:12]
    # PyTorch's convolution on a CPU may order its sums by the shape
    assert torch.equal(whole, part) if gemm else torch.allclose(whole, part, atol=1e-6)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_gradients_are_those_of_the_definition(device: str, skip: bool) -> None:
    args = case(2, 8, 3, 3, 5, skip=skip)
    exact = [a.requires_grad_() for a in doubled(args) if a is not None]
    upstream = torch.randn(2, 3, 6, 10)
    want = torch.autograd.grad((reference.upsample(*exact) * upstream.double()).sum(), exact)
    mine = [a.requires_grad_() for a in on(device, args) if a is not None]
    out = kernels.upsample(*mine, implementation="triton")
    got = torch.autograd.grad((out * upstream.to(device)).sum(), mine)
    for name, g, wanted in zip(("x", "weight", "bias", "skip"), got, want, strict=False):
        assert_close(name, g, wanted, times=4)


def test_reference_gradcheck() -> None:
    args = [a.requires_grad_() for a in doubled(case(1, 2, 1, 3, 2, skip=True))]
    assert torch.autograd.gradcheck(reference.upsample, args)


@pytest.mark.parametrize("gemm", [True, False], ids=["conv", "epilogue"])
def test_an_empty_batch(device: str, gemm: bool) -> None:
    x, *rest = on(device, case(1, 8, 4, 3, 5))
    assert upsample_entry._run(x[:0], *rest, gemm=gemm).shape == (0, 4, 6, 10)


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_opcheck(device: str, skip: bool) -> None:
    args = [a if a is None else a.requires_grad_() for a in on(device, case(1, 8, 4, 3, 5, skip=skip))]
    torch.library.opcheck(torch.ops.deeplight.upsample.default, tuple(args))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], r"x must have shape"),
        (1, lambda t: t[:6], "multiple of 4 output channels, not 6"),
        (1, lambda t: t[:, 1:], r"weight must have shape \(any, 8, 3, 3\), not \(16, 7, 3, 3\)"),
        (2, lambda t: t[1:], r"bias must have shape \(16\)"),
        (2, lambda t: t.half(), "bias must be float32"),
        (3, lambda t: t[..., 1:], "skip must have shape"),
    ],
)
def test_messages_name_the_tensor(index: int, change: Any, message: str) -> None:
    args = case(1, 8, 4, 3, 5, skip=True)
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=message):
        kernels.upsample(*args)
