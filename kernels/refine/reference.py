"""Plain PyTorch definition of the last refinement. Everything faster is tested against it. All tensors are NCHW."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Radiance:
    """How normalised NTL n becomes radiance: as unit·expm1(gain·n), clamped to [0, ceiling].

    unit and ceiling are in the input's unit; gain has no unit.
    """

    unit: float = 1.0
    gain: float = 2.0
    ceiling: float = 1e6

    def __post_init__(self) -> None:
        if not (self.unit > 0 and self.gain > 0 and self.ceiling > 0):
            raise ValueError(f"refine: unit, gain and ceiling must be above 0, not {self}")

    @property
    def top(self) -> float:
        """The largest argument of expm1: log1p(ceiling / unit)."""
        return math.log1p(self.ceiling / self.unit)


def residual_block(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x + ReLU(3×3 convolution of x). x: (B, C, H, W). weight: (C, C, 3, 3). bias: (C,)."""
    return x + F.relu(F.conv2d(x, weight, bias, padding=1))


def embed_isp(x: Tensor, weight: Tensor, bias: Tensor, embed: Tensor) -> tuple[Tensor, Tensor]:
    """Return ISP logits (B, 1, H, W) and x + sigmoid(logits)·embed. weight: (1, C, 1, 1). bias: (1,). embed: (C,)."""
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
    range: Radiance,
) -> tuple[Tensor, Tensor]:
    """The last refinement: ISP head with embedding, residual blocks, the NTL residual that is added to its base, and
    the radiance.

    x: (B, C, H, W). level: (B, 1, H, W), the normalised base. isp_weight, residual_weight: (1, C, 1, 1). isp_bias,
    residual_bias: (1,). embed: (C,). weights: (C, C, 3, 3) each, biases: (C,) each.

        s = sigmoid(isp_weight · x + isp_bias);  y = x + s·embed;  y ← y + ReLU(conv(y)) for each block
        n = level + residual_weight · y + residual_bias
        radiance = unit · expm1(clip(gain·n, 0, log1p(ceiling / unit)))

    Returns radiance and s in float32 (or float64), both (B, 1, H, W).
    """
    logits, y = embed_isp(x, isp_weight, isp_bias, embed)
    for weight, bias in zip(weights, biases, strict=True):
        y = residual_block(y, weight, bias)
    work = torch.promote_types(x.dtype, torch.float32)
    value = level.to(work) + F.conv2d(y.to(work), residual_weight.to(work), residual_bias.to(work))
    radiance = torch.expm1((value * range.gain).clamp(0.0, range.top)) * range.unit
    return radiance, torch.sigmoid(logits).to(work)
