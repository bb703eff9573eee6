"""One raster of a scene: its bands in physical units, and for auxiliary layers on the HR grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplight.engine.core.arrays import Doubles, Floats, Mask
from deeplight.engine.core.errors import InputError
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.core.wording import of_role
from deeplight.engine.raster.buffers import Scratch
from deeplight.engine.raster.convert import to_physical
from deeplight.engine.raster.extents import Overlap
from deeplight.engine.raster.georeference import PLACED
from deeplight.engine.raster.grid import Grid
from deeplight.engine.raster.pixel_source import PixelSource
from deeplight.engine.raster.shared_blocks import kept_bytes, shared_unit
from deeplight.engine.raster.source import Raster
from deeplight.engine.raster.warp import (
    Warper,
    area_mean,
    decimated,
    decimation,
    goes_round,
    opposite,
    with_neighbours,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STRIP_PIXELS = 1 << 18
"""Native pixels decoded at a time for decimation; seven float32 bands of them are 7 MB."""
_STRIP_ROWS = 128
"""HR rows resampled at a time, so that no layer is held in its native resolution."""
_MOST_OVERLAP = 1.3
"""Pixels read for all strips of a window, over those for the window in one piece: a strip has a few rows in common with
the next."""
_SAMPLE_SIDE = 64
_SAMPLE_WINDOWS = 24
_SAMPLE_ENOUGH = 4 * _SAMPLE_SIDE**2


class Layer:
    """Bands of a raster in physical units: raw · scale + offset.

    bands: 1-based numbers. scale, offset: (C,) float64 in force, nodata: per band; `scaling` (factor, offset)
    and `nodata` replace what the file says, and scale_given, nodata_given say that they do. limits: physical values
    outside are invalid. pixels: what they are read from, the raster. Thread-safe.
    """

    def __init__(
        self,
        raster: Raster,
        bands: Sequence[int],
        scaling: tuple[float, float] | None = None,
        nodata: float | None = None,
        limits: tuple[float, float] | None = None,
    ) -> None:
        self.limits = limits
        self.scale_given, self.nodata_given = scaling is not None, nodata is not None
        self._scratch = Scratch()
        index = [band - 1 for band in bands]
        self.raster = raster
        self.pixels: PixelSource = raster
        self.bands = tuple(bands)
        self.scale = raster.scales[index] if scaling is None else np.full(len(index), scaling[0])
        self.offset = raster.offsets[index] if scaling is None else np.full(len(index), scaling[1])
        self.nodata = tuple(raster.nodata[i] if nodata is None else nodata for i in index)
        if not (np.isfinite(self.scale).all() and np.isfinite(self.offset).all() and self.scale.all()):
            raise InputError(
                f"{raster.what} declares the scale {self.scale.tolist()} and offset {self.offset.tolist()}; "
                f"{_rescaling(raster)}"
            )

    def read_raw(
        self, window: Window, scratch: Scratch | None = None
    ) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Raw pixels (C, h, w) of the bands and the mask (h, w) beside nodata, None where there is none; see
        PixelSource.read."""
        return self.pixels.read(window, self.bands, scratch)

    def read_native(self, window: Window, scratch: Scratch | None = None) -> tuple[Floats, Mask]:
        """Physical values (C, h, w), 0 where invalid, and mask (h, w) of native pixels; `window` lies in the
        raster. scratch: may hold them, until the thread's next read."""
        raw, mask = self.read_raw(window, scratch)
        into = None
        if scratch is not None:
            valid = scratch.take("valid", raw.shape[1:], np.uint8)
            into = scratch.take("values", raw.shape, np.float32), valid
        limits = self.limits or (-np.inf, np.inf)
        return to_physical(raw, self.scale, self.offset, self.nodata, mask, limits=limits, into=into)

    def native_windows(self, window: Window) -> list[Window]:
        """The raster's pixels that LR pixels are made from; none where they do not meet."""
        inside = window.clipped(self.raster.grid.height, self.raster.grid.width)
        return [inside] if inside.height and inside.width else []

    def cached_bytes(self, window: Window, *, shared: bool = False) -> int:
        """What the decoded blocks behind LR pixels take in GDAL's cache. shared: in one that threads share."""
        high, wide = shared_unit(self.pixels) if shared else self.pixels.block_shape
        pixels = 0
        for w in self.native_windows(window):
            down = (w.row + w.height - 1) // high - w.row // high + 1
            across = (w.col + w.width - 1) // wide - w.col // wide + 1
            sides = down * high, across * wide
            if shared:  # which hold nothing beyond the raster
                sides = min(sides[0], self.pixels.grid.height), min(sides[1], self.pixels.grid.width)
            pixels += sides[0] * sides[1]
        return pixels * (kept_bytes(self.pixels, self.bands) if shared else self.pixels.pixel_bytes)

    def sample(self, region: Window) -> tuple[NDArray[Any], Floats, Mask]:
        """Raw (C, N) and physical (C, N) values and mask (N,) of some pixels inside `region`.

        Small windows at fixed, evenly spread places, until enough valid pixels are found.
        """
        raws, values, masks = [], [], []
        found = 0
        for window in _sample_windows(region):
            raw, mask = self.read_raw(window)
            physical, valid = to_physical(raw, self.scale, self.offset, self.nodata, mask)
            raws.append(raw.reshape(len(self.bands), -1))
            values.append(physical.reshape(len(self.bands), -1))
            masks.append(valid.reshape(-1))
            found += int(np.count_nonzero(valid))
            if found >= _SAMPLE_ENOUGH:
                break
        return np.concatenate(raws, axis=1), np.concatenate(values, axis=1), np.concatenate(masks)

    def describe(self) -> dict[str, Any]:
        """Facts for the run report: file, size, CRS, dtype, bands, and the scale, offset and nodata in
        force."""
        raster = self.raster
        return {
            "file": raster.name,
            "bytes": raster.size_bytes,
            "driver": raster.driver,
            "height": raster.grid.height,
            "width": raster.grid.width,
            "crs": raster.grid.crs.to_string(),
            "transform": list(raster.grid.transform[:6]),
            "dtype": raster.dtype,
            "bands": list(self.bands),
            "scale": self.scale.tolist(),
            "offset": self.offset.tolist(),
            **({"pieces": list(raster.pieces)} if raster.pieces else {}),
            "nodata": [None if value is None else str(value) for value in self.nodata],
            "bytes_read": raster.bytes_read,
        }


