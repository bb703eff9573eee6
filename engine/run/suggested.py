"""What the layers of tiles suggest, computed once for all dates: see spec.SUGGESTED."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

from deeplight.engine.core.arrays import Floats


class SuggestedLights:
    """Serves dates one after the other, and tiles of a date at the same time. It keeps up to `most` bytes.

    An LR pixel takes 4 of them. What came first stays: see raster.kept.KeptTiles. What is not kept is computed for each
    date.
    """

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self._kept: dict[Hashable, Floats] = {}
        self._lock = threading.Lock()

    def of(self, place: Hashable, compute: Callable[[], Floats]) -> Floats:
        """The lights of a tile. place: what decides its layers. compute: makes them of these layers."""
        known = self._kept.get(place)
        if known is not None:
            return known
        lights = compute()
        with self._lock:
            if place not in self._kept and self.size + lights.nbytes <= self.most:
                self.size += lights.nbytes
                self._kept[place] = lights
        return lights
