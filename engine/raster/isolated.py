"""The blur estimated from isolated lights: a Gaussian behind the pixel's own box, fitted to each, and their median."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles, Floats
from deeplight.engine.core.windows import Window, split

if TYPE_CHECKING:
    from deeplight.engine.raster.layers import Layer


ENOUGH = 20
"""Lights from which an estimate is made."""
_PLENTY = 400
"""Candidates after which no more are looked for."""
_SIDE, _MOST_WINDOWS = 512, 64
"""LR pixels of a window, and how many are read at most: 1.7·10⁷ pixels, whatever the size of the scene."""
_RADIUS, _RING, _FITTED = 6, 2, 4
"""LR pixels around a light that must be valid and dimmer than it; width of the outermost part of them, which must be
dark; radius of what is fitted."""
_DARK = 0.05
"""Part of a light's height that its ring may vary by."""
_LEAST_HEIGHT = 2.0
"""nW/cm²/sr, or DN: what stands out of the noise of composites, 0.05, by far."""
_ALIKE = 0.03
"""Largest rms of what the fit leaves, in parts of the light's height: towns of several pixels leave more."""
_WIDEST = 4.0
"""FWHM from which a light is a town, not a point that is blurred."""
_STEPS, _SUBPIXELS = 25, 8
_FWHM = 2.354820045030949
"""FWHM of a Gaussian whose standard deviation is 1."""


def isolated_lights(layer: Layer, saturation: float) -> tuple[int, tuple[float, float]]:
    """How many lights were fitted, and the median FWHM in LR pixels along rows and columns, of the blur before pixels
    are averaged. saturation: value from which a light is not used."""
    patches: list[Floats] = []
    for window in spread_windows(layer.raster.grid.height, layer.raster.grid.width):
        around = window.grown(_RADIUS).clipped(*layer.raster.grid.shape)
        values, valid = layer.read_native(around)
        patches += candidates(values[0], valid != 0, window, around, saturation)
        if len(patches) >= _PLENTY:
            break
    if len(patches) < ENOUGH:
        return len(patches), (0.0, 0.0)
    found = fitted(np.stack(patches).astype(np.float64))
    if len(found) < ENOUGH:
        return len(found), (0.0, 0.0)
    down, across = np.median(found, axis=0)
    return len(found), (float(down), float(across))


def spread_windows(height: int, width: int) -> list[Window]:
    """Windows of a scene, at most _MOST_WINDOWS, evenly spread over it."""
    windows = list(split(Window(0, 0, height, width), _SIDE))
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(len(windows), _MOST_WINDOWS)).round().astype(int))
    return [windows[i] for i in chosen]


def candidates(
    values: Floats, valid: NDArray[np.bool_], window: Window, around: Window, saturation: float
) -> list[Floats]:
    """The surroundings (9, 9) of the lights of `window` that stand alone.

    values, valid: (h, w) of `around`, which holds the window.
    """
    side = 2 * _RADIUS + 1
    if min(values.shape) < side:
        return []
    inner = (slice(_RADIUS, -_RADIUS),) * 2
    peak = values[inner]
    least = np.float32(_LEAST_HEIGHT)
    good = (peak == _outermost(values, side, np.maximum)) & (peak >= least) & (peak < saturation)
    good &= _outermost(valid.astype(np.uint8), side, np.minimum) != 0
    row, col = window.row - around.row, window.col - around.col
    found = []
    for r, c in np.argwhere(good) + _RADIUS:
        if not (row <= r < row + window.height and col <= c < col + window.width):
            continue
        patch = values[r - _RADIUS : r + _RADIUS + 1, c - _RADIUS : c + _RADIUS + 1]
        if _alone(patch):
            cut = _RADIUS - _FITTED
            found.append(patch[cut:-cut, cut:-cut].copy())
    return found


def _outermost(values: NDArray[np.generic], side: int, pick: np.ufunc) -> NDArray[np.generic]:
    """`pick` over the square of `side` around each pixel that has all of it."""
    for axis in (0, 1):
        count = values.shape[axis] - side + 1
        total = np.take(values, range(count), axis)
        for k in range(1, side):
            total = pick(total, np.take(values, range(k, k + count), axis))
        values = total
    return values


