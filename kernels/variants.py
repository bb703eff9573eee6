"""All launches of a network with meta tensors. They are compiled before the first tile, checked and measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from deeplight.kernels.agree import entry as agree_entry
from deeplight.kernels.agree.reference import Sensor
from deeplight.kernels.align import entry as align_entry
from deeplight.kernels.align.reference import TileMesh
from deeplight.kernels.finish import entry as finish_entry
from deeplight.kernels.finish.reference import Pixels
from deeplight.kernels.fuse import entry as fuse_entry
from deeplight.kernels.launch import Launch
from deeplight.kernels.locate import entry as locate_entry
from deeplight.kernels.locate.reference import half_pixel_shifts
from deeplight.kernels.refine import entry as refine_entry
from deeplight.kernels.refine.reference import Radiance
from deeplight.kernels.settle import entry as settle_entry
from deeplight.kernels.settle.reference import Belief
from deeplight.kernels.suggest import entry as suggest_entry
from deeplight.kernels.upsample import entry as upsample_entry


class Widths(Protocol):
    """The fields of deeplight.engine.network.config.ModelConfig on which launches depend."""

    @property
    def main(self) -> Sequence[int]:
        """Channels of the NTL features at ×1, ×2, ×4, ×8."""

    @property
    def aux(self) -> Sequence[int]:
        """Channels of each modality's features at ×1, ×2 and ×4."""

    @property
    def refine(self) -> Sequence[int]:
        """Residual blocks of the three refinements."""

    @property
    def localise_width(self) -> int:
        """Channels of the layers that correct the offset."""


RASTERS = tuple(
    (dtype, *bands)
    for bands in ((8, 7), (4, 4), (1, 1))
    for dtype in (torch.uint16, torch.int16, torch.float32, torch.uint8)
)
"""Raw pixels for which `align` is compiled: element type, bands in memory (as core.forms.stride: a pixel is read at
once), bands used."""

NORMALISED = (8, 2)
"""Normalised channels for which `align` is compiled: DMO with its mask, and DEM."""

STORED_STEP = 0.1
"""Step of uint16 pixels in the engine's outputs."""

BELIEF = Belief(0.1, 50.0, 0.2)
"""Some numbers as large as the network's; what is compiled does not depend on them."""

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def variants(widths: Widths, dtype: torch.dtype, *, side: int = 64) -> Iterator[Launch]:
    """Every launch of one network in one element type.

    `align` comes with uint8, uint16, int16 and float32 pixels that go through a mesh, and with what it makes of them,
    which is then moved by an offset; `finish` comes with both types of output pixels. side: HR pixels of a tile's side,
    a multiple of 8.
    """
    main = widths.main
    for c, a in zip(main, widths.aux, strict=False):
        yield _fuse_launch(c, a, dtype, side)
    for k, c in pairwise(main):
        yield _upsample_launch(k, c, dtype, side)
    yield from _align_launches(dtype, side)
    yield _refine_launch(main[3], dtype, side, blocks=widths.refine[2])
    yield from _finish_launches(side)
    yield from _base_launches(side)
    yield from _settle_launches(side)
    yield _suggest_launch(widths.localise_width, side)
    yield from _locate_launches(widths.localise_width, side)


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    x = torch.empty(shape, dtype=dtype, device="meta")
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _fuse_launch(c: int, a: int, dtype: torch.dtype, side: int) -> Launch:
    image = _meta(1, c, side, side, dtype=dtype)
    aux, masks = ([_meta(1, n, side, side, dtype=dtype)] * 2 for n in (a, 1))
    shapes = ((2, a), (2, c), (2,), (2 * c, a), (2 * c,))
    return fuse_entry.plan(image, aux, masks, [_meta(*shape, dtype=dtype) for shape in shapes], image)


def _upsample_launch(k: int, c: int, dtype: torch.dtype, side: int) -> Launch:
    out, bias = _meta(1, c, 2 * side, 2 * side, dtype=dtype), _meta(4 * c, dtype=dtype)
    if upsample_entry.prefers_gemm(k, 4 * c):
        x, weight = _meta(1, k, side, side, dtype=dtype), _meta(9, k, 4 * c, dtype=dtype)
        return upsample_entry.plan_conv(x, weight, bias, None, out)
    return upsample_entry.plan_epilogue(_meta(1, 4 * c, side, side, dtype=dtype), bias, None, out)


