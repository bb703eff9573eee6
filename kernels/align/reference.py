"""Plain PyTorch definition of the alignment. Everything faster is tested against it. All tensors are NCHW.

Results do not depend on where a tile lies in its scene, since positions are integers only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from deeplight.kernels.interpolation import sample

HALF = 0.499999
"""The least sum of weights of a valid resampled pixel: one half, less the rounding of four float32 weights."""


class TileMesh(NamedTuple):
    """Where the HR pixels of a tile lie in a raster on its own grid. Nodes are `step` HR pixels apart; between them
    coordinates are interpolated bilinearly.

    whole: (B, 2, N, M) int32 and fraction: (B, 2, N, M) float32, whose sums are the rows [:, 0] and columns [:, 1] of
    the nodes; k.0 is the centre of source pixel k. Integer and fraction are kept apart, so that a pixel's coordinate
    has the same bits in every tile and source window. A fraction of NaN marks a place outside the projection.
    row, col: HR pixel of the first node, relative to the tile, ≤ 0. step: HR pixels between nodes.
    """

    whole: Tensor
    fraction: Tensor
    row: int
    col: int
    step: int


def split_nodes(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Split float64 coordinates into int32 wholes and float32 fractions in [0, 1].

    Coordinates that are not finite or lie beyond 2³⁰ become 0 and NaN, so that differences of wholes fit 32 bits.
    """
    known = nodes.abs() < 2.0**30
    whole = torch.floor(torch.where(known, nodes, 0.0))
    return whole.to(torch.int32), torch.where(known, nodes - whole, torch.nan).to(torch.float32)


def align(
    raw: Tensor,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    offset: Tensor | None = None,
    mesh: TileMesh | None = None,
    size: tuple[int, int] | None = None,
    bounds: tuple[float, float] = (-4.0, 8.0),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Turn raw pixels into normalised features on the HR grid, moved by the offset field.

    raw: (B, R, h, w), any real dtype; its first C ≤ R bands are used. gain, bias: (B, C), from the file's units to
    normalised ones; None: all bands are normalised already and stay as they are. mask: (B, 1, h, w), valid where it is
    not 0. offset: (B, 2, H/8, W/8), (x, y) in LR pixels.
    size: (H, W), by default (h, w). bounds: lower and upper limit of normalised values, with 0 between them.

        r(q), v(q) = raw and mask at HR pixel q. Without `mesh`: of the same pixel. With it: Σ w m raw / Σ w m over the
                     four neighbours, and whether Σ w m ≥ ½; outside the raster v = 0
        n(q) = clip(gain·r(q) + bias, bounds) · v(q)
        out(p) = bilinear sample of [n, v] at p + 8·(offset, interpolated linearly), taps clamped to the tile

    Returns (B, C + 1, H, W), whose last channel is v; without mask and mesh (B, C, H, W). It is computed in raw's dtype
    if that is a floating type, else in float32, and returned in `dtype`, by default the same.
    """
    c = raw.shape[1] if gain is None else gain.shape[1]
    work = raw.dtype if raw.dtype.is_floating_point else torch.float32
    values = raw[:, :c].to(work)
    valid = None if mask is None else (mask != 0).to(work)
    if mesh is not None:
        valid = torch.ones_like(values[:, :1]) if valid is None else valid
        values, valid = _through_mesh(values, valid, mesh, size or (raw.shape[2], raw.shape[3]))
    elif valid is not None:
        values = torch.where(valid != 0, values, torch.zeros_like(values))
    out = values
    if gain is not None and bias is not None:
        out = (values * gain[:, :, None, None] + bias[:, :, None, None]).to(work).clamp(*bounds)
    if valid is not None:
        out = torch.cat([out * valid, valid], dim=1)
    out = out if offset is None else sample(out, offset)
    return out if dtype is None else out.to(dtype)


def _through_mesh(
    values: Tensor, valid: Tensor, mesh: TileMesh, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Masked bilinear interpolation at the mesh's coordinates. Returns values (B, C, H, W), 0 where invalid, and
    validity (B, 1, H, W)."""
    b, _, h, w = values.shape
    row, row_fraction = _place(mesh, 0, size)
    col, col_fraction = _place(mesh, 1, size)
    known = torch.isfinite(row_fraction) & torch.isfinite(col_fraction)
    known &= (row >= -1) & (row < h) & (col >= -1) & (col < w)
    batch = torch.arange(b, device=values.device)[:, None, None]
    total = torch.zeros_like(row_fraction)
    summed = torch.zeros((b, *size, values.shape[1]), dtype=values.dtype, device=values.device)
    for i, wi in ((row, 1 - row_fraction), (row + 1, row_fraction)):
        for j, wj in ((col, 1 - col_fraction), (col + 1, col_fraction)):
            there = known & (i >= 0) & (i < h) & (j >= 0) & (j < w)
            at = (batch, i.clamp(0, h - 1), j.clamp(0, w - 1))
            there &= valid[:, 0][at] != 0
            weight = torch.where(there, wi * wj, 0.0)
            total = total + weight
            tap = values.permute(0, 2, 3, 1)[at]
            summed = summed + weight.to(values.dtype)[..., None] * torch.where(there[..., None], tap, 0.0)
    found = total >= HALF
    out = torch.where(
        found[..., None], summed / torch.where(found, total, 1.0)[..., None].to(values.dtype), 0.0
    )
    return out.permute(0, 3, 1, 2), found[:, None].to(values.dtype)


def _place(mesh: TileMesh, axis: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The source coordinate of every HR pixel along one axis: whole and fraction, (B, H, W) each; NaN where unknown."""
    device = mesh.whole.device
    cells = [
        torch.arange(length, device=device) - first
        for length, first in zip(size, (mesh.row, mesh.col), strict=True)
    ]
    i, j = cells[0][:, None] // mesh.step, cells[1][None, :] // mesh.step
    dtype = mesh.fraction.dtype
    u = ((cells[0] % mesh.step).to(dtype) / mesh.step)[:, None]
    v = ((cells[1] % mesh.step).to(dtype) / mesh.step)[None, :]
    whole, fraction = mesh.whole[:, axis].long(), mesh.fraction[:, axis]
    base = whole[:, i, j]

    def node(di: int, dj: int) -> Tensor:
        return (whole[:, i + di, j + dj] - base).to(dtype) + fraction[:, i + di, j + dj]

    left = node(0, 0) + u * (node(1, 0) - node(0, 0))
    right = node(0, 1) + u * (node(1, 1) - node(0, 1))
    relative = left + v * (right - left)
    floor = torch.floor(relative)
    return base + torch.nan_to_num(floor).long(), relative - floor
