"""The documented degradation: what each step does, and that no value depends on the window."""

from __future__ import annotations

import numpy as np
import pytest

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.clips.degrade import (
    Degradation,
    degrade,
    displaced,
    parse_degradation,
    place_seed,
    shift_field,
)

NONE = Degradation(psf_fwhm_lr=0.0)


def lights(h: int, w: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    hr = rng.gamma(0.5, 10.0, (1, h * SCALE, w * SCALE)).astype(np.float32)
    return hr, np.ones_like(hr)


def blocks(a: np.ndarray) -> np.ndarray:
    h, w = (n // SCALE for n in a.shape)
    return a.reshape(h, SCALE, w, SCALE)


def test_without_blur_it_is_the_area_mean() -> None:
    hr, valid = lights(5, 7)
    lr, lr_valid, offset = degrade(hr, valid, NONE, seed=1)
    # float32 sums of 64 values
    np.testing.assert_allclose(lr[0], blocks(hr[0].astype(np.float64)).mean(axis=(1, 3)), rtol=1e-6)
    assert lr_valid.all() and not offset.any()
    assert lr.shape == lr_valid.shape == (1, 5, 7) and offset.shape == (2, 5, 7) and lr.dtype == np.float32


def test_blur_is_the_gaussian_of_the_stated_width() -> None:
    """A point source, seen by a sensor of FWHM 1.5 LR px: its spread is that of Gaussian and pixel together."""
    n, fwhm = 15, 1.5
    hr = np.zeros((1, n * SCALE, n * SCALE), np.float32)
    hr[0, 60, 60] = 6400.0
    lr, _, _ = degrade(hr, np.ones_like(hr), Degradation(psf_fwhm_lr=fwhm), seed=0)
    assert lr.sum() * SCALE**2 == pytest.approx(6400.0, rel=1e-4)  # interior light is conserved
    at = np.arange(n) + 0.5
    profile = lr[0].sum(axis=0, dtype=np.float64)
    centre = (profile * at).sum() / profile.sum()
    variance = (profile * (at - centre) ** 2).sum() / profile.sum()
    assert centre == pytest.approx(60.5 / SCALE, abs=1e-3)
    expected = (fwhm / 2.354820) ** 2 + 1 / 12  # the Gaussian's and the pixel's (a box of width 1)
    # 3 % for the cut at 3 σ (2.7 % of a Gaussian's variance) and for the sampling of the box at 8 points
    assert variance == pytest.approx(expected, rel=0.04)


def test_nodata_is_left_out_of_the_blur_and_negatives_stay() -> None:
    hr = np.full((1, 6 * SCALE, 6 * SCALE), -0.25, np.float32)
    valid = np.ones_like(hr)
    valid[:, :, : 3 * SCALE - 4] = (
        0  # half of the third column's blocks are valid, the first two columns are not
    )
    hr[valid == 0] = 1e9
    lr, lr_valid, _ = degrade(hr, valid, Degradation(psf_fwhm_lr=1.2), seed=0)
    assert lr_valid[0].tolist() == [[0, 0, 1, 1, 1, 1]] * 6
    np.testing.assert_allclose(lr[lr_valid == 1], -0.25, rtol=1e-5)
    assert not lr[lr_valid == 0].any()
    valid[:, 0, 3 * SCALE - 4] = 0  # one pixel less than half
    assert degrade(hr, valid, NONE, seed=0)[1][0, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_saturation_quantisation_and_noise() -> None:
    hr, valid = lights(20, 20)
    plain = degrade(hr, valid, NONE, 5)[0]
    dmsp = degrade(hr, valid, Degradation(0.0, saturation=6.0, quantum=6.0 / 63), 5)[0]
    assert dmsp.max() == pytest.approx(6.0) and (plain > 6.0).any()
    np.testing.assert_allclose(dmsp * 63 / 6, np.rint(dmsp * 63 / 6), atol=1e-4)
    assert np.abs(dmsp - np.minimum(plain, 6.0)).max() <= 3.0 / 63 + 1e-5
    noisy = degrade(hr, valid, Degradation(0.0, noise=0.3), 5)[0] - plain
    # 400 draws: the standard error of the deviation is 3.5 %, of the mean 0.015
    assert noisy.std() == pytest.approx(0.3, rel=0.12) and abs(noisy.mean()) < 0.06
    again, other = (degrade(hr, valid, Degradation(0.0, noise=0.3), seed)[0] - plain for seed in (5, 6))
    assert np.array_equal(noisy, again) and not np.array_equal(noisy, other)
    gain = degrade(hr, valid, Degradation(0.0, relative_noise=0.1), 5)[0] / plain - 1
    assert gain.std() == pytest.approx(0.1, rel=0.12)


def test_the_displacement_is_bounded_smooth_and_of_its_period() -> None:
    degradation = Degradation(shift_lr=1.5, shift_period=32.0)
    field = shift_field(degradation, 9, Window(-20, 7, 128, 128))
    length = np.hypot(*field)
    assert 0.9 < length.max() <= 1.5 + 1e-6
    steepest = max(np.abs(np.diff(field, axis=axis)).max() for axis in (1, 2))
    assert steepest <= 2 * np.pi / 32 * 1.5 / np.sqrt(2) + 1e-6
    # along its own direction a plane wave repeats after the period
    spectrum = np.abs(np.fft.fft2(field[0] - field[0].mean()))
    r, c = np.unravel_index(np.argmax(spectrum), spectrum.shape)
    cycles = np.hypot(min(r, 128 - r), min(c, 128 - c))
    assert cycles == pytest.approx(128 / 32, abs=0.8)  # the resolution of the spectrum is one cycle


def test_a_pixel_shows_what_lies_at_its_place_plus_offset() -> None:
    """A plane in x: LR at p must read the plane at p + offset(p)."""
    n = 24
    x = (np.arange(n * SCALE, dtype=np.float32) + 0.5) / SCALE
    hr = np.broadcast_to(x, (1, n * SCALE, n * SCALE)).copy()
    degradation = Degradation(psf_fwhm_lr=0.0, shift_lr=1.0, shift_period=48.0)
    lr, _, offset = degrade(hr, np.ones_like(hr), degradation, seed=4)
    inner = np.s_[2:-2, 2:-2]
    expected = (np.arange(n) + 0.5)[None, :] + offset[0]
    assert np.abs(offset).max() > 0.3
    # the offset bends inside a pixel: its second derivative is at most (2π/48)² · 0.7 = 0.012 per px²
    np.testing.assert_allclose(lr[0][inner], expected[inner], atol=2e-3)
    truth, known = displaced(hr, np.ones_like(hr), degradation, 4)
    np.testing.assert_allclose(blocks(truth[0]).mean(axis=(1, 3))[inner], lr[0][inner], rtol=1e-5)
    assert known[0, 2 * SCALE : -2 * SCALE, 2 * SCALE : -2 * SCALE].all()
    assert not known.all()  # what comes from outside is not known


@pytest.mark.parametrize(
    "degradation",
    [
        Degradation(1.2, noise=0.1, quantum=0.05),
        Degradation(1.7, shift_lr=1.3, shift_period=20.0, relative_noise=0.1),
    ],
    ids=["noise", "shift"],
)
def test_a_value_does_not_depend_on_the_window(degradation: Degradation) -> None:
    hr, valid = lights(21, 17)
    valid[:, 40:90, 10:60] = 0
    whole, whole_valid, whole_offset = degrade(hr, valid, degradation, seed=8)
    place = Window(0, 0, 21, 17)
    for window in (Window(0, 0, 5, 5), Window(7, 3, 6, 9), Window(20, 16, 1, 1)):
        wide = window.grown(degradation.halo_lr).clipped(21, 17)
        r, c = wide.scaled(SCALE).slices_in(place.scaled(SCALE))
        part = degrade(hr[:, r, c], valid[:, r, c], degradation, 8, (wide.row, wide.col))
        inside, at = window.slices_in(wide), window.slices_in(place)
        for got, expected in zip(part, (whole, whole_valid, whole_offset), strict=True):
            assert np.array_equal(got[:, *inside], expected[:, *at])


def test_text_becomes_a_degradation() -> None:
    assert parse_degradation("default") == Degradation()
    assert parse_degradation("psf=1.2, shift=0.5,noise=0.1") == Degradation(1.2, shift_lr=0.5, noise=0.1)
    for text in ("psf", "blur=1", "psf=x", "psf=1,psf_fwhm_lr=1"):
        with pytest.raises(InputError, match="KEY=NUMBER"):
            parse_degradation(text)
    for text in ("psf=5", "noise=-1", "saturation=0", "shift_period=1", "noise=inf"):
        with pytest.raises(InputError, match="the degradation's"):
            parse_degradation(text)


def test_places_have_seeds_of_their_own() -> None:
    assert place_seed(0, "train/a") == place_seed(0, "train/a") != place_seed(0, "train/b")
    assert place_seed(0, "ab") != place_seed(0, "ba")


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must be"):
        degrade(np.zeros((1, 9, 8), np.float32), np.zeros((1, 9, 8), np.float32), NONE, 0)
