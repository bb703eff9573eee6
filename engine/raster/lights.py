"""The nighttime lights of a scene: their band, where they were observed, their unit, where they saturate."""

from __future__ import annotations

import logging
import math
import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.core.wording import mention, of_role
from deeplight.engine.raster.auxiliary import meeting
from deeplight.engine.raster.blur import Blur, find_blur, pixel_m
from deeplight.engine.raster.extents import same_grid
from deeplight.engine.raster.layers import Layer
from deeplight.engine.raster.names import COVERAGE
from deeplight.engine.raster.products import IN_NANOWATTS, NO_LIMITS, product_of
from deeplight.engine.raster.psf import Fwhm
from deeplight.engine.raster.radiance import Lights, check_ntl, name_of
from deeplight.engine.raster.remedies import copied, quoted
from deeplight.engine.raster.single import chosen_band
from deeplight.engine.raster.source import Raster, open_raster
from deeplight.engine.raster.units import DN_UNIT, RADIANCE_UNIT, canonical

if TYPE_CHECKING:
    from deeplight.engine.raster.buffers import Scratch
    from deeplight.engine.raster.scene import SceneOptions

_log = logging.getLogger(__name__)

_MAX_SIDE = (1 << 31) - 1
DMSP_CEILING, BLACK_MARBLE_CEILING_RAW, BLACK_MARBLE_CEILING = 63.0, 65534.0, 6553.4
"""Largest values of the products: 6 bits; and 16 bits without the fill value, in steps of 0.1 nW/cm²/sr."""
_MONTHLY = re.compile(r"(?!.*(?:vnl|masked)).*(?:vcms?l?cfg|rade9|avg_rad(?!iance))")
"""EOG's monthly composites, in which 0 stands for "never seen" too; in the annual ones it is background."""
_ZEROS = 0.01
"""Share of zeros that is worth a warning."""


