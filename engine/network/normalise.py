"""Physical units ↔ the network's domain."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deeplight.engine.network.config import Normalisation

BOUNDS = (-4.0, 8.0)
"""Of standardised bands and elevation: clouds and glint must not leave the trained range."""


class Normalise(nn.Module):
    """Physical units ↔ the network's domain, with constants kept as buffers so that every artifact carries them."""

    dmo_mean: Tensor
    dmo_std: Tensor

    def __init__(self, norm: Normalisation) -> None:
        super().__init__()
        self.unit, self.gain = norm.ntl_unit, norm.ntl_gain
        self.ceiling = norm.ntl_max
        self.register_buffer("dmo_mean", torch.tensor(norm.dmo_mean).reshape(1, -1, 1, 1))
        self.register_buffer("dmo_std", torch.tensor(norm.dmo_std).reshape(1, -1, 1, 1))
        self.dem_mean, self.dem_std = norm.dem_mean, norm.dem_std

    def ntl(self, radiance: Tensor) -> Tensor:
        """log1p of the radiance, negatives (noise) clamped to 0."""
        return torch.log1p(radiance.clamp(0.0, self.ceiling) / self.unit) / self.gain

    def radiance(self, value: Tensor) -> Tensor:
        """Inverse of `ntl`, ≥ 0. Clamped above too, so that no weight can make an infinity."""
        top = math.log1p(self.ceiling / self.unit)
        return torch.expm1((value * self.gain).clamp(0.0, top)) * self.unit

    def dmo(self, reflectance: Tensor) -> Tensor:
        """Standardised bands, within BOUNDS."""
        return ((reflectance - self.dmo_mean) / self.dmo_std).clamp(*BOUNDS)

    def dem(self, metres: Tensor) -> Tensor:
        """Standardised elevation, within BOUNDS."""
        return ((metres - self.dem_mean) / self.dem_std).clamp(*BOUNDS)

    def lines(self) -> dict[str, list[tuple[float, float]]]:
        """For each channel of "dmo" and "dem" the slope and intercept with which its physical value becomes a
        standardised one, before BOUNDS."""
        pairs = zip(self.dmo_mean.flatten().tolist(), self.dmo_std.flatten().tolist(), strict=True)
        return {
            "dmo": [(1.0 / std, -mean / std) for mean, std in pairs],
            "dem": [(1.0 / self.dem_std, -self.dem_mean / self.dem_std)],
        }
