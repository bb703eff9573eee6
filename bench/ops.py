"""Each operation of the network at ×8 with arguments of the presets' widths."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.traffic import fuse, upsample
from deeplight import kernels
from deeplight.engine.network.config import PRESETS

Case = tuple[str, Callable[..., Any], tuple[Any, ...], float]


def op_cases(preset: str, dtype: torch.dtype, side: int, device: str) -> Iterator[Case]:
    """(name, op, arguments, bytes that the kernel has to move) at ×8, fuse at ×4, for `side` LR pixels."""
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
    yield "align", kernels.align, (r(1, 10, hr, hr), None, None, None, offset), 20 * size * pixels
    pixels_in, where = raw_pixels(side, device)
    raw_align = functools.partial(kernels.align, **where, size=(hr, hr), dtype=dtype)
    yield "align_raw", raw_align, (*pixels_in, offset), (8 * 2 + 1 + 8 * size) * pixels
    level = r(1, 1, hr, hr).float()
    heads = (r(1, c, 1, 1), r(1), r(c), [r(c, c, 3, 3)], [r(c)], r(1, c, 1, 1), r(1))
    yield "refine", kernels.refine, (r(1, c, hr, hr), level, *heads), (c * size + 12) * pixels
    stored = functools.partial(kernels.finish, dtype="uint16", scale=0.01, nodata=65535)
    radiance, valid = (
        100 * torch.rand(1, 1, hr, hr, device=device),
        torch.ones(1, 1, side, side, device=device),
    )
    yield "finish", stored, (radiance, valid), (4 + 2) * pixels


def raw_pixels(side: int, device: str) -> tuple[tuple[Tensor, ...], dict[str, kernels.Mesh]]:
    """Raw, gain, bias, mask and mesh of eight bands of uint16 on a grid of their own, turned by a tenth of a radian."""
    hr = 8 * side
    raw = torch.randint(0, 10000, (1, 8, hr, hr), device=device, dtype=torch.int32).to(torch.uint16)
    i = torch.arange(hr // 32 + 2, dtype=torch.float64) * 32
    rows, cols = i[:, None] + 0.1 * i[None, :], i[None, :] - 0.1 * i[:, None]
    whole, fraction = kernels.split_nodes(torch.stack([rows, cols])[None])
    mesh = kernels.Mesh(whole.to(device), fraction.to(device), 0, 0, 32)
    gain, bias = torch.full((1, 7), 1e-3, device=device), torch.full((1, 7), -1.0, device=device)
    mask = torch.ones(1, 1, hr, hr, device=device, dtype=torch.uint8)
    return (raw.contiguous(memory_format=torch.channels_last), gain, bias, mask), {"mesh": mesh}