def _align_launches(dtype: torch.dtype, side: int) -> Iterator[Launch]:
    offset = torch.empty(1, 2, side // 8, side // 8, device="meta")
    nodes = torch.empty(1, 2, side // 32 + 2, side // 32 + 2, device="meta")
    mesh = TileMesh(nodes.to(torch.int32), nodes, 0, 0, 32)
    for raw_dtype, bands, c in RASTERS:
        affine = torch.empty(1, c, device="meta")
        raw, mask = _meta(1, bands, side, side, dtype=raw_dtype), _meta(1, 1, side, side, dtype=torch.uint8)
        out = _meta(1, c + 1, side, side, dtype=dtype)
        yield align_entry.plan(raw, affine, affine, mask, None, mesh, (-4.0, 8.0), out)
    for channels in NORMALISED:
        layer = _meta(1, channels, side, side, dtype=dtype)
        yield align_entry.plan(layer, None, None, None, offset, None, (-4.0, 8.0), layer)


def _refine_launch(c: int, dtype: torch.dtype, side: int, *, blocks: int) -> Launch:
    pixels = torch.empty(1, 1, side, side, device="meta")
    x, weight = _meta(1, c, side, side, dtype=dtype), _meta(9, c, c, dtype=dtype)
    coarse = _meta(1, 1, side // 2, side // 2, dtype=torch.float32), _lights(side)
    if blocks == 1 and c <= refine_entry.NARROW:
        vectors = [_meta(n, dtype=dtype) for n in (c, c, 1, c, c, 1)]
        return refine_entry.plan_narrow(x, pixels, weight, vectors, Radiance(), pixels, pixels, coarse=coarse)
    vectors = [_meta(n, dtype=dtype) for n in (c, c, 1)]
    return refine_entry.plan(x, pixels, weight, vectors, Radiance(), pixels, coarse=coarse)


def _finish_launches(side: int) -> Iterator[Launch]:
    radiance = torch.empty(1, side, side, device="meta")
    valid, halves = (
        torch.empty(*shape, device="meta") for shape in ((side // 8,) * 2, (1, *(side // 2,) * 2))
    )
    yield finish_entry.plan(radiance, valid, radiance, None, (0, 0), Pixels(nodata=-1.0))
    pixels = Pixels("uint16", STORED_STEP, nodata=65535)
    yield finish_entry.plan(radiance, valid, radiance.to(torch.uint16), halves, (0, 0), pixels)


def _lights(side: int) -> Tensor:
    return torch.empty(1, 1, side // 8, side // 8, device="meta")


def _base_launches(side: int) -> Iterator[Launch]:
    """The base, in float32 whatever the element type of the features."""
    radiance, image = torch.empty(1, 1, side, side, device="meta"), _lights(side)
    sensor, number = _sensor(side), torch.empty(1, device="meta")
    for changes in ([], [image]):
        yield agree_entry.plan_observe(changes, sensor, number, image)
    yield agree_entry.plan_start(image, [image, image], radiance)


def _settle_launches(side: int) -> Iterator[Launch]:
    """The step after the last refinement, in float32 whatever the element type of the features."""
    radiance, image = torch.empty(1, 1, side, side, device="meta"), _lights(side)
    psf = torch.empty(1, 2, device="meta")
    looked = settle_entry.Looked(*(image for _ in settle_entry.Looked._fields))
    yield settle_entry.plan_believe(radiance, _sensor(side), psf, BELIEF, image)
    yield settle_entry.plan_look(radiance, radiance, _sensor(side), looked)
    yield settle_entry.plan_decide(image, looked, _sensor(side), BELIEF, image, image)
    yield settle_entry.plan_settle(radiance, radiance, image, image, radiance)


def _sensor(side: int) -> Sensor:
    image, weights = _lights(side), torch.empty(1, 7, 8, device="meta")
    return Sensor(image, image, image, weights, weights, torch.empty(1, device="meta"))


WINDOW, SHIFT_RADIUS, SURE, IMPERVIOUS = 15, 2, 16, 32
"""Sizes in the estimate of the offset: the window's side, the reach of the shifts, the channels of the certainty's and
of the impervious share's layers."""


def _suggest_launch(width: int, side: int) -> Launch:
    """The launch, in float32 whatever the element type of the features."""
    low = max(1, side // 8)
    aux, out = _meta(1, 10, 4 * low, 4 * low, dtype=torch.float32), torch.empty(1, 1, low, low, device="meta")

    def layers(first: int, hidden: int) -> list[Tensor]:
        shapes = ((hidden, first), (hidden,), (hidden, hidden), (hidden,), (1, hidden), (1,))
        return [torch.empty(shape, device="meta") for shape in shapes]

    return suggest_entry.plan(aux, layers(10, IMPERVIOUS), layers(11, width), out)


def _locate_launches(hidden: int, side: int) -> Iterator[Launch]:
    """Both launches, in float32 whatever the element type of the features."""
    low = max(1, side // 8)
    image = torch.empty(1, 1, low, low, device="meta")
    shifts = half_pixel_shifts(SHIFT_RADIUS)[0].to("meta")
    count = shifts.shape[1]
    residual = torch.empty(1, count, low, low, device="meta")
    window = torch.empty(WINDOW, device="meta")
    places = 2 * (low + 2 * SHIFT_RADIUS) - 1
    lattice = torch.empty(1, 2, places, places, device="meta")
    yield locate_entry.plan_residuals(image, lattice, image, image, window, residual)
    certainty = [torch.empty(shape, device="meta") for shape in ((SURE, 3), (SURE,), (1, SURE), (1,))]
    shapes = ((hidden, count + 3), (hidden,), (hidden, hidden), (hidden,), (2, hidden), (2,))
    correct = [torch.empty(shape, device="meta") for shape in shapes]
    strength, out = torch.empty(2, device="meta"), torch.empty(1, 2, low, low, device="meta")
    yield locate_entry.plan_posterior(residual, image, image, shifts, strength, certainty, correct, out, 2.0)
