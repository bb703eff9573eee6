"""A scene: the NTL raster, the layers beside it, and the network's inputs for any window of the NTL grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from deeplight.engine.core.arrays import Floats, Mask
from deeplight.engine.core.spec import DMO_SLOTS, OFFSET, SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.accel import missing_module
from deeplight.engine.raster.auxiliary import Beside, Daytime, check_auxiliary_options
from deeplight.engine.raster.buffers import InputPool
from deeplight.engine.raster.layers import AuxLayer, Layer
from deeplight.engine.raster.lights import OpenLights, check_light_options
from deeplight.engine.raster.placement import Edges, Placement
from deeplight.engine.raster.psf import Fwhm, shown_psf
from deeplight.engine.raster.shared_blocks import BlockStore
from deeplight.engine.raster.shared_offset import SharedOffset
from deeplight.engine.raster.source import Raster
from deeplight.engine.raster.units import shown

_log = logging.getLogger(__name__)

_WHOLE = 0.995
"""Share of the scene that is as good as all of it, for the log."""


@dataclass(frozen=True)
class SceneOptions:
    """What decides a scene's pixels.

    ntl, dmo, dem: paths or local GDAL dataset names. *_scale: (factor, offset) in place of the file's own;
    *_nodata: raw value in place of the file's own. ntl_band, dem_band: 1-based, of files with several. ntl_unit: of NTL
    after scaling, in place of the file's own. ntl_valid: a raster on NTL's own grid, of which ntl_valid_band is read
    where it has several; NTL is valid only where that is above 0 and not nodata, as a coverage count or a mask is.
    dmo_bands: slot name to 1-based band number. dmo_files: slot name to a file of one band, in place of dmo; dmo_scale,
    dmo_nodata, dmo_crs and dmo_bounds hold for all of them. *_crs, *_bounds: where a file does not say where it lies,
    see placement.Placement. allow_remote: URLs and /vsi names too. psf: FWHM in LR pixels along rows and columns of
    the blur of the lights, "auto" to estimate it from them, or "unknown"; None: the product's. offset: the file of the
    alignment that dates share (stack.alignment), which their tags name; the scene is given it open.
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
    dmo_files: Mapping[str, str] | None = None
    offset: str | None = None
    psf: Fwhm | str | None = None

    def files(self) -> dict[str, str]:
        """The rasters that are given, by the option that gives each, as in "dmo" and "dmo-band blue"."""
        given = {"ntl": self.ntl, "ntl-valid": self.ntl_valid, "dmo": self.dmo, "dem": self.dem}
        given["offset"] = self.offset
        bands = {f"dmo-band {slot}": name for slot, name in (self.dmo_files or {}).items()}
        return {option: name for option, name in (given | bands).items() if name is not None}

    def placement(self, layer: str) -> Placement:
        """What is said about where a layer (ntl, dmo or dem) lies."""
        return Placement(getattr(self, f"{layer}_crs"), getattr(self, f"{layer}_bounds"))


