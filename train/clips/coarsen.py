"""LR lights where only HR lights are known: the documented degradation, written as rasters that the cutter reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.progress import Progress
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window, split
from deeplight.engine.raster.extents import overlap
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.layers import AuxLayer, Layer
from deeplight.engine.raster.radiance import check_ntl
from deeplight.engine.raster.scene import SceneOptions
from deeplight.engine.raster.source import open_raster
from deeplight.train.clips.degrade import Degradation, degrade, displaced
from deeplight.train.clips.fraction import FRACTION, check_fraction
from deeplight.train.clips.place import PlaceOptions

_SIDE = 64
"""LR pixels a side that are made at once."""


def make_coarse(
    options: PlaceOptions, degradation: Degradation, seed: int, unit: str, folder: Path, progress: Progress
) -> PlaceOptions:
    """Write ntl.tif, on a grid 8× coarser than options.ntl_hr, into `folder`; returns the options that use it.

    The LR grid begins at the HR raster's corner; up to 7 rows and columns at its end are left over. unit: of the
    lights, or "" for the file's own. With a displacement, ntl_hr.tif and isp.tif in the displaced frame and offset.tif
    are written too. Raises InputError for lights that cannot be used.
    """
    with ExitStack() as stack:
        raster = stack.enter_context(open_raster(str(options.ntl_hr), "NTL-HR"))
        whole = raster.grid
        height, width = whole.height // SCALE, whole.width // SCALE
        if min(height, width) < 1:
            raise InputError(
                f"{raster.what} has {whole.height}x{whole.width} pixels, which is less than one LR pixel"
            )
        lr = Grid(whole.crs, whole.transform @ Affine.scale(SCALE), height, width)
        found = overlap(lr, whole)
        assert found is not None
        lights = AuxLayer(
            raster, raster.bands, lr.finer(), found, options.ntl_hr_scale, options.ntl_hr_nodata
        )
        isp = _isp_layer(options, lr, stack) if degradation.shift_lr and options.isp else None
        stated, unit = bool(unit), unit or raster.units[raster.bands[0] - 1].strip()
        check_ntl(lights, unit, stated)
        names = ["ntl", *(["ntl_hr", "offset"] if degradation.shift_lr else []), *(["isp"] if isp else [])]
        out = {name: stack.enter_context(_create(folder / f"{name}.tif", lr, name, unit)) for name in names}
        progress.start(height * width * SCALE**2)
        for window in split(Window(0, 0, height, width), _SIDE):
            for name, values in _made(lights, isp, degradation, seed, window, (height, width)):
                if name in out:
                    at = window if name in ("ntl", "offset") else window.scaled(SCALE)
                    out[name].write(
                        values, window=((at.row, at.row + at.height), (at.col, at.col + at.width))
                    )
            progress.advance(window.height * window.width * SCALE**2)
    scene: SceneOptions = replace(options.scene, ntl=str(folder / "ntl.tif"))
    if not degradation.shift_lr:
        return replace(options, scene=scene)
    moved = replace(
        options, scene=scene, ntl_hr=str(folder / "ntl_hr.tif"), ntl_hr_scale=None, ntl_hr_nodata=None,
        offset=str(folder / "offset.tif"),
    )  # fmt: skip
    return replace(moved, isp=str(folder / "isp.tif"), isp_scale=None, isp_nodata=None) if isp else moved


def _made(
    lights: Layer,
    isp: AuxLayer | None,
    degradation: Degradation,
    seed: int,
    window: Window,
    size: tuple[int, int],
) -> Iterator[tuple[str, Floats]]:
    """Name and pixels (C, h, w), NaN = nodata, of what is written for a window of LR px."""
    wide = window.grown(degradation.halo_lr).clipped(*size)
    values, mask = lights.read_native(wide.scaled(SCALE))
    valid = mask.astype(np.float32)[None]
    corner = (wide.row, wide.col)
    lr, lr_valid, offset = degrade(values, valid, degradation, seed, corner)
    at = (slice(None), *window.slices_in(wide))
    fine = (slice(None), *window.scaled(SCALE).slices_in(wide.scaled(SCALE)))
    yield "ntl", np.where(lr_valid != 0, lr, np.float32(np.nan))[at]
    if degradation.shift_lr:
        yield "offset", offset[at]
        seen, known = displaced(values, valid, degradation, seed, corner)
        yield "ntl_hr", np.where(known != 0, seen, np.float32(np.nan))[fine]
    if isp is not None:
        built, there = isp.read(wide.scaled(SCALE))
        seen, known = displaced(built, there.astype(np.float32)[None], degradation, seed, corner)
        yield "isp", np.where(known != 0, seen, np.float32(np.nan))[fine]


def _isp_layer(options: PlaceOptions, lr: Grid, stack: ExitStack) -> AuxLayer:
    raster = stack.enter_context(open_raster(str(options.isp), "ISP"))
    found = overlap(lr, raster.grid)
    if found is None:
        raise InputError(
            f"{raster.what} does not overlap the HR lights {options.ntl_hr}; give layers of the same place"
        )
    layer = AuxLayer(raster, raster.bands[:1], lr.finer(), found, options.isp_scale, options.isp_nodata)
    check_fraction(layer)
    layer.limits = FRACTION
    return layer


def _create(path: Path, lr: Grid, name: str, unit: str) -> Any:
    import rasterio

    grid = lr if name in ("ntl", "offset") else lr.finer()
    count = 2 if name == "offset" else 1
    profile: dict[str, Any] = {
        "driver": "GTiff", "crs": grid.crs, "transform": grid.transform, "height": grid.height, "width": grid.width,
        "count": count, "dtype": "float32", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "zstd",
        "zstd_level": 1, "bigtiff": "IF_SAFER", "nodata": None if name == "offset" else float("nan"),
    }  # fmt: skip
    dataset = rasterio.open(path, "w", **profile)
    if unit and name in ("ntl", "ntl_hr"):
        dataset.units = (unit,)
    return dataset
