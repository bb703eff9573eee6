"""Alignment: plan of the launch, custom operator, checked entry point. No gradient: training uses the reference."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.align import reference
from deeplight.kernels.align.reference import TileMesh
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.interpolation import SCALE
from deeplight.kernels.launch import (
    Launch,
    arch_of,
    ceil_div,
    channels_last,
    like_channels_last,
    next_power,
    ready,
    run,
)
from deeplight.kernels.table import Config, configuration

MAX_BANDS = 31
"""A thread keeps all bands of its pixels and their validity in registers, which limits the bands."""


def plan(
    raw: Tensor,
    gain: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    offset: Tensor | None,
    mesh: TileMesh | None,
    bounds: tuple[float, float],
    out: Tensor,
    config: Config | None = None,
) -> Launch:
    """The launch. raw, out: channels-last; others: contiguous. Without gain and bias `raw` is moved but not scaled."""
    (_, bands, src_h, src_w), (b, channels, h, w) = raw.shape, out.shape
    cp = next_power(channels, least=2)
    config = config or configuration("align", arch_of(raw.device), cp, w, out.itemsize)
    # Triton needs a pointer even for arguments that this launch does not use
    nothing = torch.empty(0, device=raw.device)
    return Launch(
        "align",
        b * h * ceil_div(w, config.block),
        {
            "raw": raw,
            "mask": torch.empty(0, dtype=torch.uint8, device=raw.device) if mask is None else mask,
            "gain": nothing if gain is None else gain,
            "bias": nothing if bias is None else bias,
            "offset": nothing if offset is None else offset,
            "whole": torch.empty(0, dtype=torch.int32, device=raw.device) if mesh is None else mesh.whole,
            "fraction": nothing if mesh is None else mesh.fraction,
            "out": out,
            "height": h,
            "width": w,
            "src_h": src_h,
            "src_w": src_w,
            "nodes_h": 0 if mesh is None else mesh.whole.shape[2],
            "nodes_w": 0 if mesh is None else mesh.whole.shape[3],
            "mesh_row": 0 if mesh is None else mesh.row,
            "mesh_col": 0 if mesh is None else mesh.col,
            "step": 1 if mesh is None else mesh.step,
            "low": float(bounds[0]),
            "high": float(bounds[1]),
        },
        {
            "C": bands if gain is None else gain.shape[1],
            "R": bands,
            "OUT": channels,
            "CP": cp,
            "MASKED": mask is not None,
            "MESH": mesh is not None,
            "OFFSET": offset is not None,
            "PLAIN": gain is None,
        },
        config,
    )


@torch.library.custom_op("deeplight::align", mutates_args=())
def _op(
    raw: Tensor,
    gain: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    offset: Tensor | None,
    whole: Tensor | None,
    fraction: Tensor | None,
    mesh_row: int,
    mesh_col: int,
    step: int,
    height: int,
    width: int,
    low: float,
    high: float,
    dtype: torch.dtype,
) -> Tensor:
    mesh = None
    if whole is not None and fraction is not None:
        mesh = TileMesh(whole, fraction, mesh_row, mesh_col, step)
    if not dispatch.operator_runs_kernel(raw.device):
        out = reference.align(raw, gain, bias, mask, offset, mesh, (height, width), (low, high), dtype)
        return out.contiguous(memory_format=torch.channels_last)
    if mesh is not None:
        mesh = mesh._replace(whole=ready(mesh.whole), fraction=ready(mesh.fraction.float()))
    if (gain is None or bias is None) and (mask is not None or mesh is not None or offset is None):
        gain, bias = _identity(raw)
        low, high = -math.inf, math.inf
    channels = (raw.shape[1] if gain is None else gain.shape[1]) + (mask is not None or mesh is not None)
    out = like_channels_last(raw, raw.shape[0], channels, height, width, dtype=dtype)
    if mask is not None:
        mask = (mask if mask.dtype == torch.uint8 else (mask != 0).to(torch.uint8)).contiguous()
    offset = None if offset is None else ready(offset.float())
    gain, bias = (None if t is None else ready(t.float()) for t in (gain, bias))
    run(plan(channels_last(raw), gain, bias, mask, offset, mesh, (low, high), out))
    return out


@_op.register_fake
def _(
    raw: Tensor,
    gain: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    offset: Tensor | None,
    whole: Tensor | None,
    fraction: Tensor | None,
    mesh_row: int,
    mesh_col: int,
    step: int,
    height: int,
    width: int,
    low: float,
    high: float,
    dtype: torch.dtype,
) -> Any:
    bands = raw.shape[1] if gain is None else gain.shape[1]
    channels = bands + (mask is not None or whole is not None)
    return like_channels_last(raw, raw.shape[0], channels, height, width, dtype=dtype)


def _identity(raw: Tensor) -> tuple[Tensor, Tensor]:
    ones = torch.ones(raw.shape[:2], device=raw.device)
    return ones, torch.zeros_like(ones)


def align(
    raw: Tensor,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    offset: Tensor | None = None,
    mesh: TileMesh | None = None,
    *,
    size: tuple[int, int] | None = None,
    bounds: tuple[float, float] = (-4.0, 8.0),
    dtype: torch.dtype | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Raw pixels on their own grid → normalised features on the HR grid, moved by the network's offset field.

        r(q), v(q) = raw and mask at HR pixel q. Without `mesh`: of the same pixel. With it: Σ w m raw / Σ w m over the
                     four neighbours, and whether Σ w m ≥ ½; outside the raster v = 0
        n(q) = clip(gain·r(q) + bias, bounds) · v(q)
        out(p) = bilinear sample of [n, v] at p + 8·(offset, interpolated linearly), taps clamped to the tile

    This is the same as resampling to the HR grid (`deeplight.engine.raster.warp.Warper`), normalising, and sampling at
    the offset, one after the other; but the kernel reads up to 16 taps for each result and stores nothing in between.
    Multiplying by a constant and adding one commute with the interpolation, so a file's scale and offset and the
    network's standardisation together become one gain and one bias.

    raw: (B, R, h, w), float32, float16, bfloat16, uint8, uint16 or int16 in the file's units: a window of a raster on
    its own grid (with `mesh`) or on the HR grid. It is read 16 bytes at a time if it is channels-last and R·itemsize is
    a multiple of 16. gain, bias: (B, C) with C ≤ R, float32, from the file's units to normalised ones; both 0 for an
    absent band. Both None: all R bands are normalised already and stay as they are, without bounds.
    mask: (B, 1, h, w), valid where it is not 0; values of raw where it is 0 have no influence.
    offset: (B, 2, H/8, W/8), of a floating type, (x, y) in LR pixels. mesh: see TileMesh; it covers the tile.
    size: (H, W) of the tile in HR pixels; the default is (h, w), which is required without a mesh. bounds: lower and
    upper limit of normalised values, with 0 between them. dtype: of the result: float32, float16 or bfloat16; the
    default is raw's dtype if that is a floating type, else float32. The reference takes float64 too.

    Returns (B, C + 1, H, W), whose last channel is v; without mask and mesh (B, C, H, W). A pixel has the same bits in
    every tile and every source window. The kernel takes at most 31 bands and has no gradient: beyond that "auto" takes
    the reference.

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    height, width = size or (raw.shape[2], raw.shape[3])
    _check(raw, gain, bias, mask, offset, mesh, (height, width), bounds)
    if dtype is None:
        dtype = raw.dtype if raw.dtype.is_floating_point else torch.float32
    tensors = [raw, gain, bias, mask, offset]
    bands = raw.shape[1] if gain is None else gain.shape[1]
    limit = None
    if bands > MAX_BANDS:
        limit = f"the kernel takes at most {MAX_BANDS} bands, not {bands}"
    if dtype not in dispatch.ACTIVATIONS:
        limit = f"the kernel's dtype must be float32, float16 or bfloat16, not {dtype}"
    if not dispatch.use_kernel("align", implementation, tensors, differentiable=False, limit=limit):
        return reference.align(raw, gain, bias, mask, offset, mesh, (height, width), bounds, dtype)
    dispatch.check_dtype("align", "raw", raw, (*dispatch.ACTIVATIONS, *dispatch.RAW))
    low, high = bounds
    whole, fraction, row, col, step = mesh or (None, None, 0, 0, 1)
    # an exported operator keeps the type of its input; the cast is a node of its own
    kept = raw.dtype if dispatch.exporting() and raw.dtype.is_floating_point else dtype
    result: Tensor = _op(
        raw, gain, bias, mask, offset, whole, fraction, row, col, step, height, width, low, high, kept
    )
    return result if kept == dtype else result.to(dtype)


def _check(
    raw: Tensor,
    gain: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    offset: Tensor | None,
    mesh: TileMesh | None,
    size: tuple[int, int],
    bounds: tuple[float, float],
) -> None:
    dispatch.check_shape("align", "raw", raw, (None, None, None, None))
    b, bands, h, w = raw.shape
    if (gain is None) != (bias is None):
        raise ValueError("align: give gain and bias together, or neither")
    if gain is not None and bias is not None:
        dispatch.check_shape("align", "gain", gain, (b, None))
        dispatch.check_shape("align", "bias", bias, tuple(gain.shape))
        for name, t in (("gain", gain), ("bias", bias)):
            dispatch.check_dtype("align", name, t, (torch.float32, torch.float64))
        if gain.shape[1] > bands:
            raise ValueError(f"align: gain has {gain.shape[1]} bands, raw only {bands}")
    if not bounds[0] <= 0.0 <= bounds[1]:
        raise ValueError(f"align: bounds must enclose 0, not {bounds}")
    if mask is not None:
        dispatch.check_shape("align", "mask", mask, (b, 1, h, w))
    whole, fraction = (mesh.whole, mesh.fraction) if mesh is not None else (None, None)
    dispatch.check_together(
        "align",
        {"raw": raw, "gain": gain, "bias": bias, "mask": mask, "offset": offset,
         "mesh.whole": whole, "mesh.fraction": fraction},
        dtype=False,
    )  # fmt: skip
    if offset is not None:
        dispatch.check_dtype("align", "offset", offset, (*dispatch.ACTIVATIONS, torch.float64))
    if dispatch.exporting():
        return
    if bands * h * w == 0:
        raise ValueError(f"align: raw must have pixels and bands, not shape {tuple(raw.shape)}")
    if offset is not None:
        if size[0] % SCALE or size[1] % SCALE:
            raise ValueError(f"align: size must be multiples of {SCALE} where there is an offset, not {size}")
        dispatch.check_shape("align", "offset", offset, (b, 2, size[0] // SCALE, size[1] // SCALE))
    if mesh is not None:
        _check_mesh(mesh, b, size)
    elif size != (h, w):
        raise ValueError(f"align: without a mesh, size must be raw's {(h, w)}, not {size}")


def _check_mesh(mesh: TileMesh, batch: int, size: tuple[int, int]) -> None:
    if mesh.step < 1 or mesh.row > 0 or mesh.col > 0:
        raise ValueError(
            f"align: the mesh must start at or before the tile with a step of at least 1, "
            f"not at {(mesh.row, mesh.col)} with step {mesh.step}"
        )
    # the cell of the last pixel ends at a node beyond it
    rows = (size[0] - 1 - mesh.row) // mesh.step + 2
    cols = (size[1] - 1 - mesh.col) // mesh.step + 2
    dispatch.check_shape("align", "mesh.whole", mesh.whole, (batch, 2, None, None))
    dispatch.check_shape("align", "mesh.fraction", mesh.fraction, tuple(mesh.whole.shape))
    dispatch.check_dtype("align", "mesh.whole", mesh.whole, (torch.int32,))
    dispatch.check_dtype("align", "mesh.fraction", mesh.fraction, (torch.float32, torch.float64))
    if mesh.whole.shape[2] < rows or mesh.whole.shape[3] < cols:
        raise ValueError(
            f"align: the mesh has {tuple(mesh.whole.shape[2:])} nodes, a tile of {size} needs ({rows}, {cols})"
        )
