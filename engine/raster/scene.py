"""A scene: the NTL raster, the layers beside it, and the network's inputs for any window of the NTL grid."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import DMO_SLOTS, SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.accel import missing_module
from deeplight.engine.raster.bands import assign_bands
from deeplight.engine.raster.buffers import InputPool
from deeplight.engine.raster.convert import Floats, Mask
from deeplight.engine.raster.extents import Overlap, format_bounds, lonlat_bounds, overlap
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.layers import AuxLayer, Layer
from deeplight.engine.raster.placement import Edges, Placement
from deeplight.engine.raster.plausibility import check_elevation, check_ntl, check_reflectance
from deeplight.engine.raster.source import Raster, open_raster

_log = logging.getLogger(__name__)

RADIANCE_UNIT = "nW/cm²/sr"
DEM_VOID = -32768.0
"""SRTM's void, also where a file does not declare it; no place on Earth is that deep."""
ELEVATIONS = -500.0, 9000.0
"""Metres; land lies between the Dead Sea's shore (−430 and falling) and Mount Everest (8849). What a file has beyond is
an undeclared void or the sea floor, which the network has never seen: missing."""
_MAX_SIDE = (1 << 31) - 1
_WHOLE = 0.995
"""Share of the scene that is as good as all of it, for the log."""
DMSP_CEILING, BLACK_MARBLE_CEILING_RAW, BLACK_MARBLE_CEILING = 63.0, 65534.0, 6553.4
"""Largest values of the products: 6 bits; and 16 bits without the fill value, in steps of 0.1 nW/cm²/sr."""
_FOOT = 0.3048
"""Metres. The US survey foot is longer by 2 millionths: 2 cm on Mount Everest."""
_FEET = frozenset({"ft", "foot", "feet", "us-ft", "us survey foot", "us survey feet", "ftus"})


@dataclass(frozen=True)
class SceneOptions:
    """What decides a scene's pixels.

    ntl, dmo, dem: paths or local GDAL dataset names. *_scale: (factor, offset) in place of the file's own;
    *_nodata: raw value in place of the file's own. dmo_bands: slot name to 1-based band number. ntl_band, dem_band:
    1-based number, of files with several. *_crs, *_bounds: where a file does not say where it lies, see
    placement.Placement. allow_remote: URLs and /vsi names too.
    """

    ntl: str
    dmo: str | None = None
    dem: str | None = None
    ntl_scale: tuple[float, float] | None = None
    ntl_nodata: float | None = None
    ntl_band: int | None = None
    ntl_crs: str | None = None
    ntl_bounds: Edges | None = None
    dmo_bands: Mapping[str, int] | None = None
    dmo_scale: tuple[float, float] | None = None
    dmo_nodata: float | None = None
    dmo_crs: str | None = None
    dmo_bounds: Edges | None = None
    dem_scale: tuple[float, float] | None = None
    dem_nodata: float | None = None
    dem_band: int | None = None
    dem_crs: str | None = None
    dem_bounds: Edges | None = None
    allow_remote: bool = False

    def placement(self, layer: str) -> Placement:
        """What is said about where a layer (ntl, dmo or dem) lies."""
        return Placement(getattr(self, f"{layer}_crs"), getattr(self, f"{layer}_bounds"))


