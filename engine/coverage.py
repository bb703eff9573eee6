"""Which share of the output had which layers, counted while the tiles pass."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.spec import SCALE
from deeplight.engine.tiles import Window


class Coverage:
    """Valid output pixels of this run, and how many of them had DMO and DEM. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._valid = 0
        self._had = {"dmo": 0, "dem": 0}
        self._neither = 0

    def add(self, inputs: Mapping[str, NDArray[np.float32]], core: Window, window: Window) -> None:
        """Count a core. inputs: the model's, of `window`; both in LR pixels."""
        rows, cols = core.slices_in(window)
        hr_rows, hr_cols = core.scaled(SCALE).slices_in(window.scaled(SCALE))
        valid = inputs["ntl_valid"][0, 0, rows, cols] != 0
        valid = np.repeat(np.repeat(valid, SCALE, 0), SCALE, 1)
        there = {k: (inputs[f"{k}_valid"][0, 0, hr_rows, hr_cols] != 0) & valid for k in self._had}
        with self._lock:
            self._valid += int(np.count_nonzero(valid))
            for name, mask in there.items():
                self._had[name] += int(np.count_nonzero(mask))
            self._neither += int(np.count_nonzero(valid & ~there["dmo"] & ~there["dem"]))

    def share(self, name: str) -> float | None:
        """Share of the valid output pixels that had "dmo" or "dem"; None where there were none."""
        return self._had[name] / self._valid if self._valid else None

    def lines(self) -> Iterator[str]:
        """For the log; nothing where no pixel was computed."""
        if self._valid:
            had = ", ".join(f"{name.upper()} on {n / self._valid:.1%}" for name, n in self._had.items())
            yield f"of the output's valid pixels: {had}, NTL alone on {self._neither / self._valid:.1%}"

    def merged(self, layers: dict[str, Any]) -> dict[str, Any]:
        """`Scene.describe()` with `share_of_output` added to the layers that were given."""
        for name in self._had:
            if name in layers:
                layers[name]["share_of_output"] = self.share(name)
        return layers
