"""An offset of the layers against the lights that is given, not estimated for each date."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deeplight.engine.core.arrays import Floats
from deeplight.engine.core.windows import Window


@dataclass(frozen=True)
class SharedOffset:
    """values: (2, h, w), x and y in LR pixels, over a whole scene."""

    values: Floats

    def read(self, window: Window) -> Floats:
        """(1, 2, h, w) of a window in LR pixels, which may leave the scene: 0 there."""
        _, height, width = self.values.shape
        found = np.zeros((1, len(self.values), *window.shape), np.float32)
        inside = window.clipped(height, width)
        if inside.height and inside.width:
            rows, cols = inside.slices_in(window)
            there = inside.slices_in(Window(0, 0, height, width))
            found[0, :, rows, cols] = self.values[:, there[0], there[1]]
        return found
