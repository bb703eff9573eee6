"""A coarser sensor made from a finer raster: the documented degradation of `clip --degrade` and of Wald's protocol.

In this order: a smooth displacement, a Gaussian point spread, the mean of 8 × 8 pixels, gain noise, additive noise,
saturation, quantisation. Every value depends on the seed, on the pixel's place and on the pixels around it, never on
the window it is computed in.

A displacement follows the convention of `train.synth.degrade`: the coarse raster shows at p what lies on the ground at
p + offset(p), and the truth that belongs to it is displaced alike (`displaced`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.warp import HALF, area_mean
from deeplight.train.synth.degrade import blurred_mean
from deeplight.train.synth.degrade import halo_lr as psf_halo
from deeplight.train.synth.noise import bell, hash_window, stream, unit

SHORT = {"psf": "psf_fwhm_lr", "shift": "shift_lr"}
"""Short names of fields of Degradation, in texts and settings."""
_LARGEST_PSF, _LARGEST_SHIFT = 4.0, 4.0


@dataclass(frozen=True)
class Degradation:
    """What the coarse sensor does. Lengths in its own (LR) pixels, radiances in the raster's unit.

    psf_fwhm_lr: full width at half maximum of the Gaussian point spread, cut at 3 σ; 0: none. saturation: largest value
    that is recorded, or None. shift_lr: bound of the displacement's length; 0: none. shift_period: wavelength of the
    displacement field. noise, relative_noise: standard deviations of the additive noise and of the gain's. quantum:
    step of the recorded values; 0: none. DMSP-OLS is about psf 2, saturation R, quantum R / 63.
    """

    psf_fwhm_lr: float = 1.0
    saturation: float | None = None
    shift_lr: float = 0.0
    shift_period: float = 64.0
    noise: float = 0.0
    relative_noise: float = 0.0
    quantum: float = 0.0

    def __post_init__(self) -> None:
        """Raise InputError where a value makes no sense."""
        limits = {"psf_fwhm_lr": _LARGEST_PSF, "shift_lr": _LARGEST_SHIFT, "relative_noise": 1.0}
        for name in ("psf_fwhm_lr", "shift_lr", "relative_noise", "noise", "quantum"):
            value, most = getattr(self, name), limits.get(name, math.inf)
            if not 0 <= value <= most or not math.isfinite(value):
                upper = f"between 0 and {most:g}" if math.isfinite(most) else "a number that is 0 or larger"
                raise InputError(f"the degradation's {name} is {value}; it must be {upper}")
        if self.saturation is not None and not 0 < self.saturation < math.inf:
            raise InputError(
                f"the degradation's saturation is {self.saturation}; give a radiance above 0, or none"
            )
        if not 4 <= self.shift_period < math.inf:
            raise InputError(
                f"the degradation's shift_period is {self.shift_period} LR pixels; it must be 4 or larger"
            )

    @property
    def halo_lr(self) -> int:
        """How many LR pixels around a window its values depend on."""
        return psf_halo(self.psf_fwhm_lr) + (math.ceil(self.shift_lr + 0.25) if self.shift_lr else 0)


def told(degradation: Degradation) -> tuple[Floats, Floats]:
    """Return `psf` and `limits` of the coarse sensor, (2,) each, as spec.INPUTS describes them."""
    level = -1.0 if degradation.saturation is None else degradation.saturation
    noise = math.hypot(degradation.noise, degradation.quantum / math.sqrt(12.0))
    return np.full(2, degradation.psf_fwhm_lr, np.float32), np.array([level, noise], np.float32)


def parse_degradation(text: str) -> Degradation:
    """`psf=1.2,noise=0.1,saturation=63` → a degradation; an empty text or `default` gives the default.

    Keys: the field names, or psf and shift for short. Raises InputError in one sentence.
    """
    known = {field.name: field.name for field in fields(Degradation)}
    known |= SHORT
    given: dict[str, float] = {}
    for part in [] if text.strip() in ("", "default") else text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if key not in known or math.isnan(number) or known[key] in given:
            raise InputError(
                f"degradation {part.strip()!r} is not KEY=NUMBER, each key once; keys are {', '.join(sorted(known))}, "
                "and an example is psf=1.2,noise=0.1"
            )
        given[known[key]] = number
    return Degradation(**given)


def place_seed(seed: int, name: str) -> int:
    """Return the seed of one place, so that each name has a noise and a displacement of its own."""
    for code in name.encode():
        seed = stream(seed, code)
    return seed


def shift_field(degradation: Degradation, seed: int, window_lr: Window) -> Floats:
    """The displacement (2, h, w), x then y, in LR px at the LR pixel centres of `window_lr`, no longer than shift_lr.

    Each component is a plane wave of wavelength shift_period, its direction and phase drawn from the seed.
    """
    rows = window_lr.row + np.arange(window_lr.height) + 0.5
    cols = window_lr.col + np.arange(window_lr.width) + 0.5
    return _waves(degradation, seed, rows, cols)


def _waves(degradation: Degradation, seed: int, rows: NDArray[Any], cols: NDArray[Any]) -> Floats:
    """The field at the places rows × cols, in LR px from the place's corner."""
    turn = 2 * math.pi
    out = np.empty((2, len(rows), len(cols)), np.float32)
    for axis in range(2):
        name = 80 + 2 * axis
        angle, phase = (
            turn * float(unit(np.array([stream(seed, n)], np.uint32))[0]) for n in (name, name + 1)
        )
        along_y = (rows * math.sin(angle))[:, None]
        wave = np.sin((turn / degradation.shift_period) * (along_y + cols * math.cos(angle)) + phase)
        out[axis] = wave * (degradation.shift_lr / math.sqrt(2.0))
    return out


