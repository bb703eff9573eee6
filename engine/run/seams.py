"""Are the seams clean? Places across tile borders computed again on their own, against the finished file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deeplight.engine.core.errors import DeepLightError
from deeplight.engine.core.spec import SCALE
from deeplight.engine.core.windows import Window
from deeplight.engine.run.tiling import TilePlan

if TYPE_CHECKING:
    from deeplight.engine.output.packs import OutputSpec
    from deeplight.engine.run.work import TileWork

TOLERANCE = 1e-5
"""Largest difference, in parts of a band's range, between tiles of different cuts."""
_SIDE = 32
"""LR pixels of a window that is computed again, with a border in its middle."""
_CANDIDATES = 20
"""Windows tried for each that is wanted: many may hold no data."""
_SEED = 20240803


@dataclass(frozen=True)
class VerifiedSeams:
    """What was found. windows: compared. worst: largest difference in parts of the range."""

    windows: int
    worst: float


def borders(length: int, plan: TilePlan) -> list[int]:
    """LR rows (or columns) in a scene of `length` at which a tile begins, without the scene's own edge."""
    if plan.core is None:
        return []
    starts = {
        place for pack in range(0, length, plan.pack) for place in range(pack, pack + plan.pack, plan.core)
    }
    return sorted(s for s in starts if 0 < s < length)


def seam_windows(height: int, width: int, plan: TilePlan) -> Iterator[Window]:
    """Random windows inside a scene of height × width LR pixels, each across a border; always the same."""
    rows, cols = borders(height, plan), borders(width, plan)
    random = np.random.default_rng(_SEED)
    while rows or cols:
        along_row = bool(rows) and (not cols or random.random() < 0.5)
        row = int(random.choice(rows)) if along_row else int(random.integers(height))
        col = int(random.integers(width)) if along_row else int(random.choice(cols))
        top, left = max(0, row - _SIDE // 2), max(0, col - _SIDE // 2)
        yield Window(top, left, _SIDE, _SIDE).clipped(height, width)


def tiles_behind(window: Window, shape: tuple[int, int], plan: TilePlan) -> Iterator[Window]:
    """The tiles of a scene (height, width) that a window meets."""
    met = []
    for length, first, side in zip(shape, (window.row, window.col), window.shape, strict=True):
        ends = [0, *borders(length, plan), length]
        met.append([(a, b) for a, b in pairwise(ends) if a < first + side and b > first])
    for top, bottom in met[0]:
        for left, right in met[1]:
            yield Window(top, left, bottom - top, right - left)


def verify_seams(
    path: Path,
    spec: OutputSpec,
    work: TileWork,
    plan: TilePlan,
    count: int,
    largest: float,
    advance: Callable[[], None] = lambda: None,
) -> VerifiedSeams:
    """Compare the file at `path` with `count` windows computed again.

    largest: radiance in the output, as far as known. advance: called after each window. Bands of flags are left out.
    Raises DeepLightError, naming the place, where they differ by more than TOLERANCE of the band's range (and half a
    step of an integer type), or in what is nodata. Places are left out that are not the same in every window: where a
    GPU's run made tiles outside its programs, in a reduced precision perhaps.
    """
    import rasterio

    bands = [i for i, band in enumerate(spec.bands) if not band.flags]
    found: list[tuple[Window, NDArray[np.float64], NDArray[np.float64]]] = []
    with rasterio.open(path) as dataset:
        height, width = work.scene.grid.height, work.scene.grid.width
        for tried, window in enumerate(seam_windows(height, width, plan)):
            if len(found) == count or tried == count * _CANDIDATES:
                break
            places = (window, *tiles_behind(window, (height, width), plan))
            again = work.pixels(window) if all(map(work.repeatable, places)) else None
            if again is None:
                continue
            hr = window.scaled(SCALE)
            rows, cols = (hr.row, hr.row + hr.height), (hr.col, hr.col + hr.width)
            raw = dataset.read([i + 1 for i in bands], window=(rows, cols), masked=True)
            stored = raw.astype(np.float64).filled(np.nan) * spec.scale + spec.offset
            wanted = again[bands].astype(np.float64)
            if spec.dtype == "uint16":  # which holds no more than its largest code but one, nodata
                wanted = np.minimum(wanted, (np.iinfo(np.uint16).max - 1) * spec.scale + spec.offset)
            found.append((window, stored, wanted))
            advance()
    return _compare(found, spec, largest)


def _compare(
    found: list[tuple[Window, NDArray[np.float64], NDArray[np.float64]]], spec: OutputSpec, largest: float
) -> VerifiedSeams:
    if not found:
        return VerifiedSeams(0, 0.0)
    top = np.max([np.nanmax(np.abs(again), axis=(1, 2)) for _, _, again in found], axis=0)
    top[0] = max(top[0], largest)
    step = spec.scale / 2 if spec.dtype == "uint16" else 0.0
    worst = 0.0
    for window, stored, again in found:
        if not np.array_equal(np.isnan(stored), np.isnan(again)):
            raise _differ(window, "in which pixels are nodata")
        difference = np.nanmax(np.abs(stored - again), axis=(1, 2))
        # A step's rounding is not a seam; what float32 adds to it is far below the tolerance.
        parts = np.maximum(difference - step, 0) / np.maximum(top, np.finfo(np.float32).tiny)
        worst = max(worst, float(parts.max()))
        if worst > TOLERANCE:
            raise _differ(window, f"by {worst:.2g} of the range, more than {TOLERANCE:g}")
    return VerifiedSeams(len(found), worst)


def _differ(window: Window, how: str) -> DeepLightError:
    return DeepLightError(
        f"the seams are not clean: at row {window.row}, column {window.col} ({window.height}×{window.width} LR "
        f"pixels) the output differs {how} from the same place computed alone; give a larger halo with "
        '`tiles="CORE+HALO", overwrite=True`, and report the model'
    )
