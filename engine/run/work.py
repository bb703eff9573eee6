"""One tile, from its place to its pixels: read what the model needs, run it, cut the core out, mask it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Floats, to_hr
from deeplight.engine.core.spec import SCALE, SUGGESTED
from deeplight.engine.core.windows import Window
from deeplight.engine.core.wording import mention
from deeplight.engine.output.facts import layers_present
from deeplight.engine.output.pack_format import Encoded
from deeplight.engine.raster.buffers import InputPool
from deeplight.engine.run.executor import TileFailed
from deeplight.engine.run.products import Products
from deeplight.engine.run.tiling import Crew, reader_count, tile_window, window_of_sides
from deeplight.engine.runtime.manifest import Manifest

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import Scene
    from deeplight.engine.run.meter import Meter
    from deeplight.engine.run.suggested import SuggestedLights
    from deeplight.engine.run.tiling import TilePlan
    from deeplight.engine.runtime.backends.base import Backend


@dataclass(frozen=True)
class Tile:
    """A core on its way through the stages.

    lr, valid: its NTL (h, w), physical, and mask. window, inputs: what the model is given; None where the core
    is all nodata. memory: that holds the inputs, of TileWork's pool. pixels: the result, (bands, 8h, 8w), not masked
    yet; from a device masked, and of uint16 encoded. layers: which layers they were made from, as facts.layers_present.
    seen: what the sensor would see of the radiance, (h, w). counts: over the valid HR pixels, as forms.COUNTS, where
    the device has made them. place: what decides its layers, for dates that share them; None: they are its own.
    """

    core: Window
    lr: Floats
    valid: NDArray[np.uint8]
    window: Window | None = None
    inputs: dict[str, Floats] | None = None
    memory: Floats | None = None
    pixels: Floats | Encoded | None = None
    layers: NDArray[np.uint8] | None = None
    seen: Floats | None = None
    counts: Mapping[str, float] | None = None
    place: Hashable = None


class BadPixels(TileFailed):
    """A model gave numbers for a tile that cannot be radiance. final: in fp32 as well."""


class TileWork:
    """Everything that decides a tile's pixels. `read` and `finish` may be called from several threads, `compute` from
    as many as the backend has streams.

    A core for which `finish` raised BadPixels is computed in fp32 when it is tried again.
    fp32: opens the same model in fp32, for tiles whose numbers were bad; None where the model has no fp32.
    suggested: what the layers suggest, where dates share them. sides: of the tiles' windows, see tiling.common_sides;
    None: each has its own.
    """

    def __init__(
        self,
        scene: Scene,
        backend: Backend,
        manifest: Manifest,
        halo: int,
        products: Products,
        fp32: Callable[[], Backend] | None = None,
        suggested: SuggestedLights | None = None,
        sides: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    ) -> None:
        self.scene, self.backend, self.manifest = scene, backend, manifest
        self.halo, self.products, self._sides = halo, products, sides
        self._open_fp32, self._suggested = fp32, suggested
        self._fp32: Backend | None = None
        self._pool = InputPool()
        self._bad: set[Window] = set()
        self._lock, self._again = threading.Lock(), threading.Lock()

    @property
    def host(self) -> TileWork:
        """What computes single places on the host's path, whose tiles hold the model's inputs."""
        return self

    @property
    def meter(self) -> Meter | None:
        """What a device path measures of itself."""
        return None

    def crew(self, threads: int) -> Crew:
        """How many threads read and write."""
        return Crew(reader_count(threads), 2)

    def fit(self, plan: TilePlan) -> TilePlan:
        """Get ready for a plan, or for another that does: before anything is written. Raises InputError where none."""
        return plan

    def fallbacks(self) -> dict[str, str]:
        """Tile shapes that ran uncompiled although a compiler was asked, and why."""
        return self.backend.fallbacks()

    @contextmanager
    def collected(self, tile: Tile) -> Iterator[Tile]:
        """A computed tile with its pixels, once they are there. They may be gone at the end."""
        yield tile

    def close(self) -> None:
        """Close the model that `compute` opened in fp32, let go of the inputs' memory. The model given stays open."""
        self._pool = InputPool()
        if self._fp32 is not None:
            self._fp32.close()
            self._fp32 = None

    def repeatable(self, core: Window) -> bool:
        """Whether a place is the same, but for float32's rounding, in whatever window it is computed."""
        return True

    def cancel(self) -> None:
        """Ask `compute` in another thread to stop early."""
        with self._lock:
            for backend in (self.backend, self._fp32):
                if backend is not None:
                    backend.cancel()

    def read(self, core: Window) -> Tile:
        """Everything the model needs for a core, unless the core holds no data."""
        lr, valid = self.scene.read_ntl(core)
        if not valid.any():
            return Tile(core, lr, valid)
        window = self._window(core)
        memory, inputs = self._pool.take(*window.shape)
        place = None if self._suggested is None else (*self.scene.auxiliary.values(), window)
        return Tile(core, lr, valid, window, self.scene.read_inputs(window, inputs), memory, place=place)

    def _window(self, core: Window) -> Window:
        """What the model is shown for a core."""
        size = self.scene.grid.shape
        window = tile_window(core, self.halo, self.manifest, size)
        if self._sides is None:
            return window
        return window_of_sides(window, self._sides, self.halo, self.manifest, size)

    def compute(self, tile: Tile) -> Tile:
        """The bands of the core, the halo cut off."""
        if tile.window is None or tile.inputs is None:
            return tile
        if self.was_bad(tile.core):
            with self._again:
                outputs = self._in_fp32().run(tile.inputs, self.products.model_outputs)
        else:
            outputs = self.backend.run(self._with_suggested(tile), self.products.model_outputs)
        pixels, seen = self.products.make(outputs, tile.inputs, tile.core, tile.window)
        layers = layers_present(tile.inputs, tile.core, tile.window)
        if tile.memory is not None:
            self._pool.give(tile.memory)
        return replace(tile, inputs=None, memory=None, pixels=pixels, layers=layers, seen=seen)

    def _with_suggested(self, tile: Tile) -> dict[str, Floats]:
        """The inputs of a tile, with what its layers suggest where an earlier date has computed it, or a later one will
        look for it."""
        inputs = tile.inputs
        assert inputs is not None
        if self._suggested is None or tile.place is None or not self.backend.suggests:
            return inputs
        lights = self._suggested.of(tile.place, lambda: self.backend.suggest(inputs))
        return {**inputs, SUGGESTED.name: lights}

    def finish(self, tile: Tile) -> Floats | Encoded | None:
        """The pixels with NaN wherever NTL is nodata, or encoded with nodata there; None where all of them are.

        Raises BadPixels, naming the tile, where a valid pixel is not finite or its radiance is below zero.
        """
        if tile.pixels is None:
            return None
        assert not isinstance(tile.pixels, Encoded)
        pixels = masked(tile.pixels, tile.valid)
        if pixels is None:
            raise self.bad(tile.core)
        return pixels

    def was_bad(self, core: Window) -> bool:
        """Whether a tile's numbers were bad already, so that it is computed in fp32."""
        return core in self._bad

    def bad(self, core: Window) -> BadPixels:
        """What is raised for a tile with bad numbers; the next try is in fp32."""
        with self._lock:
            final = core in self._bad
            self._bad.add(core)
        return BadPixels(
            f"{self.manifest.name} gave values that are not finite or below zero in the tile at row {core.row}, "
            f"column {core.col} of {core.height}×{core.width} LR pixels: "
            f"check the scales of the inputs there, or use another model or {mention(precision='fp32')}",
            final=final,
        )

    def pixels(self, core: Window) -> Floats | None:
        """A core from its place to its finished pixels, one step after the other; None where all are nodata.

        Raises BadPixels where its numbers are bad in fp32, too.
        """
        try:
            return self._pixels(core)
        except BadPixels as error:
            if error.final:
                raise
        return self._pixels(core)

    def _pixels(self, core: Window) -> Floats | None:
        with self.collected(self.compute(self.read(core))) as tile:
            pixels = self.finish(tile)
            assert not isinstance(pixels, Encoded)
            return pixels

    def _in_fp32(self) -> Backend:
        with self._lock:
            if self._fp32 is None and self._open_fp32 is not None:
                self._fp32 = self._open_fp32()
            return self._fp32 or self.backend


