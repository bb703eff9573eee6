"""A scene: the NTL raster, the layers beside it, and the network's inputs for any window of the NTL grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import DMO_SLOTS, SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.bands import assign_bands
from deeplight.engine.raster.buffers import InputPool
from deeplight.engine.raster.convert import Floats, Mask
from deeplight.engine.raster.extents import Overlap, format_bounds, lonlat_bounds, overlap
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.layers import AuxLayer, Layer
from deeplight.engine.raster.lights import OpenLights
from deeplight.engine.raster.plausibility import check_elevation, check_reflectance
from deeplight.engine.raster.source import Raster, open_raster
from deeplight.engine.raster.units import shown

_log = logging.getLogger(__name__)

DEM_VOID = -32768.0
"""SRTM's void, also where a file does not declare it; no place on Earth is that deep."""
ELEVATIONS = -500.0, 9000.0
"""Metres; land lies between the Dead Sea's shore (−430 and falling) and Mount Everest (8849). What a file has beyond is
an undeclared void or the sea floor, which the network has never seen: missing."""
_FEET = frozenset({"ft", "foot", "feet", "us-ft", "us survey foot", "us survey feet", "ftus"})


@dataclass(frozen=True)
class SceneOptions:
    """What decides a scene's pixels.

    ntl, dmo, dem: paths or local GDAL dataset names. *_scale: (factor, offset) in place of the file's own;
    *_nodata: raw value in place of the file's own. ntl_band: 1-based, where the file has several. ntl_unit: of NTL
    after scaling, in place of the file's own. ntl_valid: a raster on NTL's own grid, of which ntl_valid_band is read
    where it has several; NTL is valid only where that is above 0 and not nodata, as a coverage count or a mask is.
    dmo_bands: slot name to 1-based band number. allow_remote: URLs and /vsi names too.
    """

    ntl: str
    dmo: str | None = None
    dem: str | None = None
    ntl_scale: tuple[float, float] | None = None
    ntl_nodata: float | None = None
    ntl_band: int | None = None
    ntl_unit: str | None = None
    ntl_valid: str | None = None
    ntl_valid_band: int | None = None
    dmo_bands: Mapping[str, int] | None = None
    dmo_scale: tuple[float, float] | None = None
    dmo_nodata: float | None = None
    allow_remote: bool = False


class Scene:
    """Open rasters that fit together; `open` makes one. Reads are thread-safe and the same in any window.

    grid: the NTL grid (LR). hr_grid: it, subdivided 8×. unit: of the NTL after scaling, "" where nothing says which.
    ceiling: the NTL value from which the sensor or its product is saturated.
    dmo_slots: slot name to 1-based DMO band, in slot order, empty without DMO.
    """

    def __init__(
        self, lights: OpenLights, dmo: AuxLayer | None, dem: AuxLayer | None, dmo_slots: Mapping[str, int]
    ) -> None:
        self.grid = lights.layer.raster.grid
        self.hr_grid = self.grid.finer()
        self.unit, self.ceiling = lights.unit, lights.ceiling
        self.dmo_slots = dict(dmo_slots)
        self._ntl, self._dmo, self._dem = lights.layer, dmo, dem
        self._channels = [DMO_SLOTS.index(slot) for slot in dmo_slots]

    @classmethod
    def open(cls, options: SceneOptions) -> Scene:
        """Opens and checks all layers.

        Raises InputError, one sentence with the remedy, where a layer cannot be used or does not meet the NTL
        raster, where bands are not known, and where NTL cannot be radiance or DMO reflectance; DeepLightError for
        damaged pixels.
        """
        with ExitStack() as stack:
            lights = OpenLights.open(options, stack)
            grid = lights.layer.raster.grid
            slots, dmo = _open_dmo(options, grid, stack)
            dem = _open_dem(options, grid, stack)
            scene = cls(lights, dmo, dem, slots)
            stack.pop_all()
        for name, layer in (("DMO", dmo), ("DEM", dem)):
            share = "not given" if layer is None else f"{100 * layer.overlap.share:.0f} % of the scene"
            _log.info("%s: %s", name, share)
        return scene

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all files. No read may be running."""
        for layer in self._layers.values():
            layer.raster.close()

    def read_inputs(self, window: Window, inputs: dict[str, Floats] | None = None) -> dict[str, Floats]:
        """The network's inputs for `window`, in LR pixels; it may leave the raster.

        Keys, shapes and channels as spec.INPUTS with a batch axis of 1, float32, physical units; invalid
        pixels hold 0. NTL outside its raster is invalid; DMO and DEM are there wherever their files are.
        Radiance below 0 stays. inputs: tensors to fill and return, of any content.
        """
        if inputs is None:
            _, inputs = InputPool().take(*window.shape)
        inputs["ntl"][0, 0], inputs["ntl_valid"][0, 0] = self.read_ntl(window)
        inputs["dmo_bands"][:] = 0
        inputs["dmo_bands"][0, self._channels] = 1
        hr_window = window.scaled(SCALE)
        for name, layer in (("dmo", self._dmo), ("dem", self._dem)):
            values, mask = inputs[name][0], inputs[f"{name}_valid"][0, 0]
            if layer is None:
                values[:], mask[:] = 0, 0
            elif len(layer.bands) == len(values):
                layer.read_into(hr_window, values, mask)
            else:
                values[:] = 0
                values[self._channels], mask[:] = layer.read(hr_window)
        return inputs

    def read_ntl(self, window: Window) -> tuple[Floats, Mask]:
        """NTL (h, w) after scaling, values below 0 kept, 0 where invalid; mask (h, w), 1 = valid. May leave the
        raster."""
        values, mask = np.zeros(window.shape, np.float32), np.zeros(window.shape, np.uint8)
        inside = window.clipped(self.grid.height, self.grid.width)
        if inside.height and inside.width:
            part = inside.slices_in(window)
            native, mask[part] = self._ntl.read_native(inside)
            values[part] = native[0]
        return values, mask

    def cached_bytes(self, window: Window) -> int:
        """What the decoded blocks behind `window`, in LR pixels, take in GDAL's cache, over all layers."""
        return sum(layer.cached_bytes(window) for layer in self._layers.values())

    def prepare_reading(self, cache_mb: int) -> None:
        """Give GDAL that much for decoded blocks, unless the environment's GDAL_CACHEMAX says otherwise, and
        count bytes read from here on."""
        for layer in self._layers.values():
            layer.raster.cache_mb, layer.raster.bytes_read = cache_mb, 0

    def any_valid(self, window: Window) -> bool:
        """Whether NTL is valid anywhere in `window`."""
        return bool(self.read_ntl(window)[1].any())

    def describe(self) -> dict[str, Any]:
        """Facts for the run report, by layer (ntl, ntl_valid, dmo, dem); see AuxLayer.describe."""
        facts = {name: layer.describe() for name, layer in self._layers.items()}
        facts["ntl"]["unit"] = shown(self.unit)
        if self._dmo is not None:
            facts["dmo"]["slots"] = self.dmo_slots
        return facts

    @property
    def ntl_raster(self) -> Raster:
        """The open NTL raster."""
        return self._ntl.raster

    @property
    def _layers(self) -> dict[str, Layer]:
        layers = {"ntl": self._ntl, "ntl_valid": self._ntl.observed, "dmo": self._dmo, "dem": self._dem}
        return {name: layer for name, layer in layers.items() if layer is not None}