class AuxLayer(Layer):
    """A layer brought onto the HR grid: bilinear, after an area mean where its pixels are finer than HR
    pixels.

    Every value depends on its place alone, never on the window it is read in: blocks of the area mean count
    from the raster's corner, the mesh from the grid's. The columns of a layer of the whole Earth are counted on where
    they start again. overlap: how it meets the NTL grid. factors: (fy, fx) of the area mean.
    """

    def __init__(
        self,
        raster: Raster,
        bands: Sequence[int],
        hr: Grid,
        overlap: Overlap,
        scaling: tuple[float, float] | None = None,
        nodata: float | None = None,
        limits: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(raster, bands, scaling, nodata, limits)
        self.overlap = overlap
        row, col = ((place + 0.5) * SCALE - 0.5 for place in overlap.centre)
        self.factors = decimation(hr, raster.grid, (row, col))
        self._grid = decimated(raster.grid, *self.factors)
        self._round = goes_round(self._grid)
        self._first = opposite(self._grid, hr) if self._round else 0
        self._warper = Warper(hr, with_neighbours(self._grid, self._first) if self._round else self._grid)

    def read(self, hr_window: Window) -> tuple[Floats, Mask]:
        """Physical values (C, H, W) at the HR pixels, 0 where invalid, and their mask; the window may leave
        the raster."""
        values = np.empty((len(self.bands), *hr_window.shape), np.float32)
        mask = np.empty(hr_window.shape, np.uint8)
        self.read_into(hr_window, values, mask)
        return values, mask

    @property
    def filled(self) -> range:
        """Channels of `read_into`'s values: all."""
        return range(len(self.bands))

    def read_into(self, hr_window: Window, values: Floats, mask: NDArray[Any]) -> None:
        """As `read`, into arrays of any content. values: float32; its planes may lie apart, its rows not. mask: of any
        dtype."""
        for strip, sources in self._strips(hr_window):
            rows = strip.slices_in(hr_window)[0]
            if len(sources) == 1:
                known = self._scratch.take("known", strip.shape, np.uint8)
                self._resample(sources[0], strip, (values[:, rows], known))
                mask[rows] = known
                continue
            values[:, rows], mask[rows] = 0, 0
            for source in sources:  # no pixel is valid in two of them
                part, known = self._resample(source, strip)
                values[:, rows] += part
                mask[rows] += known

    def _resample(
        self, source: Window, hr_window: Window, into: tuple[Floats, Mask] | None = None
    ) -> tuple[Floats, Mask]:
        return self._warper.resample(*self.read_own(source), source, hr_window, into)

    def source_windows(self, hr_window: Window) -> list[Window]:
        """Of the layer's own grid (decimated by `factors`), the pixels that HR pixels are made from: in two windows
        where that of a layer of the whole Earth ends within `hr_window`, opposite to the scene's middle."""
        return self._warper.source_windows(hr_window)

    def read_own(self, source: Window) -> tuple[Floats, Mask]:
        """Physical values (C, h, w) and mask (h, w) of the pixels of one of `source_windows`, in memory that the
        thread's next read overwrites."""
        pieces = [piece for piece, _ in self._pieces(source)]
        if len(pieces) == 1:
            return self._read_means(pieces[0])
        parts = []
        for piece in pieces:
            values, mask = self._read_means(piece)
            parts.append((values.copy(), mask.copy()))
        return np.concatenate([v for v, _ in parts], axis=2), np.concatenate([m for _, m in parts], axis=1)

    def read_pixels(self, source: Window, into: NDArray[Any]) -> NDArray[np.uint8] | None:
        """Raw pixels of one of `source_windows` into an array (h, w, n) with room for the bands, of a layer that is not
        averaged. Returns the file's own mask (h, w), see PixelSource.read."""
        mask: NDArray[np.uint8] | None = None
        for piece, cols in self._pieces(source):
            known = self.pixels.read_pixels(piece, self.bands, into[:, cols])
            if known is not None:
                mask = np.empty(source.shape, np.uint8) if mask is None else mask
                mask[:, cols] = known
        return mask

    def nodes(self, hr_window: Window, step: int) -> Doubles | None:
        """Places of every `step`-th HR pixel in the layer's own raster, see Warper.nodes: (2, n, m)."""
        return self._warper.nodes(hr_window, step)

    def _strips(self, hr_window: Window) -> list[tuple[Window, list[Window]]]:
        """Parts of a window that are read one after the other, each with the windows of the layer behind it.

        Where the layer lies aslant the boxes around its strips overlap: then it is one part.
        """
        strips = []
        for top in range(0, hr_window.height, _STRIP_ROWS):
            rows = min(_STRIP_ROWS, hr_window.height - top)
            strip = Window(hr_window.row + top, hr_window.col, rows, hr_window.width)
            strips.append((strip, self._warper.source_windows(strip)))
        whole = self._warper.source_windows(hr_window)
        area = sum(s.height * s.width for _, sources in strips for s in sources)
        if area > _MOST_OVERLAP * sum(s.height * s.width for s in whole):
            return [(hr_window, whole)]
        return strips

    def native_windows(self, window: Window) -> list[Window]:
        """The raster's pixels that LR pixels are made from: two windows where its columns start again."""
        (fy, fx), grid, width = self.factors, self.raster.grid, self._grid.width
        found = []
        for s in self._warper.source_windows(window.scaled(SCALE)):
            all_round = [Window(s.row, 0, s.height, width)]
            for p in all_round if s.width >= width else [piece for piece, _ in self._pieces(s)]:
                native = Window(p.row * fy, p.col * fx, p.height * fy, p.width * fx)
                found.append(native.clipped(grid.height, grid.width))
        return found

    def describe(self) -> dict[str, Any]:
        """As Layer.describe, with the share of the NTL grid covered and the pixels averaged before
        resampling."""
        return {
            **super().describe(),
            "share_of_scene": self.overlap.share,
            "area_mean_rows_cols": list(self.factors),
        }

    def _pieces(self, source: Window) -> Iterator[tuple[Window, slice]]:
        """Where the pixels of `source`, a window of the warper's grid, lie in the layer's own, and which columns of
        `source` each piece is: of a layer that goes round, the first column is beside the last."""
        if not self._round:
            yield source, slice(0, source.width)
            return
        at, width = 0, self._grid.width
        while at < source.width:
            first = (self._first + source.col - 1 + at) % width
            wide = min(source.width - at, width - first)
            yield Window(source.row, first, source.height, wide), slice(at, at + wide)
            at += wide

    def _read_means(self, source: Window) -> tuple[Floats, Mask]:
        """The pixels of `source`, a window of the decimated grid, in memory that the thread's next call overwrites."""
        return (
            self._read_decimated(source)
            if self.factors != (1, 1)
            else self.read_native(source, self._scratch)
        )

    def _read_decimated(self, source: Window) -> tuple[Floats, Mask]:
        """Area means of the blocks in `source`, a window of the decimated grid; read in strips to bound
        memory."""
        fy, fx = self.factors
        values = self._scratch.take("means", (len(self.bands), *source.shape), np.float32)
        mask: Mask = self._scratch.take("mean_valid", source.shape, np.uint8)
        rows = max(1, _STRIP_PIXELS // (fy * fx * source.width))
        for top in range(0, source.height, rows):
            count = min(rows, source.height - top)
            native = Window((source.row + top) * fy, source.col * fx, count * fy, source.width * fx)
            part = self.read_native(
                native.clipped(self.raster.grid.height, self.raster.grid.width), self._scratch
            )
            values[:, top : top + count], mask[top : top + count] = area_mean(*part, fy, fx)
        return values, mask


def _rescaling(raster: Raster) -> str:
    """How to give a raster a usable scale."""
    if raster.role in PLACED:
        return f"give the right ones with `{of_role(raster.role, 'scale')}=F or (F, OFFSET)`"
    return "give a file with usable ones"


def _sample_windows(region: Window) -> Iterator[Window]:
    """Windows in `region` at the points of the R2 sequence, which spreads evenly for any count."""
    height, width = min(_SAMPLE_SIDE, region.height), min(_SAMPLE_SIDE, region.width)
    for i in range(_SAMPLE_WINDOWS):
        v, u = (0.5 + i * 0.7548776662466927) % 1.0, (0.5 + i * 0.5698402909980532) % 1.0
        row = region.row + int(v * (region.height - height + 1))
        col = region.col + int(u * (region.width - width + 1))
        yield Window(row, col, height, width)
