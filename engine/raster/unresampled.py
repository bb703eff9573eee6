"""A layer as a device takes it: pixels of its own grid, and where the HR pixels of a tile lie between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.forms import LATTICE, LayerForm
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.auxiliary import Daytime
from deeplight.engine.raster.convert import sentinel
from deeplight.engine.raster.layers import AuxLayer

RAW_TYPES = frozenset({"uint16", "int16", "float32"})
"""Types of pixels that `kernels.align` reads as they are."""
_SLACK = 16
"""Pixels of the own grid by whose multiples the room for a tile grows: tiles differ by a few."""


class Unresampled:
    """A layer of a scene, for tiles of one shape. Methods may be called from several threads.

    windows: of tiles, in LR pixels, spread over the scene; they decide how much room there is, and how far apart the
    nodes of coordinates lie. A tile that needs more room is given it by `grown`.
    """

    def __init__(self, layer: Daytime | AuxLayer, windows: Sequence[Window]) -> None:
        self._layer = layer
        files = layer.layers if isinstance(layer, Daytime) else (layer,)
        self._own = None if len(files) > 1 or files[0].comes_back else files[0]
        if self._own is None:
            count = 7 if isinstance(layer, Daytime) else 1
            self.form = LayerForm("hr", tuple(range(count)))
            return
        channels = tuple(layer.channels[0]) if isinstance(layer, Daytime) else (0,)
        self.form = _form(self._own, channels, windows)

    def place(self, window: Window) -> Window | None:
        """The pixels of the own grid behind a tile, in LR pixels; None where there are none, and on the HR grid."""
        return None if self._own is None else self._own.source_window(window.scaled(SCALE))

    def fits(self, place: Window | None) -> bool:
        """Whether there is room for it."""
        return place is None or all(a <= b for a, b in zip(place.shape, self.form.shape, strict=True))

    def grown(self, place: Window) -> LayerForm:
        """The form with room for a tile, for good."""
        wanted = tuple(max(a, roomy(b)) for a, b in zip(self.form.shape, place.shape, strict=True))
        self.form = replace(self.form, shape=(wanted[0], wanted[1]))
        return self.form

    def fill(self, arrays: dict[str, NDArray[Any]], name: str, window: Window, place: Window | None) -> None:
        """Everything of `form.parts(name, …)` for a tile. place: from `place`."""
        if self._own is None:
            values, mask = arrays[f"{name}.values"], arrays[f"{name}.mask"]
            self._layer.read_into(window.scaled(SCALE), values, mask)
            return
        whole, fraction = arrays[f"{name}.whole"], arrays[f"{name}.fraction"]
        if place is None:
            arrays[f"{name}.extent"][:] = 0
            whole[:], fraction[:] = 0, np.nan
            return
        arrays[f"{name}.extent"][:] = place.shape
        nodes = self._own.nodes(window.scaled(SCALE), self.form.step)
        split_nodes(nodes, place, whole, fraction)
        bands = len(self.form.channels)
        inner = (slice(place.height), slice(place.width))
        pixels = arrays[f"{name}.pixels"][inner]
        if self.form.kind == "own":
            values, arrays[f"{name}.mask"][inner] = self._own.read_own(place)
            pixels[..., :bands] = values.transpose(1, 2, 0)
            return
        found = self._own.raster.read_pixels(place, self._own.bands, pixels)
        if self.form.masked:
            arrays[f"{name}.mask"][inner] = 1 if found is None else found


def split_nodes(
    nodes: NDArray[np.float64], place: Window, whole: NDArray[np.int32], fraction: NDArray[np.float32]
) -> None:
    """Coordinates (2, n, m) of a raster → relative to `place`, as integer and fraction; NaN where unknown or so far
    away that differences would leave 32 bits."""
    known = np.abs(nodes) < 2.0**30
    floors = np.floor(np.where(known, nodes, 0.0))
    whole[:] = floors.astype(np.int32) - np.array([place.row, place.col], np.int32).reshape(2, 1, 1)
    fraction[:] = np.where(known, nodes - floors, np.nan)


def spread(shape: tuple[int, int], side: tuple[int, int], count: int = 6) -> list[Window]:
    """At most count² windows of a size, spread over a scene (height, width) and at its edges, in LR pixels."""
    rows, cols = (
        sorted({round(k * max(0, n - s) / (count - 1)) for k in range(count)})
        for n, s in zip(shape, side, strict=True)
    )
    return [Window(row, col, *side) for row in rows for col in cols]


def _form(layer: AuxLayer, channels: tuple[int, ...], windows: Iterable[Window]) -> LayerForm:
    heights, widths, steps = [1], [1], [LATTICE]
    for window in windows:
        steps.append(layer.least_step(window.scaled(SCALE)))
        if (place := layer.source_window(window.scaled(SCALE))) is not None:
            heights.append(place.height)
            widths.append(place.width)
    shape = (roomy(max(heights)), roomy(max(widths)))
    dtypes = {layer.raster.dtypes[band - 1] for band in layer.bands}
    dtype = dtypes.pop()
    if dtypes or dtype not in RAW_TYPES or layer.factors != (1, 1):
        return LayerForm("own", channels, shape, step=min(steps))
    sentinels = (sentinel(value, np.dtype(dtype)) for value in layer.nodata)
    return LayerForm(
        "raw",
        channels,
        shape,
        dtype,
        tuple(map(float, layer.scale)),
        tuple(map(float, layer.offset)),
        tuple(None if math.isnan(value) else value for value in sentinels),
        layer.limits,
        layer.raster.masked,
        min(steps),
    )


def roomy(pixels: int) -> int:
    """Room for a tile that needs `pixels` along an axis, and for others like it."""
    return -(-(pixels + 2) // _SLACK) * _SLACK
