"""Each operation at ×8 (`fuse` and `suggest` at ×4, `locate` at ×1) with arguments of the presets' widths."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.traffic import base, fuse, last_step, locate, suggested, upsample
from deeplight import kernels
from deeplight.engine.network.config import PRESETS
from deeplight.engine.network.consistency import BELIEF
from deeplight.kernels.interpolation import interpolation_line

Case = tuple[str, Callable[..., Any], tuple[Any, ...], float]


def op_cases(preset: str, dtype: torch.dtype, side: int, device: str) -> Iterator[Case]:
    """(name, op, arguments, bytes that the kernels have to move) for `side` LR pixels."""
    main, aux = PRESETS[preset].main, PRESETS[preset].aux
    hr, c, k = 8 * side, main[3], main[2]

    def r(*shape: int) -> Tensor:
        x = torch.randn(shape, device=device, dtype=dtype) * 0.2
        return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x

    pixels, size = float(hr * hr), dtype.itemsize
    a, half = aux[2], hr // 2
    mask = torch.ones(1, 1, half, half, device=device, dtype=dtype)
    weights = (r(2, a), r(2, k), r(2), r(2 * k, a), r(2 * k))
    features = (r(1, a, half, half), r(1, a, half, half))
    yield (
        "fuse",
        kernels.fuse,
        (r(1, k, half, half), features, (mask, mask), *weights),
        fuse(k, a).fused * size * pixels / 4,
    )
    coarse = r(1, k, hr // 2, hr // 2)
    moved = upsample(k, c).fused * size * pixels / 4
    yield "upsample", kernels.upsample, (coarse, r(4 * c, k, 3, 3), r(4 * c)), moved
    offset = r(1, 2, side, side).float()
    moving = functools.partial(kernels.align, dtype=dtype)
    yield "align", moving, (r(1, 8, hr, hr), None, None, None, offset), 16 * size * pixels
    pixels_in, where = raw_pixels(side, device)
    raw_align = functools.partial(kernels.align, **where, size=(hr, hr), dtype=dtype)
    yield "align_raw", raw_align, pixels_in, (8 * 2 + 1 + 8 * size) * pixels
    yield "base", kernels.base, based(side, device), 2 * base().fused * pixels
    under = kernels.Base(*(torch.rand(1, 1, hr // n, hr // n, device=device) for n in (1, 2, 8)))
    heads = (r(1, c, 1, 1), r(1), r(c), [r(c, c, 3, 3)], [r(c)], r(1, c, 1, 1), r(1))
    lines = {"cubic": kernels.interpolation_kernel(2, "cubic"), "linear": interpolation_line(8, "linear")}
    restore = functools.partial(kernels.restore, **{name: line.to(device) for name, line in lines.items()})
    yield "restore", restore, (r(1, c, hr, hr), under, *heads), (c * size + 13) * pixels
    radiance, valid = 100 * torch.rand(1, hr, hr, device=device), torch.ones(side, side, device=device)
    yield "finish", stored, (radiance, valid), (4 + 2 + 1) * pixels
    width = PRESETS[preset].localise_width
    aux = torch.randn(1, 10, 4 * side, 4 * side, device=device).contiguous(memory_format=torch.channels_last)
    layers = _layers(device, 10, 32, 32, 1), _layers(device, 11, width, width, 1)
    yield "suggest", kernels.suggest, (aux, *layers), 2 * suggested(width).fused * pixels
    yield "locate", kernels.locate, located(side, width, device), 2 * locate(width).fused * pixels
    yield "settle", kernels.settle, settling(side, device), 2 * last_step().fused * pixels


def stored(radiance: Tensor, valid: Tensor, *, implementation: kernels.Implementation) -> Tensor:
    """Make steps of uint16 and the first overview of a whole tile, and return the overview."""
    _, h, w = radiance.shape
    out = torch.empty(1, h, w, dtype=torch.uint16, device=radiance.device)
    halves = radiance.new_empty(1, h // 2, w // 2)
    kernels.finish(radiance, valid, out, halves, scale=0.1, nodata=65535, implementation=implementation)
    return halves


def settling(side: int, device: str) -> tuple[Any, ...]:
    """Arguments of `kernels.settle`, in float32 whatever the features are."""
    refined, start = (100 * torch.rand(1, 1, 8 * side, 8 * side, device=device) for _ in range(2))
    psf = torch.ones(1, 2, device=device)
    line = interpolation_line(8, "linear").to(device)
    return refined, start, _sensor(side, device), psf, line, BELIEF


def _sensor(side: int, device: str) -> kernels.Sensor:
    y = 100 * torch.rand(1, 1, side, side, device=device)
    weights = torch.full((1, 7, 8), 1 / 56, device=device)
    noise = y.new_full((1, 1, 1, 1), 0.1)
    return kernels.Sensor(y, torch.ones_like(y), torch.zeros_like(y), weights, weights, noise)


def based(side: int, device: str) -> tuple[Any, ...]:
    """Arguments of `kernels.base`."""
    cubic, linear = (interpolation_line(8, kind).to(device) for kind in ("cubic", "linear"))
    return _sensor(side, device), cubic, linear, torch.tensor(2.0, device=device)


def _layers(device: str, *channels: int) -> list[tuple[Tensor, Tensor]]:
    """Pointwise layers through these channels."""
    sizes = pairwise(channels)
    return [(torch.randn(b, a, 1, 1, device=device) * 0.1, torch.zeros(b, device=device)) for a, b in sizes]


def located(side: int, width: int, device: str) -> tuple[Any, ...]:
    """Arguments of `kernels.locate`, in float32 whatever the features are."""

    xy, shifts = (t.to(device) for t in kernels.half_pixel_shifts(2))
    ntl, lights = (torch.rand(1, 1, side, side, device=device) for _ in range(2))
    scalars = torch.tensor(4.0, device=device), torch.tensor(-1.2, device=device)
    count = xy.shape[1]
    weights = kernels.LocateWeights(
        *scalars, _layers(device, 3, 16, 1), _layers(device, count + 3, width, width, 2)
    )
    return ntl, lights, torch.full((15,), 1 / 15, device=device), shifts, xy, weights, 2.0


def raw_pixels(side: int, device: str) -> tuple[tuple[Tensor, ...], dict[str, kernels.TileMesh]]:
    """Raw pixels, gain, bias, mask and mesh: 8 bands of uint16 on their own grid, rotated by a tenth of a radian."""
    hr = 8 * side
    raw = torch.randint(0, 10000, (1, 8, hr, hr), device=device, dtype=torch.int32).to(torch.uint16)
    i = torch.arange(hr // 32 + 2, dtype=torch.float64) * 32
    rows, cols = i[:, None] + 0.1 * i[None, :], i[None, :] - 0.1 * i[:, None]
    whole, fraction = kernels.split_nodes(torch.stack([rows, cols])[None])
    mesh = kernels.TileMesh(whole.to(device), fraction.to(device), 0, 0, 32)
    gain, bias = torch.full((1, 7), 1e-3, device=device), torch.full((1, 7), -1.0, device=device)
    mask = torch.ones(1, 1, hr, hr, device=device, dtype=torch.uint8)
    return (raw.contiguous(memory_format=torch.channels_last), gain, bias, mask), {"mesh": mesh}
