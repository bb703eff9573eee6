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
    return [r(b, c, h, w), level, r(1, c, 1, 1, scale=c**-0.5), r(1), r(c), weights, biases, *tail]


def run(device: str, args: list[Any], scale: Radiance | None = None) -> tuple[Tensor, Tensor]:
    moved = [[t.to(device) for t in a] if isinstance(a, list) else a.to(device) for a in args]
    return kernels.refine(*moved, scale, implementation="triton")


def assert_parity(args: list[Any], got: tuple[Tensor, Tensor]) -> None:
    want = reference.refine(*doubled(args), Radiance())
    # exp multiplies an error of the normalised value by gain and by the radiance
    inside = TOLERANCE[args[0].dtype] / TOLERANCE[torch.float32]
    assert_close("radiance", got[0], want[0], times=8 * inside)
    assert_close("isp", got[1], want[1], times=2 * inside)


@pytest.mark.parametrize(("b", "c", "h", "w", "depth"), [(2, 8, 8, 16, 1), (1, 5, 8, 8, 1), (1, 48, 8, 8, 2)])
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
    args, scale = case(), Radiance(ceiling=7.0)
    args[8] += 10
    assert torch.allclose(run(device, args, scale)[0].max().cpu(), torch.tensor(7.0), rtol=1e-5)
    args[8] -= 20
    assert (run(device, args, scale)[0] == 0).all()


def test_opcheck(device: str) -> None:
    args = case()
    moved = [[t.to(device) for t in a] if isinstance(a, list) else a.to(device) for a in args]
    settings = (1.0, 2.0, 1e6)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.deeplight.refine.default, (*moved, *settings), test_utils=utils)


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
        (1, lambda t: t[..., 1:], r"level must have shape \(1, 1, 8, 16\)"),
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
    moved = [[t.to(device) for t in a] if isinstance(a, list) else a.to(device) for a in args]
    assert kernels.refine(*moved)[0].shape == (1, 1, 8, 8), "auto takes the reference"


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


@pytest.mark.parametrize("wrong", [{"unit": 0.0}, {"gain": -1.0}, {"ceiling": 0.0}])
def test_radiance_checks_itself(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Radiance(**wrong)
