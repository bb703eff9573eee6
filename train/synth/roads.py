"""Roads between neighbouring sites: polylines that bend away from slopes and water.

Two sites are neighbours when no third site lies in the circle that has them as a diameter (the Gabriel
graph), a test that needs no more than the surroundings, so a road is a pure function of (seed, cell). A road
is refined by repeated halving: each new vertex is the cheapest of a few positions across the line, by climb,
slope and water.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles, Floats
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.synth.noise import Ints, hash_points, stream, unit
from deeplight.train.synth.settlements import CELL, CITY, TOWN, VILLAGE, Sites, joined, sites_of_cell
from deeplight.train.synth.terrain import coarse_slope, relief

MOTORWAY, PRIMARY, TRACK = range(3)
"""Road classes: between cities, between towns, from a village to the next larger place."""

_LONGEST = {MOTORWAY: 1.8 * CELL, PRIMARY: 40.0 * SCALE, TRACK: 16.0 * SCALE}
_WIDTH = {MOTORWAY: 1.25, PRIMARY: 0.8, TRACK: 0.5}
_LIT = {MOTORWAY: (0.6, 3.0, 12.0), PRIMARY: (0.4, 1.0, 5.0), TRACK: (0.12, 0.4, 1.5)}
_OFFSETS = np.array([0.0, -0.08, 0.08, -0.17, 0.17])
_LEVEL = 4
BEND = 0.4
"""A road leaves the straight line by less than this share of its length."""


@dataclass(frozen=True)
class Segments:
    """n straight pieces of road. x0, y0, x1, y1, width: HR px. lit0, lit1: radiance at the two ends,
    nW/cm²/sr.
    """

    x0: Doubles
    y0: Doubles
    x1: Doubles
    y1: Doubles
    width: Doubles
    lit0: Doubles
    lit1: Doubles


_NO_ROAD = Segments(*[np.empty(0)] * 7)


def _around(seed: int, row: int, col: int, reach: int, kinds: tuple[int, ...]) -> tuple[Sites, int]:
    """(sites of the cell followed by those of the cells up to `reach` away, number of the cell's own)."""
    near = [(r, c) for r in range(row - reach, row + reach + 1) for c in range(col - reach, col + reach + 1)]
    near.sort(key=lambda cell: cell != (row, col))
    parts = []
    for r, c in near:
        sites = sites_of_cell(seed, r, c, cities_only=kinds == (CITY,))
        parts.append(sites.where(np.isin(sites.kind, kinds)))
    return joined(parts), len(parts[0])


def _neighbours(sites: Sites, own: int, longest: float) -> list[tuple[int, int]]:
    """Gabriel pairs (i, j) with i among the first `own` sites; each pair belongs to its western end's
    cell.
    """
    x, y = sites.x, sites.y
    d2 = (x[:, None] - x[None, :]) ** 2 + (y[:, None] - y[None, :]) ** 2
    pairs = []
    for i in range(own):
        for j in np.flatnonzero((d2[i] < longest**2) & (d2[i] > 0)):
            east = (x[i], y[i]) < (x[j], y[j])
            others = d2[i] + d2[:, j] < d2[i, j]
            others[[i, j]] = False
            if east and not others.any():
                pairs.append((i, int(j)))
    return pairs


def _larger(sites: Sites, own: int, longest: float) -> list[tuple[int, int]]:
    """(village, nearest larger site) for each village among the first `own` sites that has one near
    enough.
    """
    pairs = []
    for i in np.flatnonzero(sites.kind[:own] == VILLAGE):
        d2 = (sites.x - sites.x[i]) ** 2 + (sites.y - sites.y[i]) ** 2
        d2[sites.radius <= sites.radius[i]] = np.inf
        j = int(np.argmin(d2))
        if d2[j] < longest**2:
            pairs.append((int(i), j))
    return pairs


@dataclass(frozen=True)
class _Ground:
    """Coarse height and slope around some roads, looked up at HR positions."""

    height: Floats
    slope: Floats
    nodes: Window

    @classmethod
    def around(cls, seed: int, x: Doubles, y: Doubles, margin: float) -> _Ground:
        """The ground within `margin` HR px of the positions."""
        step = 2**_LEVEL
        r0, c0 = int((y.min() - margin) // step) - 1, int((x.min() - margin) // step) - 1
        r1, c1 = int((y.max() + margin) // step) + 3, int((x.max() + margin) // step) + 3
        nodes = Window(r0, c0, r1 - r0, c1 - c0)
        height, _ = relief(seed, nodes.grown(1), _LEVEL)
        return cls(height[1:-1, 1:-1], coarse_slope(height, _LEVEL), nodes)

    def at(self, x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
        """(height, slope) at the nodes nearest to the positions."""
        rows = np.floor(y / 2**_LEVEL + 0.5).astype(np.int64) - self.nodes.row
        cols = np.floor(x / 2**_LEVEL + 0.5).astype(np.int64) - self.nodes.col
        return self.height[rows, cols].astype(np.float64), self.slope[rows, cols].astype(np.float64)


def _halved(ground: _Ground, x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
    """Polylines (n, k) → (n, 2k − 1): each new vertex is the cheapest of the positions across its piece."""
    dx, dy = np.diff(x, axis=1), np.diff(y, axis=1)
    mx = (x[:, 1:] + x[:, :-1])[..., None] / 2 - dy[..., None] * _OFFSETS
    my = (y[:, 1:] + y[:, :-1])[..., None] / 2 + dx[..., None] * _OFFSETS
    height, slope = ground.at(mx, my)
    ends, _ = ground.at(x, y)
    climb = np.abs(height - ends[:, :-1, None]) + np.abs(height - ends[:, 1:, None])
    cost = climb / 150.0 + 4.0 * slope + np.where(height < 1.0, 3.0, 0.0)
    cost += np.abs(_OFFSETS) * 1.5
    best = np.argmin(cost, axis=2)[..., None]
    out_x, out_y = np.empty((len(x), 2 * x.shape[1] - 1)), np.empty((len(x), 2 * x.shape[1] - 1))
    out_x[:, 0::2], out_y[:, 0::2] = x, y
    out_x[:, 1::2] = np.take_along_axis(mx, best, 2)[..., 0]
    out_y[:, 1::2] = np.take_along_axis(my, best, 2)[..., 0]
    return out_x, out_y


def _rounded(x: Doubles) -> Doubles:
    """Chaikin's corner cutting of polylines (n, k) → (n, 2k), the ends kept."""
    out = np.empty((len(x), 2 * x.shape[1]))
    out[:, 0], out[:, -1] = x[:, 0], x[:, -1]
    out[:, 1:-1:2] = 0.75 * x[:, :-1] + 0.25 * x[:, 1:]
    out[:, 2:-1:2] = 0.25 * x[:, :-1] + 0.75 * x[:, 1:]
    return out


def _lit(seed: int, road: int, tails: Ints, heads: Ints, along: Doubles, length: Doubles) -> Doubles:
    """Radiance (n, k) at the vertices: whole roads by chance, all the others only near their ends."""
    share, low, high = _LIT[road]
    chance = unit(hash_points(stream(seed, 20 + road), tails, heads)).astype(np.float64)
    level = unit(hash_points(stream(seed, 30 + road), tails, heads)).astype(np.float64)
    radiance = low * (high / low) ** level
    near = np.minimum(along, 1.0 - along) * length[:, None]
    ends = np.clip(1.0 - near / (3.5 * SCALE), 0.0, 1.0)
    return np.asarray(radiance[:, None] * np.where(chance[:, None] < share, 1.0, 0.02 + 0.6 * ends))


def _built(seed: int, road: int, sites: Sites, pairs: list[tuple[int, int]]) -> Segments:
    """The roads along `pairs`; one whose cheapest way is steep or wet for long is not built."""
    i, j = np.array(pairs, np.int64).reshape(-1, 2).T
    x, y = np.stack([sites.x[i], sites.x[j]], 1), np.stack([sites.y[i], sites.y[j]], 1)
    if not pairs:
        return _NO_ROAD
    length = np.hypot(x[:, 1] - x[:, 0], y[:, 1] - y[:, 0])
    ground = _Ground.around(seed, x, y, BEND * float(length.max()))
    for _ in range(2 if road == TRACK else 4):
        x, y = _halved(ground, x, y)
    height, slope = ground.at(x, y)
    possible = ((height < 0.0).mean(axis=1) < 0.15) & (slope.mean(axis=1) < 0.22)
    x, y = _rounded(_rounded(x)), _rounded(_rounded(y))
    along = np.broadcast_to(np.linspace(0.0, 1.0, x.shape[1]), x.shape)
    lit = _lit(seed, road, sites.seed[i], sites.seed[j], along, length)
    x, y, lit = x[possible], y[possible], lit[possible]
    return Segments(
        x0=x[:, :-1].ravel(),
        y0=y[:, :-1].ravel(),
        x1=x[:, 1:].ravel(),
        y1=y[:, 1:].ravel(),
        width=np.full(lit[:, 1:].size, _WIDTH[road]),
        lit0=lit[:, :-1].ravel(),
        lit1=lit[:, 1:].ravel(),
    )


@lru_cache(4096)
def roads_of_cell(seed: int, road: int, row: int, col: int) -> Segments:
    """Roads of class `road` that belong to cell (row, col), at most `cells_away(road)` cells long.

    The answer is remembered: do not change it.
    """
    if road == TRACK:
        sites, own = _around(seed, row, col, 1, (CITY, TOWN, VILLAGE))
        return _built(seed, road, sites, _larger(sites, own, _LONGEST[road]))
    kinds = (CITY,) if road == MOTORWAY else (CITY, TOWN)
    sites, own = _around(seed, row, col, cells_away(road), kinds)
    return _built(seed, road, sites, _neighbours(sites, own, _LONGEST[road]))


def cells_away(road: int) -> int:
    """How many cells a road may reach beyond its own."""
    return 2 if road == MOTORWAY else 1


def segments_near(parts: list[Segments], window: Window) -> Segments:
    """The pieces whose bounding box comes within 3 HR px of `window`, in order."""
    kept = []
    for s in parts:
        west, east = np.minimum(s.x0, s.x1), np.maximum(s.x0, s.x1)
        north, south = np.minimum(s.y0, s.y1), np.maximum(s.y0, s.y1)
        near = (east > window.col - 3) & (west < window.col + window.width + 3)
        near &= (south > window.row - 3) & (north < window.row + window.height + 3)
        if near.any():
            kept.append(np.stack([s.x0, s.y0, s.x1, s.y1, s.width, s.lit0, s.lit1])[:, near])
    return Segments(*np.concatenate(kept, axis=1)) if kept else _NO_ROAD


def _points(s: Segments) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """(x, y, width, radiance) every half HR px or closer along the pieces."""
    counts = np.ceil(2.0 * np.hypot(s.x1 - s.x0, s.y1 - s.y0)).astype(np.int64) + 1
    owner = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    t = (np.arange(len(owner)) - first[owner]) / counts[owner]
    x = s.x0[owner] + t * (s.x1 - s.x0)[owner]
    y = s.y0[owner] + t * (s.y1 - s.y0)[owner]
    return x, y, s.width[owner], s.lit0[owner] + t * (s.lit1 - s.lit0)[owner]


def draw(segments: Segments, window: Window) -> tuple[Floats, Floats]:
    """(share of the pixel under a road, radiance of its lamps), float32 (height, width) each.

    A pixel takes the maximum over the points near it, so the order of the roads does not matter.
    """
    h, w = window.shape
    cover, light = np.zeros(h * w, np.float32), np.zeros(h * w, np.float32)
    x, y, width, lit = _points(segments)
    col, row = np.floor(x).astype(np.int64) - 1, np.floor(y).astype(np.int64) - 1
    for dr in range(3):
        for dc in range(3):
            r, c = row + dr, col + dc
            dx, dy = x - c - 0.5, y - r - 0.5
            share = np.clip(0.5 * width + 0.5 - np.sqrt(dx * dx + dy * dy), 0.0, 1.0) * np.minimum(width, 1.0)
            inside: NDArray[np.bool_] = (share > 0) & (r >= window.row) & (r < window.row + h)
            inside &= (c >= window.col) & (c < window.col + w)
            at = (r[inside] - window.row) * w + (c[inside] - window.col)
            share = share[inside]
            np.maximum.at(cover, at, share.astype(np.float32))
            np.maximum.at(light, at, (share * lit[inside]).astype(np.float32))
    return cover.reshape(h, w), light.reshape(h, w)
