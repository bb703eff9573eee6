"""The built-up surface: street patterns, blocks, land use, and the light that each of them sends up.

A pixel belongs to the site that dominates it. A site lays a rotated street grid over its ground: arterial
roads around superblocks, each cut into 3 × 3 blocks by smaller streets. A superblock has one land use and one
brightness (which no daytime band shows); a block has its own built share, roof and brightness, or is still
vacant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deeplight.engine.core.arrays import Doubles, Floats
from deeplight.engine.core.windows import Window
from deeplight.train.synth.noise import Hashes, Ints, fractal, hash_points, hash_window, stream, unit
from deeplight.train.synth.settlements import FLARE, REACH, TOWN, WORKS, Sites
from deeplight.train.synth.terrain import Terrain

_EDGE = 1.6  # radii at which a site ends where its outline is not dented
_WOBBLE = 0.25
_RANK = np.array([1.5, 1.2, 1.0, 4.0, 5.0])  # by kind: who wins where sites overlap
_PEAK = np.array([2.4, 1.3, 0.3, 0.0, 0.0], np.float32)  # by kind: how much brighter the centre is


@dataclass(frozen=True)
class Fabric:
    """The built-up surface of an HR window in the ground frame, float32 (height, width).

    isp: impervious share [0, 1]. roof: a number in [0, 1) per block that picks its materials. light: radiance
    sent up in nW/cm²/sr, before any point spread.
    """

    isp: Floats
    roof: Floats
    light: Floats


def _dominance(seed: int, sites: Sites, window: Window) -> tuple[Floats, Ints]:
    """(_EDGE − distance in radii, or 0 outside; index of the dominating site) for each pixel of `window`."""
    wobble = np.clip(
        fractal(stream(seed, 40), {6: 0.35, 5: 0.3, 4: 0.25, 3: 0.2}, window), np.float32(-1), np.float32(1)
    )
    wobble = np.float32(_WOBBLE) * wobble + np.float32(1.0)
    score = np.zeros(window.shape, np.float32)
    owner = np.zeros(window.shape, np.int64)
    for k in range(len(sites)):
        reach = int(REACH * sites.radius[k]) + 2
        box = Window(int(sites.y[k]) - reach, int(sites.x[k]) - reach, 2 * reach, 2 * reach)
        box = Window(box.row - window.row, box.col - window.col, box.height, box.width).clipped(*window.shape)
        if box.height == 0 or box.width == 0:
            continue
        at = np.s_[box.row : box.row + box.height, box.col : box.col + box.width]
        dx = (np.arange(box.col, box.col + box.width) + (window.col + 0.5 - sites.x[k])).astype(np.float32)
        dy = (np.arange(box.row, box.row + box.height) + (window.row + 0.5 - sites.y[k])).astype(np.float32)
        mine = _EDGE - _distance(sites, k, dx, dy, wobble[at])
        mine *= np.float32(_RANK[sites.kind[k]])
        wins = mine > score[at]
        np.copyto(score[at], mine, where=wins)
        owner[at][wins] = k
    return score, owner


def _distance(sites: Sites, k: int, dx: Floats, dy: Floats, wobble: Floats) -> Floats:
    """Distance from site k in radii: wobbly circles, but rectangles for industrial grounds."""
    scale = np.float32(1.0 / sites.radius[k])
    if sites.kind[k] != WORKS:
        d = np.sqrt(dx[None, :] * dx[None, :] + dy[:, None] * dy[:, None]) * scale
        return d if sites.kind[k] == FLARE else np.asarray(d * wobble, np.float32)
    cos, sin = np.float32(sites.cos[k]), np.float32(sites.sin[k])
    u = np.abs(dx[None, :] * cos + dy[:, None] * sin)
    v = np.abs(dy[:, None] * cos - dx[None, :] * sin)
    return np.asarray(np.maximum(u, np.float32(1.5) * v) * scale, np.float32)


@dataclass(frozen=True)
class _Plots:
    """Street geometry of n settled pixels. arterial, street: share under them. superblock, block: hashes."""

    arterial: Floats
    street: Floats
    superblock: Hashes
    block: Hashes


def line(position: Floats, spacing: Floats, width: float) -> Floats:
    """Share of a pixel under lines at multiples of `spacing`."""
    phase = position - np.floor(position / spacing) * spacing
    distance = np.minimum(phase, spacing - phase)
    return np.asarray(
        np.clip(np.float32(width / 2 + 0.5) - distance, np.float32(0), np.float32(min(width, 1.0)))
    )


def _plots(sites: Sites, owner: Ints, x: Doubles, y: Doubles) -> _Plots:
    dx, dy = (x - sites.x[owner]).astype(np.float32), (y - sites.y[owner]).astype(np.float32)
    cos, sin = sites.cos.astype(np.float32)[owner], sites.sin.astype(np.float32)[owner]
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    side = (np.float32(9.0) + (sites.seed & 7).astype(np.float32) * np.float32(0.75))[owner]
    third = side / np.float32(3.0)
    ids = sites.seed[owner]
    bu, bv = np.floor(u / side).astype(np.int64), np.floor(v / side).astype(np.int64)
    lu, lv = np.floor(u / third).astype(np.int64), np.floor(v / third).astype(np.int64)
    return _Plots(
        arterial=np.maximum(line(u, side, 1.0), line(v, side, 1.0)),
        street=np.maximum(line(u, third, 0.5), line(v, third, 0.5)),
        superblock=hash_points(11, ids + bu * 8191, bv),
        block=hash_points(12, ids + lu * 8191, lv),
    )


def _settled(
    sites: Sites, owner: Ints, near: Floats, plots: _Plots, vacancy: Floats
) -> tuple[Floats, Floats, Floats]:
    """(isp, roof, light) of n settled pixels. near: _EDGE − distance in radii. vacancy: hash in [0, 1) of
    a patch.
    """
    one = np.float32(1.0)
    kind = sites.kind[owner]
    urban = kind <= TOWN
    density = np.clip(near * np.float32(1 / 1.2), np.float32(0), one)
    core = np.clip((near - np.float32(0.95)) * np.float32(1 / 0.65), np.float32(0), one)
    use, hidden = unit(plots.superblock), unit(plots.superblock * np.uint32(0x9E3779B1))
    share, own = unit(plots.block), unit(plots.block * np.uint32(0x9E3779B1))

    centre = urban & (use < np.float32(0.04) + np.float32(0.9) * core * core)
    industry = urban & ~centre & (use > np.float32(0.87)) & (density > np.float32(0.2))
    park = urban & ~centre & (use > np.float32(0.78)) & ~industry
    works = kind == WORKS
    taken = (density * np.float32(1.3) > np.float32(0.5) * own + np.float32(0.5) * vacancy) | works
    built = np.float32(0.35) + np.float32(0.4) * share
    built = np.where(centre, np.float32(0.75) + np.float32(0.25) * share, built)
    built = np.where(industry | works, np.float32(0.8) + np.float32(0.2) * share, built)
    built = np.where(park, np.float32(0.06), built) * taken
    bright = np.where(centre, np.float32(1.9), np.float32(0.75))
    bright = np.where(industry, np.where(own < np.float32(0.4), np.float32(0.08), np.float32(1.9)), bright)
    streets = np.where(
        works, np.float32(0), np.clip((density - np.float32(0.25)) * np.float32(2.5), np.float32(0), one)
    )
    arterial, street = plots.arterial * streets, plots.street * streets
    isp = np.maximum(built, np.maximum(arterial, street * np.float32(0.8)))
    lamps = arterial * np.float32(0.8) + street * taken * np.float32(0.3)
    glow = built * bright * (np.float32(0.45) + np.float32(1.1) * own * own) + lamps
    level = sites.radiance.astype(np.float32)[owner] * (np.float32(0.45) + np.float32(1.1) * hidden * hidden)
    level *= (np.float32(0.35) + np.float32(0.65) * density) * (one + _PEAK[kind] * core * core)
    flare = kind == FLARE
    light = np.where(flare, sites.radiance.astype(np.float32)[owner], level * glow)
    return np.where(flare, np.float32(0.1), isp), share, np.asarray(light, np.float32)


def farms(seed: int, window: Window, cultivated: Floats) -> tuple[Floats, Floats]:
    """(isp, light) of lone houses: one pixel in some hundred on inhabited land, each with a lamp or none."""
    h = hash_window(stream(seed, 41), window)
    there = unit(h) < np.float32(0.006) * np.clip(
        np.float32(0.6) + cultivated, np.float32(0), np.float32(1.5)
    )
    lamp = unit(h * np.uint32(0x9E3779B1))
    farm = there.astype(np.float32)
    return farm * np.float32(0.3), farm * np.maximum(lamp - np.float32(0.4), np.float32(0)) * np.float32(4.0)


def fabric(
    seed: int, sites: Sites, roads: tuple[Floats, Floats], land: Terrain, cultivated: Floats, window: Window
) -> Fabric:
    """The built-up surface of `window`.

    sites: all whose reach touches the window, in one order whatever the window. roads: (cover, lamps) as
    drawn. cultivated: settlements.cultivation at HR.
    """
    score, owner = _dominance(seed, sites, window)
    isp, light = farms(seed, window, cultivated)
    roof = unit(hash_window(stream(seed, 42), window))
    at = np.flatnonzero(score)
    density = np.zeros(window.height * window.width, np.float32)
    if at.size:
        mine = owner.ravel()[at]
        near = score.ravel()[at] / _RANK.astype(np.float32)[sites.kind[mine]]
        x = (at % window.width).astype(np.float64) + (window.col + 0.5)
        y = (at // window.width).astype(np.float64) + (window.row + 0.5)
        patch = fractal(stream(seed, 43), {4: 0.2, 3: 0.16, 2: 0.1}, window) + np.float32(0.5)
        town = _settled(sites, mine, near, _plots(sites, mine, x, y), patch.ravel()[at])
        for field, values in zip((isp, roof, light), town, strict=True):
            field.ravel()[at] = values
        density[at] = np.minimum(near, np.float32(1.0))
    dry = np.float32(1.0) - land.water
    flat = np.clip((np.float32(0.45) - land.slope) * np.float32(6.0), np.float32(0), np.float32(1)) * dry
    cover, lamps = roads
    lamps = lamps * (np.float32(1.0) + np.float32(1.5) * density.reshape(window.shape))
    tone = unit(hash_window(stream(seed, 44), window))
    background = (np.float32(0.05) + np.float32(0.06) * tone) * (np.float32(0.4) + np.float32(0.6) * dry)
    background += np.clip(cultivated, np.float32(0), np.float32(2)) * np.float32(0.06) * dry
    return Fabric(np.maximum(isp * flat, cover), roof, np.maximum(light * flat, lamps) + background)
