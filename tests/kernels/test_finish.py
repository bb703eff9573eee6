"""finish: the kernel against its definition, what steps mean, NumPy's rounding on the host, messages."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.engine.network.config import PRESETS
from deeplight.kernels.finish import entry, reference
from deeplight.kernels.finish.reference import Pixels
from deeplight.kernels.variants import STORED_STEP, variants

STEPS = {"scale": 0.01, "offset": 0.5}
PLACES = [((0, 0), (2, 3)), ((1, 2), (1, 1)), ((0, 1), (1, 2))]
"""Corner and size of a part in LR pixels, of a tile of 2 × 3."""


def case(bands: int = 2, h: int = 2, w: int = 3, *, valid: str = "mixed") -> tuple[Tensor, Tensor]:
    """Radiance up to 1000, beyond what 65534 steps of 0.01 hold, and a mask. h, w: in LR pixels."""
    g = torch.Generator().manual_seed(bands * h + w)
    masks = {"on": torch.ones(h, w), "off": torch.zeros(h, w)}
    masks["mixed"] = (torch.arange(h * w) % 2).float().reshape(h, w)
    return 1000 * torch.rand(bands, 8 * h, 8 * w, generator=g), masks[valid]


def targets(
    given: tuple[Tensor, Tensor], size: tuple[int, int], nodata: float, device: str
) -> tuple[Tensor, Tensor | None]:
    """Memory to write to that holds what no result is; of uint16 where `nodata` is one of its."""
    bands, (h, w) = given[0].shape[0], size
    if nodata not in (0, 65535):
        return torch.full((bands, 8 * h, 8 * w), -3.0, device=device), None
    steps = torch.full((bands, 8 * h, 8 * w), 30_001, dtype=torch.int32, device=device).to(torch.uint16)
    return steps, torch.full((bands, 4 * h, 4 * w), -3.0, device=device)


def run(
    device: str,
    given: tuple[Tensor, Tensor],
    corner: tuple[int, int] = (0, 0),
    size: tuple[int, int] | None = None,
    *,
    implementation: Any = "triton",
    **settings: Any,
) -> list[Tensor]:
    """Pixels, and of uint16 the first overview."""
    radiance, valid = (t.to(device) for t in given)
    nodata = settings.get("nodata", math.nan)
    out, halves = targets(given, size or (valid.shape[0], valid.shape[1]), nodata, device)
    kernels.finish(radiance, valid, out, halves, corner=corner, **settings, implementation=implementation)
    return [t.cpu() for t in (out, halves) if t is not None]


def assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.equal(a.double().nan_to_num(-7.0), b.double().nan_to_num(-7.0))


@pytest.mark.parametrize(("corner", "size"), PLACES)
@pytest.mark.parametrize("valid", ["on", "off", "mixed"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"nodata": -1.0}, STEPS | {"nodata": 0}, STEPS | {"nodata": 65535}],
    ids=["nan", "-1", "0", "65535"],
)
def test_kernel_is_the_definition_bit_for_bit(
    device: str, corner: tuple[int, int], size: tuple[int, int], valid: str, settings: dict[str, Any]
) -> None:
    given = case(valid=valid)
    got = run(device, given, corner, size, **settings)
    assert_same(got, run("cpu", given, corner, size, **settings, implementation="reference"))
    nodata = settings.get("nodata", math.nan)
    missing = torch.isnan(got[0]) if math.isnan(nodata) else got[0].double() == nodata
    there = given[1][corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] != 0
    assert bool(missing.any()) != bool(there.all()) and bool(missing.all()) != bool(there.any())


@pytest.mark.parametrize("nodata", [math.nan, 65535])
def test_rows_of_several_programs(device: str, nodata: float) -> None:
    given = case(1, 1, 131)
    corner, size = (0, 1), (1, 129)  # a whole block and a pixel more
    want = run("cpu", given, corner, size, nodata=nodata, implementation="reference")
    assert_same(run(device, given, corner, size, nodata=nodata), want)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("nodata", [0, 65535])
@pytest.mark.parametrize("top", [0.4, 30.0, 7000.0])
def test_steps_and_overviews_are_the_hosts_bit_for_bit(
    device: str, implementation: Any, nodata: int, top: float
) -> None:
    """As NumPy rounds on the host's path: with ties, values beside them, and values that uint16 does not hold."""
    pytest.importorskip("zstandard")
    from deeplight.engine.output.pack_format import BlockCodec

    codec = BlockCodec(512, "uint16", STORED_STEP, 0.0, nodata, "zstd", 1)
    rng, shape = np.random.default_rng(0), (1, 16, 40)
    exact = rng.uniform(0, top, shape).astype(np.float32)
    ties = ((rng.integers(0, int(10 * top), shape) + 0.5) * 0.1).astype(np.float32)
    beside = np.nextafter(ties, rng.choice([-np.inf, np.inf], shape), dtype=np.float32)
    radiance = np.choose(rng.integers(0, 3, shape), [exact, ties, beside])
    valid = np.ones((2, 5), np.float32)
    valid[1, 3] = 0
    radiance[:, 8:, 24:32] = np.nan
    want = codec.encoded(radiance)
    got = run(
        device,
        (torch.from_numpy(radiance), torch.from_numpy(valid)),
        scale=STORED_STEP,
        nodata=nodata,
        implementation=implementation,
    )
    np.testing.assert_array_equal(got[0].numpy(), want.steps)
    np.testing.assert_array_equal(got[1].numpy(), want.halves)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize(("nodata", "low", "high"), [(0, 1, 65535), (65535, 0, 65534)])
