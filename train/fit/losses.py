"""The training objective: α Σ_j β_j mean|N_j − N_H,j| + (1 − α) mean_j BCE(ISP head_j), and its optional terms.

Every mean is weighted. Where several processes share a step, each divides by the mean over the processes of the
weights, so that the mean of their losses, and of their gradients, is that of one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.engine.network.model import DeepLightSR, Prediction
from deeplight.train.fit.config import ObjectiveConfig

MeanOverProcesses = Callable[[Tensor], Tensor]
"""A number's mean over the processes of a run; must not be differentiated."""

TAIL = 0.05
"""Share of the truths beyond each end of the interval."""


def one_process(value: Tensor) -> Tensor:
    """Return the value itself: the mean over the processes of a run that has only one."""
    return value


@dataclass(frozen=True)
class Truth:
    """What supervises a batch. ntl_hr, isp: (B,1,8h,8w). weight: (B,1,h,w), 0 where no loss is wanted. offset:
    (B,2,h,w) or None.

    ntl_hr_valid, isp_valid: (B,1,8h,8w), 1 where the truth is known and 0, with a truth of 0, where not; None: all is.
    """

    ntl_hr: Tensor
    isp: Tensor
    weight: Tensor
    offset: Tensor | None = None
    ntl_hr_valid: Tensor | None = None
    isp_valid: Tensor | None = None


