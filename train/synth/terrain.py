"""Relief: mountain belts with ridges, hills, valleys with rivers, lakes and sea where the land is low.

Lattice k has a node every 2^k HR pixels. The relief is shaped on lattice 2 and subdivided; a little detail is
added at HR. `relief` on a coarser lattice is the same land without its finer octaves, for siting settlements
and roads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.synth.noise import ancestors, fractal, smoothstep, stream, upsampled

LR_METRES = 463.83
"""Nominal side of an LR pixel (15 arc-seconds); slopes are computed with it along both axes."""
HR_METRES = LR_METRES / SCALE

_SHAPED = 2
_CONTINENT = {10: 0.55, 9: 0.8, 8: 0.45}
_BELT = {10: 0.5, 9: 0.9, 8: 0.35, 7: 0.15}
_RIDGES = {7: 0.9, 6: 0.45, 5: 0.25, 4: 0.12}
_SPURS = {5: 0.9, 4: 0.5, 3: 0.25}
_HILLS = {7: 0.5, 6: 0.6, 5: 0.5, 4: 0.35, 3: 0.2, 2: 0.1}
_RIVER = {8: 0.8, 7: 0.6, 6: 0.3, 5: 0.15, 4: 0.06}


@dataclass(frozen=True)
class Terrain:
    """Relief on an HR window, float32 (height, width).

    elevation: metres, 0 on the sea. gradient_x, gradient_y: rise over run, to the east and to the south.
    slope: their norm. water: share of water, [0, 1].
    """

    elevation: Floats
    gradient_x: Floats
    gradient_y: Floats
    slope: Floats
    water: Floats


@dataclass(frozen=True)
class ReliefShape:
    """How a country's relief differs from the usual one.

    lowered: metres by which all land lies lower, so that the sea comes nearer. broken: height in metres of additional
    hills a few LR px wide, which the sea makes islands of.
    """

    lowered: float = 0.0
    broken: float = 0.0


PLAIN = ReliefShape()
_BROKEN = {7: 0.7, 6: 0.5, 5: 0.35, 4: 0.15}


def _octaves(amplitudes: dict[int, float], level: int) -> dict[int, float]:
    return {k: a for k, a in amplitudes.items() if k >= level}


def relief(seed: int, window: Window, level: int, shape: ReliefShape = PLAIN) -> tuple[Floats, Floats]:
    """(height in metres, river noise) at the nodes of `window` on lattice `level` ≤ 5; below 0 m lies the
    sea.

    Rivers run where the river noise is near 0; the valley around them is carved into the height.
    """

    def noise(name: int, amplitudes: dict[int, float]) -> Floats:
        return fractal(stream(seed, name), _octaves(amplitudes, level), window, level)

    belt = smoothstep(noise(2, _BELT), 0.05, 1.6)
    ridge = np.clip(np.float32(1.0) - np.abs(noise(3, _RIDGES)), np.float32(0), np.float32(1))
    spur = np.clip(np.float32(1.0) - np.abs(noise(4, _SPURS)), np.float32(0), np.float32(1))
    hills = noise(5, _HILLS)
    river = noise(6, _RIVER)
    height = np.float32(150.0) * noise(1, _CONTINENT) + np.float32(190.0)
    height += belt * (np.float32(350.0) + ridge * ridge * (np.float32(1150.0) + np.float32(450.0) * spur))
    height += (np.float32(22.0) + np.float32(90.0) * belt) * hills
    if shape.broken:
        height += np.float32(shape.broken) * noise(8, _BROKEN)
    if shape.lowered:
        height -= np.float32(shape.lowered)
    valley = np.float32(1.0) / (np.float32(1.0) + river * river * np.float32(30.0))
    height -= valley * (np.float32(0.35) * np.maximum(height, np.float32(0)) + np.float32(25.0))
    return height, river


def rivers(seed: int, window: Window) -> Floats:
    """The river noise at the HR pixels of `window`; a river runs where it is near 0."""
    coarse = fractal(stream(seed, 6), _octaves(_RIVER, _SHAPED), ancestors(window, _SHAPED), _SHAPED)
    return upsampled(coarse, window, _SHAPED)


def terrain(seed: int, window: Window, shape: ReliefShape = PLAIN) -> Terrain:
    """Relief at the HR pixels of `window`."""
    grown = window.grown(1)
    height, river = relief(seed, ancestors(grown, _SHAPED), _SHAPED, shape)
    height, river = upsampled(height, grown, _SHAPED), upsampled(river, grown, _SHAPED)
    rough = np.clip(np.float32(0.006) * height, np.float32(0.3), np.float32(8.0))
    height += rough * fractal(stream(seed, 7), {1: 0.8, 0: 0.25}, grown)
    land = np.maximum(height, np.float32(0))
    run = np.float32(1.0 / (2.0 * HR_METRES))
    gx = (land[1:-1, 2:] - land[1:-1, :-2]) * run
    gy = (land[2:, 1:-1] - land[:-2, 1:-1]) * run
    inner = np.s_[1:-1, 1:-1]
    # Half a metre of height, or the noise's change over a pixel, makes the shore's partial pixels.
    sea = np.clip(np.float32(0.5) - height[inner], np.float32(0), np.float32(1))
    width = np.float32(0.022) - np.float32(0.00005) * np.clip(height[inner], np.float32(0), np.float32(400))
    stream_cover = np.clip(
        (width - np.abs(river[inner])) * np.float32(90.0) + np.float32(0.5), np.float32(0), np.float32(1)
    )
    water = np.maximum(sea, stream_cover)
    slope = np.sqrt(gx * gx + gy * gy)
    return Terrain(np.ascontiguousarray(land[inner]), gx, gy, slope, water)


def coarse_slope(height: Floats, level: int) -> Floats:
    """Rise over run of `relief` nodes (height, width) → (height − 2, width − 2)."""
    run = np.float32(1.0 / (2.0 * HR_METRES * 2**level))
    gx = (height[1:-1, 2:] - height[1:-1, :-2]) * run
    gy = (height[2:, 1:-1] - height[:-2, 1:-1]) * run
    return np.asarray(np.sqrt(gx * gx + gy * gy), np.float32)
