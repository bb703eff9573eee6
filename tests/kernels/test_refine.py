"""refine: the kernel against its definition, registration, messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels import Finish
from deeplight.kernels.expected import TOLERANCE
from deeplight.kernels.refine import reference
from tests.kernels.parity import assert_close, doubled


def case(
    b: int = 1, c: int = 8, h: int = 8, w: int = 16, *, depth: int = 1, dtype: torch.dtype = torch.float32,
    valid: str = "none",
) -> list[Any]:  # fmt: skip
    g = torch.Generator().manual_seed(b * c + h * w)

    def r(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=g) * scale).to(dtype)

    weights = [r(c, c, 3, 3, scale=(9 * c) ** -0.5) for _ in range(depth)]
    biases = [r(c, scale=0.3) for _ in range(depth)]
    level = torch.rand(b, 1, h // 2, w // 2, generator=g)
    masks = {"on": torch.ones(b, 1, h // 8, w // 8), "off": torch.zeros(b, 1, h // 8, w // 8)}
    masks["mixed"] = (torch.arange(b * h * w // 64) % 2).float().reshape(b, 1, h // 8, w // 8)
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
        masks.get(valid),
    ]


def run(device: str, args: list[Any], finish: Finish | None = None) -> tuple[Tensor, Tensor]:
    moved = [
        [t.to(device) for t in a] if isinstance(a, list) else a if a is None else a.to(device) for a in args
    ]
    return kernels.refine(*moved, finish, implementation="triton")


def assert_parity(args: list[Any], got: tuple[Tensor, Tensor], finish: Finish | None = None) -> None:
    want = reference.refine(*doubled(args), finish or Finish())
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


@pytest.mark.parametrize("crop", [0, 1, 3])
@pytest.mark.parametrize("valid", ["on", "off", "mixed"])
def test_crop_and_nodata(device: str, crop: int, valid: str) -> None:
    args, finish = case(2, valid=valid), Finish(crop=crop, nodata=-1.0)
    got = run(device, args, finish)
    assert got[0].shape == (2, 1, 8 - 2 * crop, 16 - 2 * crop)
    assert_parity(args, got, finish)
    assert bool((got[0] == -1).any()) == (valid != "on") and bool((got[0] != -1).any()) == (valid != "off")


def test_nan_as_nodata(device: str) -> None:
    ntl, isp = run(device, case(2, valid="mixed"), Finish())
    assert torch.isnan(ntl[0, 0, :, :8]).all() and torch.isfinite(ntl[0, 0, :, 8:]).all()
    assert torch.isfinite(isp).all()


@pytest.mark.parametrize("nodata", [0, 65535])
def test_uint16(device: str, nodata: int) -> None:
    args = case(2, valid="mixed")
    args[1] *= 4  # up to 2980: beyond what 65534 steps of 0.01 hold
    finish = Finish(dtype="uint16", scale=0.01, offset=0.5, nodata=nodata)
    ntl, _ = run(device, args, finish)
    want, _ = reference.refine(*doubled(args), finish)
    assert ntl.dtype == torch.uint16
    steps, expected = ntl.cpu().to(torch.int32), want.to(torch.int32)
    # a step where rounding fell the other way, and relative float32 error of large values
    assert (steps - expected).abs().max() <= 1
    assert torch.equal(steps == nodata, expected == nodata)
    assert steps[steps != nodata].max() == (65535 if nodata == 0 else 65534)


def test_ceiling_and_floor(device: str) -> None:
    args, finish = case(), Finish(ceiling=7.0)
    args[8] += 10
    assert torch.allclose(run(device, args, finish)[0].max().cpu(), torch.tensor(7.0), rtol=1e-5)
    args[8] -= 20
    assert (run(device, args, finish)[0] == 0).all()


def test_opcheck(device: str) -> None:
    args = case(valid="mixed")
    moved = [[t.to(device) for t in a] if isinstance(a, list) else a.to(device) for a in args]
    settings = (1.0, 2.0, 1e6, 1, "float32", 1.0, 0.0, -1.0)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.deeplight.refine.default, (*moved, *settings), test_utils=utils)


def test_reference_gradcheck() -> None:
    args = doubled(case(1, 2, 8, 8))
    flat = [args[0].requires_grad_(), args[1].requires_grad_(), args[4].requires_grad_()]
    assert torch.autograd.gradcheck(
        lambda x, level, embed: reference.refine(x, level, *args[2:4], embed, *args[5:], Finish()),
        flat,
        fast_mode=True,
    )


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[..., 1:], "multiples of 8"),
        (1, lambda t: t[..., 1:], r"level must have shape \(1, 1, 4, 8\)"),
        (2, lambda t: t[0], "isp_weight must have shape"),
        (5, lambda ts: [], "equally many, not 0 and 1"),
        (5, lambda ts: [ts[0][1:]], r"weights\[0\] must have shape \(8, 8, 3, 3\)"),
        (6, lambda ts: [ts[0].half()], r"biases\[0\] must be float32"),
        (9, lambda t: t[..., 1:], "valid must have shape"),
    ],
)
def test_messages_name_the_tensor(index: int, change: Any, message: str) -> None:
    args = case(valid="on")
    args[index] = change(args[index])
    with pytest.raises(ValueError, match=message):
        kernels.refine(*args)


def test_without_residual_blocks_only_the_reference_runs(device: str) -> None:
    args = case(depth=0)
    ntl, _ = kernels.refine(*args)
    assert torch.equal(ntl, reference.refine(*args, Finish())[0])
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
    moved = [
        [t.to(device) for t in a] if isinstance(a, list) else None if a is None else a.to(device)
        for a in args
    ]
    assert kernels.refine(*moved)[0].shape == (1, 1, 8, 8), "auto takes the reference"


def test_an_empty_batch(device: str) -> None:
    args = case(2)
    args[0], args[1] = args[0][:0], args[1][:0]
    assert [tuple(t.shape) for t in run(device, args)] == [(0, 1, 8, 16)] * 2


def test_a_pixel_has_the_same_bits_wherever_it_lies(device: str) -> None:
    args = case(h=32, w=40)
    whole = run(device, args)
    args[0], args[1] = args[0][..., 8:, 16:], args[1][..., 4:, 8:]
    part = run(device, args)
    # one pixel of the convolution, and two coarse pixels of the cubic base, see the cut sides
    for got, want in zip(part, whole, strict=True):
        assert torch.equal(got[..., 6:, 6:], want[..., 14:, 22:])


@pytest.mark.parametrize("wrong", [{"dtype": "float16"}, {"dtype": "uint16"}, {"scale": 0.0}, {"crop": -1}])
def test_finish_checks_itself(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Finish(**wrong)
