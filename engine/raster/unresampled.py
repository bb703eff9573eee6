"""Layers as a device takes them: pixels of each file on its own grid, and where the HR pixels of a tile lie between
them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.admitted import admitted
from deeplight.engine.core.arrays import Doubles
from deeplight.engine.core.forms import LATTICE, LayerForm, file_key, layer_of
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.raster.auxiliary import Daytime
from deeplight.engine.raster.convert import sentinel
from deeplight.engine.raster.layers import AuxLayer

RAW_TYPES = frozenset({"uint8", "uint16", "int16", "float32"})
"""Types of pixels that `kernels.align` reads as they are."""
_STEPS = (LATTICE, LATTICE // 2, LATTICE // 4)
"""HR pixels that nodes may lie apart. Nodes for each pixel would be more than pixels are: the host makes such tiles."""
_SLACK = 16
"""Pixels of the own grid by whose multiples the room for a tile grows: tiles differ by a few."""
_HIGHEST_MADE_UP = 1000.0
"""Metres."""


def unresampled(
    layers: Mapping[str, Daytime | AuxLayer], windows: Sequence[Window]
) -> dict[str, Unresampled]:
    """Every file of a scene's layers, by `forms.file_key`. windows: see Unresampled."""
    found = {}
    for name, layer in layers.items():
        files = layer.joined if isinstance(layer, Daytime) else [((0,), layer)]
        for number, (channels, file) in enumerate(files):
            found[file_key(name, number)] = Unresampled(file, channels, windows)
    return found


class Placed(NamedTuple):
    """Where a tile lies in a file. place: pixels of its own grid, None where there are none. nodes: Warper.nodes."""

    place: Window | None
    nodes: Doubles


NOWHERE = Placed(None, np.empty(0))


def reached(places: Mapping[str, Placed] | None) -> bool:
    """Whether a tile lies where all files reach. places: in each file; None where a device cannot find it."""
    return places is not None and all(at.place is not None for at in places.values())


class Unresampled:
    """A file of a scene's layer, for tiles of one shape. Methods may be called from several threads.

    channels: the layer's in the network, of each band. windows: of tiles, in LR pixels, spread over the scene; they
    decide how much room there is, and how far apart the nodes of coordinates lie. A tile that needs more room is given
    it by `holding`; nodes stay where they are, since they decide bits.
    """

    def __init__(self, layer: AuxLayer, channels: Sequence[int], windows: Sequence[Window]) -> None:
        self._own = layer
        self.form = _form(layer, tuple(channels), windows)

    def located(self, window: Window) -> Placed | None:
        """Where a tile lies, in LR pixels. None where a device cannot find it as the host does: the file's columns
        cannot be counted on within the tile, or its coordinates bend more than in `windows`, or a mesh ends in it where
        another has other nodes."""
        places = self._own.source_windows(window.scaled(SCALE))
        if not places:
            return NOWHERE
        nodes = _nodes(self._own, window, places, self.form.step)
        return None if nodes is None else Placed(places[0], nodes)

    def holding(self, place: Window) -> LayerForm:
        """The form with room for a tile; where that is a larger one, it is `form` from now on."""
        if any(a > b for a, b in zip(place.shape, self.form.shape, strict=True)):
            high, wide = (max(a, roomy(b)) for a, b in zip(self.form.shape, place.shape, strict=True))
            self.form = replace(self.form, shape=(high, wide))
        return self.form

    def fill(self, arrays: dict[str, NDArray[Any]], name: str, at: Placed) -> None:
        """Everything of `form.parts(name, …)` for a tile."""
        _put_nodes(arrays, name, at)
        place = at.place
        if place is None:
            return
        bands = len(self.form.channels)
        inner = (slice(place.height), slice(place.width))
        pixels = arrays[f"{name}.pixels"][inner]
        if self.form.kind == "own":
            values, arrays[f"{name}.mask"][inner] = self._own.read_own(place)
            pixels[..., :bands] = values.transpose(1, 2, 0)
            return
        found = self._own.read_pixels(place, pixels)
        if self.form.masked:
            arrays[f"{name}.mask"][inner] = 1 if found is None else found

    def make_up(self, arrays: dict[str, NDArray[Any]], name: str, at: Placed) -> None:
        """As `fill`, of numbers within the layer's limits that no file holds."""
        _put_nodes(arrays, name, at)
        pixels, form = arrays[f"{name}.pixels"], self.form
        if form.masked:
            arrays[f"{name}.mask"][:] = 1
        values = np.random.default_rng(0).random((_SLACK, *pixels.shape[1:]))
        values *= _HIGHEST_MADE_UP if layer_of(name) == "dem" else 1.0
        for band, (gain, bias) in enumerate(zip(form.gain, form.bias, strict=True)):
            low, high = admitted(gain, bias, form.limits)
            values[..., band] = np.clip((values[..., band] - bias) / (gain or 1.0), low, high)
        if np.issubdtype(pixels.dtype, np.integer):
            values = values.clip(np.iinfo(pixels.dtype).min, np.iinfo(pixels.dtype).max)
        for row in range(0, len(pixels), _SLACK):  # of which there is room for a multiple
            pixels[row : row + _SLACK] = values


def _put_nodes(arrays: dict[str, NDArray[Any]], name: str, at: Placed) -> None:
    """Where a tile lies, and how many pixels behind it are filled."""
    whole, fraction = arrays[f"{name}.whole"], arrays[f"{name}.fraction"]
    if at.place is None:
        arrays[f"{name}.extent"][:] = 0
        whole[:], fraction[:] = 0, np.nan
        return
    arrays[f"{name}.extent"][:] = at.place.shape
    split_nodes(at.nodes, at.place, whole, fraction)


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


def _nodes(layer: AuxLayer, window: Window, places: Sequence[Window], step: int) -> Doubles | None:
    """Places of a tile's HR pixels `step` apart, as on the host; None where a device cannot have them so."""
    return layer.nodes(window.scaled(SCALE), step) if len(places) == 1 else None


def _form(layer: AuxLayer, channels: tuple[int, ...], windows: Iterable[Window]) -> LayerForm:
    heights, widths, nearest = [1], [1], LATTICE
    for window in windows:
        places = layer.source_windows(window.scaled(SCALE))
        steps = [step for step in _STEPS if step <= nearest]
        step = next((step for step in steps if _nodes(layer, window, places, step) is not None), None)
        if step is not None:
            nearest = step
            heights.append(places[0].height)
            widths.append(places[0].width)
    shape = (roomy(max(heights)), roomy(max(widths)))
    dtypes = {layer.pixels.dtypes[band - 1] for band in layer.bands}
    dtype = dtypes.pop()
    if dtypes or dtype not in RAW_TYPES or layer.factors != (1, 1):
        return LayerForm("own", channels, shape, step=nearest)
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
        layer.pixels.masked,
        nearest,
    )


def roomy(pixels: int) -> int:
    """Room for a tile that needs `pixels` along an axis, and for others like it."""
    return -(-(pixels + 2) // _SLACK) * _SLACK
