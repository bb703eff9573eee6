"""The sensor in NumPy: the same numbers as the network's, and a blur that keeps light."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeplight.engine.core.arrays import Floats
from deeplight.engine.network import consistency as network
from deeplight.engine.run import sensor as host
from deeplight.engine.run.sensor import STEP_REACH, Sensor, blur_weights, consistent, enlarged, seen
from deeplight.kernels.agree import reference as steps
from deeplight.kernels.interpolation import interpolation_line

LINEAR = interpolation_line(8, "linear")


def tensor(values: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))[None, None]


def lights(h: int, w: int, seed: int = 0) -> tuple[Floats, Floats]:
    """LR (h, w) with dark, bright and negative pixels, and a refined image (8h, 8w) that does not agree with it."""
    rng = np.random.default_rng(seed)
    lr = (rng.gamma(0.4, 20, (h, w)) - 0.2).astype(np.float32)
    return lr, rng.gamma(0.3, 10, (8 * h, 8 * w)).astype(np.float32)


def as_network(sensor: Sensor) -> steps.Sensor:
    return steps.Sensor(
        tensor(sensor.y),
        tensor(sensor.known),
        tensor(sensor.saturated),
        torch.from_numpy(sensor.rows)[None],
        torch.from_numpy(sensor.columns)[None],
        torch.full((1, 1, 1, 1), float(sensor.noise)),
    )


def test_constants_are_the_network_s() -> None:
    for module, names in (
        (steps, ("BLUR_REACH", "RATIO_LIMIT")),
        (network, ("STEP_REACH", "SHARPEST_SIGMA", "UNKNOWN_NOISE", "LEAST_NOISE")),
    ):
        for name in names:
            assert getattr(host, name) == getattr(module, name)


@pytest.mark.parametrize("fwhm", [0.0, 0.05, 0.7, 1.6, 3.2])
def test_weights_are_the_network_s(fwhm: float) -> None:
    want = network.blur_weights(torch.tensor([fwhm]))[0].numpy()
    np.testing.assert_allclose(blur_weights(fwhm), want, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (5, 9), (12, 7)])
def test_seen_and_enlarged_are_the_network_s(h: int, w: int) -> None:
    lr, x = lights(h, w)
    rows, columns = blur_weights(1.6), blur_weights(2.5)
    want = steps.seen(tensor(x), torch.from_numpy(rows)[None], torch.from_numpy(columns)[None])[0, 0].numpy()
    # sums of 3136 products in another order: float32 rounds to 6e-8 of the largest
    np.testing.assert_allclose(seen(x, rows, columns), want, rtol=0, atol=1e-6 * x.max())
    want = steps.enlarged(tensor(lr), LINEAR)[0, 0].numpy()
    np.testing.assert_allclose(enlarged(lr), want, rtol=0, atol=1e-6 * lr.max())


@pytest.mark.parametrize("power", [1.0, 2.0, 4.68])
def test_a_step_is_the_network_s(power: float) -> None:
    lr, x = lights(13, 11)
    valid = np.ones_like(lr)
    valid[4:6, 3:5] = 0
    sensor = Sensor.of(lr, valid, np.float32([1.2, 2.4]), np.float32([60, -1]))
    assert sensor.saturated.any() and not sensor.saturated.all()
    want = steps.agree(tensor(x), as_network(sensor), LINEAR, power)[0, 0].numpy()
    got, factor = consistent(x, sensor, power)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * want.max())
    np.testing.assert_array_equal(got, x * factor)


@pytest.mark.parametrize(
    ("limits", "noise", "saturated"),
    [((-1, -1), 0.05, 0), ((-1, 0.45), 0.45, 0), ((-1, 0), 1e-3, 0), ((62, 0.3), 0.3, 1), ((0, -1), 0.05, 0)],
)
def test_what_limits_say(limits: tuple[float, float], noise: float, saturated: int) -> None:
    sensor = Sensor.of(
        np.float32([[62, 61.9]]), np.ones((1, 2), np.float32), np.float32([-1, -1]), np.float32(limits)
    )
    assert sensor.noise == np.float32(noise)
    assert sensor.saturated.tolist() == [[saturated, 0]]
    # an unknown blur counts as none: the weights are the pixel's own
    np.testing.assert_allclose(sensor.rows[3], 1 / 8, rtol=1e-6)


def test_saturated_pixels_ask_only_for_more_and_unknown_ones_for_nothing() -> None:
    lr = np.full((9, 9), 63, np.float32)
    valid = np.ones_like(lr)
    bright, dark = np.full((72, 72), 90, np.float32), np.full((72, 72), 30, np.float32)
    sensor = Sensor.of(lr, valid, np.float32([1, 1]), np.float32([63, 0.3]))
    np.testing.assert_array_equal(consistent(bright, sensor)[0], bright)
    assert (consistent(dark, sensor)[0] > 60).all()
    nothing = Sensor.of(lr, 0 * valid, np.float32([1, 1]), np.float32([-1, 0.3]))
    np.testing.assert_array_equal(consistent(dark, nothing)[0], dark)


def test_a_step_sees_no_farther_than_it_says() -> None:
    lr, x = lights(15, 15)
    sensor = Sensor.of(lr, np.ones_like(lr), np.float32([3.2, 3.2]), np.float32([-1, -1]))
    before = consistent(x, sensor)[0]
    other = x.copy()
    other[7 * 8 : 8 * 8, 7 * 8 : 8 * 8] += 1e3
    changed = (consistent(other, sensor)[0] != before).reshape(15, 8, 15, 8).any(axis=(1, 3))
    rows = np.flatnonzero(changed.any(axis=1))
    assert (rows[0], rows[-1]) == (7 - STEP_REACH, 7 + STEP_REACH)
