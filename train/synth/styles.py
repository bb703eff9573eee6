"""Other fabrics than the towns of `fabric`: where a country is settled, as a density that no sites and roads underlie.

Each style is a pure function of (seed, global pixel indices) from noise and relief alone: sections of a survey grid,
towns along rivers, villages strung along roads, the spread of a megacity, a settled coast, islands. `quarters` lays
streets and blocks over the density.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deeplight.engine.core.arrays import Doubles, Floats
from deeplight.engine.core.windows import Window
from deeplight.train.synth.noise import fractal, hash_points, smoothstep, stream, unit
from deeplight.train.synth.terrain import PLAIN, ReliefShape, Terrain, rivers

TOWNS = "towns"
"""The style whose towns are sites joined by roads: `settlements`, `roads` and `fabric`."""
SHAPES: dict[str, ReliefShape] = {
    TOWNS: PLAIN,
    "grid": ReliefShape(lowered=-60.0),
    "river": PLAIN,
    "ribbon": PLAIN,
    "megacity": ReliefShape(lowered=20.0),
    "coast": ReliefShape(lowered=260.0, broken=70.0),
    "archipelago": ReliefShape(lowered=380.0, broken=170.0),
}
"""All styles, and how the relief of each differs from that of `TOWNS`."""
_SECTION = 27.7  # HR px of a mile, the side of a section in the United States' survey


@dataclass(frozen=True)
class Settled:
    """How a window is settled, float32 (height, width) each.

    density: 0 (nothing) … 1 (a town's middle). core: 0 … 1, business centres. cover: share under main roads. lit: how
    much the lamps of the main roads burn, 0 … 1.
    """

    density: Floats
    core: Floats
    cover: Floats
    lit: Floats


def settled(style: str, seed: int, land: Terrain, window: Window) -> Settled:
    """The settled land of `window` in a style other than `TOWNS`."""
    return _STYLES[style](seed, land, window)


def _noise(seed: int, name: int, amplitudes: dict[int, float], window: Window) -> Floats:
    return fractal(stream(seed, name), amplitudes, window)


def centres(window: Window) -> tuple[Doubles, Doubles]:
    """Columns (1, width) and rows (height, 1) of the pixel centres, in HR px of the country."""
    x = window.col + 0.5 + np.arange(window.width, dtype=np.float64)[None, :]
    y = window.row + 0.5 + np.arange(window.height, dtype=np.float64)[:, None]
    return x, y


def _along(field: Floats, width: float) -> tuple[Floats, Floats]:
    """(distance in HR px from the line where a field is 0, share of the pixel under a road there).

    field: one pixel larger on every side.
    """
    gx = (field[1:-1, 2:] - field[1:-1, :-2]) * np.float32(0.5)
    gy = (field[2:, 1:-1] - field[:-2, 1:-1]) * np.float32(0.5)
    steep = np.sqrt(gx * gx + gy * gy) + np.float32(1e-4)
    distance = np.abs(field[1:-1, 1:-1]) / steep
    share = np.clip(np.float32(width / 2 + 0.5) - distance, np.float32(0), np.float32(min(width, 1.0)))
    return np.asarray(distance, np.float32), np.asarray(share, np.float32)


def _bell(distance: Floats, width: float) -> Floats:
    scaled = distance * np.float32(1.0 / width)
    return np.asarray(np.exp(-scaled * scaled), np.float32)


def _highways(seed: int, window: Window, places: Floats) -> tuple[Floats, Floats]:
    """Two winding roads through everything: (cover, lit)."""
    cover = np.zeros(window.shape, np.float32)
    for name in (120, 121):
        _, share = _along(_noise(seed, name, {8: 0.8, 7: 0.3, 6: 0.1}, window.grown(1)), 1.0)
        cover = np.maximum(cover, share)
    return cover, np.clip(np.float32(0.15) + places, np.float32(0), np.float32(1))


def _grid(seed: int, land: Terrain, window: Window) -> Settled:
    """Square miles, each built up or not, with a road on every side and a yard lamp here and there."""
    angle = 0.15 * (float(unit(np.array([stream(seed, 122)], np.uint32))[0]) - 0.5)
    x, y = centres(window)
    u = (x * np.cos(angle) + y * np.sin(angle)) / _SECTION
    v = (y * np.cos(angle) - x * np.sin(angle)) / _SECTION
    half_u, half_v = np.floor(2 * u).astype(np.int64), np.floor(2 * v).astype(np.int64)
    lot = unit(hash_points(stream(seed, 123), half_v, half_u))
    lot = np.float32(0.6) * lot + np.float32(0.4) * unit(
        hash_points(stream(seed, 124), half_v >> 1, half_u >> 1)
    )
    urban = smoothstep(_noise(seed, 125, {9: 0.5, 8: 0.6, 7: 0.5, 6: 0.2}, window), -0.1, 1.5)
    density = np.where(
        lot < np.float32(1.15) * urban, np.float32(0.45) + np.float32(0.55) * urban, np.float32(0)
    )
    edge = np.minimum(np.abs(u - np.rint(u)), np.abs(v - np.rint(v))).astype(np.float32) * np.float32(
        _SECTION
    )
    cover = np.clip(np.float32(0.9) - edge, np.float32(0), np.float32(0.8))
    core = smoothstep(urban + np.float32(0.5) * lot, 1.05, 1.45)
    return Settled(np.asarray(density, np.float32), core, np.asarray(cover, np.float32), density)


def _river(seed: int, land: Terrain, window: Window) -> Settled:
    """Towns where a river runs, quays on both banks, little elsewhere."""
    near = _bell(np.abs(rivers(seed, window)), 0.16)
    towns = _noise(seed, 126, {8: 0.5, 7: 0.8, 6: 0.5, 5: 0.25}, window)
    density = smoothstep(near * np.float32(1.1) + np.float32(0.45) * towns, 0.6, 1.4)
    cover, lit = _highways(seed, window, density)
    return Settled(density, smoothstep(near * density, 0.75, 0.98), cover, lit)


def _ribbon(seed: int, land: Terrain, window: Window) -> Settled:
    """Houses in one or two rows along every road, larger where roads meet."""
    bands, cover = [], np.zeros(window.shape, np.float32)
    for name, width in ((127, 3.5), (128, 2.5), (129, 2.0)):
        distance, share = _along(_noise(seed, name, {7: 0.7, 6: 0.5, 5: 0.15}, window.grown(1)), 0.8)
        bands.append(_bell(distance, width))
        cover = np.maximum(cover, share)
    patchy = smoothstep(_noise(seed, 130, {7: 0.6, 6: 0.5, 5: 0.5, 4: 0.3}, window), -0.4, 0.9)
    row = np.maximum(np.maximum(bands[0], bands[1]), bands[2]) * patchy
    spread = np.float32(0.5) * (bands[0] + bands[1] + bands[2]) - np.float32(0.45)
    density = np.clip(np.float32(0.6) * row + np.maximum(spread, np.float32(0)) * patchy, 0, 1)
    return Settled(density, np.zeros(window.shape, np.float32), cover, np.float32(0.8) * row)


def _megacity(seed: int, land: Terrain, window: Window) -> Settled:
    """Built up as far as one sees, with several business centres and a few empty tracts."""
    spread = _noise(seed, 131, {9: 0.5, 8: 0.6, 7: 0.45, 6: 0.3, 5: 0.2}, window)
    density = smoothstep(spread, -1.0, 0.7)
    core = smoothstep(_noise(seed, 132, {7: 0.5, 6: 0.8, 5: 0.4}, window), 0.9, 2.0) * density
    cover, lit = _highways(seed, window, density)
    return Settled(density, core, cover, lit)


def _shore(seed: int, land: Terrain, window: Window, low: float, few: float) -> Settled:
    """The first `low` metres above the sea, town after town; the higher `few`, the fewer."""
    near = np.exp(land.elevation * np.float32(-1.0 / low))
    towns = _noise(seed, 133, {8: 0.4, 7: 0.8, 6: 0.6, 5: 0.3}, window)
    density = smoothstep(near + np.float32(0.5) * towns, few, few + 0.8)
    core = smoothstep(density * near + np.float32(0.2) * towns, 0.9, 1.2)
    cover, lit = _highways(seed, window, density)
    return Settled(density, core, cover, lit)


def _coast(seed: int, land: Terrain, window: Window) -> Settled:
    return _shore(seed, land, window, 60.0, 0.4)


def _archipelago(seed: int, land: Terrain, window: Window) -> Settled:
    return _shore(seed, land, window, 60.0, 0.5)


_STYLES: dict[str, Callable[[int, Terrain, Window], Settled]] = {
    "grid": _grid,
    "river": _river,
    "ribbon": _ribbon,
    "megacity": _megacity,
    "coast": _coast,
    "archipelago": _archipelago,
}
