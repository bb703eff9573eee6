"""What the night sensor makes of the lights: displacement, point spread, area mean, saturation, noise.

Sign convention. A displacement (x, y) belongs to a pixel of the NTL frame and is in LR px, x to the east
(columns), y to the south (rows). The NTL raster shows at position p what lies on the ground at p + offset(p);
sampling an auxiliary raster (which is in the ground frame) at p + offset(p) therefore aligns it with the NTL
raster.
"""

from __future__ import annotations

import numpy as np

from deeplight.engine.core.arrays import Doubles, Floats
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.synth.noise import bell, fractal, hash_window, stream

_DRIFT = {6: 0.55, 5: 0.6, 4: 0.25}
_HR_PSF = np.array([0.21, 0.58, 0.21], np.float32)


def displacement(seed: int, amplitude: float, window_lr: Window) -> Floats:
    """Return the true offset (2, h, w) in LR px at the LR pixel centres: smooth over tens of LR px, shorter than
    `amplitude`.
    """
    x = fractal(stream(seed, 60), _DRIFT, window_lr)
    y = fractal(stream(seed, 61), _DRIFT, window_lr)
    gain = np.float32(amplitude) / np.sqrt(np.float32(1) + x * x + y * y)
    return np.stack([x * gain, y * gain])


def interpolated(field: Floats) -> Floats:
    """Interpolate (c, h + 2, w + 2) bilinearly to (c, 8h, 8w) between LR pixel centres; one LR pixel of
    border is used up.
    """
    t = (np.arange(SCALE) + 0.5) / SCALE - 0.5
    first = np.where(t < 0, 0, 1)
    w = (t - np.floor(t)).astype(np.float32)
    n = field.shape[1] - 2
    rows = np.empty((field.shape[0], n * SCALE, field.shape[2]), np.float32)
    for k in range(SCALE):
        a = field[:, first[k] : first[k] + n]
        rows[:, k::SCALE] = a + (field[:, first[k] + 1 : first[k] + 1 + n] - a) * w[k]
    n = field.shape[2] - 2
    out = np.empty((field.shape[0], rows.shape[1], n * SCALE), np.float32)
    for k in range(SCALE):
        a = rows[:, :, first[k] : first[k] + n]
        out[:, :, k::SCALE] = a + (rows[:, :, first[k] + 1 : first[k] + 1 + n] - a) * w[k]
    return out


def displaced(fields: list[Floats], source: Window, offset_hr: Floats, target: Window) -> list[Floats]:
    """Sample fields on HR window `source` bilinearly at p + offset(p) for the pixels p of `target`.

    offset_hr: (2, height, width) in HR px. Whole part and fraction are split before the position is added, so
    that the result does not depend on where the windows lie.
    """
    whole = np.floor(offset_hr)
    fx, fy = offset_hr[0] - whole[0], offset_hr[1] - whole[1]
    cols = np.arange(target.width)[None, :] + (target.col - source.col) + whole[0].astype(np.int64)
    rows = np.arange(target.height)[:, None] + (target.row - source.row) + whole[1].astype(np.int64)
    at = rows * source.width + cols
    out = []
    for field in fields:
        flat = field.ravel()
        top, low = flat[at], flat[at + source.width]
        top += (flat[at + 1] - top) * fx
        low += (flat[at + source.width + 1] - low) * fx
        out.append(top + (low - top) * fy)
    return out


def hr_blur(light: Floats) -> Floats:
    """Apply the HR sensor's point spread, 3 × 3; one pixel of border is used up."""
    a, b, c = _HR_PSF
    rows = light[:-2] * a + light[1:-1] * b + light[2:] * c
    return np.asarray(rows[:, :-2] * a + rows[:, 1:-1] * b + rows[:, 2:] * c, np.float32)


def lr_kernel(fwhm_lr: float) -> Doubles:
    """Return the LR sensor along one axis: a Gaussian of `fwhm_lr` LR px (cut at 3σ, sum 1) convolved with the 8-px
    area mean.
    """
    sigma = fwhm_lr * SCALE / 2.3548200450309493
    radius = int(np.ceil(3 * sigma))
    gauss = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-6)) ** 2)
    return np.convolve(gauss / gauss.sum(), np.full(SCALE, 1 / SCALE))


def sensor_matrix(fwhm_lr: float, n: int) -> Floats:
    """The LR sensor along one axis of n LR px as a matrix (n, 8n): Gaussian of `fwhm_lr` LR px cut at 4σ, then the 8-px
    area mean. Beyond the ends the outermost pixels are repeated.
    """
    sigma = max(fwhm_lr * SCALE / 2.3548200450309493, 1e-6)
    radius = int(4 * sigma + 0.5)
    gauss = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = np.convolve(gauss / gauss.sum(), np.full(SCALE, 1 / SCALE))
    at = SCALE * np.arange(n)[:, None] + np.arange(-radius, radius + SCALE)[None, :]
    matrix = np.zeros((n, SCALE * n))
    np.add.at(matrix, (np.arange(n)[:, None], at.clip(0, SCALE * n - 1)), kernel[None, :])
    return matrix.astype(np.float32)


def halo_lr(fwhm_lr: float) -> int:
    """LR pixels around a window that its blur needs."""
    return -(-(len(lr_kernel(fwhm_lr)) - SCALE) // 2 // SCALE) if fwhm_lr > 0 else 0


def blurred_mean(light: Floats, fwhm_lr: float) -> Floats:
    """HR radiance (8·(h + 2k), 8·(w + 2k)) → LR (h, w), k = halo_lr: Gaussian blur, then the 8 × 8 area
    mean.
    """
    kernel = lr_kernel(fwhm_lr).astype(np.float32)
    halo = halo_lr(fwhm_lr)
    first = halo * SCALE - (len(kernel) - SCALE) // 2
    h, w = (n // SCALE - 2 * halo for n in light.shape)
    rows = np.zeros((h, light.shape[1]), np.float32)
    for k, weight in enumerate(kernel, first):
        rows += light[k : k + SCALE * (h - 1) + 1 : SCALE] * weight
    out = np.zeros((h, w), np.float32)
    for k, weight in enumerate(kernel, first):
        out += rows[:, k : k + SCALE * (w - 1) + 1 : SCALE] * weight
    return out


def sensed(
    mean: Floats, seed: int, window_lr: Window, additive: float, relative: float, saturation: float | None
) -> Floats:
    """LR radiance as recorded: gain noise, additive noise (gives small negatives), then 6 bits up to
    `saturation`.

    additive: standard deviation in nW/cm²/sr. relative: standard deviation as a share of the radiance.
    saturation: radiance at digital number 63, as with DMSP-OLS; the result stays in nW/cm²/sr. None: no
    limit.
    """
    out = mean.copy()
    if relative:
        out *= np.float32(1) + np.float32(relative) * bell(hash_window(stream(seed, 62), window_lr))
    if additive:
        out += np.float32(additive) * bell(hash_window(stream(seed, 63), window_lr))
    if saturation is not None:
        dn = np.clip(
            np.floor(out * np.float32(63.0 / saturation) + np.float32(0.5)), np.float32(0), np.float32(63)
        )
        out = dn * np.float32(saturation / 63.0)
    return out
