"""The training objective: α Σ_j β_j mean|N_j − N_H,j| + (1 − α) mean_j BCE(ISP head_j), and its optional terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.train.model import DeepLightSR, Prediction


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the objective.

    alpha: share of the radiance term. beta: weights of the outputs at ×2, ×4, ×8.
    consistency: weight of |log mean(output) − log mean(truth)| over 8×8 blocks; keeps sums of lights, which a mean
    absolute error in the log domain alone would lower (it estimates a median).
    squared: weight of the mean squared error of the finest output, whose optimum is the mean (of log radiance) rather
    than the median: what reflectance does not tell, such as a block's lamps, is then spread evenly and PSNR rises.
    totals: weight of each crop's relative error in its sum of lights (physical units).
    offset: weight of the offset's error where the true field is known (synthetic data only).
    literal_isp: BCE between the normalised radiance and ISP, as the paper prints it; for ablation only, since it
    raises the radiance of every impervious pixel.
    """

    alpha: float = 0.8
    beta: tuple[float, float, float] = (0.25, 0.5, 1.0)
    consistency: float = 0.2
    squared: float = 4.0
    totals: float = 0.0
    offset: float = 0.1
    literal_isp: bool = False


@dataclass(frozen=True)
class Truth:
    """Supervision. ntl_hr, isp: (B,1,8h,8w). weight: (B,1,h,w), 0 where no loss is wanted. offset: (B,2,h,w)."""

    ntl_hr: Tensor
    isp: Tensor
    weight: Tensor
    offset: Tensor | None = None


def objective(
    model: DeepLightSR, prediction: Prediction, truth: Truth, config: ObjectiveConfig
) -> tuple[Tensor, dict[str, float]]:
    """The loss (scalar) and its parts as plain numbers, all in the normalised (log) domain."""
    radiance = torch.zeros((), device=truth.ntl_hr.device)
    impervious = torch.zeros_like(radiance)
    for level, (value, logits) in enumerate(zip(prediction.ntl, prediction.isp_logits, strict=True)):
        down = 4 >> level
        target = model.normalise.ntl(_area_mean(truth.ntl_hr, down))
        fraction = _area_mean(truth.isp, down)
        weight = F.interpolate(truth.weight, scale_factor=2 << level, mode="nearest")
        radiance = radiance + config.beta[level] * _mean((value - target).abs(), weight)
        bce = (
            F.binary_cross_entropy(value.clamp(0.0, 1.0), fraction, reduction="none")
            if config.literal_isp
            else F.binary_cross_entropy_with_logits(logits, fraction, reduction="none")
        )
        impervious = impervious + _mean(bce, weight) / 3.0
    parts = {"radiance": radiance, "isp": impervious}
    loss = config.alpha * radiance + (1.0 - config.alpha) * impervious
    if config.consistency > 0:
        mean_out = F.avg_pool2d(model.normalise.radiance(prediction.ntl[-1]), 8)
        gap = model.normalise.ntl(mean_out) - model.normalise.ntl(F.avg_pool2d(truth.ntl_hr, 8))
        parts["consistency"] = _mean(gap.abs(), truth.weight)
        loss = loss + config.consistency * parts["consistency"]
    if config.squared > 0:
        weight = F.interpolate(truth.weight, scale_factor=8, mode="nearest")
        parts["squared"] = _mean((prediction.ntl[-1] - model.normalise.ntl(truth.ntl_hr)) ** 2, weight)
        loss = loss + config.squared * parts["squared"]
    if config.totals > 0:
        parts["totals"] = _totals_error(model.normalise.radiance(prediction.ntl[-1]), truth)
        loss = loss + config.totals * parts["totals"]
    if config.offset > 0 and truth.offset is not None:
        light = F.avg_pool2d(truth.ntl_hr, 8)
        parts["offset"] = offset_error(model, prediction.offset, truth.offset, light, truth.weight)
        loss = loss + config.offset * parts["offset"]
    return loss, {name: float(value.detach()) for name, value in parts.items()}


def offset_error(model: DeepLightSR, offset: Tensor, true: Tensor, ntl_lr: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute offset error in LR px, weighted by nearby light: in the dark nothing tells where things are.

    offset, true: (B,2,h,w). ntl_lr: radiance (B,1,h,w). weight: (B,1,h,w).
    """
    near = F.avg_pool2d(model.normalise.ntl(ntl_lr), 5, stride=1, padding=2)
    return _mean((offset - true).abs().mean(1, keepdim=True), weight * (near + 0.02))


def _totals_error(radiance: Tensor, truth: Truth) -> Tensor:
    """Mean over the crops of |sum of lights / true sum − 1|; a nearly dark crop's sum is floored at 0.1 a pixel."""
    weight = F.interpolate(truth.weight, scale_factor=8, mode="nearest")
    out = (radiance * weight).sum(dim=(1, 2, 3))
    true = (truth.ntl_hr * weight).sum(dim=(1, 2, 3))
    floor = 0.1 * weight.sum(dim=(1, 2, 3)) + 1e-6
    return ((out - true).abs() / torch.maximum(true, floor)).mean()


def _area_mean(x: Tensor, factor: int) -> Tensor:
    return x if factor == 1 else F.avg_pool2d(x, factor)


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum() / weight.sum().clamp(min=1e-6)