def test_what_steps_mean(device: str, implementation: Any, nodata: int, low: int, high: int) -> None:
    """A step is the nearest one, ties to even; beyond the steps that are left beside nodata it is clamped."""
    radiance = torch.zeros(1, 8, 8)
    values = [10.0, 10.24, 10.25, 10.75, 10.76, 9.0, 5.0, 1e9, math.inf, -math.inf, math.nan]
    radiance.flatten()[: len(values)] = torch.tensor(values)
    got, _ = run(
        device,
        (radiance, torch.ones(1, 1)),
        scale=0.5,
        offset=9.0,
        nodata=nodata,
        implementation=implementation,
    )
    assert got.flatten()[: len(values)].tolist() == [2, 2, 2, 4, 4, low, low, high, high, low, nodata]


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_float32_keeps_the_radiance_and_gives_nan_as_nodata(device: str, implementation: Any) -> None:
    radiance, _ = case(1, 1, 1)
    radiance[..., 0, 0] = math.nan
    (got,) = run(
        device,
        (radiance, torch.ones(1, 1)),
        nodata=-1.0,
        scale=0.1,
        offset=5.0,
        implementation=implementation,
    )
    assert got[0, 0, 0] == -1.0 and torch.equal(got.flatten()[1:], radiance.flatten()[1:])


@pytest.mark.parametrize("settings", [{}, {"nodata": 0.0}, {"scale": STORED_STEP, "nodata": 65535}])
def test_every_kind_of_pixel_is_among_the_variants(settings: dict[str, Any]) -> None:
    radiance, valid = (t.to("meta") for t in case())
    steps = settings.get("nodata") == 65535
    pixels = Pixels("uint16" if steps else "float32", **settings)
    out = radiance.to(torch.uint16) if steps else radiance
    built = {v.key for v in variants(PRESETS["tiny"], torch.float16)}
    halves = radiance[:, ::2, ::2] if steps else None
    assert entry.plan(radiance, valid, out, halves, (1, 1), pixels).key in built


def test_the_definition_writes_nothing_else() -> None:
    (radiance, valid), corner = case(), (1, 1)
    wide = torch.full((2, 8, 12, 8), -9.0)
    out = wide[:, :, 2, :]
    before = radiance.clone(), valid.clone()
    reference.finish(radiance, valid, out, None, corner, Pixels())
    assert torch.equal(before[0], radiance) and torch.equal(before[1], valid)
    assert bool((wide[:, :, :2] == -9).all()) and bool((wide[:, :, 3:] == -9).all())


UINT16 = torch.zeros(2, 16, 24, dtype=torch.uint16)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"radiance": torch.zeros(2, 8, 24)}, r"radiance must have shape \(any, 16, 24\), not \(2, 8, 24\)"),
        ({"radiance": torch.zeros(2, 16, 24).half()}, "radiance must be float32, not float16"),
        ({"valid": torch.ones(2, 3).bool()}, "valid must be float32, not bool"),
        ({"valid": torch.ones(1, 2, 3)}, r"valid must have shape \(any, any\)"),
        ({"out": torch.zeros(1, 16, 24)}, r"out must have shape \(2, any, any\)"),
        ({"out": torch.zeros(2, 16, 24).half()}, "out must be float32, uint16, not float16"),
        ({"out": torch.zeros(2, 12, 24)}, "of whole ones, not 12 × 24 pixels from LR pixel 0, 0"),
        ({"corner": (0, 1)}, "a part of the 2 × 3 LR pixels.*from LR pixel 0, 1"),
        ({"corner": (-1, 0)}, "from LR pixel -1, 0"),
        ({"halves": torch.zeros(2, 8, 12)}, "halves must be given with an out of uint16, and only then"),
        ({"out": UINT16, "nodata": 0}, "halves must be given with an out of uint16"),
        (
            {"out": UINT16, "nodata": 0, "halves": torch.zeros(2, 8, 8)},
            r"halves must have shape \(2, 8, 12\)",
        ),
        ({"out": UINT16}, "nodata of uint16 must be 0 or 65535, not nan"),
        ({"out": torch.zeros(2, 24, 16).transpose(1, 2)}, "out must be contiguous"),
        ({"scale": 0.0}, "scale must be a number above 0"),
        ({"offset": math.nan}, "offset a number, not 1.0 and nan"),
    ],
)
def test_messages_name_the_argument(changed: dict[str, Any], message: str) -> None:
    radiance, valid = case()
    given = {"radiance": radiance, "valid": valid, "out": torch.zeros(2, 16, 24)} | changed
    with pytest.raises(ValueError, match=f"finish: .*{message}"):
        kernels.finish(**given)
