"""Output pixels: plan of the launch, checked entry point. There is no gradient, since it ends inference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.finish import reference
from deeplight.kernels.finish.reference import Pixels
from deeplight.kernels.interpolation import SCALE
from deeplight.kernels.launch import Launch, arch_of, ceil_div, run
from deeplight.kernels.table import Config, configuration


def plan(
    radiance: Tensor,
    valid: Tensor,
    out: Tensor,
    halves: Tensor | None,
    corner: tuple[int, int],
    pixels: Pixels,
    config: Config | None = None,
) -> Launch:
    """The launch for contiguous tensors that start on 16-byte boundaries."""
    (high, wide), (bands, tall, broad) = valid.shape, out.shape
    rows, cols = tall // SCALE, broad // SCALE
    # itemsize 2: no features are read, so that a measured configuration is right for all types
    config = config or configuration("finish", arch_of(radiance.device), 0, broad, 2)
    low, highest = pixels.steps if pixels.integer else (0, 0)
    return Launch(
        "finish",
        bands * (tall // 2) * ceil_div(broad, config.block),
        {
            "radiance": radiance,
            "valid": valid,
            "pixels": out,
            "halves": radiance if halves is None else halves,
            "high": high,
            "wide": wide,
            "row": corner[0],
            "col": corner[1],
            "rows": rows,
            "cols": cols,
            "nodata": float(pixels.nodata),
        },
        {
            "STEPS": pixels.integer,
            "SCALE": float(pixels.scale) if pixels.integer else 1.0,
            "OFFSET": float(pixels.offset) if pixels.integer else 0.0,
            "LOW": low,
            "HIGH": highest,
            "NODATA": int(pixels.nodata) if pixels.integer else 0,
        },
        config,
    )


def finish(
    radiance: Tensor,
    valid: Tensor,
    out: Tensor,
    halves: Tensor | None = None,
    *,
    corner: tuple[int, int] = (0, 0),
    scale: float = 1.0,
    offset: float = 0.0,
    nodata: float = math.nan,
    implementation: Implementation = "auto",
) -> None:
    """Write the output pixels of a part of a tile: nodata where the input has no data, and steps for uint16.

        step = clip(round((radiance − offset) / scale), the steps that are left beside nodata), in float64

    radiance: (bands, 8H, 8W), float32, in the input's unit. valid: (H, W), float32, 0 = nodata; NaN in `radiance`
    becomes nodata too. corner: LR row and column where the part begins. All tensors are contiguous.
    out: is written, (bands, 8h, 8w): float32, which keeps the radiance, or uint16, with scale and offset in the
    input's unit and `nodata` 0 or 65535. halves: is written, (bands, 4h, 4w), float32: means of the radiance over
    2 × 2 pixels, NaN = nodata, from which overviews are made. It is given with uint16 and only then, since overviews
    cannot be made from steps.

    It is not for torch.compile or export, since the place in a tile varies and memory is the caller's. It has no
    gradient: where one is needed, "auto" takes the reference. Raises ValueError, naming the argument, for what does
    not fit.
    """
    pixels = Pixels("uint16" if out.dtype == torch.uint16 else "float32", scale, offset, nodata)
    _check(radiance, valid, out, halves, corner)
    tensors = [radiance, valid]
    if not dispatch.use_kernel("finish", implementation, tensors, differentiable=False, exported=False):
        reference.finish(radiance, valid, out, halves, corner, pixels)
    else:
        run(plan(radiance, valid, out, halves, corner, pixels))


def _check(
    radiance: Tensor, valid: Tensor, out: Tensor, halves: Tensor | None, corner: tuple[int, int]
) -> None:
    dispatch.check_shape("finish", "valid", valid, (None, None))
    high, wide = valid.shape
    dispatch.check_shape("finish", "radiance", radiance, (None, SCALE * high, SCALE * wide))
    bands = radiance.shape[0]
    dispatch.check_shape("finish", "out", out, (bands, None, None))
    for name, tensor in (("radiance", radiance), ("valid", valid), ("halves", halves)):
        if tensor is not None:
            dispatch.check_dtype("finish", name, tensor, (torch.float32,))
    dispatch.check_dtype("finish", "out", out, (torch.float32, torch.uint16))
    tall, broad = out.shape[1:]
    ends = [at + length / SCALE for at, length in zip(corner, (tall, broad), strict=True)]
    if tall % SCALE or broad % SCALE or min(corner) < 0 or ends[0] > high or ends[1] > wide:
        raise ValueError(
            f"finish: out must be a part of the {high} × {wide} LR pixels, of whole ones, not {tall} × {broad} pixels "
            f"from LR pixel {corner[0]}, {corner[1]}"
        )
    if (halves is None) != (out.dtype == torch.float32):
        raise ValueError("finish: halves must be given with an out of uint16, and only then")
    if halves is not None:
        dispatch.check_shape("finish", "halves", halves, (bands, tall // 2, broad // 2))
    tensors = {"radiance": radiance, "valid": valid, "out": out, "halves": halves}
    dispatch.check_together("finish", tensors, dtype=False)
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"finish: {name} must be contiguous")
