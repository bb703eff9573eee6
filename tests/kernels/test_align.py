"""align: the kernel against its definition, what it reads and writes, registration, messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deeplight import kernels
from deeplight.kernels import interpolation
from deeplight.kernels.align import entry as align_entry
from deeplight.kernels.align import reference
from deeplight.kernels.align.reference import TileMesh
from deeplight.kernels.launch import Launch
from tests.kernels.parity import assert_close, assert_on_boundary, doubled, off_boundary

RAW = [torch.uint8, torch.uint16, torch.int16, torch.float32, torch.float16, torch.bfloat16]


def raw_pixels(b: int, bands: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    x = torch.rand(b, bands, h, w, generator=torch.Generator().manual_seed(h * w))
    if dtype in (torch.uint8, torch.uint16):
        return (x * (250 if dtype == torch.uint8 else 60000)).to(torch.int32).to(dtype)
    return (x * 3000 - 900).to(dtype)


def mesh_of(b: int, size: tuple[int, int], step: int, slope: float, row: int = -3, col: int = -5) -> TileMesh:
    """A skewed affine mesh with a bend, `slope` source pixels per HR pixel, starting outside the source."""
    n, m = (size[0] - row) // step + 2, (size[1] - col) // step + 2
    i = (torch.arange(n, dtype=torch.float64) * step)[:, None]
    j = (torch.arange(m, dtype=torch.float64) * step)[None, :]
    rows = -2.3 + slope * i + 0.07 * j + 0.001 * i * j
    cols = -1.6 + slope * j - 0.05 * i
    whole, fraction = reference.split_nodes(torch.stack([rows, cols]).expand(b, 2, n, m))
    return TileMesh(whole, fraction, row, col, step)


def case(
    *, b: int = 1, bands: int = 8, c: int = 7, size: tuple[int, int] = (8, 16), dtype: torch.dtype = torch.uint16,
    mask: str = "mixed", reach: float = 1.0, mesh: bool = True, source: tuple[int, int] = (9, 13),
) -> dict[str, Any]:  # fmt: skip
    g = torch.Generator().manual_seed(b + bands)
    h, w = source if mesh else size
    raw = raw_pixels(b, bands, h, w, dtype)
    masks = {
        "on": torch.ones(b, 1, h, w),
        "off": torch.zeros(b, 1, h, w),
        "mixed": torch.rand(b, 1, h, w, generator=g),
    }
    spread = float(raw.float().abs().max())
    return {
        "raw": raw,
        "gain": (torch.rand(b, c, generator=g) + 0.5) * 3 / spread,
        "bias": torch.randn(b, c, generator=g),
        "mask": None if mask == "none" else masks[mask].round().to(torch.uint8),
        "offset": (torch.rand(b, 2, size[0] // 8, size[1] // 8, generator=g) * 2 - 1) * reach
        if reach
        else None,
        "mesh": mesh_of(b, size, 4, 0.45) if mesh else None,
        "size": size,
    }


def moved(device: str, value: Any) -> Any:
    if isinstance(value, TileMesh):
        return TileMesh(value.whole.to(device), value.fraction.to(device), *value[2:])
    return value.to(device) if isinstance(value, Tensor) else value


def run(device: str, values: dict[str, Any], **more: Any) -> Tensor:
    return kernels.align(**{k: moved(device, v) for k, v in values.items()}, **more, implementation="triton")


def definition(values: dict[str, Any]) -> Tensor:
    """In float64, from the raw values and coordinates that the kernel gets too."""
    exact = {k: v if isinstance(v, TileMesh) else doubled(v) for k, v in values.items()}
    if exact["mesh"] is not None:
        exact["mesh"] = exact["mesh"]._replace(fraction=exact["mesh"].fraction.double())
    exact["raw"] = exact["raw"].double()
    exact["size"] = values["size"]
    return reference.align(**exact)


@pytest.mark.parametrize("dtype", RAW, ids=str)
@pytest.mark.parametrize("mesh", [True, False], ids=["mesh", "same-grid"])
def test_kernel_is_the_definition(device: str, dtype: torch.dtype, mesh: bool) -> None:
    values = case(b=2 if dtype == torch.uint16 else 1, dtype=dtype, mesh=mesh)
    got = run(device, values, dtype=torch.float32)
    assert got.shape[1:] == (8, 8, 16) and got.is_contiguous(memory_format=torch.channels_last)
    # coordinates of some ten pixels keep 2⁻²⁰ of a pixel in float32, neighbours differ by up to 4.5
    assert_close("out", got, definition(values), times=4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_results(device: str, dtype: torch.dtype) -> None:
    values = case()
    got = run(device, values, dtype=dtype)
    assert got.dtype == dtype
    assert_close("out", got, definition(values))


@pytest.mark.parametrize("mask", ["on", "off", "mixed", "none"])
def test_masks(device: str, mask: str) -> None:
    values = case(mask=mask)
    got = run(device, values)
    assert_close("out", got, definition(values), times=4)
    assert bool((got[:, -1] != 0).any()) == (mask != "off")


@pytest.mark.parametrize("reach", [0.0, 0.3, 40.0], ids=["no-offset", "small", "leaves-the-image"])
@pytest.mark.parametrize("mesh", [True, False], ids=["mesh", "same-grid"])
def test_offsets(device: str, reach: float, mesh: bool) -> None:
    values = case(reach=reach, mesh=mesh)
    # 8·40 pixels keep 2⁻¹⁵ of a pixel
    assert_close("out", run(device, values), definition(values), times=64 if reach > 1 else 4)


@pytest.mark.parametrize(("bands", "c"), [(1, 1), (3, 2), (7, 7), (10, 10)])
def test_channel_counts(device: str, bands: int, c: int) -> None:
    values = case(bands=bands, c=c, dtype=torch.int16)
    assert_close("out", run(device, values), definition(values), times=4)


def test_unknown_places_and_other_widths(device: str) -> None:
    values = case(size=(8, 200), source=(9, 80))
    values["mesh"].fraction[:, :, 1, 2:4] = torch.nan
    got = run(device, values)
    assert_close("out", got, definition(values), times=16)
    assert (got[:, -1] == 0).any() and (got[:, -1] == 1).any()


def test_what_lies_under_the_mask_has_no_influence(device: str) -> None:
    values = case(dtype=torch.float32)
    one = run(device, values)
    values["raw"] = torch.where(values["mask"] != 0, values["raw"], torch.nan)
    assert torch.equal(one, run(device, values))


def test_normalised_features_are_only_sampled(device: str) -> None:
    x, offset = torch.randn(2, 10, 16, 8) * 20, torch.rand(2, 2, 2, 1) * 2 - 1
    got = kernels.align(x.to(device), offset=offset.to(device), implementation="triton")
    assert_close("out", got, interpolation.sample(x.double(), offset.double()), times=4)


def test_a_pixel_has_the_same_bits_in_every_tile_and_source_window(device: str) -> None:
    size, (top, left) = (24, 32), (8, 16)
    values = case(size=size, source=(16, 20), reach=0.2)
    whole = run(device, values)
    mesh: TileMesh = values["mesh"]
    shift = torch.tensor([2, 3], dtype=torch.int32)[None, :, None, None]
    part = {
        **values,
        "raw": values["raw"][:, :, 2:, 3:],
        "mask": values["mask"][:, :, 2:, 3:],
        "offset": values["offset"][:, :, 1:, 2:],
        "mesh": mesh._replace(whole=mesh.whole - shift, row=mesh.row - top, col=mesh.col - left),
        "size": (16, 16),
    }
    # 8·0.2 pixels, and the offset's own interpolation sees one LR pixel: 12 HR pixels from the cut sides are alike
    got, want = run(device, part)[..., 12:, 12:], whole[..., top + 12 :, left + 12 :]
    assert got[:, -1].any() and torch.equal(got, want)


def test_reference_gradcheck() -> None:
    raw = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    # fractions of the HR offset away from 0 and 1, where the derivative jumps
    offset = torch.full((1, 2, 1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    gain, bias = (torch.rand(1, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.rand(1, 1, 8, 8).round()
    assert torch.autograd.gradcheck(
        lambda r, g, b, o: reference.align(r, g, b, mask, o, bounds=(-90.0, 90.0)),
        (raw, gain, bias, offset),
        fast_mode=True,
    )


def test_opcheck(device: str) -> None:
    values = {k: moved(device, v) for k, v in case().items()}
    mesh = values["mesh"]
    args = (
        values["raw"], values["gain"], values["bias"], values["mask"], values["offset"], mesh.whole, mesh.fraction,
        mesh.row, mesh.col, mesh.step, 8, 16, -4.0, 8.0, torch.float16,
    )  # fmt: skip
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.deeplight.align.default, args, test_utils=utils)


def test_no_gradient_from_the_kernel(device: str) -> None:
    x = torch.randn(1, 2, 8, 8, device=device, requires_grad=True)
    with pytest.raises(ValueError, match="no gradient"):
        kernels.align(x, offset=torch.zeros(1, 2, 1, 1, device=device), implementation="triton")
    assert kernels.align(x, offset=torch.zeros(1, 2, 1, 1, device=device)).requires_grad, (
        "auto: the reference"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain": torch.ones(2, 7)}, r"gain must have shape \(1, any\)"),
        ({"bias": None}, "gain and bias together"),
        ({"gain": torch.ones(1, 9), "bias": torch.ones(1, 9)}, "gain has 9 bands, raw only 8"),
        ({"mask": torch.ones(1, 1, 3, 3)}, "mask must have shape"),
        ({"offset": torch.zeros(1, 2, 2, 2)}, r"offset must have shape \(1, 2, 1, 2\)"),
        ({"size": (8, 20)}, "multiples of 8"),
        ({"size": (8, 320), "offset": None}, "the mesh has"),
        ({"bounds": (1.0, 8.0)}, "bounds must enclose 0"),
        ({"mesh": None, "offset": None}, "size must be raw's"),
        ({"raw": torch.zeros(1, 8, 0, 4), "mask": None}, "raw must have pixels and bands"),
        ({"offset": torch.zeros(1, 2, 1, 2, dtype=torch.int32)}, "offset must be float32"),
        ({"gain": torch.ones(1, 7).half()}, "gain must be float32, float64, not float16"),
    ],
)
def test_messages_name_the_tensor(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.align(**{**case(), **change})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.float32], ids=str)
def test_neither_a_warped_nor_a_normalised_raster_exists(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One launch reads the raw pixels in place and writes the result; the operator makes no other image."""
    launches: list[Launch] = []
    monkeypatch.setattr(align_entry, "run", launches.append)
    monkeypatch.setattr(align_entry.dispatch, "kernel_runs_on", lambda _: True)
    values = case(dtype=dtype)
    values["raw"] = values["raw"].contiguous(memory_format=torch.channels_last)
    got = kernels.align(**values, dtype=torch.float16, implementation="triton")
    (only,) = launches
    mesh: TileMesh = values["mesh"]
    read = {**values, "whole": mesh.whole, "fraction": mesh.fraction, "out": got}
    for name, argument in only.arguments.items():
        if isinstance(argument, Tensor):
            assert argument.data_ptr() == read[name].data_ptr(), f"{name} is a copy"


