"""A Zarr 3 group of the maps of several dates: arrays over time × y × x that xarray opens with their CRS and dates.

Each date's shards are written once. The group's attributes name the dates, with the tags of those that are whole: they
are the journal by which a resumed run goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from deeplight.engine.core.errors import InputError
from deeplight.engine.core.extras import install_command
from deeplight.engine.core.files import (
    DISK,
    TEMPORARY_SUFFIX,
    Disk,
    disk_errors,
    temporary_name,
    write_file,
)
from deeplight.engine.core.windows import Window, split
from deeplight.engine.output.acquired import Span, parse_date, shown_span
from deeplight.engine.output.zarr_attributes import (
    DATES,
    FLAGS_FILL,
    array_name,
    axes,
    band_attributes,
    fill_of,
    group_attributes,
    place_attributes,
    time_axis,
    type_of,
)
from deeplight.engine.raster.grid import Grid

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec

SIDE = 2048
"""HR pixels a side of a shard: those of the packs of all but very large tiles."""
_CACHE = 64 << 20
"""Bytes that GDAL keeps while a map is read, each block once."""
REMOVED = ".removed"
"""End of the name of a group that another has replaced."""
_PLACE, _METADATA, _DIMENSIONS = "spatial_ref", "zarr.json", ("time", "y", "x")


def require_zarr() -> None:
    """Raises InputError where the library is missing."""
    if find_spec("zarr") is None:
        raise InputError(f"a Zarr group needs zarr, which is not installed: {install_command('zarr')}")


def date_key(when: Span) -> str:
    """A date as the journal names it: 2020-03, 2020-01-01/2020-03-31."""
    return shown_span(when, "/")


class DatesZarr:
    """A group on the disk, whose dates are whole or waiting."""

    def __init__(self, path: Path, attributes: Mapping[str, Any]) -> None:
        self.path = path
        self._attributes = dict(attributes)

    @classmethod
    def open(cls, path: Path) -> DatesZarr | None:
        """The group at `path`; None where there is none that this module wrote."""
        try:
            attributes = json.loads((path / _METADATA).read_bytes())["attributes"]
            return cls(path, attributes) if isinstance(attributes.get(DATES), dict) else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    @classmethod
    def create(cls, path: Path, spec: OutputSpec, keys: Sequence[str], *, disk: Disk = DISK) -> DatesZarr:
        """A new group at `path`, which must not be there, in which all dates are waiting.

        spec: of any of the maps. keys: of `date_key`, in the order of the dates. Raises DeepLightError where the disk
        refuses.
        """
        import zarr

        attributes = {**group_attributes(spec), DATES: dict.fromkeys(keys)}
        begun = temporary_name(path)
        with disk_errors(path):
            group = zarr.open_group(str(begun), mode="w-", zarr_format=3, attributes=attributes)
            _add_axes(group, spec, [parse_date(key) for key in keys])
            for band in spec.bands:
                dtype = type_of(spec, band)
                group.create_array(
                    array_name(band),
                    shape=(len(keys), spec.grid.height, spec.grid.width),
                    shards=(1, SIDE, SIDE),
                    chunks=(1, spec.block, spec.block),
                    dtype=dtype,
                    fill_value=fill_of(spec, band),
                    compressors=_compressor(spec),
                    dimension_names=_DIMENSIONS,
                    attributes={**band_attributes(spec, band), "grid_mapping": _PLACE, "coordinates": _PLACE},
                )
            _sync(begun, disk)
            disk.replace(begun, path)
            disk.sync_folder(path.parent)
        return cls(path, attributes)

    @property
    def keys(self) -> list[str]:
        """All dates, in order."""
        return list(self._attributes[DATES])

    def tags(self, key: str) -> dict[str, str] | None:
        """The tags of a date's map; None where the date is not whole, or not there."""
        found = self._attributes[DATES].get(key)
        return None if found is None else dict(found)

    @property
    def grid(self) -> Grid:
        """The grid of all dates."""
        from rasterio.crs import CRS

        place = self.array(_PLACE).attrs
        numbers = [float(number) for number in str(place["GeoTransform"]).split()]
        shape = self.array(next(self.arrays())).shape
        return Grid(CRS.from_wkt(place["crs_wkt"]), Affine.from_gdal(*numbers), *shape[1:])

    def array(self, name: str) -> Any:
        """An array of the group, to be read."""
        import zarr

        return zarr.open_array(str(self.path / name), mode="r")

    def difference(self, spec: OutputSpec) -> str | None:
        """Why a map of `spec` does not fit to those of the group, for a message; None where it fits."""
        import zarr

        group: Any = zarr.open_group(str(self.path), mode="r")
        place = dict(group[_PLACE].attrs)
        wanted = place_attributes(spec.grid)
        if place != wanted:
            name = next(n for n in {**place, **wanted} if place.get(n) != wanted.get(n))
            return f"its {name} is {str(place.get(name))[:60]} there and {str(wanted.get(name))[:60]} here"
        # not group.arrays(), which warns of what killed runs left among them
        there = {n: (group[n].shape[1:], str(group[n].dtype)) for n in self.arrays()}
        here = {array_name(b): (spec.grid.shape, str(np.dtype(type_of(spec, b)))) for b in spec.bands}
        name = next((n for n in {**there, **here} if there.get(n) != here.get(n)), "")
        if not name:
            return None
        return f"its {name} is {_told(there.get(name))} there and {_told(here.get(name))} here"

    def put(self, key: str, result: Path, spec: OutputSpec, *, disk: Disk = DISK) -> None:
        """Write the finished map `result` of a date and note it as whole, durably.

        What a killed run wrote of the date goes first. Memory: one shard. Raises DeepLightError where the disk refuses.
        """
        import rasterio
        import zarr

        at = self.keys.index(key)
        cache = rasterio.Env(GDAL_CACHEMAX=_CACHE)
        with disk_errors(self.path), cache, rasterio.open(result) as dataset:
            group: Any = zarr.open_group(str(self.path), mode="r+")
            for band in spec.bands:
                shutil.rmtree(self._shards(array_name(band), at), ignore_errors=True)
            whole = Window(0, 0, *spec.grid.shape)
            for window in split(whole, SIDE):
                rows, cols = window.slices_in(whole)
                pixels = ((rows.start, rows.stop), (cols.start, cols.stop))
                for number, band in enumerate(spec.bands, 1):
                    values = dataset.read(number, window=pixels)
                    group[array_name(band)][at, rows, cols] = _stored(values, type_of(spec, band))
            for band in spec.bands:
                self._sync_date(array_name(band), at, disk)
        self._note(key, spec.tags, disk)

    def extract(self, key: str, out: Path, spec: OutputSpec) -> None:
        """Write the lights of a whole date as a raster, for what is made of maps. Memory: one shard."""
        import rasterio

        at, grid, lights = self.keys.index(key), spec.grid, array_name(spec.bands[0])
        profile = {
            "crs": grid.crs,
            "transform": grid.transform,
            "nodata": spec.codec.nodata,
            "dtype": spec.dtype,
        }
        with disk_errors(out):
            array = self.array(lights)
            with rasterio.open(
                out, "w", driver="GTiff", height=grid.height, width=grid.width, count=1, tiled=True, **profile
            ) as d:
                d.scales, d.offsets = (spec.scale,), (spec.offset,)
                whole = Window(0, 0, *grid.shape)
                for window in split(whole, SIDE):
                    rows, cols = window.slices_in(whole)
                    pixels = ((rows.start, rows.stop), (cols.start, cols.stop))
                    d.write(array[at, rows, cols], 1, window=pixels)

    def take(self, key: str, earlier: DatesZarr, *, disk: Disk = DISK) -> None:
        """Take a whole date over from another group of the same grid and bands: its shards get second names, or are
        copied where the disk has none."""
        there, here = earlier.keys.index(key), self.keys.index(key)
        with disk_errors(self.path):
            for array in self.arrays():
                source = earlier._shards(array, there)
                if source.is_dir():
                    shutil.copytree(source, self._shards(array, here), copy_function=_linked)
                self._sync_date(array, here, disk)
        self._note(key, earlier.tags(key) or {}, disk)

    def arrays(self) -> Iterator[str]:
        """Names of the arrays over time, y and x."""
        for path in sorted(self.path.glob(f"*/{_METADATA}")):
            if len(json.loads(path.read_bytes())["shape"]) == len(_DIMENSIONS):
                yield path.parent.name

    def finish(self, *, disk: Disk = DISK) -> None:
        """Gather all metadata in one file, so that readers over a network need one request for it."""
        import zarr

        with disk_errors(self.path), warnings.catch_warnings():
            # it is a convention of the library and xarray, which ask for it, and others pass over it
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            zarr.consolidate_metadata(str(self.path))
            for left in self.path.iterdir():  # of a run that was killed here
                if left.suffix in (".partial", TEMPORARY_SUFFIX):
                    disk.remove(left)
            _sync_file(self.path / _METADATA, disk)
            disk.sync_folder(self.path)

    def _shards(self, array: str, at: int) -> Path:
        """The folder of an array's shards of a date; it does not exist where all pixels are nodata."""
        return self.path / array / "c" / str(at)

    def _sync_date(self, array: str, at: int, disk: Disk) -> None:
        """All shards of a date, and the names that lead to them."""
        if self._shards(array, at).is_dir():
            _sync(self._shards(array, at), disk)
            disk.sync_folder(self.path / array)

    def _note(self, key: str, tags: Mapping[str, str], disk: Disk) -> None:
        self._attributes[DATES][key] = dict(tags)
        content = json.loads((self.path / _METADATA).read_bytes())
        content["attributes"] = self._attributes
        content.pop("consolidated_metadata", None)
        write_file(
            self.path / _METADATA, [json.dumps(content, indent=2, ensure_ascii=False).encode()], disk=disk
        )


