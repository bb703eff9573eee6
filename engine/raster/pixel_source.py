"""What raw pixels are read from: windows of bands on one grid, with or without decoded blocks that threads share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.windows import Window
from deeplight.engine.raster.buffers import Scratch
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.shared_blocks import BlockStore, SharedBlocks, shared_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PixelSource(ABC):
    """Bands on one grid. `read` and `read_pixels` may be called from any thread.

    what: its name in messages. driver: GDAL's short name. grid: CRS, transform and size. dtypes: of each band, index =
    number − 1. masked: whether there is a mask beyond nodata. block_shape: (rows, columns) decoded at once;
    pixel_bytes: of one pixel in such a block, all bands that are decoded with it.
    """

    what: str
    driver: str
    grid: Grid
    dtypes: tuple[str, ...]
    masked: bool
    block_shape: tuple[int, int]
    pixel_bytes: int

    def __init__(self) -> None:
        self._shared: SharedBlocks | None = None

    @abstractmethod
    def decode(
        self, window: Window, bands: Sequence[int], into: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """As `read`, without what threads share."""

    def read(
        self,
        window: Window,
        bands: Sequence[int],
        scratch: Scratch | None = None,
        into: NDArray[Any] | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Raw pixels (C, h, w) of these 1-based bands in file dtype, and the file's own mask (h, w), nonzero
        = valid. scratch: may hold the pixels, which are then gone with the thread's next read. into: takes them, of any
        strides, where the bands have one dtype.

        The mask is None where the file has none beyond nodata. `window` lies inside the grid (ValueError).
        Raises DeepLightError, naming file and window, where the pixels cannot be decoded.
        """
        if window.clipped(self.grid.height, self.grid.width) != window:
            raise ValueError(f"{window} is not inside {self.what}")
        shape, dtype = (len(bands), *window.shape), self.dtypes[bands[0] - 1]
        if into is None and scratch is not None and all(self.dtypes[band - 1] == dtype for band in bands):
            into = scratch.take("raw", shape, dtype)
        if self._shared is None or self._shared.bands != tuple(bands):
            return self.decode(window, bands, into)
        into = np.empty(shape, dtype) if into is None else into
        return into, self._shared.read(window, into.transpose(1, 2, 0))

    def read_pixels(
        self, window: Window, bands: Sequence[int], into: NDArray[Any]
    ) -> NDArray[np.uint8] | None:
        """As `read`, of bands of one dtype, into an array (h, w, stride) with room for at least these. Returns the
        mask."""
        if self._shared is not None and self._shared.bands == tuple(bands):
            return self._shared.read(window, into)
        return self.read(window, bands, into=into[..., : len(bands)].transpose(2, 0, 1))[1]

    def share(self, store: BlockStore | None, bands: Sequence[int]) -> None:
        """Keep what is decoded of these bands in a store, for all threads; None: for none."""
        self._shared = None if store is None else shared_blocks(self, store, bands)

    def rest(self) -> None:
        """Lets go of what threads share, until the next `share`. No read may be running."""
        self._shared = None
