"""Decoded blocks that all threads share: each is decoded by one of them, for every tile that needs it.

GDAL keeps decoded blocks for a dataset handle, and each thread has its own. Where many threads read tiles that lie
beside each other, they would decode what lies between their tiles once each.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.forms import stride
from deeplight.engine.core.windows import Window

if TYPE_CHECKING:
    from deeplight.engine.raster.pixel_source import PixelSource

_BLOCKS = 8
"""A store must hold so many blocks to be of use."""
_PATIENCE_S = 60.0
"""So long one thread waits for what another decodes, before it does so itself."""
_LEAST_SIDE, _VIRTUAL_SIDE, _MOST_BYTES = 512, 1024, 16 << 20
"""Pixels along a side of what is decoded at once, and of a VRT, if that is not more bytes: a call costs a seventh of a
millisecond, for most of which no other thread can run Python. A tile of 2368² pixels of seven bands is 100 blocks of
256², and 25 of 512²: one thread took 0.27 s with the former and 0.24 s with the latter (2 CPUs, 2026-11-29)."""

Pixels = NDArray[Any]
Decoded = tuple[Pixels, NDArray[np.uint8] | None]
"""Raw pixels (h, w, stride), bands first and anything behind them, and the file's own mask (h, w), None where it has
none beyond nodata."""


class BlockStore:
    """Keeps what was made for a key, the last used at most `budget` bytes, for all threads."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._held: OrderedDict[Hashable, Future[Decoded]] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}
        self._total = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Decoded]) -> Decoded:
        """What `make` gives for the key; while one thread makes it, others that ask for it wait. Raises what `make`
        raises, to all of them; the next that asks tries again."""
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                self._held.move_to_end(key)
            else:
                mine = self._held[key] = Future[Decoded]()
        if found is not None:
            if found.done() or wait([found], _PATIENCE_S).done:
                return found.result()
            with self._lock:  # who makes it hangs, on a network disk perhaps; this one tries in its place
                if self._held.get(key) is found:
                    del self._held[key]
            return self.get(key, make)
        try:
            made = make()
        except BaseException as error:
            with self._lock:
                if self._held.get(key) is mine:
                    del self._held[key]
            mine.set_exception(error)
            raise
        mine.set_result(made)
        with self._lock:
            if self._held.get(key) is mine:
                self._sizes[key] = sum(part.nbytes for part in made if part is not None)
                self._total += self._sizes[key]
                self._let_go()
        return made

    def in_the_making(self, key: Hashable) -> bool:
        """Whether another thread is about to have what belongs to the key."""
        with self._lock:
            found = self._held.get(key)
        return found is not None and not found.done()

    def _let_go(self) -> None:
        """Forget what was not used for the longest time, but for what is still being made."""
        for key in list(self._held):
            if self._total <= self.budget:
                return
            if key in self._sizes:
                del self._held[key]
                self._total -= self._sizes.pop(key)


