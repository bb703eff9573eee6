"""finish: the kernel against its definition, registration, messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels import Finish
from deeplight.kernels.finish import reference


def case(b: int = 1, h: int = 8, w: int = 16, valid: str = "none") -> tuple[Tensor, Tensor | None]:
    g = torch.Generator().manual_seed(b * h + w)
    radiance = torch.exp(torch.randn(b, 1, h, w, generator=g) * 2)
    shape = (b, 1, h // 8, w // 8)
    masks = {"on": torch.ones(shape), "off": torch.zeros(shape)}
    masks["mixed"] = (torch.arange(b * h * w // 64) % 2 == b - 1).float().reshape(shape)
    return radiance, masks.get(valid)


def run(device: str, args: tuple[Tensor, Tensor | None], how: Finish | None = None) -> Tensor:
    moved = [None if a is None else a.to(device) for a in args]
    return kernels.finish(*moved, how, implementation="triton").cpu()  # type: ignore[arg-type]


@pytest.mark.parametrize(("b", "h", "w"), [(1, 8, 8), (2, 8, 16), (1, 8, 1096)])
@pytest.mark.parametrize("crop", [0, 1, 3])
@pytest.mark.parametrize("valid", ["none", "on", "off", "mixed"])
def test_the_kernel_copies_bits(device: str, b: int, h: int, w: int, crop: int, valid: str) -> None:
    args, how = case(b, h, w, valid), Finish(crop=crop, nodata=-1.0)
    got = run(device, args, how)
    assert got.shape == (b, 1, h - 2 * crop, w - 2 * crop)
    assert torch.equal(got, reference.finish(*args, how))
    assert bool((got == -1).any()) == (valid in ("off", "mixed"))


def test_nan_as_nodata(device: str) -> None:
    got = run(device, case(2, valid="mixed"))
    assert torch.isnan(got[0, 0, :, :8]).all() and torch.isfinite(got[0, 0, :, 8:]).all()


@pytest.mark.parametrize("nodata", [0, 65535])
def test_uint16(device: str, nodata: int) -> None:
    radiance, valid = case(2, valid="mixed")
    how = Finish(dtype="uint16", scale=0.01, offset=0.5, nodata=nodata)
    radiance[..., 0] = 1e5  # beyond what 65534 steps of 0.01 hold
    got, want = run(device, (radiance, valid), how), reference.finish(radiance, valid, how)
    assert got.dtype == want.dtype == torch.uint16
    steps, expected = got.to(torch.int32), want.to(torch.int32)
    # a GPU may fuse the subtraction into the product, which can move a value across the middle of a step
    assert (steps - expected).abs().max() <= 1
    assert torch.equal(steps == nodata, expected == nodata)
    assert steps[steps != nodata].max() == (65535 if nodata == 0 else 65534)


def test_steps_round_half_to_even(device: str) -> None:
    radiance = torch.tensor([0.5, 1.5, 2.5, 3.49, -7.0, 70000.0, 0.0, 9.0]).repeat(8, 1)[None, None]
    got = run(device, (radiance, None), Finish(dtype="uint16", nodata=65535))
    assert got[0, 0, 0].tolist() == [0, 2, 2, 3, 0, 65534, 0, 9]


def test_opcheck(device: str) -> None:
    radiance, valid = case(valid="mixed")
    assert valid is not None
    utils = ("test_schema", "test_faketensor")
    given = (radiance.to(device), valid.to(device), 1, "uint16", 0.1, 0.0, 65535.0)
    torch.library.opcheck(torch.ops.deeplight.finish.default, given, test_utils=utils)


def test_an_empty_batch(device: str) -> None:
    radiance, _ = case(2)
    assert run(device, (radiance[:0], None)).shape == (0, 1, 8, 16)


@pytest.mark.parametrize(
    ("radiance", "valid", "message"),
    [
        (torch.zeros(1, 1, 8, 9), None, "multiples of 8"),
        (torch.zeros(1, 2, 8, 8), None, "radiance must have shape"),
        (torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 1, 2), "valid must have shape"),
    ],
)
def test_messages_name_the_tensor(radiance: Tensor, valid: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.finish(radiance, valid)


@pytest.mark.parametrize("wrong", [{"dtype": "float16"}, {"dtype": "uint16"}, {"scale": 0.0}, {"crop": -1}])
def test_finish_checks_itself(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Finish(**wrong)
