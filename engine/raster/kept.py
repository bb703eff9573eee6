"""Tiles of the layers beside the lights, resampled once for several dates, as far as they fit into some memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from deeplight.engine.core.arrays import Floats, Mask
from deeplight.engine.core.windows import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Resampled(Protocol):
    """A layer on the HR grid, such as Daytime and AuxLayer."""

    @property
    def filled(self) -> Sequence[int]:
        """Channels of `values` that it fills; all others it sets to 0."""
        ...

    def read_into(self, hr_window: Window, values: Floats, mask: NDArray[Any]) -> None:
        """Values (C, H, W) and the mask (H, W) of 0 and 1, into arrays of any content."""
        ...


class KeptTiles:
    """Reads through to layers and keeps what they gave, up to `most` bytes. Thread-safe.

    What is kept is what was read, bit for bit. Windows that came first stay: dates ask for the same ones in the same
    order, so that leaving the oldest out would leave each one out before it is asked for again.
    """

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self._lock = threading.Lock()
        self._tiles: dict[tuple[str, Window], tuple[Floats, Mask]] = {}

    def read_into(
        self, name: str, layer: Resampled, hr_window: Window, values: Floats, mask: NDArray[Any]
    ) -> None:
        """As `layer.read_into`. name: the layer's; windows of one name are of one layer."""
        kept = self._tiles.get((name, hr_window))
        if kept is None:
            layer.read_into(hr_window, values, mask)
            self._keep((name, hr_window), values, mask, layer.filled)
            return
        if len(layer.filled) < len(values):
            values[:] = 0
        values[list(layer.filled)], mask[:] = kept

    def _keep(
        self, key: tuple[str, Window], values: Floats, mask: NDArray[Any], filled: Sequence[int]
    ) -> None:
        size = len(filled) * values[0].nbytes + mask.size
        with self._lock:
            if key in self._tiles or self.size + size > self.most:
                return
            self.size += size
        self._tiles[key] = values[list(filled)], mask.astype(np.uint8)
