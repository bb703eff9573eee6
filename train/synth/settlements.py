"""Where people live and work: cities, towns, villages and industrial sites on jittered global lattices.

The plane is cut into *cells* of 48 × 48 LR px. The sites of a cell are a pure function of (seed, cell row,
cell column): each lattice square of each kind proposes a few positions, keeps the flattest dry one, and drops
it where even that is steep, wet, or unlucky. Radii follow a truncated power law (Pareto), as city sizes do.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles, Floats
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.synth.noise import Ints, fractal, hash_points, stream, unit
from deeplight.train.synth.terrain import coarse_slope, relief

CELL = 48 * SCALE
"""Side of a cell in HR px."""

CITY, TOWN, VILLAGE, WORKS, FLARE = range(5)
"""Kinds of site. WORKS are industrial grounds, half of them dark; a FLARE is a bright point on bare land."""

_PROPOSALS = 6


@dataclass(frozen=True)
class _Kind:
    """How one kind is placed. Lengths in HR px; radius = shortest·u^(−1/tail) up to longest, u uniform."""

    kind: int
    per_side: int
    chance: float
    steepest: float
    shortest: float
    longest: float
    tail: float
    radiance: tuple[float, float]  # nW/cm²/sr of an ordinary built block; log-uniform between the two
    dark: float  # share of sites with (almost) no light


_KINDS = (
    _Kind(CITY, 1, 0.70, 0.10, 19.0, 80.0, 1.6, (16.0, 45.0), 0.0),
    _Kind(TOWN, 4, 0.50, 0.13, 6.0, 22.0, 1.7, (5.0, 22.0), 0.08),
    _Kind(VILLAGE, 12, 0.42, 0.18, 2.2, 6.5, 2.0, (1.0, 6.0), 0.35),
    _Kind(WORKS, 3, 0.40, 0.10, 2.5, 8.0, 1.6, (25.0, 220.0), 0.5),
    _Kind(FLARE, 2, 0.05, 0.60, 1.2, 1.3, 2.0, (300.0, 1500.0), 0.0),
)

REACH = 2.2
"""A site has no influence beyond this many radii."""
MAX_REACH = int(REACH * max(k.longest for k in _KINDS)) + 1
"""The same in HR px for the largest site."""


@dataclass(frozen=True)
class Sites:
    """n sites, column by column: positions and radius in HR px (x to the east, y to the south), radiance of a
    block in nW/cm²/sr, direction of the street grid as a unit vector, a 32-bit seed.
    """

    kind: Ints
    x: Doubles
    y: Doubles
    radius: Doubles
    radiance: Doubles
    cos: Doubles
    sin: Doubles
    seed: Ints

    def __len__(self) -> int:
        return len(self.x)

    def where(self, keep: NDArray[np.bool_]) -> Sites:
        """The sites for which `keep` holds, in the same order."""
        return Sites(**{f.name: getattr(self, f.name)[keep] for f in fields(Sites)})


def joined(parts: list[Sites]) -> Sites:
    """All sites of `parts`, in order."""
    return Sites(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Sites)})


def _coarse(values: Floats, y: Doubles, x: Doubles, origin: Window, level: int) -> Floats:
    """The nodes nearest to HR positions; `origin` says which nodes of lattice `level` the array starts
    with.
    """
    rows = np.floor(y / 2**level + 0.5).astype(np.int64) - origin.row
    cols = np.floor(x / 2**level + 0.5).astype(np.int64) - origin.col
    return np.asarray(values[rows, cols], np.float32)


def _uniform(seed: int, row: Ints, col: Ints) -> Doubles:
    return unit(hash_points(seed, row, col)).astype(np.float64)


def _place(
    seed: int, kind: _Kind, cell: tuple[int, int], slope: Floats, height: Floats, nodes: Window
) -> Sites:
    """The sites of one kind in one cell. slope, height: at `nodes` of lattice 3."""
    side = CELL / kind.per_side
    grid = np.arange(kind.per_side, dtype=np.int64)
    row = (cell[0] * kind.per_side + np.repeat(grid, kind.per_side))[:, None]
    col = (cell[1] * kind.per_side + np.tile(grid, kind.per_side))[:, None]
    names = stream(seed, 100 + kind.kind)
    proposal = np.arange(_PROPOSALS, dtype=np.int64)[None, :]
    y = (row + 0.08 + 0.84 * _uniform(stream(names, 1), row * _PROPOSALS + proposal, col)) * side
    x = (col + 0.08 + 0.84 * _uniform(stream(names, 2), row * _PROPOSALS + proposal, col)) * side
    steep = _coarse(slope, y, x, Window(nodes.row + 1, nodes.col + 1, 0, 0), 3)
    high = _coarse(height, y, x, nodes, 3)
    cost = steep + np.where(high < 4.0, 10.0, 0.0) + 1e-4 * np.maximum(high, 0.0)
    best = np.argmin(cost, axis=1)
    pick = np.arange(len(best)), best
    row, col = row[:, 0], col[:, 0]
    lucky = _uniform(stream(names, 3), row, col) < kind.chance
    kept = lucky & (steep[pick] < kind.steepest) & (high[pick] >= 4.0)
    u = np.maximum(_uniform(stream(names, 4), row, col), 1e-6)
    low, top = kind.radiance
    radiance = low * (top / low) ** _uniform(stream(names, 5), row, col)
    radiance = np.where(_uniform(stream(names, 6), row, col) < kind.dark, 0.04 * low, radiance)
    angle = np.pi / 2 * _uniform(stream(names, 7), row, col)
    return Sites(
        kind=np.full(len(best), kind.kind, np.int64),
        x=x[pick],
        y=y[pick],
        radius=np.minimum(kind.shortest * u ** (-1.0 / kind.tail), kind.longest),
        radiance=radiance,
        cos=np.cos(angle),
        sin=np.sin(angle),
        seed=hash_points(stream(names, 8), row, col).astype(np.int64),
    ).where(kept)


@lru_cache(4096)
def sites_of_cell(seed: int, row: int, col: int, *, cities_only: bool = False) -> Sites:
    """The sites of cell (row, col), the important kinds first. The answer is remembered: do not change it."""
    side = CELL // 8
    nodes = Window(row * side, col * side, side + 1, side + 1).grown(1)
    height, _ = relief(seed, nodes, 3)
    slope = coarse_slope(height, 3)
    kinds = _KINDS[:1] if cities_only else _KINDS
    return joined([_place(seed, kind, (row, col), slope, height, nodes) for kind in kinds])


def cultivation(seed: int, window: Window, level: int) -> Floats:
    """Slow noise, about −2 … 2, on lattice `level`: the higher, the more fields, farms and stray light."""
    return fractal(stream(seed, 9), {9: 0.8, 8: 0.5}, window, level)