def displaced(
    values: Floats, valid: Floats, degradation: Degradation, seed: int, corner: tuple[int, int] = (0, 0)
) -> tuple[Floats, Floats]:
    """Return fields and their mask in the frame of the displaced sensor: sampled bilinearly at p + offset(p).

    values: (C, 8h, 8w) float32 on the HR grid; valid: (1, 8h, 8w), 1 = valid. corner: (row, col) of the arrays' corner
    in the place, in LR px. What the displacement brings in from outside the arrays is invalid, as is a pixel less than
    half of whose weight is on valid ones. Without displacement the arrays are returned as they are.
    """
    if not degradation.shift_lr:
        return values, valid
    height, width = values.shape[1:]
    rows, cols = np.arange(height), np.arange(width)
    # positions in LR px of the place, HR pixel centres
    at = _waves(
        degradation, seed, corner[0] + (rows + 0.5) / SCALE, corner[1] + (cols + 0.5) / SCALE
    ) * np.float32(SCALE)
    whole = np.floor(at)
    fx, fy = at - whole
    c, r = cols[None, :] + whole[0].astype(np.int64), rows[:, None] + whole[1].astype(np.int64)
    masked = values * valid
    total, weight = np.zeros_like(values), np.zeros((height, width), np.float32)
    one = np.float32(1)
    for dr, dc, w in ((0, 0, (one - fy) * (one - fx)), (0, 1, (one - fy) * fx), (1, 0, fy * (one - fx)),
                      (1, 1, fy * fx)):  # fmt: skip
        i, j = r + dr, c + dc
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        i, j = np.where(inside, i, 0), np.where(inside, j, 0)
        w = np.where(inside, w, np.float32(0))
        total += masked[:, i, j] * w
        weight += valid[0, i, j] * w
    there = weight >= HALF
    out = np.where(there, total / np.where(there, weight, one), np.float32(0))
    return out, there.astype(np.float32)[None]


def degrade(
    hr: Floats, valid: Floats, degradation: Degradation, seed: int, corner: tuple[int, int] = (0, 0)
) -> tuple[Floats, Floats, Floats]:
    """Degrade a finer raster: returns lr (1, h, w), lr_valid (1, h, w) and offset (2, h, w) in LR px, float32.

    hr, valid: (1, 8h, 8w), valid 1 or 0. corner: (row, col) of the arrays' corner in the place, in LR px; an array that
    is a window grown by `degradation.halo_lr` and cropped again gives the window's values exactly. Nothing is known
    outside the arrays. The point spread weighs valid pixels only; an LR pixel is valid where at least half of its own
    8 × 8 pixels are. Values below 0 stay.

    Raises ValueError for shapes that do not fit.
    """
    if (
        hr.ndim != 3
        or hr.shape != valid.shape
        or hr.shape[0] != 1
        or hr.shape[1] % SCALE
        or hr.shape[2] % SCALE
    ):
        raise ValueError(f"hr {hr.shape} and valid {valid.shape} must be (1, {SCALE}h, {SCALE}w)")
    h, w = hr.shape[1] // SCALE, hr.shape[2] // SCALE
    window = Window(corner[0], corner[1], h, w)
    offset = shift_field(degradation, seed, window)
    seen, known = displaced(hr, valid, degradation, seed, corner)
    mean, lr_valid = _spread(seen[0], known[0], degradation.psf_fwhm_lr)
    lr = _recorded(mean, degradation, seed, window) * lr_valid
    return lr[None], lr_valid[None], offset


def _spread(values: Floats, valid: Floats, fwhm_lr: float) -> tuple[Floats, Floats]:
    """Point spread and area mean over the valid pixels, and the mask."""
    _, own = area_mean(values[None], valid, SCALE, SCALE)
    edge = psf_halo(fwhm_lr) * SCALE
    weight = blurred_mean(np.pad(valid, edge), fwhm_lr)
    total = blurred_mean(np.pad(values * valid, edge), fwhm_lr)
    known = (own != 0) & (weight > 0)
    mean = np.where(known, total / np.where(known, weight, np.float32(1)), np.float32(0))
    return np.asarray(mean, np.float32), known.astype(np.float32)


def _recorded(mean: Floats, degradation: Degradation, seed: int, window: Window) -> Floats:
    """Noise, saturation and quantisation."""
    out = mean.copy()
    if degradation.relative_noise:
        out *= np.float32(1) + np.float32(degradation.relative_noise) * bell(
            hash_window(stream(seed, 90), window)
        )
    if degradation.noise:
        out += np.float32(degradation.noise) * bell(hash_window(stream(seed, 91), window))
    if degradation.saturation is not None:
        out = np.minimum(out, np.float32(degradation.saturation))
    if degradation.quantum:
        out = np.round(out / np.float32(degradation.quantum)) * np.float32(degradation.quantum)
    return np.asarray(out, np.float32)