class Scene:
    """Open rasters that fit together; `open` makes one. Reads are thread-safe and the same in any window.

    grid: the NTL grid (LR). hr_grid: it, subdivided 8×. unit: of the NTL after scaling. ceiling: the NTL value
    in that unit from which the sensor or its product is saturated.
    dmo_slots: slot name to 1-based DMO band, in slot order, empty without DMO.
    """

    def __init__(
        self, ntl: Layer, dmo: AuxLayer | None, dem: AuxLayer | None, dmo_slots: Mapping[str, int], unit: str
    ) -> None:
        self.grid = ntl.raster.grid
        self.hr_grid = self.grid.finer()
        self.unit = unit
        self.ceiling = _ceiling(ntl, unit)
        self.dmo_slots = dict(dmo_slots)
        self._ntl, self._dmo, self._dem = ntl, dmo, dem
        self._channels = [DMO_SLOTS.index(slot) for slot in dmo_slots]

    @classmethod
    def open(cls, options: SceneOptions) -> Scene:
        """Opens and checks all layers.

        Raises InputError, one sentence with the remedy, where a layer cannot be used or does not meet the NTL
        raster, where DMO bands are not known, and where DMO values cannot be reflectance; DeepLightError for
        damaged pixels.
        """
        with ExitStack() as stack:
            ntl = _open_ntl(options, stack)
            slots, dmo = _open_dmo(options, ntl.raster.grid, stack)
            dem = _open_dem(options, ntl.raster.grid, stack)
            scene = cls(ntl, dmo, dem, slots, _unit(ntl, options))
            stack.pop_all()
        slower = missing_module()
        if slower is not None:
            _log.warning("%s", slower)
        for name, share in scene.covered.items():
            if share is None:
                _log.info("%s: not given", name.upper())
            elif share < _WHOLE:
                _log.info("%s: its file reaches over %.0f %% of the scene", name.upper(), 100 * share)
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
        """NTL (h, w) in `unit`, values below 0 kept, 0 where invalid; mask (h, w), 1 = valid. May leave the
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
        """Facts for the run report, by layer (ntl, dmo, dem); see AuxLayer.describe."""
        facts = {name: layer.describe() for name, layer in self._layers.items()}
        facts["ntl"]["unit"] = self.unit
        if self._dmo is not None:
            facts["dmo"]["slots"] = self.dmo_slots
        return facts

    @property
    def covered(self) -> dict[str, float | None]:
        """Of "dmo" and "dem" the share of the scene that the file reaches over, gaps included; None: not given."""
        layers = {"dmo": self._dmo, "dem": self._dem}
        return {name: None if layer is None else layer.overlap.share for name, layer in layers.items()}

    @property
    def ntl_raster(self) -> Raster:
        """The open NTL raster."""
        return self._ntl.raster

    @property
    def _layers(self) -> dict[str, Layer]:
        layers = {"ntl": self._ntl, "dmo": self._dmo, "dem": self._dem}
        return {name: layer for name, layer in layers.items() if layer is not None}


def _open_ntl(options: SceneOptions, stack: ExitStack) -> Layer:
    raster = stack.enter_context(
        open_raster(options.ntl, "NTL", options.allow_remote, options.placement("ntl"))
    )
    bands = _one_band(raster, options.ntl_band)
    if max(raster.grid.height, raster.grid.width) * SCALE > _MAX_SIDE:
        raise InputError(
            f"{raster.what} has {raster.grid.width}×{raster.grid.height} pixels, {SCALE}× as many a side are "
            "more than a GeoTIFF holds; give a part of it"
        )
    layer = Layer(raster, bands, options.ntl_scale, options.ntl_nodata)
    check_ntl(layer)
    return layer


def _open_dmo(options: SceneOptions, ntl: Grid, stack: ExitStack) -> tuple[dict[str, int], AuxLayer | None]:
    if options.dmo is None:
        return {}, None
    raster = stack.enter_context(
        open_raster(options.dmo, "DMO", options.allow_remote, options.placement("dmo"))
    )
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
    raster = stack.enter_context(
        open_raster(options.dem, "DEM", options.allow_remote, options.placement("dem"))
    )
    bands = _one_band(raster, options.dem_band)
    band = bands[0]
    if raster.units[band - 1].strip().lower() in _FEET and options.dem_scale is None:
        feet = f"{_FOOT * raster.scales[band - 1]:.12g},{_FOOT * raster.offsets[band - 1]:.12g}"
        raise InputError(
            f"{raster.what} is in feet and metres are needed; add --dem-scale {feet.removesuffix(',0')}"
        )
    signed = np.dtype(raster.dtype).kind != "u"
    nodata = options.dem_nodata
    if nodata is None and raster.nodata[band - 1] is None and signed:
        nodata = DEM_VOID
    found = _meeting(ntl, raster)
    layer = AuxLayer(raster, bands, ntl.finer(), found, options.dem_scale, nodata, ELEVATIONS)
    check_elevation(layer)
    return layer


def _one_band(raster: Raster, given: int | None) -> tuple[int]:
    """The band to use: the one given, or the only one."""
    flag = f"--{raster.role.lower()}-band"
    named = [f"{b} {raster.band_names[b - 1]}".rstrip() for b in raster.bands]
    if given is not None:
        if given not in raster.bands:
            raise InputError(
                f"{raster.what} has no data band {given}; its bands are {', '.join(named)}: correct {flag}"
            )
        return (given,)
    if raster.count != 1:
        raise InputError(
            f"{raster.what} has {raster.count} bands and must have one ({', '.join(named[:8])}"
            f"{', …' if len(named) > 8 else ''}); say which one: {flag} {raster.bands[0]}"
        )
    return (raster.bands[0],)


def _meeting(ntl: Grid, raster: Raster) -> Overlap:
    found = overlap(ntl, raster.grid)
    if found is None:
        raise InputError(
            f"{raster.what} ({format_bounds(lonlat_bounds(raster.grid))}) does not overlap the NTL raster "
            f"({format_bounds(lonlat_bounds(ntl))}); give layers of the same place"
        )
    return found


def _unit(ntl: Layer, options: SceneOptions) -> str:
    """The file's own unit; else DN for unscaled bytes, which no radiance product uses but DMSP does; else
    radiance."""
    declared = ntl.raster.units[ntl.bands[0] - 1].strip()
    if declared:
        return declared
    unscaled = options.ntl_scale is None and (ntl.scale[0], ntl.offset[0]) == (1.0, 0.0)
    return "DN" if ntl.raster.dtype == "uint8" and unscaled else RADIANCE_UNIT


def _ceiling(ntl: Layer, unit: str) -> float:
    """Where NTL values saturate: DMSP's ceiling for bytes and digital numbers, Black Marble's otherwise; scaled
    like the raw values where the file holds the product's own integers."""
    raw = {"uint8": DMSP_CEILING, "uint16": BLACK_MARBLE_CEILING_RAW}.get(ntl.raster.dtype)
    if unit == "DN" and ntl.raster.dtype != "uint8":
        return DMSP_CEILING
    if raw is None:
        return BLACK_MARBLE_CEILING
    # A negative factor turns the order around: the product is not one of those known.
    return float(raw * ntl.scale[0] + ntl.offset[0]) if ntl.scale[0] > 0 else math.inf
