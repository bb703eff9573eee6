"""The output pixels of a tile: plan of the launch, custom op, checked entry point. Without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from deeplight.kernels import dispatch
from deeplight.kernels.dispatch import Implementation
from deeplight.kernels.finish import reference
from deeplight.kernels.finish.reference import Finish
from deeplight.kernels.interpolation import SCALE
from deeplight.kernels.launch import Launch, arch_of, ceil_div, ready, run
from deeplight.kernels.table import Config, configuration


def plan(
    radiance: Tensor, valid: Tensor | None, how: Finish, out: Tensor, *, config: Config | None = None
) -> Launch:
    """The launch. radiance: (B, 1, H, W) float32. valid: (B, 1, H/8, W/8) uint8 or None. out: as `finish` gives it."""
    (_, _, h, w), (b, _, out_h, out_w) = radiance.shape, out.shape
    config = config or configuration("finish", arch_of(radiance.device), 0, w, 2)
    low, high = how.steps if how.dtype == "uint16" else (0, 0)
    unused = torch.empty(0, dtype=torch.uint8, device=radiance.device)
    return Launch(
        "finish",
        b * out_h * ceil_div(out_w, config.block),
        {
            "radiance": radiance,
            "valid": unused if valid is None else valid,
            "out": out,
            "height": h,
            "width": w,
            "crop": how.crop,
            "scale": float(how.scale),
            "offset": float(how.offset),
            "nodata": float(how.nodata),
        },
        {"HAS_VALID": valid is not None, "LOW": low, "HIGH": high},
        config,
    )


@torch.library.custom_op("deeplight::finish", mutates_args=())
def _op(
    radiance: Tensor,
    valid: Tensor | None,
    crop: int,
    dtype: str,
    scale: float,
    offset: float,
    nodata: float,
) -> Tensor:
    how = Finish(crop, dtype, scale, offset, nodata)
    if not dispatch.operator_runs_kernel(radiance.device):
        return reference.finish(radiance, valid, how).clone()
    out = _output(radiance, how)
    if valid is not None:
        valid = (valid != 0).to(torch.uint8).contiguous()
    run(plan(ready(radiance), valid, how, out))
    return out


def _output(radiance: Tensor, how: Finish) -> Tensor:
    b, _, h, w = radiance.shape
    shape = (b, 1, h - 2 * how.crop, w - 2 * how.crop)
    return torch.empty(shape, dtype=how.torch_dtype, device=radiance.device)


@_op.register_fake
def _(
    radiance: Tensor,
    valid: Tensor | None,
    crop: int,
    dtype: str,
    scale: float,
    offset: float,
    nodata: float,
) -> Tensor:
    return _output(radiance, Finish(crop, dtype, scale, offset, nodata))


def finish(
    radiance: Tensor,
    valid: Tensor | None = None,
    how: Finish | None = None,
    *,
    implementation: Implementation = "auto",
) -> Tensor:
    """What is written of a tile: the halo cut off, uint16 steps where asked for, nodata where `valid` is 0.

    It comes after the network and is no part of an ONNX graph: which halo a tile has, the engine knows.

    radiance: (B, 1, H, W) float32, H and W multiples of 8. valid: (B, 1, H/8, W/8) or None (all is). how: by default
    everything as it is. Returns (B, 1, H − 2·crop, W − 2·crop), float32 or uint16. The reference takes float64 too.

    Raises ValueError, naming the tensor, for shapes, dtypes or devices that do not fit.
    """
    how = how or Finish()
    dispatch.check_shape("finish", "radiance", radiance, (None, 1, None, None))
    b, _, h, w = radiance.shape
    if h % SCALE or w % SCALE or min(h, w) <= 2 * how.crop:
        raise ValueError(
            f"finish: radiance must be multiples of {SCALE} and larger than the crop, not {(h, w)}"
        )
    if valid is not None:
        dispatch.check_shape("finish", "valid", valid, (b, 1, h // SCALE, w // SCALE))
    dispatch.check_together("finish", {"radiance": radiance, "valid": valid}, dtype=False)
    given = [radiance] if valid is None else [radiance, valid]
    if not dispatch.use_kernel("finish", implementation, given, differentiable=False):
        return reference.finish(radiance, valid, how)
    dispatch.check_dtype("finish", "radiance", radiance, (torch.float32,))
    out: Tensor = _op(radiance, valid, how.crop, how.dtype, how.scale, how.offset, how.nodata)
    return out