@dataclass(frozen=True)
class SharedBlocks:
    """A raster's blocks in a store. name: of the raster there. bands: that are decoded. size: of the raster, unit: of
    what is decoded at once, in pixels (rows, columns). stride: elements of a pixel. decode: puts a window that lies
    inside the raster into an array (C, h, w) of any strides, and returns its mask."""

    store: BlockStore
    name: Hashable
    bands: tuple[int, ...]
    size: tuple[int, int]
    unit: tuple[int, int]
    stride: int
    dtype: str
    decode: Callable[[Window, Pixels], NDArray[np.uint8] | None]

    def read(self, window: Window, into: Pixels) -> NDArray[np.uint8] | None:
        """The pixels of a window inside the raster into an array (h, w, n) with room for the bands. Returns the mask
        (h, w). Raises DeepLightError where pixels of the window are damaged, not for those around it."""
        try:
            return self._read(window, into)
        except DeepLightError:
            return self.decode(window, into[..., : len(self.bands)].transpose(2, 0, 1))

    def _read(self, window: Window, into: Pixels) -> NDArray[np.uint8] | None:
        room = min(self.stride, into.shape[2])
        mask: NDArray[np.uint8] | None = None
        for block in self._blocks(window):
            pixels, known = self.store.get((self.name, block), partial(self._decoded, block))
            part = block.shared_with(window)
            there, here = part.slices_in(block), part.slices_in(window)
            into[here][..., :room] = pixels[there][..., :room]
            if known is not None:
                if mask is None:
                    mask = np.empty(window.shape, np.uint8)
                mask[here] = known[there]
        return mask

    def _blocks(self, window: Window) -> Iterator[Window]:
        """The blocks behind a window; last come those that another thread was decoding when it was their turn."""
        high, wide = self.unit
        later = []
        for row in range(window.row // high, -(-(window.row + window.height) // high)):
            for col in range(window.col // wide, -(-(window.col + window.width) // wide)):
                block = Window(row * high, col * wide, high, wide).clipped(*self.size)
                if self.store.in_the_making((self.name, block)):
                    later.append(block)
                else:
                    yield block
        yield from later

    def _decoded(self, block: Window) -> Decoded:
        pixels = np.empty((*block.shape, self.stride), self.dtype)
        return pixels, self.decode(block, pixels[..., : len(self.bands)].transpose(2, 0, 1))


def _stride(bands: int) -> int:
    """Elements of a pixel: as on the device where that takes up to a third more, so that whole pixels are copied."""
    return stride(bands) if 3 * stride(bands) <= 4 * bands else bands


def kept_bytes(raster: PixelSource, bands: Sequence[int]) -> int:
    """What a pixel of these bands, of one dtype, takes in a store: with room beside them, and the mask."""
    return _stride(len(bands)) * np.dtype(raster.dtypes[bands[0] - 1]).itemsize + raster.masked


def shared_blocks(raster: PixelSource, store: BlockStore, bands: Sequence[int]) -> SharedBlocks | None:
    """A raster's blocks in a store; None where bands are of several dtypes, and where the store holds only few blocks:
    each thread then decodes its own."""
    size, unit = (raster.grid.height, raster.grid.width), shared_unit(raster)
    dtypes = {raster.dtypes[band - 1] for band in bands}
    if len(dtypes) > 1 or unit[0] * unit[1] * raster.pixel_bytes > store.budget // _BLOCKS:
        return None

    def decode(window: Window, into: Pixels) -> NDArray[np.uint8] | None:
        return raster.decode(window, bands, into=into)[1]

    return SharedBlocks(
        store, id(raster), tuple(bands), size, unit, _stride(len(bands)), dtypes.pop(), decode
    )


def shared_unit(raster: PixelSource) -> tuple[int, int]:
    """Rows and columns of what is decoded of a raster at once."""
    # of a VRT nothing says how its sources are stored: more at once, so that less of them is decoded twice
    side = _VIRTUAL_SIDE if raster.driver == "VRT" else _LEAST_SIDE
    return unit_of(raster.block_shape, (raster.grid.height, raster.grid.width), raster.pixel_bytes, side)


def unit_of(
    block: tuple[int, int], size: tuple[int, int], pixel_bytes: int, least: int = _LEAST_SIDE
) -> tuple[int, int]:
    """What to decode at once of a raster stored in such blocks (rows, columns): whole blocks, several of small ones, to
    `least` pixels along a side."""
    high, wide = (min(side, length) for side, length in zip(block, size, strict=True))
    rows, cols = (max(1, least // side) for side in (high, wide))
    while rows > 1 and rows * high * cols * wide * pixel_bytes > _MOST_BYTES:
        rows -= 1
    while cols > 1 and rows * high * cols * wide * pixel_bytes > _MOST_BYTES:
        cols -= 1
    return rows * high, cols * wide
