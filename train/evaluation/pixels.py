"""Metrics that are sums over pixels: torchmetrics over everything, and the sums of each block for intervals.

A confidence interval needs what each block contributed, of which torchmetrics keeps only the total; so the sums are
kept beside it. `quality` turns sums into the same metrics, and a test holds one to the other.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics import MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score

from deeplight.engine.core.arrays import Doubles

FIELDS = ("n", "truth", "truth_squared", "out", "absolute", "squared", "squared_log")
"""What is summed over pixels: their number, truth, truth², output, |error|, error², (error of log1p)²."""
N, TRUTH, TRUTH_SQUARED, OUT, ABSOLUTE, SQUARED, SQUARED_LOG = range(len(FIELDS))

QUALITIES = ("psnr", "psnr_log1p", "rmse", "mae", "r2", "sum_of_lights_error")
"""Metrics that follow from the sums."""


def logarithm(radiance: Doubles) -> Doubles:
    """log1p of the radiance, values below 0 (noise) taken as 0."""
    return np.asarray(np.log1p(np.maximum(radiance, 0.0)), np.float64)


def pixel_sums(out: Doubles, truth: Doubles, masks: NDArray[np.bool_]) -> Doubles:
    """Sums of FIELDS over the pixels of each mask. out, truth: (H, W); masks: (S, H, W). Returns (S, 7)."""
    error = out - truth
    terms = (
        np.ones_like(truth),
        truth,
        truth**2,
        out,
        np.abs(error),
        error**2,
        (logarithm(out) - logarithm(truth)) ** 2,
    )
    return np.array([[term[mask].sum() for term in terms] for mask in masks])


def quality(sums: Doubles, data_range: float) -> dict[str, Doubles]:
    """QUALITIES from sums (…, 7), each (…); NaN where there is no pixel.

    psnr and psnr_log1p in dB, with the data ranges data_range and log1p(data_range); infinite without any error.
    sum_of_lights_error: Σ output / Σ truth − 1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.where(sums[..., N] > 0, sums[..., N], np.nan)
        squared, squared_log = sums[..., SQUARED] / n, sums[..., SQUARED_LOG] / n
        spread = sums[..., TRUTH_SQUARED] - sums[..., TRUTH] ** 2 / n
        return {
            "psnr": 10.0 * np.log10(data_range**2 / squared),
            "psnr_log1p": 10.0 * np.log10(math.log1p(data_range) ** 2 / squared_log),
            "rmse": np.sqrt(squared),
            "mae": sums[..., ABSOLUTE] / n,
            "r2": 1.0 - sums[..., SQUARED] / spread,
            "sum_of_lights_error": sums[..., OUT] / sums[..., TRUTH] - 1.0,
        }


class LibraryMetrics:
    """torchmetrics' running PSNR (also of log1p), RMSE, MAE and R² over the pixels of one stratum, given float64."""

    def __init__(self, data_range: float) -> None:
        metrics = {
            "psnr": PeakSignalNoiseRatio(data_range=data_range),
            "rmse": MeanSquaredError(squared=False),
            "mae": MeanAbsoluteError(),
            "r2": R2Score(),
        }
        self._physical = MetricCollection(metrics, compute_groups=False)  # type: ignore[arg-type]
        self._log = PeakSignalNoiseRatio(data_range=math.log1p(data_range))
        self._physical.set_dtype(torch.float64)
        self._log.set_dtype(torch.float64)
        self._n = 0

    def update(self, out: Doubles, truth: Doubles) -> None:
        """More pixels, (n,) each."""
        if not out.size:
            return
        self._n += out.size
        self._physical.update(torch.from_numpy(out), torch.from_numpy(truth))
        self._log.update(torch.from_numpy(logarithm(out)), torch.from_numpy(logarithm(truth)))

    def compute(self) -> dict[str, float]:
        """The metrics of all pixels so far; NaN with fewer than 2 of them, which R² needs."""
        names = ("psnr", "rmse", "mae", "r2", "psnr_log1p")
        if self._n < 2:
            return dict.fromkeys(names, math.nan)
        values = {name: float(value) for name, value in self._physical.compute().items()}
        return {**values, "psnr_log1p": float(self._log.compute())}
