"""Metrics that look at neighbourhoods: each library against a second source, and each against what it must find."""

from __future__ import annotations

import numpy as np
import pytest
from pypiqe import piqe

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.spec import SCALE
from deeplight.train.evaluation.image import (
    border_jumps,
    piqe_fixed,
    residual_shift,
    ssim_map,
    whole_windows,
)


def town(shape: tuple[int, int] = (96, 112), seed: int = 0) -> Doubles:
    """Smooth spots of light with streets between them, radiance from 0 to about 60."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for _ in range(25):
        r, c, size = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(2, 9)
        image += rng.uniform(5, 30) * np.exp(-((y - r) ** 2 + (x - c) ** 2) / (2 * size**2))
    return image + 4.0 * (np.abs(x - y * 0.7 - 20) < 1.5)


def gaussian_window() -> Doubles:
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(line, line)
    return np.asarray(window / window.sum())


def plain_ssim(a: Doubles, b: Doubles, data_range: float, row: int, col: int) -> float:
    """Wang et al. (2004) at one pixel."""
    w = gaussian_window()
    pa, pb = (image[row - 5 : row + 6, col - 5 : col + 6] for image in (a, b))
    ma, mb = (w * pa).sum(), (w * pb).sum()
    va, vb = (w * (pa - ma) ** 2).sum(), (w * (pb - mb) ** 2).sum()
    cov = (w * (pa - ma) * (pb - mb)).sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return float((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))


@pytest.mark.parametrize("data_range", [200.0, 5.3])
def test_ssim_is_wang_s(data_range: float) -> None:
    a, b = town(), town(seed=1)
    if data_range < 10:
        a, b = np.log1p(a), np.log1p(b)
    found = ssim_map(a, b, data_range)
    assert found.shape == a.shape
    for row, col in ((5, 5), (40, 60), (90, 106), (33, 7)):
        # float32 rounds squares (4e3, of log1p 17) by 6e-8 a few times over, against (0.03 · range)²: 36, 0.025
        assert found[row, col] == pytest.approx(plain_ssim(a, b, data_range, row, col), abs=3e-4)


def test_ssim_of_equal_images_is_one_and_falls_with_noise() -> None:
    image = town()
    noise = np.random.default_rng(0).normal(size=image.shape)
    values = [ssim_map(image + s * noise, image, 60.0).mean() for s in (0, 1, 4)]
    assert values[0] == pytest.approx(1.0, abs=1e-6) and values[0] > values[1] > values[2]


def test_a_window_with_a_hole_is_not_looked_at() -> None:
    valid = np.ones((30, 40), bool)
    valid[10, 20] = False
    found = whole_windows(valid)
    wanted = np.ones_like(valid)
    wanted[5:16, 15:26] = False
    assert (found == wanted).all()


def test_piqe_is_the_package_s_where_white_is_reached() -> None:
    """There the package's own stretch is the fixed one."""
    image = town((80, 96)) / 60.0
    image[40, 50] = 1.0
    assert piqe_fixed(image) == pytest.approx(float(piqe(np.clip(image, 0, 1))[0]), abs=1e-9)


def plain_piqe(image: Doubles) -> float:
    """Venkatanath et al. (2015) for an image in 0 … 1 with sides that are multiples of 16, block by block."""
    levels = np.round(255 * image)
    line = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    line /= line.sum()
    padded = np.pad(levels, 3, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7))
    weight = np.outer(line, line)
    mean = (windows * weight).sum(axis=(2, 3))
    spread = np.sqrt(np.abs((windows**2 * weight).sum(axis=(2, 3)) - mean**2))
    normal = (levels - mean) / (spread + 1)
    distortion, active = 0.0, 0
    for r in range(0, image.shape[0], 16):
        for c in range(0, image.shape[1], 16):
            block = normal[r : r + 16, c : c + 16]
            variance = block.var(ddof=1)
            if variance <= 0.1:
                continue
            active += 1
            edges = (block[0], block[-1], block[:, 0], block[:, -1])
            flat = any(edge[k : k + 6].std(ddof=1) < 0.1 for edge in edges for k in range(11))
            # the published code takes columns 8 and 9 for the centre, and columns 8 and 10 out of the surround
            centre, surround = block[:, 7:9].std(ddof=1), np.delete(block, (7, 9), axis=1).std(ddof=1)
            sigma, ratio = np.sqrt(variance), centre / surround
            noisy = sigma > 2 * abs(sigma - ratio) / max(sigma, ratio)
            distortion += flat * (1 - variance) + noisy * variance
    return 100 * (distortion + 1) / (active + 1)


