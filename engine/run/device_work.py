"""Tiles on a device: as TileWork on the host, with pixels that go there as they are in the files.

`read` fills a slot's pinned memory, `compute` puts it on the device's streams and returns at once, `collected` waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.forms import COUNTS, LayerForm
from deeplight.engine.core.machine import available_memory
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window, split
from deeplight.engine.output.pack_format import Encoded
from deeplight.engine.raster.unresampled import NOWHERE, Placed, Unresampled, reached, spread, unresampled
from deeplight.engine.run.device_path import DevicePath, SentLayers, TileShape
from deeplight.engine.run.device_tiles import FASTER, DeviceTiles, host_bytes, larger_cores, worth_trying
from deeplight.engine.run.largest import admits
from deeplight.engine.run.slots import Lease, Ring
from deeplight.engine.run.tiling import (
    Crew,
    TilePlan,
    device_cores,
    fixed_window,
    pack_side,
    usable_memory,
)
from deeplight.engine.run.work import Tile, TileWork, joined
from deeplight.engine.runtime.device import OutOfDeviceMemory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplight.engine.run.device_dates import DatesOnDevice
    from deeplight.engine.run.meter import Meter


T = TypeVar("T")
PIECE = 128
"""LR pixels a side of what the host's path computes at a time beside the device's."""


@dataclass(frozen=True)
class DeviceTile(Tile):
    """A tile in a slot; without one, the host computes it. shape: of its program. physical: it comes back in float32,
    whatever the output's type is. stays: its layers on the device, for the next date or from an earlier one."""

    lease: Lease | None = None
    shape: TileShape | None = None
    physical: bool = False
    stays: SentLayers | None = None