@dataclass(frozen=True)
class _Masked:
    """A truth at several scales: the area mean of its valid pixels, and a weight that counts their share."""

    value: Tensor
    valid: Tensor | None
    weight: Tensor

    def at(self, side: int) -> tuple[Tensor, Tensor]:
        """Return mean and weight at `side` pixels per LR pixel, (B,1,side·h,side·w) each."""
        weight = F.interpolate(self.weight, scale_factor=side, mode="nearest") if side > 1 else self.weight
        mean = self.pooled(self.value, 8 // side)
        return (mean, weight) if self.valid is None else (mean, weight * _area_mean(self.valid, 8 // side))

    def pooled(self, x: Tensor, down: int) -> Tensor:
        """Return the area mean of x (B,1,8h,8w) over the valid pixels; 0 where there is none."""
        if self.valid is None:
            return _area_mean(x, down)
        return _area_mean(x * self.valid, down) / _area_mean(self.valid, down).clamp(min=1e-6)


def objective(
    model: DeepLightSR,
    prediction: Prediction,
    truth: Truth,
    config: ObjectiveConfig,
    across: MeanOverProcesses = one_process,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and its parts (detached), scalars, all in the normalised (log) domain."""
    lights = _Masked(truth.ntl_hr, truth.ntl_hr_valid, truth.weight)
    built = _Masked(truth.isp, truth.isp_valid, truth.weight)
    parts = {
        "radiance": _radiance_error(model, prediction, lights, config, across),
        "isp": _isp_error(prediction, built, config, across),
    }
    loss = config.alpha * parts["radiance"] + (1.0 - config.alpha) * parts["isp"]
    finest = prediction.ntl[-1]
    if config.consistency > 0:
        target, weight = lights.at(1)
        mean_out = lights.pooled(model.normalise.radiance(finest), 8)
        gap = model.normalise.ntl(mean_out) - model.normalise.ntl(target)
        parts["consistency"] = weighted_mean(gap.abs(), weight, across)
        loss = loss + config.consistency * parts["consistency"]
    if config.squared > 0:
        target, weight = lights.at(8)
        parts["squared"] = weighted_mean((finest - model.normalise.ntl(target)) ** 2, weight, across)
        loss = loss + config.squared * parts["squared"]
    if config.linear > 0:
        parts["linear"] = _linear_error(model.normalise.radiance(finest), lights, across)
        loss = loss + config.linear * parts["linear"]
    if config.interval > 0:
        target, weight = lights.at(8)
        parts["interval"] = _interval_error(model.normalise.ntl(target), prediction, weight, across)
        loss = loss + config.interval * parts["interval"]
    if config.totals > 0:
        parts["totals"] = _totals_error(model.normalise.radiance(finest), lights, across)
        loss = loss + config.totals * parts["totals"]
    if config.offset > 0 and truth.offset is not None:
        light, weight = lights.at(1)
        parts["offset"] = offset_error(model, prediction.offset, truth.offset, light, weight, across)
        loss = loss + config.offset * parts["offset"]
    return loss, {name: value.detach() for name, value in parts.items()}


def _radiance_error(
    model: DeepLightSR,
    prediction: Prediction,
    lights: _Masked,
    config: ObjectiveConfig,
    across: MeanOverProcesses,
) -> Tensor:
    """Σ_j β_j mean|N_j − N_H,j|."""
    total = torch.zeros((), device=lights.value.device)
    for level, value in enumerate(prediction.ntl):
        target, weight = lights.at(2 << level)
        error = (value - model.normalise.ntl(target)).abs()
        total = total + config.beta[level] * weighted_mean(error, weight, across)
    return total


def _isp_error(
    prediction: Prediction, built: _Masked, config: ObjectiveConfig, across: MeanOverProcesses
) -> Tensor:
    """mean_j BCE(ISP head_j), or of the radiance itself where `literal_isp` is set."""
    total = torch.zeros((), device=built.value.device)
    for level, (value, logits) in enumerate(zip(prediction.ntl, prediction.isp_logits, strict=True)):
        fraction, weight = built.at(2 << level)
        if config.literal_isp:
            # autocast refuses this function, which needs 32 bits
            with torch.autocast(value.device.type, enabled=False):
                bce = F.binary_cross_entropy(value.float().clamp(0.0, 1.0), fraction, reduction="none")
        else:
            bce = F.binary_cross_entropy_with_logits(logits, fraction, reduction="none")
        total = total + weighted_mean(bce, weight, across) / 3.0
    return total


def offset_error(
    model: DeepLightSR,
    offset: Tensor,
    true: Tensor,
    ntl_lr: Tensor,
    weight: Tensor,
    across: MeanOverProcesses = one_process,
) -> Tensor:
    """Return the mean absolute offset error in LR px, weighted by nearby light: the dark does not tell where things
    are.

    offset, true: (B,2,h,w). ntl_lr: radiance (B,1,h,w). weight: (B,1,h,w).
    """
    near = F.avg_pool2d(model.normalise.ntl(ntl_lr), 5, stride=1, padding=2)
    return weighted_mean((offset - true).abs().mean(1, keepdim=True), weight * (near + 0.02), across)


def _interval_error(
    target: Tensor, prediction: Prediction, weight: Tensor, across: MeanOverProcesses
) -> Tensor:
    """Quantile loss (Koenker and Bassett 1978) of the interval's ends, 5 % of the truths below and above.

    The radiance itself does not learn from it. target: (B,1,8h,8w), normalised.
    """
    middle = prediction.ntl[-1].detach()
    outside = torch.cat(
        [middle - prediction.widths[:, :1] - target, target - middle - prediction.widths[:, 1:]], 1
    )
    loss = torch.maximum((1.0 - TAIL) * outside, -TAIL * outside)
    return weighted_mean(loss.sum(dim=1, keepdim=True), weight, across)


def _linear_error(radiance: Tensor, lights: _Masked, across: MeanOverProcesses) -> Tensor:
    """Mean over the crops of q / (1 + q), where q is the squared error of the radiance over its variance.

    So each crop counts alike, however bright it is, and one of a few lone points, which no network can place, little.
    A nearly dark crop's variance is floored at 0.01.
    """
    target, weight = lights.at(8)
    count = weight.sum(dim=(1, 2, 3), keepdim=True) + 1e-6
    mean = (target * weight).sum(dim=(1, 2, 3), keepdim=True) / count
    variance = ((target - mean) ** 2 * weight).sum(dim=(1, 2, 3), keepdim=True) / count + 0.01
    share = (((radiance - target) ** 2 * weight).sum(dim=(1, 2, 3), keepdim=True) / count) / variance
    return weighted_mean(share / (1.0 + share), torch.ones_like(share), across)


def _totals_error(radiance: Tensor, lights: _Masked, across: MeanOverProcesses) -> Tensor:
    """Mean over the crops of |sum of lights / true sum − 1|; a nearly dark crop's sum is floored at 1 a pixel."""
    target, weight = lights.at(8)
    out = (radiance * weight).sum(dim=(1, 2, 3))
    true = (target * weight).sum(dim=(1, 2, 3))
    floor = 1.0 * weight.sum(dim=(1, 2, 3)) + 1e-6
    return weighted_mean((out - true).abs() / torch.maximum(true, floor), torch.ones_like(out), across)


def _area_mean(x: Tensor, factor: int) -> Tensor:
    return x if factor == 1 else F.avg_pool2d(x, factor)


def weighted_mean(x: Tensor, weight: Tensor, across: MeanOverProcesses) -> Tensor:
    """Return Σ x·weight / Σ weight, the latter averaged over the processes; 0 where all weights are 0."""
    return (x * weight).sum() / across(weight.sum()).clamp(min=1e-6)
