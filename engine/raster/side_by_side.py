"""Files of a few bands each that lie on one grid, read as the bands of one: Landsat and Sentinel-2 are delivered so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.windows import Window
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.layers import AuxLayer
from deeplight.engine.raster.pixel_source import PixelSource
from deeplight.engine.raster.source import Raster

if TYPE_CHECKING:
    from numpy.typing import NDArray

Placed = tuple[list[int], AuxLayer]
"""A layer, and the channels of the network that its bands are."""


class SideBySide(PixelSource):
    """Bands of open rasters of one grid, one dtype and one shape of blocks, numbered from 1 in the order given.

    parts: each raster, and its bands. A pixel is outside the mask where it is so in one of them.
    """

    def __init__(self, parts: Sequence[tuple[Raster, Sequence[int]]]) -> None:
        super().__init__()
        self._bands = [(raster, band) for raster, bands in parts for band in bands]
        rasters = [raster for raster, _ in parts]
        first = rasters[0]
        self.what = f"{first.role} rasters {', '.join(raster.name for raster in rasters)}"
        self.driver, self.grid, self.block_shape = first.driver, first.grid, first.block_shape
        self.dtypes = tuple(raster.dtypes[band - 1] for raster, band in self._bands)
        self.masked = any(raster.masked for raster in rasters)
        self.pixel_bytes = sum(raster.pixel_bytes for raster in rasters)
        self._rasters = rasters

    def decode(
        self, window: Window, bands: Sequence[int], into: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """As `read`, without what threads share."""
        raw = np.empty((len(bands), *window.shape), self.dtypes[0]) if into is None else into
        mask: NDArray[np.uint8] | None = None
        for at, number in enumerate(bands):
            raster, band = self._bands[number - 1]
            _, known = raster.decode(window, (band,), raw[at : at + 1])
            if known is not None:
                mask = known if mask is None else np.minimum(mask, known)
        return raw, mask

    def rest(self) -> None:
        """See Raster.rest."""
        super().rest()
        for raster in self._rasters:
            raster.rest()


class JoinedLayer(AuxLayer):
    """Layers of one grid, see SideBySide, resampled as the bands of one file: a pixel is valid where it is in all of
    them, before it is resampled. raster: the first of them."""

    def __init__(self, files: Sequence[AuxLayer], hr: Grid) -> None:
        first = files[0]
        super().__init__(first.raster, first.bands, hr, first.overlap, limits=first.limits)
        self.source = SideBySide([(file.raster, file.bands) for file in files])
        self.scale, self.offset = (
            np.concatenate([getattr(file, name) for file in files]) for name in ("scale", "offset")
        )
        self.nodata = tuple(value for file in files for value in file.nodata)
        self.bands = tuple(range(1, len(self.nodata) + 1))


def joined(files: Sequence[Placed], hr: Grid) -> list[Placed]:
    """The layers that are read: those on one grid as one, with their channels in ascending order; others as they
    are."""
    groups: list[list[Placed]] = []
    for file in files:
        group = next((group for group in groups if _fit(group[0][1], file[1])), None)
        if group is None:
            groups.append([file])
        else:
            group.append(file)
    return [group[0] if len(group) == 1 else _join(group, hr) for group in groups]


def _join(group: Sequence[Placed], hr: Grid) -> Placed:
    ordered = sorted(group, key=lambda file: file[0])
    return [channel for channels, _ in ordered for channel in channels], JoinedLayer(
        [layer for _, layer in ordered], hr
    )


def _fit(a: AuxLayer, b: AuxLayer) -> bool:
    """Whether the bands of both can be read as those of one file."""
    one, other = a.raster, b.raster
    types = {layer.raster.dtypes[band - 1] for layer in (a, b) for band in layer.bands}
    return (
        len(types) == 1
        and one.grid == other.grid
        and (one.driver, one.block_shape) == (other.driver, other.block_shape)
        and (a.factors, a.limits) == (b.factors, b.limits)
    )
