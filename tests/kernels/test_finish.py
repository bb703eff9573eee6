"""finish: the kernel against its definition, what steps mean, registration, messages."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.engine.network.config import PRESETS
from deeplight.kernels.finish import entry, reference
from deeplight.kernels.finish.reference import Pixels
from deeplight.kernels.variants import variants

STEPS = {"dtype": "uint16", "scale": 0.01, "offset": 0.5}


def case(b: int = 2, h: int = 8, w: int = 24, *, valid: str = "mixed") -> tuple[Tensor, Tensor]:
    """Radiance up to 1000, beyond what 65534 steps of 0.01 hold, and a mask."""
    g = torch.Generator().manual_seed(b * h + w)
    masks = {"on": torch.ones(b, 1, h // 8, w // 8), "off": torch.zeros(b, 1, h // 8, w // 8)}
    masks["mixed"] = (torch.arange(b * h * w // 64) % 2).float().reshape(b, 1, h // 8, w // 8)
    return 1000 * torch.rand(b, 1, h, w, generator=g), masks[valid]


def run(device: str, given: tuple[Tensor, Tensor], **settings: Any) -> Tensor:
    radiance, valid = (t.to(device) for t in given)
    return kernels.finish(radiance, valid, **settings, implementation="triton").cpu()


def assert_same(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape
    assert torch.equal(got.double().nan_to_num(-7.0), want.double().nan_to_num(-7.0))


@pytest.mark.parametrize("crop", [0, 1, 3])
@pytest.mark.parametrize("valid", ["on", "off", "mixed"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"nodata": -1.0}, STEPS | {"nodata": 0}, STEPS | {"nodata": 65535}],
    ids=["nan", "-1", "0", "65535"],
)
def test_kernel_is_the_definition_bit_for_bit(
    device: str, crop: int, valid: str, settings: dict[str, Any]
) -> None:
    given = case(valid=valid)
    got = run(device, given, crop=crop, **settings)
    assert got.shape == (2, 1, 8 - 2 * crop, 24 - 2 * crop)
    assert_same(got, reference.finish(*given, Pixels(crop, **settings)))
    nodata = settings.get("nodata", math.nan)
    missing = torch.isnan(got) if math.isnan(nodata) else got.double() == nodata
    assert bool(missing.any()) == (valid != "on") and bool(missing.all()) == (valid == "off")


def test_rows_of_several_programs_and_images_of_several_cells(device: str) -> None:
    given = case(1, 16, 1032)
    assert_same(run(device, given, crop=3), reference.finish(*given, Pixels(3)))


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize(("nodata", "low", "high"), [(0, 1, 65535), (65535, 0, 65534)])
def test_what_steps_mean(device: str, implementation: Any, nodata: int, low: int, high: int) -> None:
    """A step is the nearest one, ties to even; beyond the steps that are left beside nodata it is clamped."""
    radiance = torch.zeros(1, 1, 8, 8)
    values = [10.0, 10.24, 10.25, 10.75, 10.76, 9.0, 5.0, 1e9, math.inf, -math.inf, math.nan]
    radiance.flatten()[: len(values)] = torch.tensor(values)
    got = kernels.finish(
        radiance.to(device), torch.ones(1, 1, 1, 1, device=device), dtype="uint16", scale=0.5, offset=9.0,
        nodata=nodata, implementation=implementation,
    )  # fmt: skip
    steps = got.cpu().flatten()[: len(values)].tolist()
    assert steps == [2, 2, 2, 4, 4, low, low, high, high, low, nodata]


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_float32_keeps_the_radiance_and_gives_nan_as_nodata(device: str, implementation: Any) -> None:
    radiance, _ = case(1, 8, 8)
    radiance[..., 0, 0] = math.nan
    valid = torch.ones(1, 1, 1, 1)
    got = kernels.finish(
        radiance.to(device),
        valid.to(device),
        nodata=-1.0,
        scale=0.1,
        offset=5.0,
        implementation=implementation,
    ).cpu()
    assert got[0, 0, 0, 0] == -1.0 and torch.equal(got.flatten()[1:], radiance.flatten()[1:])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.int64], ids=str)
def test_masks_of_any_type(device: str, dtype: torch.dtype) -> None:
    radiance, valid = case()
    assert_same(run(device, (radiance, valid.to(dtype))), reference.finish(radiance, valid, Pixels()))


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_opcheck(device: str, dtype: str) -> None:
    given = [t.to(device) for t in case()]
    settings = (1, dtype, 0.01, 0.5, 0.0)
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.deeplight.finish.default, (*given, *settings), test_utils=utils)


def test_an_empty_batch(device: str) -> None:
    radiance, valid = case()
    assert run(device, (radiance[:0], valid[:0]), crop=2).shape == (0, 1, 4, 20)


@pytest.mark.parametrize("settings", [{}, {"nodata": 0.0}, STEPS | {"nodata": 0}, STEPS | {"nodata": 65535}])
def test_every_kind_of_pixel_is_among_the_variants(settings: dict[str, Any]) -> None:
    pixels = Pixels(3, **settings)
    radiance, valid = (t.to("meta") for t in case())
    out = radiance.to(torch.uint16 if pixels.integer else torch.float32)[..., 3:-3, 3:-3]
    built = {v.key for v in variants(PRESETS["tiny"], torch.float16)}
    assert entry.plan(radiance, valid.to(torch.uint8), pixels, out).key in built


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"radiance": torch.zeros(2, 1, 8, 20)}, "multiples of 8 above twice the crop of 0, not 8 and 20"),
        ({"crop": 4}, "above twice the crop of 4, not 8 and 24"),
        ({"radiance": torch.zeros(2, 2, 8, 24)}, r"radiance must have shape \(any, 1, any, any\)"),
        ({"radiance": torch.zeros(2, 1, 8, 24).half()}, "radiance must be float32, not float16"),
        ({"valid": torch.ones(2, 1, 8, 24)}, r"valid must have shape \(2, 1, 1, 3\), not \(2, 1, 8, 24\)"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'uint16', not 'float16'"),
        ({"dtype": "uint16"}, "nodata of uint16 must be 0 or 65535, not nan"),
        ({"scale": 0.0}, "scale must be a number above 0"),
        ({"offset": math.nan}, "offset a number, not 1.0 and nan"),
        ({"crop": -1}, "crop must be at least 0, not -1"),
    ],
)
def test_messages_name_the_argument(changed: dict[str, Any], message: str) -> None:
    radiance, valid = case()
    with pytest.raises(ValueError, match=f"finish: .*{message}"):
        kernels.finish(**({"radiance": radiance, "valid": valid} | changed))
