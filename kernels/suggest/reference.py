"""Plain PyTorch definition of the suggested lights. Everything faster is tested against it. All tensors are NCHW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.kernels.locate.reference import Layer, pointwise

CELL = 4
"""How many auxiliary pixels along each axis make one result."""


def suggest(aux: Tensor, impervious: Sequence[Layer], lights: Sequence[Layer]) -> tuple[Tensor, Tensor]:
    """aux: (B, C, 4h, 4w). Returns the suggested lights (B, 1, h, w), log radiance, and ISP logits (B, 1, 4h, 4w).

    impervious: pointwise layers C → 1, applied at ×4. lights: pointwise layers C + 1 → 1, applied at ×1 to the means of
    the impervious share and of aux.
    """
    logits = pointwise(impervious, aux)
    both = F.avg_pool2d(torch.cat([torch.sigmoid(logits), aux], dim=1), CELL)
    radiance = softplus(pointwise(lights, both))
    return torch.log1p(radiance) * 0.5, logits


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ), written out because exporters turn PyTorch's softplus into a selection. Up to 80 eˣ is finite."""
    return torch.log1p(torch.exp(x.clamp(max=80.0)))
