"""A user's rasters of one place, read as samples: a scene, and the truth, imperviousness and clouds beside it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from deeplight.engine.core.arrays import Floats, Mask
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.auxiliary import meeting
from deeplight.engine.raster.buffers import Scratch
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.layers import AuxLayer
from deeplight.engine.raster.radiance import check_ntl
from deeplight.engine.raster.scene import Scene, SceneOptions
from deeplight.engine.raster.single import check_single
from deeplight.engine.raster.source import Raster, open_raster
from deeplight.train.clips.fraction import FRACTION, check_fraction
from deeplight.train.clips.samples import Sample

QA_BITS = 0b11111
"""Landsat Collection 2 QA_PIXEL: fill, dilated cloud, cirrus, cloud, cloud shadow."""


@dataclass(frozen=True)
class PlaceOptions:
    """The rasters of a place.

    scene: NTL, and DMO and DEM where there are any. ntl_hr, isp: the truth and the impervious fraction; *_scale
    (factor, offset) and *_nodata in place of the file's own. qa: Landsat's QA_PIXEL. cloud_mask: not 0 = cloud.
    offset: two bands, the known misregistration in LR px, on the NTL grid.
    """

    scene: SceneOptions
    ntl_hr: str | None = None
    ntl_hr_scale: tuple[float, float] | None = None
    ntl_hr_nodata: float | None = None
    isp: str | None = None
    isp_scale: tuple[float, float] | None = None
    isp_nodata: float | None = None
    qa: str | None = None
    cloud_mask: str | None = None
    offset: str | None = None


class _CloudLayer(AuxLayer):
    """The share of cloud at HR pixels, from bits of a quality band or a mask. Where it has no data, it is cloudy."""

    bits: int | None = None

    def read_native(self, window: Window, scratch: Scratch | None = None) -> tuple[Floats, Mask]:
        raw, mask = self.raster.read(window, self.bands, scratch)
        band = raw[0]
        # NaN is not 0, so cloudy
        cloudy = (band.astype(np.int64) & self.bits) != 0 if self.bits is not None else band != 0
        if mask is not None:
            cloudy |= mask == 0
        nodata = self.nodata[0]
        if nodata is not None:
            cloudy |= band == nodata
        return cloudy.astype(np.float32)[None], np.ones(band.shape, np.uint8)


_Kind = TypeVar("_Kind", bound=AuxLayer)


class Place:
    """The open rasters of a place. Reads are the same in any window; a context manager."""

    def __init__(self, options: PlaceOptions) -> None:
        """Open all rasters. Raises InputError, which names the remedy, for a raster that cannot be used."""
        with ExitStack() as stack:
            self.scene = stack.enter_context(Scene.open(options.scene))
            self._stack = stack
            self.grid, self.unit = self.scene.grid, self.scene.unit
            self._ntl_hr = self._open_ntl_hr(options) if options.ntl_hr else None
            self._isp = self._open_isp(options) if options.isp else None
            self._clouds = self._open_clouds(options) if options.qa or options.cloud_mask else None
            self._offset = self._open_offset(options.offset) if options.offset else None
            self._stack = stack.pop_all()

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that the place has."""
        dem = "dem" in self.scene.describe()
        there = {
            "ntl": True,
            "ntl_hr": self._ntl_hr,
            "dmo": self.scene.dmo_slots,
            "dem": dem,
            "isp": self._isp,
            "offset": self._offset,
        }
        return tuple(name for name, is_there in there.items() if is_there)

    @property
    def has_clouds(self) -> bool:
        """Whether the place has a quality band or a cloud mask."""
        return self._clouds is not None

    def read(self, window: Window) -> Sample:
        """Return the sample of a window in LR px, which may leave the raster. Daytime pixels under clouds are
        invalid."""
        return self.read_with_clouds(window)[0]

    def read_with_clouds(self, window: Window) -> tuple[Sample, float]:
        """Return the sample, and the share of its HR pixels that are cloudy (0 where no mask was given)."""
        told = ("psf", "limits")  # of the scene, no part of a sample
        read = self.scene.read_inputs(window)
        inputs = {name: values[0] for name, values in read.items() if name not in told}
        hr = window.scaled(SCALE)
        cloud = self._read_clouds(hr)
        inputs["dmo_valid"] *= 1 - cloud
        inputs["dmo"] *= inputs["dmo_valid"]
        truth, isp = self._read_aux(self._ntl_hr, hr), self._read_aux(self._isp, hr)
        sample = Sample(**inputs, ntl_hr=truth[0], ntl_hr_valid=truth[1], isp=isp[0], isp_valid=isp[1],
                        offset=self._read_offset(window))  # fmt: skip
        return sample, float(cloud.mean())

    def _read_clouds(self, hr: Window) -> Floats:
        """(1, H, W): 1 where any cloudy pixel contributes, and where nothing is known."""
        if self._clouds is None:
            return np.zeros((1, *hr.shape), np.float32)
        share, known = self._clouds.read(hr)
        return np.asarray((share > 0) | (known == 0), np.float32)

    def _read_offset(self, window: Window) -> Floats | None:
        """The offset on the NTL's own grid; 0 outside and where it is not valid."""
        if self._offset is None:
            return None
        out = np.zeros((2, *window.shape), np.float32)
        inside = window.clipped(self.grid.height, self.grid.width)
        if inside.height and inside.width:
            raw, _ = self._offset.read(inside, (1, 2))
            nodata = self._offset.nodata[0]
            values = raw.astype(np.float32)
            known = np.isfinite(values) & (values != (np.nan if nodata is None else np.float32(nodata)))
            rows, cols = inside.slices_in(window)
            out[:, rows, cols] = np.where(known, values, np.float32(0))
        return out

    @staticmethod
    def _read_aux(layer: AuxLayer | None, hr: Window) -> tuple[Floats, Floats]:
        if layer is None:
            return np.zeros((1, *hr.shape), np.float32), np.zeros((1, *hr.shape), np.float32)
        values, valid = layer.read(hr)
        return values, valid.astype(np.float32)[None]

    def _open(self, name: str, role: str) -> Raster:
        return self._stack.enter_context(open_raster(name, role))

    def _open_single(self, name: str, role: str) -> Raster:
        raster = self._open(name, role)
        check_single(raster)
        return raster

    def _open_ntl_hr(self, options: PlaceOptions) -> AuxLayer:
        raster = self._open_single(str(options.ntl_hr), "NTL-HR")
        layer = _on(self.grid, raster, AuxLayer, options.ntl_hr_scale, options.ntl_hr_nodata)
        unit = options.scene.ntl_unit
        check_ntl(layer, unit or raster.units[raster.bands[0] - 1], stated=unit is not None)
        return layer

    def _open_isp(self, options: PlaceOptions) -> AuxLayer:
        raster = self._open_single(str(options.isp), "ISP")
        layer = _on(self.grid, raster, AuxLayer, options.isp_scale, options.isp_nodata)
        check_fraction(layer)
        layer.limits = FRACTION
        return layer

    def _open_clouds(self, options: PlaceOptions) -> AuxLayer:
        if options.qa and options.cloud_mask:
            raise InputError("`qa` and `cloud_mask` both say where clouds are: give one of them")
        raster = self._open_single(str(options.qa or options.cloud_mask), "cloud")
        if options.qa and np.dtype(raster.dtype).kind not in "iu":
            raise InputError(
                f"{raster.what} holds {raster.dtype} and QA_PIXEL holds bits of integers; give Landsat's QA_PIXEL, or "
                "a mask of 0 and 1 with `cloud_mask`"
            )
        layer = _on(self.grid, raster, _CloudLayer, None, None)
        layer.bits = QA_BITS if options.qa else None
        return layer

    def _open_offset(self, name: str) -> Raster:
        raster = self._open(name, "offset")
        if raster.count != 2 or (raster.grid.height, raster.grid.width) != (
            self.grid.height,
            self.grid.width,
        ):
            raise InputError(
                f"{raster.what} has {raster.count} bands of {raster.grid.height}x{raster.grid.width} pixels; it must "
                f"have two on the NTL grid, {self.grid.height}x{self.grid.width}"
            )
        return raster


def _on(
    grid: Grid, raster: Raster, kind: type[_Kind], scaling: tuple[float, float] | None, nodata: float | None
) -> _Kind:
    """A layer of one band on the HR grid of `grid`."""
    return kind(raster, raster.bands, grid.finer(), meeting(grid, raster), scaling, nodata)
