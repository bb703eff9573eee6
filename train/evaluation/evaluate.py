"""The evaluation: places → tiles → blocks → sums → a result. Memory does not grow with the size of a place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.arrays import Doubles, to_hr
from deeplight.engine.core.errors import DeepLightError, InputError
from deeplight.engine.core.progress import Progress, Silent
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window, split
from deeplight.train.clips.samples import SampleSource
from deeplight.train.evaluation.blocks import (
    MARGIN_LR,
    ScoredBlock,
    ScoreSettings,
    Sums,
    empty,
    score_block,
)
from deeplight.train.evaluation.models import REACH, Inputs, Method
from deeplight.train.evaluation.showcase import Clouds, Showcase
from deeplight.train.evaluation.sources import read_padded

TILE_BLOCKS = 3
"""Blocks along each side of a tile: the network's halo is read once for all of them."""
MOST_GROUPS = 2000
"""Blocks are kept apart for intervals up to this many; neighbours are merged beyond, which bounds memory."""
MOST_PIQE = 200
"""Blocks whose PIQE is taken, spread evenly: the package takes about a third of a second for one with all methods."""
MOST_UNREADABLE = 10
"""Unreadable places that are skipped before the evaluation gives up."""


class RasterMethod(AbstractContextManager["RasterMethod"]):
    """A map on the HR grid that was made before, such as by the engine. NaN where it is nodata."""

    def __init__(self, path: Path) -> None:
        import rasterio

        self._file = rasterio.open(path)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def window(self, wanted: Window) -> Window:
        """Return the window with the margin that interpolations read, so that all methods have it."""
        return wanted.grown(REACH)

    def radiance(self, place: int, wanted: Window, read: Window, inputs: Inputs) -> Doubles:
        """Return the map's radiance on `wanted`, (8h, 8w), NaN where the map has none."""
        hr = wanted.scaled(SCALE)
        inside = hr.clipped(self._file.height, self._file.width)
        out = np.full(hr.shape, np.nan)
        rows, cols = (
            (inside.row, inside.row + inside.height),
            (inside.col, inside.col + inside.width),
        )
        values = self._file.read(1, window=(rows, cols), masked=True).astype(np.float64)
        out[inside.slices_in(hr)] = values.filled(np.nan) * self._file.scales[0] + self._file.offsets[0]
        return out


