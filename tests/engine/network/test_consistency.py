"""The sensor model and its steps against plain definitions: a sampled Gaussian, the area mean, a point, holes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.network.consistency import (
    BELIEF,
    BELIEVED,
    LAST_NOISE,
    agreeing,
    base,
    blur_weights,
    settled,
    trust,
)
from deeplight.kernels import Base, Sensor
from deeplight.kernels.agree.reference import BLUR_REACH, enlarged, seen
from deeplight.kernels.agree.reference import agree as consistent
from deeplight.kernels.interpolation import SCALE, interpolation_line
from deeplight.kernels.restore.reference import blended
from deeplight.kernels.settle.reference import NEAR_REACH, believed, near, reached, spread, step

TOLD = torch.zeros(1, 2)
CUBIC, LINEAR = interpolation_line(SCALE, "cubic"), interpolation_line(SCALE, "linear")


def blurred(x: Doubles, fwhm: float, axis: int) -> Doubles:
    """A Gaussian sampled at whole pixels up to 4 σ, zeros beyond the edge: the definition."""
    if fwhm == 0:
        return x
    sigma = SCALE * fwhm / (2 * math.sqrt(2 * math.log(2)))
    reach = int(4 * sigma + 0.5)
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    line /= line.sum()
    return np.apply_along_axis(lambda v: np.convolve(v, line, mode="same"), axis, x)


def means(x: Doubles) -> Doubles:
    h, w = x.shape
    return x.reshape(h // SCALE, SCALE, w // SCALE, SCALE).mean((1, 3))


def sensor_of(y: torch.Tensor, fwhm: tuple[float, float] = (1.0, 1.0), noise: float = 0.02) -> Sensor:
    rows, columns = (blur_weights(torch.tensor([f])) for f in fwhm)
    return Sensor(y, torch.ones_like(y), torch.zeros_like(y), rows, columns, torch.full((1, 1, 1, 1), noise))


# what a Gaussian has beyond 3.5 LR pixels: nothing, 3e-5, 3e-3 (the weights inside take it over)
@pytest.mark.parametrize(
    ("rows", "columns", "tolerance"), [(0.0, 0.0, 1e-6), (1.0, 0.6, 1e-4), (0.0, 1.3, 3e-4), (2.5, 2.0, 1e-2)]
)
def test_what_the_sensor_sees(rows: float, columns: float, tolerance: float) -> None:
    x = np.zeros((12 * SCALE, 14 * SCALE))
    inside = np.random.default_rng(0).gamma(0.3, 10.0, (4 * SCALE, 5 * SCALE))
    x[4 * SCALE : 8 * SCALE, 4 * SCALE : 9 * SCALE] = inside
    want = means(blurred(blurred(x, rows, 0), columns, 1))
    sensor = sensor_of(torch.zeros(1, 1, 1, 1), (rows, columns))
    got = seen(torch.tensor(x, dtype=torch.float32)[None, None], sensor.rows, sensor.columns)[0, 0].numpy()
    assert np.abs(got - want).max() <= tolerance * want.max()


def test_weights_sum_to_one_and_batches_keep_their_own() -> None:
    weights = blur_weights(torch.tensor([0.0, 0.7, 3.2]))
    assert weights.shape == (3, 2 * BLUR_REACH + 1, SCALE)
    assert torch.allclose(weights.sum((1, 2)), torch.ones(3), atol=1e-6)
    assert torch.allclose(weights[0, BLUR_REACH], torch.full((SCALE,), 1 / SCALE))
    x = torch.rand(3, 1, 5 * SCALE, 6 * SCALE)
    each = torch.cat([seen(x[i : i + 1], weights[i : i + 1], weights[i : i + 1]) for i in range(3)])
    assert torch.equal(seen(x, weights, weights), each)


def test_enlarging_is_interpolation() -> None:
    x = torch.rand(2, 1, 5, 7)
    want = F.interpolate(x, scale_factor=SCALE, mode="bilinear", align_corners=False)
    assert torch.allclose(enlarged(x, LINEAR), want, atol=1e-6)
    flat = torch.full((1, 1, 4, 4), 3.0)
    assert torch.allclose(enlarged(flat, CUBIC), torch.full((1, 1, 32, 32), 3.0), atol=1e-5)


@pytest.mark.parametrize("fwhm", [0.0, 1.0, 2.0])
def test_the_base_agrees_with_what_was_seen(fwhm: float) -> None:
    rng = np.random.default_rng(1)
    truth = blurred(blurred(rng.gamma(0.2, 20.0, (20 * SCALE, 20 * SCALE)), 0.8, 0), 0.8, 1)
    y = torch.tensor(means(blurred(blurred(truth, fwhm, 0), fwhm, 1)), dtype=torch.float32)[None, None]
    sensor = sensor_of(y, (fwhm, fwhm))
    x = consistent(base(sensor, CUBIC, LINEAR), sensor, LINEAR)
    inner = (..., slice(4, -4), slice(4, -4))
    bicubic = enlarged(y, CUBIC).clamp(min=0)

    def misfit(z: torch.Tensor) -> float:
        return float((seen(z, sensor.rows, sensor.columns) - y)[inner].pow(2).mean().sqrt() / y[inner].std())

    assert misfit(x) < 0.4 * misfit(bicubic)
    assert abs(float(x[..., 32:-32, 32:-32].sum() / 64 / y[inner].sum()) - 1) < 0.01


def test_a_blurred_point_becomes_a_sharper_one_of_about_the_same_light() -> None:
    x = np.zeros((15 * SCALE, 15 * SCALE))
    x[60, 60] = 6400.0
    y = torch.tensor(means(blurred(blurred(x, 1.0, 0), 1.0, 1)), dtype=torch.float32)[None, None]
    sensor = sensor_of(y)
    out = consistent(base(sensor, CUBIC, LINEAR), sensor, LINEAR)
    assert float(out.max()) > 1.5 * float(enlarged(y, CUBIC).max())
    # three steps are not at their end for a point in the dark; what is left, the residual learns
    assert abs(float(out.sum()) / 6400.0 - 1) < 0.11


@pytest.mark.parametrize(("fwhm", "share"), [(0.0, 0.2), (1.0, 0.03), (2.0, 0.05)])
def test_a_point_keeps_its_light_in_the_last_step(fwhm: float, share: float) -> None:
    x = np.zeros((19 * SCALE, 19 * SCALE))
    x[77, 74] = 6400.0
    y = torch.tensor(means(blurred(blurred(x, fwhm, 0), fwhm, 1)), dtype=torch.float32)[None, None] + 0.3
    sensor = sensor_of(y, (fwhm, fwhm))
    out = step(base(sensor, CUBIC, LINEAR), sensor, LINEAR, LAST_NOISE)
    near = out[0, 0, 36:-36, 36:-36] - 0.3
    # without a blur, what bicubic interpolation spreads over dark neighbours can be taken back fourfold at most
    assert float(near.sum()) / 6400.0 == pytest.approx(1.0, abs=share)


def test_training_may_ask_for_the_plain_ratio_in_the_last_step() -> None:
    y = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(5)) * 40 + 5
    sensor = sensor_of(y)
    start = base(sensor, CUBIC, LINEAR)
    refined = start * (1 + torch.rand(start.shape, generator=torch.Generator().manual_seed(6)))
    mixed = start + (refined - start) * enlarged(trust(sensor), LINEAR)
    quiet = sensor._replace(noise=LAST_NOISE * sensor.noise)
    plain = agreeing(refined, start, sensor, LINEAR, holds_sums=False)
    assert torch.equal(plain, consistent(mixed, quiet, LINEAR))
    holds = agreeing(refined, start, sensor, LINEAR)
    assert torch.equal(holds, step(mixed, sensor, LINEAR, LAST_NOISE)) and not torch.equal(holds, plain)


def test_what_changes_reach_is_the_transpose_of_their_interpolation() -> None:
    g = torch.Generator().manual_seed(3)
    x, change = torch.rand(2, 1, 40, 56, generator=g), torch.rand(2, 1, 5, 7, generator=g)
    change[:, :, [0, -1]] = 0.0
    change[..., [0, -1]] = 0.0
    want = (x * enlarged(change, LINEAR)).sum((1, 2, 3)) / SCALE**2
    assert torch.allclose((reached(x, LINEAR) * change).sum((1, 2, 3)), want, rtol=1e-5)


def test_unknown_pixels_ask_for_nothing_and_saturated_ones_only_for_more() -> None:
    x, y = torch.full((1, 1, 72, 72), 10.0), torch.full((1, 1, 9, 9), 10.0)
    y[..., 4, 4] = 5.0
    plain = sensor_of(y, (0.0, 0.0))
    at = torch.zeros_like(y)
    at[..., 4, 4] = 1.0
    assert float(consistent(x, plain, LINEAR).min()) < 6.0
    for changed in (plain._replace(known=1.0 - at), plain._replace(saturated=at)):
        assert torch.allclose(consistent(x, changed, LINEAR), x)
    more = plain._replace(y=3.0 * y, saturated=at)
    assert float(consistent(x, more, LINEAR)[..., 36, 36]) > 10.0


def test_a_step_never_changes_more_than_fourfold_and_keeps_the_dark() -> None:
    y = torch.rand(1, 1, 9, 9) * 1000.0
    x = torch.rand(1, 1, 72, 72) * 1e-3
    x[..., :8, :8] = 0.0
    out = consistent(x, sensor_of(y), LINEAR)
    assert (out <= 4.0 * x + 1e-6).all() and (out[..., :8, :8] == 0).all()


def lights(seed: int = 0, h: int = 12, w: int = 13) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return F.avg_pool2d(60 * torch.rand(1, 1, h + 4, w + 4, generator=g) ** 4, 5, stride=1)


def deployed(refined: torch.Tensor, start: torch.Tensor, sensor: Sensor) -> torch.Tensor:
    """The last steps of a deployed network, from the refined radiance."""
    restored = blended(refined, Base(start, start, trust(sensor)), LINEAR)
    return settled(restored, start, sensor, TOLD, LINEAR)


@pytest.mark.parametrize("fwhm", [0.0, 1.0])
def test_what_is_seen_as_given_is_believed(fwhm: float) -> None:
    y = lights()
    start = base(sensor_of(y, (fwhm, fwhm)), CUBIC, LINEAR)
    sensor = sensor_of(seen(start, *sensor_of(y, (fwhm, fwhm))[3:5]), (fwhm, fwhm))
    # a detail within each LR pixel that no sensor without blur can see: an even sum of eight, here of both axes
    detail = torch.tensor([1.5, 0.5]).repeat(start.shape[-1] // 2)
    refined = start * (detail if fwhm == 0 else 1.0)
    got = deployed(refined, start, sensor)
    # below the noise of 0.02 only the base counts, and the darkest lights here are some tenths
    assert float(sensor.y.min()) > 0.2
    # where the lights slope, it sees up to 1.4 % of the detail after all
    assert torch.allclose(got, refined, rtol=0.035)


def test_what_contradicts_the_lights_is_left_for_the_base() -> None:
    y = lights(1)
    sensor = sensor_of(y)
    start = base(sensor, CUBIC, LINEAR)
    plain = step(start, sensor, LINEAR, LAST_NOISE)
    for wrong in (0.01 * start, 50.0 * start):
        assert float((deployed(wrong, start, sensor) / plain - 1).abs().max()) < 0.02


# its neighbours are believed, and it is not. With the share itself interpolated, and nothing spread, most keep 0.68 to
# 0.76 of their light without blur, and up to 1.28 at a FWHM of 2.
@pytest.mark.parametrize(("fwhm", "off"), [(0.0, 0.12), (1.0, 0.1), (2.0, 0.2)])
@pytest.mark.parametrize("ground", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("light", [10.0, 100.0, 1000.0])
def test_a_lone_pixel_keeps_its_light_although_the_network_sees_the_ground_only(
    light: float, ground: float, fwhm: float, off: float
) -> None:
    x = torch.full((1, 1, 136, 136), ground)
    x[..., 67, 67] += 64 * light
    blur = sensor_of(x, (fwhm, fwhm))
    sensor = sensor_of(seen(x, blur.rows, blur.columns), (fwhm, fwhm))
    start = base(sensor, CUBIC, LINEAR)
    got = deployed(torch.full_like(start, ground), start, sensor) - ground
    assert float(got.sum() / 64 / light) == pytest.approx(1.0, abs=off)


def test_belief_spreads_as_far_as_the_sensor_gathers() -> None:
    root = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(4))
    rows, columns = blur_weights(torch.tensor([0.0, 0.9])), blur_weights(torch.tensor([0.0, 2.0]))
    sensor = sensor_of(root)._replace(rows=rows, columns=columns)
    want = root.clone()
    for i, j in np.ndindex(5, 6):
        total = whole = 0.0
        for di, dj in np.ndindex(3, 3):
            weight = float(rows[1, 2 + di].sum() * columns[1, 2 + dj].sum())
            total += weight * float(root[1, 0, min(max(i + di - 1, 0), 4), min(max(j + dj - 1, 0), 5)])
            whole += weight
        want[1, 0, i, j] = total / whole
    got = spread(root, sensor)
    assert torch.allclose(got, want, atol=1e-6) and not torch.allclose(got[1], root[1], atol=0.1)


# FWHMs whose shares sum to 1 + 2.4e-7
@pytest.mark.parametrize("fwhm", [1.0, 2.3, 2.82])
def test_nothing_is_believed_more_than_wholly(fwhm: float) -> None:
    sensor = sensor_of(torch.full((1, 1, 7, 7), 1000.0), (fwhm, fwhm))
    assert float(spread(torch.ones(1, 1, 7, 7), sensor).max()) <= 1.0
    start, unknown = torch.full((1, 1, 56, 56), 1000.0), torch.zeros(1, 1, 7, 7)
    got = settled(torch.zeros_like(start), start, sensor._replace(known=unknown), TOLD, LINEAR)
    assert float(got.min()) >= 0.0


@pytest.mark.parametrize("fwhm", [2.5, 3.0])
def test_light_beside_a_bright_town_is_as_the_base_has_it_or_darker(fwhm: float) -> None:
    x = torch.full((1, 1, 160, 160), 0.3)
    x[..., 64:96, 64:96] = 300.0
    blur = sensor_of(x, (fwhm, fwhm))
    sensor = sensor_of(seen(x, blur.rows, blur.columns), (fwhm, fwhm))
    start = base(sensor, CUBIC, LINEAR)
    beside = (..., slice(64, 96), slice(112, 120))  # the third LR pixel from it
    refined = 0.5 * (x + start)
    got = deployed(refined, start, sensor)
    # with a sensor that ends sooner, the light that it misses beside the town was added there
    assert float(got[beside].mean()) < float(start[beside].mean())


def test_belief_is_decided_nearer_so_that_it_may_spread() -> None:
    assert NEAR_REACH + 1 == BLUR_REACH, "the receptive field takes the last step for one of the base's"
    sensor = sensor_of(torch.zeros(1, 1, 1, 1), (1.0, 2.5))
    narrow = near(sensor)
    assert narrow.rows.shape == (1, 2 * NEAR_REACH + 1, SCALE)
    assert float(narrow.columns.sum()) == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(narrow.rows, sensor.rows[:, 1:-1], atol=1e-6)
    assert torch.allclose(narrow.columns, sensor.columns[:, 1:-1], rtol=0.03)


def test_how_much_is_believed() -> None:
    y = torch.tensor([100.0, 100.0, 100.0, 0.02, 0.0]).reshape(1, 1, 1, 5)
    # the gap that halves it: g² = BELIEVED² · y (y + g), but for the noise
    gap = BELIEVED * (BELIEVED / 2 + math.sqrt(1 + BELIEVED**2 / 4)) * 100.0
    given = torch.tensor([100.0, 100.0 + gap, 1000.0, 0.06, 0.18]).reshape(1, 1, 1, 5)
    sensor = sensor_of(y, noise=0.02)
    got = believed(given, sensor, TOLD, BELIEF).flatten().tolist()
    # of the noise the gaps are 0, ∞, ∞, 2 and 9
    assert got[0] == pytest.approx(1.0) and got[1] == pytest.approx(0.5, abs=1e-3) and got[2] < 0.01
    assert 0.9 < got[3] < 1.0 and 0.4 < got[4] < 0.6
    nobody = believed(given, sensor._replace(known=torch.zeros_like(y)), TOLD, BELIEF).flatten()
    more = believed(given, sensor._replace(saturated=torch.ones_like(y)), TOLD, BELIEF).flatten()
    assert (believed(given, sensor, TOLD - 1, BELIEF) == 1).all(), "a blur that nobody knows shows nothing"
    assert (nobody == 1).all() and (more == 1).all(), (
        "what was not measured contradicts nothing, nor does a lower bound"
    )
