"""Metrics that look at neighbourhoods: SSIM (torchmetrics), PIQE (pypiqe), residual shift, jumps at tile borders."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pypiqe import piqe
from torchmetrics.functional.image import structural_similarity_index_measure

from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.spec import SCALE

SSIM_RADIUS = 5
"""Pixels that the 11 × 11 Gaussian window (σ = 1.5) reaches."""
PIQE_BLOCK = 16
SHIFT_SIGMA = 1 / (4 * SCALE)
"""Standard deviation, in cycles per HR pixel, of the low-pass under which phases are compared: half of what the LR grid
can hold, since phases of detail that an output does not have are noise."""
_LEAST_SHIFT_SIDE = 16


def ssim_map(out: Doubles, truth: Doubles, data_range: float) -> Doubles:
    """Return the structural similarity at each pixel, (H, W), with K₁ = 0.01, K₂ = 0.03; edges are reflected.

    In float32: a convolution in float64 takes ten times as long on a CPU and the constants dwarf the difference.
    """
    a, b = (torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None] for image in (out, truth))
    found = structural_similarity_index_measure(
        a, b, sigma=1.5, data_range=data_range, reduction="none", return_full_image=True
    )
    image = found[1].reshape(out.shape).numpy()
    return np.asarray(image, np.float64)


def whole_windows(valid: NDArray[np.bool_], radius: int = SSIM_RADIUS) -> NDArray[np.bool_]:
    """Pixels of (H, W) whose square neighbourhood of `radius` is valid everywhere inside the array."""
    size = 2 * radius + 1
    padded = np.pad(~valid, radius).astype(np.int64)
    total = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    bad = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    return np.asarray(bad == 0)


class _Stretched(np.ndarray[Any, np.dtype[np.float64]]):
    """An image that says its maximum is 1, whatever it holds: pypiqe divides by it, and would make dark maps noisy."""

    def max(self, *_: Any, **__: Any) -> Any:
        """The value of white in the fixed stretch."""
        return 1.0


def piqe_fixed(image: Doubles) -> float:
    """PIQE (0 … 100, lower is better) of an image whose stretch is fixed: 0 is black, 1 is white, beyond is cut off.

    What is left of whole blocks of 16 × 16 is not looked at; NaN where there is no block, 100 where all are even.
    """
    h, w = (n - n % PIQE_BLOCK for n in image.shape)
    if not h or not w:
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        score, _, _, _ = piqe(np.clip(image[:h, :w], 0.0, 1.0).view(_Stretched))
    return float(score)


def residual_shift(out: Doubles, truth: Doubles) -> tuple[float, float] | None:
    """How far `out` lies from `truth` as (x, y) in pixels, both (H, W), by phase correlation; None where nothing tells.

    Kuglin and Hines (1975). In two passes, the second on the parts that correspond: what leaves the window otherwise
    draws the estimate towards 0.
    """
    first = _phase_shift(out, truth)
    if first is None:
        return None
    dx, dy = (round(v) for v in first)
    h, w = truth.shape
    there = (slice(max(dy, 0), h + min(dy, 0)), slice(max(dx, 0), w + min(dx, 0)))
    here = (slice(max(-dy, 0), h + min(-dy, 0)), slice(max(-dx, 0), w + min(-dx, 0)))
    second = _phase_shift(out[there], truth[here])
    return first if second is None else (dx + second[0], dy + second[1])


def _phase_shift(out: Doubles, truth: Doubles) -> tuple[float, float] | None:
    """One pass. Phases are weighted with a Gaussian low-pass, whose correlation peak is a Gaussian too, so that a
    parabola through the logarithms of three samples finds it between pixels.
    """
    if min(out.shape) < _LEAST_SHIFT_SIDE:
        return None
    taper = np.outer(*(np.hanning(n + 2)[1:-1] for n in out.shape))
    a, b = (np.fft.fft2((image - image.mean()) * taper) for image in (out, truth))
    cross = a * np.conj(b)
    size = np.abs(cross)
    if not np.isfinite(size).all() or size.max() <= 1e-12:
        return None
    fy, fx = np.fft.fftfreq(out.shape[0])[:, None], np.fft.fftfreq(out.shape[1])[None, :]
    low_pass = np.exp(-0.5 * (fy**2 + fx**2) / SHIFT_SIGMA**2)
    peak = np.fft.ifft2(cross / np.maximum(size, 1e-9 * size.max()) * low_pass).real
    row, col = np.unravel_index(int(peak.argmax()), peak.shape)
    return _between(peak[row, :], int(col)), _between(peak[:, col], int(row))


def _between(line: Doubles, at: int) -> float:
    """Signed place of the peak of a circular line near `at`, by a parabola through the logarithms."""
    n = len(line)
    low, top, high = (np.log(max(float(line[(at + k) % n]), 1e-12)) for k in (-1, 0, 1))
    bend = low - 2.0 * top + high
    place = at + (0.5 * (low - high) / bend if bend < 0 else 0.0)
    return float((place + n / 2) % n - n / 2)


def border_jumps(
    out: Doubles, valid: NDArray[np.bool_], margin: int, at_tile: tuple[list[bool], list[bool]]
) -> Doubles:
    """Jumps across the borders of LR pixels, those between tiles apart.

    out, valid: (H, W) with `margin` pixels around a core that starts at a corner of LR pixels. at_tile: for each LR row
    and each LR column of the core, whether a tile begins there. Returns six sums: excess and number at tile borders,
    excess and number at the others, jumps and number at the others. The excess of a jump is what it has over the mean
    of the jumps one pixel before and after it, so the scene's own gradients drop out.
    """
    sums = np.zeros(6)
    for axis, starts in enumerate(at_tile):
        image, known = (out, valid) if axis == 0 else (out.T, valid.T)
        inner = slice(margin, image.shape[1] - margin)
        for k, tile in enumerate(starts):
            r = margin + k * SCALE
            rows = image[r - 2 : r + 2, inner]
            good = known[r - 2 : r + 2, inner].all(axis=0)
            before, jump, after = np.abs(np.diff(rows[:, good], axis=0))
            excess = float((jump - 0.5 * (before + after)).sum())
            n = float(np.count_nonzero(good))
            if tile:
                sums[:2] += [excess, n]
            else:
                sums[2:] += [excess, n, float(jump.sum()), n]
    return sums
