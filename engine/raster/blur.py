"""The blur of the lights in LR pixels: what `psf` says, a product's constant in metres, or an estimate."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.isolated import ENOUGH, isolated_lights
from deeplight.engine.raster.mesh import project
from deeplight.engine.raster.products import Product
from deeplight.engine.raster.psf import UNKNOWN, WIDEST, Fwhm, shown_psf

if TYPE_CHECKING:
    from deeplight.engine.raster.layers import Layer

_log = logging.getLogger(__name__)

_EARTH_RADIUS_M = 6371007.2
"""Of the sphere with the WGS 84 ellipsoid's area (authalic radius)."""


class Blur(NamedTuple):
    """fwhm: in LR pixels. found: lone lights in which it was looked for; None where nobody asked. source: whose
    constant it would be or is, for messages; "" where nothing is to be said."""

    fwhm: Fwhm
    found: int | None = None
    source: str = ""

    @property
    def measured(self) -> bool:
        """Whether it was found on the lights themselves."""
        return self.found is not None and self.found >= ENOUGH

    def tell(self, what: str) -> None:
        """Logs where it is from. what: the lights."""
        if self.measured:
            _log.info(
                '`psf="auto"`: the blur is %s LR pixels (FWHM along rows, columns), from %d isolated lights',
                shown_psf(self.fwhm),
                self.found,
            )
        elif self.found is not None:
            _log.warning(
                '`psf="auto"` finds %d isolated lights in %s and needs %d, so the blur is taken as %s; pass `psf=FWHM` '
                "where you know it",
                self.found,
                what,
                ENOUGH,
                self.source,
            )
        elif self.source:
            _log.info("%s: its blur is taken as %s (FWHM along rows, columns)", what, self.source)


def find_blur(
    asked: Fwhm | str | None, layer: Layer, product: Product | None, saturation: float = math.inf
) -> Blur:
    """The one blur of a run. asked: what `psf` says; None: the product's constant. saturation: NTL from which a light
    is not estimated from."""
    if isinstance(asked, tuple):
        return Blur(asked)
    if asked == "unknown":
        return Blur(UNKNOWN)
    constant = product_blur(product, layer.raster.grid)
    known = "" if product is None else f"{product.name}'s, {shown_psf(constant)} LR pixels"
    if asked is None:
        return Blur(constant, source=known)
    count, fwhm = isolated_lights(layer, saturation)
    if count < ENOUGH:
        return Blur(constant, count, known or "not known")
    return Blur((rounded(fwhm[0]), rounded(fwhm[1])), count)


def product_blur(product: Product | None, grid: Grid) -> Fwhm:
    """A product's blur at the centre of the grid, which on latitudes and longitudes is wider along columns; UNKNOWN
    without a product, or where the grid's place is not on the globe."""
    sides = pixel_m(grid)
    if product is None or not all(math.isfinite(side) for side in sides):
        return UNKNOWN
    down, across = (rounded(product.fwhm_m / max(side, 1.0)) for side in sides)
    return down, across


def rounded(fwhm: float) -> float:
    """To a tenth of an LR pixel, at most WIDEST."""
    return min(round(fwhm, 1), WIDEST)


def pixel_m(grid: Grid) -> tuple[float, float]:
    """Metres on the ground, at the centre of the grid, from one row to the next and from one column to the next; NaN
    where that is not on the globe."""
    from rasterio.crs import CRS

    row, col = grid.height / 2, grid.width / 2
    xs, ys = np.transpose([grid.transform @ at for at in ((col, row), (col, row + 1), (col + 1, row))])
    lon, lat = project(grid.crs, CRS.from_epsg(4326), xs, ys)
    east = np.radians(lon[1:] - lon[0]) * np.cos(np.radians((lat[1:] + lat[0]) / 2))
    down, across = _EARTH_RADIUS_M * np.hypot(np.radians(lat[1:] - lat[0]), east)
    return float(down), float(across)
