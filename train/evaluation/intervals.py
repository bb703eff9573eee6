"""Confidence intervals by the bootstrap over blocks: pixels of one block are neighbours and hardly independent."""

from __future__ import annotations

import numpy as np

from deeplight.engine.core.arrays import Doubles
from deeplight.train.evaluation.pixels import quality

RESAMPLES = 1000
LEVEL = 0.95
_LEAST_BLOCKS = 5
"""With fewer blocks a percentile interval means nothing."""
_AT_ONCE = 4_000_000
"""Numbers held while resampling."""

Interval = tuple[float, float] | None
"""(low, high), or None where there are too few blocks or no pixels."""


def resampled(sums: Doubles, seed: int, resamples: int = RESAMPLES) -> Doubles:
    """Return the totals of `resamples` draws; each draws, with replacement, as many blocks as there are. sums: (blocks,
    …)."""
    rng = np.random.default_rng(seed)
    blocks = len(sums)
    flat = sums.reshape(blocks, -1)
    out = np.empty((resamples, flat.shape[1]))
    step = max(1, _AT_ONCE // blocks)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        weights = rng.multinomial(blocks, np.full(blocks, 1.0 / blocks), size=count)
        out[start : start + count] = weights @ flat
    return out.reshape(resamples, *sums.shape[1:])


def interval(values: Doubles) -> Interval:
    """Return the interval that holds the central LEVEL of resampled values (resamples,)."""
    known = values[np.isfinite(values)]
    if len(known) < len(values) / 2:
        return None
    low, high = np.percentile(known, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def quality_intervals(
    pixels: Doubles, baseline: int, data_range: float, seed: int
) -> list[list[dict[str, Interval]]]:
    """Return intervals of `quality` for each method and stratum, and of the gains over the method `baseline`.

    pixels: (blocks, methods, strata, fields). Gains, named psnr_gain and psnr_log1p_gain, are differences in the same
    draws, and so is sum_of_lights_excess: |error of the sum of lights| less that of the baseline.
    """
    methods, strata = pixels.shape[1:3]
    if len(pixels) < _LEAST_BLOCKS:
        return [[{} for _ in range(strata)] for _ in range(methods)]
    values = quality(resampled(pixels, seed), data_range)
    totals = np.abs(values["sum_of_lights_error"])
    # an empty stratum has neither value, a dark one no total
    with np.errstate(invalid="ignore"):
        for name in ("psnr", "psnr_log1p"):
            values[f"{name}_gain"] = values[name] - values[name][:, [baseline]]
        values["sum_of_lights_excess"] = totals - totals[:, [baseline]]
    return [
        [{name: interval(v[:, m, s]) for name, v in values.items()} for s in range(strata)]
        for m in range(methods)
    ]