class Scene:
    """Open rasters that fit together; `open` makes one. Reads are thread-safe and the same in any window.

    grid: the NTL grid (LR). hr_grid: it, subdivided 8×. unit: of the NTL after scaling, "" where nothing says which.
    ceiling: the NTL value from which the sensor or its product is saturated. doubtful: a warning said that the NTL may
    not be radiance. psf, limits: what the network is told of the sensor, see spec.INPUTS; the same for every window.
    dmo_slots: slot name to 1-based band of its DMO file, in slot order, empty without DMO. offset: that is given; None
    where each tile's is estimated.
    """

    def __init__(self, lights: OpenLights, beside: Beside, offset: SharedOffset | None = None) -> None:
        self.offset = offset
        self.grid = lights.layer.raster.grid
        self.hr_grid = self.grid.finer()
        self.unit, self.ceiling, self.doubtful = lights.unit, lights.ceiling, lights.doubtful
        self.psf, self.limits = lights.psf, lights.limits
        self.dmo_slots = {} if beside.dmo is None else beside.dmo.slots
        self._ntl, self._dmo, self._dem = lights.layer, beside.dmo, beside.dem
        self._kept = beside.kept
        self._channels = [DMO_SLOTS.index(slot) for slot in self.dmo_slots]

    @classmethod
    def open(cls, options: SceneOptions) -> Scene:
        """Opens and checks all layers.

        Raises InputError, one sentence with the remedy, where a layer cannot be used or does not meet the NTL
        raster, where bands are not known, and where NTL cannot be radiance or DMO reflectance; DeepLightError for
        damaged pixels.
        """
        check_light_options(options)
        check_auxiliary_options(options)
        with ExitStack() as stack:
            lights = OpenLights.open(options, stack)
            lights.tell_blur()
            scene = cls(lights, Beside.open(options, lights.layer.raster.grid, stack))
            stack.pop_all()
        scene.tell()
        return scene

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self) -> None:
        """Logs which layers there are."""
        slower = missing_module()
        if slower is not None:
            _log.warning("%s", slower)
        for name, share in self.covered.items():
            if share is None:
                _log.info("%s: not given", name.upper())
            elif share < _WHOLE:
                _log.info("%s: its file reaches over %.0f %% of the scene", name.upper(), 100 * share)

    def close(self) -> None:
        """Closes all files. No read may be running."""
        for layer in self._sources:
            layer.pixels.rest()  # also what several files share
        for layer in self._layers:
            layer.raster.close()

    def read_inputs(self, window: Window, inputs: dict[str, Floats] | None = None) -> dict[str, Floats]:
        """The network's inputs for `window`, in LR pixels; it may leave the raster.

        Keys, shapes and channels as spec.INPUTS with a batch axis of 1, float32, physical units; invalid
        pixels hold 0. NTL outside its raster is invalid; DMO and DEM are there wherever their files are.
        Radiance below 0 stays. inputs: tensors to fill and return, of any content. An offset that is given is among
        what is returned, as spec.OFFSET.
        """
        if inputs is None:
            _, inputs = InputPool().take(*window.shape)
        inputs["ntl"][0, 0], inputs["ntl_valid"][0, 0] = self.read_ntl(window)
        inputs["dmo_bands"][:] = 0
        inputs["dmo_bands"][0, self._channels] = 1
        inputs["psf"][:], inputs["limits"][:] = self.psf, self.limits
        hr_window = window.scaled(SCALE)
        for name in ("dmo", "dem"):
            values, mask = inputs[name][0], inputs[f"{name}_valid"][0, 0]
            if name in self.auxiliary:
                self._kept.read_into(name, self.auxiliary[name], hr_window, values, mask)
            else:
                values[:], mask[:] = 0, 0
        if self.offset is not None:
            inputs[OFFSET.name] = self.offset.read(window)
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

    def cached_bytes(self, window: Window, *, shared: bool = False) -> int:
        """What the decoded blocks behind `window`, in LR pixels, take in GDAL's cache, over all layers. shared: in one
        that threads share."""
        return sum(layer.cached_bytes(window, shared=shared) for layer in self._sources)

    def prepare_reading(self, cache_mb: int, shared_mb: int = 0) -> None:
        """Give GDAL that much for decoded blocks, unless the environment's GDAL_CACHEMAX says otherwise, and
        count bytes read from here on. shared_mb: for blocks that threads share; 0: they share none."""
        store = BlockStore(shared_mb << 20) if shared_mb else None
        for layer in self._layers:
            layer.raster.cache_mb, layer.raster.bytes_read = cache_mb, 0
        for layer in self._sources:
            layer.pixels.share(store, layer.bands)

    @property
    def bytes_read(self) -> tuple[int, ...]:
        """Bytes read from each open file since `prepare_reading`."""
        return tuple(layer.raster.bytes_read for layer in self._layers)

    def count_read(self, others: Sequence[int]) -> None:
        """Add what another process has read of the same files, as its `bytes_read`."""
        for layer, more in zip(self._layers, others, strict=True):
            layer.raster.bytes_read += more

    def any_valid(self, window: Window) -> bool:
        """Whether NTL is valid anywhere in `window`."""
        return bool(self.read_ntl(window)[1].any())

    def describe(self) -> dict[str, Any]:
        """Facts for the run report, by layer (ntl, ntl_valid, dmo, dem); see AuxLayer.describe and Daytime.describe."""
        saturation, noise = (None if value < 0 else value for value in self.limits)
        told = {"psf": shown_psf(self.psf), "saturation": saturation, "noise": noise}
        facts = {"ntl": {**self._ntl.describe(), "unit": shown(self.unit), **told}}
        if self._ntl.observed is not None:
            facts["ntl_valid"] = self._ntl.observed.describe()
        if self._dmo is not None:
            facts["dmo"] = self._dmo.describe()
        if self._dem is not None:
            facts["dem"] = self._dem.describe()
        return facts

    @property
    def covered(self) -> dict[str, float | None]:
        """Of "dmo" and "dem" the share of the scene that the file reaches over, gaps included; None: not given."""
        return {
            "dmo": None if self._dmo is None else self._dmo.share,
            "dem": None if self._dem is None else self._dem.overlap.share,
        }

    @property
    def auxiliary(self) -> dict[str, Daytime | AuxLayer]:
        """The layers beside NTL that were given, of "dmo" and "dem"."""
        both: dict[str, Daytime | AuxLayer | None] = {"dmo": self._dmo, "dem": self._dem}
        return {name: layer for name, layer in both.items() if layer is not None}

    @property
    def ntl_raster(self) -> Raster:
        """The open NTL raster."""
        return self._ntl.raster

    @property
    def ntl_band(self) -> int:
        """Which band of it, from 1."""
        return self._ntl.bands[0]

    @property
    def _layers(self) -> list[Layer]:
        """One for each open file."""
        return self._with_daytime(() if self._dmo is None else self._dmo.layers)

    @property
    def _sources(self) -> list[Layer]:
        """One for each that is read: files on one grid are one."""
        return self._with_daytime([] if self._dmo is None else [layer for _, layer in self._dmo.joined])

    def _with_daytime(self, daytime: Sequence[Layer]) -> list[Layer]:
        beside = (self._ntl.observed, *daytime, self._dem)
        return [self._ntl, *(layer for layer in beside if layer is not None)]
