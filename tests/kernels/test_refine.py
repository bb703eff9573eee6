"""refine: the kernel against its definition, registration, messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels import Radiance
from deeplight.kernels.expected import TOLERANCE
from deeplight.kernels.refine import reference
from tests.kernels.parity import assert_close, doubled


def case(
    b: int = 1, c: int = 8, h: int = 8, w: int = 16, *, depth: int = 1, dtype: torch.dtype = torch.float32
) -> list[Any]:  # fmt: skip
    g = torch.Generator().manual_seed(b * c + h * w)

    def r(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=g) * scale).to(dtype)

    weights = [r(c, c, 3, 3, scale=(9 * c) ** -0.5) for _ in range(depth)]
    biases = [r(c, scale=0.3) for _ in range(depth)]
    level = torch.rand(b, 1, h, w, generator=g)
    tail = r(1, c, 1, 1, scale=0.3 * c**-0.5), r(1, scale=0.1)
    return [
        r(b, c, h, w),
        level,
        r(1, c, 1, 1, scale=c**-0.5),
        r(1),
        r(c),
        weights,
        biases,
        *tail,
    ]


def moved(device: str, args: list[Any]) -> list[Any]:
    return [[t.to(device) for t in a] if isinstance(a, list) else a.to(device) for a in args]


def run(device: str, args: list[Any], range: Radiance | None = None) -> tuple[Tensor, Tensor]:
    return kernels.refine(*moved(device, args), range=range, implementation="triton")


def assert_parity(args: list[Any], got: tuple[Tensor, Tensor], range: Radiance | None = None) -> None:
    want = reference.refine(*doubled(args), range or Radiance())
    # exp multiplies an error of the normalised value by gain and by the radiance
    inside = TOLERANCE[args[0].dtype] / TOLERANCE[torch.float32]
    assert_close("radiance", got[0], want[0], times=8 * inside)
    assert_close("isp", got[1], want[1], times=2 * inside)


@pytest.mark.parametrize(("b", "c", "h", "w", "depth"), [(2, 8, 7, 13, 1), (1, 5, 8, 3, 1), (1, 48, 5, 8, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_kernel_is_the_definition(
    device: str, b: int, c: int, h: int, w: int, depth: int, dtype: torch.dtype
) -> None:
    args = case(b, c, h, w, depth=depth, dtype=dtype)
    assert_parity(args, run(device, args))


def test_rows_of_several_programs(device: str) -> None:
    args = case(w=136)
    assert_parity(args, run(device, args))


def test_ceiling_and_floor(device: str) -> None:
    args, range = case(), Radiance(ceiling=7.0)
    args[8] += 10
    assert torch.allclose(run(device, args, range)[0].max().cpu(), torch.tensor(7.0), rtol=1e-5)
    args[8] -= 20
    assert (run(device, args, range)[0] == 0).all()


def test_unit_gain_and_ceiling(device: str) -> None:
    args, range = case(), Radiance(3.0, 1.5, 20.0)
    got = run(device, args, range)
    assert_parity(args, got, range)
    assert got[0].max() > 19.9, "some of it reaches the ceiling"


def test_the_level_is_added_as_it_is(device: str) -> None:
    args = case()
    args[7], args[8] = torch.zeros_like(args[7]), torch.zeros_like(args[8])
    want = torch.expm1(2.0 * args[1].double())
    assert_close("radiance", run(device, args)[0], want)


def test_float16_loses_nothing_of_the_radiance_behind_the_level() -> None:
    args = case(dtype=torch.float16)
    args[1] = args[1].half() + 6.0  # e¹² and more, beyond the range of float16
    assert_parity(args, kernels.refine(*args))


def test_opcheck(device: str) -> None:
    given = (*moved(device, case(h=7, w=13)), 1.0, 2.0, 1e6)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.deeplight.refine.default, given, test_utils=utils)


def test_reference_gradcheck() -> None:
    args = doubled(case(1, 2, 8, 8))
    flat = [args[0].requires_grad_(), args[1].requires_grad_(), args[4].requires_grad_()]
    assert torch.autograd.gradcheck(
        lambda x, level, embed: reference.refine(x, level, *args[2:4], embed, *args[5:], Radiance()),
        flat,
        fast_mode=True,
    )


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], "x must have shape"),
        (1, lambda t: t[..., ::2, ::2], r"level must have shape \(1, 1, 8, 16\), not \(1, 1, 4, 8\)"),
        (2, lambda t: t[0], "isp_weight must have shape"),
        (5, lambda ts: [], "equally many, not 0 and 1"),
        (5, lambda ts: [ts[0][1:]], r"weights\[0\] must have shape \(8, 8, 3, 3\)"),
        (6, lambda ts: [ts[0].half()], r"biases\[0\] must be float32"),
    ],
)
def test_messages_name_the_tensor(index: int, change: Any, message: str) -> None:
    args = case()
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=message):
        kernels.refine(*args)


def test_without_residual_blocks_only_the_reference_runs(device: str) -> None:
    args = case(depth=0)
    ntl, _ = kernels.refine(*args)
    assert torch.equal(ntl, reference.refine(*args, Radiance())[0])
    with pytest.raises(ValueError, match="at least one residual block"):
        run(device, args)


@pytest.mark.parametrize(
    ("c", "dtype", "most"), [(72, torch.float32, 64), (136, torch.float16, 128)], ids=str
)
def test_more_channels_are_the_references_business(
    device: str, c: int, dtype: torch.dtype, most: int
) -> None:
    args = case(c=c, w=8, dtype=dtype)
    with pytest.raises(ValueError, match=f"at most {most} channels of {str(dtype)[6:]}, not {c}"):
        run(device, args)
    assert kernels.refine(*moved(device, args))[0].shape == (1, 1, 8, 8), "auto takes the reference"


def test_an_empty_batch(device: str) -> None:
    args = case(2)
    args[0], args[1] = args[0][:0], args[1][:0]
    assert [tuple(t.shape) for t in run(device, args)] == [(0, 1, 8, 16)] * 2


def test_a_pixel_has_the_same_bits_wherever_it_lies(device: str) -> None:
    args = case(h=32, w=40)
    whole = run(device, args)
    args[0], args[1] = args[0][..., 8:, 16:], args[1][..., 8:, 16:]
    part = run(device, args)
    # one pixel of the convolution sees the cut sides
    for got, want in zip(part, whole, strict=True):
        assert torch.equal(got[..., 1:, 1:], want[..., 9:, 17:])


@pytest.mark.parametrize("name", ["unit", "gain", "ceiling"])
def test_the_range_checks_itself(name: str) -> None:
    with pytest.raises(ValueError, match=f"must be above 0, not .*{name}=0"):
        Radiance(**{name: 0.0})
