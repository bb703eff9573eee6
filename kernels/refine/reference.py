"""Plain PyTorch definition of the network's end. Everything faster is tested against it. All tensors are NCHW."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.kernels.interpolation import SCALE, interpolation_kernel, resize_fixed


@dataclass(frozen=True)
class Finish:
    """How normalised NTL becomes output pixels.

    unit, gain, ceiling: radiance = unit·expm1(gain·n), clamped to [0, ceiling]. crop: HR pixels of halo cut from each
    side. dtype: "float32", or "uint16" for round((radiance − offset) / scale), clamped beside `nodata` (0 or 65535).
    """

    unit: float = 1.0
    gain: float = 2.0
    ceiling: float = 1e6
    crop: int = 0
    dtype: str = "float32"
    scale: float = 1.0
    offset: float = 0.0
    nodata: float = math.nan

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "uint16"):
            raise ValueError(f"dtype must be 'float32' or 'uint16', not {self.dtype!r}")
        if self.dtype == "uint16" and self.nodata not in (0, 65535):
            raise ValueError(f"nodata of uint16 must be 0 or 65535, not {self.nodata}")
        if not (self.unit > 0 and self.gain > 0 and self.ceiling > 0 and self.scale > 0 and self.crop >= 0):
            raise ValueError(f"unit, gain, ceiling and scale must be above 0 and crop at least 0: {self}")

    @property
    def top(self) -> float:
        """log1p of the ceiling in units: where the argument of expm1 is clamped."""
        return math.log1p(self.ceiling / self.unit)

    @property
    def steps(self) -> tuple[int, int]:
        """Lowest and highest uint16 value beside nodata."""
        return (1, 65535) if self.nodata == 0 else (0, 65534)


def residual_block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x + ReLU(3×3 convolution of x). x: (B, C, H, W). weight: (C, C, 3, 3). bias: (C,)."""
    return x + F.relu(F.conv2d(x, weight, bias, padding=1))


def embed_isp(x: Tensor, weight: Tensor, bias: Tensor, embed: Tensor) -> tuple[Tensor, Tensor]:
    """ISP logits (B, 1, H, W), and x + sigmoid(logits)·embed. weight: (1, C, 1, 1). bias: (1,). embed: (C,)."""
    logits = F.conv2d(x, weight, bias)
    return logits, x + torch.sigmoid(logits) * embed[None, :, None, None]


def refine(
    x: Tensor,
    level: Tensor,
    isp_weight: Tensor,
    isp_bias: Tensor,
    embed: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    residual_weight: Tensor,
    residual_bias: Tensor,
    valid: Tensor | None,
    finish: Finish,
) -> tuple[Tensor, Tensor]:
    """The end of the network: ISP head and embedding, residual blocks, NTL residual, output pixels.

    x: (B, C, H, W). level: (B, 1, H/2, W/2), the previous output, normalised. isp_weight, residual_weight:
    (1, C, 1, 1). isp_bias, residual_bias: (1,). embed: (C,). weights: (C, C, 3, 3) each, biases: (C,) each.
    valid: (B, 1, H/8, W/8), 0 where the output is nodata.

        s = sigmoid(isp_weight · x + isp_bias);  y = x + s·embed;  y ← y + ReLU(conv(y)) for each block
        n = cubic ×2 of level + residual_weight · y + residual_bias
        radiance = unit · expm1(clip(gain·n, 0, log1p(ceiling / unit)))

    Returns radiance in `finish.dtype` and s in float32 (or float64), both (B, 1, H − 2·crop, W − 2·crop).
    """
    logits, y = embed_isp(x, isp_weight, isp_bias, embed)
    for weight, bias in zip(weights, biases, strict=True):
        y = residual_block(y, weight, bias)
    base = resize_fixed(level, interpolation_kernel(2, "cubic").to(level), 2)
    value = base + F.conv2d(y, residual_weight, residual_bias)
    radiance = torch.expm1((value * finish.gain).clamp(0.0, finish.top)) * finish.unit
    isp = torch.sigmoid(logits)
    if finish.crop:
        inner = (..., slice(finish.crop, -finish.crop), slice(finish.crop, -finish.crop))
        radiance, isp = radiance[inner], isp[inner]
    work = torch.promote_types(isp.dtype, torch.float32)
    return _to_pixels(radiance.to(work), valid, finish), isp.to(work)


def _to_pixels(radiance: Tensor, valid: Tensor | None, finish: Finish) -> Tensor:
    """Quantised where asked for, nodata where LR pixels are invalid."""
    if finish.dtype == "uint16":
        low, high = finish.steps
        radiance = torch.round((radiance - finish.offset) * (1.0 / finish.scale)).clamp(low, high)
    if valid is not None:
        known = valid.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3) != 0
        if finish.crop:
            known = known[..., finish.crop : -finish.crop, finish.crop : -finish.crop]
        radiance = torch.where(known, radiance, finish.nodata)
    return radiance.to(torch.int32).to(torch.uint16) if finish.dtype == "uint16" else radiance