def test_unaligned_arguments_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[Launch] = []
    monkeypatch.setattr(align_entry, "run", launches.append)
    monkeypatch.setattr(align_entry.dispatch, "kernel_runs_on", lambda _: True)
    values = case(dtype=torch.float32)
    for name in ("raw", "gain", "bias", "offset"):
        values[name] = off_boundary(values[name])
    kernels.align(**values, implementation="triton")
    assert_on_boundary(launches)


def test_nodes_beyond_32_bits_are_unknown_places() -> None:
    nodes = torch.tensor([3.25, -0.5, 1e12, -(2.0**31), torch.inf, torch.nan], dtype=torch.float64)
    whole, fraction = reference.split_nodes(nodes)
    assert whole.tolist() == [3, -1, 0, 0, 0, 0]
    assert fraction[:2].tolist() == [0.25, 0.5] and torch.isnan(fraction[2:]).all()


def test_an_empty_batch(device: str) -> None:
    values = case(b=2)
    values["mesh"] = values["mesh"]._replace(
        whole=values["mesh"].whole[:0], fraction=values["mesh"].fraction[:0]
    )
    values |= {k: values[k][:0] for k in ("raw", "gain", "bias", "mask", "offset")}
    assert run(device, values).shape == (0, 8, 8, 16)


def test_beyond_the_kernels_limits_only_the_reference_runs(device: str) -> None:
    x = torch.randn(1, 32, 8, 8)
    assert torch.equal(kernels.align(x.to(device)).cpu(), x)
    with pytest.raises(ValueError, match="at most 31 bands, not 32"):
        kernels.align(x.to(device), implementation="triton")
    with pytest.raises(ValueError, match=r"dtype must be float32, float16 or bfloat16, not torch\.float64"):
        kernels.align(x[:, :4].to(device), dtype=torch.float64, implementation="triton")
    with pytest.raises(
        ValueError, match="raw must be float32, float16, bfloat16, uint8, uint16, int16, not int32"
    ):
        kernels.align(x[:, :4].to(device, torch.int32), implementation="triton")
