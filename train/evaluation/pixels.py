"""Metrics that follow from sums over pixels: `pixel_sums` adds up, `quality` turns sums into metrics.

Sums of blocks add up to those of places and of everything, and a confidence interval needs what each block
contributed. torchmetrics keeps totals only; a test holds `quality` to it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles

FIELDS = ("n", "truth", "truth_squared", "out", "absolute", "squared", "squared_log")
"""What is summed over pixels: their number, truth, truth², output, |error|, error², (error of log1p)²."""
N, TRUTH, TRUTH_SQUARED, OUT, ABSOLUTE, SQUARED, SQUARED_LOG = range(len(FIELDS))

QUALITIES = ("psnr", "psnr_log1p", "rmse", "mae", "r2", "sum_of_lights_error")
"""Metrics that follow from the sums."""


def logarithm(radiance: Doubles) -> Doubles:
    """Return log1p of the radiance; values below 0, which are noise, count as 0."""
    return np.asarray(np.log1p(np.maximum(radiance, 0.0)), np.float64)


def pixel_sums(out: Doubles, truth: Doubles, masks: NDArray[np.bool_]) -> Doubles:
    """Return the sums of FIELDS over the pixels of each mask. out, truth: (H, W); masks: (S, H, W). Returns (S, 7)."""
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
    """Turn sums (…, 7) into QUALITIES, each (…); NaN where there is no pixel.

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
