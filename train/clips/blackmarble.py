"""NASA's Black Marble (VNP46, VJ146) HDF5 tiles as one GeoTIFF in nW/cm²/sr.

The files carry no usable georeference: the tile's name does. Tiles of 10° × 10° on a latitude/longitude grid of 15
arc-seconds, 2400 × 2400 pixels; h00 begins at 180° W and counts east to h35, v00 at 90° N and counts south to v17
(Black Marble User Guide, section on the gridded tile system).
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.files import DISK, remove_sidecars
from deeplight.engine.core.progress import Progress
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.convert import to_physical

TILE = 2400
"""Pixels a side."""
_DEGREES = 10.0
_NAME = re.compile(r"(?:^|[._])h(\d{2})v(\d{2})(?=[._]|$)")
_DATE = re.compile(r"\.A(\d{7})(?=\.)")
LAYERS = (
    "AllAngle_Composite_Snow_Free",
    "NearNadir_Composite_Snow_Free",
    "Gap_Filled_DNB_BRDF-Corrected_NTL",
    "DNB_BRDF-Corrected_NTL",
    "DNB_At_Sensor_Radiance_500m",
    "DNB_At_Sensor_Radiance",
)
"""Radiance layers of VNP46A3/A4, A2 and A1, the first that a file holds is taken."""
_DAILY_QUALITY = "Mandatory_Quality_Flag"
_NODATA = float("nan")
_BLOCK = 480
UNIT = "nW/cm²/sr"
"""Of the product's radiances, which it spells nWatts/(cm^2 sr)."""


@dataclass(frozen=True)
class BlackMarbleFile:
    """One file: its place in the tile grid, its date (YYYYDDD or ""), its datasets of radiance and of quality."""

    path: Path
    h: int
    v: int
    date: str
    layer: str
    dataset: str
    quality: str | None


