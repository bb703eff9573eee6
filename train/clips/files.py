"""One clip as a folder of GeoTIFFs: writing it whole or not at all, and reading windows of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.arrays import Floats, Mask
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.files import DISK, disk_errors
from deeplight.engine.core.spec import DMO_SLOTS, SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.bands import find_bands
from deeplight.engine.raster.extents import same_crs
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.layers import Layer
from deeplight.engine.raster.source import Raster, open_raster
from deeplight.train.clips.samples import ClipError, Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

DMO_SCALE, DMO_OFFSET, DMO_NODATA = 0.0000275, -0.2, 0
"""Landsat Collection 2's encoding of reflectance, −0.2 … 1.602; brighter is cut to that."""
NODATA = float("nan")
_HR_BLOCK, _LR_BLOCK = 256, 64
_DMO_FILES = {slot: f"dmo_{slot}.tif" for slot in DMO_SLOTS}
_CORNER_TOLERANCE = 0.01
"""In pixels: how far a layer's corner may be from where the NTL says it is."""


@dataclass(frozen=True)
class _Kind:
    """How a layer is stored. finer: HR pixels."""

    bands: tuple[str, ...]
    finer: int
    unit: str


_KINDS = {
    "ntl": _Kind(("ntl",), 1, ""),
    "ntl_hr": _Kind(("ntl_hr",), SCALE, ""),
    "dmo": _Kind(DMO_SLOTS, SCALE, "1"),
    "dem": _Kind(("dem",), SCALE, "m"),
    "isp": _Kind(("isp",), SCALE, "1"),
    "offset": _Kind(("offset_x", "offset_y"), 1, "LR px"),
}
_SENSOR = {"psf": "DEEPLIGHT_PSF", "limits": "DEEPLIGHT_LIMITS"}
"""Tags of ntl.tif that say through which sensor it was made from the HR lights: parts of Sample, two numbers each."""
LAYERS = tuple(_KINDS)
"""Names of a clip's layers; each is NAME.tif."""


def write_clip(folder: Path, grid: Grid, sample: Sample, layers: tuple[str, ...], unit: str) -> None:
    """Write a clip under a temporary name, sync it, and give it its own. An unfinished one of a killed run is replaced.

    grid: the clip's LR grid. layers: those to write; of the DMO only the bands that are there.
    Raises DeepLightError where the disk refuses.
    """
    from rasterio.errors import RasterioError

    temporary = folder.with_name(f".{folder.name}.tmp")
    with disk_errors(folder):
        if temporary.exists():
            DISK.remove_tree(temporary)
        folder.parent.mkdir(parents=True, exist_ok=True)
        DISK.make_folder(temporary)
        try:
            for layer in layers:
                _write_layer(temporary / f"{layer}.tif", grid, layer, sample, unit)
        except RasterioError as error:
            raise DeepLightError(
                f"cannot write the clip {folder} ({error}); free space, then go on with `resume=True`"
            ) from error
        DISK.sync_folder(temporary)
        DISK.replace(temporary, folder)
        DISK.sync_folder(folder.parent)


