"""Quality in physical units, with the bicubic baseline beside it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from deeplight.engine.network.model import DeepLightSR
from deeplight.kernels.float32 import exact_float32
from deeplight.train.evaluation.bicubic import bicubic
from deeplight.train.fit.batch import Batch


def psnr(squared_error: float, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB for a mean squared error and the stated data range (same unit)."""
    return 10.0 * math.log10(data_range**2 / max(squared_error, 1e-30))


@torch.no_grad()
@exact_float32()
def validate(
    model: DeepLightSR, sets: Iterable[Batch], data_range: float = 200.0, known_offset: bool = False
) -> dict[str, float]:
    """RMSE, PSNR (data range in nW/cm²/sr; also of log1p radiance), MAE, errors of sum, ISP and offset (end point).

    psnr pools the pixels of all samples; psnr_log1p_gain_scene_* are the mean and the median over the samples of what
    each gains over bicubic. Each also for bicubic. Only pixels count that are valid and whose loss weight is 1.
    known_offset: align with the true offset.
    """
    errors = ("se", "ae", "out", "log")
    names = (*errors, *(f"{e}_bicubic" for e in errors), "truth", "isp", "n_isp", "n")
    sums = dict.fromkeys(names, 0.0)
    epe = lit = epe_zero = 0.0
    gains: list[float] = []
    for batch in sets:
        out, isp, offset = _told(model, batch) if known_offset else model(*batch.inputs)[:3]
        mask = F.interpolate(batch.weight, scale_factor=8, mode="nearest")
        built = mask if batch.isp_valid is None else mask * batch.isp_valid
        mask = mask if batch.ntl_hr_valid is None else mask * batch.ntl_hr_valid
        base = bicubic(batch.inputs[0].clamp(min=0.0))
        log_error: dict[str, Tensor] = {}
        for name, value in (("", out), ("_bicubic", base)):
            sums["se" + name] += float((((value - batch.ntl_hr) ** 2) * mask).sum())
            sums["ae" + name] += float(((value - batch.ntl_hr).abs() * mask).sum())
            sums["out" + name] += float((value * mask).sum())
            log_error[name] = _log_error(value, batch.ntl_hr, mask)
            sums["log" + name] += float(log_error[name].sum())
        ratio = log_error["_bicubic"].clamp(min=1e-12) / log_error[""].clamp(min=1e-12)
        gains += (10.0 * torch.log10(ratio))[mask.sum(dim=(1, 2, 3)) > 0].tolist()
        sums["truth"] += float((batch.ntl_hr * mask).sum())
        sums["isp"] += float(((isp - batch.isp).abs() * built).sum())
        sums["n_isp"] += float(built.sum())
        sums["n"] += float(mask.sum())
        if batch.offset is None:
            continue
        bright = batch.weight * (F.avg_pool2d(batch.ntl_hr, 8) > 1.0)
        epe += float(((offset - batch.offset).norm(dim=1, keepdim=True) * bright).sum())
        epe_zero += float((batch.offset.norm(dim=1, keepdim=True) * bright).sum())
        lit += float(bright.sum())
    n = max(sums["n"], 1.0)
    result = {"isp_mae": sums["isp"] / max(sums["n_isp"], 1.0), "offset_epe_lit_px": epe / max(lit, 1.0)}
    result["psnr_log1p_gain_scene_mean"] = statistics.fmean(gains) if gains else 0.0
    result["psnr_log1p_gain_scene_median"] = statistics.median(gains) if gains else 0.0
    result["offset_epe_lit_px_if_zero"] = epe_zero / max(lit, 1.0)
    for name in ("", "_bicubic"):
        result["rmse" + name] = math.sqrt(sums["se" + name] / n)
        result["psnr" + name] = psnr(sums["se" + name] / n, data_range)
        result["psnr_log1p" + name] = psnr(sums["log" + name] / n, math.log1p(data_range))
        result["mae" + name] = sums["ae" + name] / n
        result["sum_of_lights_error" + name] = sums["out" + name] / max(sums["truth"], 1e-9) - 1.0
    return result


def _log_error(value: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Sum of squared errors of log1p radiance per sample, (B,); noise below 0 in the truth counts as 0."""
    return ((torch.log1p(value) - torch.log1p(truth.clamp(min=0.0))) ** 2 * mask).sum(dim=(1, 2, 3))


def _told(model: DeepLightSR, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The model's outputs where the true offset aligns the auxiliary."""
    p = model.predict(*batch.inputs, known_offset=batch.offset)
    return model.normalise.radiance(p.ntl[-1]), torch.sigmoid(p.isp_logits[-1]), p.offset
