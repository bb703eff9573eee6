"""How good a network is in training and for the model card: the metrics of `pixels` on batches, bicubic beside it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.spec import SCALE
from deeplight.engine.network.model import DeepLightSR
from deeplight.kernels.float32 import exact_float32
from deeplight.train.evaluation.bicubic import bicubic
from deeplight.train.evaluation.pixels import FIELDS, pixel_sums, quality
from deeplight.train.fit.batch import Batch

_LIT = 1.0
"""Mean radiance of an LR pixel above which the offset's error counts."""


@torch.no_grad()
@exact_float32()
def validate(
    model: DeepLightSR, sets: Iterable[Batch], data_range: float = 200.0, known_offset: bool = False
) -> dict[str, float]:
    """Return `pixels.QUALITIES` of the network and, under names that end in "_bicubic", of bicubic, over all samples.

    data_range: of PSNR, in the unit of the radiance. known_offset: align with the true offset in place of the estimate.
    psnr_log1p_gain_scene_mean, …_median: over the samples, of what each gains over bicubic, in dB. isp_mae: of the
    ISP. offset_epe_lit_px: mean length of the offset's error in LR pixels that are lit; …_if_zero: of the true offset,
    both 0 where it is not known. Only pixels count that are valid and whose loss has a weight. Numbers that do not
    exist, since no pixel counts or there is no error at all, are left out.
    """
    scenes: list[Doubles] = []
    built, missed, displaced = _Mean(), _Mean(), _Mean()
    for batch in sets:
        out, isp, offset = _told(model, batch) if known_offset else model(*batch.inputs)[:3]
        weight = F.interpolate(batch.weight, scale_factor=SCALE, mode="nearest")
        scenes += _scene_sums(out, batch, weight)
        built.add((isp - batch.isp).abs(), weight if batch.isp_valid is None else weight * batch.isp_valid)
        if batch.offset is not None:
            lit = batch.weight * (F.avg_pool2d(batch.ntl_hr, SCALE) > _LIT)
            missed.add((offset - batch.offset).norm(dim=1, keepdim=True), lit)
            displaced.add(batch.offset.norm(dim=1, keepdim=True), lit)
    sums = np.array(scenes).reshape(-1, 2, len(FIELDS))
    found = {
        "isp_mae": built.value,
        "offset_epe_lit_px": missed.value,
        "offset_epe_lit_px_if_zero": displaced.value,
        **_gains(quality(sums, data_range)["psnr_log1p"]),
    }
    for name, values in quality(sums.sum(axis=0), data_range).items():
        found |= {name: float(values[0]), f"{name}_bicubic": float(values[1])}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _scene_sums(out: Tensor, batch: Batch, weight: Tensor) -> list[Doubles]:
    """For each sample the sums of `pixels.FIELDS` of the network's radiance and of bicubic's, (2, 7)."""
    mask = weight if batch.ntl_hr_valid is None else weight * batch.ntl_hr_valid
    base = bicubic(batch.inputs[0].clamp(min=0.0))
    network, plain, truth, counted = (t[:, 0].cpu().numpy() for t in (out, base, batch.ntl_hr, mask > 0))
    return [
        np.concatenate([pixel_sums(a.astype(np.float64), t.astype(np.float64), m[None]) for a in (n, p)])
        for n, p, t, m in zip(network, plain, truth, counted, strict=True)
    ]


def _gains(psnr_log1p: Doubles) -> dict[str, float]:
    """Over the scenes, of the network's PSNR less bicubic's. psnr_log1p: (scenes, 2)."""
    with np.errstate(invalid="ignore"):  # neither has an error
        gains = psnr_log1p[:, 0] - psnr_log1p[:, 1]
    known = gains[np.isfinite(gains)].tolist() or [math.nan]
    return {
        "psnr_log1p_gain_scene_mean": statistics.fmean(known),
        "psnr_log1p_gain_scene_median": statistics.median(known),
    }


@dataclass
class _Mean:
    """A weighted mean over tensors of several batches; 0 where nothing has a weight."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, values: Tensor, weight: Tensor) -> None:
        """Add values and their weights, of one shape."""
        self.total += float((values * weight).sum())
        self.weight += float(weight.sum())

    @property
    def value(self) -> float:
        """The mean of what was added."""
        return self.total / max(self.weight, 1.0)


def _told(model: DeepLightSR, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The model's radiance, ISP and offset where the true offset aligns the auxiliary layers."""
    p = model.predict(*batch.inputs, known_offset=batch.offset)
    return model.normalise.radiance(p.ntl[-1]), torch.sigmoid(p.isp_logits[-1]), p.offset
