"""In which order packs are computed, so that every block of a source is decoded once.

GDAL keeps decoded blocks per dataset handle, the least recently used go first. Tiles of two pack rows share the
blocks between them, so these are still there if all blocks behind one row of packs fit into the cache. Where a
row of the whole scene is too long for that, the scene is cut into panels, each computed from top to bottom. One
panel is one lane: one reader, one handle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from deeplight.engine.core.windows import Window
from deeplight.engine.run.executor import Task
from deeplight.engine.run.tiling import EDGE, TilePlan, cores

if TYPE_CHECKING:
    from deeplight.engine.raster.scene import Scene

_MOST_CACHE_SHARE, _MOST_CACHE_BYTES = 0.1, 1 << 30
"""Of the available memory, and at all, for decoded blocks, where a panel of one pack needs more than usual."""


@dataclass(frozen=True)
class Order:
    """panel: width of a panel in LR pixels. cache_mb: for GDAL's block cache."""

    panel: int
    cache_mb: int


def choose_order(scene: Scene, plan: TilePlan, readers: int, cache_mb: int, memory: int) -> Order:
    """The widest panels whose rows of packs leave their blocks in the cache, shared by `readers`.

    cache_mb: the usual cache. memory: bytes available. A cache that does not even hold the blocks behind one
    pack, as for files stored in rows, is made larger as far as memory allows.
    """
    packs = -(-scene.grid.width // plan.pack)
    usual = cache_mb << 20

    def fits(count: int) -> bool:
        lanes = min(readers, -(-packs // count))
        return lanes * _row_bytes(scene, plan, count) <= usual

    # At least a panel for each reader, or two of them decode the same blocks.
    count = _largest(fits, -(-packs // readers))
    if count:
        return Order(count * plan.pack, cache_mb)
    need = min(readers, packs) * _row_bytes(scene, plan, 1)
    limit = min(int(memory * _MOST_CACHE_SHARE), _MOST_CACHE_BYTES)
    return Order(plan.pack, max(usual, min(need, limit)) + (1 << 20) - 1 >> 20)


def tasks(packs: Iterable[Window], plan: TilePlan, order: Order, readers: int) -> Iterator[Task]:
    """The cores of all packs, as many panels at a time as there are readers, tile by tile in turn.

    packs: windows in LR pixels.
    """
    by_panel = sorted(packs, key=lambda w: (w.col // order.panel, w.row, w.col))
    panels = groupby(by_panel, key=lambda w: w.col // order.panel)
    waiting = iter([_lane(lane, list(group), plan) for lane, group in panels])
    running: list[Iterator[Task]] = []
    while True:
        while len(running) < readers and (lane := next(waiting, None)) is not None:
            running.append(lane)
        if not running:
            return
        for lane in list(running):
            if (task := next(lane, None)) is None:
                running.remove(lane)
            else:
                yield task


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 1 … most that fits, 0 where none does; small ones are asked about first, for they are cheap."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _lane(number: int, packs: list[Window], plan: TilePlan) -> Iterator[Task]:
    return (Task(core, number) for pack in packs for core in cores(pack, plan))


def _row_bytes(scene: Scene, plan: TilePlan, packs: int) -> int:
    """Decoded blocks behind a row of that many packs with their halo, in the middle of the scene."""
    high, wide = scene.grid.height, scene.grid.width
    height, width = plan.pack + 2 * plan.halo, packs * plan.pack + 2 * plan.halo
    row, col = max(0, (high - height) // 2), max(0, (wide - width) // 2)
    # no tile reads further beyond a scene that is smaller than a pack
    most = Window(0, 0, high, wide).grown(EDGE)
    return scene.cached_bytes(Window(row, col, height, width).shared_with(most))