class DeviceWork(TileWork):
    """Everything that decides a tile's pixels. `read`, `collected` and `finish` may be called from several threads.

    `fit` comes first: it decides how the scene is cut. host: the same model without a device path: for tiles whose
    numbers were bad, which are tried in fp32, and for questions about single places. beside: see RunOptions. dates:
    what this scene shares with others, which then closes the path.
    """

    def __init__(
        self,
        host: TileWork,
        path: DevicePath,
        threads: int,
        beside: int = 1,
        dates: DatesOnDevice | None = None,
    ) -> None:
        self._host, self._dates = host, dates
        self.scene, self.backend, self.manifest = host.scene, host.backend, host.manifest
        self.halo, self.products = host.halo, host.products
        self.path, self.threads = path, threads
        self.ring = Ring(path.device, self.crew(threads).tiles)
        self._usable = usable_memory(available_memory() // beside)
        self._core = 0
        self._windows: list[Window] = []
        self._layers: dict[str, Unresampled] = {}
        self._by_host: set[Window] = set()
        self._growing = threading.Lock()
        self._cancelled = False

    @property
    def host(self) -> TileWork:
        """What computes single places on the host's path."""
        return self._host

    @property
    def meter(self) -> Meter:
        """What the device path measures of itself."""
        return self.path.meter

    def crew(self, threads: int) -> Crew:
        """As many readers as threads: the device computes, and decoding is most of what the CPUs do."""
        return Crew(threads, max(2, threads // 4), ahead=2, all_read=True)

    def fit(self, plan: TilePlan) -> TilePlan:
        """The first core of those to try whose tiles the memory of host and device holds, or a larger and faster one
        where comparing pays; all memory is taken now.

        Raises InputError, naming `tiles`, where none fits.
        """
        tiles = self._taken(plan)
        if self._dates is not None:
            with self.path.failing(None):
                self._dates.keep_layers(self.path.device)
        return replace(plan, core=tiles.core, pack=pack_side(tiles.core), estimate=tiles.need)

    def _taken(self, plan: TilePlan) -> DeviceTiles:
        """The tiles that `fit` decides on, whose memory is taken. Raises InputError."""
        reason = ""
        for core in (c for c in device_cores(plan) if self._admits(c)):
            first = self._try(core, plan)
            if isinstance(first, str):
                reason = first
                continue
            # where another did not fit, none that is larger does
            tried = self._compared(first, plan) if plan.chosen and not reason else [first]
            for tiles in reversed(tried):
                lacking = self._take(tiles, plan)
                if lacking is None:
                    return tiles
                reason = lacking
        raise InputError(
            f"tiles of {core} LR pixels do not fit into the memory of {self.path.device.name} ({reason}): use "
            'smaller `tiles`, or `device="cpu"`'
        )

    def _admits(self, core: int) -> bool:
        """Whether the backend takes such tiles."""
        return admits(self.backend.largest_tile, core, self.halo, self.manifest, self.scene.grid.shape)

    def _try(self, core: int, plan: TilePlan) -> DeviceTiles | str:
        """Make the program of such tiles and time one; or why that cannot be, with nothing kept."""
        begin, shape, part = time.perf_counter(), self._cut(core), self._first(core)
        room = shape.sent.size, self.path.returned(*part.shape).size
        pixel, usable = self.path.wanted.pixel_bytes, self._usable
        need = host_bytes(core, room, self.crew(self.threads), self.scene.grid.shape, pixel)
        if plan.chosen and need > usable:
            return f"{need / 1e9:.1f} GB of host memory are needed and {usable / 1e9:.1f} GB can be used"
        alone = self._attempt(lambda: self._time(shape, part, room))
        if isinstance(alone, str):
            return alone
        rate = part.height * part.width * SCALE**2 / max(alone, 1e-9)
        self.meter.tried[core] = round(rate / 1e6, 1)
        return DeviceTiles(core, need, shape, room, rate, time.perf_counter() - begin)

    def _attempt(self, work: Callable[[], T]) -> T | str:
        """What `work` gives; or why there is not enough memory for it, with nothing kept."""
        try:
            with self.path.failing(None):
                return work()
        except OutOfDeviceMemory as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
        self._empty()  # here, where no error holds on to what was made before it
        return reason

    def _time(self, shape: TileShape, part: Window, room: tuple[int, int]) -> float:
        """Seconds of a tile alone, in one slot: page-locking all of them takes long, and only one size is kept. The
        device holds what the other slots take there, so that no size seems to fit whose ring does not."""
        others = [self.path.device.memory(size) for size in room for _ in range(1, self.ring.count)]
        lease = self.ring.take()
        self._make_up(lease, shape, room[1])
        alone = self.path.prepare(shape, lease.slot, part, self.window(part))
        lease.end()
        del others
        return alone

    def _take(self, tiles: DeviceTiles, plan: TilePlan) -> str | None:
        """Take the memory of all tiles on their way; or why there is not enough, with nothing kept."""
        if self._core != tiles.core:
            self._empty(keep=tiles.shape)
            again = self._try(tiles.core, plan)  # whose program is gone where there was too little memory
            if isinstance(again, str):
                return again
        return self._attempt(lambda: self.ring.reserve(*tiles.room))

    def _make_up(self, lease: Lease, shape: TileShape, returned: int) -> None:
        """Pixels for a tile of which only the time counts, that lies where all files reach if there is such a place:
        kernels leave out what no file holds, and without numbers of their usual size nothing is told of a GPU."""
        some, (height, width) = np.random.default_rng(0), self.scene.grid.shape
        inner = sorted(
            self._windows, key=lambda w: abs(2 * w.row + w.height - height) + abs(2 * w.col + w.width - width)
        )
        places = next(filter(reached, map(self._located, inner)), None) or {}
        with self._room(lease, shape, returned) as arrays:
            arrays["ntl"][:] = some.gamma(0.5, 8.0, arrays["ntl"].shape)
            arrays["valid"][:], arrays["own"][:] = 1, 1
            for name, layer in self._layers.items():
                layer.make_up(arrays, name, places.get(name, NOWHERE))

    def _compared(self, first: DeviceTiles, plan: TilePlan) -> list[DeviceTiles]:
        """`first` and larger ones, each faster than those before it, as far as it pays to make their programs."""
        tried = [first]
        for core in larger_cores(first.core):
            size, slots = self.scene.grid.shape, self.ring.count
            if not self._admits(core) or not worth_trying(tried, core, size, slots):
                break
            self._empty(keep=tried[-1].shape)
            found = self._try(core, plan)
            if isinstance(found, str) or found.rate < tried[-1].rate * FASTER:
                break
            tried.append(found)
            self.path.forget(keep=found.shape)
        return tried

    def _empty(self, keep: TileShape | None = None) -> None:
        """Let go of all memory but that of one program."""
        self.ring = Ring(self.path.device, self.ring.count)
        self.path.forget(keep)

    def _first(self, core: int) -> Window:
        """The first core of this side."""
        return Window(0, 0, core, core).clipped(*self.scene.grid.shape)

    def _cut(self, core: int) -> TileShape:
        """Decide on a core; the shape of its tiles."""
        places = spread(self.scene.grid.shape, self._first(core).shape)
        self._core = core
        self._windows = [self.window(place) for place in places]
        self._layers = unresampled(self.scene.auxiliary, self._windows)
        return self._shape(self._windows[0], {})

    def fallbacks(self) -> dict[str, str]:
        """What ran uncompiled although a compiler was asked, of the path's programs and the backend's, and why."""
        return self.path.fallbacks() | super().fallbacks()

    def close(self) -> None:
        """Let go of the device's memory and of what the host's path holds. The model given stays open."""
        if self._dates is None:
            self.path.forget()
        self.host.close()

    def cancel(self) -> None:
        """Ask a computation in another thread to stop early."""
        self._cancelled = True
        self.ring.stop()
        self.host.cancel()

    def window(self, core: Window) -> Window:
        """The LR pixels that are computed for a core: the same number for all of them, wherever the scene allows."""
        side = max(self._core, core.height, core.width)
        return fixed_window(core, side, self.halo, self.manifest, self.scene.grid.shape)

    def read(self, core: Window) -> Tile:
        """The pixels that a core is made from, in a slot, unless the core holds no data or a device cannot find its
        layers."""
        return self._read(core, physical=False)

    def _read(self, core: Window, *, physical: bool) -> Tile:
        window = self.window(core)
        begin = time.perf_counter()
        ntl, known = self.scene.read_ntl(window)
        self.meter.add(decode=time.perf_counter() - begin)
        inner = core.slices_in(window)
        lr, valid = ntl[inner].copy(), known[inner].copy()
        if not valid.any():
            return Tile(core, lr, valid)
        kept = None if self._dates is None else self._dates.find(self._place(window))
        begin = time.perf_counter()
        places = self._located(window) if kept is None else {}
        self.meter.add(decode=time.perf_counter() - begin)
        if places is None:  # no slot: what computes it reads it, so that few such tiles are in memory
            return DeviceTile(core, lr, valid, window, physical=physical)
        lease = self.ring.take()
        try:
            begin = time.perf_counter()
            back = self.path.returned(*core.shape, physical=physical).size
            shape = self._shape(window, places) if kept is None else kept.shape
            with self._room(lease, shape, back) as arrays:
                for name, at in places.items():
                    self._layers[name].fill(arrays, name, at)
                arrays["ntl"][:], arrays["valid"][:] = ntl, known
                arrays["own"][:] = 0
                arrays["own"][inner] = known[inner]
            self.meter.add(decode=time.perf_counter() - begin)
        except BaseException:
            lease.end()
            raise
        return DeviceTile(core, lr, valid, window, lease=lease, shape=shape, physical=physical, stays=kept)

    def _located(self, window: Window) -> dict[str, Placed] | None:
        """Where a tile lies in each file; None where a device cannot find it in all of them."""
        places = {}
        for name, layer in self._layers.items():
            found = layer.located(window)
            if found is None:
                return None
            places[name] = found
        return places

    def repeatable(self, core: Window) -> bool:
        """See TileWork.repeatable: the programs of the device are the same for all tiles, what the host does is not."""
        return self._located(self.window(core)) is not None

    @contextmanager
    def _room(self, lease: Lease, shape: TileShape, back: int) -> Iterator[dict[str, NDArray[Any]]]:
        """All that is sent of a tile, to be filled inside this context, in a slot with room for it."""
        slot, layout = lease.slot, shape.sent
        with self.path.failing(None):
            slot.reserve(layout.size, back)
        with self.path.device.host_uses(slot.host, writes=True):
            yield layout.arrays(slot.host.array)

    def _place(self, window: Window) -> Hashable:
        """What decides the layers of a tile."""
        return (*self.scene.auxiliary.values(), window)

    def _shape(self, window: Window, places: Mapping[str, Placed]) -> TileShape:
        """The program that a tile fits into. One that needs a larger one has it made, for all that come after it."""
        with self._growing:
            for name, at in places.items():
                if at.place is not None:
                    self._layers[name].holding(at.place)
            forms: tuple[tuple[str, LayerForm], ...] = tuple(
                (n, layer.form) for n, layer in self._layers.items()
            )
        return TileShape(*window.shape, forms)

    def compute(self, tile: Tile) -> Tile:
        """Start a tile on the device. One whose layers it cannot find goes through the host's path to its end, and so
        does one whose numbers were bad, in fp32."""
        if not isinstance(tile, DeviceTile):
            return tile
        if tile.lease is None or tile.shape is None or tile.window is None:
            return self._by_the_host(tile.core)
        try:
            if self._cancelled:
                raise DeepLightError("the device path was asked to stop")
            if not self.host.was_bad(tile.core):
                slot, shape, stays = tile.lease.slot, tile.shape, tile.stays
                if stays is None and self._dates is not None:
                    with self.path.failing(tile.core):
                        stays = self._dates.room(shape)
                self.path.launch(slot, shape, tile.core, tile.window, physical=tile.physical, layers=stays)
                return replace(tile, stays=stays)
        except BaseException:
            tile.lease.end()
            raise
        tile.lease.end()
        return self._by_the_host(tile.core)

    def _by_the_host(self, core: Window) -> Tile:
        """In pieces, which need little memory beside the path's; one whose numbers were bad in one, as it is known."""
        if self._cancelled:
            raise DeepLightError("the device path was asked to stop")
        begin, sides = time.perf_counter(), split(core, max(core.shape) if self.host.was_bad(core) else PIECE)
        try:
            tile = joined(core, [self.host.compute(self.host.read(piece)) for piece in sides])
        except OSError as error:
            raise DeepLightError(f"a layer cannot be read: {error}") from error
        finally:
            self.meter.add(host=time.perf_counter() - begin)
        if core not in self._by_host:  # one that is tried again counts once
            self._by_host.add(core)
            self.meter.add(host_tiles=1)
        return tile

    @contextmanager
    def collected(self, tile: Tile) -> Iterator[Tile]:
        """The tile with its pixels, once the device has made them; they lie in its slot until the end."""
        if not isinstance(tile, DeviceTile) or tile.lease is None:
            yield tile
            return
        try:
            with self.path.landed(tile.lease.slot, tile.core, physical=tile.physical) as found:
                if self._dates is not None and tile.stays is not None:
                    assert tile.window is not None
                    self._dates.keep(self._place(tile.window), tile.stays)
                begin = time.perf_counter()
                counts = dict(zip(COUNTS, found["counts"].tolist(), strict=True))
                pixels = found["pixels"] if "pixels" in found else Encoded(found["steps"], found["halves"])
                yield replace(tile, pixels=pixels, seen=found["seen"], counts=counts, lease=None)
                self.meter.add(encode=time.perf_counter() - begin)
        finally:
            tile.lease.end()

    def finish(self, tile: Tile) -> Floats | Encoded | None:
        """The tile's pixels; None where all are nodata. The device has masked them already, and encoded for uint16."""
        if tile.counts is None:
            return self.host.finish(tile)
        if tile.counts["bad"]:
            raise self.host.bad(tile.core)
        return tile.pixels

    def _pixels(self, core: Window) -> Floats | None:
        with self.collected(self.compute(self._read(core, physical=True))) as tile:
            pixels = self.finish(tile)
            assert not isinstance(pixels, Encoded)
            return None if pixels is None else pixels.copy()