def _add_axes(group: Any, spec: OutputSpec, dates: Sequence[Span]) -> None:
    """The coordinates of time, y and x, and the place of the grid."""
    group.create_array(
        _PLACE, shape=(), dtype="int32", dimension_names=(), attributes=place_attributes(spec.grid)
    )
    for name, (dimensions, values, attributes) in {**time_axis(dates), **axes(spec.grid)}.items():
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            dimension_names=dimensions,
            attributes=attributes,
        )
        array[...] = values


def _compressor(spec: OutputSpec) -> Any:
    """The compressor that the maps have: zstd with a checksum, or deflate in the form of gzip."""
    from zarr.codecs import GzipCodec, ZstdCodec

    if spec.compression == "zstd":
        return ZstdCodec(level=spec.zstd_level, checksum=True)
    return GzipCodec(level=spec.codec.level)


def _stored(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Pixels of a map as an array holds them: flags are whole numbers there."""
    if dtype != "uint8":
        return values
    return np.where(np.isnan(values), FLAGS_FILL, values).astype(np.uint8)


def _told(array: tuple[tuple[int, ...], str] | None) -> str:
    if array is None:
        return "absent"
    (height, width), dtype = array
    return f"{height}×{width} pixels of {dtype}"


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without hard links
        shutil.copy2(source, target)


def _sync(folder: Path, disk: Disk) -> None:
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync_file(Path(place, name), disk)
        disk.sync_folder(Path(place))
    disk.sync_folder(folder.parent)


def _sync_file(path: Path, disk: Disk) -> None:
    with path.open("rb") as file:
        disk.sync(file)


def publish(store: Path, out: Path, *, disk: Disk = DISK) -> Path | None:
    """Give a finished group its name; returns where the one that had it is now, to be removed.

    Killed between the two renames, `store` is still there, and a resumed run publishes it.
    """
    old = None
    with disk_errors(out):
        if out.exists():
            old = temporary_name(out, REMOVED)
            disk.replace(out, old)
        disk.replace(store, out)
        disk.sync_folder(out.parent)
        disk.sync_folder(store.parent)
    return old
