"""Losses of the stages that train the offset's layers alone, at LR size and ×4."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from deeplight.engine.network.model import DeepLightSR, area_means
from deeplight.train.fit.batch import Batch
from deeplight.train.fit.losses import MeanOverProcesses, offset_error, weighted_mean


def lights_loss(
    model: DeepLightSR, batch: Batch, across: MeanOverProcesses
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare what the auxiliary layers suggest with what is there: the recorded log radiance, and ISP at ×4."""
    ntl, aux = model.layers(*batch.inputs)
    lights, logits = model.localise.suggested(area_means(aux))
    seen = weighted_mean((lights - ntl) ** 2, batch.inputs[1], across)
    share = batch.inputs[6].new_ones(batch.isp.shape) if batch.isp_valid is None else batch.isp_valid
    known = F.avg_pool2d(share, 2)
    fraction = F.avg_pool2d(batch.isp * share, 2) / known.clamp(min=1e-6)
    built = weighted_mean(
        F.binary_cross_entropy_with_logits(logits, fraction, reduction="none"), known, across
    )
    return seen + 0.2 * built, {"lights": seen.detach(), "isp": built.detach()}


def offset_loss(
    model: DeepLightSR, batch: Batch, across: MeanOverProcesses
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare the estimate of the offset with the true one."""
    assert batch.offset is not None
    ntl, aux = model.layers(*batch.inputs)
    found = model.localise(ntl, area_means(aux))
    light = F.avg_pool2d(batch.ntl_hr, 8)
    loss = offset_error(model, found, batch.offset, light, batch.weight, across)
    return loss, {"offset": loss.detach()}
