"""Output pixels: plan of the launch, custom op, checked entry point. Without a gradient: it ends inference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.finish import reference
from deeplight.kernels.finish.reference import Pixels
from deeplight.kernels.interpolation import SCALE
from deeplight.kernels.launch import Launch, arch_of, ceil_div, ready, run
from deeplight.kernels.table import Config, configuration


def plan(
    radiance: Tensor, valid: Tensor, pixels: Pixels, out: Tensor, config: Config | None = None
) -> Launch:
    """The launch for contiguous radiance and uint8 `valid`."""
    (_, _, h, w), (b, _, out_h, out_w) = radiance.shape, out.shape
    # 2: it reads no features, so a measured configuration holds for all
    config = config or configuration("finish", arch_of(radiance.device), 0, w, 2)
    low, high = pixels.steps
    return Launch(
        "finish",
        b * out_h * ceil_div(out_w, config.block),
        {
            "radiance": radiance,
            "valid": valid,
            "pixels": out,
            "height": h,
            "width": w,
            "crop": pixels.crop,
            "per_unit": 1.0 / pixels.scale,
            "offset": float(pixels.offset),
            "nodata": float(pixels.nodata),
            "low": float(low),
            "high": float(high),
        },
        {"INTEGER": pixels.integer},
        config,
    )


@torch.library.custom_op("deeplight::finish", mutates_args=())
def _op(
    radiance: Tensor, valid: Tensor, crop: int, dtype: str, scale: float, offset: float, nodata: float
) -> Tensor:
    pixels = Pixels(crop, dtype, scale, offset, nodata)
    if not dispatch.operator_runs_kernel(radiance.device):
        return reference.finish(radiance, valid, pixels).contiguous()
    out = _empty(radiance, pixels)
    known = (valid != 0).to(torch.uint8).contiguous()
    run(plan(ready(radiance), known, pixels, out))
    return out


def _empty(radiance: Tensor, pixels: Pixels) -> Tensor:
    b, _, h, w = radiance.shape
    kind = torch.uint16 if pixels.integer else torch.float32
    return torch.empty((b, 1, h - 2 * pixels.crop, w - 2 * pixels.crop), dtype=kind, device=radiance.device)


@_op.register_fake
def _(
    radiance: Tensor, valid: Tensor, crop: int, dtype: str, scale: float, offset: float, nodata: float
) -> Tensor:
    return _empty(radiance, Pixels(crop, dtype, scale, offset, nodata))


def finish(
    radiance: Tensor,
    valid: Tensor,
    *,
    crop: int = 0,
    dtype: str = "float32",
    scale: float = 1.0,
    offset: float = 0.0,
    nodata: float = math.nan,
    implementation: Implementation = "auto",
) -> Tensor:
    """Output pixels: the halo cut off, nodata where the input has none, steps of uint16 where asked for.

        step = clip(round((radiance − offset) / scale), the steps that are left beside nodata)

    radiance: (B, 1, H, W), float32, H and W multiples of 8, in the input's unit. valid: (B, 1, H/8, W/8) of any type,
    0 = nodata; NaN in `radiance` becomes nodata too. crop: HR pixels of halo on each side. dtype: "float32", which
    keeps the radiance, or "uint16" with scale and offset in the input's unit and `nodata` 0 or 65535.

    Returns (B, 1, H − 2·crop, W − 2·crop) of `dtype`. No gradient: where one is needed, "auto" takes the reference.
    It is not in the exported graph and has no ONNX body: the engine cuts and encodes tiles itself on a CPU.

    Raises ValueError, naming the argument, for shapes, dtypes, devices or values that do not fit.
    """
    pixels = Pixels(crop, dtype, scale, offset, nodata)
    dispatch.check_shape("finish", "radiance", radiance, (None, 1, None, None))
    b, _, h, w = radiance.shape
    dispatch.check_dtype("finish", "radiance", radiance, (torch.float32,))
    if h % SCALE or w % SCALE or min(h, w) <= 2 * crop:
        raise ValueError(
            f"finish: height and width of radiance must be multiples of {SCALE} above twice the crop of {crop}, "
            f"not {h} and {w}"
        )
    dispatch.check_shape("finish", "valid", valid, (b, 1, h // SCALE, w // SCALE))
    dispatch.check_together("finish", {"radiance": radiance, "valid": valid}, dtype=False)
    if not dispatch.use_kernel("finish", implementation, [radiance, valid], differentiable=False):
        return reference.finish(radiance, valid, pixels)
    result: Tensor = _op(radiance, valid, crop, dtype, float(scale), float(offset), float(nodata))
    return result
