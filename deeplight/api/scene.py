"""A scene: the lights and the layers beside them, opened and checked as deeplight-infer does, and parts of it."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from deeplight.api import arguments
from deeplight.api.layers import LayerFiles
from deeplight.api.wording import arrays_named
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window

if TYPE_CHECKING:
    from pathlib import Path

    from deeplight.api.layers import LayerLike
    from deeplight.engine.raster.grid import Grid
    from deeplight.engine.raster.scene import Scene as Rasters
    from deeplight.engine.raster.scene import SceneOptions


def open_scene(
    ntl: LayerLike,
    dmo: LayerLike | Mapping[str, LayerLike] | None = None,
    dem: LayerLike | None = None,
    *,
    ntl_band: int | None = None,
    ntl_scale: float | tuple[float, float] | None = None,
    ntl_unit: str | None = None,
    ntl_nodata: float | None = None,
    ntl_valid: LayerLike | None = None,
    ntl_valid_band: int | None = None,
    ntl_crs: Any = None,
    ntl_bounds: tuple[float, float, float, float] | None = None,
    dmo_bands: Mapping[str, int] | None = None,
    dmo_scale: float | tuple[float, float] | None = None,
    dmo_nodata: float | None = None,
    dmo_crs: Any = None,
    dmo_bounds: tuple[float, float, float, float] | None = None,
    dem_band: int | None = None,
    dem_scale: float | tuple[float, float] | None = None,
    dem_nodata: float | None = None,
    dem_crs: Any = None,
    dem_bounds: tuple[float, float, float, float] | None = None,
    psf: float | tuple[float, float] | str | None = None,
    allow_remote: bool = False,
) -> Scene:
    """Open nighttime lights, daytime bands and elevation that belong together.

    Args:
        ntl: Nighttime lights in nW/cm²/sr or DMSP's digital numbers; the scene is on their grid.
        dmo: Daytime bands as reflectance on any grid; or a file for each slot, as {"blue": "B02.tif", "red": …}.
        dem: Elevation in metres on any grid.
        ntl_band, dem_band, ntl_valid_band: Which band, counted from 1, of a file with several.
        ntl_scale, dmo_scale, dem_scale: F or (F, OFFSET): physical value = raw · F + OFFSET, in place of the file's.
        ntl_nodata, dmo_nodata, dem_nodata: Raw value without data, in place of the file's.
        ntl_unit: Of the lights after scaling, in place of the file's.
        ntl_valid: Coverage count or mask on the grid of the lights: above 0 is valid.
        ntl_crs, ntl_bounds, dmo_crs, …: CRS and (west, south, east, north) of a file that does not say them.
        dmo_bands: Slot → band number, as {"blue": 1, "green": 2, "red": 3, "nir": 4}.
        psf: FWHM of the lights' blur in LR pixels, one or (rows, columns), "auto" or "unknown"; None: the product's.
        allow_remote: Let layers be URLs and GDAL's /vsi names.

    Returns:
        The open scene. Close it, or use it in a `with`, when it is done with.

    Raises:
        InputError: A layer cannot be used; one sentence says why and what to do.
    """
    given = dict(locals())
    files = LayerFiles()
    try:
        with arrays_named(files.arrays):
            options = scene_options(given, files)
            return Scene(options, _opened(options), files)
    except BaseException:
        if files.folder is not None:
            shutil.rmtree(files.folder, ignore_errors=True)
        raise


def _opened(options: SceneOptions) -> Rasters:
    """The library's open rasters."""
    from deeplight.engine.raster.scene import Scene as Rasters

    try:
        return Rasters.open(options)
    except InputError:
        _check_one_date(options)
        raise


def _check_one_date(options: SceneOptions) -> None:
    """Raises InputError where lights that are no scene are those of several dates."""
    from deeplight.engine.stack.nights import find_nights, read_pieces

    try:
        nights = find_nights(read_pieces([options.ntl], options, 0), [options.ntl], options, None)
    except InputError:
        return  # what the scene says of them is better
    if len(nights) > 1:
        raise InputError(
            f"{options.ntl} holds lights of {len(nights)} dates ({nights[0].name} to {nights[-1].name}) and a scene is "
            "of one: open one of them, or give all to deeplight.refine_dates"
        )


def scene_options(given: Mapping[str, Any], files: LayerFiles) -> SceneOptions:
    """The library's form of the arguments of `open_scene`."""
    from deeplight.engine.raster.scene import SceneOptions

    checks = {
        "scale": arguments.scale,
        "bounds": arguments.bounds,
        "crs": arguments.crs,
        "nodata": arguments.number,
        "band": arguments.count_or_none,
        "bands": arguments.slots,
        "psf": arguments.psf,
        "unit": arguments.text_or_none,
    }
    values: dict[str, Any] = {}
    for name, value in given.items():
        check = checks.get(name.rpartition("_")[2])
        values[name] = check(name, value) if check is not None else value
    if given["ntl"] is None:
        raise InputError(
            "ntl is None and the nighttime lights are needed: give a path, or an array with its grid"
        )
    for name in ("ntl", "ntl_valid", "dem"):
        values[name] = files.name(name, given[name])
    values["dmo"], of_slots = files.daytime(given["dmo"])
    return SceneOptions(**values, dmo_files=of_slots or None)


