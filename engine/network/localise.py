"""Calibration-aware alignment: how far the auxiliary lies from the lights."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from deeplight import kernels
from deeplight.engine.network.config import ModelConfig
from deeplight.kernels.suggest.reference import suggest

SHIFT_RADIUS = 2
WINDOW_RADIUS = 7


class Localise(nn.Module):
    """Calibration-aware alignment: a dense offset field from the NTL and the auxiliary.

    The auxiliary is turned, pixel by pixel, into the lights it suggests: impervious share at ×4, its area mean at ×1
    together with the bands' means, then a log radiance. These lights, moved by each of the 81 shifts on a half-pixel
    lattice within ±2 LR pixels, are fitted to the NTL over a tapered 15×15 window with a free gain and level, so that
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
        xy, sampling = kernels.half_pixel_shifts(SHIFT_RADIUS)
        self.register_buffer("shift_xy", xy)
        self.register_buffer("shifts", sampling)
        line = torch.hann_window(2 * WINDOW_RADIUS + 3, periodic=False)[1:-1].sqrt()
        self.register_buffer("window", line / line.sum())

    def forward(self, ntl: Tensor, aux: Tensor) -> Tensor:
        """ntl: (B,1,h,w); aux: (B,10,4h,4w), both normalised. Returns (B,2,h,w), (x, y) in LR px, |·| ≤ d_max."""
        if not self.align:
            return torch.zeros_like(ntl).repeat(1, 2, 1, 1)
        return self.offset(ntl, self.suggest(aux))

    def offset(self, ntl: Tensor, lights: Tensor) -> Tensor:
        """The same from the lights (B,1,h,w) that `suggest` made of the auxiliary."""
        weights = kernels.LocateWeights(
            self.sharpness, self.prior, _layers(self.certainty), _layers(self.correct)
        )
        return kernels.locate(ntl, lights, self.window, self.shifts, self.shift_xy, weights, self.d_max)

    def suggest(self, aux: Tensor) -> Tensor:
        """aux: (B,10,4h,4w). Returns the lights it suggests (B,1,h,w), normalised."""
        return kernels.suggest(aux, _layers(self.impervious), _layers(self.lights))

    def suggested(self, aux: Tensor) -> tuple[Tensor, Tensor]:
        """aux: (B,10,4h,4w). Returns the lights it suggests (B,1,h,w), normalised, and ISP logits (B,1,4h,4w)."""
        return suggest(aux, _layers(self.impervious), _layers(self.lights))


def _pointwise_layers(*channels: int) -> nn.ModuleList:
    """1×1 convolutions through these channel counts."""
    return nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(channels))


def _layers(modules: nn.ModuleList) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of pointwise layers."""
    return [(layer.weight, layer.bias) for layer in modules]  # type: ignore[misc]
