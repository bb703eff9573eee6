"""Files of a band each that lie on one grid, read as the bands of one: Landsat and Sentinel-2 are delivered so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.layers import AuxLayer
from deeplight.engine.raster.pixel_source import PixelSource
from deeplight.engine.raster.source import CACHE_MB, Raster

if TYPE_CHECKING:
    from numpy.typing import NDArray

Placed = tuple[list[int], AuxLayer]
"""The channels of the network that a layer's bands are, and the layer."""

_MOST_ROW_BYTES = (CACHE_MB << 20) // 4
"""Of the blocks in a row across a tile, of all files that are read as one: a quarter of GDAL's usual cache. A tile is
read in strips, each from all files. Where such rows do not fit into the cache, every strip decodes them anew, which one
file after the other does not: seven files of 5000² pixels, each stored in one piece, took four times as long."""
_TILE = 296
"""LR pixels of a usual tile's side, with its halo."""


class SideBySide(PixelSource):
    """Bands of open rasters of one grid and one dtype, numbered from 1 in the order given.

    parts: each raster and its band. A pixel is outside the mask where it is so in one of them.
    """

    def __init__(self, parts: Sequence[tuple[Raster, int]]) -> None:
        super().__init__()
        self._parts = list(parts)
        rasters = [raster for raster, _ in parts]
        first = rasters[0]
        self.what = f"{first.role} rasters {', '.join(raster.name for raster in rasters)}"
        self.grid = first.grid
        self.driver = next((r.driver for r in rasters if r.driver == "VRT"), first.driver)
        self.block_shape = largest_block(rasters)
        self.dtypes = tuple(raster.dtypes[band - 1] for raster, band in parts)
        self.masked = any(raster.masked for raster in rasters)
        self.pixel_bytes = sum(raster.pixel_bytes for raster in rasters)

    def decode(
        self, window: Window, bands: Sequence[int], into: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """As `read`, without what threads share."""
        raw = np.empty((len(bands), *window.shape), self.dtypes[0]) if into is None else into
        mask: NDArray[np.uint8] | None = None
        for at, number in enumerate(bands):
            raster, band = self._parts[number - 1]
            _, known = raster.decode(window, (band,), raw[at : at + 1])
            if known is not None:
                mask = known if mask is None else np.minimum(mask, known)
        return raw, mask

    def rest(self) -> None:
        """See Raster.rest."""
        super().rest()
        for raster, _ in self._parts:
            raster.rest()


class JoinedLayer(AuxLayer):
    """Layers of a band each, see SideBySide, resampled as the bands of one file: a pixel is valid where it is in all of
    them, before it is resampled. raster: the first of them; each file describes itself."""

    def __init__(self, files: Sequence[AuxLayer], hr: Grid) -> None:
        first = files[0]
        scaling = float(first.scale[0]), float(first.offset[0])  # which the file's own may not be
        super().__init__(first.raster, first.bands, hr, first.overlap, scaling, limits=first.limits)
        self.pixels = SideBySide([(file.raster, file.bands[0]) for file in files])
        self.scale, self.offset = (
            np.concatenate([getattr(file, name) for file in files]) for name in ("scale", "offset")
        )
        self.nodata = tuple(value for file in files for value in file.nodata)
        self.bands = tuple(range(1, len(files) + 1))


def joined(files: Sequence[Placed], hr: Grid) -> list[Placed]:
    """The layers that are read: files on one grid as one, with their channels in ascending order; others as they are.
    files: one, or several of a band each."""
    groups: list[list[Placed]] = []
    for file in files:
        group = next((one for one in groups if _fit([layer for _, layer in (*one, file)])), None)
        if group is None:
            groups.append([file])
        else:
            group.append(file)
    return [group[0] if len(group) == 1 else _join(group, hr) for group in groups]


def largest_block(rasters: Sequence[PixelSource]) -> tuple[int, int]:
    """Rows and columns that hold a block of each."""
    heights, widths = zip(*(raster.block_shape for raster in rasters), strict=True)
    return max(heights), max(widths)


def _join(group: list[Placed], hr: Grid) -> Placed:
    ordered = sorted(group, key=lambda file: file[0])
    layers = [layer for _, layer in ordered]
    return [channel for channels, _ in ordered for channel in channels], JoinedLayer(layers, hr)


def _fit(files: Sequence[AuxLayer]) -> bool:
    """Whether files of a band each can be read as one."""
    rasters, first = [file.raster for file in files], files[0]
    types = {file.raster.dtypes[file.bands[0] - 1] for file in files}
    high, wide = largest_block(rasters)
    across = min(wide + _TILE * SCALE * (first.factors[1] + 1), first.raster.grid.width)
    row = high * across * sum(raster.pixel_bytes for raster in rasters)
    alike = len(types) == 1 and all(raster.grid == rasters[0].grid for raster in rasters)
    return alike and row <= _MOST_ROW_BYTES
