"""A synthetic country: windows of its rasters, each a pure function of the configuration and global pixel
indices.

Two frames share one lattice. The *ground frame* is where things are: terrain, sites, roads, and so the
auxiliary rasters (DMO, DEM). The *NTL frame* is where the night sensor says they are: NTL and the truth that
belongs to it (HR radiance, ISP). They differ by a smooth displacement: truth(p) = ground(p + offset(p)), see
degrade.py.

The HR lattice carries the country: its fields are defined at HR pixel centres and bilinear between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.train.synth import degrade
from deeplight.train.synth.fabric import Fabric, fabric
from deeplight.train.synth.noise import ancestors, upsampled
from deeplight.train.synth.quarters import quarters
from deeplight.train.synth.roads import (
    MOTORWAY,
    PRIMARY,
    TRACK,
    Segments,
    cells_away,
    draw,
    roads_of_cell,
    segments_near,
)
from deeplight.train.synth.settlements import (
    CELL,
    MAX_REACH,
    REACH,
    Sites,
    cultivation,
    joined,
    sites_of_cell,
)
from deeplight.train.synth.spectra import MATERIALS, drawn_materials, reflectance
from deeplight.train.synth.styles import SHAPES, TOWNS, settled
from deeplight.train.synth.terrain import Terrain, terrain

SMALLEST, TALLEST, WIDEST = 8, 43184, 86384
"""Sides of a country in LR px of 15 arc-seconds: the globe has 43200 × 86400 of them, and the auxiliary goes on
a little beyond the NTL."""
_MAX_MISREGISTRATION = 4.0


@dataclass(frozen=True)
class CountryConfig:
    """What a synthetic country is made of.

    seed: any integer ≥ 0; everything follows from it. lr_height, lr_width: size of the country in LR px
    (windows may leave it: the land goes on). psf_fwhm_lr: full width at half maximum of the LR sensor in LR
    px. misregistration_lr: bound of the displacement between the frames in LR px. noise: standard deviation
    of the additive noise in nW/cm²/sr. relative_noise: that of the gain. saturation: radiance at which 6-bit
    LR values end, or None. style: how the land is settled, one of styles.SHAPES. own_materials: whether the country has
    soils, roofs, seasons and waters of its own, or those of spectra.MATERIALS.
    """

    seed: int = 0
    lr_height: int = 128
    lr_width: int = 128
    psf_fwhm_lr: float = 1.2
    misregistration_lr: float = 1.2
    noise: float = 0.06
    relative_noise: float = 0.01
    saturation: float | None = None
    style: str = TOWNS
    own_materials: bool = False

    def __post_init__(self) -> None:
        """Raise InputError where a value makes no sense."""
        if self.seed < 0:
            raise InputError(f"the seed is {self.seed}; give an integer that is 0 or larger")
        if not (SMALLEST <= self.lr_height <= TALLEST and SMALLEST <= self.lr_width <= WIDEST):
            raise InputError(
                f"the country's size is {self.lr_height}x{self.lr_width} LR pixels; its height must be between "
                f"{SMALLEST} and {TALLEST} and its width between {SMALLEST} and {WIDEST}, the whole globe at 15 "
                "arc-seconds"
            )
        if not 0 <= self.psf_fwhm_lr <= 4:
            raise InputError(f"the PSF's width is {self.psf_fwhm_lr} LR pixels; it must be between 0 and 4")
        if not 0 <= self.misregistration_lr <= _MAX_MISREGISTRATION:
            limit = f"it must be between 0 and {_MAX_MISREGISTRATION:g}"
            raise InputError(f"the misregistration is {self.misregistration_lr} LR pixels; {limit}")
        for noise in (self.noise, self.relative_noise):
            if not 0 <= noise < math.inf:
                raise InputError(f"the noise is {noise}; it must be a number that is 0 or larger")
        if self.saturation is not None and not 0 < self.saturation < math.inf:
            raise InputError(f"the saturation is {self.saturation}; it must be a radiance above 0")
        if self.style not in SHAPES:
            raise InputError(f"the style is {self.style!r}; give one of {', '.join(SHAPES)}")


@dataclass(frozen=True)
class Ground:
    """HR window in the ground frame, float32: isp (H, W) in [0, 1], dmo (7, H, W) reflectance, dem (H, W)
    metres.
    """

    isp: Floats
    dmo: Floats
    dem: Floats


@dataclass(frozen=True)
class CountrySample:
    """One window of h × w LR px, float32.

    NTL frame: ntl (h, w) and ntl_hr (8h, 8w) in nW/cm²/sr, isp (8h, 8w) in [0, 1]; offset (2, h, w), the true
    (x, y) in LR px. Ground frame: dmo (7, 8h, 8w) reflectance in the order of spec.DMO_SLOTS, dem (8h, 8w)
    metres.
    """

    ntl: Floats
    ntl_hr: Floats
    isp: Floats
    dmo: Floats
    dem: Floats
    offset: Floats


@dataclass(frozen=True)
class _Surface:
    """What is on the ground on HR window `window`; cultivated: settlements.cultivation at HR."""

    window: Window
    land: Terrain
    city: Fabric
    cultivated: Floats

    def cut(self, window: Window) -> _Surface:
        """Return the part on a smaller window."""
        at = window.slices_in(self.window)
        land, city = self.land, self.city
        relief = (land.elevation, land.gradient_x, land.gradient_y, land.slope, land.water)
        return _Surface(
            window,
            Terrain(*(_cut(field, at) for field in relief)),
            Fabric(*(_cut(field, at) for field in (city.isp, city.roof, city.light))),
            _cut(self.cultivated, at),
        )


class Country:
    """Windows of one synthetic country. Thread-safe and picklable.

    A window's pixels are bit for bit the same whatever window they are asked in. Sites and roads of some
    thousand cells are remembered in the process, the least recently used are forgotten: windows of one region
    are cheaper together, since a new 48 × 48 LR px cell costs some ten milliseconds.
    """

    def __init__(self, config: CountryConfig) -> None:
        self.config = config

    def sample(self, window_lr: Window) -> CountrySample:
        """Return all rasters on `window_lr` (LR px; it may leave the country)."""
        surface = self._surface(self._ground_window(window_lr))
        ntl, ntl_hr, isp, offset = self._night(surface, window_lr)
        own = surface.cut(window_lr.scaled(SCALE))
        return CountrySample(ntl, ntl_hr, isp, self._reflectance(own), own.land.elevation, offset)

    def night(self, window_lr: Window) -> tuple[Floats, Floats, Floats, Floats]:
        """Return ntl, ntl_hr, isp and offset as `sample` does, without making the auxiliary layers."""
        return self._night(self._surface(self._ground_window(window_lr)), window_lr)

    def ground(self, window_hr: Window) -> Ground:
        """Return the auxiliary layers on an HR window in the ground frame."""
        surface = self._surface(window_hr)
        return Ground(surface.city.isp, self._reflectance(surface), surface.land.elevation)

    def relief(self, window_hr: Window) -> Terrain:
        """Return the terrain on an HR window in the ground frame."""
        return terrain(self.config.seed, window_hr, SHAPES[self.config.style])

    def _seen(self, window_lr: Window) -> Window:
        return window_lr.grown(degrade.halo_lr(self.config.psf_fwhm_lr))

    def _ground_window(self, window_lr: Window) -> Window:
        # Beyond the longest displacement, one pixel for bilinear sampling and one for the HR point spread.
        margin = int(np.ceil(self.config.misregistration_lr * SCALE)) + 2
        return self._seen(window_lr).scaled(SCALE).grown(margin)

    def _surface(self, window: Window) -> _Surface:
        seed = self.config.seed
        land = self.relief(window)
        cultivated = upsampled(cultivation(seed, ancestors(window, 4), 4), window, 4)
        if self.config.style == TOWNS:
            roads = draw(segments_near(self._roads_near(window), window), window)
            city = fabric(seed, self._sites_near(window), roads, land, cultivated, window)
        else:
            city = quarters(seed, settled(self.config.style, seed, land, window), land, cultivated, window)
        return _Surface(window, land, city, cultivated)

    def _reflectance(self, surface: _Surface) -> Floats:
        seed = self.config.seed
        materials = drawn_materials(seed) if self.config.own_materials else MATERIALS
        return reflectance(seed, surface.window, surface.land, surface.city, surface.cultivated, materials)

    def _night(self, ground: _Surface, window_lr: Window) -> tuple[Floats, Floats, Floats, Floats]:
        config, seen = self.config, self._seen(window_lr)
        target = seen.scaled(SCALE).grown(1)
        offset = degrade.displacement(config.seed, config.misregistration_lr, seen.grown(2))
        border = SCALE - 1
        fine = degrade.interpolated(offset)[
            :, border : border + target.height, border : border + target.width
        ]
        light, isp = degrade.displaced(
            [ground.city.light, ground.city.isp], ground.window, fine * np.float32(SCALE), target
        )
        light = degrade.hr_blur(light)
        mean = degrade.blurred_mean(light, config.psf_fwhm_lr)
        ntl = degrade.sensed(
            mean, config.seed, window_lr, config.noise, config.relative_noise, config.saturation
        )
        hr = window_lr.scaled(SCALE)
        return (
            ntl,
            _cut(light, hr.slices_in(seen.scaled(SCALE))),
            _cut(isp, hr.slices_in(target)),
            _cut(offset, (slice(None), *window_lr.slices_in(seen.grown(2)))),
        )

    def _cells(self, window: Window, margin: int) -> list[tuple[int, int]]:
        """The cells that `window`, grown by `margin` HR px, touches, row by row."""
        w = window.grown(margin)
        rows = range(w.row // CELL, (w.row + w.height - 1) // CELL + 1)
        return [(r, c) for r in rows for c in range(w.col // CELL, (w.col + w.width - 1) // CELL + 1)]

    def _sites_near(self, window: Window) -> Sites:
        """The sites whose reach touches `window`. Their order does not depend on it where they compete:
        see fabric.
        """
        every = joined([sites_of_cell(self.config.seed, r, c) for r, c in self._cells(window, MAX_REACH + 2)])
        reach = REACH * every.radius + 3
        near = (every.x + reach > window.col) & (every.x - reach < window.col + window.width)
        near &= (every.y + reach > window.row) & (every.y - reach < window.row + window.height)
        return every.where(near)

    def _roads_near(self, window: Window) -> list[Segments]:
        return [
            roads_of_cell(self.config.seed, road, row, col)
            for road in (MOTORWAY, PRIMARY, TRACK)
            for row, col in self._cells(window, cells_away(road) * CELL)
        ]


def _cut(field: Floats, at: tuple[slice, ...]) -> Floats:
    return np.ascontiguousarray(field[at])
