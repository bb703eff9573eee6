"""Metrics that are sums over pixels: the library, our sums and a plain formula must agree; intervals must be honest."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

from deeplight.engine.core.arrays import Doubles
from deeplight.train.evaluation.intervals import interval, quality_intervals, resampled
from deeplight.train.evaluation.pixels import (
    FIELDS,
    QUALITIES,
    logarithm,
    pixel_sums,
    quality,
)
from deeplight.train.evaluation.strata import STRATA, Strata

RANGE = 200.0


def images(shape: tuple[int, int] = (37, 23)) -> tuple[Doubles, Doubles, NDArray[np.bool_]]:
    rng = np.random.default_rng(1)
    truth = rng.lognormal(0.5, 1.4, shape) - 0.3  # some below 0, as noise makes them
    out = np.maximum(truth * rng.lognormal(0.0, 0.2, shape) + 0.1, 0.0)
    return out, truth, rng.random(shape) < 0.8


def plain(out: Doubles, truth: Doubles) -> dict[str, float]:
    """The formulas, pixel by pixel."""
    n, squares, absolutes, logs = len(out), 0.0, 0.0, 0.0
    for o, t in zip(out.tolist(), truth.tolist(), strict=True):
        squares += (o - t) ** 2
        absolutes += abs(o - t)
        logs += (math.log1p(max(o, 0)) - math.log1p(max(t, 0))) ** 2
    mean = sum(truth.tolist()) / n
    spread = sum((t - mean) ** 2 for t in truth.tolist())
    return {
        "psnr": 20 * math.log10(RANGE) - 10 * math.log10(squares / n),
        "psnr_log1p": 20 * math.log10(math.log1p(RANGE)) - 10 * math.log10(logs / n),
        "rmse": math.sqrt(squares / n),
        "mae": absolutes / n,
        "r2": 1 - squares / spread,
        "sum_of_lights_error": sum(out.tolist()) / sum(truth.tolist()) - 1,
    }


def of_torchmetrics(out: Doubles, truth: Doubles) -> dict[str, float]:
    """The same of a library."""
    a, b, log_a, log_b = (torch.from_numpy(x) for x in (out, truth, logarithm(out), logarithm(truth)))
    return {
        "psnr": float(peak_signal_noise_ratio(a, b, data_range=RANGE)),
        "psnr_log1p": float(peak_signal_noise_ratio(log_a, log_b, data_range=math.log1p(RANGE))),
        "rmse": float(mean_squared_error(a, b, squared=False)),
        "mae": float(mean_absolute_error(a, b)),
        "r2": float(r2_score(a, b)),
    }


def test_library_sums_and_plain_formula_agree() -> None:
    out, truth, mask = images()
    wanted = plain(out[mask], truth[mask])
    ours = quality(pixel_sums(out, truth, mask[None])[0], RANGE)
    assert set(ours) == set(QUALITIES)
    found = of_torchmetrics(out[mask], truth[mask])
    assert set(found) == set(QUALITIES) - {"sum_of_lights_error"}, "torchmetrics has no such metric"
    for name, value in wanted.items():
        assert float(ours[name]) == pytest.approx(value, rel=1e-10), name
    for name, value in found.items():
        # torchmetrics keeps the data range of PSNR in float32
        assert value == pytest.approx(wanted[name], rel=1e-6 if "psnr" in name else 1e-10), name


def test_sums_keep_their_precision_over_bright_pixels() -> None:
    """In float32 the sum of squares, 2e12, would swallow the spread of 200 that R² is made of."""
    rng = np.random.default_rng(2)
    truth = 1e4 + rng.normal(0, 0.1, (100, 200))
    out = truth + rng.normal(0, 0.05, truth.shape)
    found = quality(pixel_sums(out, truth, np.ones((1, *truth.shape), bool))[0], RANGE)
    assert float(found["r2"]) == pytest.approx(plain(out.ravel(), truth.ravel())["r2"], abs=1e-4)


def test_sums_add_up_over_blocks() -> None:
    out, truth, mask = images()
    whole = pixel_sums(out, truth, mask[None])
    parts = [pixel_sums(out[a], truth[a], mask[None, a]) for a in (slice(0, 11), slice(11, 37))]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-12)
    assert whole.shape == (1, len(FIELDS)) and whole[0, 0] == mask.sum()


def test_masked_pixels_do_not_count() -> None:
    out, truth, mask = images()
    spoiled = np.where(mask, out, 1e9)
    np.testing.assert_array_equal(pixel_sums(out, truth, mask[None]), pixel_sums(spoiled, truth, mask[None]))


def test_without_pixels_there_is_no_number_and_without_error_psnr_is_infinite() -> None:
    nothing = quality(np.zeros(len(FIELDS)), RANGE)
    assert all(np.isnan(v) for v in nothing.values())
    _, truth, mask = images()
    assert np.isposinf(quality(pixel_sums(truth, truth, mask[None])[0], RANGE)["psnr"])


def test_negative_noise_is_dark_in_the_log_domain() -> None:
    np.testing.assert_allclose(logarithm(np.array([-0.5, 0.0, math.e - 1])), [0, 0, 1])


def test_strata_part_all_pixels() -> None:
    truth = np.array([[0.2, 1.0, 1.1, 50.0, 0.2, 9.0]])
    lr = np.array([[0.1, 0.1, 2.0, 63.0, 63.0, 63.0]])
    valid = np.array([[True, True, True, True, True, False]])
    masks = dict(zip(STRATA, Strata(lit=1.0, ceiling=63.0).masks(truth, lr, valid), strict=True))
    assert masks["unlit"].tolist() == [[True, True, False, False, False, False]], "1.0 is not above 1.0"
    assert masks["lit"].tolist() == [[False, False, True, False, False, False]]
    assert masks["saturated"].tolist() == [[False, False, False, True, True, False]]
    assert (masks["all"] == valid).all()


def blocks(count: int = 40, gain: float = 0.5) -> Doubles:
    """Sums (blocks, 2 methods, 1 stratum, fields): method 0 has `gain` of the errors of method 1."""
    rng = np.random.default_rng(3)
    out = []
    for _ in range(count):
        truth = rng.lognormal(0, 1, (8, 8))
        error = rng.normal(0, rng.uniform(0.5, 2), (8, 8))
        mask = np.ones((1, 8, 8), bool)
        out.append([pixel_sums(truth + k * error, truth, mask) for k in (gain, 1.0)])
    return np.array(out)


def test_intervals_hold_the_value_and_repeat_with_the_seed() -> None:
    sums = blocks()
    found = quality_intervals(sums, baseline=1, data_range=RANGE, seed=4)
    assert found == quality_intervals(sums, 1, RANGE, seed=4) != quality_intervals(sums, 1, RANGE, seed=5)
    pooled = quality(sums.sum(axis=0), RANGE)
    for m in (0, 1):
        for name in QUALITIES:
            between = found[m][0][name]
            assert between is not None and between[0] < pooled[name][m, 0] < between[1], (m, name)


def test_gains_are_of_the_same_draw() -> None:
    """Half the error everywhere is 6.02 dB in every draw, however much the blocks differ."""
    found = quality_intervals(blocks(), baseline=1, data_range=RANGE, seed=0)
    assert found[0][0]["psnr_gain"] == pytest.approx((6.0206, 6.0206), abs=1e-3)
    assert found[1][0]["psnr_gain"] == (0.0, 0.0)


def test_the_bootstrap_has_the_spread_of_a_mean() -> None:
    """Of a mean over n blocks it is σ/√n; a thousand draws know that to 1/√2000 = 2 %."""
    values = np.random.default_rng(6).normal(size=(400, 1))
    means = resampled(values, seed=1)[:, 0] / 400
    assert means.std() == pytest.approx(values.std() / 20, rel=0.1)
    low, high = interval(means) or (0.0, 0.0)
    assert (high - low) / (2 * 1.96 * means.std()) == pytest.approx(1.0, abs=0.1)


def test_few_blocks_make_no_interval() -> None:
    assert quality_intervals(blocks(4), baseline=1, data_range=RANGE, seed=0)[0][0] == {}
    assert interval(np.array([np.nan, np.nan, 1.0])) is None
