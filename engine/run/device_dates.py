"""What the dates of a stack share on a device: the programs of tiles, the layers beside the lights once sent, and the
lights that these suggest."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING

from deeplight.engine.run.device_path import DevicePath, SentLayers, TileShape
from deeplight.engine.run.meter import Meter

if TYPE_CHECKING:
    from deeplight.engine.core.forms import Wanted
    from deeplight.engine.runtime.backends.base import Resident
    from deeplight.engine.runtime.device import Device

SHARE = 0.5
"""Of the memory that is free once a program is there, for layers: the rest is for programs of other shapes, which tiles
at edges may need, and for other processes."""


class DatesOnDevice:
    """Serves one date after the other. `room` is for one thread at a time; `find` and `keep` for several.

    Layers are kept byte for byte as they were sent, so that the same program makes the same bytes of them. Those that
    came first stay: see raster.kept.KeptTiles.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self.size = 0
        self._path: DevicePath | None = None
        self._device: Device | None = None
        self._kept: dict[Hashable, SentLayers] = {}
        self._lock = threading.Lock()

    def path(self, resident: Resident, wanted: Wanted, slots: tuple[int, ...]) -> DevicePath:
        """The path for a date, with what an earlier one has made where it wants the same. See DevicePath."""
        if self._path is None or (self._path.wanted, self._path.slots) != (wanted, slots):
            if self._path is not None:
                self._path.forget()
            self._path = DevicePath(resident, wanted, slots)
        self._path.meter = Meter()
        return self._path

    def keep_layers(self, device: Device) -> None:
        """Keep layers from now on, in a share of the memory that is free when the first date has its own."""
        if self.most is None:
            self._device, self.most = device, int(SHARE * device.free())

    def find(self, place: Hashable) -> SentLayers | None:
        """The layers of a tile, if an earlier date has sent them."""
        return self._kept.get(place)

    def room(self, shape: TileShape) -> SentLayers | None:
        """Memory for the layers of a tile that is about to be sent; None where there is none left."""
        size = shape.kept
        if self._device is None or self.most is None or size == 0 or self.size + size > self.most:
            return None
        try:
            memory = self._device.memory(size)
        except RuntimeError as error:
            if not self._device.out_of_memory(error):
                raise
            self.most = self.size  # others have taken it
            return None
        with self._lock:
            self.size += size
        return SentLayers(shape, memory)

    def keep(self, place: Hashable, layers: SentLayers) -> None:
        """Keep the layers of a tile, which have arrived."""
        with self._lock:
            layers.there = True
            if self._kept.setdefault(place, layers) is not layers:  # a tile that was tried twice
                self.size -= layers.shape.kept

    def close(self) -> None:
        """Let go of the device's memory."""
        self._kept.clear()
        if self._path is not None:
            self._path.forget()
