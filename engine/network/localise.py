"""Calibration-aware alignment: how far the auxiliary lies from the lights."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplight.engine.network.config import ModelConfig
from deeplight.engine.network.normalise import softplus

SHIFT_RADIUS = 2
WINDOW_RADIUS = 7
VARIANCE_FLOOR = 1e-3
"""Added to variances of log radiance before dividing or taking logs: noise in the dark is no structure."""


class Localise(nn.Module):
    """Calibration-aware alignment: a dense offset field from the NTL and the auxiliary.

    The auxiliary is turned, pixel by pixel, into the lights it suggests: impervious share at ×4, its area mean at ×1
    together with the bands' means, then a log radiance. These lights, moved by each of the 81 shifts on a half-pixel
    lattice within ±2 LR pixels, are fitted to the NTL over a tapered 23×23 window with a free gain and level, so that
    a town's brightness does not matter. The estimate is the mean shift under the posterior
    exp(−sharpness · residual variance − prior · |shift|²): where nothing can be seen the prior holds it at 0, and
    along a lone road only the shift across it is decided. A small pointwise correction follows.
    """

    shift_xy: Tensor
    shifts: Tensor
    window: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, shifts = config.localise_width, (4 * SHIFT_RADIUS + 1) ** 2
        self.impervious = _pointwise_layers(10, 32, 32, 1)
        self.lights = _pointwise_layers(11, width, width, 1)
        self.certainty = _pointwise_layers(3, 16, 1)
        self.correct = _pointwise_layers(shifts + 3, width, width, 2)
        for layer in (self.certainty[-1], self.correct[-1]):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.sharpness = nn.Parameter(torch.tensor(4.0))
        self.prior = nn.Parameter(torch.tensor(-1.2))
        self.d_max = config.d_max
        self.align = config.align
        xy, kernels_ = _half_pixel_shifts()
        self.register_buffer("shift_xy", xy)
        self.register_buffer("shifts", kernels_)
        line = torch.hann_window(2 * WINDOW_RADIUS + 3, periodic=False)[1:-1].sqrt()
        self.register_buffer("window", line / line.sum())

    def forward(self, ntl: Tensor, aux: Tensor) -> Tensor:
        """ntl: (B,1,h,w); aux: (B,10,4h,4w), both normalised. Returns (B,2,h,w), (x, y) in LR px, |·| ≤ d_max."""
        if not self.align:
            return torch.zeros_like(ntl).repeat(1, 2, 1, 1)
        residual, state = self._residuals(ntl, self.suggested(aux)[0])
        sharpness = torch.exp(self.sharpness + 2.0 * torch.tanh(_pointwise(self.certainty, state)))
        distance = (self.shift_xy * self.shift_xy).sum(dim=0, keepdim=True).reshape(1, -1, 1, 1)
        share = _softmax(-sharpness * residual - torch.exp(self.prior) * distance)
        offset = F.conv2d(share, self.shift_xy) + _pointwise(
            self.correct, torch.cat([share * 5.0, state], dim=1)
        )
        # scaled tanh: the identity near 0, never beyond d_max
        return self.d_max * torch.tanh(offset * (1.0 / self.d_max))

    def suggested(self, aux: Tensor) -> tuple[Tensor, Tensor]:
        """aux: (B,10,4h,4w). Returns the lights it suggests (B,1,h,w), normalised, and ISP logits (B,1,4h,4w)."""
        logits = _pointwise(self.impervious, aux)
        both = F.avg_pool2d(torch.cat([torch.sigmoid(logits), aux], dim=1), 4)
        radiance = softplus(_pointwise(self.lights, both))
        return torch.log1p(radiance) * 0.5, logits

    def _residuals(self, ntl: Tensor, lights: Tensor) -> tuple[Tensor, Tensor]:
        """Residual variance per shift (B,81,h,w), and what it was made of (B,3,h,w): two log variances, the mean."""
        moved = self._move(lights)
        mean, moved_mean = self._mean(ntl), self._move(self._mean(lights))
        variance = (self._mean(ntl * ntl) - mean * mean).clamp(min=0.0)
        moved_variance = (self._mean(moved * moved) - moved_mean * moved_mean).clamp(min=0.0)
        covariance = self._mean(ntl * moved) - mean * moved_mean
        gain = (covariance / (moved_variance + VARIANCE_FLOOR)).clamp(0.0, 3.0)
        residual = variance + gain * (gain * moved_variance - 2.0 * covariance)
        # the smallest as −max(−x): exporters know a maximum over channels
        best = -torch.amax(-residual, dim=1, keepdim=True)
        logs = [torch.log(v.clamp(min=0.0) + VARIANCE_FLOOR) for v in (variance, best)]
        return residual, torch.cat([*logs, mean], dim=1)

    def _move(self, x: Tensor) -> Tensor:
        """(B,1,h,w) → (B,81,h,w): x(p + shift) for every shift, linear between pixels, edges repeated."""
        return F.conv2d(F.pad(x, (SHIFT_RADIUS,) * 4, mode="replicate"), self.shifts)

    def _mean(self, x: Tensor) -> Tensor:
        """Mean of each channel over the tapered window, edges repeated."""
        c, n = x.shape[1], 2 * WINDOW_RADIUS + 1
        padded = F.pad(x, (WINDOW_RADIUS,) * 4, mode="replicate")
        rows = F.conv2d(padded, self.window.reshape(1, 1, n, 1).repeat(c, 1, 1, 1), groups=c)
        return F.conv2d(rows, self.window.reshape(1, 1, 1, n).repeat(c, 1, 1, 1), groups=c)


def _half_pixel_shifts() -> tuple[Tensor, Tensor]:
    """Shifts (2,81,1,1) as (x, y) within ±SHIFT_RADIUS in steps of ½, and the kernels (81,1,K,K) that sample there."""
    n = 4 * SHIFT_RADIUS + 1
    at = torch.linspace(-SHIFT_RADIUS, SHIFT_RADIUS, n)
    taps = torch.arange(-SHIFT_RADIUS, SHIFT_RADIUS + 1, dtype=torch.float32)
    line = (1.0 - (at[:, None] - taps[None, :]).abs()).clamp(min=0.0)
    y, x = torch.meshgrid(at, at, indexing="ij")
    sampling = (line[:, None, :, None] * line[None, :, None, :]).reshape(n * n, 1, len(taps), len(taps))
    return torch.stack([x, y]).reshape(2, n * n, 1, 1), sampling


def _softmax(x: Tensor) -> Tensor:
    """Over the channels, written out: runtimes transpose twice for theirs."""
    grown = torch.exp(x - torch.amax(x, dim=1, keepdim=True))
    return grown / grown.sum(dim=1, keepdim=True)


def _pointwise_layers(*channels: int) -> nn.ModuleList:
    """1×1 convolutions through these channel counts."""
    return nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(channels))


def _pointwise(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """1×1 convolutions with ReLU between them."""
    for layer in layers[:-1]:
        x = F.relu(layer(x))
    out: Tensor = layers[-1](x)
    return out