def _write_layer(path: Path, grid: Grid, layer: str, sample: Sample, unit: str) -> None:
    import rasterio

    kind = _KINDS[layer]
    at = grid if kind.finer == 1 else grid.finer(kind.finer)
    values, names, extra = _encoded(layer, sample)
    block = _LR_BLOCK if kind.finer == 1 else _HR_BLOCK
    profile: dict[str, Any] = {
        "driver": "GTiff", "crs": at.crs, "transform": at.transform, "height": at.height, "width": at.width,
        "count": len(values), "dtype": values.dtype, "tiled": True, "blockxsize": block, "blockysize": block,
        "compress": "zstd", "zstd_level": 1, "interleave": "band", **extra,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.descriptions = names
        dataset.units = (kind.unit or unit,) * len(names)
        if layer == "dmo":
            dataset.scales, dataset.offsets = (DMO_SCALE,) * len(names), (DMO_OFFSET,) * len(names)
        if layer == "ntl" and sample.psf.min() >= 0:
            dataset.update_tags(**{tag: _as_text(getattr(sample, name)) for name, tag in _SENSOR.items()})
        dataset.write(values)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _as_text(pair: Floats) -> str:
    return " ".join(f"{float(v):.9g}" for v in pair)


def _sensor(tags: dict[str, str], name: str) -> dict[str, Floats]:
    """`psf` and `limits` of a Sample from the tags of ntl.tif; empty where they say nothing."""
    found: dict[str, Floats] = {}
    for part, tag in _SENSOR.items():
        if tag not in tags:
            return {}
        try:
            pair = np.array([float(v) for v in tags[tag].split()], np.float32)
        except ValueError:
            pair = np.empty(0, np.float32)
        if pair.shape != (2,) or not np.isfinite(pair).all():
            raise ClipError(
                f"clip {name}: the tag {tag} of ntl.tif is {tags[tag]!r} and must be two numbers; cut the clip again"
            )
        found[part] = pair
    return found


def _encoded(layer: str, sample: Sample) -> tuple[NDArray[Any], tuple[str, ...], dict[str, Any]]:
    """Pixels in file dtype, band names, and the rest of the profile."""
    if layer == "dmo":
        there = np.flatnonzero(sample.dmo_bands)
        dn = np.rint((sample.dmo[there] - np.float32(DMO_OFFSET)) / np.float32(DMO_SCALE))
        dn = np.where(sample.dmo_valid != 0, np.clip(dn, 1, 65535), DMO_NODATA).astype(np.uint16)
        return dn, tuple(DMO_SLOTS[i] for i in there), {"nodata": DMO_NODATA, "predictor": 2}
    if layer == "offset":
        assert sample.offset is not None
        return sample.offset, _KINDS[layer].bands, {}
    values, valid = getattr(sample, layer), getattr(sample, f"{layer}_valid")
    pixels = np.where(valid != 0, values, np.float32(NODATA))
    return pixels.astype(np.float32), _KINDS[layer].bands, {"nodata": NODATA}


class ClipFiles:
    """The open rasters of a clip, read by window. Opening checks that they lie on the NTL's grid.

    name: for messages. layers: those that must be there. Raises ClipError, which names the clip.
    """

    def __init__(self, folder: Path, name: str, layers: tuple[str, ...]) -> None:
        self.name = name
        self._rasters: list[Raster] = []
        try:
            self._ntl = Layer(ntl := self._open(folder / "ntl.tif", "NTL"), ntl.bands[:1])
            self.grid = ntl.grid
            self._sensor = _sensor(ntl.tags, name)
            self._hr: dict[str, Layer] = {
                key: Layer(raster := self._open(folder / f"{key}.tif", key), raster.bands[:1])
                for key in ("ntl_hr", "dem", "isp")
                if key in layers
            }
            self._dmo = self._open_dmo(folder) if "dmo" in layers else []
            self._offset = self._open(folder / "offset.tif", "offset") if "offset" in layers else None
            self._check_grids()
        except ClipError:
            raise
        except DeepLightError as error:
            raise ClipError(f"clip {name}: {error}") from error

    def read(self, window: Window) -> Sample:
        """Return the sample of a window inside the clip. Raises ClipError where a file cannot be read."""
        try:
            return self._read(window)
        except DeepLightError as error:
            raise (
                error if isinstance(error, ClipError) else ClipError(f"clip {self.name}: {error}")
            ) from error

    def read_ntl(self, window: Window) -> tuple[Floats, Floats]:
        """Return NTL and its mask, (1, h, w) each."""
        try:
            values, valid = self._ntl.read_native(window)
        except DeepLightError as error:
            raise ClipError(f"clip {self.name}: {error}") from error
        return values, _as_floats(valid)

    def _read(self, window: Window) -> Sample:
        hr = window.scaled(SCALE)
        ntl, ntl_valid = self.read_ntl(window)
        dmo, dmo_valid, bands = self._read_dmo(hr)
        fields: dict[str, Floats] = {}
        for key in ("dem", "ntl_hr", "isp"):
            fields[key], fields[f"{key}_valid"] = self._read_hr(key, hr)
        if fields["isp"].max(initial=0) > 1.001:
            raise ClipError(
                f"clip {self.name}: isp.tif holds {fields['isp'].max():.4g} and the impervious fraction lies in 0…1; "
                "scale it, or set the scale in the file"
            )
        offset = None if self._offset is None else self._offset.read(window, (1, 2))[0].astype(np.float32)
        return Sample(
            ntl=ntl,
            ntl_valid=ntl_valid,
            dmo=dmo,
            dmo_valid=dmo_valid,
            dmo_bands=bands,
            offset=offset,
            **self._sensor,
            **fields,
        )

    def _read_hr(self, key: str, hr: Window) -> tuple[Floats, Floats]:
        layer = self._hr.get(key)
        if layer is None:
            return np.zeros((1, *hr.shape), np.float32), np.zeros((1, *hr.shape), np.float32)
        values, valid = layer.read_native(hr)
        return values, _as_floats(valid)

    def _read_dmo(self, hr: Window) -> tuple[Floats, Floats, Floats]:
        values, bands = (
            np.zeros((len(DMO_SLOTS), *hr.shape), np.float32),
            np.zeros(len(DMO_SLOTS), np.float32),
        )
        valid = np.full(hr.shape, 1 if self._dmo else 0, np.uint8)
        for slots, layer in self._dmo:
            part, known = layer.read_native(hr)
            values[slots], bands[slots] = part, 1
            valid &= known
        values *= valid
        return values, _as_floats(valid), bands

    def _open(self, path: Path, role: str) -> Raster:
        raster = open_raster(str(path), role)
        self._rasters.append(raster)
        return raster

    def _open_dmo(self, folder: Path) -> list[tuple[list[int], Layer]]:
        """Slot numbers and layer of dmo.tif, or of one file per band."""
        if (folder / "dmo.tif").exists():
            raster = self._open(folder / "dmo.tif", "DMO")
            slots, bands = _slots(tuple(raster.band_names), tuple(raster.bands))
            return [([DMO_SLOTS.index(s) for s in slots], Layer(raster, bands))]
        found = [(slot, folder / name) for slot, name in _DMO_FILES.items() if (folder / name).exists()]
        if not found:
            raise ClipError(
                f"clip {self.name} has neither dmo.tif nor one file per band, such as {_DMO_FILES['blue']}; fetch or "
                "cut it again"
            )
        opened = [(slot, self._open(path, "DMO")) for slot, path in found]
        return [([DMO_SLOTS.index(slot)], Layer(raster, raster.bands[:1])) for slot, raster in opened]

    def _check_grids(self) -> None:
        for raster in self._rasters[1:]:
            finer = 1 if raster.role == "offset" else SCALE
            expected = self.grid if finer == 1 else self.grid.finer()
            there = raster.grid
            if (there.height, there.width) != (expected.height, expected.width):
                raise ClipError(
                    f"clip {self.name}: {raster.name} has {there.height}x{there.width} pixels and must have "
                    f"{expected.height}x{expected.width}; cut the clip again"
                )
            if not (same_crs(there.crs, expected.crs, expected) and _same_place(there, expected)):
                raise ClipError(
                    f"clip {self.name}: {raster.name} does not lie on the NTL's grid; cut the clip again"
                )


@lru_cache(maxsize=256)
def _slots(names: tuple[str, ...], bands: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Slots and their bands in a dmo.tif. Kept, so that the log says once, not for each clip, how names were read."""
    found = find_bands("dmo.tif", names, bands)
    if not found:
        raise InputError(
            f"dmo.tif does not say which its bands are; name them in the file, {', '.join(DMO_SLOTS)}"
        )
    return tuple(found), tuple(found.values())


def _same_place(a: Grid, b: Grid) -> bool:
    """Whether two grids of one size and CRS have their corners at the same places."""
    corners = [(0, 0), (a.width, 0), (0, a.height)]
    places = [(~b.transform) @ (a.transform @ corner) for corner in corners]
    return all(
        abs(x - c) < _CORNER_TOLERANCE and abs(y - r) < _CORNER_TOLERANCE
        for (x, y), (c, r) in zip(places, corners, strict=True)
    )


def _as_floats(mask: Mask) -> Floats:
    return mask.astype(np.float32)[None]
