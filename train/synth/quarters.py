"""Streets, blocks and their light over a density of settlement; what is typical of them is drawn for each country.

Districts have their own direction of the streets, and in some countries these wind. A superblock has one brightness,
which no daytime band shows: some are dark though built up. A block has its own share of built-up land and its roof.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from deeplight.engine.core.arrays import Doubles, Floats
from deeplight.engine.core.windows import Window
from deeplight.train.synth.fabric import Fabric, farms, line
from deeplight.train.synth.noise import Hashes, bell, fractal, hash_points, hash_window, stream, unit
from deeplight.train.synth.styles import Settled, centres
from deeplight.train.synth.terrain import Terrain

_AGAIN = np.uint32(0x9E3779B1)
_LEAST = 0.04  # density below which nothing is built
_DISTRICT = 90.0  # side in HR px


@dataclass(frozen=True)
class _Habit:
    """What is typical of a country.

    side: of a superblock in HR px. parts: blocks along it. winding: how far its streets wind, in HR px. built: share of
    a residential block that is built up. level: radiance of dense land in nW/cm²/sr. spread: of the logarithm of a
    superblock's brightness. unlit: share of superblocks without light. lamps: share of the light that streets send.
    floor: radiance of empty land.
    """

    side: float
    parts: int
    winding: float
    built: float
    level: float
    spread: float
    unlit: float
    lamps: float
    floor: float


@lru_cache(64)
def _habit(seed: int) -> _Habit:
    rng = np.random.default_rng((seed, 17))
    return _Habit(
        side=float(rng.uniform(6.0, 18.0)),
        parts=int(rng.integers(2, 5)),
        winding=float(rng.choice([0.0, 3.0, 12.0])),
        built=float(rng.uniform(0.2, 0.65)),
        level=float(np.exp(rng.uniform(np.log(6.0), np.log(60.0)))),
        spread=float(rng.uniform(0.2, 0.9)),
        unlit=float(rng.uniform(0.0, 0.3)),
        lamps=float(rng.uniform(0.05, 0.7)),
        floor=float(np.exp(rng.uniform(np.log(0.02), np.log(0.3)))),
    )


@dataclass(frozen=True)
class _Streets:
    """Of n built-up pixels. main, minor: share under wider and smaller streets. superblock, block: hashes."""

    main: Floats
    minor: Floats
    superblock: Hashes
    block: Hashes


def quarters(seed: int, places: Settled, land: Terrain, cultivated: Floats, window: Window) -> Fabric:
    """The built-up surface of `window`. cultivated: settlements.cultivation at HR."""
    one, zero = np.float32(1), np.float32(0)
    habit = _habit(seed)
    dry = one - land.water
    buildable = np.clip((np.float32(0.45) - land.slope) * np.float32(6.0), zero, one) * dry
    isp, light = farms(seed, window, cultivated)
    roof = unit(hash_window(stream(seed, 140), window))
    density = places.density * buildable
    at = np.flatnonzero(density > np.float32(_LEAST))
    if at.size:
        town = _built_up(
            habit, _streets(seed, habit, window, at), density.ravel()[at], places.core.ravel()[at]
        )
        for field, values in zip((isp, roof, light), town, strict=True):
            field.ravel()[at] = values
    tone = np.float32(0.6) + np.float32(0.8) * unit(hash_window(stream(seed, 141), window))
    floor = np.float32(habit.floor) * tone * (np.float32(0.4) + np.float32(0.6) * dry)
    # a road at sea is none; a bridge over a river is
    cover = places.cover * np.where(land.elevation > 0, one, zero)
    lamps = cover * places.lit * np.float32(habit.level * 0.5)
    return Fabric(
        np.maximum(isp * buildable, cover * np.float32(0.9)),
        roof,
        np.maximum(light * buildable, lamps) + floor,
    )


def _streets(
    seed: int, habit: _Habit, window: Window, at: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> _Streets:
    cols, rows = centres(window)
    x, y = cols[0, at % window.width], rows[at // window.width, 0]
    bent = fractal(stream(seed, 142), {6: 1.0, 5: 0.5}, window).ravel()[at].astype(np.float64)
    row = np.floor((y + 14.0 * bent) / _DISTRICT).astype(np.int64)
    col = np.floor((x - 14.0 * bent) / _DISTRICT).astype(np.int64)
    district = hash_points(stream(seed, 143), row, col)
    angle = np.pi / 2 * unit(district)
    side = habit.side * (0.75 + 0.5 * unit(district * _AGAIN).astype(np.float64))
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = x * cos + y * sin + habit.winding * bent, y * cos - x * sin - habit.winding * bent
    third = side / habit.parts
    name = district.astype(np.int64)
    return _Streets(
        main=np.maximum(_line(u, side, 1.0), _line(v, side, 1.0)),
        minor=np.maximum(_line(u, third, 0.5), _line(v, third, 0.5)),
        superblock=_named(name, u / side, v / side, 144),
        block=_named(name, u / third, v / third, 145),
    )


def _named(name: np.ndarray[tuple[int], np.dtype[np.int64]], u: Doubles, v: Doubles, key: int) -> Hashes:
    return hash_points(key, name + np.floor(u).astype(np.int64) * 8191, np.floor(v).astype(np.int64))


def _line(position: Doubles, spacing: Doubles, width: float) -> Floats:
    phase = position / spacing
    return line(
        (phase - np.floor(phase)).astype(np.float32) * spacing.astype(np.float32),
        spacing.astype(np.float32),
        width,
    )


def _built_up(
    habit: _Habit, streets: _Streets, density: Floats, core: Floats
) -> tuple[Floats, Floats, Floats]:
    """(isp, roof, light) of n built-up pixels."""
    one = np.float32(1)
    use, dark = unit(streets.superblock), unit(streets.superblock * _AGAIN)
    share, own = unit(streets.block), unit(streets.block * _AGAIN)
    centre = use < np.float32(0.03) + core
    works = ~centre & (use > np.float32(0.9))
    park = ~centre & ~works & (use > np.float32(0.82))
    taken = density * np.float32(1.4) > own
    built = np.float32(habit.built) + np.float32(0.3) * share
    built = np.where(centre | works, np.float32(0.75) + np.float32(0.25) * share, built)
    built = np.where(park, np.float32(0.05), built) * taken
    paved = np.clip(density * np.float32(2.5) - np.float32(0.3), np.float32(0), one)
    main, minor = streets.main * paved, streets.minor * paved * taken
    isp = np.maximum(built, np.maximum(main, np.float32(0.8) * minor))
    bright = np.exp(np.float32(habit.spread) * bell(streets.superblock * np.uint32(0x85EBCA77)))
    bright = np.where(dark < np.float32(habit.unlit), np.float32(0.03), bright)
    houses = built * (np.float32(0.5) + own) * np.where(centre, np.float32(1.8), one)
    lamps = np.float32(1.5) * main + np.float32(0.6) * minor
    mixed = np.float32(1 - habit.lamps) * houses + np.float32(habit.lamps) * lamps
    level = (
        np.float32(habit.level)
        * (np.float32(0.25) + np.float32(0.75) * density)
        * (one + np.float32(2) * core * core)
    )
    return isp, share, np.asarray(level * bright * mixed, np.float32)
