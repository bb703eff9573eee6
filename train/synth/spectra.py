"""Surface reflectance as a linear mixture of a few materials, lit by the sun from the south-east.

The reflectances are plausible round numbers for Landsat's bands, chosen after the shape of published library
spectra (chlorophyll absorption and the red edge, the swir water bands, the iron slope of soil, snow's drop
beyond 1.4 µm).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from deeplight.engine.core.arrays import Doubles, Floats
from deeplight.engine.core.spec import DMO_SLOTS
from deeplight.engine.core.windows import Window
from deeplight.train.synth.fabric import Fabric
from deeplight.train.synth.noise import Hashes, fractal, hash_points, hash_window, smoothstep, stream, unit
from deeplight.train.synth.terrain import Terrain

MATERIALS: dict[str, tuple[float, ...]] = {
    #           coastal blue   green  red    nir    swir1  swir2
    "water": (0.050, 0.048, 0.042, 0.026, 0.012, 0.006, 0.004),
    "forest": (0.018, 0.024, 0.046, 0.030, 0.330, 0.150, 0.065),
    "crop": (0.030, 0.042, 0.082, 0.060, 0.400, 0.220, 0.120),
    "soil": (0.085, 0.105, 0.150, 0.200, 0.270, 0.330, 0.290),
    "asphalt": (0.085, 0.095, 0.108, 0.118, 0.140, 0.165, 0.155),
    "concrete": (0.180, 0.205, 0.240, 0.265, 0.300, 0.320, 0.290),
    "tile": (0.075, 0.085, 0.115, 0.205, 0.260, 0.300, 0.260),
    "rock": (0.110, 0.125, 0.155, 0.180, 0.215, 0.260, 0.240),
    "snow": (0.860, 0.880, 0.880, 0.860, 0.740, 0.110, 0.075),
}
"""Reflectance of each material in the slots' order."""

#          coastal blue   green  red    nir    swir1  swir2
_SOILS = (
    (0.085, 0.105, 0.150, 0.200, 0.270, 0.330, 0.290),  # loam
    (0.030, 0.045, 0.080, 0.170, 0.260, 0.340, 0.280),  # laterite
    (0.130, 0.170, 0.250, 0.330, 0.410, 0.480, 0.430),  # sand
    (0.040, 0.050, 0.065, 0.085, 0.130, 0.190, 0.165),  # black clay
)
_ROOFS = (
    (0.085, 0.095, 0.108, 0.118, 0.140, 0.165, 0.155),  # asphalt
    (0.180, 0.205, 0.240, 0.265, 0.300, 0.320, 0.290),  # concrete
    (0.075, 0.085, 0.115, 0.205, 0.260, 0.300, 0.260),  # tile
    (0.300, 0.340, 0.370, 0.390, 0.410, 0.420, 0.380),  # metal
    (0.090, 0.100, 0.120, 0.145, 0.200, 0.290, 0.260),  # fibre cement, weathered
    (0.050, 0.055, 0.060, 0.065, 0.080, 0.080, 0.070),  # bitumen
)
_STUBBLE = (0.060, 0.080, 0.120, 0.170, 0.260, 0.330, 0.240)
_MUD = (0.040, 0.055, 0.095, 0.110, 0.060, 0.012, 0.006)
_WINTERS = 0.1  # share of the countries that lie under snow
_STRIPE = 32
_SUN = (
    0.55,
    0.45,
)  # how much a slope of 1 towards the east and towards the south brightens, times tan(zenith)


def shares(seed: int, window: Window, land: Terrain, city: Fabric, cultivated: Floats) -> dict[str, Floats]:
    """Share of each material, float32 (height, width) each; they add up to 1."""
    zero, one = np.float32(0), np.float32(1)
    wild = fractal(stream(seed, 50), {7: 0.5, 6: 0.45, 5: 0.4, 4: 0.35, 3: 0.3, 2: 0.25}, window)
    warp = fractal(stream(seed, 51), {6: 9.0, 5: 4.0}, window)
    rows = np.arange(window.row, window.row + window.height)[:, None]
    cols = np.arange(window.col, window.col + window.width)[None, :]
    strip = np.floor((cols + warp) * np.float32(1 / 6.0)).astype(np.int64)
    parcel = unit(
        hash_points(stream(seed, 52), np.floor((rows - warp) * np.float32(1 / 5.0)).astype(np.int64), strip)
    )
    ripe = unit(hash_window(stream(seed, 53), window))

    out = {"water": land.water}
    rest = one - land.water
    isp = np.minimum(city.isp, rest)
    tile = np.where(city.roof < np.float32(0.35), np.float32(0.6), np.float32(0.05))
    pale = np.where(city.roof > np.float32(0.72), np.float32(0.75), np.float32(0.25)) * (one - tile)
    out["tile"], out["concrete"] = isp * tile, isp * pale
    out["asphalt"] = isp - out["tile"] - out["concrete"]
    rest = rest - isp
    high = land.elevation * np.float32(1e-3) + np.float32(0.12) * wild
    out["snow"] = rest * smoothstep(high - np.float32(0.4) * land.slope, 1.55, 1.85)
    rest = rest - out["snow"]
    out["rock"] = (
        rest * np.maximum(smoothstep(land.slope, 0.55, 0.95), smoothstep(high, 1.25, 1.6)) * np.float32(0.9)
    )
    rest = rest - out["rock"]
    out["forest"] = rest * smoothstep(
        wild + np.float32(3.0) * land.slope - np.float32(0.5) * cultivated, 0.15, 0.75
    )
    rest = rest - out["forest"]
    bare = np.where(parcel > np.float32(0.62), np.float32(0.85), np.float32(0.5) * parcel)
    bare = np.clip(bare + np.float32(0.15) * (ripe - np.float32(0.5)), zero, one)
    out["soil"] = rest * bare
    out["crop"] = rest - out["soil"]
    return out