def _open_dmo(options: SceneOptions, ntl: Grid, stack: ExitStack) -> tuple[dict[str, int], AuxLayer | None]:
    if options.dmo is None:
        return {}, None
    raster = stack.enter_context(open_raster(options.dmo, "DMO", options.allow_remote))
    slots = assign_bands(raster.what, raster.band_names, raster.bands, options.dmo_bands)
    found = _meeting(ntl, raster)
    bands = tuple(slots.values())
    layer = AuxLayer(raster, bands, ntl.finer(), found, options.dmo_scale, options.dmo_nodata)
    check_reflectance(layer)
    missing = [slot for slot in DMO_SLOTS if slot not in slots]
    if missing:
        _log.info("DMO: no band for %s; the network is told so", ", ".join(missing))
    return slots, layer


def _open_dem(options: SceneOptions, ntl: Grid, stack: ExitStack) -> AuxLayer | None:
    if options.dem is None:
        return None
    raster = stack.enter_context(open_raster(options.dem, "DEM", options.allow_remote))
    _check_single(raster)
    band = raster.bands[0]
    if raster.units[band - 1].strip().lower() in _FEET:
        raise InputError(
            f"{raster.what} is in feet and metres are needed; convert it first: "
            "gdal_calc.py -A FILE --calc 'A * 0.3048' --type Float32 --outfile metres.tif"
        )
    signed = np.dtype(raster.dtype).kind != "u"
    nodata = DEM_VOID if raster.nodata[band - 1] is None and signed else None
    found = _meeting(ntl, raster)
    layer = AuxLayer(raster, raster.bands, ntl.finer(), found, nodata=nodata, limits=ELEVATIONS)
    check_elevation(layer)
    return layer


def _check_single(raster: Raster) -> None:
    if raster.count != 1:
        raise InputError(
            f"{raster.what} has {raster.count} bands and must have one; "
            f"pick it first: gdal_translate -b 1 {raster.name} one_band.tif"
        )


def _meeting(ntl: Grid, raster: Raster) -> Overlap:
    found = overlap(ntl, raster.grid)
    if found is None:
        raise InputError(
            f"{raster.what} ({format_bounds(lonlat_bounds(raster.grid))}) does not overlap the NTL raster "
            f"({format_bounds(lonlat_bounds(ntl))}); give layers of the same place"
        )
    return found