class ObservedLayer(Layer):
    """Lights that are valid only where another band of the same grid, a coverage count or a mask, is above 0."""

    observed: Layer | None = None

    def read_raw(
        self, window: Window, scratch: Scratch | None = None
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Raw pixels (C, h, w) of the bands and the mask (h, w) beside nodata, None where there is none."""
        raw, mask = super().read_raw(window, scratch)
        if self.observed is None:
            return raw, mask
        counts, known = self.observed.read_native(window)
        seen = np.asarray((counts[0] > 0) & (known != 0), np.uint8)
        return raw, seen if mask is None else seen * np.asarray(mask != 0, np.uint8)


@dataclass(frozen=True)
class OpenLights:
    """layer: the lights. unit: after scaling, "" where nothing says which. ceiling, limits: see Scene. doubtful: a
    warning said that the values may not be radiance."""

    layer: ObservedLayer
    unit: str
    ceiling: float
    blur: Blur
    limits: tuple[float, float]
    doubtful: bool

    @property
    def psf(self) -> Fwhm:
        """See Scene."""
        return self.blur.fwhm

    def tell_blur(self) -> None:
        """Logs where the blur is from."""
        self.blur.tell(self.layer.raster.what)

    def rest(self) -> None:
        """Closes files until the next read; see Raster.rest."""
        self.layer.raster.rest()
        if self.layer.observed is not None:
            self.layer.observed.raster.rest()

    @classmethod
    def open(cls, options: SceneOptions, stack: ExitStack) -> OpenLights:
        """Opens the lights and where they were observed. Raises InputError for what cannot be used."""
        raster = stack.enter_context(
            open_raster(options.ntl, "NTL", options.allow_remote, options.placement("ntl"))
        )
        band = chosen_band(raster, options.ntl_band, _example(raster))
        if max(raster.grid.height, raster.grid.width) * SCALE > _MAX_SIDE:
            raise InputError(
                f"{raster.what} has {raster.grid.width}×{raster.grid.height} pixels, {SCALE}× as many a side are "
                "more than a GeoTIFF holds; give a part of it"
            )
        layer = ObservedLayer(raster, (band,), options.ntl_scale, options.ntl_nodata)
        if options.ntl_valid is not None:
            layer.observed = _open_observed(options, raster, stack)
        stated = options.ntl_unit is not None
        text = options.ntl_unit if options.ntl_unit is not None else raster.units[band - 1]
        counted = "" if layer.observed is None else layer.observed.raster.what
        found = check_ntl(layer, text, stated, counted)
        unit = _unit(layer, options, found)
        if not unit:
            _log.info(
                "%s: nothing says its unit; it is taken as %s, and the output claims none; if it is, pass %s",
                raster.what,
                RADIANCE_UNIT,
                mention(ntl_unit=RADIANCE_UNIT),
            )
        elif unit not in (RADIANCE_UNIT, DN_UNIT):
            _log.warning(
                "%s is in %s, which is not known as radiance, and its values are taken as %s; if they need a factor, "
                "pass `ntl_scale=F or (F, OFFSET)`",
                raster.what,
                unit,
                RADIANCE_UNIT,
            )
        if layer.observed is None:
            _mention_zeros(layer)
        ceiling = _ceiling(layer, unit)
        product = product_of(name_of(layer), unit, pixel_m(raster.grid)[0])
        limits = NO_LIMITS if product is None else product.limits(unit, ceiling)
        blur = find_blur(options.psf, layer, product, ceiling)
        return cls(layer, unit, ceiling, blur, limits, found.doubtful)


def _example(raster: Raster) -> str:
    """Options that choose among several bands of lights, or of a coverage count, by their names."""
    which = of_role(raster.role, "band")
    counts = [b for b in raster.bands if COVERAGE.search(raster.band_names[b - 1])]
    if raster.role != "NTL":
        return mention(**{which: counts[0]}) if counts else ""
    light = next((b for b in raster.bands if b not in counts[:1]), raster.bands[0])
    counted = {"ntl_valid": raster.name, "ntl_valid_band": counts[0]} if counts else {}
    return mention(**{which: light}, **counted)


def _open_observed(options: SceneOptions, ntl: Raster, stack: ExitStack) -> Layer:
    """The coverage count or mask, raw, on the grid of the lights."""
    raster = stack.enter_context(
        open_raster(str(options.ntl_valid), "NTL-valid", options.allow_remote, options.placement("ntl"))
    )
    band = chosen_band(raster, options.ntl_valid_band, _example(raster))
    meeting(ntl.grid, raster)
    if not same_grid(ntl.grid, raster.grid):
        raise InputError(
            f"{raster.what} is not on the pixels of {ntl.what}, and a count or mask is needed for each of them; bring "
            f"it there first: {copied(raster.name, 'valid.tif', f'--like {quoted(ntl.name)}')}"
        )
    return Layer(raster, (band,), (1.0, 0.0))


def _unit(ntl: Layer, options: SceneOptions, found: Lights) -> str:
    """Of the values after scaling, from the best witness: the user, the file, the values (DN), the product's name or
    encoding; "" where there is none."""
    if options.ntl_unit is not None:
        return canonical(options.ntl_unit)
    band = ntl.bands[0] - 1
    own = float(ntl.raster.scales[band]), float(ntl.raster.offsets[band])
    declared = canonical(ntl.raster.units[band])
    if options.ntl_scale is not None and (options.ntl_scale != own or not declared):
        return RADIANCE_UNIT  # what the option says that it gives
    if declared:
        return declared
    if found.digital:
        return DN_UNIT
    encoded = ntl.raster.dtypes[band] == "uint16" and own == (0.1, 0.0) and ntl.nodata[0] == 65535
    named = IN_NANOWATTS.search(name_of(ntl)) is not None
    return RADIANCE_UNIT if (named or encoded) and not found.doubtful else ""


def _ceiling(ntl: Layer, unit: str) -> float:
    """Where NTL values saturate: DMSP's ceiling for bytes and digital numbers, Black Marble's otherwise; scaled
    like the raw values where the file holds the product's own integers."""
    dtype = ntl.raster.dtypes[ntl.bands[0] - 1]
    raw = {"uint8": DMSP_CEILING, "uint16": BLACK_MARBLE_CEILING_RAW}.get(dtype)
    if unit == DN_UNIT and dtype != "uint8":
        return DMSP_CEILING
    if raw is None:
        return BLACK_MARBLE_CEILING
    # A negative factor turns the order around: the product is not one of those known.
    return float(raw * ntl.scale[0] + ntl.offset[0]) if ntl.scale[0] > 0 else math.inf


def _mention_zeros(ntl: Layer) -> None:
    """EOG: it is imperative that users do not take a value of zero to mean that no lights were observed."""
    if ntl.nodata[0] == 0 or not _MONTHLY.match(name_of(ntl)):
        return
    raw, _, mask = ntl.sample(Window(0, 0, *ntl.raster.grid.shape))
    known = mask != 0
    share = float(np.mean(raw[0][known] == 0)) if known.any() else 0.0
    if share > _ZEROS:
        _log.warning(
            "%s: %.0f %% of the sampled pixels are exactly 0, which a monthly composite also has where nothing was "
            'observed; pass its coverage count: `ntl_valid="CF_CVG.tif"`',
            ntl.raster.what,
            100 * share,
        )


def check_light_options(options: SceneOptions) -> None:
    """Raises InputError for an option about a coverage count that is not given: a mistake, not a wish to ignore."""
    if options.ntl_valid is None and options.ntl_valid_band is not None:
        raise InputError(
            "`ntl_valid_band` is about the coverage count and there is none: give `ntl_valid`, or leave it out"
        )