@lru_cache(64)
def drawn_materials(seed: int) -> dict[str, tuple[float, ...]]:
    """Materials of one country, keys as MATERIALS: other soils, roofs and streets, a season, muddy or clear water, and
    in some countries snow on the fields and roofs."""
    rng = np.random.default_rng((seed, 19))
    table = {name: np.array(values) for name, values in MATERIALS.items()}
    soils, roofs = np.array(_SOILS), np.array(_ROOFS)
    table["soil"] = _blend(soils, 0.4, rng)
    for name in ("asphalt", "concrete", "tile"):
        table[name] = _blend(np.vstack([roofs, table["soil"] * rng.uniform(0.8, 1.3)]), 0.4, rng)
    dry, bare = rng.beta(0.7, 1.2), 0.5 * rng.beta(0.7, 2.0)
    table["crop"] = (1 - dry) * table["crop"] * rng.uniform(0.7, 1.2) + dry * np.array(_STUBBLE)
    table["forest"] = (1 - bare) * table["forest"] * rng.uniform(0.6, 1.3) + bare * table["soil"]
    table["water"] = table["water"] * rng.uniform(0.4, 1.2) + rng.beta(0.6, 1.5) * np.array(_MUD)
    table["rock"] = 0.5 * (table["rock"] + table["soil"]) * rng.uniform(0.7, 1.3)
    if rng.random() < _WINTERS:
        deep, swept = rng.uniform(0.3, 0.95), rng.uniform(0.0, 0.6)
        for name, cover in (("crop", deep), ("soil", deep), ("forest", 0.4 * deep), ("rock", deep)):
            table[name] = (1 - cover) * table[name] + cover * table["snow"]
        for name in ("asphalt", "concrete", "tile"):
            table[name] = (1 - swept) * table[name] + swept * table["snow"]
    return {name: tuple(float(v) for v in np.clip(row, 0.002, 0.95)) for name, row in table.items()}


def _blend(spectra: Doubles, evenness: float, rng: np.random.Generator) -> Doubles:
    """A random mixture of rows (n, 7), each band a tenth off and the whole brighter or darker."""
    share = rng.dirichlet(np.full(len(spectra), evenness))
    mixed = share @ spectra * np.exp(0.2 * rng.standard_normal() + 0.1 * rng.standard_normal(7))
    return np.asarray(mixed, np.float64)


def reflectance(
    seed: int,
    window: Window,
    land: Terrain,
    city: Fabric,
    cultivated: Floats,
    materials: Mapping[str, tuple[float, ...]] = MATERIALS,
) -> Floats:
    """Seven-band reflectance (7, height, width) of `window` in the ground frame, in the order of
    spec.DMO_SLOTS.
    """
    mixture = shares(seed, window, land, city, cultivated)
    tone = fractal(stream(seed, 54), {5: 0.06, 3: 0.05, 1: 0.05, 0: 0.04}, window) + np.float32(1)
    slope2 = land.slope * land.slope
    shade = np.float32(1) - land.gradient_x * np.float32(_SUN[0]) - land.gradient_y * np.float32(_SUN[1])
    shade = np.clip(shade / np.sqrt(np.float32(1) + slope2), np.float32(0.25), np.float32(1.6)) * tone
    grain = [hash_window(stream(seed, 55 + k), window) for k in range(2)]
    out = np.empty((len(DMO_SLOTS), *window.shape), np.float32)
    # A few rows at a time: the shares of a stripe then stay in the cache for all seven bands.
    for first in range(0, window.height, _STRIPE):
        rows = slice(first, first + _STRIPE)
        stripe = {name: share[rows] for name, share in mixture.items()}
        _mixed(stripe, materials, shade[rows], [g[rows] for g in grain], out[:, rows])
    return out


def _mixed(
    mixture: dict[str, Floats],
    materials: Mapping[str, tuple[float, ...]],
    shade: Floats,
    grain: list[Hashes],
    out: Floats,
) -> None:
    for band in range(len(DMO_SLOTS)):
        total = np.zeros_like(shade)
        for material, share in mixture.items():
            total += share * np.float32(materials[material][band])
        total *= shade
        # One byte of hash a band: a uniform grain of ±0.006 is plenty for a sensor's noise.
        byte = grain[band // 4] >> np.uint32(8 * (band % 4)) & np.uint32(0xFF)
        total += (byte.astype(np.float32) - np.float32(127.5)) * np.float32(0.006 / 127.5)
        np.maximum(total, np.float32(0.001), out=out[band])