def convert(
    files: Sequence[Path],
    out: Path,
    progress: Progress,
    layer: str | None = None,
    max_quality: int | None = None,
) -> list[BlackMarbleFile]:
    """Write tiles of one date, beside each other, as one GeoTIFF: float32, NaN where there is no data.

    layer: a radiance layer in place of the first of LAYERS that is there. max_quality: drop pixels whose quality flag
    is larger (0 is best, 255 is no retrieval). Scale, offset and fill come from the file. Returns what was read.
    Raises InputError for files that are no such tiles, of several dates, or of one place twice;
    DeepLightError where pixels cannot be read or the disk refuses.
    """
    tiles = [open_tile(path, layer, max_quality is not None) for path in files]
    _check_together(tiles)
    left, top = min(t.h for t in tiles), min(t.v for t in tiles)
    down, across = max(t.v for t in tiles) - top + 1, max(t.h for t in tiles) - left + 1
    pixel = _DEGREES / TILE
    place = Affine(pixel, 0.0, -180.0 + _DEGREES * left, 0.0, -pixel, 90.0 - _DEGREES * top)
    import rasterio

    profile: dict[str, Any] = {
        "driver": "GTiff", "crs": "EPSG:4326", "transform": place, "height": down * TILE, "width": across * TILE,
        "count": 1, "dtype": "float32", "nodata": _NODATA, "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK,
        "compress": "zstd", "zstd_level": 1, "bigtiff": "IF_SAFER", "sparse_ok": True,
    }  # fmt: skip
    with replacing(out) as temporary, progress:
        progress.start(len(tiles) * TILE**2)
        with rasterio.open(temporary, "w", **profile) as dataset:
            dataset.units, dataset.descriptions = (UNIT,), (tiles[0].layer,)
            dataset.update_tags(source=" ".join(t.path.name for t in tiles), date=tiles[0].date)
            for tile in tiles:
                row, col = (tile.v - top) * TILE, (tile.h - left) * TILE
                for window, values in _pixels(tile, max_quality):
                    at = ((row + window.row, row + window.row + window.height), (col, col + TILE))
                    dataset.write(values, 1, window=at)
                    progress.advance(values.size)
    return tiles


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a temporary path, which gets the name `out` when the block ends without an error. rasterio wants a path,
    not an open file."""
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.tmp.tif")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        remove_sidecars(out)
        DISK.replace(temporary, out)
    except OSError as error:
        raise DeepLightError(f"cannot write {out} ({error}); free space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            DISK.remove(temporary)


def tile_of(name: str) -> tuple[int, int]:
    """Return the tile's (h, v), which the file's name tells. Raises InputError where it names no tile."""
    found = _NAME.search(Path(name).stem) or _NAME.search(name)
    if found is None or not (int(found[1]) < 36 and int(found[2]) < 18):
        raise InputError(
            f"{name} does not say which tile it is; Black Marble files are named like "
            "VNP46A3.A2021001.h29v05.001.2021….h5, with h00…h35 and v00…v17: give it its own name"
        )
    return int(found[1]), int(found[2])


def open_tile(path: Path, layer: str | None, quality: bool) -> BlackMarbleFile:
    """Return what a file holds, without reading pixels. Raises InputError where it is no such tile."""
    h, v = tile_of(path.name)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give Black Marble HDF5 tiles")
    with _opened(str(path)) as file:
        named = {name.rpartition("/")[2]: name for name in file.subdatasets}
    wanted = [layer] if layer is not None else list(LAYERS)
    found = next((name for name in wanted if name in named), None)
    if found is None:
        there = ", ".join(sorted(named)) or "none"
        raise InputError(
            f"{path} has no layer {' or '.join(wanted)}; its layers are {there}: choose one with `layer`"
        )
    flags = next((q for q in (f"{found}_Quality", _DAILY_QUALITY) if q in named), None)
    if quality and flags is None:
        raise InputError(f"{path} has no quality flags of {found}; leave out `max_quality`")
    with _opened(named[found]) as dataset:
        if (dataset.height, dataset.width) != (TILE, TILE):
            raise InputError(
                f"{path} holds {dataset.height}x{dataset.width} pixels and a Black Marble tile has {TILE}x{TILE}; give "
                "the file as NASA delivers it"
            )
    date = _DATE.search(path.name)
    return BlackMarbleFile(
        path, h, v, date[1] if date else "", found, named[found], named[flags] if flags else None
    )


def _check_together(tiles: Sequence[BlackMarbleFile]) -> None:
    seen: dict[tuple[int, int], BlackMarbleFile] = {}
    for tile in tiles:
        other = seen.setdefault((tile.h, tile.v), tile)
        if other is not tile:
            raise InputError(f"{other.path} and {tile.path} are the same tile; give each place once")
        if (tile.date, tile.layer) != (tiles[0].date, tiles[0].layer):
            raise InputError(
                f"{tiles[0].path} and {tile.path} differ in date or layer; convert the tiles of one date at a time"
            )


def _pixels(tile: BlackMarbleFile, max_quality: int | None) -> Iterator[tuple[Window, Floats]]:
    """Strips of a tile in nW/cm²/sr, NaN = no data."""
    from rasterio.errors import RasterioError

    with _opened(tile.dataset) as data, _opened(tile.quality or tile.dataset) as flags:
        scale, offset, fill = _encoding(data, tile)
        for row in range(0, TILE, _BLOCK):
            at = ((row, row + _BLOCK), (0, TILE))
            try:
                raw = data.read(window=at)
                good = None if max_quality is None else flags.read(1, window=at) <= max_quality
            except RasterioError as error:
                raise DeepLightError(
                    f"{tile.path} cannot be read at rows {row}–{row + _BLOCK - 1}; fetch it again"
                ) from error
            values, valid = to_physical(raw, [scale], [offset], [fill], good)
            yield Window(row, 0, _BLOCK, TILE), np.where(valid != 0, values[0], np.float32(_NODATA))


def _encoding(dataset: Any, tile: BlackMarbleFile) -> tuple[float, float, float | None]:
    """(scale, offset, fill) from the layer's attributes. Raises InputError where one is no number."""
    tags = dataset.tags(1)

    def number(default: float | None, *names: str) -> float | None:
        text = next((tags[name] for name in names if name in tags), None)
        if text is None:
            return default
        try:
            return float(str(text).strip("{} "))
        except ValueError:
            raise InputError(
                f"{tile.path}: {names[0]} of {tile.layer} is {text!r}, no number; fetch it again"
            ) from None

    fill = number(dataset.nodatavals[0], "_FillValue", "FillValue")
    scale, offset = number(1.0, "scale_factor"), number(0.0, "add_offset", "offset")
    if not scale:
        raise InputError(f"{tile.path}: scale_factor of {tile.layer} is 0; fetch the file again")
    return scale, offset or 0.0, fill


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    """An HDF5 file or one of its datasets; no other driver may try."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.io import DatasetReader

    with warnings.catch_warnings(), rasterio.Env():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            dataset = DatasetReader(name, driver=["HDF5", "HDF5Image"], sharing=False)
        except RasterioError as error:
            raise InputError(
                f"{name} cannot be opened as HDF5 ({error}); give Black Marble tiles as NASA delivers them"
            ) from error
        with dataset:
            yield dataset