class Scene:
    """An open scene, or a part of one that `scene[rows, columns]` cuts out in LR pixels, as in scene[100:228, 40:168].

    Parts share the files of their scene and are closed with it. A context manager. Reads are thread-safe.
    """

    def __init__(
        self, options: SceneOptions, rasters: Rasters, files: LayerFiles, window: Window | None = None
    ) -> None:
        """window: of a part, in LR pixels of the whole."""
        self.options, self.arrays = options, files.arrays
        self._files, self._rasters = files, rasters
        self.window = window or Window(0, 0, *rasters.grid.shape)
        self._whole: Scene | None = None
        self._release = weakref.finalize(self, _release, rasters, files.folder) if window is None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and remove what arrays were written to. Closing a part closes its scene."""
        release = (self._whole or self)._release
        if release is not None:
            release()

    @property
    def rasters(self) -> Rasters:
        """The library's open rasters, of the whole scene. Raises InputError after `close`."""
        release = (self._whole or self)._release
        if release is None or not release.alive:
            raise InputError("the scene is closed: open it again with deeplight.open_scene")
        return self._rasters

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) in LR pixels."""
        return self.window.shape

    @property
    def grid(self) -> Grid:
        """The LR grid of the scene or part; `grid.finer()` is that of results."""
        return self._rasters.grid.part(self.window)

    @property
    def unit(self) -> str:
        """Of the lights after scaling; "" where nothing says it."""
        return self._rasters.unit

    @property
    def bands(self) -> dict[str, int]:
        """Daytime slots that are there → 1-based band of the file; empty without daytime bands."""
        return dict(self._rasters.dmo_slots)

    @property
    def coverage(self) -> dict[str, float | None]:
        """Of "dmo" and "dem" the share of the whole scene that the file reaches over; None where it is not given."""
        return self._rasters.covered

    @property
    def is_part(self) -> bool:
        """Whether this is a part of a scene."""
        return self._whole is not None

    def __getitem__(self, key: Any) -> Scene:
        """A part, by slices of rows and columns in LR pixels. Raises InputError where that is none."""
        rows, columns = key if isinstance(key, tuple) and len(key) == 2 else (None, None)
        if not (isinstance(rows, slice) and isinstance(columns, slice)) or {rows.step, columns.step} - {
            None,
            1,
        }:
            raise InputError("a part is cut out by two slices without steps, as in scene[100:228, 40:168]")
        try:
            top, bottom, _ = rows.indices(self.shape[0])
            left, right, _ = columns.indices(self.shape[1])
        except TypeError:
            raise InputError("slices of a scene are whole LR pixels, as in scene[100:228, 40:168]") from None
        if bottom <= top or right <= left:
            h, w = self.shape
            raise InputError(
                f"this part holds no pixel: the scene has {h}×{w} LR pixels, so rows go from 0 to {h} and columns from "
                f"0 to {w}"
            )
        window = Window(self.window.row + top, self.window.col + left, bottom - top, right - left)
        part = Scene(self.options, self._rasters, self._files, window)
        part._whole = self._whole or self
        return part

    def __repr__(self) -> str:
        from deeplight.engine.raster.units import shown

        grid, (h, w) = self.grid, self.shape
        pixel = f"{abs(grid.transform.a):.6g}×{abs(grid.transform.e):.6g}"
        measure = "degrees" if grid.crs.is_geographic else str(grid.crs.linear_units or "units")
        what = "Scene"
        if self.is_part:
            r, c = self.window.row, self.window.col
            what = f"Part (rows {r} to {r + h - 1}, columns {c} to {c + w - 1})"
        named = ", ".join(f"{slot} {band}" for slot, band in self.bands.items())
        return "\n".join(
            [
                f"{what} of {h}×{w} LR pixels, {h * SCALE}×{w * SCALE} in results",
                f"  grid: {grid.crs.to_string()}, pixels of {pixel} {measure}",
                f"  lights: {shown(self.unit)}",
                f"  daytime bands: {named or 'not given'}{_reaches(self.coverage['dmo'])}",
                f"  elevation: {_reaches(self.coverage['dem']).removeprefix(', ') or 'not given'}",
            ]
        )


def _reaches(share: float | None) -> str:
    return "" if share is None else f", the file reaches over {share:.0%} of the scene"


def _release(rasters: Rasters, folder: Path | None) -> None:
    rasters.close()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