def _alone(patch: Floats) -> bool:
    """Whether a light stands out of a dark, even ring around it, and no other pixel is as bright."""
    ring = np.ones(patch.shape, bool)
    ring[_RING:-_RING, _RING:-_RING] = False
    ground = float(np.median(patch[ring]))
    height = float(patch[_RADIUS, _RADIUS]) - ground
    single = int(np.count_nonzero(patch == patch[_RADIUS, _RADIUS])) == 1
    return single and height >= _LEAST_HEIGHT and float(np.ptp(patch[ring])) <= _DARK * height


def fitted(patches: Doubles) -> Doubles:
    """FWHM (m, 2) along rows and columns of those of the lights (n, k, k) that a blurred point explains.

    Levenberg and Marquardt's least squares for height, ground, place and width along each axis, all lights at once.
    """
    n, side, _ = patches.shape
    ground = np.median(patches.reshape(n, -1), axis=1)
    height = patches.max(axis=(1, 2)) - ground
    data = (patches - ground[:, None, None]) / height[:, None, None]
    # height, ground, row, column, width along rows, width along columns
    at = np.tile([1.2, 0.0, 0.0, 0.0, 0.7, 0.7], (n, 1))
    damping = np.full(n, 1e-2)
    model, slopes = _blurred_point(at, side)
    error = ((data - model) ** 2).sum(axis=(1, 2))
    for _ in range(_STEPS):
        normal = np.einsum("nirc,njrc->nij", slopes, slopes)
        diagonal = np.einsum("nii->ni", normal)
        normal += damping[:, None, None] * np.eye(6) * (diagonal[:, :, None] + 1e-9)
        toward = np.einsum("nirc,nrc->ni", slopes, data - model)
        tried = at + np.linalg.solve(normal, toward[..., None])[..., 0]
        tried[:, 4:] = np.clip(np.abs(tried[:, 4:]), 0.02, side)
        tried[:, 2:4] = np.clip(tried[:, 2:4], -1.5, 1.5)
        again, other = _blurred_point(tried, side)
        left = ((data - again) ** 2).sum(axis=(1, 2))
        better = left < error
        at[better], error[better] = tried[better], left[better]
        model[better], slopes[better] = again[better], other[better]
        damping = np.where(better, damping / 4, damping * 4).clip(1e-9, 1e6)
    fwhm = at[:, 4:] * _FWHM
    point = (np.sqrt(error) / side <= _ALIKE) & (fwhm < _WIDEST).all(axis=1)
    return np.asarray(fwhm[point])


def _blurred_point(at: Doubles, side: int) -> tuple[Doubles, Doubles]:
    """Points of light (n, k, k) behind a Gaussian and the pixel's box; the slopes (n, 6, k, k) by each parameter."""
    rows, rows_place, rows_width = _profile(at[:, 2], at[:, 4], side)
    cols, cols_place, cols_width = _profile(at[:, 3], at[:, 5], side)
    height = at[:, 0, None, None]

    def product(down: Doubles, across: Doubles) -> Doubles:
        return down[:, :, None] * across[:, None, :]

    shape = product(rows, cols)
    slopes = [
        shape,
        np.ones_like(shape),
        height * product(rows_place, cols),
        height * product(rows, cols_place),
        height * product(rows_width, cols),
        height * product(rows, cols_width),
    ]
    return height * shape + at[:, 1, None, None], np.stack(slopes, axis=1)


def _profile(place: Doubles, width: Doubles, side: int) -> tuple[Doubles, Doubles, Doubles]:
    """A Gaussian along one axis, averaged over each of `side` pixels, and its slopes by place and width: (n, side)."""
    inside = (np.arange(_SUBPIXELS) + 0.5) / _SUBPIXELS - 0.5
    pixel = np.arange(side) - side // 2
    from_centre = (pixel[:, None] + inside)[None] - place[:, None, None]
    scale = width[:, None, None]
    bell = np.exp(-0.5 * (from_centre / scale) ** 2)
    by_place, by_width = bell * from_centre / scale**2, bell * from_centre**2 / scale**3
    return bell.mean(axis=2), by_place.mean(axis=2), by_width.mean(axis=2)
