"""Plain PyTorch definition of the offset's estimate. Everything faster is tested against it. All tensors are NCHW."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

VARIANCE_FLOOR = 1e-3
"""Added to variances of log radiance before divisions and logarithms, so that noise in the dark is not taken for
structure."""
GAIN_LIMIT = 3.0
SHARE_SCALE = 5.0
"""Factor of the shares that the correction's layers read."""

Layer = tuple[Tensor, Tensor]
"""Weight (O, I, 1, 1) and bias (O,) of a pointwise layer."""


class Weights(NamedTuple):
    """Learnt parameters of the estimate. sharpness, prior: logarithms, (). certainty, correct: layers joined by ReLU.

    certainty: 3 → 1 channels. correct: n² + 3 → 2.
    """

    sharpness: Tensor
    prior: Tensor
    certainty: Sequence[Layer]
    correct: Sequence[Layer]


def half_pixel_shifts(radius: int) -> tuple[Tensor, Tensor]:
    """Shifts (2, n², 1, 1), (x, y) within ±radius in steps of ½, and kernels (n², 1, K, K) that sample an image there.

    n = 4·radius + 1, K = 2·radius + 1.
    """
    n = 4 * radius + 1
    at = torch.linspace(-radius, radius, n)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    line = (1.0 - (at[:, None] - taps[None, :]).abs()).clamp(min=0.0)
    y, x = torch.meshgrid(at, at, indexing="ij")
    sampling = (line[:, None, :, None] * line[None, :, None, :]).reshape(n * n, 1, len(taps), len(taps))
    return torch.stack([x, y]).reshape(2, n * n, 1, 1), sampling


def locate(
    ntl: Tensor,
    lights: Tensor,
    window: Tensor,
    shifts: Tensor,
    shift_xy: Tensor,
    weights: Weights,
    d_max: float,
) -> Tensor:
    """The shift (B, 2, h, w), (x, y) in pixels and |·| ≤ d_max, that moves `lights` onto `ntl`; both are (B, 1, h, w).

    window: (W,), W odd: weights of the separable window along one axis. shift_xy, shifts: from `half_pixel_shifts`.
    """
    moved = move(lights, shifts)
    mean, moved_mean = window_mean(ntl, window), move(window_mean(lights, window), shifts)
    variance = (window_mean(ntl * ntl, window) - mean * mean).clamp(min=0.0)
    residual = residuals(ntl, moved, mean, variance, moved_mean, window)
    return posterior(residual, mean, variance, shift_xy, weights, d_max)


def residuals(
    ntl: Tensor, moved: Tensor, mean: Tensor, variance: Tensor, moved_mean: Tensor, window: Tensor
) -> Tensor:
    """The variance of ntl (B,n²,h,w) that the lights at each shift do not explain, with the best gain and level in each
    window.

    ntl: (B,1,h,w). mean, variance: of ntl in the window. moved: lights at each shift (B,n²,h,w). moved_mean: the window
    mean of the lights, moved.
    """
    moved_variance = (window_mean(moved * moved, window) - moved_mean * moved_mean).clamp(min=0.0)
    covariance = window_mean(ntl * moved, window) - mean * moved_mean
    gain = (covariance / (moved_variance + VARIANCE_FLOOR)).clamp(0.0, GAIN_LIMIT)
    return variance + gain * (gain * moved_variance - 2.0 * covariance)


def posterior(
    residual: Tensor, mean: Tensor, variance: Tensor, shift_xy: Tensor, weights: Weights, d_max: float
) -> Tensor:
    """The mean shift weighted by exp(−sharpness · residual − prior · |shift|²), corrected. residual: (B,n²,h,w)."""
    # the smallest is −max(−x), since exporters know a maximum over channels
    best = -torch.amax(-residual, dim=1, keepdim=True)
    logs = [torch.log(v.clamp(min=0.0) + VARIANCE_FLOOR) for v in (variance, best)]
    state = torch.cat([*logs, mean], dim=1)
    sharpness = torch.exp(weights.sharpness + 2.0 * torch.tanh(pointwise(weights.certainty, state)))
    distance = (shift_xy * shift_xy).sum(dim=0, keepdim=True).reshape(1, -1, 1, 1)
    share = _softmax(-sharpness * residual - torch.exp(weights.prior) * distance)
    offset = F.conv2d(share, shift_xy) + pointwise(
        weights.correct, torch.cat([share * SHARE_SCALE, state], dim=1)
    )
    # the scaled tanh is nearly the identity around 0 and never exceeds d_max
    return d_max * torch.tanh(offset * (1.0 / d_max))


def move(x: Tensor, shifts: Tensor) -> Tensor:
    """x(p + shift) for every shift: (B,1,h,w) → (B,n²,h,w), interpolated linearly with repeated edges."""
    radius = shifts.shape[-1] // 2
    return F.conv2d(F.pad(x, (radius,) * 4, mode="replicate"), shifts)


def window_mean(x: Tensor, window: Tensor) -> Tensor:
    """Mean of each channel over the tapered window; edges are repeated."""
    c, n = x.shape[1], window.shape[0]
    padded = F.pad(x, (n // 2,) * 4, mode="replicate")
    rows = F.conv2d(padded, window.reshape(1, 1, n, 1).repeat(c, 1, 1, 1), groups=c)
    return F.conv2d(rows, window.reshape(1, 1, 1, n).repeat(c, 1, 1, 1), groups=c)


def pointwise(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Apply 1×1 convolutions with ReLU between them."""
    for weight, bias in layers[:-1]:
        x = F.relu(F.conv2d(x, weight, bias))
    return F.conv2d(x, *layers[-1])


def _softmax(x: Tensor) -> Tensor:
    """Softmax over the channels. It is written out, because the softmax of runtimes transposes its input twice."""
    grown = torch.exp(x - torch.amax(x, dim=1, keepdim=True))
    return grown / grown.sum(dim=1, keepdim=True)