def joined(core: Window, pieces: Sequence[Tile]) -> Tile:
    """The computed tile of a core, of computed tiles of all its parts; 0 where a part has no data."""
    if len(pieces) == 1:
        return pieces[0]
    high, wide = (SCALE * side for side in core.shape)
    bands = max((len(p.pixels) for p in pieces if isinstance(p.pixels, np.ndarray)), default=1)
    lr, valid = np.empty(core.shape, np.float32), np.empty(core.shape, np.uint8)
    seen, layers = np.zeros(core.shape, np.float32), np.zeros((high, wide), np.uint8)
    pixels = np.zeros((bands, high, wide), np.float32)
    for piece in pieces:
        here, hr = piece.core.slices_in(core), piece.core.scaled(SCALE).slices_in(core.scaled(SCALE))
        lr[here], valid[here] = piece.lr, piece.valid
        if isinstance(piece.pixels, np.ndarray) and piece.seen is not None and piece.layers is not None:
            pixels[:, *hr], seen[here], layers[hr] = piece.pixels, piece.seen, piece.layers
    return Tile(core, lr, valid, core, pixels=pixels, layers=layers, seen=seen)


def masked(pixels: Floats, valid: NDArray[np.uint8]) -> Floats | None:
    """`pixels` (bands, 8h, 8w) with NaN wherever the LR mask `valid` (h, w) is 0; None where a valid pixel is not
    finite or its radiance is below zero."""
    hr_valid = to_hr(valid != 0)
    finite = np.isfinite(pixels).all(axis=0)
    good = finite & (pixels[0] >= 0)
    if not (good | ~hr_valid).all():
        return None
    if hr_valid.all():
        return pixels
    return np.where(hr_valid, pixels, np.float32(np.nan))