def test_piqe_is_the_paper_s_with_a_fixed_stretch() -> None:
    """Dark images must not be stretched to their own maximum: the reference does not stretch at all."""
    rng = np.random.default_rng(4)
    for bright in (0.9, 0.25, 0.08):
        image = np.clip(town((80, 96)) / 60.0 + rng.normal(0, 0.03, (80, 96)), 0, 1) * bright
        assert piqe_fixed(image) == pytest.approx(plain_piqe(image), abs=1e-9)
        own = float(piqe(image)[0])
        assert bright == 0.9 or abs(own - plain_piqe(image)) > 0.1, "the package alone would not do"


def test_piqe_of_nothing() -> None:
    assert piqe_fixed(np.zeros((64, 64))) == 100.0, "an even image has no active block"
    assert np.isnan(piqe_fixed(np.zeros((15, 64))))
    cut = town((83, 99)) / 60.0
    assert piqe_fixed(cut) == piqe_fixed(cut[:80, :96]), "blocks that are cut off are left out"


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, 0.0), (-2.0, 5.0), (0.5, -1.25), (2.3, 1.6)])
def test_a_shift_is_found(shift: tuple[float, float]) -> None:
    """Moved by a Fourier phase, the second source; the window's taper costs some hundredths of a pixel."""
    truth = np.log1p(town((160, 176)))
    fy, fx = np.fft.fftfreq(160)[:, None], np.fft.fftfreq(176)[None, :]
    moved = np.fft.ifft2(np.fft.fft2(truth) * np.exp(-2j * np.pi * (fx * shift[0] + fy * shift[1]))).real
    inner = (slice(16, 144), slice(16, 160))
    assert residual_shift(moved[inner], truth[inner]) == pytest.approx(shift, abs=0.12)


def test_a_blurred_image_lies_where_it_is() -> None:
    truth = np.log1p(town((160, 176)))
    line = np.ones(9) / 9
    blurred = np.apply_along_axis(np.convolve, 0, truth, line, mode="same")
    blurred = np.apply_along_axis(np.convolve, 1, blurred, line, mode="same")
    inner = (slice(16, 144), slice(16, 160))
    assert residual_shift(blurred[inner], truth[inner]) == pytest.approx((0, 0), abs=0.1)


def test_nothing_tells_where_an_even_image_lies() -> None:
    assert residual_shift(np.ones((64, 64)), town((64, 64))) is None
    assert residual_shift(town((12, 64)), town((12, 64))) is None


def test_seams_are_seen_and_gradients_are_not() -> None:
    h, w, margin = 4, 6, 8
    y, x = np.mgrid[: 8 * (h + 2), : 8 * (w + 2)].astype(float)
    smooth = 0.3 * x + 0.05 * y**2
    valid = np.ones(smooth.shape, bool)
    at = ([k == 2 for k in range(h)], [k in (1, 4) for k in range(w)])
    n_rows, n_cols = 8 * w, 8 * h  # pixels along a horizontal and a vertical border
    none = border_jumps(smooth, valid, margin, at)
    assert none[0] == pytest.approx(0, abs=1e-9) and none[1] == n_rows + 2 * n_cols
    assert none[3] == none[5] == (h - 1) * n_rows + (w - 2) * n_cols
    step = np.where(x >= margin + 4 * SCALE, 1.0, 0.0)
    found = border_jumps(smooth + step, valid, margin, at)
    assert found[0] - none[0] == pytest.approx(n_cols) and found[2] == pytest.approx(none[2])
    valid[:, margin + 4 * SCALE - 2] = False
    blind = border_jumps(smooth + step, valid, margin, at)
    assert blind[0] == pytest.approx(0, abs=1e-9) and blind[1] == none[1] - n_cols - 1