@dataclass
class Evaluation:
    """Sums over everything scored so far, whole and by place and group of blocks."""

    settings: ScoreSettings
    methods: tuple[str, ...]
    total: Sums
    places: dict[str, Sums] = field(default_factory=dict)
    groups: dict[tuple[str, int, int], Doubles] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    showcase: Showcase = field(default_factory=Showcase)
    clouds: Clouds = field(default_factory=Clouds)

    @classmethod
    def of(cls, settings: ScoreSettings, methods: tuple[str, ...]) -> Evaluation:
        """Begin an evaluation, with nothing scored yet."""
        return cls(settings, methods, empty(len(methods)))

    def add(self, name: str, block: ScoredBlock, group: int, with_piqe: bool) -> None:
        """Score a block. group: for intervals, group × group blocks are merged into one."""
        sums = score_block(block, self.settings, with_piqe)
        side = self.settings.block * group
        at = (name, block.core.row // side, block.core.col // side)
        held = self.groups.get(at)
        self.groups[at] = sums["pixels"] if held is None else held + sums["pixels"]
        of_place = self.places.get(name, empty(len(self.methods)))
        self.places[name] = {key: of_place[key] + values for key, values in sums.items()}
        self.total = {key: self.total[key] + values for key, values in sums.items()}
        core = (slice(MARGIN_LR * SCALE, -MARGIN_LR * SCALE),) * 2
        valid = block.valid[core]
        for m, out in block.outputs.items():
            self.clouds.add(m, out[core][valid], block.truth[core][valid])
        self.showcase.offer(name, block)

    def copy(self) -> Evaluation:
        """Return a copy that later blocks do not change. It shares arrays with this one, which `add` replaces."""
        return replace(
            self,
            places=dict(self.places),
            groups=dict(self.groups),
            showcase=Showcase(list(self.showcase.pictures)),
            clouds=Clouds(dict(self.clouds.counts)),
        )

    def go_back_to(self, before: Evaluation) -> None:
        """Forget what was added since `before` was copied."""
        for name in ("total", "places", "groups", "showcase", "clouds"):
            setattr(self, name, getattr(before, name))


def evaluate(
    source: SampleSource,
    methods: Mapping[str, Method],
    settings: ScoreSettings,
    progress: Progress | None = None,
    borders: Callable[[int], bool] | None = None,
    into: Evaluation | None = None,
) -> Evaluation:
    """Score every method on every place of `source`.

    borders: whether the tiles of maps made before begin at an LR row or column; None: there are no such maps. What is
    computed here has no seams to find, since each tile brings its own surroundings.
    into: go on with this evaluation, of the same methods on other places.
    A place that turns out to be unreadable counts for nothing, whatever was scored of it before.
    Raises DeepLightError where nothing could be scored, InputError where too many places cannot be read.
    """
    progress = progress or Silent()
    result = into or Evaluation.of(settings, tuple(methods))
    side = settings.block * TILE_BLOCKS
    sizes = [source.size(place) for place in range(len(source))]
    blocks = sum(math.ceil(h / settings.block) * math.ceil(w / settings.block) for h, w in sizes)
    group, spacing = math.ceil(math.sqrt(blocks / MOST_GROUPS)), max(1, math.ceil(blocks / MOST_PIQE))
    at_tile = borders or (lambda place: False)
    seen = 0
    with progress:
        progress.start(sum(h * w for h, w in sizes) * SCALE**2)
        for place, (h, w) in enumerate(sizes):
            before = result.copy()
            try:
                for tile in split(Window(0, 0, h, w), side):
                    told = _Steps(progress, tile, len(methods))
                    for block in _blocks(source, place, tile, methods, settings, at_tile, told.method):
                        result.add(source.name(place), block, group, seen % spacing == 0)
                        told.block(block.core)
                        seen += 1
                    told.finish()
            except InputError as error:
                result.go_back_to(before)
                _skip(result, source.name(place), error, progress)
    if not result.total["counts"][0, 0] and result.skipped:
        raise InputError(f"no place could be scored; the last one skipped: {result.skipped[-1]}")
    if not result.total["counts"][0, 0]:
        raise DeepLightError(
            "no pixel could be scored: nowhere do the truth, the NTL and every output hold data at once"
        )
    return result


class _Steps:
    """Progress within a tile, which takes seconds: half of its pixels for the methods' outputs, half for the scores."""

    def __init__(self, progress: Progress, tile: Window, methods: int) -> None:
        self._progress = progress
        self._left = tile.height * tile.width * SCALE**2
        self._method = self._left // (2 * methods)

    def method(self) -> None:
        """Count that one more method has made its output."""
        self._advance(self._method)

    def block(self, core: Window) -> None:
        """Count that one more block is scored."""
        self._advance(core.height * core.width * SCALE**2 // 2)

    def finish(self) -> None:
        """Count what is left of the tile, which may have held nothing to score."""
        self._advance(self._left)

    def _advance(self, pixels: int) -> None:
        self._left -= pixels
        self._progress.advance(pixels)


def _skip(result: Evaluation, name: str, error: InputError, progress: Progress) -> None:
    """Note a place that cannot be read; too many end the evaluation."""
    result.skipped.append(f"{name}: {error}")
    progress.log(f"warning: skipped {name}: {error}")
    if len(result.skipped) > MOST_UNREADABLE:
        raise InputError(
            f"more than {MOST_UNREADABLE} places cannot be read, the last one {name} ({error}): mend or leave out "
            "the ones named above"
        )


def _blocks(
    source: SampleSource,
    place: int,
    tile: Window,
    methods: Mapping[str, Method],
    settings: ScoreSettings,
    at_tile: Callable[[int], bool],
    done: Callable[[], None],
) -> Iterator[ScoredBlock]:
    """The blocks of a tile, all methods applied to the tile once. done: called after each of them."""
    wanted = tile.grown(MARGIN_LR)
    read = _around([method.window(wanted) for method in methods.values()])
    inputs, truth, valid = read_padded(source, place, read)
    lr_inputs = {name: inputs[name][0, 0] for name in ("ntl", "ntl_valid")}
    if not (valid.any() and lr_inputs["ntl_valid"].any()):
        return
    outputs: dict[str, Doubles] = {}
    for name, method in methods.items():
        outputs[name] = method.radiance(place, wanted, read, inputs)
        done()
    lr_at, hr_at = wanted.slices_in(read), wanted.scaled(SCALE).slices_in(read.scaled(SCALE))
    lr = lr_inputs["ntl"][lr_at].astype(np.float64)
    lr_valid = lr_inputs["ntl_valid"][lr_at] > 0
    truth, valid = truth[hr_at], valid[hr_at] & to_hr(lr_valid)
    for out in outputs.values():
        valid = valid & np.isfinite(out)
    outputs = {name: np.where(valid, out, 0.0) for name, out in outputs.items()}
    truth = np.where(valid, truth, 0.0)
    for core in split(tile, settings.block):
        yield _block(core, wanted, lr, lr_valid, truth, valid, outputs, at_tile)


def _block(
    core: Window,
    wanted: Window,
    lr: Doubles,
    lr_valid: NDArray[np.bool_],
    truth: Doubles,
    valid: NDArray[np.bool_],
    outputs: dict[str, Doubles],
    at_tile: Callable[[int], bool],
) -> ScoredBlock:
    around = core.grown(MARGIN_LR)
    at, hr = around.slices_in(wanted), around.scaled(SCALE).slices_in(wanted.scaled(SCALE))
    rows = [at_tile(core.row + k) for k in range(core.height)]
    cols = [at_tile(core.col + k) for k in range(core.width)]
    cut = {name: out[hr] for name, out in outputs.items()}
    return ScoredBlock(core, lr[at], lr_valid[at], truth[hr], valid[hr], cut, rows, cols)


def _around(windows: list[Window]) -> Window:
    """The smallest window that holds all of them."""
    row, col = min(w.row for w in windows), min(w.col for w in windows)
    bottom = max(w.row + w.height for w in windows)
    right = max(w.col + w.width for w in windows)
    return Window(row, col, bottom - row, right - col)


def facts(source: SampleSource) -> dict[str, Any]:
    """Return what the report says of the data."""
    return {"places": len(source), "fingerprint": source.fingerprint()}
